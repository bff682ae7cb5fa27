"""Real SSH servers for tests: one on the loopback, or one on each host of a test network.

`LoopbackSshd` needs no rights: it lets the user of the test in, but gives it another home
directory. `LabHost` (root) is a machine of its own as far as SSH can tell: an address, a host
name, a user ``lab`` without further rights, a home directory and, if wanted, programs it lacks.
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from tests.network import Network, NetworkHost
from tests.servers import free_port, require

SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
#: Where sshd lets those who log in find programs.
HOST_PATH = "/usr/local/bin:/usr/bin:/bin"
LAB_UID = 2100
_WITHIN_S = 10.0


def require_sshd() -> None:
    """Skip the test, or fail it in CI, where there is no OpenSSH."""
    require(SSHD and shutil.which("ssh-keygen"), "sshd and ssh-keygen are not installed")


def make_key(path: Path, passphrase: str = "", kind: str = "ed25519") -> Path:
    """Make a key and its ``.pub``; returns the path of the key."""
    path.parent.mkdir(parents=True, exist_ok=True)
    words = ["ssh-keygen", "-q", "-t", kind, "-N", passphrase, "-C", "", "-f", str(path)]
    subprocess.run(words, check=True)
    return path


class Sshd:
    """One server in a process of its own; ends with `stop`."""

    def __init__(self, folder: Path, address: str, port: int, more: Sequence[str]) -> None:
        require_sshd()
        self.folder = folder
        self.address = address
        self.port = port
        self.log = folder / "sshd.log"
        self.conf = folder / "sshd_config"
        self.host_key = folder / "host_key"
        folder.mkdir(parents=True, exist_ok=True)
        make_key(self.host_key)
        lines = [
            f"ListenAddress {address}",
            f"Port {port}",
            f"HostKey {self.host_key}",
            "PidFile none",
            "UsePAM no",
            "UseDNS no",
            "StrictModes no",
            "PrintMotd no",
            "MaxStartups 200:30:300",
            *more,
        ]
        self.conf.write_text("\n".join(lines) + "\n")

    @property
    def name(self) -> str:
        """Return what the server is called in ``known_hosts``."""
        return self.address if self.port == 22 else f"[{self.address}]:{self.port}"

    def words(self) -> list[str]:
        """Return what runs the server in the foreground."""
        return [str(SSHD), "-D", "-f", str(self.conf), "-E", str(self.log)]

    def start(self) -> None:
        """Start the server and wait until it answers."""
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
        self.process = subprocess.Popen(self.words(), stdin=subprocess.DEVNULL)
        deadline = time.monotonic() + _WITHIN_S
        while True:
            with suppress(OSError), socket.create_connection((self.address, self.port), 1) as sock:
                if sock.recv(4) == b"SSH-":
                    return
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, f"{self.name} does not answer"
            time.sleep(0.02)

    def stop(self) -> None:
        """End the server; who is logged in stays."""
        self.process.terminate()
        self.process.wait()

    def drop_connections(self) -> None:
        """Kill the processes that serve connections; those of the commands go on."""
        words = ["ps", "-o", "pid=", "--ppid", str(self.process.pid)]
        for pid in subprocess.run(words, capture_output=True, text=True).stdout.split():
            os.kill(int(pid), signal.SIGKILL)

    def change_key(self) -> None:
        """Give the server another host key, as where the machine was set up anew."""
        self.stop()
        for path in self.folder.glob("host_key*"):
            path.unlink()
        make_key(self.host_key)
        self.start()


class LoopbackSshd(Sshd):
    """Let the user of the test in on 127.0.0.1, in a home directory that is none of its own."""

    def __init__(self, folder: Path, public_key: Path, more: Sequence[str] = ()) -> None:
        self.home = folder / "home"
        self.home.mkdir(parents=True)
        authorized = folder / "authorized_keys"
        authorized.write_text(public_key.read_text())
        # What is asked for, a command or the server of SFTP, is run from there.
        enter = folder / "enter"
        enter.write_text(
            "#!/bin/sh\n"
            f"export HOME={shlex.quote(str(self.home))}\n"
            'cd && exec /bin/sh -c "$SSH_ORIGINAL_COMMAND"\n'
        )
        enter.chmod(0o755)
        server = next(
            path
            for path in ("/usr/lib/openssh/sftp-server", "/usr/libexec/sftp-server",
                         "/usr/libexec/openssh/sftp-server", "/usr/lib/ssh/sftp-server")
            if os.path.exists(path)
        )  # fmt: skip
        settings = [
            f"AuthorizedKeysFile {authorized}",
            "PasswordAuthentication no",
            "PermitRootLogin yes",
            f"Subsystem sftp {server}",
            f"ForceCommand {enter}",
            *more,
        ]
        super().__init__(folder, "127.0.0.1", free_port(), settings)

    def kill_processes(self) -> None:
        """Kill what still runs with this home directory."""
        wanted = f"HOME={self.home}".encode()
        for entry in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if wanted in (entry / "environ").read_bytes().split(b"\0"):
                    os.kill(int(entry.name), signal.SIGKILL)


class LabHost(Sshd):
    """A machine in a test network, with a user ``lab`` who has a home and no further rights.

    Parameters
    ----------
    without : sequence of str
        What the machine lacks: ``"dtach"``, ``"ensurepip"``, ``"python"``.
    password : str, optional
        Password of the user.
    """

    def __init__(
        self,
        network: Network,
        name: str,
        folder: Path,
        public_key: Path,
        without: Sequence[str] = (),
        password: str | None = None,
    ) -> None:
        self.network = network
        self.host: NetworkHost = network.host(name)
        self._homes = folder / "homes"
        #: Home directory of the user, as seen from here.
        self.home = self._homes / "lab"
        super().__init__(
            folder,
            self.host.address,
            22,
            [
                "AuthorizedKeysFile .ssh/authorized_keys",
                f"PasswordAuthentication {'yes' if password else 'no'}",
                "Subsystem sftp internal-sftp",
            ],
        )
        ssh = self.home / ".ssh"
        ssh.mkdir(parents=True)
        (ssh / "authorized_keys").write_text(public_key.read_text())
        for path in (self.home, ssh, ssh / "authorized_keys"):
            os.chown(path, LAB_UID, LAB_UID)
        self._masks = list(self._people(password))
        for each in without:
            self._masks += self._lacking(each)

    def words(self) -> list[str]:
        """Return what runs the server, in a namespace where other files lie over some."""
        mounts = [shlex.join(["mount", "--bind", str(ours), over]) for ours, over in self._masks]
        script = " && ".join([
            *mounts, f"hostname {self.host.name}", "exec " + shlex.join(super().words())
        ])  # fmt: skip
        return self.host.command("unshare", "--uts", "--mount", "sh", "-c", script)

    def as_lab(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run a command on this machine as its user, without SSH."""
        script = 'cd "$1" && shift && exec "$@"'
        command = ["setpriv", f"--reuid={LAB_UID}", f"--regid={LAB_UID}", "--clear-groups",
                   "sh", "-c", script, "sh", str(self.home), *words]  # fmt: skip
        return subprocess.run(self.host.command(*command), capture_output=True, text=True)

    def pids(self) -> list[int]:
        """Return the processes that run on this machine."""
        done = subprocess.run(
            ["ip", "netns", "pids", self.host.namespace], capture_output=True, text=True, check=True
        )
        return [int(pid) for pid in done.stdout.split()]

    def _people(self, password: str | None) -> list[tuple[Path, str]]:
        """Return folders of this machine, the user database in one of them, and their places."""
        secret = "*"
        if password:
            words = ["openssl", "passwd", "-6", password]
            secret = subprocess.run(words, capture_output=True, text=True, check=True).stdout
        lines = {
            "passwd": f"lab:x:{LAB_UID}:{LAB_UID}::/home/lab:/bin/bash\n",
            "shadow": f"lab:{secret.strip()}:19000:0:99999:7:::\n",
        }
        # All of /etc: where somebody adds a user meanwhile, a mount on one file of it would go.
        etc = self.folder / "etc"
        subprocess.run(["cp", "-a", "/etc", etc], check=True)
        for name, line in lines.items():
            text = (etc / name).read_text()
            (etc / name).write_text(text + ("" if text.endswith("\n") else "\n") + line)
        return [(self._homes, "/home"), (etc, "/etc")]

    def _lacking(self, what: str) -> list[tuple[Path, str]]:
        """Return what hides a program or a module of this machine."""
        if what == "ensurepip":
            broken = self.folder / "ensurepip"
            broken.mkdir()
            (broken / "__init__.py").write_text("raise ImportError('as on Debian')\n")
            python = str(shutil.which("python3", path=HOST_PATH))
            words = [python, "-c", "import ensurepip; print(ensurepip.__path__[0])"]
            found = subprocess.run(words, capture_output=True, text=True).stdout.strip()
            return [(broken, found)] if found else []
        pattern = "python3*" if what == "python" else what
        found = {
            path.resolve() for each in HOST_PATH.split(":") for path in Path(each).glob(pattern)
        }
        # A device is no program.
        return [(Path("/dev/null"), str(path)) for path in sorted(found)]


def python_of_hosts() -> str:
    """Return the version of Python that the hosts have, such as ``3.11``."""
    python = shutil.which("python3", path=HOST_PATH)
    require(python, "there is no python3 for the hosts")
    words = [str(python), "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]
    version = subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()
    require(tuple(map(int, version.split("."))) >= (3, 10), f"the hosts have Python {version}")
    return version
