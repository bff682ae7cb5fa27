"""The fleet on EC2, against an emulator that refuses what does not exist."""

from __future__ import annotations

import base64
import gzip
import json
import re
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from types import SimpleNamespace

import boto3
import pytest

from adr.access import profile_left
from adr.aws import Connection
from adr.errors import AdrError, Denied, PartialFailure, ServiceError, Unavailable, UsageError
from adr.fleets.base import Admitting, Demand, HostState, Pausable
from adr.fleets.ec2.fleet import Ec2Fleet
from adr.fleets.ec2.orphans import orphans
from adr.fleets.specs import Ec2Spec, Volume, WorkerOptions
from adr.inventory import hosts, output_of
from adr.keys import INSTALL, LAUNCHES
from adr.progress import SILENT
from adr.runner import open_runner
from adr.stores.s3 import S3Store
from adr.wheel import Wheel
from tests.ec2_rules import (
    UBUNTU,
    fields,
    is_real,
    publish_images,
    publish_prices,
    record,
    xml,
)
from tests.servers import require

AMAZON_X86 = "/aws/service/ami-amazon-linux-latest/al2023-ami-kernel-default-x86_64"
WHEEL = Wheel("adr-9-py3-none-any.whl", b"a wheel", "ab" * 32, "boto3==1.0\n")
NONE_LAUNCHED = "<CreateFleetResponse><fleetId>fleet-1</fleetId>{}</CreateFleetResponse>"
ERROR = (
    "<item><errorCode>{}</errorCode><errorMessage>{}</errorMessage><lifecycle>spot</lifecycle>"
    "<launchTemplateAndOverrides><overrides><instanceType>{}</instanceType></overrides>"
    "</launchTemplateAndOverrides></item>"
)
ON_DEMAND = "TargetCapacitySpecification.DefaultTargetCapacityType"


def tags(things):
    return {each["Key"]: each["Value"] for each in things}


def is_dry(name: str) -> Callable:
    return lambda call: call.name == name and "DryRun" in fields(call)


@pytest.fixture
def made(strict_moto):
    """Make a runner with a fleet; its instances are ended afterwards."""
    runner = open_runner(str(uuid.uuid4()))
    runner.store.create()
    runner.ledger.create()
    fleet = new_fleet(runner.id)
    ec2 = boto3.client("ec2")

    def instances(**more):
        wanted = [{"Name": "tag:Runner", "Values": [runner.id]}]
        found = [
            each
            for page in ec2.get_paginator("describe_instances").paginate(Filters=wanted)
            for reservation in page["Reservations"]
            for each in reservation["Instances"]
        ]
        return [each for each in found if each["State"]["Name"] != "terminated"]

    yield SimpleNamespace(
        id=runner.id,
        runner=runner,
        store=runner.store,
        fleet=fleet,
        ec2=ec2,
        proxy=strict_moto,
        instances=instances,
    )
    left = [each["InstanceId"] for each in instances()]
    if left:
        ec2.terminate_instances(InstanceIds=left)


def new_fleet(runner_id: str) -> Ec2Fleet:
    connection = Connection(runner_id)
    return Ec2Fleet(connection, S3Store(connection), pack=lambda: WHEEL)


def launch(made, spec: Ec2Spec, demand: Demand | None = None):
    return made.fleet.launch(made.fleet.plan(spec, demand or Demand()), SILENT)


# What a plan says


def test_a_plan_says_what_would_be_launched_and_changes_nothing(made):
    publish_prices(made.proxy, {"c7i.large": "0.1"})
    made.proxy.reset()

    plan = made.fleet.plan(Ec2Spec(n=3), Demand())

    assert plan.n == 3
    assert plan.hourly_usd == pytest.approx(0.3)
    lines = dict(plan.lines)
    assert lines["instances"] == "3 in eu-central-1"
    assert lines["type"] == "c7i.large (2 vCPU, 4 GiB, x86_64)"
    assert lines["image"].startswith(UBUNTU["amd64"])
    assert lines["market"] == "on demand"
    assert lines["price"] == "0.3000 USD an hour for the instances"
    assert lines["security"] == f"group adr-{made.id}: no way in"
    assert lines["role"] == f"instance profile adr-{made.id}"
    assert plan.data["tags"]["Runner"] == made.id
    assert not any(made.instances())
    assert made.proxy.count("ec2.CreateSecurityGroup") == 1  # a dry run
    assert made.proxy.count("ec2.RunInstances") == 1  # a dry run as well
    assert list(made.store.list(INSTALL)) == list(made.store.list(LAUNCHES)) == []
    assert made.proxy.count("iam.") == 0


def test_the_newest_image_for_the_architecture_of_the_type_is_taken(made):
    newest = "/aws/service/canonical/ubuntu/server/{}.04/stable/current/{}/hvm/{}/ami-id"
    publish = {
        newest.format(22, "amd64", "ebs-gp2"): "ami-1e749f67",
        newest.format(24, "arm64", "ebs-gp3"): UBUNTU["arm64"],
        newest.format(26, "amd64", "ebs-gp3"): UBUNTU["amd64"],
    }
    made.proxy.before("ssm.GetParameters", lambda call: None)
    made.proxy._before.clear()
    publish_images(made.proxy, publish)

    def image(kind: str) -> str:
        return made.fleet.plan(Ec2Spec(types=(kind,)), Demand()).data["images"][0]["id"]

    assert image("c7i.large") == UBUNTU["amd64"]
    assert image("c7g.large") == UBUNTU["arm64"]
    del publish[newest.format(26, "amd64", "ebs-gp3")]
    assert image("c7i.large") == "ami-1e749f67"
    del publish[newest.format(22, "amd64", "ebs-gp2")]
    with pytest.raises(UsageError, match=r"no image of ubuntu for x86_64 .* --ami"):
        image("c7i.large")


