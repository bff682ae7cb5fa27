"""Hosts of one's own: real SSH servers, real installations, jobs that are processed there."""

from __future__ import annotations

import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event

import pytest

import adr
from adr.fleets.base import Demand
from adr.fleets.specs import SshSpec
from adr.keys import SSH_HOSTS
from adr.progress import SILENT
from adr.runner import open_runner
from tests.conftest import REGION
from tests.e2e.conftest import Shell
from tests.machines.index import PackageIndex
from tests.network import Network, require_network
from tests.servers import free_port, require, start_ministack, start_moto
from tests.sshd import LabHost, LoopbackSshd, make_key, python_of_hosts, require_sshd

#: Whether what runs here is that adr; else it is that of the sources (`tests.suites`).
IS_INSTALLED = "site-packages" in adr.__file__


class Fleet:
    """Type the commands about hosts of one runner."""

    def __init__(self, shell, runner, pip_options, key):
        self.shell = shell
        self.runner = runner
        self.install = (f"--key={key}", f"--pip-options={pip_options}")
        # What is asked for again and again need not be a process each time.
        self._asking = Shell(shell.folder)
        self._asking.inside = True

    def __call__(self, verb, *words, status=0):
        """Run a command and return what it prints as JSON."""
        # What is brought to hosts is the adr that is installed.
        if not self.shell.inside or (verb in ("launch", "prepare") and not IS_INSTALLED):
            return self.end(self.begin(verb, *words), status)
        done = self.shell(verb, *self._of_runner(), *words, status=status)
        self.err = done.err
        return done.json if done.out else None

    def begin(self, verb, *words):
        return self.shell.begin(verb, *self._of_runner(), *words)

    def end(self, process, status=0):
        # Installing takes longer than other commands.
        out, err = process.communicate(timeout=300)
        assert process.returncode == status, err
        assert "Traceback" not in err
        self.err = err
        return json.loads(out) if out else None

    def _of_runner(self):
        return "--json", f"--runner={self.runner}"

    def launch(self, *words, status=0):
        return self("launch", "--hosts=lab", *self.install, *words, status=status)

    def hosts(self):
        return {each["name"]: each for each in self("list")["hosts"]}

    def queue(self, *names):
        """Queue one small job for each name."""
        self.shell.write({f"in/{name}.txt": name for name in names})
        command = 'sh -c "cp {} {.}.out; sleep 0.1"'
        words = [f"--runner={self.runner}", f"--command={command}", r"--store=\.out$"]
        self.shell("queue", *words, *(f"in/{name}.txt" for name in names))

    def records(self):
        told = self._asking("status", f"--runner={self.runner}", "--jobs", "--json").json
        return {job["label"]: job for job in told["jobs"]}

    def all_succeeded(self):
        return {job["state"] for job in self.records().values()} == {"succeeded"}


@pytest.fixture(scope="module")
def key(tmp_path_factory):
    require_sshd()
    return make_key(tmp_path_factory.mktemp("keys") / "id_ed25519")


@pytest.fixture(autouse=True)
def no_agent(monkeypatch):
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)


@pytest.fixture(scope="module", autouse=True)
def installed():
    where = "import adr, pathlib; print(pathlib.Path(adr.__file__).parents[1])"
    words = [sys.executable, "-c", where]
    place = subprocess.run(words, cwd="/", capture_output=True, text=True, check=True).stdout
    require("site-packages" in place, f"adr is linked to {place.strip()}: install it without -e")


# One host: the user of the test itself, in another home directory


@pytest.fixture(scope="module")
def index():
    with PackageIndex("127.0.0.1", python_of_hosts()) as index:
        yield index


@pytest.fixture(scope="module")
def sshd(key, tmp_path_factory):
    server = LoopbackSshd(tmp_path_factory.mktemp("sshd"), key.with_suffix(".pub"))
    server.start()
    yield server
    server.stop()
    server.kill_processes()


@pytest.fixture
def host(sshd, isolated_home):
    """Return the name by which ssh reaches the one host."""
    ssh = isolated_home / ".ssh"
    ssh.mkdir(exist_ok=True)
    (ssh / "config").write_text(f"Host lab\n  HostName 127.0.0.1\n  Port {sshd.port}\n")
    yield "lab"
    sshd.kill_processes()


