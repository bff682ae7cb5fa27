"""What `adr.worker.launcher` promises, shown with real processes."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from adr.worker.launcher import Ending, Launcher
from tests.unit.workers import launchers

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="workers need Linux")

#: Longer than any test may take; nothing ever waits for it to pass.
FOREVER = 1000


@pytest.fixture
def launcher() -> Iterator[Launcher]:
    made = Launcher()
    yield made
    made.close()


class Bench:
    """Run shell text on a launcher, with a log and a pipe from the job to the test."""

    def __init__(self, launcher: Launcher, directory: Path) -> None:
        self.launcher = launcher
        self.directory = directory
        self.log = directory / "log"
        self.pipe = directory / "pipe"
        os.mkfifo(self.pipe)

    def run(self, text: str, **options: Any) -> Ending:
        settings: dict[str, Any] = {
            "cwd": self.directory,
            "env": {"PATH": os.environ["PATH"], "PIPE": str(self.pipe)},
            "log_path": self.log,
            "timeout_s": 60,
        }
        return self.launch(["bash", "-c", text], **{**settings, **options})

    def launch(self, argv: list[str], *, env: dict[str, str], **settings: Any) -> Ending:
        """Run a program; return how it ended."""
        return self.launcher.run(argv, env=encoded(env), **settings)

    def start(self, text: str, **options: Any) -> Callable[[], Ending]:
        """Run in a thread, wait for what the job writes to $PIPE; return what joins it."""
        endings: list[Ending] = []
        thread = threading.Thread(target=lambda: endings.append(self.run(text, **options)))
        thread.start()
        self.heard = self.pipe.read_text().split()

        def join() -> Ending:
            thread.join(30)
            assert not thread.is_alive(), "run() does not return"
            return endings[0]

        return join

    @property
    def output(self) -> str:
        return self.log.read_text()

    def numbers(self) -> list[int]:
        return [int(each) for each in self.output.split()]


def encoded(env: dict[str, str]) -> dict[bytes, bytes]:
    return {os.fsencode(name): os.fsencode(value) for name, value in env.items()}


@pytest.fixture
def bench(launcher: Launcher, tmp_path: Path) -> Bench:
    return Bench(launcher, tmp_path)


def is_alive(pid: int) -> bool:
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return text.rpartition(")")[2].split()[0] not in "ZX"


def wait_until_gone(pids: Iterable[int], within_s: float = 20) -> None:
    """Wait for the exit of processes that are not our children."""
    deadline = time.monotonic() + within_s
    for pid in pids:
        try:
            fd = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        try:
            watch = select.poll()
            watch.register(fd, select.POLLIN)
            left_ms = max(0, int((deadline - time.monotonic()) * 1000))
            assert watch.poll(left_ms), f"process {pid} is still there"
        finally:
            os.close(fd)


def test_output_and_errors_come_in_order_and_the_exit_code_is_told(bench: Bench) -> None:
    ending = bench.run("for i in 1 2 3; do echo out$i; echo err$i >&2; done; exit 7")

    assert bench.output == "out1\nerr1\nout2\nerr2\nout3\nerr3\n"
    assert (ending.exit_code, ending.signal, ending.stopped_by, ending.error) == (7, None, "", "")
    assert ending.started_at <= ending.ended_at <= time.time()


def test_a_signal_is_told_from_an_exit_code(bench: Bench) -> None:
    ending = bench.run("kill -SEGV $$")

    assert (ending.exit_code, ending.signal) == (None, signal.SIGSEGV)


def test_the_log_is_emptied_at_the_start(bench: Bench) -> None:
    bench.run("echo first job, a long line")
    bench.run("echo second")

    assert bench.output == "second\n"


def test_what_a_job_has_put_in_place_of_its_log_is_not_written_to(bench: Bench) -> None:
    other = bench.directory / "other"
    other.write_text("mine")

    for trick in (f"ln -sf {other} {bench.log}", f"rm {bench.log}; mkfifo {bench.log}"):
        bench.run(trick)
        assert bench.run("echo next").exit_code == 0
        assert bench.output == "next\n"

    assert other.read_text() == "mine"


def test_one_process_starts_all_jobs(bench: Bench) -> None:
    parents = set()
    for _ in range(20):
        bench.run("echo $PPID")
        parents.add(bench.output)

    assert len(parents) == 1


def test_a_process_that_was_started_ahead_runs_the_first_job(bench: Bench) -> None:
    bench.launcher.start()
    bench.launcher.start()
    assert launchers() == 1

    assert bench.run("exit 6").exit_code == 6

    assert launchers() == 1
    bench.launcher.close()
    bench.launcher.start()
    assert launchers() == 0


def test_a_job_finds_a_clean_process(bench: Bench) -> None:
    # Given a worker with an open file, an ignored signal, and a umask
    inherited = os.open("/dev/null", os.O_RDONLY)
    os.set_inheritable(inherited, True)
    umask = os.umask(0o027)
    try:
        # When it runs a job
        bench.run(
            "cat; umask; ls /proc/self/fd | wc -l; ps -o pgid= -p $$; echo $$;"
            "grep -E 'SigBlk|SigIgn' /proc/self/status; pwd"
        )
    finally:
        os.umask(umask)
        os.close(inherited)

    # Then nothing of that is in its way, except the umask
    mask, descriptors, group, pid, blocked, ignored, folder = bench.output.splitlines()
    assert mask == "0027"
    assert int(descriptors) == 4, "standard input, output, errors, and what ls opens"
    assert group.strip() == pid
    assert blocked.split() == ["SigBlk:", "0" * 16]
    # Signals 32 and 33 are the C library's own affair.
    assert int(ignored.split()[1], 16) & ~(3 << 31) == 0
    assert folder == str(bench.directory)


def test_arguments_environment_and_paths_may_be_any_bytes(bench: Bench) -> None:
    odd = os.fsdecode(b"\xff\xfe'\n")
    folder = bench.directory / odd
    folder.mkdir()

    ending = bench.launch(
        ["bash", "-c", 'printf %s "$1$ODD"; touch here', "-", odd],
        cwd=folder,
        env={"PATH": os.environ["PATH"], "ODD": odd},
        log_path=folder / "log",
        timeout_s=60,
    )

    assert ending.exit_code == 0
    assert (folder / "log").read_bytes() == b"\xff\xfe'\n" * 2
    assert (folder / "here").exists()


def test_a_timeout_gives_a_job_time_to_clean_up(bench: Bench) -> None:
    ending = bench.run(
        f"trap 'echo cleaned up; exit 5' TERM; sleep {FOREVER} & wait", timeout_s=0.3
    )

    assert (ending.exit_code, ending.stopped_by) == (5, "timeout")
    assert bench.output == "cleaned up\n"
    assert ending.ended_at - ending.started_at >= 0.3


def test_a_job_that_ignores_term_is_killed(bench: Bench) -> None:
    ending = bench.run(
        f"trap 'echo no' TERM; while :; do sleep {FOREVER}; done", timeout_s=0.2, term_s=0.4
    )

    assert (ending.exit_code, ending.signal) == (None, signal.SIGKILL)
    assert ending.stopped_by == "timeout"
    assert bench.output.splitlines().count("no") == 1
    assert ending.ended_at - ending.started_at >= 0.6


def test_term_reaches_descendants_in_another_session(bench: Bench) -> None:
    join = bench.start(
        "trap : TERM;"
        'setsid bash -c \'trap "echo told; exit 0" TERM; echo ready > $PIPE;'
        f" sleep {FOREVER} & wait'; echo after; exit 3"
    )

    bench.launcher.stop()

    assert join().exit_code == 3
    assert bench.output == "told\nafter\n"


def test_what_is_left_of_a_job_is_killed_before_run_returns(bench: Bench) -> None:
    # Given a job that leaves a background child, which holds the log open, a daemon in a
    # session of its own, and a grandchild
    ending = bench.run(
        f"sleep {FOREVER} & echo $!;"
        f"setsid nohup sleep {FOREVER} & echo $!;"
        f'(bash -c "trap : TERM HUP; sleep {FOREVER} & echo \\$! \\$\\$; kill -STOP \\$\\$" &);'
        "while [ $(wc -w < log) -lt 4 ]; do sleep 0.01; done"
    )

    # Then it has ended well, and at once
    assert ending.exit_code == 0
    assert time.time() - ending.ended_at < 10
    assert len(bench.numbers()) == 4
    assert not [pid for pid in bench.numbers() if is_alive(pid)]


def test_two_hundred_children_are_killed(bench: Bench) -> None:
    ending = bench.run(
        f"for i in $(seq 100); do sleep {FOREVER} & echo $!; setsid sleep {FOREVER} & echo $!;done"
    )

    assert ending.exit_code == 0
    assert len(bench.numbers()) == 200
    assert not [pid for pid in bench.numbers() if is_alive(pid)]


def test_children_that_keep_forking_are_killed(bench: Bench) -> None:
    ending = bench.run(
        "exec 2>&-; set -m; chain() { echo $BASHPID; sleep 0.001; chain & };"
        "for i in 1 2 3; do chain & done;"
        "while [ $(wc -w < log) -lt 30 ]; do sleep 0.01; done"
    )

    assert ending.exit_code == 0
    length = len(bench.numbers())
    assert not [pid for pid in bench.numbers() if is_alive(pid)]
    bench.log.rename(bench.directory / "old")
    bench.run("sleep 0.1")
    assert len((bench.directory / "old").read_text().split()) == length


def test_endless_output_ends_the_job(bench: Bench) -> None:
    ending = bench.run("yes; true", log_limit_bytes=100_000)

    assert (ending.stopped_by, ending.signal) == ("output", signal.SIGKILL)
    assert bench.log.stat().st_size == 100_000


def test_too_much_output_is_too_much_however_short_the_job(bench: Bench) -> None:
    ending = bench.run("head -c 10000000 /dev/zero", log_limit_bytes=1_000_000)

    assert (ending.stopped_by, ending.exit_code) == ("output", 0)
    assert bench.log.stat().st_size == 1_000_000


def test_what_cannot_be_started_is_said_and_the_next_job_runs(bench: Bench, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    broken = tmp_path / "broken"
    broken.write_text("#!/no/such/interpreter\n")
    broken.chmod(0o755)
    settings: dict[str, Any] = {"env": {}, "log_path": bench.log, "timeout_s": None}

    no_bash = bench.run("true", env={"PATH": str(folder)})
    no_interpreter = bench.launch([str(broken)], cwd=folder, **settings)
    no_folder = bench.run("true", cwd=tmp_path / "gone")
    no_log = bench.run("true", log_path=folder)
    no_text = bench.run("a\0b")
    huge = bench.run("true", env={"A": "x" * 10_000_000})

    assert no_bash.error == f"cannot start bash: not found in {folder}"
    assert no_interpreter.error == f"cannot start {broken}: No such file or directory"
    assert no_folder.error == "cannot enter the directory of the job: No such file or directory"
    assert no_log.error == "cannot open the log of the job: Is a directory"
    assert no_text.error == "cannot start bash: embedded null byte"
    assert huge.error == "cannot start bash: Argument list too long"
    assert no_bash.exit_code is None
    assert no_bash.signal is None
    assert bench.run("exit 4").exit_code == 4


def test_stop_from_another_thread_lets_the_job_clean_up(bench: Bench) -> None:
    join = bench.start(f"trap 'echo stopped; exit 9' TERM; echo go > $PIPE; sleep {FOREVER} & wait")

    stopped = bench.launcher.stop()

    ending = join()
    assert stopped
    assert (ending.exit_code, ending.stopped_by) == (9, "order")
    assert bench.output == "stopped\n"


def test_a_second_stop_kills_at_once_if_told_to(bench: Bench) -> None:
    join = bench.start(f"trap '' TERM; echo go > $PIPE; sleep {FOREVER}", term_s=FOREVER)

    bench.launcher.stop()
    bench.launcher.stop(term_s=0)

    ending = join()
    assert (ending.signal, ending.stopped_by) == (signal.SIGKILL, "order")


def test_a_stop_may_give_more_time_than_usual_and_another_less(bench: Bench) -> None:
    # Given a job that takes its time after TERM, of which it usually gets none
    join = bench.start(
        "trap 'echo saving; sleep 0.5; echo saved; exit 0' TERM;"
        f"echo go > $PIPE; sleep {FOREVER} & wait",
        term_s=0.01,
    )

    bench.launcher.stop(term_s=FOREVER)

    # Then it has it, and hears of it once
    bench.launcher.stop(term_s=FOREVER)
    ending = join()
    assert (ending.exit_code, ending.stopped_by) == (0, "order")
    assert bench.output == "saving\nsaved\n"

    # and a job that has been given time can lose it again
    join = bench.start(f"trap '' TERM; echo go > $PIPE; sleep {FOREVER}", term_s=0.01)
    bench.launcher.stop(term_s=FOREVER)
    bench.launcher.stop()
    assert join().signal == signal.SIGKILL


def test_a_stop_without_a_job_does_not_touch_the_next_one(bench: Bench) -> None:
    bench.run("true")

    stopped = bench.launcher.stop(term_s=0)

    assert not stopped
    assert bench.run("echo fine").stopped_by == ""
    assert bench.output == "fine\n"


def test_close_ends_the_running_job_and_lets_no_other_start(bench: Bench) -> None:
    join = bench.start(f"setsid sleep {FOREVER} & echo $! $$ $PPID > $PIPE; sleep {FOREVER}")

    bench.launcher.close()

    assert join().stopped_by == "order"
    assert not [pid for pid in bench.heard if is_alive(int(pid))]
    later = bench.run("touch later")
    assert later.stopped_by == "order"
    assert not (bench.directory / "later").exists()


def test_signals_to_the_launcher_do_not_disturb_a_job(bench: Bench) -> None:
    ending = bench.run("kill -TERM $PPID; kill -INT $PPID; kill -HUP $PPID; echo here")

    assert ending.exit_code == 0
    assert bench.output == "here\n"


def test_a_killed_launcher_fails_its_job_leaves_nothing_and_is_replaced(bench: Bench) -> None:
    ending = bench.run(f"sleep {FOREVER} & echo $! $$; kill -KILL $PPID; sleep {FOREVER}")

    assert ending.error == "the launcher of the job died (signal 9)"
    assert ending.exit_code is None
    assert len(bench.numbers()) == 2
    wait_until_gone(bench.numbers())
    assert bench.run("exit 6").exit_code == 6


def test_a_launcher_that_died_between_jobs_is_replaced_unnoticed(bench: Bench) -> None:
    bench.run("echo $PPID")
    (pid,) = bench.numbers()
    os.kill(pid, signal.SIGKILL)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)

    ending = bench.run("exit 6")

    assert (ending.exit_code, ending.error) == (6, "")


def test_time_and_memory_of_all_descendants_are_counted(bench: Bench) -> None:
    burn = "import time\nwhile time.process_time() < 0.3: pass\nx = bytes([1]) * (64 << 20)"
    idle = bench.run("true")

    # The second one detaches itself, and is not waited for by the job's shell.
    busy = bench.run(
        f"{sys.executable} -I -S -c '{burn}';"
        f'(setsid {sys.executable} -I -S -c \'{burn}; open("done", "w")\' &);'
        "while [ ! -e done ]; do sleep 0.01; done"
    )

    assert idle.cpu_s < 0.1
    assert 0.6 <= busy.cpu_s < 2
    assert idle.peak_memory_bytes < 32 << 20
    assert 64 << 20 <= busy.peak_memory_bytes < 128 << 20


def test_jobs_go_before_workers_and_launchers_where_memory_runs_out(bench: Bench) -> None:
    own = int(Path("/proc/self/oom_score_adj").read_text())
    # The launcher takes its own back once the job is there.
    settled = f"grep -qx {own} /proc/$PPID/oom_score_adj"
    bench.run(
        "cat /proc/self/oom_score_adj;"
        f"for _ in $(seq 500); do {settled} && break; sleep 0.01; done;"
        "cat /proc/$PPID/oom_score_adj; true"
    )

    assert bench.numbers() == [min(own + 500, 1000), own]


WORKER = """
import json, os, sys, threading
from adr.worker.launcher import Launcher
settings = json.loads(sys.argv[1])
launcher = Launcher()
def run():
    return launcher.run(["bash", "-c", settings["text"]], cwd=settings["cwd"],
                        env=dict(os.environb), log_path=settings["cwd"] + "/log", timeout_s=None)