def test_amazon_linux_is_a_choice(made):
    plan = made.fleet.plan(Ec2Spec(image="amazon"), Demand())

    [published] = boto3.client("ssm").get_parameters(Names=[AMAZON_X86])["Parameters"]
    assert [each["id"] for each in plan.data["images"]] == [published["Value"]]


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        (
            Ec2Spec(types=("c7i.huge", "c7i.large", "c7i.odd")),
            r"no instance type c7i\.huge or c7i\.odd in eu-central-1: give another --ait",
        ),
        (Ec2Spec(ami="ami-12345678"), r"ami-12345678.*no such machine image.*--ami"),
        (Ec2Spec(ami=UBUNTU["arm64"]), r"is for arm64, c7i\.large is x86_64.*--ami or --ait"),
        (Ec2Spec(key_pair="nobody"), r"key pair nobody.*no such key pair.*--akp"),
        (Ec2Spec(groups=("sg-12345678",)), r"sg-12345678.*no such security group.*--asg"),
        (Ec2Spec(subnet="subnet-12345678"), r"subnet-12345678.*no such subnet.*--subnet"),
        (Ec2Spec(volumes=(Volume("snap-12345678", "/mnt"),)), r"snap-12345678.*no such snapshot"),
        (Ec2Spec(instance_profile="nobody"), r"no such instance profile"),
        (Ec2Spec(disk_gib=4), r"4 GiB is too small.*needs 15 GiB.*--disk"),
        (Ec2Spec(prepare=True, volumes=(Volume("snap-1", "/mnt"),)), r"mounts no data volumes"),
        (Ec2Spec(volumes=(Volume("snap-1", "/mnt"),) * 12), r"12 data volumes are too many"),
    ],
)
def test_what_cannot_be_had_is_refused_in_one_sentence(made, spec, said):
    with pytest.raises(UsageError, match=said):
        made.fleet.plan(spec, Demand())
    assert not made.instances()


def test_a_launch_without_a_default_network_says_how_to_get_one(made):
    empty = xml("<DescribeSubnetsResponse><subnetSet/></DescribeSubnetsResponse>")
    made.proxy.before("ec2.DescribeSubnets", lambda call: empty)

    with pytest.raises(UsageError, match=r"no default VPC .* --subnet, or .*create-default-vpc"):
        made.fleet.plan(Ec2Spec(), Demand())


def test_a_missing_permission_is_named_before_anything_is_made(made):
    said = (
        "You are not authorized to perform this operation. User: u is not authorized to perform: "
        "iam:PassRole on resource: r. Encoded authorization failure message: abcdef"
    )
    made.proxy.fail("ec2.RunInstances", 403, "UnauthorizedOperation", message=said)

    with pytest.raises(ServiceError, match="lack the permission iam:PassRole") as caught:
        made.fleet.plan(Ec2Spec(), Demand())
    assert "abcdef" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "spec", "code"),
    [
        ("ec2.CreateSecurityGroup", Ec2Spec(), "UnauthorizedOperation"),
        ("ec2.DescribeInstances", Ec2Spec(), "UnauthorizedOperation"),
        ("ec2.CreateFleet", Ec2Spec(spot=True), "UnauthorizedOperation"),
        ("ec2.CreateLaunchTemplate", Ec2Spec(spot=True), "UnauthorizedOperation"),
    ],
)
def test_all_that_a_launch_does_is_tried_out(made, name, spec, code):
    made.proxy.fail(is_dry(name), 403, code)

    with pytest.raises(ServiceError, match=f"lack the permission {name.replace('.', ':')}"):
        made.fleet.plan(spec, Demand())


def test_the_number_follows_the_jobs_that_wait(made):
    def number(waiting: int, **more) -> int:
        return made.fleet.plan(Ec2Spec(n=None, **more), Demand(waiting)).n

    assert number(7) == 4
    assert number(7, worker=WorkerOptions(slots=7)) == 1
    assert number(0) == 1
    assert number(1000, most=6) == 6


def test_the_disk_has_room_for_a_copy_in_each_slot(made):
    def disk(unpacked: int, **more) -> int:
        return made.fleet.plan(Ec2Spec(**more), Demand(1, unpacked)).data["disk_gib"]

    assert disk(0) == 20
    assert disk(10 * 2**30) == 8 + 24 + 10
    assert disk(10 * 2**30, worker=WorkerOptions(slots=1)) == 8 + 12 + 10
    assert disk(10 * 2**30, disk_gib=30) == 30


def test_prices_are_of_spot_instances_where_those_are_asked_for_and_never_needed(made):
    item = (
        "<item><instanceType>{}</instanceType><availabilityZone>eu-central-1{}</availabilityZone>"
        "<spotPrice>{}</spotPrice></item>"
    )
    items = [("c7i.large", "a", 0.04), ("c7i.large", "b", 0.03), ("m7i.large", "a", 0.05)]
    history = "".join(item.format(*each) for each in items)
    answer = xml(
        f"<DescribeSpotPriceHistoryResponse><spotPriceHistorySet>{history}</spotPriceHistorySet>"
        f"</DescribeSpotPriceHistoryResponse>"
    )
    made.proxy.before("ec2.DescribeSpotPriceHistory", lambda call: answer)
    publish_prices(made.proxy, {"c7i.large": "0.1", "m7i.large": "0.2"})

    both = Ec2Spec(n=2, types=("m7i.large", "c7i.large"))
    assert made.fleet.plan(both, Demand()).hourly_usd == pytest.approx(2 * 0.1)
    assert made.fleet.plan(replace(both, spot=True), Demand()).hourly_usd == pytest.approx(0.1)
    unknown = made.fleet.plan(Ec2Spec(types=("c7i.xlarge",)), Demand())
    assert unknown.hourly_usd is None
    assert dict(unknown.lines)["price"] == "not known"


# What reaches EC2


