"""The hosts of a runner: its fleets, its heartbeats, and what is registered, taken together.

A fleet knows machines or processes, a heartbeat tells of a worker; `hosts` joins them by the
name of the host. Everything that changes hosts goes through here, so that the addresses under
``_workers/`` are those of hosts that run. Nothing here knows a kind of fleet, but for the
table of what can be asked of which.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from adr.errors import AdrError, NotFound, PartialFailure, RunnerGone, UsageError
from adr.fleets.base import (
    Demand,
    Fleet,
    Host,
    HostState,
    LaunchPlan,
    LaunchReport,
    Pausable,
    Telling,
)
from adr.fleets.specs import Ec2Spec, LocalSpec, SshSpec
from adr.keys import SETUP, WORKERS, setup_key
from adr.models import WorkerInfo, time_text
from adr.orders import read_orders
from adr.progress import Progress
from adr.runner import Runner
from adr.stores.base import ObjectStore
from adr.survey import Survey

__all__ = [
    "HostView",
    "Spec",
    "addresses",
    "choose",
    "demand",
    "deregister",
    "dissolve",
    "end_all",
    "fleet_for",
    "hosts",
    "launch",
    "output_of",
    "plan_launch",
    "register",
    "start",
    "stop",
    "terminate",
]

_log = logging.getLogger(__name__)

#: What can be asked of a fleet.
Spec = Ec2Spec | LocalSpec | SshSpec

_KINDS: dict[type, str] = {Ec2Spec: "ec2", LocalSpec: "local", SshSpec: "ssh"}


@dataclass(frozen=True)
class HostView:
    """Show one host: what its fleet knows of it, and what its workers say."""

    host: Host
    workers: tuple[WorkerInfo, ...] = ()
    #: Whether it wrote why it could not be set up, and has no worker.
    setup_failed: bool = False

    @property
    def name(self) -> str:
        """Return what lists and ``--hosts`` call it."""
        return self.host.name

    @property
    def slots(self) -> int:
        """Return how many jobs its workers run at once."""
        return sum(worker.slots for worker in self.workers)

    @property
    def busy(self) -> int:
        """Return how many jobs its workers run now."""
        return sum(len(worker.running) for worker in self.workers)

    @property
    def done(self) -> int:
        """Return how many jobs its workers have settled."""
        return sum(worker.done for worker in self.workers)

    @property
    def note(self) -> str:
        """Return what somebody should know of it, in words."""
        failed = f"setup failed: adr logs --worker={self.name}" if self.setup_failed else ""
        notes = [failed, self.host.note, *(worker.note for worker in self.workers)]
        return "; ".join(dict.fromkeys(note for note in notes if note))

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON object; times as text."""
        data = asdict(self.host)
        del data["bare"]
        return {
            **data,
            "state": self.host.state.value,
            "started_at": time_text(self.host.started_at),
            "slots": self.slots,
            "busy": self.busy,
            "done": self.done,
            "note": self.note,
            "setup_failed": self.setup_failed,
            "workers": [worker.to_dict() for worker in self.workers],
        }


def demand(runner: Runner) -> Demand:
    """Say how much work waits, for a fleet that is about to be made."""
    depth = runner.ledger.depth()
    if depth.empty:
        return Demand()
    manifests = [each for batch in Survey(runner).manifests().values() for each in batch]
    return Demand(
        waiting=depth.waiting + depth.delayed,
        unpacked_bytes=max((each.unpacked_bytes for each in manifests), default=0),
    )


def plan_launch(runner: Runner, spec: Spec) -> LaunchPlan:
    """Say what a launch would do; changes nothing.

    Raises
    ------
    UsageError
        If this kind of runner has no such hosts, or they cannot be had as asked for.
    RunnerGone
        If the runner has been destroyed.
    """
    fleet = fleet_for(runner, spec)
    if read_orders(runner.store).destroyed:
        raise RunnerGone(f"the runner {runner.id} has been destroyed")
    # Hosts that are named are as many, and as large, as they are.
    return fleet.plan(spec, Demand() if isinstance(spec, SshSpec) else demand(runner))


def launch(runner: Runner, spec: Spec, plan: LaunchPlan, progress: Progress) -> LaunchReport:
    """Carry out what `plan_launch` has planned, and register the hosts."""
    report = fleet_for(runner, spec).launch(plan, progress)
    register(runner.store, (host.address for host in report.hosts if host.address))
    return report


def hosts(runner: Runner) -> list[HostView]:
    """Return all hosts of a runner: those of its fleets, and those that joined by themselves.

    A fleet that cannot be asked is left out, with a warning in the log.
    """
    found = []
    for kind in runner.fleets:
        try:
            found += runner.fleets[kind]().hosts()
        except RunnerGone:
            raise
        except AdrError as error:
            _log.warning("the hosts of the fleet %s are not known: %s", kind, error)
    return _joined(runner, found)