@pytest.fixture
def fleet(shell, proxy, moto_url, index, key, host, monkeypatch):
    for service in ("STS", "IAM"):
        monkeypatch.setenv(f"AWS_ENDPOINT_URL_{service}", moto_url)
    shell.inside = True
    runner = shell("create").out.strip()
    return Fleet(shell, runner, index.pip_options, key)


def folder_of(sshd, fleet):
    return sshd.home / ".adr" / fleet.runner / os.uname().nodename


def pid_of(sshd, fleet):
    return int((folder_of(sshd, fleet) / "worker.pid").read_text())


def lives(pid):
    """Return the command line of a process; nothing where it has ended, also just now."""
    with suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""


def mark(sshd):
    return sshd.home / ".envs/adr/.adr-wheel"


def credentials(sshd, fleet):
    return sshd.home / ".adr" / fleet.runner / "credentials.json"


@pytest.mark.timeout(300)
def test_a_host_is_set_up_runs_jobs_rests_goes_on_and_is_cleared(fleet, sshd, host, wait_for):
    # As users have it, each command a process of its own
    fleet.shell.inside = False
    fleet.queue("a", "b")

    told = fleet.launch("--slots=2", "--keep")

    assert [each["name"] for each in told["hosts"]] == ["lab"]
    assert re.search(r"until \d{4}-\d\d-\d\d .* adr prepare --renew", told["notes"][0])
    wait_for(fleet.all_succeeded, 60)
    assert {job["host"] for job in fleet.records().values()} == {"lab"}
    fleet.shell("download", "--flat", f"--runner={fleet.runner}", "results")
    assert sorted(fleet.shell.tree("results").values()) == ["a", "b"]
    (seen,) = fleet.hosts().values()
    assert (seen["fleet"], seen["state"], seen["slots"]) == ("ssh", "running", 2)
    assert "credentials end at " in seen["note"]

    # It rests
    pid = pid_of(sshd, fleet)
    fleet("stop")
    assert not lives(pid)
    assert fleet.hosts()["lab"]["state"] == "stopped"
    fleet("stop", "--hosts=lab")

    # It goes on
    fleet.queue("c")
    fleet("start")
    wait_for(lambda: len(fleet.records()) == 3, 60)
    wait_for(fleet.all_succeeded, 60)
    assert fleet.hosts()["lab"]["state"] == "running"

    # It is cleared
    pid = pid_of(sshd, fleet)
    fleet.shell("destroy", "--yes", "--hosts=lab", fleet.runner)
    assert not lives(pid)
    assert not (sshd.home / ".adr" / fleet.runner).exists()
    assert "lab" not in fleet.hosts()


def test_what_would_be_done_is_shown_and_nothing_of_it_done(fleet, sshd, host):
    told = fleet("launch", "--hosts=lab,lab,other", "--dry-run")

    assert (told["n"], told["hosts"], told["credentials"]) == (2, ["lab", "other"], "lent")
    assert not (sshd.home / ".adr" / fleet.runner).exists()
    assert fleet.hosts() == {}


def test_a_destroyed_runner_leaves_nothing_on_its_hosts(fleet, sshd, host, isolated_home):
    fleet.launch()
    pid = pid_of(sshd, fleet)
    noted = list((isolated_home / ".local/share/adr/known_hosts").iterdir())

    fleet.shell("destroy", "--yes", fleet.runner)

    assert not lives(pid)
    assert not (sshd.home / ".adr" / fleet.runner).exists()
    assert [path.name for path in noted] == [fleet.runner]
    assert not noted[0].exists()


def test_a_host_that_is_set_up_twice_has_one_worker(fleet, sshd, host):
    fleet.launch()
    pid, installed_at = pid_of(sshd, fleet), mark(sshd).stat().st_mtime_ns

    told = fleet("prepare", *fleet.install)

    assert "the worker on lab runs already, the way it was started" in told["notes"]
    assert pid_of(sshd, fleet) == pid
    assert lives(pid)
    assert mark(sshd).stat().st_mtime_ns == installed_at, "installed again"
    assert list(fleet.hosts()) == ["lab"]


def test_only_the_worker_of_that_runner_is_stopped(fleet, sshd, host, index, key):
    other = Fleet(fleet.shell, fleet.shell("create").out.strip(), index.pip_options, key)
    fleet.launch()
    other.launch()
    mine, others = pid_of(sshd, fleet), pid_of(sshd, other)

    fleet("stop")

    assert not lives(mine)
    assert lives(others)


