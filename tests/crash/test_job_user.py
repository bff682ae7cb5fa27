"""Jobs that run as a second user reach nothing of their worker, and are ended all the same.

Each scene is played by a worker that is root, and by one that is an ordinary user with the
ambient capabilities that a systemd unit gives: no user has to be made, those of every system do.
"""

from __future__ import annotations

import json
import os
import pwd
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import adr
from tests.crash.test_hostile_jobs import FAILURES, JOBS, LOG_BYTES, Shown, play
from tests.scene import Process, Scene
from tests.servers import require

JOB_USER = "nobody"
WORKER_USER = "daemon"
CAPABILITIES = "+chown,+dac_override,+fowner,+kill,+setgid,+setuid"
#: Words behind ``python`` that start it anew the way a systemd unit starts a worker.
AS_UNIT = (
    "-c",
    "import os, sys; os.execvp(sys.argv[1], sys.argv[1:])",
    *("setpriv", f"--reuid={WORKER_USER}", f"--regid={WORKER_USER}", "--clear-groups"),
    *(f"--inh-caps={CAPABILITIES}", f"--ambient-caps={CAPABILITIES}", "--", sys.executable),
)
SECRET = "the secret of the worker"

pytestmark = pytest.mark.usefixtures("root")


@pytest.fixture
def root(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have what these tests need, or skip them."""
    require(os.geteuid() == 0, "only root can start jobs as another user")
    require(shutil.which("setpriv"), "setpriv is not installed")
    for name in (JOB_USER, WORKER_USER):
        require(_has_user(name), f"there is no user {name}")
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_REGION", "of the worker")


@pytest.fixture
def folder() -> Iterator[Path]:
    """Return a folder that others can get to, unlike those of pytest."""
    made = Path(tempfile.mkdtemp(dir="/tmp"))
    made.chmod(0o755)
    yield made
    shutil.rmtree(made)


class Divided(Scene):
    """A scene whose workers run their jobs as another user.

    Parameters
    ----------
    before : tuple of str
        Words behind ``python`` with which a worker starts.
    """

    def __init__(
        self, folder: Path, find: Callable[[str, str], list[int]], before: tuple[str, ...]
    ) -> None:
        super().__init__("local", folder, find)
        self.owner = pwd.getpwnam(WORKER_USER).pw_uid if before else 0
        self._before = before
        self.options: dict[str, Any] = {"job_user": JOB_USER}

    def create(self) -> None:
        super().create()
        self.side.chmod(0o777)
        (self.folder / "secret").write_text(SECRET)
        (self.folder / "secret").chmod(0o600)
        for path in (self.folder, *self.folder.rglob("*")):
            os.chown(path, self.owner, -1)

    def start(self, *words: str, **settings: Any) -> Process:
        arguments = json.dumps({**settings, "options": self.options})
        command = [*self._before, "-m", "tests.drive", arguments, *words]
        log = self.folder / f"process-{len(self._processes)}.log"
        # What a worker makes for jobs is open to them even so.
        usual = os.umask(0o077)
        try:
            process = Process(command, log, {"SCENE": str(self.folder)})
        finally:
            os.umask(usual)
        self._processes.append(process)
        return process

    def results(self, command: str, **env: str) -> Path:
        """Run one job to its success; return where its results are."""
        case = self.inputs / "case.txt"
        case.write_text("case\n")
        env |= {"SIDE": str(self.side), "SECRET": str(self.folder / "secret")}
        batch = adr.queue(self.runner, [case], command=command, env=env)
        worker = self.worker(stop_on_empty=True)
        assert worker.ended() == 0, worker.output()
        assert self.visible(batch)[1].reason == ""
        adr.download(self.runner, self.folder / "download")
        assert list(self.workingdir.iterdir()) == []
        return self.folder / "download" / batch / "case"


@pytest.fixture(params=[(), AS_UNIT], ids=["root", "unit"])
def scene(
    request: pytest.FixtureRequest,
    folder: Path,
    descendants_with_env: Callable[[str, str], list[int]],
) -> Iterator[Divided]:
    """Return a scene whose workers are root or, as in a unit, another user."""
    scene = Divided(folder, descendants_with_env, request.param)
    scene.create()
    try:
        yield scene
    finally:
        scene.clean_up()


def test_a_job_is_another_user_without_privileges_and_without_a_way_back(scene: Divided) -> None:
    """Its launcher is as well: jobs could end up speaking for that one."""
    results = scene.results(
        "cat /proc/self/status > job; cat /proc/$PPID/status > launcher;"
        "cat /proc/self/oom_score_adj > score; true"
    )

    user = pwd.getpwnam(JOB_USER)
    for name in ("job", "launcher"):
        status = dict(
            line.split(":\t", 1)
            for line in (results / name).read_text().splitlines()
            if "\t" in line
        )
        assert status["Uid"].split() == 4 * [str(user.pw_uid)]
        assert status["Gid"].split() == 4 * [str(user.pw_gid)]
        groups = {str(group) for group in os.getgrouplist(JOB_USER, user.pw_gid)}
        assert set(status["Groups"].split()) == groups
        for kind in ("CapInh", "CapPrm", "CapEff", "CapAmb"):
            assert int(status[kind], 16) == 0
        assert status["NoNewPrivs"] == "1"
    # Yet it goes first where memory runs out.
    assert int((results / "score").read_text()) >= 500


def test_results_belong_to_the_worker_whatever_a_job_did_to_them(scene: Divided) -> None:
    results = scene.results(
        "echo 1 > plain; echo 2 > closed; chmod 0 closed; echo 3 >> case.txt;"
        "mkdir inner; echo 4 > inner/file; chmod 500 inner; ln -s plain link;"
        'ln "$SECRET" stolen; ln -s "$SECRET" led; echo lots; seq 10000 >&2; true'
    )

    found = {str(each.relative_to(results)): each for each in results.rglob("*") if each.is_file()}
    texts = {name: path.read_text() for name, path in found.items()}
    stolen = texts.pop("stolen", "")
    assert texts == {
        "plain": "1\n",
        "closed": "2\n",
        "case.txt": "case\n3\n",
        "inner/file": "4\n",
        "link": "1\n",
    }
    assert SECRET not in stolen
    objects = scene.folder / "runner" / "objects"
    stored = [*(objects / results.parent.name).rglob("*"), *(objects / "_logs").rglob("*")]
    assert {path.stat().st_uid for path in stored} == {scene.owner}
    assert [path.suffix for path in stored if path.is_file()].count(".log") == 1


def test_its_output_is_followed_where_it_lies_meanwhile(scene: Divided) -> None:
    # given a job that has said something and waits to be heard
    case = scene.inputs / "case.txt"
    case.touch()
    command = "echo {}; while [ ! -e $SIDE/heard ]; do sleep 0.05; done; echo over; true"
    adr.queue(scene.runner, [case], command=command, env={"SIDE": str(scene.side)})
    worker = scene.worker(stop_on_empty=True)
    # when somebody follows it
    output = adr.logs(scene.runner, "case", follow=True)
    assert next(output) == b"case.txt\n"
    # then it goes on until its end
    (scene.side / "heard").touch()
    assert b"".join(output) == b"over\n"
    assert worker.ended() == 0, worker.output()


@pytest.mark.parametrize("aws", [False, True], ids=["without", "with"])
def test_variables_of_aws_stay_with_the_worker_unless_it_is_told_otherwise(
    scene: Divided, aws: bool
) -> None:
    scene.options["aws_for_jobs"] = aws

    results = scene.results("env -0 > env; true", AWS_REGION="of the batch")

    text = (results / "env").read_text()
    env = dict(line.split("=", 1) for line in text.split("\0") if line)
    own = pwd.getpwnam(JOB_USER)
    assert (env["HOME"], env["USER"], env["LOGNAME"]) == (own.pw_dir, JOB_USER, JOB_USER)
    assert env["AWS_REGION"] == "of the batch"
    assert env.get("AWS_SECRET_ACCESS_KEY") == (SECRET if aws else None)


def test_a_job_reaches_nothing_of_its_worker(scene: Divided) -> None:
    # given what there is, as the worker sees it while a job runs
    tries = {
        "list the place": 'ls "$place"',
        "list the slot": 'ls "$place/slot-1"',
        "list the bundles": 'ls "$place/bundles"',
        "read the bundle": 'cat "$place/bundles/open/$ADR_BATCH.zip"',
        "list the outbox": 'ls "$place/outbox"',
        "enter its delivery": 'cd "$place/outbox/$ADR_ATTEMPT"',
        "read the lock": 'cat "$place/lock"',
        "write the script": 'echo x >> "$place/slot-1/run.sh"',
        "replace the log": 'rm -f "$place/slot-1/log"',
        "read the secret": 'cat "$SECRET"',
        "list the runner": 'ls "$SIDE/../runner/objects"',
        "read the variables of the worker": "cat /proc/$worker/environ",
        "read the variables of the launcher": "cat /proc/$launcher/environ",
        "see the files of the launcher": "ls /proc/$launcher/fd/",
        "signal the worker": "kill -0 $worker",
        "become root": "setpriv --reuid=0 true",
    }
    steps = [
        f"if ( {each} ) > /dev/null; then echo {name} >> done; fi" for name, each in tries.items()
    ]
    command = "\n".join(
        (
            "place=$(cd -P ../../..; pwd); launcher=$PPID; touch done",
            "worker=$(awk '/^PPid/ { print $2 }' /proc/$launcher/status)",
            'echo $worker $launcher $place > "$SIDE/part"; mv "$SIDE/part" "$SIDE/there"',
            'while [ ! -e "$SIDE/go" ]; do sleep 0.05; done',
            *steps,
            "true",
        )
    )
    case = scene.inputs / "case.txt"
    case.write_text("case\n")
    env = {"SIDE": str(scene.side), "SECRET": str(scene.folder / "secret")}
    batch = adr.queue(scene.runner, [case], command=command, env=env)
    worker = scene.worker(stop_on_empty=True)
    there = scene.side / "there"
    scene.wait(there.exists)
    pid, launcher, place = there.read_text().split()
    assert int(pid) == worker.pid
    assert SECRET.encode() not in Path("/proc", launcher, "environ").read_bytes()
    for name in (f"bundles/open/{batch}.zip", "outbox", "lock", "slot-1/run.sh", "slot-1/log"):
        assert Path(place, name).exists()
    (scene.side / "go").touch()
    assert worker.ended() == 0, worker.output()

    # then it had none of it
    adr.download(scene.runner, scene.folder / "download")
    assert (scene.folder / "download" / batch / "case" / "done").read_text() == ""


def test_a_worker_in_a_unit_lays_its_capabilities_aside_with_its_user(folder: Path) -> None:
    secret = folder / "secret"
    secret.write_text(SECRET)
    secret.chmod(0o600)
    code = f"""
from pathlib import Path
from adr.worker.jobuser import JobUser

def look():
    try:
        print(Path({str(secret)!r}).read_text())
    except PermissionError:
        print("denied")

look()
with JobUser.find({JOB_USER!r}).rights():
    look()
look()
"""
    process = Process([*AS_UNIT, "-c", code], folder / "log", {})

    assert process.ended() == 0, process.output()
    assert process.output().splitlines() == [SECRET, "denied", SECRET]


def test_nothing_of_a_killed_worker_is_left(scene: Divided) -> None:
    # given jobs with daemons, closed directories and files that others may not remove
    scene.command = (
        "setsid bash -c 'trap \"\" TERM HUP; sleep 1000; true' & "
        "mkdir -p deep/sticky shut && chmod 1777 deep/sticky && mkfifo deep/sticky/it && "
        "chmod 0 shut deep; bash job.sh {}"
    )
    scene.hold(1, 2)
    batch = scene.queue(3)
    worker = scene.worker(slots=2)
    scene.await_run(1)
    scene.await_run(2)

    # when it is killed
    worker.kill()

    # then all they have started ends, and the next worker clears away and goes on
    scene.await_no_process()
    scene.let_go(1, 2)
    scene.finish()
    scene.check(batch)


def test_a_worker_that_is_stopped_ends_its_jobs(scene: Divided) -> None:
    (scene.side / "stubborn").touch()
    scene.hold(1)
    batch = scene.queue(1)
    worker = scene.worker(limits={"term_s": 0.2})
    scene.await_run(1)

    worker.end()

    scene.await_no_process()
    assert list(scene.workingdir.iterdir()) == []
    assert scene.decided(batch) == 0
    assert scene.ledger.depth().waiting == 1


def test_hostile_jobs_end_and_leave_a_clean_place_to_the_next(
    folder: Path, descendants_with_env: Callable[[str, str], list[int]]
) -> None:
    shown = play(Shown(folder), *AS_UNIT, job_user=JOB_USER)

    pristine = (shown.result("jobs", "witness-nothing") / "seen.txt").read_text()
    assert "f 644 ./data.txt \n" in pristine
    for name in JOBS:
        record = shown.job("jobs", f"hostile-{name}")
        assert record["state"] == ("failed" if name in FAILURES else "succeeded"), record
        assert re.fullmatch(FAILURES.get(name, ""), record["reason"])
        assert (shown.result("jobs", f"witness-{name}") / "seen.txt").read_text() == pristine
    flood = shown.adr("logs", f"--runner={shown.runner}", "hostile-floods")
    assert len(flood) == LOG_BYTES
    assert list(shown.workingdir.iterdir()) == []
    assert descendants_with_env("SCENE", str(folder)) == []


def _has_user(name: str) -> bool:
    try:
        pwd.getpwnam(name)
    except KeyError:
        return False
    return True
