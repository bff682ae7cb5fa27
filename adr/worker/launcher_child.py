"""The process that starts the jobs of one slot, and sees to it that nothing of them stays.

`adr.worker.launcher` runs `main` in a bare interpreter and talks to it through two pipes
(`adr.worker.messages`). This module imports a few small ones only, and of adr but two that do
so as well, because it has to start quickly and because its resident memory is the least that
the kernel reports as the peak of a job.

It is a child subreaper: whatever a job starts, however it detaches, stays a descendant of
this process. As it runs one job at a time, the descendants that are left when the job's main
process has ended belong to that job, and are killed before the answer is given
(`adr.worker.descendants`). When the pipe of the requests closes, because the worker closed it
or died, all descendants are killed as well, and this process leaves.

A request is for a shell with a script, or for a program that takes the place of that shell:
what bash would give the program and say of its end, it then has to give and say itself.

It may have to become another user first, so that jobs have none of the worker's rights. It
does so itself rather than through a program that is run as that user: a process that changed
its user is closed to others of that user, so no job can speak to the worker in its place,
nor need that user be able to read this interpreter.

What cannot be killed: processes of another user (started by sudo). They are left behind.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import select
import signal
import stat
import time

from adr.worker.descendants import Reaper, signal_descendants
from adr.worker.kernellease import lease_for_a_moment
from adr.worker.messages import Inbox, pack, send

# What typing.TYPE_CHECKING is to a type checker, without the megabyte of typing.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = ["TAIL_BYTES", "main"]

#: As much of the end of a job's output travels in its record.
TAIL_BYTES = 2048

_PR_SET_DUMPABLE = 4
_PR_SET_NAME = 15
_PR_SET_CHILD_SUBREAPER = 36
_PR_SET_NO_NEW_PRIVS = 38
_CAPABILITY_VERSION = 0x20080522
_LOOK_S = 0.25
#: In thousandths of all memory: what a job is taken for using more than it does.
_EXPENDABLE = 500
_MOST_EXPENDABLE = 1000
_NEVER = float("inf")
_KIB = 1024
#: What bash says where a program of its script ends by TERM; its script ends so, too.
_TERMINATED = 128 + signal.SIGTERM
#: Of programs that end by these, bash says nothing.
_SILENT = (signal.SIGINT, signal.SIGPIPE)
#: So long a program is taken to be where it was found.
_FOUND_S = 1.0


def _find(name: bytes, path: bytes) -> bytes:
    if b"/" in name:
        return name
    for folder in path.split(b":"):
        candidate = (folder or b".") + b"/" + name
        if os.access(candidate, os.X_OK) and not os.path.isdir(candidate):
            return candidate
    raise FileNotFoundError(f"not found in {os.fsdecode(path)}")


def _open_log(path: bytes) -> int:
    """Open an empty log that nobody else has open.

    To remove and make a file costs more than to run some jobs, so that the one that the last job
    has left empty serves the next. But whoever still has it open, who follows that job or has
    got away, is not to read or write what is of another one.
    """
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return os.open(path, flags, 0o600)
    if stat.S_ISREG(mode):
        log = os.open(path, flags, 0o600)
        if _is_unused(log):
            return log
        os.close(log)
    # A device is what the worker means; what else is no file, the last job has put there.
    if not stat.S_ISCHR(mode):
        # Where that is not allowed, the worker has made the file for this job.
        with contextlib.suppress(PermissionError):
            os.unlink(path)
    return os.open(path, flags, 0o600)


def _is_unused(fd: int) -> bool:
    """Tell whether nobody else has a file open, as far as that can be known."""
    try:
        lease_for_a_moment(fd, fcntl.F_WRLCK)
    except OSError:
        return False
    return True


def _tail(log_path: bytes, length: int) -> bytes:
    """Return the end of a log; nothing where the job has removed it."""
    try:
        fd = os.open(log_path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        return os.pread(fd, TAIL_BYTES, max(0, length - TAIL_BYTES))
    finally:
        os.close(fd)


class _Score:
    """What the kernel adds to this process where it chooses whom to kill for want of memory.

    Jobs inherit it, so that they go before workers and launchers, however small each of their
    processes is.
    """

    def __init__(self) -> None:
        self._fd, self._usual = -1, 0
        try:
            self._fd = os.open("/proc/self/oom_score_adj", os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            # There is none: then the largest process is taken.
            return
        self._usual = int(os.read(self._fd, 16))

    def set(self, more: int) -> None:
        """Add so much to the usual one."""
        if self._fd >= 0:
            os.pwrite(self._fd, b"%d" % min(self._usual + more, _MOST_EXPENDABLE), 0)


class _Jobs:
    """Run the jobs of one slot."""

    def __init__(self, requests: int, answers: int, score: _Score) -> None:
        self._score = score
        self._inbox = Inbox(requests)
        self._answers = answers
        self._null = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
        self._wakeup, wakeup = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
        signal.set_wakeup_fd(wakeup, warn_on_full_buffer=False)
        self._poll = select.poll()
        self._poll.register(requests, select.POLLIN)
        self._poll.register(self._wakeup, select.POLLIN)
        self._signals = signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}
        #: Name and PATH of the program last sought, where it is, and until when that holds.
        self._found: tuple[bytes, bytes, bytes, float] = (b"", b"", b"", 0.0)

    def serve(self) -> None:
        """Run jobs until the worker is gone."""
        reaper = Reaper()
        try:
            while True:
                for message in self._inbox.read():
                    # A stop that crossed the answer of its job concerns nobody.
                    if isinstance(message, tuple):
                        reaper = Reaper()
                        send(self._answers, pack(self.run(reaper, *message)))
        except (EOFError, BrokenPipeError):
            pass
        finally:
            reaper.end_all()

    def run(
        self,
        reaper: Reaper,
        argv: list[bytes],
        cwd: bytes,
        env: dict[bytes, bytes],
        log_path: bytes,
        timeout_s: float | None,
        term_s: float,
        log_limit_bytes: int,
        instead_of_bash: bool,
    ) -> tuple[Any, ...]:
        """Run one job and all it starts to the end; return the fields of its `Ending`."""
        started_at = time.time()
        log = -1
        doing = "enter the directory of the job"
        found = True
        try:
            os.chdir(cwd)
            doing = "open the log of the job"
            log = _open_log(log_path)
            doing = f"start {os.fsdecode(argv[0])}"
            found = False
            program = self._find(argv[0], env)
            if instead_of_bash:
                env[b"PWD"], env[b"_"] = os.getcwdb(), program
            reaper.main = self._spawn(program, argv, env, log)
        except (OSError, ValueError) as error:
            if log >= 0:
                os.close(log)
            reason = getattr(error, "strerror", None) or str(error)
            error_text = f"cannot {doing}: {reason}"
            return (None, None, started_at, time.time(), 0, 0.0, "", error_text, 0, b"", found)
        finally:
            os.chdir("/")
        try:
            stopped_by = self._wait(reaper, timeout_s, term_s, log, log_limit_bytes)
            ended_at = time.time()
            reaper.end_all()
            assert reaper.status is not None
            code = os.waitstatus_to_exitcode(reaper.status)
            if instead_of_bash:
                code = self._as_bash_ends(code, reaper.status, stopped_by, log)
            # However short the job was: whether it wrote too much is not a matter of luck.
            length = os.fstat(log).st_size
            if length > log_limit_bytes:
                stopped_by = stopped_by or "output"
                length = log_limit_bytes
                os.ftruncate(log, length)
        finally:
            os.close(log)
        return (
            code if code >= 0 else None,
            -code if code < 0 else None,
            started_at,
            ended_at,
            reaper.peak_kib * _KIB,
            reaper.cpu_s,
            stopped_by,
            "",
            length,
            _tail(log_path, length) if length else b"",
            True,
        )

    def _find(self, name: bytes, env: dict[bytes, bytes]) -> bytes:
        path = env.get(b"PATH", os.defpath.encode())
        known, known_path, program, until = self._found
        if (known, known_path) != (name, path) or time.monotonic() > until:
            program = _find(name, path)
            self._found = (name, path, program, time.monotonic() + _FOUND_S)
        return program

    @staticmethod
    def _as_bash_ends(code: int, status: int, stopped_by: str, log: int) -> int:
        """Tell how bash would have ended with this program in the script of a job.

        What this process kills, it kills with its shell. Sent TERM, that shell waits for the
        program and ends with 143, however the program ended.
        """
        if code == -signal.SIGKILL and stopped_by:
            return code
        if code < 0:
            number, code = -code, 128 - code
            if number not in _SILENT:
                said = signal.strsignal(number) or f"Unknown signal {number}"
                dumped = " (core dumped)" if os.WCOREDUMP(status) else ""
                # On a full disk bash could not say it either.
                with contextlib.suppress(OSError):
                    os.write(log, f"{said}{dumped}\n".encode())
        return _TERMINATED if stopped_by in ("timeout", "order") else code

    def _spawn(self, program: bytes, argv: list[bytes], env: dict[bytes, bytes], log: int) -> int:
        # Not setsid=True, which pythons built for an old glibc lack: a group is enough,
        # since this process leads a session without a terminal.
        self._score.set(_EXPENDABLE)
        try:
            return os.posix_spawn(
                program,
                argv,
                env,
                file_actions=[
                    (os.POSIX_SPAWN_DUP2, self._null, 0),
                    (os.POSIX_SPAWN_DUP2, log, 1),
                    (os.POSIX_SPAWN_DUP2, log, 2),
                ],
                setpgroup=0,
                setsigmask=[],
                setsigdef=self._signals,
            )
        finally:
            self._score.set(0)

    def _wait(
        self, reaper: Reaper, timeout_s: float | None, term_s: float, log: int, limit: int
    ) -> str:
        """Wait for the job's main process, stop it where it must be; return why it was."""
        now = time.monotonic()
        stopped_by = ""
        timeout_at = _NEVER if timeout_s is None else now + timeout_s
        kill_at = _NEVER
        look_at = now + _LOOK_S
        while True:
            wait_s = min(timeout_at, kill_at, look_at) - now
            orders = []
            for fd, _ in self._poll.poll(max(0, int(wait_s * 1000) + 1)):
                if fd == self._wakeup:
                    os.read(fd, 4096)
                else:
                    orders = self._inbox.read()
            while reaper.reap(os.WNOHANG) > 0:
                pass
            if reaper.status is not None:
                return stopped_by
            now = time.monotonic()
            reason, grace_s = "", term_s
            if orders:
                reason = "order"
                grace_s = min(term_s if each is None else each for each in orders)
            elif now >= timeout_at:
                reason = "timeout"
                timeout_at = _NEVER
            elif now >= look_at:
                look_at = now + _LOOK_S
                # A flood of output has to end at once, so this one gets no time to clean up.
                if os.fstat(log).st_size > limit:
                    reason, grace_s = "output", 0
            if reason:
                stopped_by = stopped_by or reason
                if grace_s > 0 and kill_at == _NEVER:
                    signal_descendants(signal.SIGTERM)
                kill_at = min(kill_at, now + grace_s)
            if now >= kill_at:
                signal_descendants(signal.SIGKILL)
                kill_at = now + 1.0


