"""Judged by what the authors of iptables test their own program with; see debian_source.py."""
