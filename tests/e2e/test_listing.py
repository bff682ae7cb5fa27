"""``adr list`` shows what can be reached, whatever cannot; and what nobody looks after."""

from __future__ import annotations

import json
import uuid
from pathlib import Path

import boto3
import pytest

from tests.aws_calls import Answer
from tests.conftest import REGION
from tests.ec2_rules import UBUNTU


@pytest.fixture
def local(shell, tmp_path):
    """Make a local runner; returns its folder."""
    shell.inside = True
    return shell("create", "--local", f"--dir={tmp_path / 'runner'}").out.strip()


def test_aws_out_of_reach_does_not_hide_local_runners(shell, local, monkeypatch):
    # given credentials, and nobody who answers
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "x")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    # when
    done = shell("list")
    # then
    assert done.lines == [f"* {local}  0 waiting, 0 running"]
    [sentence] = done.err.splitlines()
    assert sentence.startswith("adr: WARNING: the runners on AWS cannot be listed: ")
    assert "127.0.0.1:9" in sentence


def test_a_region_that_is_none_is_wrong_usage(shell, local, monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "x")

    assert "no AWS region" in shell("list", "--region=nowhere-1", status=2).err


def test_a_local_runner_of_a_newer_adr_does_not_hide_the_others(shell, local, tmp_path):
    # given
    other = shell("create", "--local", f"--dir={tmp_path / 'other'}").out.strip()
    Path(local, "runner.json").write_text(json.dumps({"schema": 99}))
    # when
    done = shell("list")
    # then
    assert done.lines == [f"* {other}  0 waiting, 0 running"]
    assert f"the runner in {local} cannot be listed" in done.err
    assert "upgrade adr" in done.err


# Hosts


@pytest.fixture
def stray(strict_moto):
    """Launch an instance for a runner that is not there, in a region that nobody works in."""
    runner = str(uuid.uuid4())
    tags = [{"Key": name, "Value": value} for name, value in
            (("Runner", runner), ("Version", "0.2.0"), ("Owner", "somebody"))]  # fmt: skip
    [made] = boto3.resource("ec2", region_name="us-west-2").create_instances(
        ImageId=UBUNTU["amd64"], MinCount=1, MaxCount=1, InstanceType="m5.large",
        TagSpecifications=[{"ResourceType": "instance", "Tags": tags}],
    )  # fmt: skip
    return runner, made


def test_instances_without_a_runner_are_found_in_all_regions_and_ended(shell, stray):
    # given a runner that has its instances here, and one that is not there
    shell.inside = True
    runner, instance = stray
    assert REGION != "us-west-2"
    # when
    done = shell("list", "--orphans")
    # then
    [line] = [line for line in done.lines if instance.id in line]
    assert line.split()[:4] == [instance.id, "us-west-2", "running", "m5.large"]
    assert line.split()[-2:] == [runner, "somebody"]
    hint = f"adr destroy --region=us-west-2 {runner}"
    assert hint in done.err
    # and what it says helps
    shell(*hint.split()[1:], "--yes")
    instance.reload()
    assert instance.state["Name"] == "terminated"
    told = shell("list", "--orphans", "--json").json["orphans"]
    assert instance.id not in [each["name"] for each in told]


def test_a_fleet_out_of_reach_hides_no_other_host(shell, strict_moto, wait_for):
    # given
    shell.inside = True
    runner = shell("create").out.strip()
    worker = shell.begin("process", "--host=desk", runner)
    try:
        wait_for(lambda: shell("list", runner, "--json").json["hosts"])
        shell("launch", "--prepare", f"--ami={UBUNTU['amd64']}", f"--asg={default_group()}", runner)
        # when EC2 does not answer
        strict_moto.before("ec2.DescribeInstances", refuse)
        done = shell("list", runner)
    finally:
        worker.terminate()
        worker.communicate(timeout=30)
    # then
    assert [line.split()[0] for line in done.lines] == ["HOST", "desk"]
    assert "the hosts of the fleet ec2 are not known" in done.err


def default_group():
    [network] = boto3.resource("ec2").vpcs.filter(
        Filters=[{"Name": "is-default", "Values": ["true"]}]
    )
    return next(iter(network.security_groups.all())).id


def refuse(call):
    body = (
        b"<Response><Errors><Error><Code>UnauthorizedOperation</Code><Message>no</Message>"
        b"</Error></Errors><RequestID>x</RequestID></Response>"
    )
    return Answer(403, body, [("Content-Type", "text/xml")])
