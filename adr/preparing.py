"""Which hosts are set up over SSH, and under which names: hosts of one's own, and instances.

The fleet over SSH does the work. An instance stays with its own fleet and is reached by its
address; a host of one's own is remembered, so that it can be stopped and started like others.
"""

from __future__ import annotations

from dataclasses import replace

from adr.errors import AdrError, UsageError
from adr.fleets.base import Admitting, HostState, LaunchReport
from adr.fleets.specs import SshSpec
from adr.inventory import hosts
from adr.launching import fleet_for, launch, plan_launch
from adr.progress import Progress
from adr.runner import Runner

__all__ = ["prepare"]

_SSH = "ssh"


def prepare(runner: Runner, spec: SshSpec, progress: Progress) -> LaunchReport:
    """Set up hosts over SSH and start their workers.

    Parameters
    ----------
    runner : Runner
        Whose hosts they are, or become.
    spec : SshSpec
        What is wanted. Without hosts, those of the runner: remembered ones, and instances that
        were launched to be prepared.

    Raises
    ------
    UsageError
        If there are no hosts, or they cannot be set up as asked for.
    """
    # First, so that a runner that has no such hosts says that and nothing else.
    fleet_for(runner, spec)
    wishes, report = _wishes(runner, spec)
    for wish, plan in [(wish, plan_launch(runner, wish)) for wish in wishes]:
        part = launch(runner, wish, plan, progress)
        report.wanted += part.wanted
        report.hosts += part.hosts
        report.notes += part.notes
        report.failed.update(part.failed)
    return report


def _wishes(runner: Runner, spec: SshSpec) -> tuple[list[SshSpec], LaunchReport]:
    """Return what to ask of the fleet over SSH, and a report that says why some hosts are not."""
    report = LaunchReport(0)
    unknown = list(dict.fromkeys(spec.hosts))
    own: list[str] = []
    kinds: list[str] = []
    bare: dict[str, list[str]] = {}
    views = hosts(runner)
    for host in [view.host for view in views if view.host.fleet]:
        names = {host.name, host.address}
        if spec.hosts and not names & set(spec.hosts):
            continue
        unknown = [name for name in unknown if name not in names]
        if host.fleet == _SSH:
            own.append(host.name)
        elif not host.login:
            report.notes.append(f"{host.name} sets itself up and needs no preparation")
        elif host.state is HostState.RUNNING and host.address:
            bare.setdefault(host.login, []).append(host.address)
            kinds.append(host.fleet)
        else:
            report.notes.append(f"{host.name} is {host.state}: prepare it once it runs")
    for kind in dict.fromkeys(kinds):
        fleet = runner.fleets[kind]()
        if isinstance(fleet, Admitting):
            try:
                fleet.let_in()
            except AdrError as error:
                # It may be let in already.
                report.notes.append(f"SSH may be closed to this machine: {error}")
    own += unknown
    if not (own or bare or report.notes):
        for why in views.not_known.values():
            raise why
        raise UsageError(
            "the runner has no hosts to prepare: name some with --hosts, or launch instances "
            "with adr launch --prepare"
        )
    asked = [(own, True, spec.user)]
    asked += [(names, False, spec.user or login) for login, names in bare.items()]
    wishes = [
        replace(spec, hosts=tuple(names), remember=remember, user=user)
        for names, remember, user in asked
        if names
    ]
    return wishes, report
