"""What can be asked of each kind of fleet: plain data, so that nothing slow is imported for it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["Ec2Spec", "LocalSpec", "SshSpec", "Volume", "WorkerOptions"]


@dataclass(frozen=True)
class WorkerOptions:
    """Say how the workers of a fleet behave; the same in all fleets."""

    #: Jobs at once; None: one per core.
    slots: int | None = None
    #: Minutes with nothing to do after which a worker leaves.
    idle_min: float = 10.0
    #: Hours after which a host has ended, whatever it does; None: no limit.
    max_hours: float | None = None
    #: Never leave by itself: the two above do not count.
    keep: bool = False


@dataclass(frozen=True)
class LocalSpec:
    """Ask for worker processes on this machine."""

    #: None: as many as fill the cores of this machine.
    n: int | None = 1
    worker: WorkerOptions = field(default_factory=WorkerOptions)


@dataclass(frozen=True)
class Volume:
    """Ask for a data volume."""

    #: EBS snapshot that it is made from, ``snap-…``.
    snapshot: str
    #: Absolute path at which it is mounted.
    mount: str


@dataclass(frozen=True)
class Ec2Spec:
    """Ask for instances of EC2."""

    #: None: as many as the waiting jobs ask for.
    n: int | None = 1
    #: Most instances where `n` is None.
    most: int = 10
    #: Instance types, the preferred one first.
    types: tuple[str, ...] = ("c7i.large",)
    #: Machine image; None: the newest of `image`.
    ami: str | None = None
    #: ``"ubuntu"`` or ``"amazon"``.
    image: str = "ubuntu"
    #: Ids of security groups; empty: one is made for the runner.
    groups: tuple[str, ...] = ()
    #: Name of a key pair; None: none.
    key_pair: str | None = None
    #: Id of a subnet; None: those of the default VPC.
    subnet: str | None = None
    #: Ask for spot instances.
    spot: bool = False
    #: Take on-demand instances where there are not enough spot instances.
    fallback: bool = False
    #: Size of the root volume in GiB; None: by what is to be unpacked.
    disk_gib: int | None = None
    volumes: tuple[Volume, ...] = ()
    #: Script that is run as root before the first job.
    setup: Path | None = None
    #: Instance profile; None: one is made for the runner.
    instance_profile: str | None = None
    #: Whether jobs may use the role of the instance.
    aws_for_jobs: bool = False
    #: Further options of pip, such as an index.
    pip_options: str = ""
    #: To be set up by ``adr prepare`` over SSH: no role, and SSH is open to this machine.
    prepare: bool = False
    worker: WorkerOptions = field(default_factory=WorkerOptions)


@dataclass(frozen=True)
class SshSpec:
    """Ask for workers on machines that are reached over SSH."""

    #: Names as ssh knows them, ``[user@]host[:port]``.
    hosts: tuple[str, ...]
    user: str | None = None
    #: Also the passphrase of the key.
    password: str | None = field(default=None, repr=False)
    key_filename: str | None = None
    #: Longest time in seconds for a host.
    timeout_s: float = 600.0
    #: Script that is run on each host before its worker is started.
    setup: Path | None = None
    pip_options: str = ""
    #: Hand over only new credentials; install and start nothing.
    renew: bool = False
    #: Hours for which credentials are lent.
    credential_hours: float = 12.0
    #: Hand over the caller's own keys instead.
    copy_credentials: bool = False
    #: Whether the hosts become a fleet of the runner; those of another fleet do not.
    remember: bool = True
    worker: WorkerOptions = field(default_factory=WorkerOptions)
