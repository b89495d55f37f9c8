"""``python3 -m cloudinit_conntrack``."""

import sys

from .cli import main

sys.exit(main())
