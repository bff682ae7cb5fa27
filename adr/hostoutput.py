"""How the console shows hosts: plans, launches and lists, as text and as JSON."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from adr.output import count, duration_text, plain, print_table
from adr.times import time_text

if TYPE_CHECKING:
    from adr.fleets.base import Host, LaunchPlan, LaunchReport
    from adr.fleets.ec2.orphans import Orphan
    from adr.inventory import HostView

__all__ = [
    "change_lines",
    "cost_lines",
    "failure_lines",
    "host_data",
    "orphan_data",
    "orphan_lines",
    "plan_data",
    "plan_lines",
    "print_addresses",
    "print_hosts",
    "print_orphans",
    "report_data",
]


def plan_lines(plan: LaunchPlan) -> Iterator[str]:
    """Describe what would be launched."""
    width = max((len(label) for label, _ in plan.lines), default=0)
    for label, text in plan.lines:
        yield f"{label:{width}}  {plain(text)}"


def plan_data(plan: LaunchPlan) -> dict[str, Any]:
    """Return what would be launched, for JSON."""
    return {"n": plan.n, **plan.data, "hourly_usd": plan.hourly_usd}


def cost_lines(plan: LaunchPlan) -> Iterator[str]:
    """Say what is about to be paid, where that is known."""
    if plan.hourly_usd is not None:
        price = f"{plan.hourly_usd:.{2 if plan.hourly_usd >= 1 else 4}f} USD an hour"
        yield f"launching {count(plan.n, 'host')} for about {price}; disks and traffic come extra"


def failure_lines(report: LaunchReport, verb: str) -> Iterator[str]:
    """Name each host that is not there, and why."""
    for name, why in report.failed.items():
        yield f"adr: could not {verb} {plain(name)}: {plain(why)}"


def report_data(report: LaunchReport) -> dict[str, Any]:
    """Return what was launched, for JSON."""
    return {
        "wanted": report.wanted,
        "hosts": list(map(host_data, report.hosts)),
        "failed": dict(report.failed),
        "notes": list(report.notes),
    }


def host_data(host: Host) -> dict[str, Any]:
    """Return a host, for JSON; times as text."""
    data = asdict(host)
    del data["login"]
    return {**data, "state": host.state.value, "started_at": time_text(host.started_at)}


def change_lines(hosts: Sequence[Host], verb: str) -> Iterator[str]:
    """Say what became of hosts that were to be started or stopped."""
    if not hosts:
        yield f"there is nothing to {verb}"
    for host in hosts:
        # Nothing on such an instance starts a worker by itself.
        rest = "adr prepare starts its worker" if host.login and verb == "start" else ""
        notes = "; ".join(note for note in (host.note, rest) if note)
        yield f"{plain(host.name)}: {host.state}{f' ({plain(notes)})' if notes else ''}"


def print_addresses(hosts: Iterable[Host]) -> None:
    """Print one address a line; of a host without any the name."""
    for host in hosts:
        print(plain(host.address or host.name))


def print_hosts(views: Sequence[HostView]) -> None:
    """Print one line per host."""
    now = time.time()
    header = ["HOST", "ADDRESS", "STATE", "TYPE", "MARKET", "AGE", "SLOTS", "DONE", "NOTE"]
    rows = []
    for view in views:
        host = view.host
        age = "" if host.started_at is None else duration_text(max(now - host.started_at, 0))
        state = "setup failed" if view.setup_failed else host.state.value
        slots = f"{view.busy}/{view.slots}" if view.workers else "-"
        done = f"{view.done:,}" if view.workers else ""
        rows.append(
            [host.name, host.address, state, host.type, host.market, age, slots, done, view.note]
        )
    # Of hosts of one's own there are neither addresses nor types.
    shown = [n for n in range(len(header)) if n < 3 or any(row[n] for row in rows)]
    shown = [n for n in shown if n != 1 or any(row[1] and row[1] != row[0] for row in rows)]
    print_table([header[n] for n in shown], [[row[n] for n in shown] for row in rows])


def print_orphans(orphans: Iterable[Orphan]) -> None:
    """Print one line per instance without a runner."""
    now = time.time()
    rows = []
    for each in orphans:
        host = each.host
        age = "" if host.started_at is None else duration_text(max(now - host.started_at, 0))
        rows.append(
            [host.name, each.region, host.state.value, host.type, age, each.runner_id, each.owner]
        )
    print_table(["HOST", "REGION", "STATE", "TYPE", "AGE", "RUNNER", "OWNER"], rows)


def orphan_lines(orphans: Sequence[Orphan], everywhere: bool) -> Iterator[str]:
    """Say how instances without a runner are ended, or that there are none."""
    if not orphans:
        where = "" if everywhere else " in the regions that could be asked"
        yield f"there are no instances without a runner{where}"
    for runner, region in dict.fromkeys((each.runner_id, each.region) for each in orphans):
        yield f"to end them: adr destroy --region={region} {plain(runner)}"


def orphan_data(orphan: Orphan) -> dict[str, Any]:
    """Return an instance without a runner, for JSON."""
    return {
        "region": orphan.region,
        "runner": orphan.runner_id,
        "owner": orphan.owner,
        **host_data(orphan.host),
    }
