"""A job never kills its worker, and never spoils the workspace of the next one.

One worker with one slot runs all of these, each followed by a witness that lists what it
finds in its workspace.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.scene import Scene

LOG_BYTES = 100_000

#: What each job does; it is the input file, and beside it lie data.txt and folder/inner.txt.
JOBS = {
    "not-utf8": r"printf '\377\376 caf\351\n'; printf '\377' > out; sleep 0",
    "child-holds-output": "sleep 1000 & echo started",
    "daemon-holds-output": "setsid bash -c 'trap \"\" TERM HUP INT; sleep 1000; true' & echo ok",
    "orphan-holds-output": "(setsid setsid sleep 1000 &) ; (sleep 1000 &) ; echo ok",
    "half-characters": r"printf '\0\303'; printf 'é%.0s' {1..2000}; printf '\342\202\0'; true",
    "forks-on-and-on": "hop() { sleep 0.001; hop & }; for i in 1 2 3; do hop & done; "
    "python3 -c $'import os\nos.fork()\nwhile not os.fork(): os.setsid()' & "
    "sleep 0.3; echo gone",
    "floods": "yes 0123456789",
    "deletes-inputs": "rm -rf ./* ; echo x > kept.txt",
    "deletes-its-directory": 'd=$PWD; cd /; rm -rf "$d"',
    "replaces-its-directory": 'd=$PWD; cd /; rm -rf "$d"; echo x > "$d"',
    "leads-away": 'd=$PWD; cd /; mv "$d" "$d.moved"; ln -s "$SIDE" "$d"; touch "$SIDE/kept"',
    "changes-inputs": "echo more >> data.txt; rm -r folder; echo x > folder; rm hostile-*",
    "takes-permissions": "chmod -R 000 .; echo x",
    "kills-its-shell": "bash -c 'kill -9 $PPID; sleep 1000'; sleep 1000",
    "kills-its-group": "kill 0; sleep 1000",
    "kills-its-launcher": "sleep 1000 & kill -9 $PPID; sleep 1000",
    "200-children": "for i in $(seq 200); do sleep 1000 & done; echo born",
    "odd-names": "touch $'new\\nline' \"qu'o\\\"te\" $'caf\\351' $'\\377' -- '-rf' ' ' '%41' "
    "$(printf 'x%.0s' {1..255}); mkdir $'d\\n'; echo x > $'d\\n/f'",
    "special-files": "mkfifo pipe; ln -s loop loop; ln -s . self; ln -s /etc/passwd out; "
    "ln -s nowhere dangling; python3 -c 'import socket as s; s.socket(s.AF_UNIX).bind(\"sock\")'; "
    "mknod device c 1 3; echo x > kept.txt",
    "deep": "for i in $(seq 30); do d=$(printf 'd%.0s' {1..200}); mkdir $d; cd -P $d; done; "
    "echo x > f",
    "links": "echo x > a; ln a b; ln -s a d; chmod 0 a",
    "300-results": "mkdir many; for i in $(seq 300); do echo $i > many/$i; done",
    "no-interpreter": "printf '#!/no/such/interpreter\\n' > run; chmod +x run; ./run",
    "no-program": "no-such-program-at-all",
    "reads-input": "cat; read line; echo done",
    "closes-output": "exec >&- 2>&-; echo into the void; true",
    "exits-3": "echo so it is >&2; exit 3",
}
#: Why some of them fail, as regular expressions; the others succeed.
FAILURES = {
    "floods": f"wrote more than {LOG_BYTES} bytes of output",
    "kills-its-shell": r"exit code 137 \(SIGKILL\)",
    "kills-its-group": r"exit code 143 \(SIGTERM\)|killed by SIGTERM",
    "kills-its-launcher": r"the launcher of the job died \(signal 9\)",
    "no-interpreter": "exit code 12[67]",
    "no-program": "exit code 127",
    "exits-3": "exit code 3",
}
WITNESS = (
    "{ find . -printf '%y %m %p %l\\n' | sort; "
    'find . -type f -exec sha256sum {} + | sort -k 2; } > "$SIDE/$ADR_INDEX"; '
    'mv "$SIDE/$ADR_INDEX" seen.txt'
)


class Shown:
    """What the worker has left: a runner, and what the command line says about it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.runner = folder / "runner"
        self.workingdir = folder / "work"
        self.batches: dict[str, str] = {}
        self.env = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("AWS_", "ADR_", "XDG_"))
        }
        self.env.update(HOME=str(folder), ADR_CONFIG=str(folder / "adr.json"), SCENE=str(folder))

    def adr(self, *words: str) -> bytes:
        return self.python("-m", "adr", *words)

    def python(self, *words: str) -> bytes:
        root = Path(__file__).resolve().parents[2]
        command = [sys.executable, *words]
        done = subprocess.run(command, env=self.env, cwd=root, capture_output=True, timeout=100)
        assert done.returncode == 0, done.stderr.decode(errors="replace")
        return done.stdout

    def queue(self, name: str, files: list[str], *options: str) -> None:
        runner = f"--runner={self.runner}"
        words = ["queue", "--quiet", "--rerun", runner, "--command=bash {}", *options, "--", *files]
        self.batches[name] = self.adr(*words).decode().strip()

    def read(self) -> None:
        words = ["status", "--json", "--jobs", f"--runner={self.runner}"]
        self.status: dict[str, Any] = json.loads(self.adr(*words))
        self.results = self.folder / "results"
        self.adr("download", "--quiet", str(self.results), str(self.runner))

    def job(self, batch: str, label: str) -> dict[str, Any]:
        (found,) = [
            job
            for job in self.status["jobs"]
            if (job["batch"], job["label"]) == (self.batches[batch], label)
        ]
        return found

    def result(self, batch: str, label: str) -> Path:
        return self.results / self.batches[batch] / label


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Shown:
    """Let one worker run all hostile jobs, with a witness after each."""
    return play(Shown(tmp_path_factory.mktemp("hostile")))


