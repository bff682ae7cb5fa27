"""What is sent to EC2 for a launch: pure functions from an order to requests.

Instances of one type on demand are had by one RunInstances. Where EC2 is to choose among
several types, or spot instances are asked for, it is a launch template and a CreateFleet of the
type "instant", which answers at once and keeps nothing going.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from adr.fleets.specs import Ec2Spec

__all__ = [
    "LAUNCH",
    "Order",
    "Pool",
    "create_fleet",
    "fingerprint",
    "launch_template",
    "run_instances",
    "tag_list",
    "template_name",
]

#: Tag that holds the token of a launch.
LAUNCH = "Launch"


@dataclass(frozen=True)
class Pool:
    """One place where EC2 may find an instance."""

    type: str
    image: str
    #: None: EC2 chooses.
    subnet: str | None = None


@dataclass(frozen=True)
class Order:
    """Say what is to be launched, down to the last detail."""

    n: int
    #: At least one; the preferred one first.
    pools: tuple[Pool, ...]
    root_device: str
    disk_gib: int
    #: Device and snapshot of each data volume.
    volumes: tuple[tuple[str, str], ...] = ()
    groups: tuple[str, ...] = ()
    key_pair: str | None = None
    #: Name or ARN.
    profile: str | None = None
    user_data: bytes = b""
    spot: bool = False
    #: Whether on-demand instances stand in for missing spot instances.
    fallback: bool = False
    tags: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_fleet(self) -> bool:
        """Tell whether EC2 has something to choose."""
        return self.spot or len(self.types) > 1

    @property
    def types(self) -> tuple[str, ...]:
        """Return the instance types."""
        return tuple(dict.fromkeys(pool.type for pool in self.pools))


def run_instances(order: Order, token: str, least: int) -> dict[str, Any]:
    """Return a RunInstances for an order without a choice.

    Parameters
    ----------
    token : str
        Tag of the launch.
    least : int
        Fewest instances that are taken; EC2 launches as many as it can, or none.
    """
    [pool] = order.pools
    request = {
        **_instance(order, token),
        "InstanceType": pool.type,
        "MinCount": least,
        "MaxCount": order.n,
        # EC2 takes another number under the same token for a mistake.
        "ClientToken": token if least == order.n else f"{token}-least",
    }
    if order.user_data:
        request["UserData"] = order.user_data
    if pool.subnet:
        request["SubnetId"] = pool.subnet
    return request


def launch_template(order: Order, token: str) -> dict[str, Any]:
    """Return a CreateLaunchTemplate for an order with a choice.

    It has no token: its name is one, and a template may be made again after it was removed.
    """
    data = {
        **_instance(order, token),
        # Unlike that of RunInstances, botocore does not encode it.
        "UserData": base64.b64encode(order.user_data).decode(),
    }
    return {
        "LaunchTemplateName": template_name(token),
        "LaunchTemplateData": data,
        "TagSpecifications": [
            {"ResourceType": "launch-template", "Tags": tag_list(order.tags, token)}
        ],
    }


def create_fleet(order: Order, token: str, n: int, spot: bool, attempt: int = 0) -> dict[str, Any]:
    """Return a CreateFleet over the pools of an order, for which `launch_template` was sent.

    Parameters
    ----------
    attempt : int, optional
        Under the same number EC2 would give the same answer again.
    """
    images = len({pool.image for pool in order.pools}) > 1
    overrides: list[dict[str, str]] = []
    for pool in order.pools:
        override = {"InstanceType": pool.type}
        if pool.subnet:
            override["SubnetId"] = pool.subnet
        if images:
            override["ImageId"] = pool.image
        overrides.append(override)
    market = "spot" if spot else "on-demand"
    request: dict[str, Any] = {
        "Type": "instant",
        "ClientToken": f"{token}-{market}-{attempt}",
        "TargetCapacitySpecification": {
            "TotalTargetCapacity": n,
            "DefaultTargetCapacityType": market,
        },
        "LaunchTemplateConfigs": [
            {
                "LaunchTemplateSpecification": {
                    "LaunchTemplateName": template_name(token),
                    "Version": "$Default",
                },
                "Overrides": overrides,
            }
        ],
    }
    if spot:
        request["SpotOptions"] = {"AllocationStrategy": "price-capacity-optimized"}
    else:
        request["OnDemandOptions"] = {"AllocationStrategy": "lowest-price"}
    return request


def template_name(token: str) -> str:
    """Return the name of the launch template of a launch."""
    return f"adr-{token}"


def tag_list(tags: Mapping[str, str], token: str | None = None) -> list[dict[str, str]]:
    """Return tags as EC2 wants them."""
    named = dict(tags) if token is None else {**tags, LAUNCH: token}
    return [{"Key": key, "Value": value} for key, value in named.items()]


def fingerprint(spec: Ec2Spec, setup: bytes | None, owner: str) -> str:
    """Return a digest of what somebody has asked for: the same for the same wish.

    It is not one of the request, since the number of jobs that wait, and the newest image, may
    change until a launch is repeated.
    """
    wish: Sequence[Any] = (asdict(spec), setup and hashlib.sha256(setup).hexdigest(), owner)
    return hashlib.sha256(json.dumps(wish, default=str, sort_keys=True).encode()).hexdigest()


def _instance(order: Order, token: str) -> dict[str, Any]:
    """Return what is said of an instance in both kinds of requests, in the same words."""
    tags = tag_list(order.tags, token)
    request: dict[str, Any] = {
        "ImageId": order.pools[0].image,
        "MetadataOptions": {
            "HttpEndpoint": "enabled",
            "HttpTokens": "required",
            "HttpPutResponseHopLimit": 1,
        },
        "BlockDeviceMappings": [
            _disk(order.root_device, VolumeSize=order.disk_gib, Encrypted=True),
            *(_disk(device, SnapshotId=snapshot) for device, snapshot in order.volumes),
        ],
        "InstanceInitiatedShutdownBehavior": "terminate",
        "TagSpecifications": [
            {"ResourceType": kind, "Tags": tags} for kind in ("instance", "volume")
        ],
    }
    if order.groups:
        request["SecurityGroupIds"] = list(order.groups)
    if order.key_pair:
        request["KeyName"] = order.key_pair
    if order.profile:
        kind = "Arn" if order.profile.startswith("arn:") else "Name"
        request["IamInstanceProfile"] = {kind: order.profile}
    return request


def _disk(device: str, **more: Any) -> dict[str, Any]:
    return {
        "DeviceName": device,
        "Ebs": {"VolumeType": "gp3", "DeleteOnTermination": True, **more},
    }
