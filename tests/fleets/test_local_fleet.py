"""Worker processes of a local runner: launched by one command, found again by every other."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.e2e.conftest import WITHOUT_BOTO
from tests.servers import require


@pytest.fixture
def runner(shell, tmp_path, isolated_home, descendants_with_env) -> Iterator[Path]:
    """Make a local runner that is the current one; nothing of it runs afterwards."""
    require(Path("/proc/self/stat").exists(), "processes are told apart by /proc")
    # what a fleet on this machine needs of AWS is nothing
    shell.start = WITHOUT_BOTO
    yield Path(shell("create", "--local", f"--dir={tmp_path / 'runner'}").out.strip())
    for pid in descendants_with_env("HOME", str(isolated_home)):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


@pytest.fixture
def hosts(shell, runner):
    """Return a function that gives the hosts as adr list shows them, by name."""

    def ask():
        return {host["name"]: host for host in shell("list", runner, "--json").json["hosts"]}

    return ask


def entry(runner: Path, name: str) -> dict:
    return json.loads((runner / "fleet" / f"{name}.json").read_text())


def runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_launched_workers_process_the_queue_after_their_shell_has_gone(
    shell, runner, hosts, wait_for
):
    # given
    done = shell("launch", "-n", "2", "--slots=1", runner)
    assert done.lines == ["local-1", "local-2"]
    assert {name: host["state"] for name, host in hosts().items()} == {
        "local-1": "running",
        "local-2": "running",
    }
    # each in a session of its own
    pids = [entry(runner, name)["process"]["pid"] for name in ("local-1", "local-2")]
    assert [os.getsid(pid) for pid in pids] == pids
    # when
    shell.write({f"case{number}.txt": f"{number}\n" for number in range(6)})
    shell("queue", "--command=cp {} copy", *(f"case{number}.txt" for number in range(6)))
    wait_for(lambda: shell("status", "--json").json["totals"]["succeeded"] == 6)
    # then the records name the hosts, which leave when nothing is left to do
    records = shell("status", "--jobs", "--json").json["jobs"]
    assert {record["host"] for record in records} <= {"local-1", "local-2"}
    wait_for(lambda: {host["state"] for host in hosts().values()} == {"ended"})
    wait_for(lambda: not any(map(runs, pids)))
    notes = [host["note"] for host in hosts().values()]
    assert all("ended by itself: " in note and "succeeded" in note for note in notes)


def test_workers_share_the_cores_unless_slots_are_given(shell, runner, hosts):
    shell("launch", "-n", "auto", "--slots=100", "--keep", runner)
    shell("launch", "-n2", "--keep", runner)

    assert hosts()["local-1"]["slots"] == 100
    cores = len(os.sched_getaffinity(0))
    shared = sum(hosts()[name]["slots"] for name in ("local-2", "local-3"))
    assert 2 <= shared <= max(2, cores)


def test_a_worker_keeps_nothing_of_its_shell_open(shell, runner):
    # given a shell that holds a lock, say, which ends when all have closed it
    with (shell.folder / "lock").open("w") as lock:
        words = [sys.executable, "-m", "adr", "launch", "--keep", runner]
        subprocess.run(words, cwd=shell.folder, pass_fds=[lock.fileno()], check=True)

    pid = entry(runner, "local-1")["process"]["pid"]
    opened = [os.readlink(each) for each in Path(f"/proc/{pid}/fd").iterdir()]
    assert str(shell.folder / "lock") not in opened
    there = [os.readlink(f"/proc/{pid}/fd/{number}") for number in (0, 1, 2)]
    log = str(runner / "fleet" / "local-1.log")
    assert there == [os.devnull, log, log]
    assert not any(os.readlink(each) == str(shell.folder) for each in [f"/proc/{pid}/cwd"]), (
        "its folder can be removed"
    )


def test_a_worker_that_cannot_start_says_why(shell, runner):
    # given a place to work in that is none
    (runner / "fleet").mkdir()
    (runner / "fleet" / "work").touch()
    # when
    done = shell("launch", "-n2", runner, status=1)
    # then
    assert done.out == ""
    first, second = sorted(done.err.splitlines())
    assert first.startswith("adr: could not launch local-1: it ended at once: cannot work in ")
    assert "local-2" in second


def test_stopped_workers_give_their_jobs_back_and_start_again(shell, runner, hosts, wait_for):
    # given
    shell("launch", "--keep", "--slots=1", runner)
    shell.write({"case.txt": "1\n"})
    shell("queue", "--command=test -e /dev/null && cp {} copy && sleep ${NAP:-1000}", "case.txt")
    wait_for(lambda: hosts()["local-1"]["busy"] == 1)
    pid = entry(runner, "local-1")["process"]["pid"]
    # when
    done = shell("stop", runner)
    # then
    assert done.err.splitlines()[-1] == "local-1: stopped"
    assert not runs(pid)
    assert hosts()["local-1"]["state"] == "stopped"
    assert shell("status", "--json").json["totals"]["queued"] == 1
    assert shell("stop", runner).err == "there is nothing to stop\n"
    # and
    assert shell("start", runner, env={"NAP": "0"}).lines == ["local-1"]
    wait_for(lambda: shell("status", "--json").json["totals"]["succeeded"] == 1)
    assert hosts()["local-1"]["state"] == "running"
    assert shell("start", runner).err == "there is nothing to start\n"


def test_a_killed_worker_is_seen_and_its_log_is_shown(shell, runner, hosts, wait_for):
    shell("launch", "-n2", "--keep", runner)
    os.kill(entry(runner, "local-1")["process"]["pid"], signal.SIGKILL)

    wait_for(lambda: hosts()["local-1"]["state"] == "ended")

    assert hosts()["local-1"]["note"] == "was killed, or the machine was restarted"
    assert hosts()["local-2"]["state"] == "running"
    assert "has said nothing yet" in shell("logs", "--worker=local-1", status=1).err
    # what it says in one life is not taken for words of the next
    assert shell("start", runner).lines == ["local-1"]
    shell("stop", "--hosts=local-1", runner)
    shell("start", runner)
    os.kill(entry(runner, "local-1")["process"]["pid"], signal.SIGKILL)
    wait_for(lambda: hosts()["local-1"]["state"] == "ended")
    assert hosts()["local-1"]["note"] == "was killed, or the machine was restarted"
    assert "0 jobs succeeded" in shell("logs", "--worker=local-1").out
    # what has ended is forgotten by the next launch, which takes its place
    assert shell("launch", "--keep", runner).lines == ["local-1"]
    shell("stop", "--hosts=local-1", runner)
    assert b"0 jobs succeeded" in shell("logs", "--worker=local-1").out.encode()


def test_a_process_that_got_the_pid_of_a_worker_is_left_alone(shell, runner, hosts, wait_for):
    # given a worker that has gone, and another process with its pid
    shell("launch", "--keep", runner)
    noted = entry(runner, "local-1")
    worker = noted["process"]["pid"]
    os.kill(worker, signal.SIGKILL)
    wait_for(lambda: not runs(worker))
    noted["process"]["pid"] = os.getpid()
    (runner / "fleet" / "local-1.json").write_text(json.dumps(noted))
    # then it is no worker
    assert hosts()["local-1"]["state"] == "ended"
    # and nothing is done to it
    shell("stop", "--hosts=local-1", runner)
    shell("destroy", "--yes", "--hosts=local-1", runner)
    assert hosts() == {}


def test_a_process_of_an_earlier_boot_is_not_there(shell, runner, hosts, wait_for):
    shell("launch", "--keep", runner)
    noted = entry(runner, "local-1")
    file = runner / "fleet" / "local-1.json"
    file.write_text(json.dumps({**noted, "process": {**noted["process"], "boot": "another"}}))

    assert hosts()["local-1"]["state"] == "ended"
    file.write_text(json.dumps(noted))
    assert hosts()["local-1"]["state"] == "running"


def test_a_worker_started_by_hand_is_listed_and_left_alone(shell, runner, hosts, wait_for):
    by_hand = shell.begin("process", "--host=desk", runner)
    try:
        wait_for(lambda: "desk" in hosts())
        shell("launch", "--keep", runner)

        assert {name: host["fleet"] for name, host in hosts().items()} == {
            "local-1": "local",
            "desk": "",
        }
        refusal = shell("stop", "--hosts=desk", runner, status=2).err
        assert "was started by hand: end it there" in refusal
        unknown = shell("stop", "--hosts=nobody", runner, status=2).err
        assert unknown == "adr: the runner has no host 'nobody': it has local-1, desk\n"
        shell("stop", runner)
        assert by_hand.poll() is None
    finally:
        by_hand.terminate()
        assert by_hand.wait(30) == 130
        by_hand.communicate()


def test_only_the_named_workers_are_destroyed(shell, runner, hosts):
    shell("launch", "-n2", "--keep", runner)
    pids = {name: entry(runner, name)["process"]["pid"] for name in hosts()}

    shell("destroy", "--yes", "--hosts=local-1", runner)

    assert list(hosts()) == ["local-2"]
    assert [runs(pids[name]) for name in ("local-1", "local-2")] == [False, True]
    assert shell("status", "--json").status == 0


@pytest.mark.parametrize("purge", [[], ["--purge"]])
def test_destroy_leaves_no_process_and_no_file_of_the_fleet(shell, runner, hosts, purge):
    # given one that works, one that was killed, one that was stopped
    shell("launch", "-n3", "--keep", runner)
    pids = [entry(runner, name)["process"]["pid"] for name in hosts()]
    os.kill(pids[1], signal.SIGKILL)
    shell("stop", "--hosts=local-3", runner)
    # when
    shell("destroy", "--yes", *purge, runner)
    # then
    assert not any(map(runs, pids))
    assert not (runner / "fleet").exists()
    assert runner.exists() == (not purge)


def test_nothing_is_launched_for_a_runner_that_is_destroyed(shell, runner):
    shell("destroy", "--yes", runner)

    assert "has been destroyed" in shell("launch", runner, status=2).err
    assert not (runner / "fleet").exists()


def test_hosts_over_ssh_are_none_of_a_local_runner(shell, runner):
    refusal = shell("launch", "--hosts=lab1", runner, status=2).err

    assert "a folder of this machine, which other hosts do not reach" in refusal
    assert shell("prepare", runner, status=2).err == refusal


def test_two_launches_at_the_same_time_take_different_names(shell, runner, hosts):
    launches = [shell.begin("launch", "-n2", "--keep", runner) for _ in range(2)]
    names = [name for each in launches for name in each.communicate(timeout=60)[0].split()]

    assert sorted(names) == ["local-1", "local-2", "local-3", "local-4"]
    assert sorted(hosts()) == sorted(names)
