"""From a wish to an order for EC2: everything that a launch needs to know, and nothing changed.

Each value is looked up before anything is made, so that a typing error costs nothing; at the
end EC2 itself is asked, by a dry run of the very requests, whether it would carry them out.
"""

from __future__ import annotations

import getpass
import os
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from botocore import exceptions as core

from adr.aws import Connection, error_code, translated
from adr.errors import AdrError, UsageError
from adr.fleets.base import Demand, LaunchPlan
from adr.fleets.ec2.groups import find_group, group_name, group_request
from adr.fleets.ec2.images import Image, InstanceType, find_images, instance_types, newest_images
from adr.fleets.ec2.instances import LOGINS, PREPARE
from adr.fleets.ec2.prices import hourly_usd
from adr.fleets.ec2.refusals import no_network, refusals
from adr.fleets.ec2.requests import (
    Order,
    Pool,
    create_fleet,
    fingerprint,
    launch_template,
    run_instances,
)
from adr.fleets.ec2.sizes import (
    DEVICES,
    check_wish,
    disk_gib,
    number_of_instances,
    setup_of,
    slots_of,
)
from adr.fleets.ec2.userdata import Machine, user_data
from adr.fleets.ec2.words import Facts
from adr.fleets.specs import Ec2Spec
from adr.keys import install_key
from adr.version import __version__
from adr.wheel import CONSTRAINTS, Wheel, pack_wheel

if TYPE_CHECKING:
    from mypy_boto3_ec2 import EC2Client

__all__ = ["Draft", "make_plan"]

#: Stands for the token of a launch where nothing is launched.
_NO_TOKEN = "plan"


@dataclass(frozen=True)
class Draft:
    """Hold an order along with what is to be made before it is sent."""

    order: Order
    #: Network of the instances.
    vpc: str
    #: Group to be made, or to be found, for the runner; None: groups were given.
    group: str | None
    #: Whether SSH is let in from here.
    ssh: bool
    #: Whether the role of the runner is to be made, or to be found.
    own_profile: bool
    #: What new hosts install; None: nothing.
    wheel: Wheel | None
    #: Key and content of the user's own script.
    setup: tuple[str, bytes] | None
    #: The same for the same wish.
    fingerprint: str


@dataclass(frozen=True)
class _Subnet:
    id: str
    zone: str
    vpc: str
    #: Whether instances get a public address there.
    public: bool


def make_plan(
    connection: Connection, spec: Ec2Spec, demand: Demand, pack: Callable[[], Wheel] = pack_wheel
) -> LaunchPlan:
    """Say what a launch would do; see `adr.fleets.base.Fleet.plan`."""
    planner = _Planner(connection, spec)
    check_wish(spec)
    types = instance_types(planner.ec2, spec.types, planner.region)
    images = planner.images(types)
    subnets = planner.subnets()
    pools = planner.pools(types, images, subnets)
    image = images[types[0].architecture]
    volumes = planner.volumes()
    planner.check_names(subnets[0].vpc)
    setup = setup_of(spec)
    owner = planner.owner()
    wheel = None if spec.prepare else pack()
    order = Order(
        n=number_of_instances(spec, demand, types),
        pools=pools,
        root_device=image.root_device,
        disk_gib=disk_gib(spec, demand, types, image),
        volumes=tuple((device, snapshot) for device, snapshot, _ in volumes),
        groups=spec.groups,
        key_pair=spec.key_pair,
        profile=None if spec.prepare else spec.instance_profile,
        user_data=user_data(planner.machine(wheel, setup)),
        spot=spec.spot,
        fallback=spec.fallback,
        tags=planner.tags(owner),
    )
    draft = Draft(
        order=order,
        vpc=subnets[0].vpc,
        group=None if spec.groups else group_name(connection.runner_id, spec.prepare),
        ssh=spec.prepare and not spec.groups,
        own_profile=not spec.prepare and spec.instance_profile is None,
        wheel=wheel,
        setup=setup,
        fingerprint=fingerprint(spec, setup and setup[1], _without_session(owner)),
    )
    planner.try_out(draft)
    zones = [subnet.zone for subnet in subnets]
    profile = f"adr-{connection.runner_id}" if draft.own_profile else order.profile
    price = hourly_usd(connection, order.types, spec.spot, zones)
    hourly = None if price is None else price * order.n
    facts = Facts(
        region=planner.region,
        order=order,
        types=tuple(types),
        images=tuple(images.values()),
        subnet=spec.subnet,
        vpc=draft.vpc,
        zones=tuple(dict.fromkeys(zones)),
        has_public_addresses=all(subnet.public for subnet in subnets),
        volumes=tuple(
            (snapshot, size, volume.mount)
            for (_, snapshot, size), volume in zip(volumes, spec.volumes, strict=True)
        ),
        group=draft.group,
        profile=profile,
        is_prepared=spec.prepare,
        setup=spec.setup,
        worker=spec.worker,
        hourly_usd=hourly,
    )
    slots = order.n * slots_of(spec, types)[0]
    return LaunchPlan(order.n, facts.lines(), facts.data(), draft, hourly, slots)


