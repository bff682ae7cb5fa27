"""What is sent to EC2 follows from an order alone."""

from dataclasses import replace
from pathlib import Path

import pytest

from adr.fleets.ec2.images import InstanceType, _parameters
from adr.fleets.ec2.requests import (
    Order,
    Pool,
    create_fleet,
    fingerprint,
    launch_template,
    run_instances,
)
from adr.fleets.specs import Ec2Spec, WorkerOptions

ORDER = Order(
    n=3, pools=(Pool("c7i.large", "ami-1"),), root_device="/dev/xvda", disk_gib=20, user_data=b"#!"
)


def test_fewer_instances_are_asked_for_under_another_token():
    all_of_them, at_least_one = (run_instances(ORDER, "t", least) for least in (3, 1))

    assert all_of_them["ClientToken"] == "t"
    assert at_least_one["ClientToken"] == "t-least"
    assert [each["MaxCount"] for each in (all_of_them, at_least_one)] == [3, 3]
    assert all_of_them["BlockDeviceMappings"][0]["DeviceName"] == "/dev/xvda"
    # The same instances in all other respects.
    assert {k for k in all_of_them if all_of_them[k] != at_least_one[k]} == {
        "ClientToken",
        "MinCount",
    }


def test_what_is_not_asked_for_is_not_sent():
    request = run_instances(ORDER, "t", 3)

    assert request.keys().isdisjoint(
        {"KeyName", "SecurityGroupIds", "SubnetId", "IamInstanceProfile", "NetworkInterfaces"}
    )


@pytest.mark.parametrize(("profile", "kind"), [("mine", "Name"), ("arn:aws:iam::1:x", "Arn")])
def test_an_instance_profile_is_given_by_its_name_or_its_arn(profile, kind):
    request = run_instances(replace(ORDER, profile=profile), "t", 3)

    assert request["IamInstanceProfile"] == {kind: profile}


def test_each_market_and_each_try_has_a_token_of_its_own():
    tokens = {
        create_fleet(ORDER, "f" * 32, 3, spot, attempt)["ClientToken"]
        for spot in (True, False)
        for attempt in (0, 1)
    }

    assert len(tokens) == 4
    # The most that EC2 takes.
    assert max(map(len, tokens)) <= 64


def test_images_are_named_per_type_only_where_they_differ():
    pools = (Pool("c7i.large", "ami-1", "subnet-1"), Pool("c7g.large", "ami-2", "subnet-1"))
    both = create_fleet(replace(ORDER, pools=pools), "t", 1, spot=True)
    one = create_fleet(replace(ORDER, pools=pools[:1]), "t", 1, spot=True)

    [config] = both["LaunchTemplateConfigs"]
    assert [each["ImageId"] for each in config["Overrides"]] == ["ami-1", "ami-2"]
    [config] = one["LaunchTemplateConfigs"]
    assert config["Overrides"] == [{"InstanceType": "c7i.large", "SubnetId": "subnet-1"}]


def test_a_template_and_a_single_request_say_the_same_of_an_instance():
    template = launch_template(ORDER, "t")["LaunchTemplateData"]
    request = run_instances(ORDER, "t", 3)

    own = {"InstanceType", "MinCount", "MaxCount", "ClientToken"}
    assert template.keys() == request.keys() - own
    assert {k for k in template if template[k] != request[k]} == {"UserData"}


def test_one_type_on_demand_needs_no_fleet():
    assert not ORDER.is_fleet
    assert replace(ORDER, spot=True).is_fleet
    assert replace(ORDER, pools=(*ORDER.pools, Pool("m7i.large", "ami-1"))).is_fleet


def test_the_same_wish_has_the_same_fingerprint():
    spec = Ec2Spec(n=2, setup=Path("a.sh"), worker=WorkerOptions(slots=1))
    same = fingerprint(replace(spec), b"x", "me")

    assert fingerprint(spec, b"x", "me") == same
    others = [
        fingerprint(replace(spec, n=3), b"x", "me"),
        fingerprint(replace(spec, worker=WorkerOptions(slots=2)), b"x", "me"),
        fingerprint(spec, b"y", "me"),
        fingerprint(spec, b"x", "you"),
    ]
    assert len({same, *others}) == 5


def test_the_images_of_ubuntu_are_looked_for_from_the_newest_to_the_oldest_that_will_do():
    names = _parameters("ubuntu", "arm64")

    years = [int(name.split("/")[6].partition(".")[0]) for name in names]
    assert years == sorted(years, reverse=True)
    assert min(years) == 22
    assert all(year % 2 == 0 for year in years)
    assert all("/arm64/hvm/ebs-gp" in name for name in names)


def test_types_are_shown_with_what_one_chooses_them_by():
    assert str(InstanceType("c7g.xlarge", "arm64", 4, 8192)) == "c7g.xlarge (4 vCPU, 8 GiB, arm64)"