def choose(views: Sequence[HostView], names: Sequence[str]) -> list[HostView]:
    """Return the hosts that are named, by their names or addresses, in the order of the list.

    Raises
    ------
    UsageError
        If there is no such host.
    """
    known = {each for view in views for each in (view.name, view.host.address)}
    for name in names:
        if name not in known or not name:
            there = ", ".join(view.name for view in views) or "none"
            raise UsageError(f"the runner has no host {name!r}: it has {there}")
    return [view for view in views if view.name in names or view.host.address in names]


def stop(runner: Runner, names: Sequence[str] | None, progress: Progress) -> list[Host]:
    """Stop hosts, without names all that run, and deregister them; idempotent.

    Raises
    ------
    UsageError
        If there is no such host, or its fleet cannot stop any.
    PartialFailure
        If some could not be stopped; the others are.
    """
    running = (HostState.PENDING, HostState.RUNNING, HostState.STOPPING)
    chosen = _to_change(runner, names, running, "stop")
    return _change(runner, chosen, "stop", lambda fleet, each: fleet.stop(each, progress))


def start(runner: Runner, names: Sequence[str] | None, progress: Progress) -> list[Host]:
    """Start stopped hosts and workers again, without names all of them, and register them.

    Raises as `stop` does.
    """
    chosen = _to_change(runner, names, (HostState.STOPPED, HostState.STOPPING), "start")
    return _change(runner, chosen, "start", lambda fleet, each: fleet.start(each, progress))


def terminate(runner: Runner, names: Sequence[str], progress: Progress) -> list[Host]:
    """End these hosts for good, and forget them; returns what they were.

    Raises
    ------
    UsageError
        If there is no such host, or it is of no fleet.
    PartialFailure
        If some could not be ended; the others are.
    """
    views = choose(hosts(runner), names)
    _refuse_foreign([view for view in views if not view.setup_failed], "end")
    chosen = [view.host for view in views]
    _change(runner, chosen, "end", lambda fleet, each: _ended(fleet, each, progress))
    runner.store.delete(setup_key(host.name) for host in chosen)
    return chosen


def end_all(runner: Runner, progress: Progress) -> tuple[list[Host], dict[str, AdrError]]:
    """End all hosts, whatever else of the runner is gone.

    Returns
    -------
    list of Host, dict
        Those there were, and by fleet what went wrong
    """
    there: list[Host] = []

    def end(fleet: Fleet) -> None:
        found = fleet.hosts()
        there.extend(found)
        fleet.terminate(found, progress)

    return there, _in_fleets(runner, runner.fleets, end)


def dissolve(runner: Runner, kinds: Iterable[str], progress: Progress) -> dict[str, AdrError]:
    """Remove whatever else these fleets have made; returns by fleet what went wrong."""
    return _in_fleets(runner, kinds, lambda fleet: fleet.dissolve(progress))


def output_of(runner: Runner, name: str) -> bytes:
    """Return what a host has said: why it could not be set up, or else what its fleet has.

    Raises
    ------
    UsageError
        If there is no such host.
    AdrError
        If nothing is known of it.
    """
    [view, *_] = choose(hosts(runner), [name])
    try:
        return runner.store.read(setup_key(view.name)).body
    except NotFound:
        pass
    if view.host.fleet:
        fleet = runner.fleets[view.host.fleet]()
        if isinstance(fleet, Telling):
            said = fleet.output(view.host)
            if said:
                return said
    raise AdrError(f"nothing of what {view.name} says is kept here: look at its log on that host")


def register(store: ObjectStore, workers: Iterable[str], prefix: str = WORKERS) -> None:
    """Note the addresses of workers as empty objects; idempotent."""
    for worker in workers:
        store.write(prefix + worker, b"")


def deregister(store: ObjectStore, workers: Iterable[str], prefix: str = WORKERS) -> None:
    """Remove the notes of `register`; idempotent."""
    store.delete(prefix + worker for worker in workers)


def addresses(store: ObjectStore, prefix: str = WORKERS) -> list[str]:
    """Return what is registered."""
    # What adr keeps in folders below the prefix is no address.
    return [entry.key.removeprefix(prefix) for entry in store.list(prefix, flat=True)]


def fleet_for(runner: Runner, spec: Spec) -> Fleet:
    """Open the fleet that `spec` asks something of.

    Raises
    ------
    UsageError
        If this kind of runner has none of that kind.
    """
    kind = _KINDS[type(spec)]
    if kind not in runner.fleets:
        there = " and ".join(runner.fleets)
        raise UsageError(
            f"the runner {runner.id} has no fleet of the kind {kind}: it has {there}, and adr "
            f"process joins it from any machine that reaches it"
        )
    return runner.fleets[kind]()


