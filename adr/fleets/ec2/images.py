"""What instances are made of: their types, and the machine image that goes with each.

The newest images are found through parameters that Canonical and Amazon publish, since the id
of an image is another one in each region and changes every few weeks.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import TYPE_CHECKING

from adr.errors import UsageError
from adr.fleets.ec2.refusals import refusals

if TYPE_CHECKING:
    from mypy_boto3_ec2 import EC2Client
    from mypy_boto3_ssm import SSMClient

__all__ = ["Image", "InstanceType", "find_images", "instance_types", "newest_images"]

#: As EC2 and as Ubuntu call an architecture.
_UBUNTU_NAMES = {"x86_64": "amd64", "arm64": "arm64"}
#: The oldest Ubuntu whose Python adr runs on.
_FIRST_UBUNTU = 22
_UBUNTU = "/aws/service/canonical/ubuntu/server/{}.04/stable/current/{}/hvm/{}/ami-id"
_AMAZON = "/aws/service/ami-amazon-linux-latest/al2023-ami-kernel-default-{}"
#: What SSM takes in one call.
_MOST_NAMES = 10


@dataclass(frozen=True)
class InstanceType:
    """Describe an instance type."""

    name: str
    #: ``x86_64`` or ``arm64``.
    architecture: str
    vcpus: int
    memory_mib: int

    def __str__(self) -> str:
        memory = f"{self.memory_mib / 1024:g} GiB"
        return f"{self.name} ({self.vcpus} vCPU, {memory}, {self.architecture})"


@dataclass(frozen=True)
class Image:
    """Describe a machine image."""

    id: str
    name: str
    architecture: str
    #: Device of the root volume, such as ``/dev/sda1``.
    root_device: str
    #: The least that the root volume must hold.
    size_gib: int


def instance_types(ec2: EC2Client, names: Sequence[str], region: str) -> list[InstanceType]:
    """Return what is known of instance types, in the order in which they were given.

    Raises
    ------
    UsageError
        If the region has no such type, or one on which adr cannot run.
    """
    wanted = list(dict.fromkeys(names))
    with refusals("look for", f"the instance types {', '.join(wanted)}", region):
        # By a filter, which leaves out what there is not instead of refusing all.
        pages = ec2.get_paginator("describe_instance_types").paginate(
            Filters=[{"Name": "instance-type", "Values": wanted}]
        )
        answers = [each for page in pages for each in page["InstanceTypes"]]
    found = {}
    for answer in answers:
        name: str = answer["InstanceType"]
        architectures = answer["ProcessorInfo"]["SupportedArchitectures"]
        usable = [each for each in architectures if each in _UBUNTU_NAMES]
        if not usable:
            raise UsageError(
                f"{name} is of the architecture {' or '.join(architectures)}, for which there is "
                f"no adr: give another --ait"
            )
        vcpus, memory = answer["VCpuInfo"]["DefaultVCpus"], answer["MemoryInfo"]["SizeInMiB"]
        found[name] = InstanceType(name, usable[0], vcpus, memory)
    missing = [name for name in wanted if name not in found]
    if missing:
        raise UsageError(
            f"there is no instance type {' or '.join(missing)} in {region}: give another --ait; "
            f"aws ec2 describe-instance-types lists them"
        )
    return [found[name] for name in wanted]


def newest_images(
    ssm: SSMClient, kind: str, architectures: Iterable[str], region: str
) -> dict[str, str]:
    """Return the id of the newest image for each architecture.

    Parameters
    ----------
    kind : str
        ``"ubuntu"`` (long-term support) or ``"amazon"`` (Amazon Linux 2023).

    Raises
    ------
    UsageError
        If there is none.
    """
    found = {}
    for architecture in architectures:
        names = _parameters(kind, architecture)
        values: dict[str, str] = {}
        for start in range(0, len(names), _MOST_NAMES):
            with refusals("find", f"the newest image of {kind}", region):
                answer = ssm.get_parameters(Names=names[start : start + _MOST_NAMES])
            values.update((each["Name"], each["Value"]) for each in answer["Parameters"])
        newest = next((values[name] for name in names if name in values), None)
        if newest is None:
            raise UsageError(
                f"no image of {kind} for {architecture} is published in {region}: name one "
                f"with --ami"
            )
        found[architecture] = newest
    return found


def _parameters(kind: str, architecture: str) -> list[str]:
    """Return the names of parameters, the newest image first."""
    if kind == "amazon":
        return [_AMAZON.format(architecture)]
    newest = datetime.now(timezone.utc).year % 100
    # A release for long-term support comes in the April of every even year.
    years = range(newest - newest % 2, _FIRST_UBUNTU - 1, -2)
    name = _UBUNTU_NAMES[architecture]
    # The volume type is part of the name only: it was ebs-gp2 until 22.04.
    volumes = ("ebs-gp3", "ebs-gp2")
    return [_UBUNTU.format(year, name, volume) for year in years for volume in volumes]


def find_images(ec2: EC2Client, ids: Sequence[str], region: str) -> dict[str, Image]:
    """Return what is known of machine images, by their ids.

    Raises
    ------
    UsageError
        If there is no such image, or it has no root volume on EBS.
    """
    with refusals("use", f"the machine image {', '.join(ids)}", region):
        answers = ec2.describe_images(ImageIds=list(ids))["Images"]
    found = {}
    for answer in answers:
        root = answer.get("RootDeviceName", "")
        sizes = {
            each.get("DeviceName"): each["Ebs"].get("VolumeSize", 0)
            for each in answer.get("BlockDeviceMappings", ())
            if "Ebs" in each
        }
        if root not in sizes:
            raise UsageError(
                f"the machine image {answer['ImageId']} has no root volume on EBS: give another "
                f"--ami"
            )
        name, architecture = answer.get("Name", ""), answer["Architecture"]
        found[answer["ImageId"]] = Image(answer["ImageId"], name, architecture, root, sizes[root])
    missing = [each for each in ids if each not in found]
    if missing:
        raise UsageError(
            f"there is no machine image {', '.join(missing)} in {region}: give another --ami"
        )
    return found
