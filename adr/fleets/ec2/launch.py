"""Carrying out a launch on EC2: what is needed first, then the call, then the wait."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from adr.access import ensure_profile
from adr.aws import Connection
from adr.errors import AdrError
from adr.fleets.base import HostState, LaunchReport
from adr.fleets.ec2.groups import ensure_group, own_address
from adr.fleets.ec2.instances import as_host, await_states, find, state_of, why_it_ended
from adr.fleets.ec2.launchnotes import noted
from adr.fleets.ec2.plan import Draft
from adr.fleets.ec2.requests import LAUNCH, Order
from adr.fleets.ec2.sending import Sender
from adr.progress import Progress
from adr.stores.base import ObjectStore
from adr.wheel import publish_wheel

if TYPE_CHECKING:
    from mypy_boto3_ec2 import EC2Client

__all__ = ["carry_out"]

_RUNNING_WITHIN_S = 600.0
_ON_THE_WAY = (None, HostState.PENDING, HostState.UNKNOWN)
_GONE = (HostState.ENDING, HostState.ENDED)


def carry_out(
    connection: Connection, store: ObjectStore, draft: Draft, fleet: str, progress: Progress
) -> LaunchReport:
    """Launch what was planned and wait until it runs; see `adr.fleets.base.Fleet.launch`."""
    _ = connection.queue_url
    region = connection.region
    ec2: EC2Client = connection.service("ec2")

    def launched(token: str) -> Sequence[Mapping[str, Any]]:
        return find(ec2, region, **{f"tag_{LAUNCH}": [token]})

    report = LaunchReport(draft.order.n)
    progress.start("launching", draft.order.n, "instances")
    try:
        with noted(store, draft.fingerprint, launched) as before:
            instances = list(before.instances)
            if instances:
                report.notes.append(
                    f"{len(instances)} instances are those of an identical launch "
                    f"{_ago(before.age_s)} that was cut off or is under way; nothing else was "
                    f"launched: launch again for more"
                )
            else:
                if before.age_s is not None:
                    report.notes.append(
                        f"an identical launch {_ago(before.age_s)} was cut off or is under way, "
                        f"and this one launches the same instances: launch again for more"
                    )
                order = _prepared(connection, store, draft, ec2)
                sender = Sender(ec2, region, order, before.token, launched, report.notes)
                instances = sender.send()
            _await_running(ec2, region, instances, fleet, report, progress)
    finally:
        progress.finish()
    if len(instances) < report.wanted:
        report.notes.append(f"{len(instances)} of {report.wanted} instances were to be had")
    return report


def _prepared(connection: Connection, store: ObjectStore, draft: Draft, ec2: EC2Client) -> Order:
    """Make what the instances need, and return the order with it."""
    order = draft.order
    if draft.group is not None:
        address = own_address() if draft.ssh else None
        group = ensure_group(ec2, draft.group, draft.vpc, order.tags, connection.region, address)
        order = replace(order, groups=(group,))
    if draft.own_profile:
        order = replace(order, profile=ensure_profile(connection))
    if draft.wheel is not None:
        publish_wheel(store, draft.wheel)
    if draft.setup is not None:
        key, body = draft.setup
        store.write(key, body)
    return order


def _ago(age_s: float | None) -> str:
    return f"of {age_s or 0:.0f} s ago"


def _await_running(
    ec2: EC2Client,
    region: str,
    instances: list[str],
    fleet: str,
    report: LaunchReport,
    progress: Progress,
) -> None:
    """Wait until instances run, and add them to a report; those that do not with their reason."""
    try:
        known = await_states(
            ec2,
            instances,
            lambda state: state not in _ON_THE_WAY,
            progress,
            _RUNNING_WITHIN_S,
            region,
        )
    except AdrError as error:
        # They are launched all the same, and cost money: whoever has asked for them is told.
        report.notes.append(f"whether {', '.join(instances)} run is not known: {error}")
        report.hosts += [as_host({"InstanceId": name}, fleet) for name in instances]
        return
    late = []
    for name in instances:
        instance = known.get(name, {"InstanceId": name})
        state = state_of(instance)
        if state in _GONE:
            report.failed[name] = f"it has ended at once: {why_it_ended(instance)}"
            continue
        if state in _ON_THE_WAY:
            late.append(name)
        report.hosts.append(as_host(instance, fleet))
    if late:
        report.notes.append(
            f"{', '.join(late)} did not run within {_RUNNING_WITHIN_S / 60:.0f} minutes: adr "
            f"list shows when they do"
        )
