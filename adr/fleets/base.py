"""The seam between a runner and the machines or processes on which its workers run.

A fleet never runs jobs. It starts ``adr process RUNNER`` somewhere and ends it again; what a
job needs is the worker's business alone. `adr.launching` joins the fleets of a runner with the
heartbeats of its workers: a worker calls its host by the name that the fleet gave it.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from adr.fleets.specs import WorkerOptions
from adr.progress import Progress

__all__ = [
    "Admitting",
    "Demand",
    "Fleet",
    "Host",
    "HostState",
    "LaunchPlan",
    "LaunchReport",
    "Pausable",
    "Reached",
    "Remembering",
    "Telling",
    "process_words",
]


class HostState(str, enum.Enum):
    """Where a host is in its life."""

    #: It has been asked for and does not run yet.
    PENDING = "pending"
    #: It runs; whether its worker does is told by the heartbeat.
    RUNNING = "running"
    #: It is about to be stopped.
    STOPPING = "stopping"
    #: It can be started again.
    STOPPED = "stopped"
    #: It is about to be gone.
    ENDING = "ending"
    #: It is gone.
    ENDED = "ended"
    #: Nothing is known of it now, or the fleet speaks of a state that adr does not know.
    UNKNOWN = "unknown"

    def __str__(self) -> str:
        return self.value


@dataclass(frozen=True)
class Host:
    """Describe one machine, or one process, on which a worker runs."""

    #: What lists and ``--hosts`` call it: an instance id, the name for SSH, ``local-3``.
    name: str
    #: Kind of the fleet that it belongs to.
    fleet: str
    state: HostState
    #: Where it is reached from here: public IP address or name for SSH; empty where it is not.
    address: str = ""
    #: Instance type; empty where there is no such thing.
    type: str = ""
    #: ``"spot"`` or ``"on-demand"``; empty where nothing is paid.
    market: str = ""
    #: When it was launched or last started.
    started_at: float | None = None
    #: What somebody should know of it, in words.
    note: str = ""
    #: User by whom ``adr prepare`` sets it up; empty where it sets itself up.
    login: str = ""


@dataclass(frozen=True)
class Demand:
    """Say how much work there is for hosts that are about to be launched."""

    #: Jobs that nobody runs yet.
    waiting: int = 0
    #: Size of the largest batch once it is unpacked, 0 where nothing is queued.
    unpacked_bytes: int = 0


@dataclass(frozen=True)
class LaunchPlan:
    """Say what would be launched."""

    #: How many hosts.
    n: int
    #: What they will be, for people: label and text.
    lines: tuple[tuple[str, str], ...]
    #: The same for programs.
    data: Mapping[str, Any]
    #: What the fleet needs to carry it out; nobody else reads it.
    request: Any
    #: Dollars an hour for all of them; None where that cannot be had.
    hourly_usd: float | None = None
    #: How many jobs they would run at once, all together, as far as that is known.
    slots: int = 0


@dataclass
class LaunchReport:
    """Tell what was launched."""

    wanted: int
    hosts: list[Host] = field(default_factory=list)
    #: Sentences that somebody should read.
    notes: list[str] = field(default_factory=list)
    #: Hosts that could not be had, and why.
    failed: dict[str, str] = field(default_factory=dict)


class Fleet(Protocol):
    """Start workers somewhere and end them again.

    Constructors open nothing. Every method blocks until the fleet has answered, and raises
    `ServiceError` where it refuses or cannot be reached. Where some of many hosts fail the
    others are dealt with all the same, and `PartialFailure` names both.
    """

    #: What this kind of fleet is called, in lists and messages.
    kind: str

    def plan(self, spec: Any, demand: Demand) -> LaunchPlan:
        """Say what a launch would do; changes nothing.

        Parameters
        ----------
        spec
            What is wanted, from `adr.fleets.specs`; each kind of fleet has its own.

        Raises
        ------
        UsageError
            If it cannot be had: which value is wrong, and what to do.
        """

    def launch(self, plan: LaunchPlan, progress: Progress) -> LaunchReport:
        """Carry out a plan and wait until the hosts run.

        A call that is repeated after its answer was lost creates nothing twice.
        """

    def hosts(self) -> list[Host]:
        """Return the hosts of this runner, also stopped ones, in the order of their launch."""

    def terminate(self, hosts: Sequence[Host], progress: Progress) -> None:
        """End hosts for good and wait until they are gone; idempotent."""

    def dissolve(self, progress: Progress) -> None:
        """Remove whatever else was made for this runner, and prove that nothing is left.

        To be called when the runner is destroyed and its hosts are gone; idempotent.

        Raises
        ------
        AdrError
            If something is left: what, and how to remove it.
        """


@runtime_checkable
class Pausable(Protocol):
    """Let a fleet's hosts rest: a capability that not every fleet has."""

    def stop(self, hosts: Sequence[Host], progress: Progress) -> list[Host]:
        """End the workers in good order so that `start` can start them again; idempotent.

        Returns the hosts as they are afterwards.
        """

    def start(self, hosts: Sequence[Host], progress: Progress) -> list[Host]:
        """Start stopped hosts, and their workers, again; idempotent.

        Returns the hosts as they are afterwards: addresses may have changed.
        """


@runtime_checkable
class Reached(Protocol):
    """Be reached over SSH: a capability that not every fleet has."""

    #: How to log in where the caller knows better than the fleet: `adr.remote.Login`.
    login: Any


@runtime_checkable
class Admitting(Protocol):
    """Keep its hosts shut to all but those who set them up: a capability of some fleets."""

    def let_in(self) -> None:
        """Let this machine log in to hosts that wait to be set up; idempotent."""


@runtime_checkable
class Telling(Protocol):
    """Give what a host has said: a capability that not every fleet has."""

    def output(self, host: Host) -> bytes | None:
        """Return what the worker, or else the machine, has said; None where that is not known."""


@runtime_checkable
class Remembering(Protocol):
    """Know hosts that are not there any more: a capability that not every fleet has."""

    def former(self, name: str) -> Host | None:
        """Return a host of this runner that has ended; None where it is not known, or not now."""

    def ended(self) -> list[Host]:
        """Return the hosts that ended of late by themselves: nobody has asked for it."""


def process_words(
    runner_id: str, options: WorkerOptions, *, host: str, **more: str | None
) -> list[str]:
    """Return the words after ``adr`` that start a worker of a fleet.

    Parameters
    ----------
    runner_id : str
        Id of the runner.
    options : WorkerOptions
        How the worker is to behave.
    host : str
        What the fleet calls the host.
    **more
        Further options by their names, with underscores; None leaves one out, an empty text
        gives one without a value.

    Examples
    --------
    >>> process_words("/data/runner", WorkerOptions(slots=2), host="local-1", region=None)
    ['process', '--host=local-1', '--slots=2', '--idle=10', '/data/runner']
    """
    words = ["process", f"--host={host}"]
    if options.slots is not None:
        words.append(f"--slots={options.slots}")
    if not options.keep:
        words.append(f"--idle={options.idle_min:g}")
        if options.max_hours is not None:
            words.append(f"--max-hours={options.max_hours:g}")
    for name, value in more.items():
        if value is not None:
            option = "--" + name.replace("_", "-")
            words.append(f"{option}={value}" if value else option)
    return [*words, runner_id]
