"""The gate of examples/autoscaling: a node says that it may serve when "verify" holds, and never otherwise.

The scripts are those that the templates hand to cloud-init, run by the shell, with stubs for the programs of a
cloud that write down how they were called.  The templates as a whole: ``make autoscaling``.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import textwrap
from pathlib import Path
from typing import Any

import hcl2
import pytest
import yaml

from cloudinit_conntrack.config import desired_from_text

HERE = Path(__file__).parents[2] / "examples" / "autoscaling"
EC2_LIMIT = 16_384  # bytes of user-data before base64
PSEUDO = {"${AWS::Region}": "eu-west-1", "${AWS::StackName}": "nodes"}


class _Loader(yaml.SafeLoader):
    """CloudFormation's short forms (``!Ref``) as their values."""


def _short_form(loader: yaml.SafeLoader, _: str, node: yaml.Node) -> object:
    if isinstance(node, yaml.ScalarNode):
        return loader.construct_scalar(node)
    if isinstance(node, yaml.SequenceNode):
        return loader.construct_sequence(node, deep=True)
    assert isinstance(node, yaml.MappingNode)
    return loader.construct_mapping(node, deep=True)


_Loader.add_multi_constructor("!", _short_form)


def _resources(name: str) -> dict[str, Any]:
    found = yaml.load((HERE / name).read_text(encoding="utf-8"), _Loader)
    resources = found.get("Resources") or found["resources"]
    assert isinstance(resources, dict)
    return resources


def _ec2() -> str:
    text = _resources("ec2.yaml")["Template"]["Properties"]["LaunchTemplateData"]["UserData"]["Fn::Base64"]
    assert set(re.findall(r"\$\{[^}]*\}", text)) == set(PSEUDO), "Fn::Sub would read a shell's ${...} as its own"
    for name, value in PSEUDO.items():
        text = text.replace(name, value)
    return str(text)


def _heat() -> str:
    """What ``curl_cli`` begins with is enough here."""
    text = _resources("heat-node.yaml")["node"]["properties"]["user_data"]["str_replace"]["template"]
    return str(text).replace("$notify", "curl -i -X POST")


def _google() -> dict[str, Any]:
    """google.tf as python-hcl2 reads it; strings keep their quotes there."""
    found = hcl2.loads((HERE / "google.tf").read_text(encoding="utf-8"))
    return dict(json.loads(re.sub(r'\\"', "", json.dumps(found))))


def _google_data() -> str:
    found = re.fullmatch(r"<<-EOT\n(.*)EOT", _google()["locals"][0]["user_data"], re.DOTALL)
    assert found is not None
    return textwrap.dedent(found[1].rstrip(" "))


USER_DATA = {"ec2": _ec2, "heat": _heat, "google": _google_data}


@pytest.mark.parametrize("name", USER_DATA)
def test_the_section_is_one_and_fits(name: str) -> None:
    text = USER_DATA[name]()
    assert text.startswith("#cloud-config\n") and len(text.encode()) <= EC2_LIMIT
    (file,) = yaml.safe_load(text)["write_files"]
    assert file["path"].startswith("/etc/cloud/cloud.cfg.d/")
    assert desired_from_text(file["content"].encode(), file["path"]).mode == "unload"


def _calls(name: str, tmp_path: Path, **status: int) -> list[str]:
    """Run the script that a node runs last; how it called each program, in order.  *status*: of those that fail."""
    log = tmp_path / "log"
    for program in ("cloudinit-conntrack", "systemctl", "cloud-init", "aws", "curl"):
        stub = tmp_path / program
        code = status.get(program.replace("-", "_"), 0)
        stub.write_text(f'#!/bin/sh\necho "{program} $*" >>{log}\necho i-1\nexit {code}\n', encoding="ascii")
        stub.chmod(0o755)
    (script,) = yaml.safe_load(USER_DATA[name]())["runcmd"]
    done = subprocess.run(["sh", "-c", script], env={**os.environ, "PATH": f"{tmp_path}:/usr/bin:/bin"},
                          capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode != 0) == any(program != "aws" for program in status), done.stderr
    return log.read_text(encoding="ascii").splitlines()


FAILURES = [{"cloudinit_conntrack": 4}, {"cloudinit_conntrack": 2}, {"cloudinit_conntrack": 127}, {"systemctl": 3}]