def test_instances_are_launched_at_once_with_all_that_they_need(made):
    sent = record(made.proxy, "ec2.RunInstances")

    report = launch(made, Ec2Spec(n=2, worker=WorkerOptions(max_hours=3)))

    assert (report.wanted, report.notes, report.failed) == (2, [], {})
    [request] = sent
    assert request["MetadataOptions.HttpTokens"] == "required"
    assert request["MetadataOptions.HttpPutResponseHopLimit"] == "1"
    assert request["MetadataOptions.HttpEndpoint"] == "enabled"
    assert request["BlockDeviceMapping.1.DeviceName"] == "/dev/sda1"
    assert request["BlockDeviceMapping.1.Ebs.VolumeType"] == "gp3"
    assert request["MinCount"] == request["MaxCount"] == "2"
    assert not any(name.startswith(("KeyName", "NetworkInterface")) for name in request)

    found = made.instances()
    assert {each["InstanceId"] for each in found} == {host.name for host in report.hosts}
    assert {host.address for host in report.hosts} == {each["PublicIpAddress"] for each in found}
    for each in found:
        own = tags(each["Tags"])
        assert own["Name"] == f"adr-{made.id[:7]}"
        assert {"Runner", "Owner", "Version", "Launch"} <= own.keys()
        assert own["Owner"].startswith("arn:aws:sts::")
        assert each["MetadataOptions"]["HttpTokens"] == "required"
        assert each["InstanceType"] == "c7i.large"
        assert each["ImageId"] == UBUNTU["amd64"]
        [disk] = [device["Ebs"] for device in each["BlockDeviceMappings"]]
        assert disk["DeleteOnTermination"]
        [volume] = made.ec2.describe_volumes(VolumeIds=[disk["VolumeId"]])["Volumes"]
        assert (volume["Size"], volume["Encrypted"], volume["VolumeType"]) == (20, True, "gp3")
        assert tags(volume["Tags"]) == own
        [group] = each["SecurityGroups"]
        assert group["GroupName"] == f"adr-{made.id}"
        described = made.ec2.describe_instance_attribute(
            InstanceId=each["InstanceId"], Attribute="instanceInitiatedShutdownBehavior"
        )
        assert described["InstanceInitiatedShutdownBehavior"]["Value"] == "terminate"
    [described] = made.ec2.describe_security_groups(GroupIds=[group["GroupId"]])["SecurityGroups"]
    assert described["IpPermissions"] == []
    assert tags(described["Tags"])["Runner"] == made.id
    assert request["IamInstanceProfile.Name"] == f"adr-{made.id}"

    script = base64.b64decode(request["UserData"])
    text = gzip.decompress(script).decode() if script[:2] == b"\x1f\x8b" else script.decode()
    assert text.startswith("#!")
    for part in (made.id, "eu-central-1", WHEEL.sha256, WHEEL.name, "--max-hours=3"):
        assert part in text
    key = f"{INSTALL}{WHEEL.sha256}/{WHEEL.name}"
    assert made.store.read(key).body == WHEEL.body
    assert list(made.store.list(LAUNCHES)) == []


def test_every_option_reaches_ec2(made, tmp_path):
    ec2 = made.ec2
    ec2.create_key_pair(KeyName=f"key-{made.id}")
    subnet = ec2.describe_subnets()["Subnets"][1]
    group = ec2.create_security_group(
        GroupName=f"own-{made.id}", Description="d", VpcId=subnet["VpcId"]
    )["GroupId"]
    disk = ec2.create_volume(Size=7, AvailabilityZone=subnet["AvailabilityZone"])["VolumeId"]
    snapshots = [ec2.create_snapshot(VolumeId=disk)["SnapshotId"] for _ in range(2)]
    iam = boto3.client("iam")
    iam.create_instance_profile(InstanceProfileName=f"own-{made.id}")
    setup = tmp_path / "setup.sh"
    setup.write_text("#!/bin/sh\necho mine\n")
    sent = record(made.proxy, "ec2.RunInstances")

    report = launch(
        made,
        Ec2Spec(
            ami=UBUNTU["amd64"],
            types=("m7i.large",),
            groups=(group,),
            key_pair=f"key-{made.id}",
            subnet=subnet["SubnetId"],
            disk_gib=55,
            volumes=(Volume(snapshots[0], "/mnt/a"), Volume(snapshots[1], "/mnt/b")),
            setup=setup,
            instance_profile=f"own-{made.id}",
            aws_for_jobs=True,
            pip_options="--index-url https://pypi.example.com/simple",
            worker=WorkerOptions(slots=3, keep=True),
        ),
    )

    [host] = report.hosts
    [instance] = made.instances()
    assert (host.type, host.market) == ("m7i.large", "on-demand")
    assert instance["KeyName"] == f"key-{made.id}"
    assert instance["SubnetId"] == subnet["SubnetId"]
    assert [each["GroupId"] for each in instance["SecurityGroups"]] == [group]
    devices = {
        each["DeviceName"]: each["Ebs"]["VolumeId"] for each in instance["BlockDeviceMappings"]
    }
    volumes = {
        name: ec2.describe_volumes(VolumeIds=[volume])["Volumes"][0]
        for name, volume in devices.items()
    }
    assert volumes["/dev/sda1"]["Size"] == 55
    assert [volumes[name]["SnapshotId"] for name in ("/dev/sdf", "/dev/sdg")] == snapshots
    assert all(each["Ebs"]["DeleteOnTermination"] for each in instance["BlockDeviceMappings"])
    assert instance["IamInstanceProfile"]["Arn"].endswith(f"/own-{made.id}")
    [request] = sent
    script = base64.b64decode(request["UserData"])
    text = gzip.decompress(script).decode() if script[:2] == b"\x1f\x8b" else script.decode()
    for part in ("/dev/sdf", "/mnt/b", "https://pypi.example.com/simple", "--slots=3"):
        assert part in text
    assert [each for each in made.store.list(INSTALL) if each.key.endswith("/setup")]
    # Nothing is made that was given; the one group is that of this test.
    assert made.proxy.count("ec2.CreateSecurityGroup") == 1
    assert made.proxy.count("iam.CreateRole") == 0


@pytest.fixture
def address(monkeypatch):
    """Tell a public address as the service of AWS does; returns what it tells."""
    told = ["203.0.113.7"]

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(told[0].encode() + b"\n")

        def log_message(self, *args):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setenv("ADR_CHECKIP_URL", f"http://127.0.0.1:{server.server_port}/")
    yield told
    server.shutdown()
    thread.join()
    server.server_close()


