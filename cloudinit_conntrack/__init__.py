"""Make a Linux load balancer stateless, from one ``conntrack:`` section of user-data."""

__version__ = "0.1.0"