@pytest.mark.parametrize("status", FAILURES, ids=str)
def test_a_node_that_is_not_stateless_never_says_so(tmp_path: Path, status: dict[str, int]) -> None:
    (tmp_path / "heat").mkdir()
    assert not [call for call in _calls("ec2", tmp_path, **status) if call.startswith("aws ")]
    told = [call for call in _calls("heat", tmp_path / "heat", **status) if call.startswith("curl ")]
    assert len(told) == 1 and '"status": "FAILURE"' in told[0]


def test_a_stateless_node_says_so_once(tmp_path: Path) -> None:
    (tmp_path / "heat").mkdir()
    asked = ["cloudinit-conntrack verify", "systemctl is-active --quiet haproxy"]
    ec2 = _calls("ec2", tmp_path)
    assert ec2[:2] == asked
    (hook,) = (call for call in ec2 if "complete-lifecycle-action" in call)
    assert hook.endswith("--lifecycle-hook-name stateless --instance-id i-1 --lifecycle-action-result CONTINUE")
    heat = _calls("heat", tmp_path / "heat")
    assert heat == [*asked, 'curl -i -X POST --data-binary {"status": "SUCCESS"}']


def test_a_stack_that_waits_for_nobody_is_no_failure(tmp_path: Path) -> None:
    """Later nodes of a group signal to a stack that is done: AWS refuses that."""
    calls = _calls("ec2", tmp_path, aws=0)
    assert "signal-resource" in calls[-1]
    script = yaml.safe_load(_ec2())["runcmd"][0]
    assert script.rstrip().endswith("|| true")


def test_who_says_nothing_is_replaced() -> None:
    group = _resources("ec2.yaml")["Group"]["Properties"]
    (hook,) = group["LifecycleHookSpecificationList"]
    assert hook["DefaultResult"] == "ABANDON" and hook["LifecycleTransition"] == "autoscaling:EC2_INSTANCE_LAUNCHING"
    assert f"--auto-scaling-group-name {group['AutoScalingGroupName']} " in _resources("ec2.yaml")["Template"][
        "Properties"]["LaunchTemplateData"]["UserData"]["Fn::Base64"].replace("\\\n", "")
    assert hook["LifecycleHookName"] == "stateless"
    nodes = _resources("heat-node.yaml")
    assert nodes["member"]["depends_on"] == "stateless" and nodes["stateless"]["properties"]["count"] == 1


def test_googles_group_asks_haproxy_and_nothing_else() -> None:
    """haproxy starts when "verify" holds, so the health check is the gate; every name that is used is there."""
    found = _google()
    resources = {f"{kind}.{name}": body for block in found["resource"] for kind, named in block.items()
                 for name, body in named.items() if isinstance(body, dict)}
    variables = {name for block in found["variable"] for name in block}
    text = (HERE / "google.tf").read_text(encoding="utf-8")
    for kind, name in re.findall(r"\b(google_\w+)\.(\w+)\.id\b", text):
        assert f"{kind}.{name}" in resources
    assert set(re.findall(r"\bvar\.(\w+)", text)) == variables
    group = resources["google_compute_region_instance_group_manager.nodes"]
    (healing,), (update,) = group["auto_healing_policies"], group["update_policy"]
    check = resources["google_compute_region_health_check.serves"]
    assert healing["health_check"] == "${google_compute_region_health_check.serves.id}"
    assert check["http_health_check"][0]["port"] == 80 and healing["initial_delay_sec"] == 600
    assert update["max_unavailable_fixed"] == 0 < update["max_surge_fixed"]
    template = resources["google_compute_region_instance_template.node"]
    assert template["metadata"] == {"user-data": "${local.user_data}"}
    assert "runcmd" not in yaml.safe_load(_google_data())  # nobody has to say anything


def test_googles_template_is_written_as_hcl_is(tmp_path: Path) -> None:
    copy = tmp_path / "google.pkr.hcl"  # the formatter looks at the language, and at this name
    copy.write_bytes((HERE / "google.tf").read_bytes())
    done = subprocess.run(["packer", "fmt", "-check", "-diff", str(copy)], capture_output=True, text=True, timeout=60,
                          check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_one_gate_for_both_kinds_of_image() -> None:
    """The stock image's drop-in is that of the baked one, without comments; it never waits for cloud-final."""
    (file,) = yaml.safe_load((HERE / "stock-node.yaml").read_text(encoding="utf-8"))["write_files"]
    baked = (HERE / "haproxy-conntrack.conf").read_text(encoding="utf-8").splitlines()
    wanted = [line for line in baked if line and not line.startswith("#")]
    assert file["content"].splitlines() == wanted
    assert "cloud-final" not in file["content"] and "Requires" not in file["content"]
