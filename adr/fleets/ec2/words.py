"""How the plan of a launch on EC2 is told: in lines for people, and as data for programs."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from adr.fleets.ec2.images import Image, InstanceType
from adr.fleets.ec2.requests import Order
from adr.fleets.specs import WorkerOptions

__all__ = ["Facts"]


@dataclass(frozen=True, kw_only=True)
class Facts:
    """Hold what there is to say of a launch."""

    region: str
    order: Order
    types: tuple[InstanceType, ...]
    images: tuple[Image, ...]
    #: None: those of the default VPC.
    subnet: str | None
    vpc: str
    zones: tuple[str, ...]
    #: Whether instances get public addresses in all of the subnets.
    has_public_addresses: bool
    #: Snapshot, size in GiB and mount point of each data volume.
    volumes: tuple[tuple[str, int, str], ...]
    #: Name of the group that is made for the runner.
    group: str | None
    #: Name or ARN of the instance profile.
    profile: str | None
    is_prepared: bool
    setup: Path | None
    worker: WorkerOptions
    #: For all instances; None where it is not known.
    hourly_usd: float | None

    def lines(self) -> tuple[tuple[str, str], ...]:
        """Return labels and texts."""
        order = self.order
        lines = [
            ("instances", f"{order.n} in {self.region}"),
            ("type", " or ".join(map(str, self.types))),
            *(("image", f"{image.id} {image.name}".strip()) for image in self.images),
            ("market", self._market()),
            ("disk", f"{order.disk_gib} GiB, encrypted"),
            *(
                ("volume", f"{snapshot}, {size} GiB, at {mount}")
                for snapshot, size, mount in self.volumes
            ),
            ("network", self._network()),
            ("security", self._security()),
            ("key pair", order.key_pair or "none"),
            ("role", self._role()),
        ]
        if self.setup is not None:
            lines.append(("setup", str(self.setup)))
        lines.append(("end", self._end()))
        lines.append(("price", self._price()))
        return tuple(lines)

    def data(self) -> dict[str, Any]:
        """Return a JSON object."""
        order = self.order
        return {
            "fleet": "ec2",
            "region": self.region,
            "instances": order.n,
            "types": [asdict(each) for each in self.types],
            "images": [asdict(each) for each in self.images],
            "spot": order.spot,
            "fallback": order.fallback,
            "disk_gib": order.disk_gib,
            "volumes": [
                {"snapshot": snapshot, "size_gib": size, "mount": mount}
                for snapshot, size, mount in self.volumes
            ],
            "vpc": self.vpc,
            "subnet": self.subnet,
            "zones": list(self.zones),
            "security_groups": list(order.groups),
            "own_security_group": self.group,
            "key_pair": order.key_pair,
            "instance_profile": self.profile,
            "prepare": self.is_prepared,
            "setup": None if self.setup is None else str(self.setup),
            "worker": asdict(self.worker),
            "tags": dict(order.tags),
            "user_data_bytes": len(order.user_data),
            "hourly_usd": self.hourly_usd,
        }

    def _market(self) -> str:
        if not self.order.spot:
            return "on demand"
        return "spot, or else on demand" if self.order.fallback else "spot"

    def _network(self) -> str:
        zones = ", ".join(self.zones)
        place = f"subnet {self.subnet} in {zones}" if self.subnet else f"default VPC, {zones}"
        return place if self.has_public_addresses else f"{place}, without public addresses"

    def _security(self) -> str:
        if self.group is None:
            return f"groups {', '.join(self.order.groups)}"
        way = "SSH from this machine's address" if self.is_prepared else "no way in"
        return f"group {self.group}: {way}"

    def _role(self) -> str:
        if self.is_prepared:
            return "none: adr prepare hands over credentials"
        return f"instance profile {self.profile}"

    def _end(self) -> str:
        worker = self.worker
        if worker.keep:
            return "when terminated by adr destroy"
        if self.is_prepared:
            # What its worker is told, adr prepare says.
            return "once its prepared worker has left, or after an hour without a sign of one"
        end = f"when nothing is left to do, or after {worker.idle_min:g} min with nothing waiting"
        return end if worker.max_hours is None else f"{end}, or after {worker.max_hours:g} h"

    def _price(self) -> str:
        if self.hourly_usd is None:
            return "not known"
        about = "about " if self.order.is_fleet else ""
        digits = 2 if self.hourly_usd >= 1 else 4
        return f"{about}{self.hourly_usd:.{digits}f} USD an hour for the instances"
