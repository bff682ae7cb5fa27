"""How a slot runs a process and everything it starts, to its very end.

A slot owns one `Launcher`, which owns one child process (`adr.worker.launcher_child`) that
starts the jobs; they speak to each other by `adr.worker.messages`. One launcher process per
slot, so that the kernel itself tells which processes belong to which job: all descendants of
that process do. It outlives a worker that is killed just long enough to kill what runs.

The price is a process of some 9 MB per slot, and that no job is reported with a smaller
peak memory than that.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

from adr.worker.descendants import processes
from adr.worker.jobuser import JobUser
from adr.worker.messages import Inbox, pack, send

__all__ = ["Ending", "Launcher"]

# Imported, the child is not compiled at each start. Its packages are empty: those of adr would
# bring much with them.
_CHILD = """
import sys
for name, folder in ("adr", ""), ("adr.worker", "/worker"):
    sys.modules[name] = package = type(sys)(name)
    package.__path__ = [sys.argv[1] + folder]
from adr.worker.launcher_child import main
main(*map(int, sys.argv[2:]))
"""
_ADR = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_COMMAND = (sys.executable, "-I", "-S", "-c", _CHILD, _ADR)


@dataclass(frozen=True)
class Ending:
    """Tell how a job's main process ended."""

    #: None where it was ended by a signal or never ran.
    exit_code: int | None
    #: Number of the signal that ended it.
    signal: int | None
    started_at: float
    ended_at: float
    #: Largest resident set of one of its processes, at least that of the launcher.
    peak_memory_bytes: int
    #: User and system time of all its processes.
    cpu_s: float
    #: ``"timeout"``, ``"order"``, ``"output"`` (the log grew too large), or empty.
    stopped_by: str
    #: Why it could not be started or followed, in words; empty where it was.
    error: str
    #: Length of the output.
    output_bytes: int = 0
    #: The end of it.
    tail: bytes = b""
    #: False where there is no such program, or the system does not take it for one.
    found: bool = True