def play(shown: Shown, *before: str, **options: str) -> Shown:
    """Let one worker run all hostile jobs, started behind these words and with these options."""
    shown.adr("create", "--local", f"--dir={shown.runner}")
    inputs = shown.folder / "inputs"
    (inputs / "folder").mkdir(parents=True)
    (inputs / "data.txt").write_text("data\n")
    (inputs / "folder" / "inner.txt").write_text("inner\n")
    (inputs / "empty").mkdir()
    side = shown.folder / "side"
    side.mkdir()
    side.chmod(0o777)
    files = []
    for name, text in {"nothing": "true", **JOBS}.items():
        for kind, script in (("hostile", text), ("witness", WITNESS)):
            path = inputs / f"{kind}-{name}.sh"
            path.write_text(script + "\n")
            files.append(str(path))
    shown.queue("jobs", files, f"--env=SIDE={side}")
    # What is wrong with a batch as a whole, and a good one at the end.
    shown.queue("broken bundle", files[:2], f"--env=SIDE={side}")
    bundle = shown.runner / "objects" / f"{shown.batches['broken bundle']}.zip"
    bundle.write_bytes(bundle.read_bytes()[:-200] + bytes(200))
    shown.queue("no bundle", files[:2], f"--env=SIDE={side}")
    (shown.runner / "objects" / f"{shown.batches['no bundle']}.zip").unlink()
    shown.queue("no bash", files[:2], "--env=PATH=/nonexistent")
    shown.queue("good", files[:2], f"--env=SIDE={side}")
    shown.workingdir.mkdir()
    limits = {"log_bytes": LOG_BYTES, "term_s": 1}
    settings = json.dumps({"stop_on_empty": True, "limits": limits, "options": options})
    words = ["tests.drive", settings, "worker", str(shown.runner), str(shown.workingdir)]
    shown.python(*before, "-m", *words)
    shown.read()
    return shown


def test_all_jobs_are_decided_and_the_worker_ends_well(shown: Shown) -> None:
    totals = shown.status["totals"]
    failures = len(FAILURES) + 6
    assert totals["jobs"] == 2 * len(JOBS) + 2 + 8
    assert (totals["failed"], totals["succeeded"]) == (failures, totals["jobs"] - failures)
    assert list(shown.workingdir.iterdir()) == []


@pytest.mark.parametrize("name", JOBS)
def test_hostile_job_ends_as_a_record_and_the_next_finds_a_clean_place(
    shown: Shown, name: str
) -> None:
    record = shown.job("jobs", f"hostile-{name}")
    assert record["state"] == ("failed" if name in FAILURES else "succeeded"), record
    assert re.fullmatch(FAILURES.get(name, ""), record["reason"])
    pristine = shown.result("jobs", "witness-nothing") / "seen.txt"
    seen = shown.result("jobs", f"witness-{name}") / "seen.txt"
    assert seen.read_text() == pristine.read_text()


def test_witnesses_see_what_there_is(shown: Shown) -> None:
    seen = (shown.result("jobs", "witness-nothing") / "seen.txt").read_text()
    assert "f 644 ./data.txt \n" in seen
    assert "d 755 ./empty \n" in seen
    assert hashlib.sha256(b"inner\n").hexdigest() + "  ./folder/inner.txt\n" in seen