def _joined(runner: Runner, found: Sequence[Host]) -> list[HostView]:
    """Put hosts, heartbeats and notes of failed setups together."""
    workers: dict[str, list[WorkerInfo]] = {}
    for info in runner.roster.alive():
        workers.setdefault(info.host, []).append(info)
    failed = {
        entry.key.removeprefix(SETUP).removesuffix(".log") for entry in runner.store.list(SETUP)
    }
    views = []
    for host in found:
        # Over SSH an instance is known by its address.
        infos = [
            info for name in {host.name, host.address} for info in workers.pop(name, ()) if name
        ]
        views.append(HostView(host, tuple(infos), not infos and host.name in failed))
    known = {view.name for view in views}
    for name in sorted(failed - known - workers.keys()):
        gone = Host(name, next(iter(runner.fleets), ""), HostState.ENDED)
        views.append(HostView(gone, setup_failed=True))
    for name, own in workers.items():
        began = min(info.started_at for info in own)
        host = Host(name, "", HostState.RUNNING, started_at=began)
        views.append(HostView(host, tuple(own)))
    return views


def _to_change(
    runner: Runner, names: Sequence[str] | None, states: Sequence[HostState], verb: str
) -> list[Host]:
    """Return the hosts that are named, or all of fleets that are in one of these states."""
    views = hosts(runner)
    if names is None:
        found = [view.host for view in views if view.host.fleet and view.host.state in states]
    else:
        chosen = choose(views, names)
        _refuse_foreign(chosen, verb)
        found = [view.host for view in chosen]
    for kind in dict.fromkeys(host.fleet for host in found):
        if not isinstance(runner.fleets[kind](), Pausable):
            raise UsageError(
                f"the fleet {kind} cannot {verb} its hosts: adr destroy --hosts ends them"
            )
    return found


def _refuse_foreign(views: Sequence[HostView], verb: str) -> None:
    for view in views:
        if not view.host.fleet:
            raise UsageError(
                f"adr cannot {verb} {view.name}, whose worker was started by hand: end it there"
            )


def _change(
    runner: Runner,
    chosen: Sequence[Host],
    verb: str,
    act: Callable[[Any, list[Host]], list[Host]],
) -> list[Host]:
    """Do something with hosts, fleet by fleet; keep what is registered true; raise at the end."""
    done: list[Host] = []
    succeeded: list[str] = []
    trouble: dict[str, AdrError] = {}
    for kind in dict.fromkeys(host.fleet for host in chosen):
        fleet, own = runner.fleets[kind](), [host for host in chosen if host.fleet == kind]
        try:
            done += act(fleet, own)
            succeeded += [host.name for host in own]
        except PartialFailure as error:
            trouble.update(dict.fromkeys(error.failed, error))
            succeeded += error.succeeded
        except AdrError as error:
            trouble.update((host.name, error) for host in own)
        _register_those_that_run(runner, fleet, own)
    if trouble:
        errors = list(dict.fromkeys(trouble.values()))
        if len(errors) == 1 and not succeeded:
            raise errors[0]
        said = "; ".join(map(str, errors))
        raise PartialFailure(f"could not {verb} all hosts: {said}", succeeded, list(trouble))
    return done


def _register_those_that_run(runner: Runner, fleet: Fleet, before: Sequence[Host]) -> None:
    """Register and deregister hosts by what has become of them; addresses may have changed."""
    names = {host.name for host in before}
    try:
        now = [host for host in fleet.hosts() if host.name in names]
    except AdrError as error:
        # What has become of the hosts is more important to hear.
        _log.warning("the addresses of workers may be out of date: %s", error)
        return
    running = {host.address for host in now if host.address and host.state is HostState.RUNNING}
    deregister(runner.store, {host.address for host in before if host.address} - running)
    register(runner.store, running)


def _ended(fleet: Fleet, chosen: list[Host], progress: Progress) -> list[Host]:
    fleet.terminate(chosen, progress)
    return chosen


def _in_fleets(
    runner: Runner, kinds: Iterable[str], act: Callable[[Fleet], object]
) -> dict[str, AdrError]:
    trouble: dict[str, AdrError] = {}
    for kind in kinds:
        try:
            act(runner.fleets[kind]())
        except RunnerGone as error:
            # A fleet that is remembered in the store is gone with it.
            _log.debug("the fleet %s is gone with its runner: %s", kind, error)
        except AdrError as error:
            trouble[kind] = error
    return trouble
