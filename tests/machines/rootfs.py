"""The root tree of the machines: a small Debian with systemd and cloud-init, made once.

It and the wheels of the package index are kept outside the checkout, in the folder that
``ADR_TEST_CACHE`` names, else ``/var/cache/adr-tests``.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.servers import require

CACHE = Path(os.environ.get("ADR_TEST_CACHE", "/var/cache/adr-tests"))

SUITE = "bookworm"
PACKAGES = (
    "systemd systemd-sysv dbus openssh-server dtach python3-venv sudo iproute2 "
    "ca-certificates procps udev netbase util-linux"
)
#: cloud-init needs no network of its own here, and finds its data on the disk.
SETTINGS = {
    "etc/cloud/cloud.cfg.d/99-test.cfg": (
        "datasource_list: [NoCloud]\n"
        "locale: false\n"
        "network: {config: disabled}\n"
        "apt: {preserve_sources_list: true}\n"
        "manage_etc_hosts: true\n"
    ),
    # There is no server of names, and nothing should wait for one.
    "etc/resolv.conf": "",
    # The console tells what services have said, also of a machine that is gone.
    "etc/systemd/journald.conf.d/console.conf": "[Journal]\nForwardToConsole=yes\n",
}
#: What would only cost time at each boot, or take the network for its own.
MASKED = (
    *("apt-daily.timer", "apt-daily-upgrade.timer", "e2scrub_all.timer", "fstrim.timer"),
    *("systemd-networkd.service", "systemd-networkd.socket"),
    "systemd-networkd-wait-online.service",
)


def root_tree() -> Path:
    """Return the root tree, which nobody may change; builds it where there is none."""
    recipe = repr((SUITE, PACKAGES, SETTINGS, MASKED))
    name = f"rootfs-{hashlib.sha256(recipe.encode()).hexdigest()[:12]}"
    require(shutil.which("debootstrap"), "machines need debootstrap")
    return made_once(name, _build)


def made_once(name: str, make: Callable[[Path], None]) -> Path:
    """Return a folder of the cache; the first process that asks for it makes it."""
    CACHE.mkdir(parents=True, exist_ok=True)
    ready = CACHE / name
    with _alone(CACHE / f"{name}.lock"):
        if not ready.exists():
            half = CACHE / f"{name}.half"
            shutil.rmtree(half, ignore_errors=True)
            half.mkdir()
            make(half)
            half.rename(ready)
    return ready


def _build(tree: Path) -> None:
    packages = ",".join(PACKAGES.split())
    _run("debootstrap", "--variant=minbase", f"--include={packages}", SUITE, str(tree))
    chroot = ("chroot", str(tree), "env", "DEBIAN_FRONTEND=noninteractive", "LC_ALL=C.UTF-8")
    # Not by debootstrap, which cannot order what cloud-init wants configured before it.
    _run(*chroot, "apt-get", "install", "-y", "--no-install-recommends", "cloud-init")
    _run(*chroot, "apt-get", "clean")
    _run(*chroot, "systemctl", "mask", *MASKED)
    for path, text in SETTINGS.items():
        (tree / path).parent.mkdir(parents=True, exist_ok=True)
        (tree / path).unlink(missing_ok=True)
        (tree / path).write_text(text)
    for path in ("etc/machine-id", "var/lib/dbus/machine-id"):
        (tree / path).unlink(missing_ok=True)


def _run(*words: str) -> None:
    done = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    require(done.returncode == 0, f"{' '.join(words)} failed:\n{done.stdout[-2000:]}")


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