def _become(libc: ctypes.CDLL, uid: int, gid: int, groups: tuple[int, ...]) -> None:
    """Give up this process's user for another one, and all privileges with it, for good."""
    os.setgroups(groups)
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)
    # Between two users of whom neither is root, the capabilities stay. Without permitted and
    # inheritable ones, there are no ambient ones either.
    head, none = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION, 0), (ctypes.c_uint32 * 6)()
    if (
        libc.capset(head, none)
        or libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        or libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
    ):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def main(requests: int, answers: int, *ids: int) -> None:
    """Serve the worker at the other end of two pipes, until it closes the first; never returns.

    `ids` are the user, group and groups to become before anything else, if any.
    """
    for fd in (requests, answers):
        os.set_inheritable(fd, False)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)
    # As the other user it could not: it is closed to itself then.
    score = _Score()
    libc = ctypes.CDLL(None, use_errno=True)
    if ids:
        try:
            _become(libc, ids[0], ids[1], ids[2:])
        except OSError as error:
            raise SystemExit(f"adr: cannot become user {ids[0]}: {error.strerror}") from None
    if libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "this system has no child subreapers")
    # Under a name of its own, a job that calls `pkill python` does not end its launcher.
    libc.prctl(_PR_SET_NAME, b"adr-launcher", 0, 0, 0)
    os.chdir("/")
    _Jobs(requests, answers, score).serve()
    # The worker waits for this process, and there is nothing to put in order.
    os._exit(0)
