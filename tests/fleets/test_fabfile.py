"""The tasks of the fabfile, run by the real ``fab`` as a user would by hand."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.machines.index import PackageIndex
from tests.servers import free_port, require
from tests.sshd import LoopbackSshd, make_key, python_of_hosts, require_sshd

FAB = Path(sys.executable).with_name("fab")


@pytest.fixture(scope="module")
def place():
    """Return the folder of the adr that is installed."""
    where = "import adr, pathlib; print(pathlib.Path(adr.__file__).parent)"
    words = [sys.executable, "-c", where]
    found = subprocess.run(words, cwd="/", capture_output=True, text=True, check=True).stdout
    return found.strip()


@pytest.fixture(scope="module")
def key(tmp_path_factory):
    require_sshd()
    return make_key(tmp_path_factory.mktemp("keys") / "id_ed25519")


@pytest.fixture(scope="module")
def sshd(key, tmp_path_factory):
    server = LoopbackSshd(tmp_path_factory.mktemp("sshd"), key.with_suffix(".pub"))
    server.start()
    with PackageIndex("127.0.0.1", python_of_hosts()) as index:
        # Fabric's install() has no options for pip: the host has its own settings.
        words = index.find_options.split()
        conf = server.home / ".config/pip/pip.conf"
        conf.parent.mkdir(parents=True)
        conf.write_text(f"[install]\nno-compile = true\nno-index = true\nfind-links = {words[2]}\n")
        yield server
    server.stop()
    server.kill_processes()


@pytest.fixture
def fab(place, key, sshd, isolated_home, tmp_path, monkeypatch):
    """Return a function that runs ``fab`` in some folder."""
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    ssh = isolated_home / ".ssh"
    ssh.mkdir()
    (ssh / "config").write_text(
        f"Host lab\n  HostName 127.0.0.1\n  Port {sshd.port}\n  IdentityFile {key}\n"
        f"Host down\n  HostName 127.0.0.1\n  Port {free_port()}\n"
    )

    def run(*words, status=0, folder=tmp_path, root=("-r", place)):
        done = subprocess.run(
            [FAB, *root, *words],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=110,
        )
        assert done.returncode == status, f"{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr, done.stderr
        return done

    yield run
    sshd.kill_processes()


def test_fab_finds_the_tasks_wherever_it_is_started(fab, place):
    for done in (fab("--list"), fab("--list", folder=place), fab("--list", folder=place, root=())):
        names = [line.split()[0] for line in done.stdout.splitlines() if line.startswith("  ")]
        assert names == ["install", "runv", "start", "stop"]


def test_tasks_can_be_taken_into_a_fabfile_of_ones_own(fab, tmp_path):
    (tmp_path / "fabfile.py").write_text("from adr.fabfile import install, runv, start, stop\n")

    assert "Install" not in fab("--list", root=()).stderr
    assert "--runner-id" in fab("--help", "start", root=()).stdout


def test_without_a_host_nothing_is_done(fab):
    assert fab("stop", status=2).stderr == "no host was given: fab -H HOST …\n"


def test_a_host_out_of_reach_is_said_in_a_sentence(fab):
    said = fab("-H", "down", "stop", status=1).stderr
    assert said.startswith("down: 127.0.0.1 port ")
    assert "refuses connections" in said


def test_a_changed_host_key_is_refused_here_as_well(fab, sshd):
    fab("-H", "lab", "stop")
    sshd.change_key()
    assert "has changed" in fab("-H", "lab", "stop", status=1).stderr


def test_packages_with_a_login_in_their_address_are_refused(fab, sshd):
    address = "git+https://me:open-sesame@host.example/model.git"

    said = fab("-H", "lab", "install", "--required-packages", address, status=2)

    assert "an address in --required-packages holds a user name or a password" in said.stderr
    assert "sesame" not in said.stdout + said.stderr
    assert not (sshd.home / ".envs").exists()


@pytest.mark.timeout(300)
def test_a_host_is_installed_and_works_by_hand(
    fab, shell, sshd, place, aws_env, moto_url, monkeypatch, tmp_path, wait_for
):
    require("site-packages" in place, f"adr is linked to {place}: install it without -e")
    for service in ("STS", "IAM"):
        monkeypatch.setenv(f"AWS_ENDPOINT_URL_{service}", moto_url)

    # Given a host with adr and one more package
    fab("-H", "lab", "install")
    wheel = tiny_wheel(tmp_path)
    fab("-H", "lab", "install", "--required-packages", str(wheel))
    said = fab("-H", "lab", "runv", "--cmd", "python -c 'import adr, tiny; print(tiny.__file__)'")
    assert (
        said.stdout
        == f"{sshd.home}/.envs/adr/lib/python{python_of_hosts()}/site-packages/tiny.py\n"
    )

    # When it is started, twice
    runner = shell("create").out.strip()
    shell.write({"in/a.txt": "a"})
    shell("queue", "--command=cp {} {.}.out", r"--store=\.out$", "in/a.txt")
    for _ in range(2):
        said = fab("-H", "lab", "start", "--runner-id", runner).stdout
        assert said.startswith("lab: started; start it again before ")
    folder = sshd.home / ".adr" / runner / os.uname().nodename
    pid = (folder / "worker.pid").read_text()

    # Then it works, detached, until it is stopped
    wait_for(lambda: shell("status", "--json").json["totals"]["succeeded"] == 1, 60)
    assert (folder / "worker.pid").read_text() == pid
    assert (folder / "worker.socket").exists() or not detached_by_dtach()
    fab("-H", "lab", "stop")
    assert not Path(f"/proc/{pid.strip()}").exists()
    fab("-H", "lab", "stop", "--runner-id", runner)


def test_a_command_can_be_run_detached(fab, sshd, wait_for):
    require(detached_by_dtach(), "dtach is not installed")
    (sshd.home / "env/bin").mkdir(parents=True, exist_ok=True)
    (sshd.home / "env/bin/activate").write_text("WHERE=here\n")

    command = "echo $WHERE >told; sleep 600"
    fab("-H", "lab", "runv", "--env", "~/env", "--socket", "mine", "--cmd", command)

    assert wait_for((sshd.home / "told").exists)
    wait_for(lambda: (sshd.home / "told").read_text() == "here\n")
    assert (sshd.home / ".adr/mine.socket").is_socket()


def test_the_status_of_a_command_is_that_of_fab(fab, sshd):
    (sshd.home / "env/bin").mkdir(parents=True, exist_ok=True)
    (sshd.home / "env/bin/activate").write_text("")

    done = fab("-H", "lab", "runv", "--env", "~/env", "--cmd", "echo out; exit 3", status=3)

    assert done.stdout == "out\n"
    assert done.stderr == "lab: the command ended with status 3\n"


def detached_by_dtach():
    return any(Path(folder, "dtach").exists() for folder in os.environ["PATH"].split(":"))


def tiny_wheel(folder):
    path = folder / "tiny-1.0-py3-none-any.whl"
    info = "tiny-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("tiny.py", "")
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return path
