"""The templates of examples/autoscaling, by the clouds' own tools: ``make autoscaling`` alone has them."""

from __future__ import annotations

import os

collect_ignore_glob = [] if os.environ.get("AUTOSCALING") else ["test_*.py"]
