"""ec2.yaml: cfn-lint finds no fault, and moto, an EC2 of its own, makes the stack."""

from __future__ import annotations

import base64
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from moto import mock_aws

TEMPLATE = Path(__file__).parents[2] / "examples" / "autoscaling" / "ec2.yaml"
LIMIT = 16_384  # bytes of user-data before base64
REGION = "eu-west-1"


def test_cfn_lint() -> None:
    command = [str(Path(sys.executable).with_name("cfn-lint")), "--regions", REGION, "--", str(TEMPLATE)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout


def test_cfn_lint_would_find_a_fault(tmp_path: Path) -> None:
    broken = tmp_path / "broken.yaml"
    broken.write_text(TEMPLATE.read_text(encoding="utf-8").replace("MaxSize:", "MostSize:"))
    command = [str(Path(sys.executable).with_name("cfn-lint")), "--regions", REGION, "--", str(broken)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode != 0 and "MostSize" in done.stdout


@pytest.fixture
def clients() -> Iterator[dict[str, Any]]:
    """Clients of a cloud that is in this process; no request leaves it."""
    with mock_aws():
        yield {name: boto3.client(name, region_name=REGION) for name in ("ec2", "cloudformation", "autoscaling")}


def create(clients: dict[str, Any], text: str) -> None:
    ec2 = clients["ec2"]
    vpc = ec2.create_vpc(CidrBlock="10.0.0.0/16")["Vpc"]["VpcId"]
    chosen = {
        "Subnets": ec2.create_subnet(VpcId=vpc, CidrBlock="10.0.1.0/24")["Subnet"]["SubnetId"],
        "SecurityGroups": ec2.create_security_group(GroupName="nodes", Description="-", VpcId=vpc)["GroupId"],
        "ImageId": ec2.describe_images()["Images"][0]["ImageId"],
    }
    parameters = [{"ParameterKey": key, "ParameterValue": value} for key, value in chosen.items()]
    clients["cloudformation"].create_stack(StackName="nodes", TemplateBody=text, Parameters=parameters,
                                           Capabilities=["CAPABILITY_IAM"])


def user_data(clients: dict[str, Any]) -> bytes:
    """What an instance of the launch template gets."""
    found = clients["ec2"].describe_launch_templates()["LaunchTemplates"][0]["LaunchTemplateId"]
    (version,) = clients["ec2"].describe_launch_template_versions(LaunchTemplateId=found)["LaunchTemplateVersions"]
    return base64.b64decode(version["LaunchTemplateData"]["UserData"], validate=True)


def test_the_stack_is_made(clients: dict[str, Any]) -> None:
    create(clients, TEMPLATE.read_text(encoding="utf-8"))
    (stack,) = clients["cloudformation"].describe_stacks(StackName="nodes")["Stacks"]
    assert stack["StackStatus"] == "CREATE_COMPLETE"
    (group,) = clients["autoscaling"].describe_auto_scaling_groups()["AutoScalingGroups"]
    assert group["AutoScalingGroupName"] == "nodes-nodes" and len(group["Instances"]) == 2
    data = user_data(clients)
    assert data.startswith(b"#cloud-config\n") and len(data) <= LIMIT
    assert b"--region eu-west-1" in data and b"--auto-scaling-group-name nodes-nodes " in data and b"${" not in data


def test_a_stock_images_user_data_fits_into_the_template(clients: dict[str, Any]) -> None:
    """The largest that EC2 takes, as base64 in the place of Fn::Base64 (docs/how-to/autoscaling.md)."""
    text = TEMPLATE.read_text(encoding="utf-8")
    head, rest = text.split("          Fn::Base64: !Sub |\n")
    tail = rest[rest.index("\n  Group:\n"):]
    largest = bytes(range(256)) * (LIMIT // 256)
    text = f"{head.rstrip()} {base64.b64encode(largest).decode()}\n{tail}"
    assert len(text.encode()) <= 51_200, "a template that is given as text is no larger"
    create(clients, text)
    assert user_data(clients) == largest


def test_the_hook_is_one_that_ec2_takes(clients: dict[str, Any]) -> None:
    """moto's CloudFormation leaves the hook out, so it is made by its own call, with the template's values."""
    create(clients, TEMPLATE.read_text(encoding="utf-8"))
    hook = {"LifecycleHookName": "stateless", "LifecycleTransition": "autoscaling:EC2_INSTANCE_LAUNCHING",
            "HeartbeatTimeout": 600, "DefaultResult": "ABANDON"}
    lines = {line.strip("- ") for line in TEMPLATE.read_text(encoding="utf-8").splitlines()}
    assert {f"{key}: {value}" for key, value in hook.items()} <= lines
    clients["autoscaling"].put_lifecycle_hook(AutoScalingGroupName="nodes-nodes", **hook)
    (made,) = clients["autoscaling"].describe_lifecycle_hooks(AutoScalingGroupName="nodes-nodes")["LifecycleHooks"]
    assert made["DefaultResult"] == "ABANDON"