class _Planner:
    """Look up, for one plan, what EC2 and its neighbours know."""

    def __init__(self, connection: Connection, spec: Ec2Spec) -> None:
        # The region is certain once the queue is found, and there must be one.
        _ = connection.queue_url
        self._connection = connection
        self._spec = spec
        self.region = connection.region
        self.ec2: EC2Client = connection.service("ec2")

    def images(self, types: Sequence[InstanceType]) -> dict[str, Image]:
        """Return the machine image for each architecture."""
        spec, architectures = self._spec, dict.fromkeys(each.architecture for each in types)
        if spec.ami is not None:
            image = find_images(self.ec2, [spec.ami], self.region)[spec.ami]
            for each in types:
                if each.architecture != image.architecture:
                    raise UsageError(
                        f"the machine image {spec.ami} is for {image.architecture}, "
                        f"{each.name} is {each.architecture}: give another --ami or --ait"
                    )
            return {image.architecture: image}
        ssm = self._connection.service("ssm")
        ids = newest_images(ssm, spec.image, architectures, self.region)
        found = find_images(self.ec2, list(dict.fromkeys(ids.values())), self.region)
        return {architecture: found[each] for architecture, each in ids.items()}

    def subnets(self) -> list[_Subnet]:
        """Return the subnet that was asked for, or those of the default VPC."""
        if self._spec.subnet is not None:
            with refusals("use", f"the subnet {self._spec.subnet}", self.region):
                answer = self.ec2.describe_subnets(SubnetIds=[self._spec.subnet])
        else:
            with refusals("look for", "the default VPC", self.region):
                answer = self.ec2.describe_subnets(
                    Filters=[{"Name": "default-for-az", "Values": ["true"]}]
                )
        found = [
            _Subnet(
                each["SubnetId"],
                each["AvailabilityZone"],
                each["VpcId"],
                each.get("MapPublicIpOnLaunch", False),
            )
            for each in answer["Subnets"]
        ]
        if not found:
            raise UsageError(no_network(self.region))
        return sorted(found, key=lambda each: each.zone)

    def pools(
        self,
        types: Sequence[InstanceType],
        images: dict[str, Image],
        subnets: Sequence[_Subnet],
    ) -> tuple[Pool, ...]:
        """Return where instances may be found, the preferred type first."""
        spec = self._spec
        if len(types) == 1 and not spec.spot and spec.subnet is None:
            # EC2 knows best which zone has that type.
            return (Pool(types[0].name, images[types[0].architecture].id),)
        names = [each.name for each in types]
        with refusals("look for", f"the zones that have {', '.join(names)}", self.region):
            pages = self.ec2.get_paginator("describe_instance_type_offerings").paginate(
                LocationType="availability-zone",
                Filters=[{"Name": "instance-type", "Values": names}],
            )
            offered = {
                (each["InstanceType"], each["Location"])
                for page in pages
                for each in page["InstanceTypeOfferings"]
            }
        pools = tuple(
            Pool(each.name, images[each.architecture].id, subnet.id)
            for each in types
            for subnet in subnets
            if (each.name, subnet.zone) in offered
        )
        if not pools:
            zones = ", ".join(dict.fromkeys(subnet.zone for subnet in subnets))
            raise UsageError(
                f"there is no {' or '.join(names)} in {zones}: give another --ait or --subnet"
            )
        return pools

    def volumes(self) -> list[tuple[str, str, int]]:
        """Return device, snapshot and size in GiB of each data volume."""
        wanted = self._spec.volumes
        if not wanted:
            return []
        ids = list(dict.fromkeys(volume.snapshot for volume in wanted))
        with refusals("use", f"the snapshot {', '.join(ids)}", self.region):
            answer = self.ec2.describe_snapshots(SnapshotIds=ids)
        sizes = {}
        for each in answer["Snapshots"]:
            if each["State"] != "completed":
                raise UsageError(
                    f"the snapshot {each['SnapshotId']} is {each['State']}: wait until it is "
                    f"completed, or give another"
                )
            sizes[each["SnapshotId"]] = each["VolumeSize"]
        return [
            (device, volume.snapshot, sizes[volume.snapshot])
            for device, volume in zip(DEVICES, wanted, strict=False)
        ]

    def check_names(self, vpc: str) -> None:
        """Refuse a key pair or groups that are not there, or are elsewhere."""
        spec = self._spec
        if spec.key_pair:
            with refusals("use", f"the key pair {spec.key_pair}", self.region):
                self.ec2.describe_key_pairs(KeyNames=[spec.key_pair])
        if spec.groups:
            named = ", ".join(spec.groups)
            with refusals("use", f"the security groups {named}", self.region):
                answer = self.ec2.describe_security_groups(GroupIds=list(spec.groups))
            for group in answer["SecurityGroups"]:
                if group["VpcId"] != vpc:
                    raise UsageError(
                        f"the security group {group['GroupId']} is in {group['VpcId']}, the "
                        f"instances would be in {vpc}: give another --asg or --subnet"
                    )

    def owner(self) -> str:
        """Return who launches: as AWS knows them, else as their machine does."""
        try:
            with translated("ask for", "the owner of these credentials"):
                return str(self._connection.service("sts").get_caller_identity()["Arn"])
        except AdrError:
            try:
                user = getpass.getuser()
            except (KeyError, OSError):
                user = str(os.getuid())
            return f"{user}@{socket.gethostname()}"

    def tags(self, owner: str) -> dict[str, str]:
        """Return the tags of all that is made, but for the launch."""
        tags = {
            "Name": f"adr-{self._connection.runner_id[:7]}",
            "Runner": self._connection.runner_id,
            # EC2 takes 256 characters.
            "Owner": owner[:256],
            "Version": __version__,
        }
        return {**tags, PREPARE: LOGINS[self._spec.image]} if self._spec.prepare else tags

    def machine(self, wheel: Wheel | None, setup: tuple[str, bytes] | None) -> Machine:
        """Return what each instance is to become."""
        spec = self._spec
        machine = Machine(
            runner_id=self._connection.runner_id,
            region=self.region,
            volumes=[
                (device, volume.mount)
                for device, volume in zip(DEVICES, spec.volumes, strict=False)
            ],
            worker=spec.worker,
            spot=spec.spot,
            aws_for_jobs=spec.aws_for_jobs,
            pip_options=spec.pip_options,
            endpoints={
                name: value
                for name, value in os.environ.items()
                if name.startswith("AWS_ENDPOINT_URL")
            },
            prepare=spec.prepare,
        )
        if wheel is not None:
            machine = replace(
                machine,
                wheel_key=install_key(wheel.sha256, wheel.name),
                wheel_name=wheel.name,
                wheel_sha256=wheel.sha256,
                constraints_key=install_key(wheel.sha256, CONSTRAINTS),
            )
        if setup is not None:
            key, _ = setup
            machine = replace(machine, setup_key=key, setup_sha256=key.split("/")[-2])
        return machine

    def try_out(self, draft: Draft) -> None:
        """Ask EC2 whether it would carry out the requests."""
        order, ec2, region = draft.order, self.ec2, self.region
        if draft.group is not None:
            found = find_group(ec2, draft.group, draft.vpc, region)
            if found is None:
                request = group_request(draft.group, draft.vpc, order.tags)
                with refusals("make", f"the security group {draft.group}", region):
                    _dry_run(ec2.create_security_group, request)
            else:
                order = replace(order, groups=(found,))
        what = f"{order.n} instances of {' or '.join(order.types)}"
        with refusals("launch", what, region, order.types):
            single = replace(order, pools=order.pools[:1])
            request = run_instances(single, _NO_TOKEN, order.n)
            if order.spot:
                request["InstanceMarketOptions"] = {"MarketType": "spot"}
            _dry_run(ec2.run_instances, request)
            # Without this nobody would see what has become of them.
            _dry_run(ec2.describe_instances, {})
            if order.is_fleet:
                _dry_run(ec2.create_launch_template, launch_template(order, _NO_TOKEN))
                _dry_run(ec2.create_fleet, create_fleet(order, _NO_TOKEN, order.n, order.spot))


def _without_session(owner: str) -> str:
    """Return an owner without the name of a session, which botocore makes from the time."""
    start, role, rest = owner.partition(":assumed-role/")
    return start + role + rest.partition("/")[0]


def _dry_run(call: Callable[..., object], request: dict[str, Any]) -> None:
    """Send a request that is only tried; without its token, which is for those carried out."""
    tried = {name: value for name, value in request.items() if name != "ClientToken"}
    try:
        call(**tried, DryRun=True)
    except core.ClientError as error:
        code = error_code(error)
        # The template of a fleet is made when it is launched.
        if code != "DryRunOperation" and not code.startswith("InvalidLaunchTemplate"):
            raise