@contextmanager
def another_adr(sshd):
    """Keep the lock that is taken on a host by each step that changes it."""
    with (sshd.home / ".adr" / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def test_a_start_that_still_waits_starts_nothing_after_a_stop(
    fleet, sshd, host, wait_for, descendants_with_env
):
    def queued():
        own = descendants_with_env("HOME", str(sshd.home))
        return [pid for pid in own if b"\0start\0" in lives(pid)]

    # Given a start that waits for another adr, and whose own adr was interrupted
    fleet.launch("--keep")
    fleet("stop")
    with another_adr(sshd):
        starting = fleet.begin("start")
        wait_for(queued, 60)
        starting.send_signal(signal.SIGINT)
        starting.communicate(timeout=60)
        assert queued()

        # When the host is told to stop
        fleet("stop", "--hosts=lab")

    # Then that is final
    wait_for(lambda: not queued(), 60)
    assert not (folder_of(sshd, fleet) / "worker.pid").exists()
    fleet("start")
    assert lives(pid_of(sshd, fleet))


def test_a_host_where_another_adr_is_busy_says_so(fleet, sshd, host):
    fleet.launch("--keep")
    with another_adr(sshd):
        told = fleet("prepare", "--timeout=10", *fleet.install, status=1)

    assert re.search("not done 10 s .* another adr is busy on this host", told["failed"]["lab"])


def test_a_stranger_that_got_the_number_of_the_worker_is_left_alone(fleet, sshd, host):
    fleet.launch()
    with subprocess.Popen(["sleep", "600"]) as stranger:
        (folder_of(sshd, fleet) / "worker.pid").write_text(f"{stranger.pid}\n")

        fleet("stop")

        assert stranger.poll() is None
        stranger.kill()


def test_no_other_adr_is_installed_under_a_worker_that_runs(fleet, sshd, host, index, key):
    fleet.launch()
    mark(sshd).write_text("another")
    other = Fleet(fleet.shell, fleet.shell("create").out.strip(), index.pip_options, key)

    told = other.launch(status=1)

    assert "a worker runs with another version of adr" in told["failed"]["lab"]
    assert fleet.runner in told["failed"]["lab"]
    assert lives(pid_of(sshd, fleet))


def test_no_other_adr_is_installed_under_a_worker_of_another_node_with_the_same_home(
    fleet, sshd, host
):
    # Given a home with a worker of another machine, whose number means nothing here
    fleet.launch()
    fleet("stop")
    mark(sshd).write_text("another")
    away = folder_of(sshd, fleet).parent / "away"
    away.mkdir()
    for name in ("worker.pid", "alive"):
        (away / name).write_text("1\n")

    # Then it counts as long as it gives signs of life
    told = fleet.launch(status=1)
    assert "a worker runs with another version of adr" in told["failed"]["lab"]
    assert f"{fleet.runner}/away" in told["failed"]["lab"]
    hour_ago = time.time() - 3600
    os.utime(away / "alive", (hour_ago, hour_ago))
    fleet.launch()

    # Or until it has ended
    fleet("stop")
    mark(sshd).write_text("another")
    os.utime(away / "alive")
    (away / "worker.exit").write_text("0\n")
    fleet.launch()


def test_a_worker_that_ends_at_once_is_told_with_what_it_said(fleet, sshd, host):
    (folder_of(sshd, fleet)).mkdir(parents=True)
    (folder_of(sshd, fleet) / "work").write_text("in the way")

    told = fleet.launch(status=1)

    assert re.search(
        r"cannot start the worker: .* /.*/work: .* with status [12]", told["failed"]["lab"]
    )
    assert fleet.hosts()["lab"]["state"] == "stopped"


def test_a_host_that_failed_half_way_has_no_credentials_and_is_cleared(fleet, sshd, host):
    script = (
        f"#!/bin/sh\ncp ~/.adr/{fleet.runner}/credentials.json /dev/null && touch ~/had; exit 4"
    )
    fleet.shell.write({"setup.sh": script})

    told = fleet.launch("--setup=setup.sh", status=1)

    assert list(told["failed"]) == ["lab"]
    assert (sshd.home / "had").exists(), "failed too early"
    assert not credentials(sshd, fleet).exists()
    assert fleet.hosts()["lab"]["state"] == "stopped"
    fleet.shell("destroy", "--yes", fleet.runner)
    assert not (sshd.home / ".adr" / fleet.runner).exists()


def test_a_host_that_is_lost_half_way_is_known_and_cleared_later(fleet, sshd, host, wait_for):
    fleet.shell.write({"setup.sh": "#!/bin/sh\ntouch ~/reached; sleep 600"})
    launching = fleet.begin("launch", "--hosts=lab", *fleet.install, "--setup=setup.sh")
    wait_for((sshd.home / "reached").exists, 100)

    sshd.drop_connections()

    assert "connection was lost" in fleet.end(launching, status=1)["failed"]["lab"]
    sshd.kill_processes()
    assert credentials(sshd, fleet).exists()
    fleet.shell("destroy", "--yes", fleet.runner)
    assert not (sshd.home / ".adr" / fleet.runner).exists()


def test_a_set_up_that_fails_takes_nothing_from_a_worker_that_runs(fleet, sshd, host):
    fleet.launch("--keep")
    fleet.shell.write({"setup.sh": "#!/bin/sh\nexit 4"})

    fleet("prepare", "--setup=setup.sh", *fleet.install, status=1)

    assert lives(pid_of(sshd, fleet))
    assert credentials(sshd, fleet).exists()
    assert fleet.hosts()["lab"]["state"] == "running"


@pytest.fixture
def scrap(isolated_home):
    """Return a function that takes the one host out of reach for good."""

    def scrap():
        nowhere = f"Host lab\n  HostName 127.0.0.1\n  Port {free_port()}\n"
        (isolated_home / ".ssh" / "config").write_text(nowhere)

    return scrap


def test_a_host_out_of_reach_is_forgotten_once_its_credentials_have_ended(fleet, host, scrap):
    fleet.launch("--keep")
    scrap()
    destroy = ("--yes", "--hosts=lab", fleet.runner)

    # While they are good
    told = fleet.shell("destroy", *destroy, status=1).err
    assert "refuses connections" in told
    assert re.search(r"good until \d{4}-.* UTC: adr destroy after that forgets it", told)
    assert "lab" in fleet.hosts()

    # And later
    store = open_runner(fleet.runner, REGION).store
    entry = json.loads(store.read(f"{SSH_HOSTS}lab.json").body)
    entry["credentials_end"] = time.time() - 1
    store.write(f"{SSH_HOSTS}lab.json", json.dumps(entry).encode())
    told = fleet.shell("destroy", *destroy).err
    assert re.search(f"lab is forgotten .*~/.adr/{fleet.runner} is left there, and its", told)
    assert [each["fleet"] for each in fleet.hosts().values() if each["fleet"]] == []


def test_a_host_out_of_reach_does_not_keep_a_runner_from_being_destroyed(fleet, host, scrap):
    fleet.launch("--keep", "--copy-credentials")
    scrap()

    told = fleet.shell("destroy", "--yes", fleet.runner).err

    assert f"~/.adr/{fleet.runner} is left there, with your own keys in it" in told


def test_hosts_are_ended_from_a_machine_without_the_key_of_their_launch(
    fleet, sshd, host, key, tmp_path, isolated_home
):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_bytes(key.read_bytes())
    elsewhere.chmod(0o600)
    fleet("launch", "--hosts=lab", f"--key={elsewhere}", *fleet.install[1:])
    elsewhere.rename(isolated_home / ".ssh" / "id_ed25519")

    fleet.shell("destroy", "--yes", "--hosts=lab", fleet.runner)

    assert not (sshd.home / ".adr" / fleet.runner).exists()


@pytest.mark.parametrize("verb", ["launch", "prepare"])
def test_a_login_in_the_options_of_pip_is_refused_and_not_repeated(fleet, sshd, host, verb):
    options = "--pip-options=--index-url=https://me:open-sesame@index.example/simple"

    fleet(verb, "--hosts=lab", options, status=2)

    assert "an address in --pip-options holds a user name or a password" in fleet.err
    assert "sesame" not in fleet.err
    assert fleet.hosts() == {}


def test_secrets_are_in_a_file_of_their_owner_and_nowhere_else(
    fleet, sshd, host, isolated_home, descendants_with_env
):
    fleet.queue("a")
    fleet.launch("--keep")

    path = credentials(sshd, fleet)
    lent = json.loads(path.read_text())
    assert path.stat().st_mode & 0o777 == 0o600
    secrets = [lent["SecretAccessKey"].encode(), lent["SessionToken"].encode()]
    own = descendants_with_env("HOME", str(sshd.home))
    assert own
    told = {
        f"/proc/{pid}/{name}": Path(f"/proc/{pid}/{name}").read_bytes()
        for pid in own
        for name in ("cmdline", "environ")
    }
    for place in (sshd.home, isolated_home, fleet.shell.folder):
        told |= {
            str(file): file.read_bytes()
            for file in place.rglob("*")
            if file.is_file() and file.name != path.name and ".envs" not in file.parts
        }
    told["records"] = json.dumps(fleet.records()).encode()
    told["hosts"] = json.dumps(fleet.hosts()).encode()
    assert [name for name, text in told.items() if any(each in text for each in secrets)] == []


def test_a_running_worker_takes_up_renewed_credentials(fleet, sshd, host, proxy):
    path = credentials(sshd, fleet)
    renewed = Event()

    def note(call):
        told = re.search(r"Credential=(\w+)/", call.lower.get("authorization", ""))
        now = json.loads(path.read_text())["AccessKeyId"]
        if told and told[1] == now != before["AccessKeyId"]:
            renewed.set()

    # Given a worker whose credentials end within minutes
    fleet.launch()
    fleet("stop")
    before = json.loads(path.read_text())
    before["AccessKeyId"] = "ASIAOLD"  # moto always lends the same
    before["Expiration"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 300))
    path.write_text(json.dumps(before))
    own = {"HOME": str(sshd.home), "PATH": os.environ["PATH"]}
    with subprocess.Popen(["sh", folder_of(sshd, fleet) / "worker.sh"], env=own):
        proxy.before(lambda call: True, note)

        fleet("prepare", "--renew")

        assert renewed.wait(60)
        sshd.kill_processes()
    assert fleet.hosts()["lab"]["state"] == "stopped", "renewing starts nothing"


