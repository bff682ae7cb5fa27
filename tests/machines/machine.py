"""One machine that boots: systemd-nspawn on an overlay of the root tree, a host of a network."""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from adr.worker.descendants import processes
from tests.network import NetworkHost
from tests.servers import require

#: Mounts the disk where no other process sees it, and becomes the machine: whatever ends this
#: process takes the mounts along. A volatile overlay waits for nothing to be on the real disk,
#: and would not be mounted again without that mark of it being removed.
_BOOT = """
set -e
rm -rf "$2/work/work/incompat"
mount -t overlay adr-test -o "lowerdir=$1,upperdir=$2/upper,workdir=$2/work,volatile" "$2/root"
exec systemd-nspawn --quiet --register=no --keep-unit --resolv-conf=off --timezone=off \
    --machine="$3" --directory="$2/root" --network-namespace-path="$4" \
    --capability=CAP_NET_ADMIN --boot
"""
_META_DATA = "instance-id: {0}\nlocal-hostname: {0}\n"
_LIBC = ctypes.CDLL(None)


def require_machines() -> None:
    """Skip the test, or fail it in CI, where machines cannot boot."""
    require(sys.platform.startswith("linux") and os.geteuid() == 0, "machines need root on Linux")
    require(shutil.which("systemd-nspawn"), "machines need systemd-nspawn (systemd-container)")


class Machine:
    """A machine with a disk of its own, which is kept while the machine is off.

    Parameters
    ----------
    tree : Path
        The root tree.
    disk : Path
        Folder for what the machine changes; not on an overlay itself.
    console : Path
        File to which the console is written.
    host : NetworkHost
        Where the machine is in the network.
    user_data : bytes
        What cloud-init is given.
    environment : mapping
        Variables of all services, such as the addresses of the emulators.
    """

    def __init__(
        self,
        tree: Path,
        disk: Path,
        console: Path,
        host: NetworkHost,
        user_data: bytes,
        environment: Mapping[str, str],
    ) -> None:
        self.name = host.name
        self.host = host
        self.console = console
        self._tree = tree
        self._disk = disk
        self._process: subprocess.Popen[bytes] | None = None
        #: Whether it was taken away rather than shut down.
        self.was_lost = False
        for name in ("upper", "work", "root"):
            (disk / name).mkdir(parents=True)
        seed = "var/lib/cloud/seed/nocloud"
        self._write(f"{seed}/meta-data", _META_DATA.format(self.name).encode())
        self._write(f"{seed}/user-data", user_data)
        variables = " ".join(f'"{name}={value}"' for name, value in environment.items())
        settings = f"[Manager]\nDefaultEnvironment={variables}\n"
        self._write("etc/systemd/system.conf.d/environment.conf", settings.encode())

    def _write(self, path: str, body: bytes) -> None:
        target = self._disk / "upper" / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(body)

    def boot(self) -> None:
        """Switch the machine on.

        It is lost when the thread that calls this ends, so that a killed test leaves none.
        """
        with self.console.open("ab") as console:
            self._process = subprocess.Popen(
                ["unshare", "--mount", "--propagation=private", "sh", "-c", _BOOT, "boot",
                 str(self._tree), str(self._disk), self.name, self.host.path],
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=console,
                preexec_fn=lambda: _LIBC.prctl(1, signal.SIGKILL),
            )  # fmt: skip

    @property
    def is_on(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def press_power(self) -> None:
        """Ask the system to shut down, as EC2 does before it stops an instance."""
        if self._process is not None:
            self._process.terminate()

    def lose(self) -> None:
        """Take the machine away at once, whatever it does."""
        if self._process is None:
            return
        if self.is_on:
            self.was_lost = True
            # All processes in there end with the first one, which outlives systemd-nspawn.
            init = self._init()
            os.kill(init, signal.SIGKILL)
            self._process.kill()
            while os.path.exists(f"/proc/{init}"):
                time.sleep(0.01)
        self._process.wait()
        # The one thing that outlives it.
        shutil.rmtree(f"/run/systemd/nspawn/propagate/{self.name}", ignore_errors=True)

    def wait_off(self, timeout_s: float) -> None:
        """Wait until the machine is off, and raise where it stays on."""
        assert self._process is not None
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.name} is on after {timeout_s} s:\n{self.said()}") from None

    def run(self, *words: str, timeout_s: float = 30) -> str:
        """Run a command as root in the machine and return what it prints.

        Raises
        ------
        RuntimeError
            If it fails, or the machine does not run.
        """
        done = subprocess.run(
            ["nsenter", f"--target={self._init()}", "--all", *words],
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_s,
        )
        if done.returncode:
            said = f"{done.stdout}{done.stderr}".strip()
            raise RuntimeError(f"{self.name}: {' '.join(words)}: {said}")
        return done.stdout

    def _init(self) -> int:
        """Return the process that is number 1 in there."""
        assert self._process is not None
        for each in processes():
            if each.parent == self._process.pid and not each.zombie:
                return each.pid
        raise RuntimeError(f"{self.name} does not run")

    def wait_set_up(self, timeout_s: float = 120) -> None:
        """Wait until cloud-init has done all it was asked for, well or not."""
        deadline = time.monotonic() + timeout_s
        while not self.has("run/cloud-init/result.json"):
            if not self.is_on or time.monotonic() > deadline:
                raise AssertionError(f"{self.name} is not set up:\n{self.said()}")
            time.sleep(0.1)

    def has(self, path: str) -> bool:
        """Tell whether there is such a file in the running machine."""
        try:
            return Path(f"/proc/{self._init()}/root", path).exists()
        except (OSError, RuntimeError):
            return False

    def said(self, most: int = 6000) -> str:
        """Return the end of the console."""
        return self.console.read_text(errors="replace")[-most:]
