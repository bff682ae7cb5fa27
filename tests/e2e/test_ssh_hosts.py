"""Hosts of one's own: real SSH servers, real installations, jobs that are processed there."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from threading import Event

import pytest

from tests.conftest import REGION
from tests.machines.index import PackageIndex
from tests.network import Network, require_network
from tests.servers import require, start_ministack, start_moto
from tests.sshd import LabHost, LoopbackSshd, make_key, require_sshd

#: Asks the fleet for something and prints what it answers.
CLIENT = """
import json, sys
from dataclasses import asdict
from pathlib import Path
from adr.errors import PartialFailure
from adr.fleets.base import Demand
from adr.fleets.specs import SshSpec, WorkerOptions
from adr.progress import SILENT
from adr.remote import Login
from adr.runner import open_runner

verb, runner, names, given = sys.argv[1], sys.argv[2], sys.argv[3].split(), json.loads(sys.argv[4])
fleet = open_runner(runner).fleets["ssh"]()
if verb == "launch":
    worker = WorkerOptions(**given.pop("worker", {}))
    given["setup"] = Path(given["setup"]) if "setup" in given else None
    plan = fleet.plan(SshSpec(hosts=tuple(names), worker=worker, **given), Demand())
    print(json.dumps(asdict(fleet.launch(plan, SILENT))))
elif verb == "dissolve":
    fleet.dissolve(SILENT)
else:
    fleet.login = Login(**given)
    hosts = fleet.hosts()
    try:
        if verb != "hosts":
            chosen = [host for host in hosts if host.name in names]
            hosts = getattr(fleet, verb)(chosen, SILENT) or []
    except PartialFailure as error:
        print(json.dumps({"failed": error.failed, "message": str(error)}))
    else:
        print(json.dumps([asdict(host) for host in hosts]))