def test_hosts_of_another_fleet_are_not_remembered_and_their_end_is_told(fleet, sshd, host, key):
    ssh = open_runner(fleet.runner, REGION).fleets["ssh"]()
    spec = SshSpec(hosts=("lab",), key_filename=str(key), renew=True, remember=False)

    report = ssh.launch(ssh.plan(spec, Demand()), SILENT)

    assert credentials(sshd, fleet).exists()
    assert fleet.hosts() == {}
    assert "an hour after its worker could reach the runner" in report.notes[1]


def test_own_keys_are_handed_over_only_when_asked_for_and_with_a_warning(fleet, sshd, host):
    told = fleet.launch("--copy-credentials")

    given = json.loads(credentials(sshd, fleet).read_text())
    assert given["AccessKeyId"] == os.environ["AWS_ACCESS_KEY_ID"]
    assert "your own keys lie on these hosts now" in told["notes"][0]
    assert "credentials end" not in fleet.hosts()["lab"]["note"]


def test_the_setup_script_runs_once_before_the_worker_in_its_environment(fleet, sshd, host):
    script = "#!/bin/sh\ncommand -v python >>~/ran; echo no model; exit $(cat ~/status)"
    fleet.shell.write({"setup.sh": script})
    (sshd.home / "status").write_text("4")

    told = fleet.launch("--setup=setup.sh", status=1)

    assert told["failed"] == {"lab": "cannot run the setup script: no model"}
    assert not (folder_of(sshd, fleet) / "worker.pid").exists()
    (sshd.home / "status").write_text("0")
    for _ in range(2):
        fleet.launch("--setup=setup.sh")
    assert (sshd.home / "ran").read_text() == f"{sshd.home}/.envs/adr/bin/python\n" * 2


