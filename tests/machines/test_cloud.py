"""The machines of these tests behave like instances, whatever they run."""

import json
import socket
import subprocess
import sys

import boto3
import pytest

from tests.conftest import REGION

#: Leaves a file, and a user that is kept away from the metadata service.
USER_DATA = """#!/bin/sh
echo first > /root/first
adduser --system --uid 900 --quiet nobody-else
ip rule add uidrange 900-900 to 169.254.169.254/32 prohibit
"""
ASK = """
import json, os, sys, urllib.request
def get(path, method="GET", **headers):
    headers = {f"X-aws-ec2-metadata-{name}": value for name, value in headers.items()}
    request = urllib.request.Request(
        "http://169.254.169.254/latest/" + path, headers=headers, method=method)
    try:
        return urllib.request.urlopen(request, timeout=5).read().decode()
    except OSError as error:
        return getattr(error, "code", None)
token = get("api/token", "PUT", **{"token-ttl-seconds": "60"})
print(json.dumps([get(path, token=token) for path in sys.argv[1:]] if token else None))
"""


@pytest.fixture
def image():
    def find():
        found = boto3.client("ec2").describe_images(Owners=["099720109477"])["Images"]
        return found[0]["ImageId"]

    return find


@pytest.fixture
def role(cloud):
    """Make a role and its instance profile, both called r."""
    iam = boto3.client("iam")
    iam.create_role(RoleName="r", AssumeRolePolicyDocument="{}")
    iam.create_instance_profile(InstanceProfileName="r")
    iam.add_role_to_instance_profile(InstanceProfileName="r", RoleName="r")
    yield "r"
    iam.remove_role_from_instance_profile(InstanceProfileName="r", RoleName="r")
    iam.delete_instance_profile(InstanceProfileName="r")
    iam.delete_role(RoleName="r")


def ask(machine, *paths, prefix=()):
    return json.loads(machine.run(*prefix, "python3", "-c", ASK, *paths))


def state(instance_id):
    found = boto3.client("ec2").describe_instances(InstanceIds=[instance_id])
    return found["Reservations"][0]["Instances"][0]["State"]["Name"]


def test_an_instance_boots_knows_itself_stops_starts_and_ends(cloud, image, role, wait_for):
    ec2 = boto3.client("ec2")
    name = ec2.run_instances(
        ImageId=image(),
        InstanceType="t3.micro",
        MinCount=1,
        MaxCount=1,
        UserData=USER_DATA,
        InstanceInitiatedShutdownBehavior="terminate",
        IamInstanceProfile={"Name": role},
    )["Instances"][0]["InstanceId"]
    machine = wait_for(lambda: cloud.machines.get(name))
    machine.wait_set_up()

    # It knows who it is, and its role after a while.
    assert ask(machine, "meta-data/instance-id", "meta-data/placement/region", "user-data") == [
        name, REGION, USER_DATA,
    ]  # fmt: skip
    roles = "meta-data/iam/security-credentials/"
    assert ask(machine, *[roles] * 2) == [404, role]
    keys = json.loads(ask(machine, f"{roles}{role}")[0])
    assert {"AccessKeyId", "SecretAccessKey", "Token", "Expiration"} <= set(keys)
    document = json.loads(ask(machine, "dynamic/instance-identity/document")[0])
    assert (document["instanceId"], document["region"]) == (name, REGION)

    # Not without a token, and not the user that is kept away from it.
    assert ask(machine, "meta-data/instance-id", prefix=("sudo", "-u", "nobody-else")) is None
    word = "import urllib.request as u; u.urlopen('http://169.254.169.254/latest/user-data')"
    with pytest.raises(RuntimeError, match="401"):
        machine.run("python3", "-c", word)

    # An interruption is announced to it.
    assert ask(machine, "meta-data/spot/instance-action") == [404]
    cloud.interrupt(name, seconds=1000)
    notice = json.loads(ask(machine, "meta-data/spot/instance-action")[0])
    assert notice["action"] == "terminate"

    # It is reached by its public address, and the services by theirs.
    address = machine.host.public_ip
    with socket.create_connection((address, 22), timeout=10) as connection:
        assert connection.recv(8).startswith(b"SSH-2.0")
    assert "AWS_ENDPOINT_URL_SQS" in machine.run("systemctl", "show-environment")

    # After stop and start it has its disk, and another address.
    ec2.stop_instances(InstanceIds=[name])
    machine.wait_off(30)
    wait_for(lambda: machine.host.public_ip is None)
    ec2.start_instances(InstanceIds=[name])
    wait_for(lambda: machine.is_on)
    machine.wait_set_up()
    assert machine.run("cat", "/root/first") == "first\n"
    assert machine.host.public_ip not in (None, address)

    # It ends itself, and so does its instance.
    machine.run("shutdown", "-h", "now")
    machine.wait_off(30)
    wait_for(lambda: state(name) == "terminated")


def test_the_index_serves_all_that_adr_needs(index, tmp_path):
    words = [sys.executable, "-m", "pip", "download", "--quiet", "--dest", tmp_path]
    words += [*index.find_options.split(), "boto3", "rich"]

    subprocess.run(words, check=True)

    assert any(tmp_path.glob("boto3-*.whl"))
