"""The processes below a launcher: find them, signal them, and collect what they have used.

The kernel tells which processes belong to a job: all descendants of the launcher process do, as
it is their subreaper. For `adr.worker.launcher_child`, so it imports nothing of adr.
"""

from __future__ import annotations

import os

# For os.wait4, which imports it at its first call: that may be as a user who cannot read it.
import resource  # noqa: F401
import signal

# What typing.TYPE_CHECKING is to a type checker, without the megabyte of typing.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["ProcessInfo", "Reaper", "processes", "signal_descendants"]


class ProcessInfo:
    """Tell where a process stands among the others."""

    __slots__ = ("group", "parent", "pid", "session", "zombie")

    def __init__(self, pid: int, parent: int, group: int, session: int, zombie: bool) -> None:
        self.pid = pid
        self.parent = parent
        self.group = group
        self.session = session
        self.zombie = zombie


def processes() -> list[ProcessInfo]:
    """List all processes that ``/proc`` shows."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                fd = os.open(f"/proc/{name}/stat", os.O_RDONLY | os.O_CLOEXEC)
            except OSError:
                continue
            try:
                text = os.read(fd, 4096)
            except OSError:
                continue
            finally:
                os.close(fd)
            # The name of the program, in parentheses, may contain anything.
            state, parent, group, session = text[text.rindex(b")") + 1 :].split(None, 4)[:4]
            found.append(
                ProcessInfo(int(name), int(parent), int(group), int(session), state in b"ZX")
            )
    return found


class Reaper:
    """Collect ended children, and what they have used."""

    def __init__(self) -> None:
        self.main = 0
        self.status: int | None = None
        self.cpu_s = 0.0
        self.peak_kib = 0

    def reap(self, options: int) -> int:
        """Collect one child and return its pid, 0 where none has ended, -1 where none is left."""
        try:
            pid, status, usage = os.wait4(-1, options)
        except ChildProcessError:
            return -1
        if pid:
            self.cpu_s += usage.ru_utime + usage.ru_stime
            self.peak_kib = max(self.peak_kib, usage.ru_maxrss)
            if pid == self.main and self.status is None:
                self.status = status
        return pid

    def end_all(self) -> None:
        """Kill all descendants, until none is left or none of them can be killed."""
        while True:
            while (pid := self.reap(os.WNOHANG)) > 0:
                pass
            if pid < 0:
                return
            # Children of those who die become ours: they are found in the next round.
            dying = signal_descendants(signal.SIGKILL)
            if not dying:
                return
            while dying and (pid := self.reap(0)) > 0:
                dying.discard(pid)


def signal_descendants(number: int) -> set[int]:
    """Send a signal to all descendants; return the direct children who took it.

    Groups are signalled as groups: that is atomic against a fork, and reaches each process
    once. A group never holds strangers, for none but descendants can join it.
    """
    own = os.getpid()
    children: dict[int, list[ProcessInfo]] = {}
    for process in processes():
        children.setdefault(process.parent, []).append(process)
    descendants: list[ProcessInfo] = []
    parents = [own]
    while parents:
        below = children.pop(parents.pop(), ())
        descendants += below
        parents += [process.pid for process in below]
    for group in {process.group for process in descendants} - {own}:
        _took(os.killpg, group, number)
    return {
        process.pid
        for process in descendants
        if (process.group == own or number == signal.SIGKILL)
        and _took(os.kill, process.pid, number)
        and process.parent == own
    }


def _took(send: Callable[[int, int], None], target: int, number: int) -> bool:
    """Send a signal; False where the target has gone or belongs to another user."""
    try:
        send(target, number)
    except OSError:
        return False
    return True
