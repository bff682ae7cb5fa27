"""A network of hosts on this machine: network namespaces on a bridge (Linux, root).

    with Network() as network:
        lab = network.host("lab1", public_ip="54.0.0.1")
        sshd = subprocess.Popen(lab.command("/usr/sbin/sshd", "-D", "-f", conf))
        ...                     # ssh 54.0.0.1 or lab.address reaches port 22 of that sshd
        network.cut(lab)        # the cable is pulled: packets vanish, nothing is refused
        network.restore(lab)

Servers of the test bind to `Network.gateway`, which hosts and the test reach by the same
address; from a host nothing else can be reached, the other hosts excepted. Several networks,
also of other processes, live side by side: each holds the lock of its number as long as its
process lives. What a killed process has left is removed when the next network is made.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from tests.servers import require

#: One file per network, locked by the process that has it.
LOCKS = Path("/run/adr-test-networks")
MOST_NETWORKS = 200
MOST_HOSTS = 253


def require_network() -> None:
    """Skip the test, or fail it in CI, where no networks can be made."""
    require(sys.platform.startswith("linux") and os.geteuid() == 0, "networks need root on Linux")
    require(shutil.which("ip"), "networks need iproute2")
    probe = ["unshare", "--net", "ip", "link", "add", "adrprobe", "type", "bridge"]
    allowed = subprocess.run(probe, capture_output=True).returncode == 0
    require(allowed, "this system allows no bridges in network namespaces")


@dataclass
class NetworkHost:
    """One host: a network namespace with ``eth0`` and a default route to the gateway."""

    name: str
    #: Name of the namespace, as for ``ip netns exec``.
    namespace: str
    #: The end of its cable on the bridge.
    port: str
    address: str
    public_ip: str | None = None

    @property
    def path(self) -> str:
        """Return the file that stands for the namespace."""
        return f"/run/netns/{self.namespace}"

    def command(self, *words: str | Path) -> list[str]:
        """Return the words that run a command on this host."""
        return ["ip", "netns", "exec", self.namespace, *map(str, words)]


class Network:
    """A bridge and the hosts on it; a context manager that removes both."""

    def __enter__(self) -> Network:
        LOCKS.mkdir(mode=0o700, exist_ok=True)
        for number in range(1, MOST_NETWORKS):
            lock = _locked(number)
            if lock is None:
                continue
            _sweep(number)
            if self._take(number):
                self._lock = lock
                break
            os.close(lock)
        else:
            raise RuntimeError(f"all {MOST_NETWORKS} networks are taken")
        _sweep_others(self.number)
        return self

    def _take(self, number: int) -> bool:
        self.number = number
        #: Name of the bridge.
        self.bridge = _bridge(number)
        #: Address of the bridge.
        self.gateway = f"10.77.{number}.1"
        self.hosts: dict[str, NetworkHost] = {}
        if f" {self.gateway}/" in _ip("-4", "-o", "address"):
            return False
        _batch(
            f"link add {self.bridge} type bridge",
            f"address add {self.gateway}/24 dev {self.bridge}",
            f"link set {self.bridge} up",
        )
        return True

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        _sweep(self.number)
        self.hosts.clear()
        os.close(self._lock)

    def add_address(self, address: str) -> None:
        """Let the gateway have one more address, of any net.

        Several networks may have the same: a server of one of them has to bind its socket to
        the device `bridge`.
        """
        _ip("address", "add", f"{address}/32", "dev", self.bridge)

    def host(
        self, name: str, address: str | None = None, public_ip: str | None = None
    ) -> NetworkHost:
        """Add a host, with the next free address of the network unless one is given."""
        if name in self.hosts:
            raise ValueError(f"there is a host {name} already")
        used = {int(each.address.rpartition(".")[2]) for each in self.hosts.values()}
        place = next(each for each in range(2, 2 + MOST_HOSTS) if each not in used)
        host = NetworkHost(
            name=name,
            namespace=f"{_prefix(self.number)}{name}",
            port=f"adr{self.number}p{place}",
            address=address or f"10.77.{self.number}.{place}",
        )
        # First the namespace: its end of the cable is made in it and can clash with no other.
        _batch(
            f"netns add {host.namespace}",
            f"link add {host.port} type veth peer name eth0 netns {host.namespace}",
            f"link set {host.port} master {self.bridge} up",
        )
        _batch(
            "link set lo up",
            f"address add {host.address}/24 dev eth0",
            "link set eth0 up",
            f"route add default via {self.gateway}",
            namespace=host.namespace,
        )
        self.hosts[name] = host
        self.set_public_ip(host, public_ip)
        return host

    def set_public_ip(self, host: NetworkHost, public_ip: str | None) -> None:
        """Let a host be reached from here by this address, and no longer by another."""
        if host.public_ip:
            _ip("route", "del", f"{host.public_ip}/32")
            _ip("-n", host.namespace, "address", "del", f"{host.public_ip}/32", "dev", "lo")
        host.public_ip = public_ip
        if public_ip:
            _ip("-n", host.namespace, "address", "add", f"{public_ip}/32", "dev", "lo")
            _ip("route", "add", f"{public_ip}/32", "via", host.address, "dev", self.bridge)

    def cut(self, host: NetworkHost) -> None:
        """Cut a host off: what is sent to it or by it is lost without a word."""
        _ip("link", "set", host.port, "down")

    def restore(self, host: NetworkHost) -> None:
        """Undo `cut`."""
        _ip("link", "set", host.port, "up")

    def remove(self, host: NetworkHost) -> None:
        """Remove a host; processes that still run on it keep a namespace without a cable."""
        self.set_public_ip(host, None)
        _batch(f"link del {host.port}", f"netns del {host.namespace}")
        del self.hosts[host.name]

    def end_processes(self, host: NetworkHost) -> None:
        """Kill all processes that run on a host."""
        _end_processes(host.namespace)


def _bridge(number: int) -> str:
    return f"adr{number}br"


def _prefix(number: int) -> str:
    return f"adr{number}-"


def _ip(*words: str) -> str:
    done = subprocess.run(["ip", *words], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"ip {' '.join(words)}: {done.stderr.strip()}")
    return done.stdout


def _batch(*lines: str, namespace: str | None = None) -> None:
    """Run several ip commands in one process; the first that fails ends it."""
    where = ["-n", namespace] if namespace else []
    done = subprocess.run(
        ["ip", *where, "-batch", "-"], input="\n".join(lines), capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(f"ip {'; '.join(lines)}: {done.stderr.strip()}")


def _locked(number: int) -> int | None:
    """Return the lock of a number, None where another process, or this one, has it."""
    lock = os.open(LOCKS / str(number), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        return None
    return lock


@contextmanager
def _held(number: int) -> Iterator[bool]:
    lock = _locked(number)
    yield lock is not None
    if lock is not None:
        os.close(lock)


def _sweep_others(own: int) -> None:
    """Remove what processes that are gone have left."""
    for path in LOCKS.iterdir():
        number = int(path.name)
        if number != own and Path("/sys/class/net", _bridge(number)).exists():
            with _held(number) as held:
                if held:
                    _sweep(number)


def _sweep(number: int) -> None:
    """Remove the bridge of this number and all its hosts, with what runs on them."""
    for line in _ip("netns", "list").splitlines():
        namespace = line.split()[0]
        if namespace.startswith(_prefix(number)):
            _end_processes(namespace)
            # Its end of the cable goes with it, and the cable with its end.
            _ip("netns", "del", namespace)
    if Path("/sys/class/net", _bridge(number)).exists():
        _ip("link", "del", _bridge(number))


def _end_processes(namespace: str) -> None:
    for pid in _ip("netns", "pids", namespace).split():
        with suppress(ProcessLookupError):
            os.kill(int(pid), signal.SIGKILL)
