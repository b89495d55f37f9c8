"""examples/monitoring: alerts and dashboard, judged by Prometheus' own tool and by what ``metrics`` prints."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from promtool import asked
from test_metrics import FULL

from cloudinit_conntrack.metrics import exposition

ROOT = Path(__file__).parents[2]
HERE = ROOT / "examples/monitoring"
ALERTS = HERE / "alerts.yml"
TESTS = HERE / "alerts_test.yml"
RULES: list[dict[str, Any]] = yaml.safe_load(ALERTS.read_text())["groups"][0]["rules"]
DASHBOARD: dict[str, Any] = json.loads((HERE / "dashboard.json").read_text())
NAMED = re.compile(r"cloudinit_conntrack_[a-z_]+")
VARIABLES = {"$__rate_interval": "5m", "$job": ".+", "$instance": ".+"}


def printed() -> set[str]:
    """The names that ``metrics`` prints of a host of which everything is known."""
    return set(re.findall(r"(?m)^(cloudinit_conntrack_\w+)[ {]", exposition(FULL)))


def expectations() -> Iterator[tuple[str, bool]]:
    """Each alert that a unit test names, and whether it expects it to fire."""
    for block in yaml.safe_load(TESTS.read_text())["tests"]:
        for test in block["alert_rule_test"]:
            yield test["alertname"], bool(test["exp_alerts"])


def test_the_alerts_pass_their_unit_tests() -> None:
    code, said = asked("check", "rules", ALERTS)
    assert (code, f"{len(RULES)} rules found" in said) == (0, True), said
    code, said = asked("test", "rules", TESTS)
    assert code == 0, said


@pytest.mark.parametrize("fires", [True, False])
def test_each_alert_has_a_unit_test_that_fires_and_one_that_does_not(fires: bool) -> None:
    assert {name for name, expected in expectations() if expected is fires} == {rule["alert"] for rule in RULES}


@pytest.mark.parametrize("expression", ["vector(1)", "vector(1) > 2"])
def test_an_alert_that_always_or_never_fires_is_found(expression: str, tmp_path: Path) -> None:
    """The unit tests of the alerts can fail, each of them."""
    changed = [{**rule, "expr": expression} for rule in RULES]
    (tmp_path / "alerts.yml").write_text(yaml.safe_dump({"groups": [{"name": "x", "rules": changed}]}))
    (tmp_path / TESTS.name).write_text(TESTS.read_text())
    code, said = asked("test", "rules", tmp_path / TESTS.name)
    assert code != 0
    assert set(re.findall(r"alertname: (\w+)", said)) == {rule["alert"] for rule in RULES}


def test_each_alert_says_what_and_what_to_do() -> None:
    guide = (ROOT / "docs/how-to/watch-a-fleet.md").read_text()
    for rule in RULES:
        assert set(rule["annotations"]) == {"summary", "description"}
        assert rule["labels"]["severity"] in ("critical", "warning", "info")
        assert f"`{rule['alert']}`" in guide


@pytest.mark.parametrize("name", ["alerts.yml", "alerts_test.yml", "dashboard.json"])
def test_every_metric_that_is_named_is_printed(name: str) -> None:
    named = set(NAMED.findall((HERE / name).read_text()))
    assert named and not named - printed()


# --- the dashboard -----------------------------------------------------------------------


def expressions() -> list[str]:
    """Every query of the dashboard, with its variables filled in as Grafana does."""
    found = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
    for variable, value in VARIABLES.items():
        found = [expression.replace(variable, value) for expression in found]
    return found


def test_every_query_of_the_dashboard_is_promql(tmp_path: Path) -> None:
    rules = [{"record": f"panel:{number}", "expr": query} for number, query in enumerate(expressions())]
    place = tmp_path / "rules.yml"
    place.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    code, said = asked("check", "rules", place)
    assert (code, f"{len(rules)} rules found" in said) == (0, True), said
    place.write_text(place.read_text().replace("count(", "count((", 1))
    assert asked("check", "rules", place)[0] != 0
    assert not [query for query in expressions() if "$" in query]


def test_the_dashboard_has_one_place_for_each_panel_and_asks_the_chosen_source() -> None:
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len({panel["title"] for panel in panels}) == len(panels) > 10
    cells = [(x, y) for panel in panels for place in (panel["gridPos"],)
             for x in range(place["x"], place["x"] + place["w"]) for y in range(place["y"], place["y"] + place["h"])]
    assert len(cells) == len(set(cells)) and max(x for x, _ in cells) == 23
    sources = [part["datasource"] for panel in panels for part in (panel, *panel["targets"])]
    assert {source["uid"] for source in sources} == {"${datasource}"}
    assert [variable["name"] for variable in DASHBOARD["templating"]["list"]] == ["datasource", "job", "instance"]
    for panel in panels:
        assert panel["description"] and all('instance=~"$instance"' in target["expr"] for target in panel["targets"])


# --- the cloud-config --------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["service", "timer"])
def test_user_data_writes_the_units_beside_it(kind: str) -> None:
    name = f"cloudinit-conntrack-metrics.{kind}"
    written = yaml.safe_load((HERE / "user-data.yaml").read_text())["write_files"]
    files = {file["path"]: file["content"] for file in written}
    lines = [line for line in (HERE / name).read_text().splitlines() if not line.startswith("#")]
    assert files[f"/etc/systemd/system/{name}"].splitlines() == lines