def test_instances_to_be_prepared_let_in_ssh_from_here_and_have_no_role(made, address):
    report = launch(made, Ec2Spec(prepare=True))
    address[0] = "2001:db8::1"
    launch(made, Ec2Spec(prepare=True))
    [amazon] = launch(made, Ec2Spec(prepare=True, image="amazon")).hosts

    assert {host.login for host in report.hosts} == {"ubuntu"}
    assert [host.login for host in made.fleet.hosts() if host.name == amazon.name] == ["ec2-user"]
    instance, *_ = made.instances()
    assert "IamInstanceProfile" not in instance
    [group] = instance["SecurityGroups"]
    [described] = made.ec2.describe_security_groups(GroupIds=[group["GroupId"]])["SecurityGroups"]
    rules = described["IpPermissions"]
    assert {(rule["FromPort"], rule["ToPort"], rule["IpProtocol"]) for rule in rules} == {
        (22, 22, "tcp")
    }
    assert [each["CidrIp"] for rule in rules for each in rule["IpRanges"]] == ["203.0.113.7/32"]
    assert [each["CidrIpv6"] for rule in rules for each in rule["Ipv6Ranges"]] == [
        "2001:db8::1/128"
    ]
    assert list(made.store.list(INSTALL)) == []

    # An ordinary launch has none of that.
    host = launch(made, Ec2Spec()).hosts[0]
    assert host.login == ""
    [other] = [each for each in made.instances() if each["InstanceId"] == host.name]
    assert other["SecurityGroups"][0]["GroupId"] != group["GroupId"]


def test_ssh_is_let_in_from_where_instances_are_prepared(made, address):
    def rules():
        [group] = made.ec2.describe_security_groups(
            Filters=[{"Name": "group-name", "Values": [f"adr-{made.id}-ssh"]}]
        )["SecurityGroups"]
        return {each["CidrIp"] for rule in group["IpPermissions"] for each in rule["IpRanges"]}

    # A group is not known everywhere at once.
    made.proxy.fail("ec2.AuthorizeSecurityGroupIngress", 400, "InvalidGroup.NotFound", times=2)
    launch(made, Ec2Spec(prepare=True))
    assert rules() == {"203.0.113.7/32"}
    address[0] = "203.0.113.8"
    fleet = new_fleet(made.id)
    assert isinstance(fleet, Admitting)

    fleet.let_in()
    fleet.let_in()

    assert rules() == {"203.0.113.7/32", "203.0.113.8/32"}
    # Where there is no such group, nothing is asked.
    address[0] = "nonsense"
    new_fleet(str(uuid.uuid4())).let_in()


@pytest.mark.parametrize("said", ["<html>captive portal</html>", ""])
def test_an_address_that_is_none_is_not_let_in(made, address, said):
    address[0] = said

    with pytest.raises(Unavailable, match=r"tells no address of this machine.*--asg"):
        launch(made, Ec2Spec(prepare=True))
    assert not made.instances()
    assert list(made.store.list(LAUNCHES)) == []


def test_launches_side_by_side_share_one_group_and_one_role(made):
    plans = [(each, each.plan(Ec2Spec(), Demand())) for each in map(new_fleet, [made.id] * 3)]
    together = threading.Barrier(3)
    reports = []

    def meet(call):
        together.wait(30)

    made.proxy.before(is_real("ec2.CreateSecurityGroup"), meet, times=3)

    threads = [
        # Three wishes, not the same one three times.
        threading.Thread(
            target=lambda fleet=fleet, plan=plan, n=n: reports.append(
                fleet.launch(
                    replace(plan, request=replace(plan.request, fingerprint=str(n))), SILENT
                )
            )
        )
        for n, (fleet, plan) in enumerate(plans)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(reports) == 3
    groups = {each["SecurityGroups"][0]["GroupId"] for each in made.instances()}
    assert len(made.instances()) == 3
    assert len(groups) == 1


# What EC2 cannot give


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("InsufficientInstanceCapacity", "EC2 has not enough of that in eu-central-1 now"),
        ("VcpuLimitExceeded", "the quota of this account in eu-central-1 is used up"),
        ("InstanceLimitExceeded", "the quota of this account in eu-central-1 is used up"),
    ],
)
def test_what_there_is_of_too_many_is_kept_and_said(made, code, said):
    lacking = is_real("ec2.RunInstances", MinCount="3")
    made.proxy.fail(lacking, 500 if code.endswith("Capacity") else 400, code)
    sent = record(made.proxy, "ec2.RunInstances")

    report = launch(made, Ec2Spec(n=3))

    # moto takes the least that is asked for.
    assert len(report.hosts) == len(made.instances()) == 1
    assert said in report.notes[0]
    assert report.notes[1] == "1 of 3 instances were to be had"
    tokens = [each["ClientToken"] for each in sent if each["MinCount"] == "1"]
    assert len(set(tokens)) == 1
    assert tokens[0] not in {each["ClientToken"] for each in sent if each["MinCount"] == "3"}


def test_a_lack_of_capacity_is_an_answer_and_no_lost_one(made, monkeypatch):
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    made.proxy.fail(is_real("ec2.RunInstances"), 500, "InsufficientInstanceCapacity")

    with pytest.raises(ServiceError, match="EC2 has not enough"):
        launch(made, Ec2Spec())
    assert made.proxy.count("ec2.RunInstances") == 2  # one of them a dry run
    assert list(made.store.list(LAUNCHES)) == []


def test_a_launch_that_is_refused_leaves_no_note_of_itself(made):
    made.proxy.fail(is_real("ec2.RunInstances"), 400, "VcpuLimitExceeded")

    with pytest.raises(
        ServiceError, match=r"quota .* 'Running On-Demand Standard \(A, C, .*Service Quotas"
    ):
        launch(made, Ec2Spec())
    assert list(made.store.list(LAUNCHES)) == []


def test_a_role_that_ec2_does_not_know_yet_is_waited_for(made):
    made.proxy.fail(
        is_real("ec2.RunInstances"),
        400,
        "InvalidParameterValue",
        times=2,
        message="Value (adr-x) for parameter iamInstanceProfile.name is invalid. "
        "Invalid IAM Instance Profile name",
    )
    sent = record(made.proxy, "ec2.RunInstances")

    report = launch(made, Ec2Spec())

    assert len(report.hosts) == 1
    assert len({each["ClientToken"] for each in sent}) == 1


def test_an_instance_that_ends_at_once_is_told_with_its_reason(made):
    def end(call):
        [first, *_] = made.instances()
        made.ec2.terminate_instances(InstanceIds=[first["InstanceId"]])

    made.proxy.after(is_real("ec2.RunInstances"), end, times=1)

    report = launch(made, Ec2Spec(n=2))

    assert len(report.hosts) == 1
    [[name, why]] = report.failed.items()
    assert name not in {host.name for host in report.hosts}
    assert why.startswith("it has ended at once: User initiated")


