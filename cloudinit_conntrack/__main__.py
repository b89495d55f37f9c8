"""``python3 -m cloudinit_conntrack``, and ``python3 -I -S PACKAGE_DIRECTORY`` as the boot service runs it."""

import sys

if not __package__:  # run by its path: that is sys.path[0], and the package must be found beside it
    package = sys.path.pop(0)
    packages = [number for number, path in enumerate(sys.path) if path.endswith("-packages")]
    # Behind the standard library, which the packages of a Python directory must not hide.
    sys.path.insert(packages[0] if packages else len(sys.path), package.rpartition("/")[0])

from cloudinit_conntrack.quick import main

sys.exit(main())