try:
    print(run())
except KeyboardInterrupt:
    settings["text"] = "exit 8"
    print("interrupted, then", run().exit_code)
    launcher.close()
"""


def start_worker(bench: Bench, text: str) -> subprocess.Popen[str]:
    settings = json.dumps({"text": text, "cwd": str(bench.directory)})
    return subprocess.Popen(
        [sys.executable, "-c", WORKER, settings],
        env={**os.environ, "PIPE": str(bench.pipe)},
        stdout=subprocess.PIPE,
        text=True,
    )


def test_a_killed_worker_leaves_no_process_of_its_job(bench: Bench) -> None:
    # Given a worker that runs a job with a tree of processes and a daemon
    worker = start_worker(
        bench,
        f"trap '' TERM HUP INT; setsid nohup sleep {FOREVER} & echo $! >> pids;"
        f"bash -c 'sleep {FOREVER} & echo $! $$ >> pids; wait' &"
        "while [ $(wc -w < pids) -lt 3 ]; do sleep 0.01; done;"
        f"echo $(cat pids) $$ $PPID > $PIPE; sleep {FOREVER}",
    )
    pids = [int(each) for each in bench.pipe.read_text().split()]
    assert len(pids) == 5
    assert all(is_alive(pid) for pid in pids)

    # When the worker is killed
    worker.kill()
    worker.communicate()

    # Then all of them go, and the launcher with them
    wait_until_gone(pids)


def test_an_interrupted_run_leaves_a_launcher_that_works(bench: Bench) -> None:
    worker = start_worker(bench, f"echo $$ $PPID > $PIPE; sleep {FOREVER}")
    pids = [int(each) for each in bench.pipe.read_text().split()]

    worker.send_signal(signal.SIGINT)

    output, _ = worker.communicate(timeout=30)
    assert output == "interrupted, then 8\n"
    assert not [pid for pid in pids if is_alive(pid)]