"""


class Fleet:
    """Speak to the fleet over SSH of one runner, each time from a process of its own."""

    def __init__(self, shell, runner, pip_options, key):
        self.shell = shell
        self.runner = runner
        self.given = {"pip_options": pip_options, "key_filename": str(key)}

    def __call__(self, verb, *hosts, **given):
        if verb == "launch":
            given = {**self.given, **given}
        process = self.begin(verb, *hosts, **given)
        out, err = process.communicate(timeout=100)
        assert process.returncode == 0, err
        return json.loads(out) if out else None

    def begin(self, verb, *hosts, **given):
        words = ["-c", CLIENT, verb, self.runner, " ".join(hosts), json.dumps(given)]
        return subprocess.Popen(
            [sys.executable, *words],
            cwd=self.shell.folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def queue(self, *names):
        """Queue one small job for each name, and return the words it was queued with."""
        self.shell.write({f"in/{name}.txt": name for name in names})
        command = 'sh -c "cp {} {.}.out; sleep 0.1"'
        files = [f"in/{name}.txt" for name in names]
        return self.shell(
            "queue", f"--runner={self.runner}", f"--command={command}", r"--store=\.out$", *files
        ).out.strip()

    def records(self):
        told = self.shell("status", f"--runner={self.runner}", "--jobs", "--json").json
        return {job["label"]: job for job in told["jobs"]}


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
    with PackageIndex("127.0.0.1") as index:
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
    runner = shell("create").out.strip()
    return Fleet(shell, runner, index.pip_options, key)


def folder_of(sshd, fleet):
    return sshd.home / ".adr" / fleet.runner / os.uname().nodename


def pid_of(sshd, fleet):
    return int((folder_of(sshd, fleet) / "worker.pid").read_text())


def lives(pid):
    return Path(f"/proc/{pid}/cmdline").exists() and Path(f"/proc/{pid}/cmdline").read_bytes()


def test_a_host_is_set_up_runs_jobs_rests_goes_on_and_is_cleared(fleet, sshd, host, wait_for):
    fleet.queue("a", "b")

    report = fleet("launch", host, worker={"slots": 2, "keep": True})

    assert report["failed"] == {}
    assert [each["name"] for each in report["hosts"]] == ["lab"]
    assert re.search(r"until \d{4}-\d\d-\d\d .* adr prepare --renew", report["notes"][0])
    wait_for(lambda: {job["state"] for job in fleet.records().values()} == {"succeeded"}, 60)
    assert {job["host"] for job in fleet.records().values()} == {"lab"}
    fleet.shell("download", "--flat", f"--runner={fleet.runner}", "results")
    assert sorted(fleet.shell.tree("results").values()) == ["a", "b"]

    # It rests
    pid = pid_of(sshd, fleet)
    assert [each["state"] for each in fleet("stop", host)] == ["stopped"]
    assert not lives(pid)
    assert [each["state"] for each in fleet("hosts")] == ["stopped"]
    assert fleet("stop", host) == fleet("hosts")

    # It goes on
    fleet.queue("c")
    assert [each["state"] for each in fleet("start", host)] == ["running"]
    wait_for(lambda: len(fleet.records()) == 3, 60)
    wait_for(lambda: {job["state"] for job in fleet.records().values()} == {"succeeded"}, 60)
    (told,) = fleet("hosts")
    assert (told["name"], told["fleet"], told["state"]) == ("lab", "ssh", "running")
    assert told["note"].startswith("credentials end at ")

    # It is cleared
    pid = pid_of(sshd, fleet)
    fleet("terminate", host)
    assert not lives(pid)
    assert not (sshd.home / ".adr" / fleet.runner).exists()
    assert fleet("hosts") == []
    fleet("dissolve")


def test_a_host_that_is_set_up_twice_has_one_worker(fleet, sshd, host):
    fleet("launch", host)
    pid, installed_at = pid_of(sshd, fleet), mark(sshd).stat().st_mtime_ns

    report = fleet("launch", host)

    assert report["failed"] == {}
    assert "the worker on lab runs already, the way it was started" in report["notes"]
    assert pid_of(sshd, fleet) == pid
    assert lives(pid)
    assert mark(sshd).stat().st_mtime_ns == installed_at, "installed again"
    assert len(fleet("hosts")) == 1


def mark(sshd):
    return sshd.home / ".envs/adr/.adr-wheel"


def test_only_the_worker_of_that_runner_is_stopped(fleet, sshd, host, index, key):
    other = Fleet(fleet.shell, fleet.shell("create").out.strip(), index.pip_options, key)
    fleet("launch", host)
    other("launch", host)
    mine, others = pid_of(sshd, fleet), pid_of(sshd, other)

    fleet("stop", host)

    assert not lives(mine)
    assert lives(others)


def test_a_stranger_that_got_the_number_of_the_worker_is_left_alone(fleet, sshd, host):
    fleet("launch", host)
    worker = pid_of(sshd, fleet)
    with subprocess.Popen(["sleep", "600"]) as stranger:
        (folder_of(sshd, fleet) / "worker.pid").write_text(f"{stranger.pid}\n")

        fleet("stop", host)

        assert stranger.poll() is None
        stranger.kill()
    os.kill(worker, signal.SIGKILL)


def test_a_worker_that_ends_at_once_is_told_with_what_it_said(fleet, sshd, host):
    fleet.shell("destroy", "--yes", "--runner", fleet.runner, status=0)
    # The fleet is asked as if nobody had noticed.
    report = fleet("launch", host, copy_credentials=True)

    assert "cannot start the worker: " in report["failed"]["lab"]
    assert fleet.runner in report["failed"]["lab"]


def test_secrets_are_in_files_of_their_owner_and_nowhere_else(
    fleet, sshd, host, isolated_home, descendants_with_env
):
    fleet.queue("a")
    fleet("launch", host)

    path = sshd.home / ".adr" / fleet.runner / "credentials.json"
    lent = json.loads(path.read_text())
    assert path.stat().st_mode & 0o777 == 0o600
    secrets = [lent["SecretAccessKey"].encode(), lent["SessionToken"].encode()]
    own = descendants_with_env("HOME", str(sshd.home))
    assert own
    for pid in own:
        for name in ("cmdline", "environ"):
            told = Path(f"/proc/{pid}/{name}").read_bytes()
            assert not any(secret in told for secret in secrets), (pid, name)
    for place in (sshd.home, isolated_home, fleet.shell.folder):
        for file in place.rglob("*"):
            if file.is_file() and file.name != path.name and ".envs" not in file.parts:
                told = file.read_bytes()
                assert not any(secret in told for secret in secrets), file


def test_a_running_worker_takes_up_renewed_credentials(fleet, sshd, host, proxy):
    path = sshd.home / ".adr" / fleet.runner / "credentials.json"
    renewed = Event()

    def note(call):
        told = re.search(r"Credential=(\w+)/", call.lower.get("authorization", ""))
        now = json.loads(path.read_text())["AccessKeyId"]
        if told and told[1] == now != before["AccessKeyId"]:
            renewed.set()

    fleet("launch", host)
    # boto3 asks for new ones during the last minutes: let them begin now.
    before = json.loads(path.read_text())
    before["AccessKeyId"] = "ASIAOLD"  # moto always lends the same
    before["Expiration"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 300))
    fleet("stop", host)
    path.write_text(json.dumps(before))
    script = folder_of(sshd, fleet) / "worker.sh"
    own = {"HOME": str(sshd.home), "PATH": os.environ["PATH"]}
    with subprocess.Popen(["sh", script], env=own):
        proxy.before(lambda call: True, note)

        report = fleet("launch", host, renew=True)

        assert report["failed"] == {}
        assert renewed.wait(60)
        sshd.kill_processes()


def test_own_keys_are_handed_over_only_when_asked_for_and_with_a_warning(fleet, sshd, host):
    report = fleet("launch", host, copy_credentials=True)

    told = json.loads((sshd.home / ".adr" / fleet.runner / "credentials.json").read_text())
    assert told["AccessKeyId"] == os.environ["AWS_ACCESS_KEY_ID"]
    assert "your own keys lie on these hosts now" in report["notes"][0]
    assert fleet("hosts")[0]["note"] == ""


def test_the_setup_script_runs_once_before_the_worker_in_its_environment(fleet, sshd, host, shell):
    script = "#!/bin/sh\ncommand -v python >>~/ran; echo no model; exit $(cat ~/s)"
    shell.write({"setup.sh": script})
    (sshd.home / "s").write_text("4")

    report = fleet("launch", host, setup=str(shell.folder / "setup.sh"))

    assert report["failed"] == {"lab": "cannot run the setup script: no model"}
    assert not (folder_of(sshd, fleet) / "worker.pid").exists()
    (sshd.home / "s").write_text("0")
    for _ in range(2):
        report = fleet("launch", host, setup=str(shell.folder / "setup.sh"))
        assert report["failed"] == {}
    assert (sshd.home / "ran").read_text() == f"{sshd.home}/.envs/adr/bin/python\n" * 2


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
    with PackageIndex(network.gateway) as index:
        fleet = Fleet(shell, runner, index.pip_options, key)
        fleet.queue(*(f"case{n}" for n in range(8)))

        # When one host dies in the middle of its installation
        given = {**fleet.given, "password": "open sesame", "worker": {"slots": 2, "keep": True}}
        launching = fleet.begin("launch", *hosts, **given)
        wait_for(lambda: any(is_pip(pid) for pid in cut.pids()), 100)
        network.cut(cut.host)
        out, err = launching.communicate(timeout=300)

    assert launching.returncode == 0, err
    report = json.loads(out)
    assert [each["name"] for each in report["hosts"]] == ["good", "bare"]
    assert re.search("does not answer|there is no way to", report["failed"]["down"])
    assert "cannot install adr: the connection was lost" in report["failed"]["cut"]
    assert "there is no Python 3.10 or newer" in report["failed"]["old"]
    assert {each["name"] for each in fleet("hosts")} == {"bare", "good"}

    # Then the others process the jobs
    wait_for(lambda: {job["state"] for job in fleet.records().values()} == {"succeeded"}, 100)
    assert {job["host"] for job in fleet.records().values()} <= {"good", "bare"}
    shell("download", "--flat", f"--runner={runner}", "results")
    assert len(shell.tree("results")) == 8

    # And who cannot be reached is named when they are stopped
    network.cut(bare.host)
    told = fleet("stop", "good", "bare", password="open sesame")
    assert told["failed"] == ["bare"]
    assert re.search("cannot stop 1 of 2 hosts .bare: .*(does not answer|no way)", told["message"])
    assert {each["name"]: each["state"] for each in fleet("hosts")} == {
        "good": "stopped",
        "bare": "running",
    }


def is_pip(pid):
    try:
        return b"pip" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
