"""heat-group.yaml and heat-node.yaml: OpenStack Heat's own engine reads, resolves and validates them.

Without a cloud: what asks Nova or Octavia whether a flavor or a pool exists is not asked (``strict_validate``).
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
from heat.common import context, template_format
from heat.common.exception import HeatException
from heat.engine import environment, resources, stack, template
from oslo_config import cfg

HERE = Path(__file__).parents[2] / "examples" / "autoscaling"
PARAMETERS = {"image": "haproxy-stateless", "flavor": "small", "network": "front", "pool": "web"}


@cache
def types() -> bool:
    """Every resource type that Heat knows; loading them takes seconds."""
    cfg.CONF([], project="heat", default_config_files=[])  # this machine's own settings are not the test's
    resources.initialise()
    return True


def made(name: str, text: str = "") -> Any:
    assert types()
    files = {path.name: path.read_text(encoding="utf-8") for path in HERE.glob("heat-*.yaml")}
    read = template.Template(template_format.parse(text or files[name]), files=files,
                             env=environment.Environment({"parameters": PARAMETERS}))
    read.validate()
    who = context.RequestContext(user_id="u", project_id="p", auth_token="-", auth_url="http://127.0.0.1:9/v3")
    found = stack.Stack(who, "nodes", read, strict_validate=False)
    found.validate(validate_res_tmpl_only=True)
    return found


@pytest.mark.parametrize("name", ["heat-group.yaml", "heat-node.yaml"])
def test_heat_accepts_it(name: str) -> None:
    assert made(name).resources


def test_a_node_is_in_the_pool_only_behind_its_wait_condition() -> None:
    nodes = made("heat-node.yaml")
    needs = {name: {n.name for n in nodes.dependencies.requires(one)} for name, one in nodes.resources.items()}
    assert {"node", "stateless"} <= needs["member"]
    assert "told" in needs["node"] and "told" in needs["stateless"]


@pytest.mark.parametrize("old, new", [("handle:", "handel:"), ("depends_on: stateless", "depends_on: stateles")])
def test_heat_would_find_a_fault(old: str, new: str) -> None:
    text = (HERE / "heat-node.yaml").read_text(encoding="utf-8")
    assert old in text
    with pytest.raises((HeatException, ValueError)):
        made("heat-node.yaml", text.replace(old, new))
