"""Instances as EC2 tells of them: finding, reading and changing many at once.

EC2 tells of a new instance everywhere only after some seconds, and refuses a whole call for one
id that it does not know. So instances are looked for by filters, which find what is there, and
a call that is refused for many is tried for each of them.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from adr.errors import AdrError, Unavailable
from adr.fleets.base import Host, HostState
from adr.fleets.ec2.refusals import refusals
from adr.progress import Progress

if TYPE_CHECKING:
    from mypy_boto3_ec2 import EC2Client

__all__ = [
    "LOGINS",
    "PREPARE",
    "as_host",
    "await_states",
    "change",
    "find",
    "find_ids",
    "market",
    "state_of",
    "tags_of",
    "was_asked_to_end",
    "why_it_ended",
]

_log = logging.getLogger(__name__)

Instance = Mapping[str, Any]

#: Tag of instances that wait for ``adr prepare``: the user to log in as.
PREPARE = "Prepare"
#: The user that an image lets in, by the kind of the image; the first also for unknown ones.
LOGINS = {"ubuntu": "ubuntu", "amazon": "ec2-user"}

#: Values that a filter takes, and a good size for a change.
_AT_ONCE = 200
_LOOK_FIRST_S = 0.2
_LOOK_AT_MOST_S = 5.0
_STATES = {
    "pending": HostState.PENDING,
    "running": HostState.RUNNING,
    "stopping": HostState.STOPPING,
    "stopped": HostState.STOPPED,
    "shutting-down": HostState.ENDING,
    "terminated": HostState.ENDED,
}
#: Reasons of EC2 that say nothing which the state does not say.
_ASKED = "Client.UserInitiated"
_ORDINARY = (_ASKED, "Client.InstanceInitiatedShutdown")
_REASONS = {
    "Server.SpotInstanceTermination": "interrupted by EC2 (spot)",
    "Server.SpotInstanceShutdown": "interrupted by EC2 (spot)",
    "Server.InsufficientInstanceCapacity": "EC2 had not enough capacity for it",
    "Client.VolumeLimitExceeded": "the quota for storage of this account is used up",
    "Client.InvalidSnapshot.NotFound": "there is no such snapshot",
}


def find(ec2: EC2Client, region: str, **filters: Sequence[str]) -> list[Instance]:
    """Return the instances that pass all filters, the oldest first.

    Parameters
    ----------
    **filters
        Names with underscores for the dashes: ``instance_state_name``; ``tag_Runner`` for that
        tag.
    """
    wanted: list[Any] = []
    for name, values in filters.items():
        kind, _, rest = name.partition("_")
        spelt = f"tag:{rest}" if kind == "tag" and rest != "key" else name.replace("_", "-")
        wanted.append({"Name": spelt, "Values": list(values)})
    with refusals("list", "the instances", region):
        pages = ec2.get_paginator("describe_instances").paginate(
            Filters=wanted,
            PaginationConfig={"PageSize": 1000},
        )
        found = [
            instance
            for page in pages
            for reservation in page.get("Reservations", ())
            for instance in reservation.get("Instances", ())
        ]
    return sorted(found, key=lambda each: (_launched_at(each) or 0.0, each["InstanceId"]))


def find_ids(ec2: EC2Client, ids: Sequence[str], region: str) -> dict[str, Instance]:
    """Return what EC2 knows of instances; those it does not know are left out."""
    return {
        each["InstanceId"]: each
        for chunk in _chunks(ids)
        for each in find(ec2, region, instance_id=chunk)
    }


def await_states(
    ec2: EC2Client,
    ids: Sequence[str],
    is_there: Callable[[HostState | None], bool],
    progress: Progress,
    timeout_s: float,
    region: str,
) -> dict[str, Instance]:
    """Wait until all instances are where they are to be; return what is known of them then.

    Blocks for at most `timeout_s`; some may not be there yet then.

    Parameters
    ----------
    is_there : callable
        Tells it of a state; None stands for an instance that EC2 does not know.
    progress : Progress
        Advances by one for each instance that is there.
    """
    known: dict[str, Instance] = {}
    waiting = list(dict.fromkeys(ids))
    deadline, pause_s = time.monotonic() + timeout_s, _LOOK_FIRST_S
    while waiting:
        try:
            seen = find_ids(ec2, waiting, region)
        except Unavailable as error:
            if time.monotonic() > deadline:
                raise
            _log.debug("%s", error)
        else:
            states = {each: state_of(seen[each]) if each in seen else None for each in waiting}
            known = {name: each for name, each in known.items() if name not in states} | seen
            arrived = [each for each, state in states.items() if is_there(state)]
            if arrived:
                progress.advance(len(arrived))
            waiting = [each for each in waiting if each not in arrived]
        if not waiting or time.monotonic() > deadline:
            break
        time.sleep(pause_s)
        pause_s = min(1.5 * pause_s, _LOOK_AT_MOST_S)
    return known


def change(
    act: Callable[[list[str]], object], ids: Sequence[str], what: tuple[str, str], region: str
) -> dict[str, AdrError]:
    """Do something with many instances; return those for which it was refused, and why.

    Parameters
    ----------
    act : callable
        Makes the call for some ids.
    what : tuple of str
        Operation and name of what it is done to, for sentences.
    """
    failed: dict[str, AdrError] = {}
    for chunk in _chunks(ids):
        try:
            with refusals(what[0], f"{len(chunk)} {what[1]}", region):
                act(chunk)
        except AdrError as error:
            if len(chunk) == 1 or isinstance(error, Unavailable):
                failed.update(dict.fromkeys(chunk, error))
                continue
            for each in chunk:
                try:
                    with refusals(what[0], each, region):
                        act([each])
                except AdrError as single:
                    failed[each] = single
    return failed


def state_of(instance: Instance) -> HostState:
    """Return the state of an instance."""
    return _STATES.get(instance.get("State", {}).get("Name", ""), HostState.UNKNOWN)


def market(instance: Instance) -> str:
    """Return how an instance is paid."""
    return "spot" if instance.get("InstanceLifecycle") == "spot" else "on-demand"


def tags_of(instance: Instance) -> dict[str, str]:
    """Return the tags of an instance."""
    return {each["Key"]: each.get("Value", "") for each in instance.get("Tags", ())}


def as_host(instance: Instance, fleet: str) -> Host:
    """Return an instance as a host of a fleet."""
    return Host(
        name=instance["InstanceId"],
        fleet=fleet,
        state=state_of(instance),
        address=_address(instance),
        type=instance.get("InstanceType", ""),
        market=market(instance),
        started_at=_launched_at(instance),
        note=_note(instance),
        login=_login(tags_of(instance)),
    )


def _login(tags: Mapping[str, str]) -> str:
    if PREPARE not in tags:
        return ""
    # Others may write tags too: nothing else becomes the name of a user.
    return tags[PREPARE] if tags[PREPARE] in LOGINS.values() else LOGINS["ubuntu"]


def _address(instance: Instance) -> str:
    address = instance.get("PublicIpAddress")
    if not address and state_of(instance) in (HostState.PENDING, HostState.RUNNING):
        address = instance.get("PrivateIpAddress")
    return address or ""


def why_it_ended(instance: Instance) -> str:
    """Return why an instance is not there, in words."""
    return _note(instance) or instance.get("StateTransitionReason") or "EC2 does not say why"


def was_asked_to_end(instance: Instance) -> bool:
    """Tell whether somebody has terminated an instance, or nobody knows."""
    code = instance.get("StateReason", {}).get("Code", "")
    return not code or code.startswith(_ASKED)


def _note(instance: Instance) -> str:
    reason = instance.get("StateReason", {})
    code, said = reason.get("Code", ""), reason.get("Message", "")
    if code in _REASONS:
        return _REASONS[code]
    if not code or code.startswith(_ORDINARY) or code == "pending":
        return ""
    return str(said or code)


def _launched_at(instance: Instance) -> float | None:
    launched = instance.get("LaunchTime")
    return launched.timestamp() if launched else None


def _chunks(ids: Sequence[str]) -> Iterator[list[str]]:
    for start in range(0, len(ids), _AT_ONCE):
        yield list(ids[start : start + _AT_ONCE])
