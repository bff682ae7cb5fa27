"""The environments of the jobs of one slot."""

from __future__ import annotations

import os

from adr.models import Job, Lease
from adr.worker.jobuser import JobUser
from adr.worker.script import program_environment

__all__ = ["Environments"]


class Environments:
    """Make the environment of each job; most of it is that of the last one.

    Parameters
    ----------
    runner_id : str
        Id of the runner.
    slot : int
        Number of the slot.
    user : JobUser, optional
        Whose variables they hold; without, those of this process.
    """

    def __init__(self, runner_id: str, slot: int, user: JobUser | None) -> None:
        self._user = user
        self._of_slot = {b"ADR_RUNNER": os.fsencode(runner_id), b"ADR_SLOT": b"%d" % slot}
        #: Additional variables of the last job, its environment, and that for a program alone.
        self._last: (
            tuple[tuple[tuple[str, str], ...], dict[bytes, bytes], dict[bytes, bytes] | None] | None
        ) = None

    def for_bash(self, lease: Lease) -> dict[bytes, bytes]:
        """Return the environment of a job that bash runs."""
        return {**self._general(lease.job)[0], **self._own(lease)}

    def for_program(self, lease: Lease) -> dict[bytes, bytes] | None:
        """Return that of a job that is a program; None where something in it concerns bash."""
        general = self._general(lease.job)[1]
        return None if general is None else {**general, **self._own(lease)}

    def _own(self, lease: Lease) -> dict[bytes, bytes]:
        job = lease.job
        return {
            **self._of_slot,
            b"ADR_BATCH": os.fsencode(job.batch),
            b"ADR_JOB": os.fsencode(job.label),
            b"ADR_INDEX": b"%d" % job.index,
            b"ADR_COUNT": b"%d" % job.count,
            b"ADR_ATTEMPT": os.fsencode(lease.attempt),
        }

    def _general(self, job: Job) -> tuple[dict[bytes, bytes], dict[bytes, bytes] | None]:
        if self._last is None or self._last[0] != job.env:
            general = self._user.environment() if self._user else os.environ
            for_bash = {
                os.fsencode(name): os.fsencode(each)
                for name, each in {**general, **dict(job.env)}.items()
            }
            self._last = (job.env, for_bash, program_environment(for_bash))
        return self._last[1:]
