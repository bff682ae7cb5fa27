"""What the end of a run means for its job: whether it counts, and if it failed, why."""

from __future__ import annotations

import enum
import signal

from adr.models import Job
from adr.worker.launcher import Ending

__all__ = ["Stop", "failure", "is_dropped", "was_killed"]

#: What bash says of a command that was killed with SIGKILL.
_KILLED = 128 + signal.SIGKILL


class Stop(enum.Enum):
    """Say why a job is ended before it is done, which decides what becomes of it.

    Of several reasons the first of these counts.
    """

    #: It is not to be run here, or not now: it is as if it had not begun.
    DROPPED = "dropped"
    #: The time of its worker is over: it has failed.
    LIMIT = "limit"
    #: Its machine is about to be taken away: it counts only if it succeeds all the same.
    NOTICE = "notice"


def is_dropped(ending: Ending, why: Stop | None) -> bool:
    """Tell whether a job was ended because that was ordered, and has no outcome by that."""
    counts = why is Stop.LIMIT or (why is Stop.NOTICE and ending.exit_code == 0)
    return ending.stopped_by == "order" and not counts


def failure(job: Job, ending: Ending, most_bytes: int) -> str:
    """Say why a run did not succeed; empty where it did.

    Parameters
    ----------
    job : Job
        What was run.
    ending : Ending
        How it ended.
    most_bytes : int
        How much it was allowed to write.
    """
    if ending.error:
        return ending.error
    if ending.stopped_by == "timeout":
        return f"ran longer than its time limit of {job.timeout_s:g} s"
    if ending.stopped_by == "output":
        return f"wrote more than {most_bytes} bytes of output"
    if ending.signal is not None:
        return f"killed by {_signal_name(ending.signal)}"
    if not ending.exit_code:
        return ""
    # bash reports a command killed by signal n as exit code 128 + n.
    by = f" ({_signal_name(ending.exit_code - 128)})" if ending.exit_code > 128 else ""
    return f"exit code {ending.exit_code}{by}"


def was_killed(ending: Ending) -> bool:
    """Tell whether somebody else than its worker has killed a job."""
    return not ending.stopped_by and (
        ending.signal == signal.SIGKILL or ending.exit_code == _KILLED
    )


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
