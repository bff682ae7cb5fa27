"""Jobs that are too much: for the disk, for memory, for whoever reads their results or names.

Those that need no scene of their own are in `tests.crash.test_hostile_jobs`.
"""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import adr
from adr.models import JobState
from tests.scene import Scene
from tests.servers import require

#: What an ordinary worker bounds the output of a job by.
GIB = 1 << 30
MIB = 1 << 20
#: Names of inputs, without their extension.
NAMES = [
    b"new\nline",
    b"tab\tand space",
    b'it\'s "quoted" `touch pwned`',
    b"$(touch pwned) ${HOME} $HOME",
    b"; touch pwned; #",
    b"{} {#} {/.} %s %41 *?[a]",
    b"-rf",
    b"~",
    b"back\\slash",
    b"caf\xe9 \xff",
    "caf\N{LATIN SMALL LETTER E WITH ACUTE}".encode(),
    b"\x01\x1b[31m",
    b"folder\n/in $(touch pwned)",
]


def test_names_of_any_bytes_come_back_from_a_queue_as_from_a_run(scene: Scene) -> None:
    # given inputs of such names, and jobs whose results have them too
    folder = scene.folder / "odd"
    words = ["--command=cp -- {} {/.}.out; printf %s {.} > name; true", "--"]
    for name in NAMES:
        path = folder / os.fsdecode(name + b".in")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name)
        words.append(str(path))
    # when they are queued and processed
    queue = scene.start("adr", "queue", "--quiet", f"--runner={scene.runner}", *words)
    assert queue.ended() == 0, queue.output()
    batch = queue.output().strip()
    worker = scene.worker(slots=2)
    scene.await_empty()
    worker.end()
    adr.download(scene.runner, scene.folder / "download")
    # then each has the content of its input, under its name
    _check_odd(scene.folder / "download" / batch)
    # and ``adr run`` makes the same of them
    run = scene.start("adr", "run", "--quiet", f"--to={scene.results}", *words)
    assert run.ended() == 0, run.output()
    _check_odd(scene.results)
    assert not list(scene.folder.rglob("pwned"))
    scene.await_no_process()


def _check_odd(folder: Path) -> None:
    """Assert that there is what the jobs of these names leave, and nothing else."""
    found = {}
    for path in folder.rglob("*.out"):
        if ".adr" not in path.relative_to(folder).parts:
            found[(path.parent / "name").read_bytes()] = (os.fsencode(path.name), path.read_bytes())
    # What begins with a dash is never taken for an option.
    assert {name.removeprefix(b"./"): value for name, value in found.items()} == {
        name: (os.path.basename(name) + b".out", name) for name in NAMES
    }


