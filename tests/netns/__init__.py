"""The kernel as judge: real rules and real packets in network namespaces of our own."""
