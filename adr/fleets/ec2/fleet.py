"""Instances of EC2 as a fleet of a runner on AWS.

They install themselves from their user data, take jobs, and end themselves; nothing here talks
to one. What belongs to a runner is known by its tags alone, so that every machine with the
right credentials finds the same instances, and nothing is kept that could be wrong.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from botocore import exceptions as core

from adr.aws import Connection, error_code
from adr.errors import AdrError, PartialFailure, RunnerGone, ServiceError, UsageError
from adr.fleets.base import Demand, Host, HostState, LaunchPlan, LaunchReport
from adr.fleets.ec2.groups import group_name, let_in
from adr.fleets.ec2.instances import (
    as_host,
    await_states,
    change,
    find,
    find_ids,
    market,
    state_of,
    was_asked_to_end,
)
from adr.fleets.ec2.launch import carry_out
from adr.fleets.ec2.leftovers import remove_leftovers
from adr.fleets.ec2.plan import make_plan
from adr.fleets.ec2.refusals import refusals
from adr.fleets.specs import Ec2Spec
from adr.progress import SILENT, Progress
from adr.stores.base import ObjectStore
from adr.wheel import Wheel, pack_wheel

if TYPE_CHECKING:
    from mypy_boto3_ec2 import EC2Client

__all__ = ["Ec2Fleet"]

_log = logging.getLogger(__name__)

_ID = re.compile(r"i-[0-9a-f]+")
#: What EC2 takes for a stop or an end of many instances, with room for jobs to be given back.
_CHANGED_WITHIN_S = 900.0
_GONE = (None, HostState.ENDED)
_DOWN = (HostState.STOPPED, HostState.ENDING, HostState.ENDED)
_DOING = {"stop": "stopping", "start": "starting", "end": "ending"}
_NOT_THERE = "InvalidInstanceID.NotFound"


class Ec2Fleet:
    """Run workers on instances of EC2; see `adr.fleets.base.Fleet` and `Pausable`.

    Parameters
    ----------
    connection : Connection
        To the runner; instances are launched in its region.
    store : ObjectStore
        Store of the runner.
    pack : callable, optional
        Packs what new hosts install.
    """

    kind = "ec2"

    def __init__(
        self, connection: Connection, store: ObjectStore, pack: Callable[[], Wheel] = pack_wheel
    ) -> None:
        self._connection = connection
        self._store = store
        self._pack = pack

    def plan(self, spec: Ec2Spec, demand: Demand) -> LaunchPlan:
        """Say what a launch would do, as EC2 itself sees it; changes nothing.

        Without a number of instances they are as many as give each waiting job a slot.
        """
        return make_plan(self._connection, spec, demand, self._pack)

    def launch(self, plan: LaunchPlan, progress: Progress) -> LaunchReport:
        """Launch instances and wait until they run, for at most ten minutes.

        A launch that was cut off is repeated by the same launch within a day, and launches
        nothing twice. Where EC2 has not enough, what it has is kept and said.
        """
        return carry_out(self._connection, self._store, plan.request, self.kind, progress)

    def hosts(self) -> list[Host]:
        """Return the instances of this runner that have not ended, in the order of their start."""
        found = find(self._ec2, self._region, tag_Runner=[self._connection.runner_id])
        hosts = [as_host(each, self.kind) for each in found]
        return [host for host in hosts if host.state is not HostState.ENDED]

    def stop(self, hosts: Sequence[Host], progress: Progress) -> list[Host]:
        """Stop instances and wait until they have; idempotent.

        Raises
        ------
        UsageError
            If all of them are spot instances, which cannot be stopped.
        PartialFailure
            If some could not be stopped.
        """
        there = self._known(hosts)
        spot = [name for name, each in there.items() if market(each) == "spot"]
        refused = UsageError(
            f"EC2 cannot stop spot instances ({', '.join(spot)}): adr destroy "
            f"--hosts={','.join(spot)} ends them"
        )
        if spot and len(spot) == len(there):
            raise refused
        failed: dict[str, AdrError] = dict.fromkeys(spot, refused)
        ids = [
            name
            for name, each in there.items()
            if name not in failed and state_of(each) not in _DOWN
        ]
        call = self._ec2.stop_instances
        failed |= self._change("stop", call, ids, HostState.STOPPED, progress)
        return self._outcome(hosts, failed)

    def start(self, hosts: Sequence[Host], progress: Progress) -> list[Host]:
        """Start stopped instances and wait until they run; idempotent.

        Most have another public address then.

        Raises
        ------
        PartialFailure
            If some could not be started.
        """
        there = self._known(hosts)
        stopping = [name for name, each in there.items() if state_of(each) is HostState.STOPPING]
        self._await(stopping, (HostState.STOPPED, *_GONE), SILENT)
        up = (HostState.PENDING, HostState.RUNNING)
        ids = [name for name, each in there.items() if state_of(each) not in up]
        call = self._ec2.start_instances
        failed = self._change("start", call, ids, HostState.RUNNING, progress)
        return self._outcome(hosts, failed)

    def terminate(self, hosts: Sequence[Host], progress: Progress) -> None:
        """End instances for good and wait until they have ended; idempotent."""
        there = self._known(hosts)
        ids = [name for name, each in there.items() if state_of(each) not in _GONE]
        call = self._ec2.terminate_instances
        failed = self._change("end", call, ids, HostState.ENDED, progress)
        if failed:
            raise _partly([name for name in ids if name not in failed], failed)

    def dissolve(self, progress: Progress) -> None:
        """Remove the groups, templates, volumes and the role of this runner; see `Fleet.dissolve`.

        Blocks for up to five minutes, until EC2 knows that what was attached is free.
        """
        ec2, region = self._ec2, self._region
        progress.start("removing", 1, "runner")
        try:
            remove_leftovers(self._connection, ec2, region)
            progress.advance()
        finally:
            progress.finish()

    def let_in(self) -> None:
        """Let SSH from the address of this machine into the runner's own group for it."""
        name = group_name(self._connection.runner_id, ssh=True)
        let_in(self._ec2, name, self._region)

    def former(self, name: str) -> Host | None:
        """Return an instance of this runner that has ended; EC2 knows it for about an hour."""
        if not _ID.fullmatch(name):
            return None
        try:
            found = find(
                self._ec2,
                self._region,
                instance_id=[name],
                tag_Runner=[self._connection.runner_id],
            )
        except AdrError as error:
            _log.debug("what became of %s is not known: %s", name, error)
            return None
        return next((as_host(each, self.kind) for each in found), None)

    def ended(self) -> list[Host]:
        """Return the instances that ended within about the last hour, but were not terminated."""
        mine = {"tag_Runner": [self._connection.runner_id]}
        found = find(self._ec2, self._region, instance_state_name=["terminated"], **mine)
        return [as_host(each, self.kind) for each in found if not was_asked_to_end(each)]

    def output(self, host: Host) -> bytes | None:
        """Return what an instance has written on its console; None where EC2 does not know it."""
        with refusals("read", f"the console of {host.name}", self._region):
            try:
                return self._console(host.name)
            except core.ClientError as error:
                if error_code(error).startswith(_NOT_THERE):
                    return None
                raise

    def _console(self, name: str) -> bytes:
        try:
            answer = self._ec2.get_console_output(InstanceId=name, Latest=True)
        except core.ClientError as error:
            # Only newer types tell the latest; of others there is a copy from their start.
            if not error_code(error).startswith(("Unsupported", "InvalidParameter")):
                raise
            answer = self._ec2.get_console_output(InstanceId=name)
        return answer.get("Output", "").encode("utf-8", "replace")

    @property
    def _region(self) -> str:
        # A runner that is destroyed may still have instances, which cost money: its bucket,
        # or else the region at hand, tells where they are.
        with suppress(RunnerGone):
            _ = self._connection.queue_url
        return self._connection.region

    @property
    def _ec2(self) -> EC2Client:
        _ = self._region
        client: EC2Client = self._connection.service("ec2")
        return client

    def _known(self, hosts: Sequence[Host]) -> dict[str, Any]:
        """Return what EC2 knows of hosts; those it does not know are long gone."""
        return find_ids(self._ec2, [host.name for host in hosts], self._region)

    def _change(
        self,
        verb: str,
        call: Callable[..., object],
        ids: Sequence[str],
        state: HostState,
        progress: Progress,
    ) -> dict[str, AdrError]:
        """Bring instances into a state; return those that are not in it, and why."""
        progress.start(_DOING[verb], len(ids), "instances")
        try:
            failed = change(
                lambda some: call(InstanceIds=some), ids, (verb, "instances"), self._region
            )
            accepted = [name for name in ids if name not in failed]
            late = self._await(accepted, (state, *_GONE), progress)
        finally:
            progress.finish()
        for name in late:
            failed[name] = ServiceError(f"{name} takes too long to {verb}: adr list shows when")
        return failed

    def _await(
        self, ids: Sequence[str], states: Sequence[HostState | None], progress: Progress
    ) -> list[str]:
        """Wait until instances are in one of these states; return those that are not."""
        known = await_states(
            self._ec2, ids, lambda state: state in states, progress, _CHANGED_WITHIN_S, self._region
        )
        return [each for each in ids if each in known and state_of(known[each]) not in states]

    def _outcome(self, hosts: Sequence[Host], failed: dict[str, AdrError]) -> list[Host]:
        """Return hosts as they are now; raises where something failed."""
        known = self._known(hosts)
        now = [as_host(known[host.name], self.kind) for host in hosts if host.name in known]
        if failed:
            raise _partly([host.name for host in now if host.name not in failed], failed)
        return now


def _partly(succeeded: Sequence[str], failed: dict[str, AdrError]) -> PartialFailure:
    said = "; ".join(dict.fromkeys(map(str, failed.values())))
    return PartialFailure(said, succeeded, list(failed))
