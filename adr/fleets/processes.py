"""Which process of this machine it is: its pid is not enough, since the kernel uses it again.

With the time of its start and the boot that this belongs to it is, on Linux (``proc(5)``); where
there is no ``/proc``, the pid has to do.
"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

__all__ = ["OneProcess", "inherited"]


@dataclass(frozen=True)
class OneProcess:
    """Name one process, whatever becomes of its pid."""

    pid: int
    #: Start in ticks since the boot, and id of the boot; empty where there is no /proc.
    started: str
    boot: str

    @classmethod
    def of(cls, pid: int) -> OneProcess:
        """Name the process that has this pid now."""
        return cls(pid, _start_of(pid), _boot_id())

    @property
    def runs(self) -> bool:
        """Tell whether the process is there and no zombie."""
        if not self.started:
            return _answers(self.pid)
        if self.boot != _boot_id() or self.started != _start_of(self.pid):
            return False
        if _state_of(self.pid) not in ("Z", "X"):
            return True
        # One of our own children, of which nobody else will take note.
        with suppress(ChildProcessError):
            os.waitpid(self.pid, os.WNOHANG)
        return False

    def send(self, number: int) -> None:
        """Send a signal, to this process and no other."""
        if self.runs:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)


def inherited() -> list[int]:
    """Return what this process has open from its own parent, and would pass on."""
    found = []
    for name in os.listdir("/dev/fd"):
        # That of the listing itself is closed by now.
        with suppress(OSError):
            if os.get_inheritable(int(name)):
                found.append(int(name))
    return found


def _stat(pid: int) -> list[str]:
    """Return what follows the name in ``/proc/<pid>/stat``, which may itself hold brackets."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace")
    except OSError:
        return []
    return text.rpartition(")")[2].split()


def _state_of(pid: int) -> str:
    """Return field 3, such as ``S`` or ``Z``."""
    return next(iter(_stat(pid)), "")


def _start_of(pid: int) -> str:
    """Return field 22, the time of the start in ticks since the boot."""
    fields = _stat(pid)
    return fields[22 - 3] if len(fields) > 22 - 3 else ""


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
    except OSError:
        return ""


def _answers(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
