"""Real modules on a real kernel: guests in User-mode Linux.  README.md says how to use them."""
