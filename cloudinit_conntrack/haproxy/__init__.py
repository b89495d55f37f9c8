"""haproxy's configuration -> the flows of the host.  Pure: texts in, values out."""