def test_a_worker_that_has_left_by_itself_says_so_beside_its_sign_of_life(
    fleet, sshd, host, wait_for
):
    left, alive = folder_of(sshd, fleet) / "left", folder_of(sshd, fleet) / "alive"

    # Told to stop, it has not left by itself
    fleet.launch()
    assert alive.exists()
    fleet("stop")
    assert not left.exists()

    # With nothing left to do it has
    fleet.queue("a")
    fleet("start")
    wait_for(left.exists, 60)
    assert (folder_of(sshd, fleet) / "worker.exit").read_text() == "0\n"

    # And no more once it is back
    fleet("prepare", *fleet.install, "--keep")
    assert not left.exists()


def test_what_a_worker_has_said_is_shown(fleet, sshd, host):
    fleet.launch("--keep")
    with (folder_of(sshd, fleet) / "worker.log").open("a") as log:
        log.write("something happened\n")

    told = fleet.shell("logs", f"--runner={fleet.runner}", "--worker=lab").out

    assert told.endswith("something happened\n")


# Several hosts, each a machine of its own


@pytest.fixture(scope="module")
def network():
    require_network()
    with Network() as network:
        yield network


@pytest.fixture
def aws_on_bridge(network, tmp_path_factory, monkeypatch):
    """Serve AWS where both the test and the hosts reach it."""
    ministack = start_ministack(tmp_path_factory.mktemp("ministack"), network.gateway)
    moto = start_moto(tmp_path_factory.mktemp("moto"), network.gateway)
    monkeypatch.setenv("AWS_ENDPOINT_URL", moto.url)
    for service in ("S3", "SQS"):
        monkeypatch.setenv(f"AWS_ENDPOINT_URL_{service}", ministack.url)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", REGION)
    yield
    moto.stop()
    ministack.stop()


