"""Launching, stopping, starting and ending the hosts of a runner, across its fleets.

Everything that changes hosts goes through here, so that what `adr.inventory` has registered
are the addresses of hosts that run. Nothing here knows a kind of fleet, but for the table of what
can be asked of which.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from adr.errors import AdrError, PartialFailure, RunnerGone, UsageError
from adr.fleets.base import (
    Demand,
    Fleet,
    Host,
    HostState,
    LaunchPlan,
    LaunchReport,
    Pausable,
    Reached,
)
from adr.fleets.specs import Ec2Spec, LocalSpec, SshSpec
from adr.inventory import HostView, choose, deregister, hosts, register
from adr.keys import setup_key
from adr.orders import read_orders
from adr.progress import Progress
from adr.runner import Runner
from adr.survey import Survey

__all__ = [
    "Spec",
    "demand",
    "dissolve",
    "end_all",
    "fleet_for",
    "launch",
    "logging_in",
    "plan_launch",
    "start",
    "stop",
    "terminate",
]

_log = logging.getLogger(__name__)

#: What can be asked of a fleet.
Spec = Ec2Spec | LocalSpec | SshSpec

#: States of hosts that a launch registers; one whose credentials were renewed may be stopped.
_AT_WORK = (HostState.PENDING, HostState.RUNNING, HostState.UNKNOWN)

_KINDS: dict[type, str] = {Ec2Spec: "ec2", LocalSpec: "local", SshSpec: "ssh"}


def demand(runner: Runner) -> Demand:
    """Say how much work waits, for a fleet that is about to be made."""
    if runner.ledger.depth().empty:
        return Demand()
    survey = Survey(runner)
    # Not what the queue tells: it counts jobs that were called off, and some twice.
    totals = survey.status().totals
    manifests = [each for batch in survey.manifests().values() for each in batch]
    return Demand(
        waiting=totals.queued,
        unpacked_bytes=max((each.unpacked_bytes for each in manifests), default=0),
    )


def plan_launch(runner: Runner, spec: Spec) -> LaunchPlan:
    """Say what a launch would do; changes nothing.

    Raises
    ------
    UsageError
        If this kind of runner has no such hosts, they cannot be had as asked for, or their
        slots would never all get a job.
    RunnerGone
        If the runner has been destroyed.
    """
    fleet = fleet_for(runner, spec)
    if read_orders(runner.store).destroyed:
        raise RunnerGone(f"the runner {runner.id} has been destroyed")
    # Hosts that are named are as many, and as large, as they are.
    plan = fleet.plan(spec, Demand() if isinstance(spec, SshSpec) else demand(runner))
    if plan.slots > runner.most_leased:
        raise UsageError(
            f"{plan.n:,} hosts would run {plan.slots:,} jobs at once, and the queue of a runner "
            f"lends {runner.most_leased:,} at a time: launch fewer, or divide the jobs among "
            f"several runners"
        )
    return plan


def launch(runner: Runner, spec: Spec, plan: LaunchPlan, progress: Progress) -> LaunchReport:
    """Carry out what `plan_launch` has planned, and register the hosts.

    Raises
    ------
    RunnerGone
        If the runner was destroyed meanwhile; what was launched is ended again.
    """
    fleet = fleet_for(runner, spec)
    report = fleet.launch(plan, progress)
    try:
        if not read_orders(runner.store).destroyed:
            at_work = (host for host in report.hosts if host.state in _AT_WORK)
            register(runner.store, (host.address for host in at_work if host.address))
            return report
    except RunnerGone as error:
        _log.debug("%s", error)
    except AdrError as error:
        report.notes.append(f"the addresses of these hosts are not registered: {error}")
        return report
    what = f"the runner {runner.id} was destroyed meanwhile"
    try:
        fleet.terminate(report.hosts, progress)
    except AdrError as error:
        raise RunnerGone(
            f"{what}, and not all that was launched could be ended ({error}): repeat adr destroy "
            f"{runner.id}"
        ) from error
    raise RunnerGone(
        f"{what}: what was launched is ended again; adr destroy {runner.id} removes the rest"
    )


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
    chosen = _to_change(runner, names, lambda view: view.host.state in running, "stop")
    return _change(runner, chosen, "stop", lambda fleet, each: fleet.stop(each, progress))


def start(runner: Runner, names: Sequence[str] | None, progress: Progress) -> list[Host]:
    """Start hosts and workers again, and register them; without names all that do not work.

    Those are the stopped ones, and those whose worker has left or was killed. An instance that
    has ended is gone, and one that runs may be setting itself up: both are left alone.

    Raises as `stop` does.
    """
    resting = (HostState.STOPPED, HostState.STOPPING)
    chosen = _to_change(
        runner, names, lambda view: view.lacks_worker or view.host.state in resting, "start"
    )
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
    views = choose(hosts(runner, strict=True), names)
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


def logging_in(
    runner: Runner, user: str | None, password: str | None, key_filename: str | None
) -> Runner:
    """Return the same runner, whose fleets log in like that where they log in at all.

    Raises
    ------
    UsageError
        If none of them does.
    """
    if user is None and password is None and key_filename is None:
        return runner
    if _KINDS[SshSpec] not in runner.fleets:
        raise UsageError(
            f"the hosts of the runner {runner.id} are not reached over SSH: leave user, password "
            f"and key out"
        )

    def opened(opener: Callable[[], Fleet]) -> Fleet:
        fleet = opener()
        if isinstance(fleet, Reached):
            fleet.login = replace(
                fleet.login, user=user, password=password, key_filename=key_filename
            )
        return fleet

    fleets = {kind: partial(opened, opener) for kind, opener in runner.fleets.items()}
    return replace(runner, fleets=fleets)


def fleet_for(runner: Runner, spec: Spec) -> Fleet:
    """Open the fleet that `spec` asks something of.

    Raises
    ------
    UsageError
        If this kind of runner has none of that kind.
    """
    kind = _KINDS[type(spec)]
    if kind not in runner.fleets:
        if _KINDS[LocalSpec] in runner.fleets:
            raise UsageError(
                f"the runner {runner.id} is a folder of this machine, which other hosts do not "
                f"reach: adr create, without --local, makes one that they reach"
            )
        there = " and ".join(runner.fleets)
        raise UsageError(
            f"the runner {runner.id} has no fleet of the kind {kind}: it has {there}, and adr "
            f"process joins it from any machine that reaches it"
        )
    return runner.fleets[kind]()


def _to_change(
    runner: Runner, names: Sequence[str] | None, concerns: Callable[[HostView], bool], verb: str
) -> list[Host]:
    """Return the hosts that are named, or all of fleets that it concerns."""
    views = hosts(runner, strict=True)
    if names is None:
        found = [view.host for view in views if view.host.fleet and concerns(view)]
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
