"""Mount data volumes: volumes.py DEVICE PATH [DEVICE PATH]...; idempotent.

A device is named as at the launch, ``/dev/sdf``. On Nitro instances it appears as some NVMe
device that holds this name in its identify data; on others as ``/dev/xvdf``.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import re
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

#: EC2 attaches volumes while the instance boots.
WITHIN_S = 300
#: From linux/nvme_ioctl.h; the command from the NVMe specification: identify, controller.
IOCTL_ADMIN_CMD = 0xC0484E41
IDENTIFY = 0x06
CONTROLLER = 1


def identify(device: Path) -> bytes:
    """Return the identify data of an NVMe device."""
    data = ctypes.create_string_buffer(4096)
    # struct nvme_passthru_cmd: opcode, nsid, address, length, cdw10.
    command = struct.pack(
        "<BBHIIIQQIIIIIIIIII",
        *(IDENTIFY, 0, 0, 0, 0, 0, 0, ctypes.addressof(data), 0, len(data)),
        *(CONTROLLER, 0, 0, 0, 0, 0, 0, 0),
    )
    handle = os.open(device, os.O_RDONLY)
    try:
        fcntl.ioctl(handle, IOCTL_ADMIN_CMD, bytearray(command))
    finally:
        os.close(handle)
    return data.raw


def requested_name(data: bytes) -> str:
    """Return the name that EBS was asked for, such as ``sdf``; empty for other devices."""
    if not data[24:64].startswith(b"Amazon Elastic Block Store"):
        return ""
    name = data[3072:3104].partition(b"\0")[0].decode("ascii", "replace").strip()
    return name.removeprefix("/dev/")


def find(
    device: str, top: Path = Path("/dev"), identify: Callable[[Path], bytes] = identify
) -> Path | None:
    """Return the block device that was attached under a name; None where there is none yet."""
    letters = re.sub(r"^(sd|xvd)", "", device.removeprefix("/dev/"))
    names = (device.removeprefix("/dev/"), f"sd{letters}", f"xvd{letters}")
    for candidate in sorted(top.glob("nvme*n1")):
        try:
            name = requested_name(identify(candidate))
        except OSError:
            continue
        if name in names:
            return candidate
    return next((top / name for name in names if (top / name).is_block_device()), None)


def filesystem(device: Path) -> tuple[str, str]:
    """Return the device or its first partition, whichever has a filesystem, and its type."""
    first = f"{device}p1" if device.name[-1].isdigit() else f"{device}1"
    for each in (str(device), first):
        if os.path.exists(each):
            probe = ["blkid", "-p", "-u", "filesystem", "-o", "value", "-s", "TYPE", each]
            kind = subprocess.run(probe, stdout=subprocess.PIPE, text=True).stdout.strip()
            if kind:
                return each, kind
    sys.exit(
        f"adr: the volume {device} has no filesystem, neither itself nor on its first partition: "
        f"make a snapshot of one that has"
    )


def mount(device: str, path: str) -> None:
    """Mount a volume once it is attached."""
    if os.path.ismount(path):
        return
    over_at = time.monotonic() + WITHIN_S
    while (found := find(device)) is None:
        if time.monotonic() > over_at:
            sys.exit(f"adr: the volume {device} for {path} has not been attached")
        time.sleep(1)
    source, kind = filesystem(found)
    options = "rw,nosuid,nodev"
    if kind == "xfs":
        # Volumes of the same snapshot have the same id, which XFS would refuse.
        options += ",nouuid"
    os.makedirs(path, exist_ok=True)
    subprocess.run(["mount", "-t", kind, "-o", options, source, path], check=True)
    print(f"adr: mounted {source} ({kind}) at {path}", flush=True)


if __name__ == "__main__":
    for each in range(1, len(sys.argv), 2):
        mount(*sys.argv[each : each + 2])
