"""Removing what was made on EC2 for a runner, and proving that nothing is left.

EC2 goes on saying for a minute or so that what belonged to an ended instance is in use. So
everything is removed and looked for again until there is nothing, or time is up.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

from botocore import exceptions as core

from adr.access import profile_left, remove_profile
from adr.aws import Connection, error_code, is_denied
from adr.clock import tries
from adr.errors import AdrError, Denied, ServiceError
from adr.fleets.base import HostState
from adr.fleets.ec2.instances import find, state_of
from adr.fleets.ec2.refusals import refusals

if TYPE_CHECKING:
    from mypy_boto3_ec2 import EC2Client

__all__ = ["remove_leftovers"]

_log = logging.getLogger(__name__)

_WITHIN_S = 300.0
_PAUSE_FIRST_S = 0.5
_PAUSE_AT_MOST_S = 10.0
#: What EC2 says of things that are still in use, or are gone already.
_LATER = {"DependencyViolation", "VolumeInUse", "IncorrectState"}


def remove_leftovers(
    connection: Connection, ec2: EC2Client, region: str, within_s: float = _WITHIN_S
) -> None:
    """Remove groups, launch templates, volumes and the role of a runner; idempotent.

    Parameters
    ----------
    within_s : float, optional
        How long is waited for what is in use.

    Raises
    ------
    AdrError
        If something is left: what, and how to remove it.
    Denied
        If these credentials may not look at EC2 or remove something there; the role is gone.
    """
    try:
        left = _on_ec2(ec2, connection.runner_id, region, within_s)
    except Denied as denied:
        # Who may not look at EC2 may have made the role, which is the part with rights.
        if role := _role(connection):
            raise AdrError(f"{denied}; and there is still left: {', '.join(role)}") from denied
        raise
    left += _role(connection)
    if left:
        raise AdrError(
            f"of the runner {connection.runner_id} there is still left in {region}: "
            f"{', '.join(left)}; try again in a few minutes, or remove that in the AWS console"
        )


def _on_ec2(ec2: EC2Client, runner_id: str, region: str, within_s: float) -> list[str]:
    """Remove what can be removed until there is nothing, or time is up; return what is left."""
    deadline, pause_s = time.monotonic() + within_s, _PAUSE_FIRST_S
    while True:
        alive = _instances(ec2, runner_id, region)
        left = [thing for kind in _KINDS for thing in kind(ec2, runner_id, region)]
        # Nothing else is free before they have ended, which somebody else must see to.
        if alive or not left or time.monotonic() + pause_s > deadline:
            break
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, _PAUSE_AT_MOST_S)
    return [*alive, *left]


def _instances(ec2: EC2Client, runner_id: str, region: str) -> list[str]:
    found = find(ec2, region, tag_Runner=[runner_id])
    return [
        f"instance {each['InstanceId']} ({state_of(each)})"
        for each in found
        if state_of(each) is not HostState.ENDED
    ]


# Each of these removes what it can and yields what it has found.


def _templates(ec2: EC2Client, runner_id: str, region: str) -> Iterator[str]:
    for each in _listed(ec2, "describe_launch_templates", "LaunchTemplates", runner_id, region):
        name = f"launch template {each['LaunchTemplateName']}"
        template = each["LaunchTemplateId"]
        _remove(partial(ec2.delete_launch_template, LaunchTemplateId=template), name, region)
        yield name


def _groups(ec2: EC2Client, runner_id: str, region: str) -> Iterator[str]:
    for each in _listed(ec2, "describe_security_groups", "SecurityGroups", runner_id, region):
        name = f"security group {each['GroupId']}"
        _remove(partial(ec2.delete_security_group, GroupId=each["GroupId"]), name, region)
        yield name


def _volumes(ec2: EC2Client, runner_id: str, region: str) -> Iterator[str]:
    for each in _listed(ec2, "describe_volumes", "Volumes", runner_id, region):
        name = f"volume {each['VolumeId']}"
        if each["State"] in ("available", "error"):
            _remove(partial(ec2.delete_volume, VolumeId=each["VolumeId"]), name, region)
        yield name


_KINDS = (_templates, _groups, _volumes)


def _listed(
    ec2: EC2Client, operation: str, key: str, runner_id: str, region: str
) -> list[dict[str, Any]]:
    with refusals("look for", "what is left of the runner", region):
        pages = ec2.get_paginator(operation).paginate(  # type: ignore[call-overload]
            Filters=[{"Name": "tag:Runner", "Values": [runner_id]}]
        )
        return [each for page in pages for each in page[key]]


def _remove(call: Callable[[], object], name: str, region: str) -> None:
    with refusals("remove", f"the {name}", region):
        try:
            call()
        except core.ClientError as error:
            code = error_code(error)
            if code not in _LATER and "NotFound" not in code:
                raise


def _role(connection: Connection) -> list[str]:
    """Remove the role of the runner; return what there still is of it."""
    try:
        if not profile_left(connection):
            return []
    except ServiceError as error:
        if not is_denied(error):
            raise
        # Who may not even look has made none: another who has used this runner may have.
        _log.warning("whether the runner has a role is not known: %s", error)
        return []
    remove_profile(connection)
    left: list[str] = []
    for _ in tries():
        # IAM goes on showing what is gone for some seconds.
        left = profile_left(connection)
        if not left:
            break
    return left