@pytest.mark.parametrize(
    ("batch", "reason"),
    [
        ("broken bundle", "its inputs cannot be had: the bundle .* is broken.*"),
        ("no bundle", "its inputs cannot be had: .*"),
        ("no bash", r"cannot start bash: not found in /nonexistent"),
    ],
)
def test_batch_that_cannot_run_fails_with_its_reason(shown: Shown, batch: str, reason: str) -> None:
    for label in ("hostile-nothing", "witness-nothing"):
        record = shown.job(batch, label)
        assert record["state"] == "failed"
        assert re.fullmatch(reason, record["reason"])
    assert shown.job("good", "hostile-nothing")["state"] == "succeeded"


def test_no_process_of_any_job_is_left(
    shown: Shown, descendants_with_env: Callable[[str, str], list[int]]
) -> None:
    assert descendants_with_env("SCENE", str(shown.folder)) == []


def test_jobs_that_leave_processes_behind_do_not_wait_for_them(shown: Shown) -> None:
    for name in ("child-holds-output", "daemon-holds-output", "orphan-holds-output"):
        record = shown.job("jobs", f"hostile-{name}")
        assert _seconds(record["ended_at"]) - _seconds(record["started_at"]) < 5


def test_output_survives_byte_by_byte_and_to_the_limit(shown: Shown) -> None:
    runner = f"--runner={shown.runner}"
    assert shown.adr("logs", runner, "hostile-not-utf8") == b"\xff\xfe caf\xe9\n"
    half = shown.adr("logs", runner, "hostile-half-characters")
    assert half == b"\0\xc3" + 2000 * "é".encode() + b"\xe2\x82\0"
    flood = shown.adr("logs", runner, "hostile-floods")
    assert flood == (b"0123456789\n" * LOG_BYTES)[:LOG_BYTES]


def test_results_of_any_name_and_only_regular_ones_are_kept(shown: Shown) -> None:
    odd = shown.result("jobs", "hostile-odd-names")
    names = {os.fsencode(path.relative_to(odd)) for path in odd.rglob("*") if path.is_file()}
    assert names == {
        b"new\nline", b"qu'o\"te", b"caf\xe9", b"\xff", b"-rf", b" ", b"%41", b"x" * 255, b"d\n/f",
    }  # fmt: skip
    special = shown.result("jobs", "hostile-special-files")
    assert [path.name for path in special.iterdir()] == ["kept.txt"]
    links = shown.result("jobs", "hostile-links")
    texts = {path.name: path.read_text() for path in links.iterdir()}
    assert texts == {"a": "x\n", "b": "x\n", "d": "x\n"}
    assert (shown.folder / "side" / "kept").exists()
    deep = shown.result("jobs", "hostile-deep")
    # fwalk(), because such a path is longer than the kernel takes.
    assert [name for _, _, names, _ in os.fwalk(deep) for name in names] == ["f"]
    (found,) = shown.job("jobs", "hostile-deep")["results"]
    assert found["name"] == "d" * 200 + ("/" + "d" * 200) * 29 + "/f"
    many = shown.result("jobs", "hostile-300-results") / "many"
    assert {path.name: path.read_text() for path in many.iterdir()} == {
        str(number): f"{number}\n" for number in range(1, 301)
    }


def test_full_disk_fails_its_job_and_not_the_next(local: Scene, small_disk: Path | None) -> None:
    # given a job that fills the disk, and two that only write what every job writes
    greedy = "cat /dev/zero > zeros"
    if small_disk:
        local.workingdir = small_disk
    else:
        # Only root may mount a disk: files that cannot grow have to do.
        greedy = f"(ulimit -f 1000; {greedy})"
    local.command = f"if [ {{#}} = 2 ]; then {greedy}; else bash job.sh {{}}; fi"
    words = local.make(3)
    queue = ["queue", "--quiet", f"--runner={local.runner}", r"--store=proof\.txt$"]
    process = local.start("adr", *queue, *words)
    assert process.ended() == 0, process.output()
    # when one worker runs them
    worker = local.worker(stop_on_empty=True)
    assert worker.ended() == 0, worker.output()
    # then the one has failed and says why, and the next has all the room
    records = local.visible(process.output().strip())
    states = [records[job].state.value for job in local.jobs]
    assert states == ["succeeded", "failed", "succeeded"]
    why = "exit code 1; the disk was full" if small_disk else r"exit code 153 (SIGXFSZ)"
    assert records[2].reason == why
    assert list(local.workingdir.iterdir()) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path | None]:
    """Return a directory on a disk that is soon full; None where none can be made."""
    place = tmp_path / "small"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=80m", "tmpfs", str(place)]
    if shutil.which("mount") and subprocess.run(mount, capture_output=True).returncode == 0:
        yield place
        subprocess.run(["umount", "-l", str(place)], check=True)
    else:
        yield None


def _seconds(text: str) -> float:
    moment, _, fraction = text.rstrip("Z").partition(".")
    return time.mktime(time.strptime(moment, "%Y-%m-%dT%H:%M:%S")) + float(f"0.{fraction}")
