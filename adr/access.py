"""Access for workers: the role of their instances, and keys that are lent to other machines.

Hosts of one's own get temporary keys from STS, limited by the same policy as the role of
`adr.role`. boto3 reads them there by a ``credential_process``, so that a worker that runs takes
up new ones by itself.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any

from botocore import exceptions as core

from adr.aws import Connection, error_code, is_denied, translated
from adr.clock import tries
from adr.errors import ServiceError, UsageError
from adr.role import ROLE_SESSION_S, WorkerRole, worker_policy

__all__ = [
    "Lent",
    "config_text",
    "ensure_profile",
    "lend",
    "own_keys",
    "process_json",
    "profile_left",
    "remove_profile",
    "worker_policy",
]

_log = logging.getLogger(__name__)

_HOUR_S = 3600
#: The longest that GetFederationToken gives keys for; the shortest is 15 minutes.
_LONGEST_H = 36
_LONGEST_NAME = 32
#: STS knows a new role everywhere by then.
_ASSUMABLE_WITHIN_S = 60.0


@dataclass(frozen=True)
class Lent:
    """Hold keys for other machines; shows none of them when it is printed."""

    access_key_id: str = field(repr=False)
    secret_access_key: str = field(repr=False)
    #: None: they are long-lived keys.
    session_token: str | None = field(default=None, repr=False)
    #: Seconds since the epoch; None where they have no end, or nobody knows it.
    ends_at: float | None = None


def ensure_profile(connection: Connection) -> str:
    """Make the role and the instance profile of a runner, or complete them; return their name.

    Idempotent, also side by side. EC2 knows a new profile only after some seconds.

    Raises
    ------
    ServiceError
        If these credentials may not: which permission is missing, and what to do instead.
    RunnerGone
        If there is no such runner.
    """
    role = WorkerRole(connection)
    role.make(
        "ask for the policy in the documentation of adr (instances of EC2), name a profile that "
        "there is with --instance-profile, or launch with --prepare, which needs none",
        profile=True,
    )
    return role.name


def remove_profile(connection: Connection) -> None:
    """Remove the role and the instance profile of a runner, or what is left of them; idempotent.

    The runner itself may be gone. What somebody else has attached to the role goes with it.

    Raises
    ------
    ServiceError
        If these credentials may not, even if only to look: which permission is missing, and
        what to do instead. `adr.aws.is_denied` tells this from other trouble.
    """
    WorkerRole(connection).remove(
        "ask somebody who may to remove the role and the instance profile of that name, if they "
        "are there"
    )


def profile_left(connection: Connection) -> list[str]:
    """Return what there is of the role and the instance profile of a runner, in words."""
    return WorkerRole(connection).left()


def lend(connection: Connection, hours: float = 12.0) -> Lent:
    """Return temporary keys that allow what a worker does, and no more.

    From long-lived keys STS makes them for up to 36 hours. With temporary ones, or where that
    is not allowed, the role of the runner is assumed, which is made if need be: for at most 12
    hours, and for 1 where the caller has assumed a role already. See `Lent.ends_at`.

    Parameters
    ----------
    connection : Connection
        To the runner.
    hours : float, optional
        How long the keys are to last, from 1 to 36.

    Raises
    ------
    UsageError
        If `hours` is out of range.
    ServiceError
        If these credentials may do neither: what they would need, and what to do instead.
    RunnerGone
        If there is no such runner.
    """
    if not 1 <= hours <= _LONGEST_H:
        raise UsageError(
            f"credentials cannot be lent for {hours:g} hours: give a number from 1 to {_LONGEST_H}"
        )
    role = WorkerRole(connection)
    needed = [f"sts:AssumeRole on the role {role.name}"]
    with translated("read", "the credentials of this machine"):
        # Always refused to temporary keys.
        can_federate = not getattr(connection.credentials, "token", None)
    if can_federate:
        needed.insert(0, "sts:GetFederationToken")
        try:
            return _federated(connection, role, int(hours * _HOUR_S))
        except ServiceError as error:
            if not is_denied(error):
                raise
            _log.debug("%s", error)
    advice = (
        f"ask for {' or '.join(needed)}, or hand over your own keys, and with them all that you "
        f"may do, by --copy-credentials"
    )
    return _assumed(connection, role, min(int(hours * _HOUR_S), ROLE_SESSION_S), advice)


def own_keys(connection: Connection) -> Lent:
    """Return the keys of the caller, with all that they allow.

    Raises
    ------
    ServiceError
        If there are none, or they have ended.
    """
    with translated("copy", "the credentials of this machine"):
        found = connection.credentials
        if found is None:
            raise core.NoCredentialsError
        keys = found.get_frozen_credentials()
    # botocore has no public way to the end of keys that it renews itself.
    ends = getattr(found, "_expiry_time", None)
    return Lent(
        keys.access_key, keys.secret_key, keys.token or None, ends.timestamp() if ends else None
    )


def process_json(lent: Lent) -> str:
    """Return keys as the ``credential_process`` of an AWS configuration prints them.

    boto3 asks again for keys that have an end: at each call from a quarter of an hour before
    it, and afterwards until it gets keys that have not ended.
    """
    data: dict[str, Any] = {
        "Version": 1,
        "AccessKeyId": lent.access_key_id,
        "SecretAccessKey": lent.secret_access_key,
    }
    if lent.session_token is not None:
        data["SessionToken"] = lent.session_token
    if lent.ends_at is not None:
        end = datetime.fromtimestamp(lent.ends_at, timezone.utc)
        data["Expiration"] = end.strftime("%Y-%m-%dT%H:%M:%SZ")
    return json.dumps(data) + "\n"


def config_text(command: str, region: str) -> str:
    """Return an AWS configuration whose keys are printed by a command.

    Parameters
    ----------
    command : str
        The command, quoted as for a shell; boto3 starts it without one.
    region : str
        Region of the runner.
    """
    return f"[default]\nregion = {region}\ncredential_process = {command}\n"


def _federated(connection: Connection, role: WorkerRole, seconds: int) -> Lent:
    policy = _compact(role.policy)
    with translated("lend", "credentials to other machines"):
        answer = connection.service("sts").get_federation_token(
            Name=role.name[:_LONGEST_NAME], Policy=policy, DurationSeconds=seconds
        )
    return _lent(answer)


def _assumed(connection: Connection, role: WorkerRole, seconds: int, advice: str) -> Lent:
    """Assume the role of the runner, after making it where that is refused at first."""
    # AWS says the same where there is no such role, or none yet: it is new to each try but one.
    is_new: bool | None = None
    for last in tries(_ASSUMABLE_WITHIN_S):
        try:
            return _assume(connection, role, seconds)
        except ServiceError as error:
            if not is_denied(error):
                raise
            if is_new is None:
                is_new = role.make(advice, profile=False)
                _log.debug("%s", error)
            elif last or not is_new:
                raise ServiceError(
                    f"cannot lend credentials to other machines: AWS denies sts:AssumeRole to "
                    f"these credentials; {advice}"
                ) from error.__cause__
    raise AssertionError("the last try returns or raises")


def _assume(connection: Connection, role: WorkerRole, seconds: int) -> Lent:
    sts = connection.service("sts")
    wanted = {
        "RoleArn": role.arn,
        "RoleSessionName": role.name,
        "Policy": _compact(role.policy),
    }
    with translated("lend", "credentials to other machines"):
        try:
            return _lent(sts.assume_role(**wanted, DurationSeconds=seconds))
        except core.ClientError as error:
            # Who has assumed a role already gets another for an hour at most.
            if error_code(error) != "ValidationError" or "DurationSeconds" not in str(error):
                raise
        return _lent(sts.assume_role(**wanted, DurationSeconds=_HOUR_S))


def _lent(answer: Mapping[str, Any]) -> Lent:
    keys = answer["Credentials"]
    return Lent(
        keys["AccessKeyId"],
        keys["SecretAccessKey"],
        keys["SessionToken"],
        keys["Expiration"].timestamp(),
    )


def _compact(policy: Mapping[str, Any]) -> str:
    """Return a policy without blanks: with a session STS takes 2,048 characters of one."""
    return json.dumps(policy, separators=(",", ":"))