# Answers that are lost


def test_a_lost_answer_is_asked_for_again_with_the_same_token(made):
    tokens = []
    made.proxy.after(
        is_real("ec2.RunInstances"), lambda call: tokens.append(fields(call)["ClientToken"])
    )
    made.proxy.before(
        is_real("ec2.RunInstances"), lambda call: tokens.append(fields(call)["ClientToken"])
    )
    made.proxy.lose_answer(is_real("ec2.RunInstances"), times=1)
    sent = record(made.proxy, "ec2.RunInstances")

    report = launch(made, Ec2Spec(n=2))

    assert len(report.hosts) == len(made.instances()) == 2
    assert len(set(tokens)) == 1
    assert made.proxy.count("ec2.RunInstances") == 3  # a dry run, a lost one, and the last
    assert len(sent) <= 2


def test_a_launch_that_is_repeated_takes_over_what_it_has_launched(made, monkeypatch):
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    made.proxy.lose_answer(is_real("ec2.RunInstances"), times=1)
    with pytest.raises(Unavailable):
        launch(made, Ec2Spec(n=2))
    assert len(made.instances()) == 2
    assert len(list(made.store.list(LAUNCHES))) == 1

    again = new_fleet(made.id)
    report = again.launch(again.plan(Ec2Spec(n=2), Demand()), SILENT)

    assert {host.name for host in report.hosts} == {each["InstanceId"] for each in made.instances()}
    assert "2 instances are those of an identical launch of " in report.notes[0]
    assert "nothing else was launched: launch again for more" in report.notes[0]
    assert len(made.instances()) == 2
    assert list(made.store.list(LAUNCHES)) == []
    # And what is asked for after that is new.
    launch(made, Ec2Spec(n=2))
    assert len(made.instances()) == 4


def test_a_launch_whose_request_was_lost_is_sent_again_under_the_same_token(made, monkeypatch):
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    sent = record(made.proxy, "ec2.RunInstances")
    made.proxy.lose_request(is_real("ec2.RunInstances"), times=1)
    with pytest.raises(Unavailable):
        launch(made, Ec2Spec(n=2))

    other = launch(made, Ec2Spec(n=1))
    report = launch(made, Ec2Spec(n=2))

    first, second, third = sent
    assert first["ClientToken"] == third["ClientToken"] != second["ClientToken"]
    assert other.notes == []
    assert "this one launches the same instances: launch again for more" in report.notes[0]
    assert (len(other.hosts), len(report.hosts)) == (1, 2)


def test_a_launch_whose_instances_have_ended_is_a_new_one(made, monkeypatch):
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    made.proxy.lose_answer(is_real("ec2.RunInstances"), times=1)
    with pytest.raises(Unavailable):
        launch(made, Ec2Spec())
    [old] = made.instances()
    made.ec2.terminate_instances(InstanceIds=[old["InstanceId"]])

    report = launch(made, Ec2Spec())

    assert [host.name for host in report.hosts] != [old["InstanceId"]]
    assert [host.name for host in report.hosts] == [each["InstanceId"] for each in made.instances()]


def test_instances_that_cannot_be_waited_for_are_told_all_the_same(made):
    plan = made.fleet.plan(Ec2Spec(n=2), Demand())
    sent = record(made.proxy, "ec2.RunInstances")

    def is_asked(call):
        return sent and call.name == "ec2.DescribeInstances"

    made.proxy.fail(is_asked, 403, "UnauthorizedOperation", times=1)

    report = made.fleet.launch(plan, SILENT)

    assert {host.name for host in report.hosts} == {each["InstanceId"] for each in made.instances()}
    assert len(report.hosts) == 2
    assert {host.state for host in report.hosts} == {HostState.UNKNOWN}
    assert re.search("whether i-.* run is not known: cannot list the instances", report.notes[0])


def test_a_new_session_of_the_same_role_has_the_same_wish(made):
    def wish(session: str) -> str:
        arn = f"arn:aws:sts::123456789012:assumed-role/{session}"
        answer = xml(
            "<GetCallerIdentityResponse><GetCallerIdentityResult>"
            f"<Arn>{arn}</Arn><UserId>u</UserId><Account>123456789012</Account>"
            "</GetCallerIdentityResult></GetCallerIdentityResponse>"
        )
        made.proxy.before("sts.GetCallerIdentity", lambda call: answer, times=1)
        plan = made.fleet.plan(Ec2Spec(), Demand())
        assert plan.data["tags"]["Owner"] == arn
        return plan.request.fingerprint

    first = wish("dev/botocore-session-1700000000")
    assert wish("dev/botocore-session-1700000099") == first
    assert wish("admin/botocore-session-1700000000") != first


# Several types and spot instances


def test_spot_instances_come_from_a_fleet_over_types_and_zones(made):
    sent = record(made.proxy, "ec2.CreateFleet")
    templates = record(made.proxy, "ec2.CreateLaunchTemplate")

    report = launch(made, Ec2Spec(n=3, spot=True, types=("c7i.large", "c7g.large", "m7i.large")))

    [request] = sent
    start = "LaunchTemplateConfigs.1."
    pools = {
        (
            request[f"{start}Overrides.{n}.InstanceType"],
            request[f"{start}Overrides.{n}.ImageId"],
            request[f"{start}Overrides.{n}.SubnetId"],
        )
        for n in range(1, 10)
    }
    subnets = {each["SubnetId"] for each in made.ec2.describe_subnets()["Subnets"]}
    images = {"c7i.large": "amd64", "c7g.large": "arm64", "m7i.large": "amd64"}
    assert pools == {
        (name, UBUNTU[kind], subnet) for name, kind in images.items() for subnet in subnets
    }
    assert request["Type"] == "instant"
    assert request["SpotOptions.AllocationStrategy"] == "price-capacity-optimized"
    assert request["TargetCapacitySpecification.TotalTargetCapacity"] == "3"
    assert request[ON_DEMAND] == "spot"
    assert made.proxy.count("ec2.RunInstances") == 1  # a dry run
    [template] = templates
    data = "LaunchTemplateData."
    assert template[f"{data}MetadataOptions.HttpTokens"] == "required"
    assert template[f"{data}BlockDeviceMapping.1.Ebs.Encrypted"] == "true"
    assert template[f"{data}InstanceInitiatedShutdownBehavior"] == "terminate"
    assert template[f"{data}IamInstanceProfile.Name"] == f"adr-{made.id}"
    assert template[f"{data}SecurityGroupId.1"].startswith("sg-")
    assert base64.b64decode(template[f"{data}UserData"])
    kinds = {template[f"{data}TagSpecification.{n}.ResourceType"] for n in (1, 2)}
    assert kinds == {"instance", "volume"}
    assert template["TagSpecification.1.ResourceType"] == "launch-template"

    assert {host.market for host in report.hosts} == {"spot"}
    assert len(report.hosts) == 3
    assert all(tags(each["Tags"])["Runner"] == made.id for each in made.instances())
    left = made.ec2.describe_launch_templates()["LaunchTemplates"]
    assert not [each for each in left if made.id in str(each)]


