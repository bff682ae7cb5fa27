"""Waiting, failures, cancelling and pausing as they are typed, and a status that redraws."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from adr.controloutput import group_lines
from adr.joboutput import status_frame
from adr.likeness import FailureGroup
from adr.models import Job, JobRecord, JobState
from adr.runner import open_runner
from adr.views import BatchStatus, Counts, JobView, Status
from adr.workerinfo import WorkerInfo
from tests.e2e.conftest import Shell

CASES = {f"case_{n:02}.inp": f"{n}\n" for n in range(1, 13)}
#: The first six crash, two complain, one takes too long, three succeed.
COMMAND = """\
n=$(cat {}); case $n in
[1-6]) echo "step $n of {/.}"; kill -SEGV $$ ;;
7|8) echo "ValueError: $n.5 is bad in {/}"; exit 3 ;;
9) sleep 30 ;;
esac"""


@pytest.fixture
def here(shell: Shell) -> Shell:
    """Return a shell with a local runner and input files, in this process."""
    shell.inside = True
    shell.write(CASES)
    shell("create", "--local")
    return shell


def test_what_came_of_a_batch_is_waited_for_and_told(here: Shell) -> None:
    # given nothing yet
    assert here("wait", status=2).err == (
        "adr: there is nothing to wait for: queue a batch with adr queue\n"
    )
    assert "nothing has failed: there are no jobs" in here("failures").err
    # and then jobs that nobody works on
    batch = here("queue", "--timeout=0.5", "--command", COMMAND, *CASES).lines[0]
    done = here("wait", "--timeout=0.1", status=3)
    assert "12 jobs wait and no worker runs" in done.err
    assert "the time is over, with 12 jobs undecided: 12 queued" in done.err
    assert "no batch nickling" in here("wait", "--batch=nickling", status=2).err
    assert "nothing has failed: 12 jobs, 12 not decided yet" in here("failures").err

    # when they have been processed
    here("process", "--stop-on-empty", "--slots=3")

    # then waiting ends at once, and says how
    assert "12 jobs: 3 succeeded, 9 failed\nadr failures" in here("wait", status=1).err
    done = here("wait", "--json", "--quiet", f"--batch={batch}", status=1)
    assert done.err == ""
    assert (done.json["state"], done.json["batch"]) == ("failed", batch)
    assert done.json["totals"]["succeeded"] == 3

    # and those that failed alike stand together
    done = here("failures")
    assert done.lines[:2] == [
        '6 × exit 139 (SIGSEGV) "step … of case_…" e.g. case_01, case_02, case_03 …',
        '2 × exit 3 "ValueError: … is bad in case_….inp" in case_07, case_08',
    ]
    (last,) = done.lines[2:]
    assert last.startswith("1 × ran longer than its time limit of 0.5 s")
    assert last.endswith("in case_09")
    assert "9 of 12 jobs failed, in 3 ways" in done.err
    found = here("failures", "--json").json
    assert [group["count"] for group in found["groups"]] == [6, 2, 1]
    assert [job["label"] for job in found["groups"][1]["jobs"]] == ["case_07", "case_08"]
    assert found["groups"][1]["jobs"][0]["output"] == "ValueError: 7.5 is bad in case_07.inp"
    assert here("failures", "case_1*").out == ""
    assert len(here("failures", f"{batch}/case_07", "case_01").lines) == 2
    assert "no job is named like 'dune'" in here("failures", "dune", status=2).err


def test_what_is_mended_and_queued_again_counts_no_more(here: Shell, tmp_path: Path) -> None:
    # given jobs that failed of something that is no input, and some that wait
    well = tmp_path / "well"
    words = ["queue", "--exclude=*.inp", "--command", f": {{}}; test -e {well}"]
    cases = sorted(CASES)
    batch = here(*words, *cases[:3]).lines[0]
    here("process", "--stop-on-empty")
    assert "3 jobs: 3 failed" in here("wait", status=1).err
    waiting = here(*words, *cases[3:5]).lines[0]
    # when that is mended, and all is queued once more with another limit
    well.touch()
    done = here(*words, "--timeout=60", "--json", *cases[:5])
    assert "3 jobs that had not succeeded are queued again in " + batch in done.err
    assert f"2 of these wait or run already in {waiting}, with other limits" in done.err
    assert (done.json["retried"], done.json["doubled"]) == ({batch: 3}, {waiting: 2})
    assert (done.json["jobs"], done.json["batch"] in (batch, waiting)) == (5, False)
    here("process", "--stop-on-empty")
    # then nothing is left of the failures
    assert "7 jobs: 7 succeeded" in here("wait").err
    assert "nothing has failed" in here("failures").err
    assert here(*words, *cases[:3]).lines == [batch]


def test_what_is_called_off_is_named_and_counted(here: Shell) -> None:
    batch = here("queue", "--command=true {}", *CASES).lines[0]

    # what is meant has to be said, and to be there
    for words in ([], ["--all", "case_01"], ["--all", f"--batch={batch}"]):
        assert "one of these" in here("cancel", *words, status=2).err
    assert "no job is named like 'dune'" in here("cancel", "dune", status=2).err
    assert "<job> is empty" in here("cancel", "", status=2).err
    assert "no batch nickling" in here("cancel", "--batch=nickling", status=2).err

    # it can be looked at before
    shown = here("cancel", "--dry-run", "case_0[12]", "case_12")
    assert shown.lines == [f"{batch}/case_{n}" for n in ("01", "02", "12")]
    assert shown.err == "would cancel 3 jobs: 3 waiting, 0 running\n"
    assert here("status", "--json").json["totals"]["queued"] == 12

    # and done twice
    assert here("cancel", "case_0[12]", "case_12").err == (
        "cancelled 3 jobs: 3 waiting, 0 running\n"
    )
    done = here("cancel", f"--batch={batch}", "--json")
    assert (done.json["cancelled"], done.json["decided"]) == (9, 3)
    assert here("cancel", "--all").err == "nothing to cancel: 12 jobs were decided already\n"
    store = open_runner(done.json["runner"]).store
    assert len(list(store.list("_control/cancel/"))) == 2, "none where nothing is to be done"


def test_a_pause_is_told_by_all_that_would_not_go_on(here: Shell) -> None:
    here("queue", "--command=true {}", *CASES)
    assert here("pause").err == "the runner is paused: 0 jobs run, 12 wait\n"
    assert here("pause").err == "the runner was and is paused: 0 jobs run, 12 wait\n"
    status = here("status")
    assert status.lines[-1] == "the runner is paused, and nothing begins: adr resume"
    assert here("status", "--json").json["paused"] is True
    assert "adr resume" in here("wait", "--timeout=0.1", status=3).err
    assert "--runner=" in here("process", "--idle=0.001").err

    done = here("resume", "--json")
    assert (done.json["paused"], done.json["changed"], done.json["waiting"]) == (False, True, 12)
    assert "no worker runs" in done.err
    assert "is not paused" in here("resume").err
    here("destroy", "--yes")
    assert "destroyed" in here("pause", f"--runner={done.json['runner']}", status=2).err


# A status that redraws


class Terminal:
    """A terminal of which `screen` keeps all that was written to it."""

    def __init__(self, width: int, height: int) -> None:
        self._master, self._slave = pty.openpty()
        self.resize(width, height)
        self.text = ""

    def resize(self, width: int, height: int) -> None:
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))

    def start(self, folder: Path, *words: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-m", "adr", *words],
            cwd=folder,
            env={**os.environ, "TERM": "xterm"},
            stdin=self._slave,
            stdout=self._slave,
            stderr=self._slave,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )

    def type(self, text: bytes) -> None:
        os.write(self._master, text)

    def read_until(self, text: str, after: int = 0, timeout: float = 20) -> int:
        """Read until some text was written after a place; return the place behind it."""
        deadline = time.monotonic() + timeout
        while text not in self.text[after:]:
            assert time.monotonic() < deadline, self.text[after:]
            if select.select([self._master], [], [], 0.5)[0]:
                with contextlib.suppress(OSError):
                    self.text += os.read(self._master, 65536).decode()
        return self.text.index(text, after) + len(text)

    def frame(self) -> list[str]:
        """Return the lines of the last frame that is complete."""
        frames = self.text.rpartition("\x1b[J")[0].rpartition("\x1b[H")[2]
        return frames.replace("\x1b[K", "").split("\r\n")

    def close(self) -> None:
        os.close(self._master)
        os.close(self._slave)


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    made = Terminal(100, 12)
    yield made
    made.close()


ENTER, LEAVE = "\x1b[?1049h", "\x1b[?25h\x1b[?1049l"


def test_a_status_redraws_in_place_and_gives_the_terminal_back(
    here: Shell, terminal: Terminal
) -> None:
    # given
    here("queue", "--command=true {}", *CASES)
    watching = terminal.start(here.folder, "status", "--watch", "--jobs", "--interval=0.3")

    # then it fills the terminal, and no more
    place = terminal.read_until("\x1b[J", terminal.read_until(ENTER))
    assert len(terminal.frame()) == 12
    assert "… 8 more" in terminal.frame()

    # when something happens, and the terminal gets smaller
    here("cancel", "--all")
    place = terminal.read_until("CANCELLED", place)
    terminal.resize(40, 6)
    # then it is drawn anew, as it fits
    terminal.read_until("…\x1b[K", place)
    terminal.read_until("\x1b[J", len(terminal.text))
    assert len(terminal.frame()) == 6
    assert max(map(len, terminal.frame())) < 40

    # when it is to be stopped, it gives the terminal back, until it goes on: here at once, since
    # no shell is there that would wake it
    os.kill(watching.pid, signal.SIGTSTP)
    place = terminal.read_until(LEAVE)
    place = terminal.read_until("\x1b[J", terminal.read_until(ENTER, place))

    # and at the end, below which the last state stays
    terminal.type(b"\x03")
    place = terminal.read_until(LEAVE, place)
    terminal.read_until("12", terminal.read_until("CANCELLED", place))
    assert watching.wait(20) == 0


def test_who_ends_a_status_by_a_signal_gets_the_terminal_back(
    here: Shell, terminal: Terminal
) -> None:
    watching = terminal.start(here.folder, "status", "--watch")
    place = terminal.read_until("no batches", terminal.read_until(ENTER))

    watching.terminate()

    terminal.read_until(LEAVE, place)
    assert watching.wait(20) == 128 + signal.SIGTERM


def test_without_a_terminal_it_is_printed_again_and_again(here: Shell) -> None:
    here("queue", "--command=true {}", *CASES)
    assert "--watch" in here("status", "--interval=3", status=2).err
    assert "no batch nickling" in here("status", "--watch", "--batch=nickling", status=2).err

    watching = here.begin("status", "--watch", "--interval=0.1", "--json")
    assert watching.stdout is not None
    found = [json.loads(watching.stdout.readline()) for _ in range(3)]
    watching.send_signal(signal.SIGINT)
    watching.communicate(timeout=20)

    assert [each["totals"]["queued"] for each in found] == [12] * 3
    assert watching.returncode == 0


def status_of(batches: int, jobs: int, workers: int) -> Status:
    job = Job("batch-0", 1, jobs, "case", "true")
    views = [
        JobView(job, JobState.RUNNING if n == jobs - 1 else JobState.QUEUED, None)
        for n in range(jobs)
    ]
    infos = [WorkerInfo(f"w{n}", "host", n, 1, 0.0, "2.0") for n in range(workers)]
    counts = [BatchStatus(batch=f"batch-{n}", jobs=1) for n in range(batches)]
    return Status("runner", Counts(jobs=jobs), counts, infos, views, ["a note"])


@pytest.mark.parametrize("height", [1, 2, 3, 5, 8, 12, 24, 60, 400])
@pytest.mark.parametrize(("batches", "jobs", "workers"), [(0, 0, 0), (3, 5, 2), (90, 200, 90)])
def test_a_frame_is_never_higher_than_its_terminal(height, batches, jobs, workers):
    status = status_of(batches, jobs, workers)

    frame = status_frame(status, ["head"], height, jobs=True)

    assert len(frame) <= height
    assert frame[0] == "head"
    if height >= 12:
        # what there is no room for is counted, and what matters most is there
        assert "a note" in frame
        assert not jobs or any("running" in line for line in frame)
        assert batches < 90 or height == 400 or any("more" in line for line in frame)
    if height >= 24 and batches:
        assert any(f"batch-{batches - 1}" in line for line in frame), "the newest one"


def group(jobs: int, output: str, label: str = "case") -> FailureGroup:
    failures = tuple(
        (job := Job("batch", n, jobs, f"{label}_{n:04}", "x"),
         JobRecord.of(job, "0", JobState.FAILED, exit_code=139))
        for n in range(1, jobs + 1)
    )  # fmt: skip
    return FailureGroup(139, "", output, failures)


@pytest.mark.parametrize("width", [1, 20, 40, 60, 80, 120, 500])
@pytest.mark.parametrize("label", ["case", "a/long/path/to/a/case/with/many/words/in/it", "文字"])
def test_a_group_of_failures_fits_its_line(width, label):
    long = group(1200, "Segmentation fault in step … " * 9, label)
    lines = list(group_lines([long, group(7, "gone\x1b[31m")], width))

    assert all(sum(1 + (letter in "文字") for letter in line) <= width for line in lines)
    if width >= 60:
        assert lines[0].startswith('1,200 × exit 139 (SIGSEGV) "Segm') or len(label) > 9
        assert lines[1].startswith('    7 × exit 139 (SIGSEGV) "gone\\x1b[31m" e.g. case_0001')
    if width == 500:
        assert lines[0].endswith(f" e.g. {label}_0001, {label}_0002, {label}_0003 …")


def test_where_nothing_is_that_wide_all_is_printed():
    output = "x" * 1000

    (line,) = group_lines([group(1, output)], None)

    assert line == f'1 × exit 139 (SIGSEGV) "{output}" in case_0001'
