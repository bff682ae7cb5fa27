"""How many instances, and how large: the arithmetic of a launch on EC2."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

from adr.errors import UsageError
from adr.fleets.base import Demand
from adr.fleets.ec2.images import Image, InstanceType
from adr.fleets.specs import Ec2Spec
from adr.keys import install_key

__all__ = ["DEVICES", "check_wish", "disk_gib", "number_of_instances", "setup_of", "slots_of"]

#: Names under which EC2 attaches data volumes.
DEVICES = tuple(f"/dev/sd{letter}" for letter in "fghijklmnop")

_GIB = 2**30
_SYSTEM_GIB = 8
_RESULTS_GIB = 10
_LEAST_GIB = 20
#: What a file system needs for itself, and each file for its last block.
_SPARE = 1.2
_SETUP_NAME = "setup"


def check_wish(spec: Ec2Spec) -> None:
    """Refuse what cannot be meant, with `UsageError`."""
    if spec.n is not None and spec.n < 1:
        raise UsageError(f"cannot launch {spec.n} instances: give a number from 1 up")
    if not spec.types:
        raise UsageError("no instance type is given: name one with --ait")
    if len(spec.volumes) > len(DEVICES):
        raise UsageError(
            f"{len(spec.volumes)} data volumes are too many: an instance takes {len(DEVICES)}"
        )
    if spec.prepare and spec.volumes:
        raise UsageError(
            "adr prepare mounts no data volumes: launch without --volume, or without --prepare"
        )


def setup_of(spec: Ec2Spec) -> tuple[str, bytes] | None:
    """Return key and content of the user's own script."""
    if spec.setup is None:
        return None
    try:
        body = spec.setup.read_bytes()
    except OSError as error:
        raise UsageError(f"cannot read --setup={spec.setup}: {error.strerror}") from error
    return install_key(hashlib.sha256(body).hexdigest(), _SETUP_NAME), body


def slots_of(spec: Ec2Spec, types: Sequence[InstanceType]) -> tuple[int, int]:
    """Return how many jobs an instance runs at once, at least and at most."""
    vcpus = [each.vcpus for each in types]
    return spec.worker.slots or min(vcpus), spec.worker.slots or max(vcpus)


def number_of_instances(spec: Ec2Spec, demand: Demand, types: Sequence[InstanceType]) -> int:
    """Return how many instances: as asked for, or as the waiting jobs ask for."""
    if spec.n is not None:
        return spec.n
    fewest, _ = slots_of(spec, types)
    return min(max(1, -(-demand.waiting // fewest)), spec.most)


def disk_gib(spec: Ec2Spec, demand: Demand, types: Sequence[InstanceType], image: Image) -> int:
    """Return the size of the root volume: as asked for, or with room for a copy in each slot."""
    if spec.disk_gib is not None:
        if spec.disk_gib < image.size_gib:
            raise UsageError(
                f"a disk of {spec.disk_gib} GiB is too small for the machine image {image.id}, "
                f"which needs {image.size_gib} GiB: give a larger --disk, or none"
            )
        return spec.disk_gib
    _, most = slots_of(spec, types)
    copies = math.ceil(most * demand.unpacked_bytes * _SPARE / _GIB)
    return max(_SYSTEM_GIB + copies + _RESULTS_GIB, _LEAST_GIB, image.size_gib)