def test_several_types_on_demand_are_a_choice_for_ec2_too(made):
    sent = record(made.proxy, "ec2.CreateFleet")

    report = launch(made, Ec2Spec(n=2, types=("c7i.large", "m7i.large")))

    [request] = sent
    assert request["OnDemandOptions.AllocationStrategy"] == "lowest-price"
    assert request[ON_DEMAND] == "on-demand"
    assert not any(name.endswith("ImageId") for name in request)
    assert [host.market for host in report.hosts] == ["on-demand"] * 2


def test_on_demand_instances_stand_in_for_missing_spot_instances(made):
    errors = [
        ("InsufficientInstanceCapacity", "none", "c7i.large"),
        ("InsufficientInstanceCapacity", "none", "c7i.large"),
        ("UnfulfillableCapacity", "none", "m7i.large"),
        ("Strange", "something new", "m7i.large"),
    ]
    listed = "".join(ERROR.format(*each) for each in errors)
    none = xml(NONE_LAUNCHED.format(f"<errorSet>{listed}</errorSet>"))
    made.proxy.before(is_real("ec2.CreateFleet", **{ON_DEMAND: "spot"}), lambda call: none)
    spec = Ec2Spec(n=2, spot=True, fallback=True, types=("c7i.large", "m7i.large"))

    report = launch(made, spec)

    assert [host.market for host in report.hosts] == ["on-demand"] * 2
    assert [note.partition(" (")[0] for note in report.notes] == [
        "c7i.large: EC2 has not enough of that in eu-central-1 now",
        "m7i.large: EC2 has not enough of that in eu-central-1 now",
        "m7i.large: Strange",
        "2 of 2 instances are on demand, not spot",
    ]

    with pytest.raises(ServiceError, match=r"cannot launch 2 .*c7i\.large: EC2 has not enough"):
        launch(made, replace(spec, fallback=False))
    assert list(made.store.list(LAUNCHES)) == []
    names = [
        each["LaunchTemplateName"]
        for each in made.ec2.describe_launch_templates()["LaunchTemplates"]
    ]
    assert names == []


def one_of(n: int):
    """Return a rule that gives one instance, whatever is asked for."""

    def fewer(call):
        call.body = re.sub(rb"(TotalTargetCapacity=)\d+", b"\\g<1>%d" % n, call.body)

    return fewer


def test_spot_instances_are_kept_where_no_others_can_be_had_in_their_stead(made):
    made.proxy.before(is_real("ec2.CreateFleet", **{ON_DEMAND: "spot"}), one_of(1), times=1)
    made.proxy.fail(
        is_real("ec2.CreateFleet", **{ON_DEMAND: "on-demand"}), 400, "VcpuLimitExceeded"
    )

    report = launch(made, Ec2Spec(n=3, spot=True, fallback=True))

    assert [host.market for host in report.hosts] == ["spot"]
    assert {host.name for host in report.hosts} == {each["InstanceId"] for each in made.instances()}
    assert re.search("quota of this account .* is used up", report.notes[0])
    assert report.notes[1:] == ["1 of 3 instances were to be had"]
    assert list(made.store.list(LAUNCHES)) == []


def test_a_repeated_fleet_that_names_no_instances_is_looked_for(made):
    none = xml(NONE_LAUNCHED.format(""))
    # Its first answer is lost, and the second one is empty.
    made.proxy.lose_answer(is_real("ec2.CreateFleet"), times=1)
    calls = []

    def again(call):
        calls.append(call)
        return none if len(calls) > 1 else None

    made.proxy.before(is_real("ec2.CreateFleet"), again)

    report = launch(made, Ec2Spec(n=2, spot=True))

    assert {host.name for host in report.hosts} == {each["InstanceId"] for each in made.instances()}
    assert (len(report.hosts), report.notes) == (2, [])


def test_a_role_that_a_fleet_does_not_know_yet_is_waited_for(made):
    error = ERROR.format("InvalidParameterValue", "Invalid IAM Instance Profile name", "c7i.large")
    none = xml(NONE_LAUNCHED.format(f"<errorSet>{error}</errorSet>"))
    sent = record(made.proxy, "ec2.CreateFleet")
    made.proxy.before(is_real("ec2.CreateFleet"), lambda call: none, times=1)

    report = launch(made, Ec2Spec(spot=True))

    assert (len(report.hosts), report.notes) == (1, [])
    # EC2 would answer the same to the same request.
    assert len({each["ClientToken"] for each in sent}) == 2


def test_a_fleet_whose_answer_was_lost_is_had_once(made):
    made.proxy.lose_answer(is_real("ec2.CreateFleet"), times=1)
    sent = record(made.proxy, "ec2.CreateFleet")

    report = launch(made, Ec2Spec(n=2, spot=True))

    assert len(report.hosts) == len(made.instances()) == 2
    assert len({each["ClientToken"] for each in sent}) == 1


# From then on


def test_hosts_are_found_by_any_machine_and_end_for_good(made):
    launched = launch(made, Ec2Spec(n=2)).hosts
    fleet = new_fleet(made.id)
    assert isinstance(fleet, Pausable)

    assert {host.name for host in fleet.hosts()} == {host.name for host in launched}
    assert {host.state for host in fleet.hosts()} == {HostState.RUNNING}
    assert all(host.started_at and host.fleet == "ec2" for host in fleet.hosts())

    fleet.terminate(launched, SILENT)
    fleet.terminate(launched, SILENT)
    gone = replace(launched[0], name="i-0123456789abcdef0")
    fleet.terminate([gone], SILENT)

    assert fleet.hosts() == made.instances() == []
    assert made.proxy.count("ec2.TerminateInstances") == 1


