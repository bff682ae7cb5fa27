"""The installed adr as a wheel, so that new hosts get exactly the adr of whoever launches them.

What was installed is known from the RECORD that pip has left. It holds a digest of every file,
so nothing is packed that was changed since, and the same installation always gives the same
bytes. The alternative, building a wheel from the sources, needs sources, and is something else
than what the user has tried out.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
import re
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path, PurePosixPath

import adr
from adr.errors import Conflict, UsageError
from adr.keys import install_key
from adr.stores.base import ObjectStore

__all__ = ["CONSTRAINTS", "Wheel", "pack_wheel", "publish_wheel"]

#: Name of the constraints beside a wheel.
CONSTRAINTS = "constraints.txt"

_OWN = "amazon-distributed-runner"
#: What an installer adds to a wheel; what it compiles or generates has other places.
_ADDED = {"RECORD", "RECORD.jws", "RECORD.p7s", "INSTALLER", "REQUESTED", "direct_url.json"}
#: The first moment that a zip file can name.
_TIME = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True)
class Wheel:
    """Hold a wheel and what is to be installed along with it."""

    #: Name of the file, which tells pip what is in it.
    name: str
    body: bytes
    sha256: str
    #: Lines ``name==version`` of all that it needs, for ``pip install -c``.
    constraints: str


def pack_wheel(package: str = _OWN) -> Wheel:
    """Pack an installed package of pure Python, adr itself by default.

    Reads the files of the package; makes no file and no call.

    Raises
    ------
    UsageError
        If it is not installed, only linked to a source folder, changed since, or, for adr,
        not what runs here.
    """
    try:
        found = metadata.distribution(package)
    except metadata.PackageNotFoundError as error:
        raise UsageError(_advice(package, "is not installed")) from error
    if _is_linked(found):
        raise UsageError(_advice(package, "is linked to a source folder (editable)"))
    record = found.read_text("RECORD")
    if record is None:
        place = Path(str(found.locate_file(""))).resolve()
        raise UsageError(_advice(package, f"lies in {place}, where pip has not installed it"))
    if package == _OWN:
        _check_running(found)
    _check_pure(found, package)
    files = dict(sorted(_files(found, package, record)))
    info = next(name.partition("/")[0] for name in files if ".dist-info/" in name)
    body = _zipped(files, info)
    name = f"{info.removesuffix('.dist-info')}-py3-none-any.whl"
    return Wheel(name, body, hashlib.sha256(body).hexdigest(), _constraints(package))


def publish_wheel(store: ObjectStore, wheel: Wheel | None = None) -> Wheel:
    """Put the installed adr, or a wheel that was packed before, where new hosts fetch it.

    Idempotent.

    Raises
    ------
    UsageError
        If it cannot be packed; see `pack_wheel`.
    ServiceError
        If the store refuses or cannot be reached.
    """
    wheel = wheel or pack_wheel()
    # Conflict: it is there, since its key tells its content.
    with suppress(Conflict):
        store.write(install_key(wheel.sha256, wheel.name), wheel.body, if_absent=True)
    # Always, since the same wheel may by now run with other versions of what it needs.
    store.write(install_key(wheel.sha256, CONSTRAINTS), wheel.constraints.encode())
    return wheel


def _advice(package: str, trouble: str) -> str:
    if package == _OWN:
        name, remedy = "adr", "install it with pip install . (without -e) in its source folder"
    else:
        name, remedy = package, "reinstall it with pip"
    return f"{name} {trouble}, so it cannot be brought to other hosts: {remedy}"


def _is_linked(found: metadata.Distribution) -> bool:
    """Tell whether an editable installation left nothing but the way to the sources."""
    try:
        origin = json.loads(found.read_text("direct_url.json") or "{}")
    except ValueError:
        origin = {}
    if origin.get("dir_info", {}).get("editable"):
        return True
    names = csv.reader((found.read_text("RECORD") or "").splitlines())
    inside = [name for name, *_ in names if ".dist-info/" not in name]
    return any(name.endswith(".pth") for name in inside)


def _check_running(found: metadata.Distribution) -> None:
    """Refuse to pack another adr than the one that runs."""
    running = Path(adr.__file__).resolve()
    if Path(str(found.locate_file("adr/__init__.py"))).resolve() != running:
        trouble = f"runs from the source folder {running.parent.parent}"
        raise UsageError(_advice(_OWN, trouble))


def _check_pure(found: metadata.Distribution, package: str) -> None:
    """Refuse what runs on one kind of machine only."""
    tags = re.findall(r"^Tag: *(\S+)", found.read_text("WHEEL") or "", re.M)
    if "py3-none-any" not in tags:
        made_for = ", ".join(tags) or "this machine"
        raise UsageError(_advice(package, f"is made for {made_for} only"))


def _files(found: metadata.Distribution, package: str, record: str) -> Iterator[tuple[str, bytes]]:
    """Yield the names and contents of what was in the wheel.

    RECORD: path relative to site-packages, ``algorithm=digest``, size. Scripts lie outside of
    site-packages; what was compiled has no digest.
    """
    for name, digest, *_ in csv.reader(record.splitlines()):
        path = PurePosixPath(name)
        outside = path.is_absolute() or ".." in path.parts
        added = path.parts[0].endswith(".dist-info") and path.parts[-1] in _ADDED
        if outside or added or "__pycache__" in path.parts or path.suffix == ".pyc":
            continue
        try:
            body = Path(str(found.locate_file(name))).read_bytes()
        except OSError as error:
            trouble = f"is not complete ({name}: {error.strerror})"
            raise UsageError(_advice(package, trouble)) from error
        if digest and digest != _digest(body, digest.partition("=")[0]):
            trouble = f"was changed after it was installed ({name})"
            raise UsageError(_advice(package, trouble))
        yield name, body


def _zipped(files: dict[str, bytes], info: str) -> bytes:
    """Return a wheel: the files in their order, and last their RECORD (PEP 427)."""
    lines = io.StringIO()
    writer = csv.writer(lines, lineterminator="\n")
    for name, body in files.items():
        writer.writerow((name, _digest(body), len(body)))
    writer.writerow((f"{info}/RECORD", "", ""))
    raw = io.BytesIO()
    with zipfile.ZipFile(raw, "w") as archive:
        for name, body in [*files.items(), (f"{info}/RECORD", lines.getvalue().encode())]:
            entry = zipfile.ZipInfo(name, _TIME)
            entry.compress_type = zipfile.ZIP_DEFLATED
            # The same on all systems: by Unix, a regular file that all may read.
            entry.create_system = 3
            entry.external_attr = 0o100644 << 16
            archive.writestr(entry, body)
    return raw.getvalue()


def _digest(body: bytes, algorithm: str = "sha256") -> str:
    raw = hashlib.new(algorithm, body).digest()
    return f"{algorithm}={base64.urlsafe_b64encode(raw).rstrip(b'=').decode()}"


def _constraints(package: str) -> str:
    """Return the installed versions of all that a package needs, without extras.

    What a marker leaves out here is not installed here: it is in no line, and another Python
    that does need it takes the newest.
    """
    versions: dict[str, str] = {}
    wanted = [package]
    while wanted:
        for line in metadata.requires(wanted.pop()) or ():
            requirement, _, marker = line.partition(";")
            name = re.split(r"[^A-Za-z0-9._-]", requirement.strip(), maxsplit=1)[0]
            if name in versions or re.search(r"\bextra\b", marker):
                continue
            with suppress(metadata.PackageNotFoundError):
                versions[name] = metadata.version(name)
                wanted.append(name)
    return "".join(f"{name}=={versions[name]}\n" for name in sorted(versions, key=str.lower))
