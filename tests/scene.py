"""What tests of crashes and faults have: a runner, inputs that each prove a job, real processes.

Each job notes beside the workspace that it began, waits there if the test holds it, and
writes a file that only this attempt of it can have written. `Scene.check` says whether all is
well in the end; what that means is in `tests.invariants`.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import adr
from adr.decisions import visible
from adr.runner import open_runner
from tests import invariants
from tests.nursery import nursery
from tests.proxy import DROP, Call
from tests.rules import Action, Dropped

_ROOT = Path(__file__).resolve().parents[1]

#: Who it is, is appended in one write; a job that is held waits for its file to be removed.
_JOB = """\
parent() { cut -d" " -f4 "/proc/$1/stat"; }
kill_worker() { kill -9 "$(parent "$(parent "$PPID")")"; sleep 60; }
input=$1
number=${input##*-}; number=${number%.txt}
if [ -e "$SIDE/stubborn" ]; then trap "" TERM; fi
echo "$ADR_ATTEMPT" >> "$SIDE/runs-$number"
while [ -e "$SIDE/hold-$number" ]; do sleep 0.05; done
if [ -e "$SIDE/deadly-$number" ]; then kill_worker; fi
{ echo "$ADR_BATCH $number $ADR_ATTEMPT"; cat "$input"; } > proof.txt
echo "$ADR_ATTEMPT" >> "$SIDE/ends-$number"
"""


def killing(pid: int) -> Action:
    """Return what a proxy does to kill a process and cut off what it was about to hear."""

    def kill(call: Call) -> Dropped:
        os.kill(pid, signal.SIGKILL)
        return DROP

    return kill


class Process:
    """One process of adr, in a session of its own like any that a terminal starts."""

    def __init__(self, command: Sequence[str], log: Path, env: dict[str, str]) -> None:
        self.log = log
        #: Most memory it had, as known when it was told to end or was last asked.
        self.peak_bytes = 0
        self.pid, self._end = self._begin(command, {**os.environ, **env})

    def _begin(self, command: Sequence[str], env: dict[str, str]) -> tuple[int, Future[int]]:
        """Start Python with this command line; return its id, and its exit status to come."""
        with self.log.open("wb") as stream:
            process = subprocess.Popen(
                [sys.executable, *command],
                cwd=_ROOT,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        end: Future[int] = Future()
        threading.Thread(target=lambda: end.set_result(process.wait()), daemon=True).start()
        return process.pid, end

    def signal(self, number: int) -> None:
        if self.is_running:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def memory(self) -> int:
        """Return how much memory it has now, in bytes, and note its peak (Linux)."""
        try:
            text = Path(f"/proc/{self.pid}/status").read_text()
        except FileNotFoundError:
            return 0
        found = {line.split(":")[0]: line.split()[1:2] for line in text.splitlines()}
        if "VmRSS" not in found:
            return 0
        self.peak_bytes = int(found["VmHWM"][0]) << 10
        return int(found["VmRSS"][0]) << 10

    def kill(self) -> None:
        """Kill as ``kill -9`` does, and wait for the end."""
        self.signal(signal.SIGKILL)
        assert self.ended() == -signal.SIGKILL, self.output()

    def end(self) -> None:
        """End in good order, with SIGTERM."""
        self.memory()
        self.signal(signal.SIGTERM)
        assert self.ended() == 0, self.output()

    def ended(self, timeout: float = 40) -> int:
        """Wait for the end; return the exit status, negative for a signal."""
        try:
            return self._end.result(timeout)
        except TimeoutError:
            raise AssertionError(f"still runs after {timeout} s:\n{self.output()}") from None

    @property
    def is_running(self) -> bool:
        return not self._end.done()

    def output(self) -> str:
        """Return what it has said so far; it makes its log itself."""
        return self.log.read_text("utf-8", "backslashreplace") if self.log.exists() else ""

    def clean_up(self) -> None:
        self.signal(signal.SIGKILL)
        self._end.result()


class Forked(Process):
    """The same, begun in no time: its command line is that of `tests.drive`."""

    def _begin(self, command: Sequence[str], env: dict[str, str]) -> tuple[int, Future[int]]:
        return nursery().start(command, self.log, env)


class Scene:
    """A runner and what happens around it.

    Parameters
    ----------
    kind : str
        ``"local"`` or ``"aws"``.
    folder : Path
        For everything the test writes.
    find : callable
        The fixture `descendants_with_env`.
    """

    def __init__(self, kind: str, folder: Path, find: Callable[[str, str], list[int]]) -> None:
        self.kind = kind
        self.folder = folder
        self._find = find
        self.side = folder / "side"
        self.inputs = folder / "inputs"
        self.workingdir = folder / "work"
        for each in (self.side, self.inputs, self.workingdir):
            each.mkdir()
        (self.inputs / "job.sh").write_text(_JOB)
        self.jobs: list[int] = []
        self._processes: list[Process] = []
        self.runner = ""
        #: Workers that a test has called warm, with their memory at that time.
        self.warm: dict[Process, int] = {}

    def create(self) -> None:
        local = self.kind == "local"
        place = str(self.folder / "runner") if local else None
        self.runner = adr.create(local=local, directory=place)
        opened = open_runner(self.runner, **({} if local else SHORT))
        self.ledger, self.roster = opened.ledger, opened.roster

    def make(self, jobs: int) -> list[str]:
        """Write so many inputs; return the words by which a command line queues them."""
        self.jobs = list(range(1, jobs + 1))
        files = []
        for number in self.jobs:
            path = self.inputs / f"case-{number}.txt"
            path.write_text(self.secret(number))
            files.append(str(path))
        return [f"--command={self.command}", f"--env=SIDE={self.side}", "--", *files]

    command = "bash job.sh {}"

    def queue(self, jobs: int, **options: Any) -> str:
        """Queue so many jobs, from this process, with options of `adr.queue`."""
        files = self.make(jobs)[3:]
        options |= {"command": self.command, "env": {"SIDE": str(self.side)}}
        return adr.queue(self.runner, files, **options)

    # Processes

    def start(self, *words: str, **settings: Any) -> Process:
        """Start ``python -m tests.drive`` with these settings and words."""
        log = self.folder / f"process-{len(self._processes)}.log"
        # By its scene a process is found again, with all that it starts.
        process = Forked([json.dumps(settings), *words], log, {"SCENE": str(self.folder)})
        self._processes.append(process)
        return process

    def worker(self, *, times: dict[str, float] | None = None, **settings: Any) -> Process:
        """Start a worker; `times` are for one on AWS and short where none are given."""
        if self.kind == "aws":
            settings |= {"times": {**SHORT, **(times or {})}, "poll_s": 1}
        return self.start("worker", self.runner, str(self.workingdir), **settings)

    def finish(self) -> None:
        """Let a new worker deal with all that is left, and end it."""
        worker = self.worker(slots=4)
        # There may be nothing left, and it does not listen to signals yet.
        self.wait(lambda: any(info.pid == worker.pid for info in self.roster.alive()))
        self.await_empty()
        worker.end()

    def await_empty(self, timeout: float = 30) -> None:
        """Wait until no job is in the queue, whether waiting or leased."""
        self.wait(lambda: self.ledger.depth().empty, timeout)

    def clean_up(self) -> None:
        for process in self._processes:
            process.clean_up()
        for pid in self.pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    # What jobs do

    def hold(self, *jobs: int) -> None:
        """Let these jobs wait once they have begun."""
        for job in jobs:
            (self.side / f"hold-{job}").touch()

    def let_go(self, *jobs: int) -> None:
        for job in jobs:
            (self.side / f"hold-{job}").unlink()

    def deadly(self) -> list[int]:
        """Return the jobs that kill their worker, as a machine that crashes does."""
        return [int(path.name.rpartition("-")[2]) for path in self.side.glob("deadly-*")]

    def spare(self, job: int) -> None:
        (self.side / f"deadly-{job}").unlink()

    def runs(self, job: int) -> int:
        """Return how often a job has begun."""
        return len(self.attempts("runs", job))

    def ends(self, job: int) -> int:
        """Return how often a job has come to its end."""
        return len(self.attempts("ends", job))

    def attempts(self, what: str, job: int) -> list[str]:
        """Return the attempts of a job that have begun (``runs``) or come to their ``ends``."""
        try:
            return (self.side / f"{what}-{job}").read_text().split()
        except FileNotFoundError:
            return []

    def all_runs(self) -> list[int]:
        return [self.runs(job) for job in self.jobs]

    def all_ends(self) -> int:
        """Return how many jobs have come to their end."""
        return sum(path.name.startswith("ends-") for path in self.side.iterdir())

    def await_ends(self, jobs: int, timeout: float = 30) -> None:
        """Wait until so many jobs have come to their end at least once."""
        self.wait(lambda: self.all_ends() >= jobs, timeout)

    def await_run(self, job: int, times: int = 1, timeout: float = 30) -> None:
        self.wait(lambda: self.runs(job) >= times, timeout)

    def pids(self) -> list[int]:
        """Return all processes of this scene: workers, launchers, jobs and what those began."""
        alive = {process.pid for process in self._processes if process.is_running}
        return sorted(alive.union(self._find("SCENE", str(self.folder))))

    def await_no_process(self, timeout: float = 10) -> None:
        self.wait(lambda: not self.pids(), timeout)

    def wait(self, condition: Callable[[], Any], timeout: float = 30) -> None:
        deadline = time.monotonic() + timeout
        began = time.monotonic()
        while not condition():
            now = time.monotonic()
            if now > deadline:
                logs = "\n".join(f"{each.log.name}:\n{each.output()}" for each in self._processes)
                raise AssertionError(f"not true within {timeout} s\n{logs}")
            # Looking is not to keep busy what is waited for.
            time.sleep(max(0.03, min(4 * (now - began), 0.3)))
            began = time.monotonic()

    # What is left in the end

    def records(self, batch: str) -> list[Any]:
        return self.ledger.records([batch])

    def visible(self, batch: str) -> dict[int, Any]:
        return {index: each for (_, index), each in visible(self.records(batch)).items()}

    def decided(self, batch: str) -> int:
        return len(self.visible(batch))

    def keep_warm(self, *workers: Process) -> None:
        """Let `check` assert that these workers need no more memory from now on."""
        self.warm |= {worker: worker.memory() for worker in workers}

    def check(self, batch: str, failed: Mapping[int, str] | None = None) -> None:
        """Assert that every job has one outcome, the right one, and nothing is left.

        See `tests.invariants.check`.
        """
        invariants.check(self, batch, failed)

    # What ``adr run`` has published

    def run_words(self, jobs: int, slots: int = 1) -> list[str]:
        """Write so many inputs; return the words of a command line that runs them."""
        words = ["run", f"--to={self.results}", f"--slots={slots}"]
        return words + self.make(jobs)

    @property
    def results(self) -> Path:
        return self.folder / "results"

    def published(self) -> set[int]:
        found = self.results.glob("case-*/proof.txt")
        return {int(path.parent.name.removeprefix("case-")) for path in found}

    def check_published(self) -> None:
        """Assert that the results of a run are there, each of its job, and nothing is left."""
        invariants.check_published(self)

    def secret(self, job: int) -> str:
        """Return the content of the input of a job."""
        return f"of {job} in {self.folder}\n"


#: Times of workers on AWS, in seconds, with which a lost lease is noticed soon.
SHORT = {"visibility_s": 4, "heartbeat_s": 0.6, "dead_after_s": 4}