def test_instances_stop_and_start_again_and_may_have_another_address(made):
    before = launch(made, Ec2Spec(n=2)).hosts

    stopped = made.fleet.stop(before, SILENT)
    assert [host.state for host in made.fleet.stop(before, SILENT)] == [HostState.STOPPED] * 2
    started = made.fleet.start(stopped, SILENT)
    made.fleet.start(stopped, SILENT)

    assert made.proxy.count("ec2.StopInstances") == made.proxy.count("ec2.StartInstances") == 1
    assert [host.name for host in started] == [host.name for host in before]
    assert [host.address for host in stopped] == ["", ""]
    assert {host.state for host in started} == {HostState.RUNNING}
    assert {host.address for host in started} == {
        each["PublicIpAddress"] for each in made.instances()
    }


def test_spot_instances_cannot_be_stopped(made):
    [spot] = launch(made, Ec2Spec(spot=True)).hosts
    [other] = launch(made, Ec2Spec()).hosts

    with pytest.raises(UsageError, match=f"EC2 cannot stop spot instances.*--hosts={spot.name}"):
        made.fleet.stop([spot], SILENT)
    with pytest.raises(PartialFailure) as caught:
        made.fleet.stop([spot, other], SILENT)

    assert caught.value.succeeded == (other.name,)
    assert caught.value.failed == (spot.name,)
    states = {host.name: host.state for host in made.fleet.hosts()}
    assert states == {spot.name: HostState.RUNNING, other.name: HostState.STOPPED}


def test_one_of_many_that_cannot_be_ended_does_not_spare_the_others(made):
    hosts = launch(made, Ec2Spec(n=3)).hosts
    kept = hosts[1].name
    made.ec2.modify_instance_attribute(InstanceId=kept, DisableApiTermination={"Value": True})

    with pytest.raises(PartialFailure, match=kept) as caught:
        made.fleet.terminate(hosts, SILENT)

    assert caught.value.failed == (kept,)
    assert [host.name for host in made.fleet.hosts()] == [kept]
    made.ec2.modify_instance_attribute(InstanceId=kept, DisableApiTermination={"Value": False})


def test_hundreds_of_instances_are_ended_in_few_calls(made):
    made.ec2.run_instances(
        ImageId=UBUNTU["amd64"],
        MinCount=210,
        MaxCount=210,
        TagSpecifications=[
            {"ResourceType": "instance", "Tags": [{"Key": "Runner", "Value": made.id}]}
        ],
    )
    hosts = made.fleet.hosts()
    assert len(hosts) == 210

    made.fleet.terminate(hosts, SILENT)

    assert made.fleet.hosts() == []
    assert made.proxy.count("ec2.TerminateInstances") == 2


def test_what_a_machine_has_said_is_shown(made):
    [host] = launch(made, Ec2Spec()).hosts

    assert b"Linux version" in made.fleet.output(host)
    latest = {"Latest": "true"}
    made.proxy.fail(is_real("ec2.GetConsoleOutput", **latest), 400, "UnsupportedOperation")
    assert b"Linux version" in made.fleet.output(host)
    assert made.fleet.output(replace(host, name="i-0123456789abcdef0")) is None


def test_what_an_instance_has_said_is_shown_after_it_has_ended(made):
    ours, other = launch(made, Ec2Spec(n=2)).hosts
    made.ec2.terminate_instances(InstanceIds=[ours.name])
    made.ec2.create_tags(Resources=[other.name], Tags=[{"Key": "Runner", "Value": "another"}])
    runner = replace(made.runner, fleets={"ec2": lambda: made.fleet})

    assert b"Linux version" in output_of(runner, ours.name)
    assert ours.name not in {view.name for view in hosts(runner)}
    for name in (other.name, "i-0123456789abcdef0", "nonsense"):
        with pytest.raises(UsageError, match=f"the runner has no host '{name}'"):
            output_of(runner, name)
    made.ec2.terminate_instances(InstanceIds=[other.name])


def test_instances_that_ended_by_themselves_are_remembered(made):
    [host] = launch(made, Ec2Spec()).hosts
    runner = replace(made.runner, fleets={"ec2": lambda: made.fleet})
    assert made.fleet.ended() == []
    made.ec2.terminate_instances(InstanceIds=[host.name])
    assert made.fleet.ended() == []
    assert hosts(runner) == []

    # as EC2 tells of an instance that was shut down from within
    def shut_down(call):
        body = call.answer.body
        told = body.replace(b"Client.UserInitiatedShutdown", b"Client.InstanceInitiatedShutdown")
        assert told != body
        return replace(call.answer, body=told)

    made.proxy.after("ec2.DescribeInstances", shut_down, times=3)

    assert [each.name for each in made.fleet.ended()] == [host.name]
    [view] = hosts(runner)
    assert view.note == f"ended before its worker was heard of: adr logs --worker={host.name}"
    assert view.host.state is HostState.ENDED


# The end


def test_nothing_is_left_when_a_runner_is_dissolved(made):
    launch(made, Ec2Spec(n=2))
    volume = made.ec2.create_volume(
        Size=1,
        AvailabilityZone="eu-central-1a",
        TagSpecifications=[
            {"ResourceType": "volume", "Tags": [{"Key": "Runner", "Value": made.id}]}
        ],
    )["VolumeId"]
    made.ec2.create_launch_template(
        LaunchTemplateName=f"left-{made.id}",
        LaunchTemplateData={"InstanceType": "c7i.large"},
        TagSpecifications=[
            {"ResourceType": "launch-template", "Tags": [{"Key": "Runner", "Value": made.id}]}
        ],
    )

    with pytest.raises(AdrError, match=r"still left in eu-central-1: instance i-.*\(running\)"):
        made.fleet.dissolve(SILENT)
    made.fleet.terminate(made.fleet.hosts(), SILENT)
    made.proxy.fail("ec2.DeleteSecurityGroup", 400, "DependencyViolation", times=2)
    # As adr destroy does it.
    made.runner.ledger.destroy()
    fleet = new_fleet(made.id)
    fleet.dissolve(SILENT)
    fleet.dissolve(SILENT)

    mine = [{"Name": "tag:Runner", "Values": [made.id]}]
    assert made.ec2.describe_security_groups(Filters=mine)["SecurityGroups"] == []
    assert made.ec2.describe_volumes(Filters=mine)["Volumes"] == []
    assert made.ec2.describe_launch_templates(Filters=mine)["LaunchTemplates"] == []
    assert volume
    roles = boto3.client("iam").list_roles()["Roles"]
    assert f"adr-{made.id}" not in {each["RoleName"] for each in roles}