class Launcher:
    """Run one process after the other, each with all its descendants.

    The launcher process is started on first use or by `start`, and anew where it died. All
    methods may be called from any thread; a second `run` waits for the first.

    Parameters
    ----------
    user : JobUser, optional
        Whom the launcher process and all it runs belong to; without, the user of this process.
    """

    def __init__(self, user: JobUser | None = None) -> None:
        self._user = user
        #: Held by who reads the answers or ends the process.
        self._turn = threading.Lock()
        #: Guards the fields below, and sending.
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        #: The pipe to the process; None where there is none, or it was told to leave.
        self._requests: int | None = None
        self._answers: Inbox | None = None
        self._running = False
        self._closed = False

    def run(
        self,
        argv: Sequence[str | bytes],
        *,
        cwd: str | os.PathLike[str],
        env: dict[bytes, bytes],
        log_path: str | os.PathLike[str],
        timeout_s: float | None,
        term_s: float = 10.0,
        log_limit_bytes: int = 1 << 30,
        instead_of_bash: bool = False,
    ) -> Ending:
        """Run a program and return when it and all its descendants have ended.

        Its standard input is empty; output and errors go, in order, to the log. It leads a
        process group of its own, with default signal handling. Descendants that are left
        when the program itself has ended are killed.

        Parameters
        ----------
        argv : sequence of str or bytes
            Program, sought in the PATH of `env` unless it contains a slash, and arguments.
        cwd : path
            Directory to start in.
        env : dict
            The whole environment.
        log_path : path
            File for the output, made or emptied; cut to `log_limit_bytes`.
        timeout_s : float or None
            Seconds after which all its processes are sent TERM.
        term_s : float, optional
            Seconds between TERM and KILL.
        log_limit_bytes : int, optional
            Size of the log beyond which all its processes are killed.
        instead_of_bash : bool, optional
            The program is all that the script of a job would run: it is given, and its end is
            told, as bash would do that. Where it is not `Ending.found`, bash has to try.

        Returns
        -------
        Ending
            Also where the program could not be started or the launcher died: see `error`.
        """
        started_at = time.time()
        with self._turn:
            try:
                request = (
                    [os.fsencode(each) for each in argv],
                    _absolute(cwd),
                    env,
                    _absolute(log_path),
                    timeout_s,
                    term_s,
                    log_limit_bytes,
                    instead_of_bash,
                )
                answers = self._begin(pack(request))
                if answers is None:
                    return _not_run(started_at, stopped_by="order")
                while True:
                    for answer in answers.read():
                        return Ending(*answer)
            except (EOFError, BrokenPipeError):
                fate = self._end()
                if self._closed:
                    return _not_run(started_at, stopped_by="order")
                return _not_run(started_at, error=f"the launcher of the job died ({fate})")
            except (OSError, ValueError) as error:
                return _not_run(started_at, error=f"cannot run the job: {error}")
            except BaseException:
                # The answer would be taken for that of the next job.
                self._end()
                raise
            finally:
                with self._lock:
                    self._running = False

    def stop(self, term_s: float | None = None) -> bool:
        """End the running job: TERM to all its processes, KILL after `term_s`.

        Does not wait: `run` returns when all is over, with `stopped_by` ``"order"``. Calling
        again can only bring the KILL forward.

        Parameters
        ----------
        term_s : float, optional
            Seconds between TERM and KILL, without those of `run`; 0: KILL at once.

        Returns
        -------
        bool
            False where no job was running. A job that is about to start is not stopped by
            it: who means to end whatever comes calls `close`.
        """
        with self._lock:
            if not self._running or self._requests is None:
                return False
            with contextlib.suppress(OSError):
                send(self._requests, pack(term_s))
            return True

    def start(self) -> None:
        """Start the launcher process now, where its first job can be expected; does not wait.

        Raises
        ------
        OSError
            If that is not possible.
        """
        with self._turn, self._lock:
            if self._process is None and not self._closed:
                self._start()

    def leave(self) -> None:
        """Let the launcher process kill what runs and end, without waiting for it; idempotent."""
        with self._lock:
            self._closed = True
            self._close_requests()

    def close(self) -> None:
        """Kill what runs, end the launcher process and wait for it; idempotent.

        A `run` in progress, and any later one, returns with `stopped_by` ``"order"``.
        """
        self.leave()
        with self._turn:
            self._end()

    def _begin(self, request: bytes) -> Inbox | None:
        """Send the request to a live launcher process; None where this launcher is closed."""
        with self._lock:
            if self._requests is not None:
                try:
                    send(self._requests, request)
                except BrokenPipeError:
                    # It has died since its last job, and has begun nothing of this one.
                    self._close_requests()
                else:
                    self._running = True
                    return self._answers
        self._end()
        with self._lock:
            if self._closed:
                return None
            send(self._start(), request)
            self._running = True
            return self._answers

    def _start(self) -> int:
        """Start a launcher process and return the pipe to it."""
        user = self._user
        ids = [str(each) for each in (user.uid, user.gid, *user.groups)] if user else []
        theirs, requests = os.pipe()
        try:
            answers, their_answers = os.pipe()
        except OSError:
            os.close(theirs)
            os.close(requests)
            raise
        try:
            self._process = subprocess.Popen(
                [*_COMMAND, str(theirs), str(their_answers), *ids],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[theirs, their_answers],
                # It becomes that user's process, whose variables he can see.
                env=user.environment() if user else None,
                start_new_session=True,
            )
        except BaseException:
            os.close(requests)
            os.close(answers)
            raise
        finally:
            os.close(theirs)
            os.close(their_answers)
        self._requests, self._answers = requests, Inbox(answers)
        return requests

    def _close_requests(self) -> None:
        if self._requests is not None:
            os.close(self._requests)
            self._requests = None

    def _end(self) -> str:
        """End the launcher process, which kills what it runs; say what became of it."""
        with self._lock:
            self._close_requests()
            process, self._process = self._process, None
            answers, self._answers = self._answers, None
        if process is None or answers is None:
            return ""
        os.close(answers.fd)
        if process.returncode is None:
            # While it is not waited for, no other session can have its number.
            ended = os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
            if ended is None or (ended.si_code, ended.si_status) != (os.CLD_EXITED, 0):
                _end_session(process.pid)
        code = process.wait()
        return f"signal {-code}" if code < 0 else f"exit code {code}"


def _absolute(path: str | os.PathLike[str]) -> bytes:
    name = os.fsencode(path)
    return name if name.startswith(b"/") else os.path.abspath(name)


def _end_session(session: int) -> None:
    """Kill what a launcher that was itself killed has left in its session."""
    dying = True
    while dying:
        dying = False
        for each in processes():
            if each.session == session and each.pid != session and not each.zombie:
                # Processes of another user stay: there is nothing to wait for.
                with contextlib.suppress(OSError):
                    os.kill(each.pid, signal.SIGKILL)
                    dying = True
        if dying:
            time.sleep(0.01)


def _not_run(started_at: float, *, stopped_by: str = "", error: str = "") -> Ending:
    return Ending(None, None, started_at, time.time(), 0, 0.0, stopped_by, error)
