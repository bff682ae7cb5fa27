"""Sending an order to EC2: what is had is kept, and what is not is said.

Groups, roles and templates that were made a moment ago are not known to all of EC2 yet, so what
is refused for that reason is tried again for a minute.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

from botocore import exceptions as core

from adr.aws import error_code, is_denied
from adr.errors import AdrError, ServiceError
from adr.fleets.base import HostState
from adr.fleets.ec2.instances import market, state_of
from adr.fleets.ec2.refusals import is_open, is_unknown_yet, reason, refusals
from adr.fleets.ec2.requests import (
    Order,
    create_fleet,
    launch_template,
    run_instances,
    template_name,
)

if TYPE_CHECKING:
    from mypy_boto3_ec2 import EC2Client
    from mypy_boto3_ec2.type_defs import CreateFleetErrorTypeDef

__all__ = ["Sender"]

_log = logging.getLogger(__name__)

_KNOWN_WITHIN_S = 60.0
_PAUSE_FIRST_S = 0.5
_PAUSE_AT_MOST_S = 5.0
#: Looks for instances that an answer does not name: some seconds in all.
_LOOKS = 4
_GONE = (HostState.ENDING, HostState.ENDED)
#: Of what was asked for, some may be had.
_TOO_MANY = {"InsufficientInstanceCapacity", "InstanceLimitExceeded", "VcpuLimitExceeded"}
#: The request was carried out before, in other words.
_MISMATCH = "IdempotentParameterMismatch"


@dataclass
class Sender:
    """Send one order, under one token."""

    ec2: EC2Client
    region: str
    order: Order
    token: str
    #: Finds the instances of a token.
    launched: Callable[[str], Sequence[Mapping[str, Any]]]
    #: Sentences about what could not be had.
    notes: list[str]

    def send(self) -> list[str]:
        """Ask EC2 for instances, and return the ids of those that were had.

        Raises
        ------
        AdrError
            If none were.
        """
        try:
            return self._from_fleets() if self.order.is_fleet else self._from_one_type()
        except AdrError as error:
            if error_code(error.__cause__) != _MISMATCH:
                raise
            for _ in _tries():
                seen = [each["InstanceId"] for each in self.launched(self.token)]
                if seen:
                    return seen
            raise

    @property
    def _what(self) -> str:
        return f"{self.order.n} instances of {' or '.join(self.order.types)}"

    # Instances of one type, on demand

    def _from_one_type(self) -> list[str]:
        try:
            return self._run(self.order.n)
        except ServiceError as error:
            if error_code(error.__cause__) not in _TOO_MANY or self.order.n == 1:
                raise
            self.notes.append(str(error))
            return self._run(1)

    def _run(self, least: int) -> list[str]:
        request = run_instances(self.order, self.token, least)
        trouble: AdrError | None = None
        for _ in _tries():
            try:
                with refusals("launch", self._what, self.region, self.order.types):
                    answer = self.ec2.run_instances(**request)
                return [each["InstanceId"] for each in answer["Instances"]]
            except AdrError as error:
                trouble = error
                if not is_unknown_yet(error_code(error.__cause__), str(error.__cause__)):
                    raise
                _log.debug("%s", error)
        assert trouble is not None
        raise trouble

    # Of several types, or spot instances

    def _from_fleets(self) -> list[str]:
        order = self.order
        self._make_template()
        try:
            found = self._spot_or_nothing() if order.fallback else self._fleet(order.n, order.spot)
            if order.fallback and len(found) < order.n:
                found += self._on_demand(order.n - len(found), needed=not found)
        finally:
            self._remove_template()
        if not found:
            # The notes of a launch that fails are told by its error.
            raise ServiceError(f"cannot launch {self._what}: {'; '.join(self.notes)}")
        return found

    def _spot_or_nothing(self) -> list[str]:
        try:
            return self._fleet(self.order.n, spot=True)
        except ServiceError as error:
            if is_open(error) or is_denied(error):
                raise
            self.notes.append(str(error))
            return []

    def _on_demand(self, n: int, needed: bool) -> list[str]:
        """Return instances that stand in for spot instances; raises only where they are needed."""
        try:
            found = self._fleet(n, spot=False)
        except AdrError as error:
            if needed:
                raise
            found = self._seen(spot=False, looks=_LOOKS if is_open(error) else 1)
            if len(found) < n:
                self.notes.append(str(error))
        if found:
            self.notes.append(f"{len(found)} of {self.order.n} instances are on demand, not spot")
        return found

    def _seen(self, spot: bool, looks: int = _LOOKS) -> list[str]:
        """Return what this launch has launched, as EC2 shows it."""
        kind = "spot" if spot else "on-demand"
        found: list[str] = []
        for _ in islice(_tries(), looks):
            try:
                found = [
                    each["InstanceId"]
                    for each in self.launched(self.token)
                    if market(each) == kind and state_of(each) not in _GONE
                ]
            except AdrError as error:
                _log.warning("what was launched is not known: %s", error)
            if found:
                break
        return found

    def _fleet(self, n: int, spot: bool) -> list[str]:
        errors: Sequence[CreateFleetErrorTypeDef] = ()
        for attempt in _tries():
            request = create_fleet(self.order, self.token, n, spot, attempt)
            try:
                with refusals("launch", self._what, self.region, self.order.types):
                    answer = self.ec2.create_fleet(**request)
            except AdrError as error:
                cause = error.__cause__
                if not is_unknown_yet(error_code(cause), str(cause)):
                    raise
                _log.debug("%s", error)
                errors = [{"ErrorCode": error_code(cause), "ErrorMessage": str(error)}]
                continue
            found = [name for each in answer.get("Instances", ()) for name in each["InstanceIds"]]
            errors = answer.get("Errors", ())
            unknown = [
                is_unknown_yet(each.get("ErrorCode", ""), each.get("ErrorMessage", ""))
                for each in errors
            ]
            if found or not errors or not all(unknown):
                break
        else:
            found = []
        self.notes += self._sentences(errors)
        if not found and not errors:
            # A request that was repeated may be answered without what the first one gave.
            found = self._seen(spot)
        if not found and not errors:
            self.notes.append("EC2 has launched none and does not say why: try again later")
        return found

    def _sentences(self, errors: Sequence[CreateFleetErrorTypeDef]) -> list[str]:
        """Return what was wrong with which types, each once."""
        types: dict[str, list[str]] = {}
        for error in errors:
            code, said = error.get("ErrorCode", ""), error.get("ErrorMessage", "")
            override = error.get("LaunchTemplateAndOverrides", {}).get("Overrides", {})
            name = str(override.get("InstanceType", "instances"))
            known = reason(code, said, "CreateFleet", self.region, (name,))
            names = types.setdefault(known[1] if known else f"{code} ({said})", [])
            if name not in names:
                names.append(name)
        return [f"{', '.join(names)}: {why}" for why, names in types.items()]

    def _make_template(self) -> None:
        name = template_name(self.token)
        with refusals("make", f"the launch template {name}", self.region):
            try:
                self.ec2.create_launch_template(**launch_template(self.order, self.token))
            except core.ClientError as error:
                # It was left by the launch that is repeated.
                if error_code(error) != "InvalidLaunchTemplateName.AlreadyExistsException":
                    raise

    def _remove_template(self) -> None:
        name = template_name(self.token)
        try:
            with refusals("remove", f"the launch template {name}", self.region):
                self.ec2.delete_launch_template(LaunchTemplateName=name)
        except AdrError as error:
            # It costs nothing and goes with the runner.
            _log.warning("%s", error)


def _tries() -> Iterator[int]:
    """Count tries for a minute, with pauses between them that grow."""
    deadline, pause_s, count = time.monotonic() + _KNOWN_WITHIN_S, _PAUSE_FIRST_S, 0
    while True:
        yield count
        if time.monotonic() + pause_s > deadline:
            return
        time.sleep(pause_s)
        pause_s, count = min(2 * pause_s, _PAUSE_AT_MOST_S), count + 1
