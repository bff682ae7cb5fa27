"""What the fleet of this machine plans, and how it tells processes apart."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from adr.errors import AdrError, PartialFailure, RunnerGone, ServiceError
from adr.fleets import local, processes
from adr.fleets.base import Demand, HostState, Pausable, Telling
from adr.fleets.local import LocalFleet
from adr.fleets.processes import OneProcess
from adr.fleets.specs import LocalSpec, WorkerOptions
from adr.progress import SILENT
from tests.servers import require


@pytest.fixture
def fleet(tmp_path):
    return LocalFleet(tmp_path)


@pytest.fixture
def sleeper():
    """Start a process that waits to be ended."""
    require(os.path.exists("/proc/self/stat"), "processes are told apart by /proc")
    with subprocess.Popen(["sleep", "1000"]) as process:
        yield process
        process.kill()


# Plans


@pytest.mark.parametrize(
    ("cores", "n", "slots", "expected"),
    [
        (8, 1, None, [8]),
        (8, 3, None, [3, 3, 2]),
        (2, 3, None, [1, 1, 1]),
        (8, 2, 5, [5, 5]),
        (8, None, None, [8]),
        (8, None, 3, [3, 3, 3]),
        (8, None, 100, [100]),
    ],
)
def test_workers_share_the_cores(fleet, monkeypatch, cores, n, slots, expected):
    monkeypatch.setattr(local, "cores", lambda: cores)

    plan = fleet.plan(LocalSpec(n, WorkerOptions(slots=slots)), Demand())

    assert plan.n == len(expected)
    assert [each["slots"] for each in plan.data["workers"]] == expected
    assert dict(plan.lines)["workers"] == f"{len(expected)} on this machine"


@pytest.mark.parametrize(
    ("options", "lines"),
    [
        (WorkerOptions(), {"end": "after 10 min with nothing to do"}),
        (WorkerOptions(keep=True), {"end": "when stopped"}),
        (
            WorkerOptions(idle_min=2.5, max_hours=8),
            {"end": "after 2.5 min with nothing to do", "limit": "8 h"},
        ),
    ],
)
def test_a_plan_says_how_workers_end(fleet, options, lines):
    assert lines.items() <= dict(fleet.plan(LocalSpec(1, options), Demand()).lines).items()


def test_a_plan_changes_nothing(fleet, tmp_path):
    fleet.plan(LocalSpec(), Demand())

    assert list(tmp_path.iterdir()) == []
    assert fleet.hosts() == []


def test_the_fleet_can_rest_and_tell(fleet):
    assert isinstance(fleet, Pausable)
    assert isinstance(fleet, Telling)


def test_a_runner_that_is_gone_does_not_come_back(tmp_path):
    fleet = LocalFleet(tmp_path / "gone")

    with pytest.raises(RunnerGone, match="there is no runner at"):
        fleet.launch(fleet.plan(LocalSpec(), Demand()), SILENT)

    fleet.dissolve(SILENT)
    assert not (tmp_path / "gone").exists()


# What is on file


def put(fleet, tmp_path, process, **more):
    """Put a process on file as a worker."""
    (tmp_path / "fleet").mkdir(exist_ok=True)
    entry = {
        "schema": 1,
        "number": 1,
        "process": {"pid": process.pid, "started": process.started, "boot": process.boot},
        "words": ["process"],
        "started_at": 0.0,
        "stopped": False,
        **more,
    }
    (tmp_path / "fleet" / "local-1.json").write_text(json.dumps(entry))


def test_a_worker_is_found_by_its_file(fleet, tmp_path, sleeper):
    put(fleet, tmp_path, OneProcess.of(sleeper.pid))

    [host] = fleet.hosts()

    assert (host.name, host.state, host.started_at) == ("local-1", HostState.RUNNING, 0.0)
    with pytest.raises(ServiceError, match="local-1 still run"):
        fleet.dissolve(SILENT)
    assert sleeper.poll() is None
    fleet.terminate([host], SILENT)
    assert sleeper.poll() is not None
    assert fleet.hosts() == []


@pytest.mark.parametrize(
    ("said", "note"),
    [
        ("", "was killed, or the machine was restarted"),
        ("adr: WARNING: SQS is busy\n", "was killed, or the machine was restarted"),
        ("adr: the runner is gone\n", "ended by itself: the runner is gone"),
        ("ModuleNotFoundError: adr\n", "ended by itself: ModuleNotFoundError: adr"),
    ],
)
def test_a_worker_that_left_no_last_word_was_killed(fleet, tmp_path, sleeper, said, note):
    # given a worker that has said something in an earlier life
    gone = OneProcess(sleeper.pid, "another", "boot")
    before = "3 jobs succeeded, 0 failed, 0 cancelled\n"
    put(fleet, tmp_path, gone, log_from=len(before))
    (tmp_path / "fleet" / "local-1.log").write_text(before + said)

    [host] = fleet.hosts()

    assert (host.state, host.note) == (HostState.ENDED, note)


def test_a_worker_that_does_not_end_is_killed_where_it_is_to_be_gone(fleet, tmp_path, monkeypatch):
    # given one that a TERM does not impress
    script = "import signal, time; signal.signal(15, signal.SIG_IGN); print(1); time.sleep(1000)"
    with subprocess.Popen([sys.executable, "-uc", script], stdout=subprocess.PIPE) as deaf:
        deaf.stdout.readline()
        process = OneProcess.of(deaf.pid)
        put(fleet, tmp_path, process)
        monkeypatch.setattr(local, "_STOP_S", 0.2)
        [host] = fleet.hosts()
        # when it is stopped
        with pytest.raises(PartialFailure, match="local-1 had not ended after") as caught:
            fleet.stop([host], SILENT)
        # then it is named, and left
        assert caught.value.failed == ("local-1",)
        assert fleet.hosts()[0].state is HostState.STOPPING
        assert deaf.poll() is None
        # and ended for good
        fleet.terminate([host], SILENT)
        assert not process.runs


def test_a_file_of_a_newer_adr_is_refused_with_a_sentence(fleet, tmp_path):
    put(fleet, tmp_path, OneProcess(1, "", ""), schema=99)

    with pytest.raises(AdrError, match="upgrade adr"):
        fleet.hosts()


def test_a_broken_file_is_named(fleet, tmp_path):
    (tmp_path / "fleet").mkdir()
    (tmp_path / "fleet" / "local-1.json").write_text("{")

    with pytest.raises(ServiceError, match=r"local-1\.json is broken"):
        fleet.hosts()


def test_other_files_are_no_workers(fleet, tmp_path):
    (tmp_path / "fleet").mkdir()
    (tmp_path / "fleet" / "local-x.json").write_text("{")

    assert fleet.hosts() == []


# Processes


def test_a_process_is_the_same_until_it_ends(sleeper, wait_for):
    process = OneProcess.of(sleeper.pid)
    assert process.runs
    assert process == OneProcess.of(sleeper.pid)

    process.send(15)

    # nobody has waited for it yet: it is a zombie until it is looked at
    wait_for(lambda: not process.runs)
    sleeper.wait()
    assert not process.runs


@pytest.mark.parametrize("change", [{"started": "1"}, {"boot": "another"}])
def test_another_process_of_the_same_pid_is_another(sleeper, change):
    process = OneProcess.of(sleeper.pid)
    other = OneProcess(**{**vars(process), **change})

    assert not other.runs
    other.send(9)
    assert process.runs


def test_without_proc_the_pid_has_to_do(sleeper, monkeypatch):
    monkeypatch.setattr(processes, "_stat", lambda pid: [])
    monkeypatch.setattr(processes, "_boot_id", lambda: "")

    process = OneProcess.of(sleeper.pid)

    assert process.runs
    sleeper.kill()
    sleeper.wait()
    assert not process.runs