@pytest.fixture
def lab(network, key, tmp_path_factory):
    """Return a function that makes a machine with an SSH server."""
    made = []

    def make(name, **options):
        folder = tmp_path_factory.mktemp(name)
        made.append(LabHost(network, name, folder, key.with_suffix(".pub"), **options))
        made[-1].start()
        return made[-1]

    yield make
    for each in made:
        network.end_processes(each.host)
        each.stop()
        network.remove(each.host)


@pytest.mark.timeout(400)
def test_bad_hosts_stop_no_good_ones_and_are_named(
    lab, network, aws_on_bridge, shell, key, isolated_home, wait_for
):
    good = lab("good", password="open sesame")
    bare = lab("bare", without=["dtach", "ensurepip"])
    old = lab("old", without=["python"])
    down, cut = lab("down"), lab("cut")
    network.cut(down.host)
    hosts = {each.host.name: each for each in (good, bare, old, down, cut)}
    (isolated_home / ".ssh").mkdir()
    (isolated_home / ".ssh" / "config").write_text(
        "".join(f"Host {name}\n  HostName {each.address}\n" for name, each in hosts.items())
        + "Host *\n  User lab\n"
    )
    (good.home / ".ssh" / "authorized_keys").write_text("")
    runner = shell("create").out.strip()
    with PackageIndex(network.gateway, python_of_hosts()) as index:
        fleet = Fleet(shell, runner, index.pip_options, key)
        fleet.queue(*(f"case{n}" for n in range(8)))

        # When one host dies in the middle of its installation
        words = ["--slots=2", "--keep", "--password=open sesame"]
        launching = fleet.begin("launch", f"--hosts={','.join(hosts)}", *fleet.install, *words)
        wait_for(lambda: any(is_pip(pid) for pid in cut.pids()), 100)
        network.cut(cut.host)
        told = fleet.end(launching, status=1)

    # Then it is named, and so are the others that fail
    assert [each["name"] for each in told["hosts"]] == ["good", "bare"]
    assert list(told["failed"]) == ["old", "down", "cut"]
    assert re.search("does not answer|there is no way to", told["failed"]["down"])
    assert "cannot install adr: the connection was lost" in told["failed"]["cut"]
    assert "there is no Python 3.10 or newer" in told["failed"]["old"]
    assert "could not prepare cut: " in fleet.err or "could not launch cut: " in fleet.err
    assert set(fleet.hosts()) == {"bare", "good"}

    # And the good ones process the jobs
    wait_for(fleet.all_succeeded, 100)
    assert {job["host"] for job in fleet.records().values()} <= {"good", "bare"}
    shell("download", "--flat", f"--runner={runner}", "results")
    assert len(shell.tree("results")) == 8

    # And who cannot be reached is named when they are stopped
    network.cut(bare.host)
    fleet("stop", "--password=open sesame", status=1)
    assert re.search("cannot stop 1 of 2 hosts .bare: .*(does not answer|no way)", fleet.err)
    states = {name: each["state"] for name, each in fleet.hosts().items()}
    assert states == {"good": "stopped", "bare": "running"}


def is_pip(pid):
    try:
        return b"pip" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