@pytest.fixture
def swift(descendants_with_env: Callable[[str, str], list[int]]) -> Iterator[Scene]:
    """Return a local scene in memory, where many files take little time."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        scene = Scene("local", Path(folder), descendants_with_env)
        scene.create()
        try:
            yield scene
        finally:
            scene.clean_up()


def test_ten_thousand_results_and_a_gibibyte_of_output_are_two_jobs_like_others(
    swift: Scene,
) -> None:
    # given a job with very many results, and one whose output is more than it may be
    many = "for i in {1..10000}; do echo $i > $i; done"
    much = f"printf '\\303'; truncate -s {GIB} /proc/self/fd/1; echo more; sleep 1000"
    swift.command = (
        f"bash job.sh {{}}; case {{#}} in 1) {many};; 2) {much};; 3) printf '\\0\\351';; esac; true"
    )
    batch = swift.queue(3)
    # when a worker runs them
    worker = swift.worker(slots=2)
    swift.await_empty(120)
    worker.end()
    # then all results are there, with the checksums that were recorded
    swift.check(batch, failed={2: f"wrote more than {GIB} bytes of output"})
    records = swift.visible(batch)
    assert len(records[1].results) == 10_001
    assert (swift.folder / "download" / batch / "case-1" / "10000").read_text() == "10000\n"
    # and the output is kept as far as it may go, byte by byte
    log = Path(swift.runner, "objects", records[2].log)
    assert log.stat().st_size == GIB
    with log.open("rb") as file:
        assert file.read(2) == b"\303\0"
    assert b"".join(adr.logs(swift.runner, f"{batch}/case-3")) == b"\0\351"


def test_results_that_others_still_write_to_are_what_was_recorded(local: Scene) -> None:
    # given a job that leaves files which another process can write to: one has a second name
    # outside, one is open and has none
    local.command = (
        'head -c 4M /dev/zero > linked; ln linked "$SIDE/linked"; '
        'head -c 4M /dev/zero > open; ln open "$SIDE/open"; touch "$SIDE/there"; '
        'while [ ! -e "$SIDE/go" ]; do sleep 0.05; done; bash job.sh {}'
    )
    batch = local.queue(1)
    worker = local.worker()
    local.wait((local.side / "there").exists)
    with _written(local.side / "linked"), _written(local.side / "open"):
        (local.side / "open").unlink()
        # when it ends, and its results are stored, while both are being written
        (local.side / "go").touch()
        local.await_empty()
    # and for a last time after that
    worker.end()
    (local.side / "linked").write_bytes(b"!")
    # then what is stored is what the record says
    assert {each.name for each in local.visible(batch)[1].results} == {
        "linked",
        "open",
        "proof.txt",
    }
    local.check(batch)


@contextmanager
def _written(path: Path) -> Iterator[None]:
    """Write to a file again and again, through one handle."""
    over = threading.Event()
    handle = os.open(path, os.O_WRONLY)

    def write() -> None:
        number = 0
        while not over.wait(0.001):
            number += 1
            os.pwrite(handle, number.to_bytes(8, "big"), (number % 8) * MIB // 2)
        os.pwrite(handle, b"the end", 0)

    thread = threading.Thread(target=write)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        os.close(handle)


def test_a_job_that_fills_memory_is_killed_alone(local: Scene, little_memory: Path) -> None:
    # given jobs of which one fills memory by many processes, none as large as the worker, and
    # one by a single one
    # One after the other: where many ask at once, the kernel kills more than it has to.
    filler = "head -c 16M /dev/zero | tail -c 16M >&3"
    many = (
        "mkfifo it; exec 3<>it; set -o pipefail;"
        f"for i in {{1..14}}; do ({filler}) & sleep 0.05; done; wait -n"
    )
    large = "exec tail /dev/zero"
    local.command = f"case {{#}} in 2) {many};; 3) {large};; *) bash job.sh {{}};; esac"
    local.hold(1)
    batch = local.queue(4)
    worker = local.worker(slots=2)
    (little_memory / "cgroup.procs").write_text(str(worker.pid))
    local.await_run(1)
    # when that happens beside a job that needs little
    local.wait(lambda: local.decided(batch) == 3)
    local.let_go(1)
    local.await_empty()
    # then only they are ended, and the records say so
    worker.end()
    records = local.visible(batch)
    assert [records[job].state for job in local.jobs] == [
        JobState.SUCCEEDED,
        JobState.FAILED,
        JobState.FAILED,
        JobState.SUCCEEDED,
    ]
    assert records[2].reason == "exit code 137 (SIGKILL); memory had run out"
    assert records[3].reason == "killed by SIGKILL; memory had run out"
    assert local.all_runs() == [1, 0, 0, 1]
    local.await_no_process()


@pytest.fixture
def little_memory() -> Iterator[Path]:
    """Return a control group whose processes have 200 MiB together."""
    for top, limit in (
        (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes"),
        (Path("/sys/fs/cgroup"), "memory.max"),
    ):
        group = top / f"adr-test-{os.getpid()}"
        try:
            group.mkdir()
        except OSError:
            continue
        try:
            if (group / limit).exists():
                (group / limit).write_text(str(200 * MIB))
                yield group
                return
        finally:
            group.rmdir()
    require(False, "there is no control group of memory to be had: that needs root")