def test_what_cannot_be_removed_is_named(made):
    launch(made, Ec2Spec())
    made.fleet.terminate(made.fleet.hosts(), SILENT)
    made.proxy.fail("ec2.DeleteSecurityGroup", 403, "UnauthorizedOperation")

    with pytest.raises(ServiceError, match="lack the permission ec2:DeleteSecurityGroup"):
        made.fleet.dissolve(SILENT)


def test_the_role_goes_also_where_ec2_may_not_be_looked_at(made):
    launch(made, Ec2Spec())
    made.fleet.terminate(made.fleet.hosts(), SILENT)
    made.proxy.fail("ec2.DescribeInstances", 403, "UnauthorizedOperation", times=1)

    with pytest.raises(Denied, match="lack the permission ec2:DescribeInstances"):
        made.fleet.dissolve(SILENT)
    assert profile_left(Connection(made.id)) == []


def test_iam_is_asked_again_where_it_still_shows_a_role_that_is_gone(made):
    launch(made, Ec2Spec())
    made.fleet.terminate(made.fleet.hosts(), SILENT)
    answers = []
    made.proxy.after("iam.GetRole", lambda call: answers.append(call.answer))
    profile_left(Connection(made.id))
    [old] = answers
    removed = []
    made.proxy.after("iam.DeleteRole", lambda call: removed.append(call))
    stale = []

    def show(call):
        if removed and len(stale) < 2:
            stale.append(call)
            return old
        return None

    made.proxy.before("iam.GetRole", show)

    made.fleet.dissolve(SILENT)

    assert len(stale) == 2


def test_who_may_not_look_for_roles_can_still_destroy(made):
    made.proxy.fail("iam.GetInstanceProfile", 403, "AccessDenied")

    made.fleet.dissolve(SILENT)


def test_instances_whose_runner_is_gone_are_found_in_all_regions(made):
    launch(made, Ec2Spec())
    regions = ["eu-central-1", "eu-west-1", "us-east-1"]
    items = "".join(f"<item><regionName>{name}</regionName></item>" for name in regions)
    answer = xml(
        f"<DescribeRegionsResponse><regionInfo>{items}</regionInfo></DescribeRegionsResponse>"
    )
    made.proxy.before("ec2.DescribeRegions", lambda call: answer)
    elsewhere = boto3.client("ec2", region_name="us-east-1")
    gone = str(uuid.uuid4())
    [[lost, *_]] = [
        elsewhere.run_instances(
            ImageId=elsewhere.describe_images()["Images"][0]["ImageId"],
            MinCount=1,
            MaxCount=1,
            TagSpecifications=[
                {
                    "ResourceType": "instance",
                    "Tags": [{"Key": key, "Value": value} for key, value in own],
                }
            ],
        )["Instances"]
        for own in [[("Runner", gone), ("Version", "1"), ("Owner", "me")]]
    ]
    foreign = elsewhere.run_instances(
        ImageId=lost["ImageId"],
        MinCount=1,
        MaxCount=1,
        TagSpecifications=[
            {"ResourceType": "instance", "Tags": [{"Key": "Runner", "Value": "of a CI"}]}
        ],
    )["Instances"][0]
    made.proxy.fail(
        lambda call: call.name == "ec2.DescribeInstances" and call.region == "eu-west-1",
        403,
        "UnauthorizedOperation",
    )

    found, notes = orphans()

    assert [(each.host.name, each.region, each.runner_id, each.owner) for each in found] == [
        (lost["InstanceId"], "us-east-1", gone, "me")
    ]
    [note] = notes
    assert note.startswith("eu-west-1 is left out: ")
    elsewhere.terminate_instances(InstanceIds=[lost["InstanceId"], foreign["InstanceId"]])
    made.runner.ledger.destroy()
    assert [each.runner_id for each in orphans()[0]] == [made.id]


# As users have it


def require_wheel(folder) -> None:
    words = [sys.executable, "-c", "from adr.wheel import pack_wheel; pack_wheel()"]
    done = subprocess.run(words, cwd=folder, capture_output=True)
    require(done.returncode == 0, "adr runs from its sources and cannot be brought to instances")


def test_a_runner_has_instances_from_its_launch_to_its_end(strict_moto, shell):
    require_wheel(shell.folder)
    runner = shell("create").out.strip()

    # Only the installed adr can be brought to instances; inside is that of the sources.
    told = shell("launch", "-n", "2", "--dry-run")
    assert f"adr-{runner}" in told.out + told.err
    assert json.loads(shell("launch", "--dry-run", "--json").out)
    assert shell("launch", "--ait=c7i.huge", status=2).err.count("\n") == 1
    launched = shell("launch", "-n", "2", "--max-hours=2").lines
    shell.inside = True
    ec2 = boto3.client("ec2")

    def instances():
        mine = [{"Name": "tag:Runner", "Values": [runner]}]
        found = ec2.describe_instances(Filters=mine)["Reservations"]
        return [each for reservation in found for each in reservation["Instances"]]

    assert set(launched) == {each["PublicIpAddress"] for each in instances()}
    names = {each["InstanceId"] for each in instances()}
    assert all(name in shell("list", runner).out for name in names)
    shell("stop")
    assert {each["State"]["Name"] for each in instances()} == {"stopped"}
    shell("start")
    assert {each["State"]["Name"] for each in instances()} == {"running"}
    shell("destroy", "--yes")
    assert {each["State"]["Name"] for each in instances()} <= {"terminated"}
    assert {each["InstanceId"] for each in instances()} <= names
    left = ec2.describe_security_groups(Filters=[{"Name": "tag:Runner", "Values": [runner]}])
    assert left["SecurityGroups"] == []
