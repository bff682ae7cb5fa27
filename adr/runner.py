"""A runner: store, ledger, roster and fleets under one id, opened from that id alone.

The id is an address. A UUID4 names an AWS runner: the bucket and the queue of that name. A
path names a local runner: the directory with the database and the objects. What belongs to
a kind of runner is found in one table and imported when a runner of that kind is opened, so
that a local runner never imports boto3.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adr.errors import AdrError, RunnerGone, Unavailable, UsageError
from adr.ledgers.base import Ledger
from adr.models import SCHEMA, check_schema
from adr.roster import DEAD_AFTER_S, HEARTBEAT_S, Roster, WorkerLocks
from adr.stores.base import ObjectStore

if TYPE_CHECKING:
    from adr.fleets.base import Fleet
    from adr.objectcache import ObjectCache

__all__ = [
    "Runner",
    "create_runner",
    "is_local_runner",
    "is_runner_id",
    "local_runners",
    "open_runner",
    "remove_local",
]

_log = logging.getLogger(__name__)

_UUID4 = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")
_MARK = "runner.json"
#: Tells a runner of ``adr run``, which keeps more in its directory; see `adr.embedded`.
_RUN_LOCK = "run.lock"
#: File systems on which SQLite's locks, or flock, cannot be trusted between machines.
_NETWORK = {
    "9p", "afs", "beegfs", "ceph", "cifs", "fuse.glusterfs", "fuse.s3fs", "fuse.sshfs",
    "glusterfs", "gpfs", "lustre", "nfs", "nfs4", "smb3", "smbfs",
}  # fmt: skip


@dataclass(frozen=True)
class Runner:
    """Hold what a runner is made of."""

    #: UUID4, or absolute path of the directory.
    id: str
    #: ``"aws"`` or ``"local"``.
    kind: str
    store: ObjectStore
    ledger: Ledger
    roster: Roster
    #: Removes all of it, results and records included.
    remove: Callable[[], None]
    #: Shortest and usual time in seconds between two heartbeats of a worker.
    heartbeat_s: tuple[float, float]
    #: Time in seconds between two looks of a worker at the orders.
    orders_s: float
    #: Whether bundles are worth compressing on their way to the store.
    compress: bool
    #: Seconds after which the queue forgets a job.
    retention_s: float = math.inf
    #: How many jobs can be leased at a time; whoever asks for one more gets none.
    most_leased: float = math.inf
    #: Folder where bundles are made; None where the store takes them as a stream.
    scratch: Path | None = None
    #: Where copies of what is read are kept for the next process; None: nowhere.
    cache: ObjectCache | None = None
    #: Where its workers can be launched: what opens each kind of fleet, the usual one first.
    fleets: Mapping[str, Callable[[], Fleet]] = field(default_factory=dict)


def is_runner_id(text: str) -> bool:
    """Tell whether `text` is the id of an AWS runner, a UUID4 in lower case."""
    return _UUID4.fullmatch(text) is not None


def is_local_runner(path: str | os.PathLike[str]) -> bool:
    """Tell whether `path` is the directory of a local runner."""
    # Unlike that of a Path, this answers also for a text that cannot name a file.
    return os.path.isfile(os.path.join(path, _MARK))


def open_runner(
    runner_id: str,
    region_name: str | None = None,
    worker: str | None = None,
    **parts: Any,
) -> Runner:
    """Open a runner; connects to nothing before it is used.

    Parameters
    ----------
    runner_id : str
        UUID4 of an AWS runner, or path of a local runner.
    region_name : str, optional
        Amazon region identifier.
    worker : str, optional
        Id of the worker that leases jobs through this runner.
    **parts
        Passed to the opener of this kind of runner: boto3 resources and times.

    Raises
    ------
    UsageError
        If the id is neither.
    RunnerGone
        If there is no local runner at the path.
    AdrError
        If a newer adr made it.
    """
    if is_runner_id(runner_id):
        return _OPENERS["aws"](runner_id, region_name, worker, **parts)
    # An empty id would stand for the current directory.
    if runner_id and is_local_runner(runner_id):
        _check_mark(Path(runner_id, _MARK))
        return _OPENERS["local"](runner_id, region_name, worker, **parts)
    if os.sep in runner_id:
        raise RunnerGone(f"there is no runner at {runner_id}: adr list shows those there are")
    raise UsageError(
        f"{runner_id!r} is no runner: give the UUID4 that adr create printed, "
        f"or the directory of a local runner"
    )


def create_runner(
    *,
    local: bool = False,
    directory: str | os.PathLike[str] | None = None,
    region_name: str | None = None,
    listed: bool = True,
) -> Runner:
    """Make a runner with store and ledger, and open it.

    Parameters
    ----------
    local : bool, optional
        Make a local runner instead of one on AWS.
    directory : path, optional
        Where the local runner lies; without, in the user data directory of the platform.
    region_name : str, optional
        Amazon region identifier.
    listed : bool, optional
        Whether `local_runners` finds it; if so its directory has to be empty.

    Raises
    ------
    UsageError
        If the directory cannot be a runner.
    """
    if not local:
        made = _open_aws(_new_runner_id(), region_name, None)
        try:
            made.store.create()
            made.ledger.create()
        except Unavailable:
            raise
        except AdrError:
            # A bucket without a queue would be listed as what is left of a runner.
            for part in (made.ledger, made.store):
                with suppress(AdrError):
                    part.destroy()
            raise
        return made
    path = Path(os.path.abspath(directory)) if directory else _registry() / _new_runner_id()
    _check_place(path, empty=listed)
    made = _open_local(str(path), None, None)
    if listed and directory:
        # First: where this fails there is nothing yet that would stay behind.
        _list_elsewhere(path)
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.chmod(0o700)
        Path(path, "workers").mkdir(mode=0o700, exist_ok=True)
        made.store.create()
        made.ledger.create()
        # Last and whole, since a directory with this file is a runner.
        mark = Path(path, f"{_MARK}.new")
        mark.write_text(json.dumps({"schema": SCHEMA}) + "\n", "utf-8")
        mark.replace(path / _MARK)
    except (OSError, AdrError) as error:
        _listed_as(path.resolve()).unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise UsageError(f"cannot make a runner in {path}: {error.strerror}") from error
        raise
    return made


def _new_runner_id() -> str:
    import uuid

    return str(uuid.uuid4())


def local_runners() -> list[str]:
    """Return the paths of the local runners of this user, those that are still there."""
    registry = _registry()
    if not registry.is_dir():
        return []
    return [str(entry.resolve()) for entry in sorted(registry.iterdir()) if is_local_runner(entry)]


def remove_local(runner_id: str) -> None:
    """Remove a local runner and its entry among `local_runners`, but no file that is not adr's.

    The directory stays where anything else lies in it.

    Raises
    ------
    AdrError
        If some of it could not be removed; everything else is.
    """
    import shutil

    from adr.stores.directory import DirectoryStore

    path = Path(runner_id).resolve()
    # First, since a directory without this file is no runner.
    own = [path / _MARK, _listed_as(path), *path.glob("ledger.db*"), *path.glob("workers/*.lock")]
    trouble, folders = [], [path / "fleet"]
    if (path / _RUN_LOCK).exists():
        own += [path / _RUN_LOCK, path / "published.jsonl"]
        folders.append(path / "work")
    for folder in folders:
        try:
            shutil.rmtree(folder)
        except FileNotFoundError:
            pass
        except OSError as error:
            trouble.append(f"{folder} ({error.strerror})")
    for file in own:
        try:
            file.unlink(missing_ok=True)
        except OSError as error:
            trouble.append(f"{file} ({error.strerror})")
    with suppress(OSError):
        Path(path, "workers").rmdir()
    try:
        DirectoryStore(path).destroy()
    except AdrError as error:
        trouble.append(str(error))
    if trouble:
        raise AdrError(f"could not remove {', '.join(trouble)}: remove it by hand")
    if path.exists():
        _log.warning("%s stays, since it holds files that are not those of the runner", path)


def _open_local(runner_id: str, _region: str | None, worker: str | None) -> Runner:
    from adr.ledgers.sqlite import SqliteLedger
    from adr.stores.directory import DirectoryStore

    path = Path(os.path.abspath(runner_id))
    locks = WorkerLocks(path / "workers")
    store = DirectoryStore(path)
    return Runner(
        id=str(path),
        kind="local",
        store=store,
        ledger=SqliteLedger(path / "ledger.db", locks, worker),
        roster=Roster(store, locks),
        remove=partial(remove_local, str(path)),
        heartbeat_s=(0.5, 5.0),
        orders_s=1.0,
        compress=False,
        scratch=path / "tmp",
        fleets={"local": partial(_fleet, "adr.fleets.local:LocalFleet", path)},
    )


def _open_aws(
    runner_id: str,
    region_name: str | None,
    worker: str | None,
    *,
    s3: Any = None,
    sqs: Any = None,
    dead_after_s: float = DEAD_AFTER_S,
    heartbeat_s: float = HEARTBEAT_S,
    orders_s: float = 10.0,
    **times: float,
) -> Runner:
    from adr.aws import Connection
    from adr.ledgers.aws import AwsLedger
    from adr.ledgers.sqs import MOST_IN_FLIGHT, RETENTION_S, MessageQueue
    from adr.objectcache import ObjectCache
    from adr.stores.s3 import S3Store

    if s3 is None and sqs is None:
        connection = Connection(runner_id, region_name)
    else:
        connection = Connection.from_resources(runner_id, s3=s3, sqs=sqs)
    store = S3Store(connection)
    roster = Roster(store, dead_after_s=dead_after_s)
    # Those who look come again and again; a worker reads on in one process.
    cache = ObjectCache(runner_id) if worker is None else None
    return Runner(
        id=runner_id,
        kind="aws",
        store=store,
        ledger=AwsLedger(MessageQueue(connection), store, roster, worker, cache, **times),
        roster=roster,
        remove=store.destroy,
        heartbeat_s=(heartbeat_s / 3, heartbeat_s),
        orders_s=orders_s,
        compress=True,
        retention_s=RETENTION_S,
        most_leased=MOST_IN_FLIGHT,
        cache=cache,
        fleets={
            "ec2": partial(_fleet, "adr.fleets.ec2.fleet:Ec2Fleet", connection, store),
            "ssh": partial(_fleet, "adr.fleets.ssh:SshFleet", connection, store),
        },
    )


_OPENERS: dict[str, Callable[..., Runner]] = {"aws": _open_aws, "local": _open_local}


def _fleet(name: str, *parts: Any) -> Fleet:
    """Open a fleet by its dotted name; imported only now, since some take long to import."""
    module, _, kind = name.partition(":")
    fleet: Fleet = getattr(import_module(module), kind)(*parts)
    return fleet


def _registry() -> Path:
    from platformdirs import user_data_path

    return user_data_path("adr") / "runners"


def _listed_as(path: Path) -> Path:
    import hashlib

    return _registry() / (path.name + "-" + hashlib.sha256(os.fsencode(path)).hexdigest()[:8])


def _list_elsewhere(path: Path) -> None:
    entry = _listed_as(path.resolve())
    try:
        entry.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        entry.unlink(missing_ok=True)
        entry.symlink_to(path.resolve())
    except OSError as error:
        raise UsageError(
            f"cannot note the runner in {entry.parent}: {error.strerror}; make that folder "
            f"writable, or set XDG_DATA_HOME to another"
        ) from error


def _check_mark(path: Path) -> None:
    """Refuse a local runner that a newer adr made."""
    try:
        mark = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise AdrError(f'{path} is broken: write {{"schema": {SCHEMA}}} into it') from error
    check_schema(mark if isinstance(mark, dict) else {}, f"the runner in {path.parent}")


def _check_place(path: Path, empty: bool) -> None:
    """Refuse a place where a local runner cannot lie."""
    if is_local_runner(path):
        raise UsageError(f"there is a runner in {path} already: use it, or choose another --dir")
    if empty and path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UsageError(f"{path} is not an empty directory: choose another --dir")
    kind = _file_system(path)
    if kind in _NETWORK:
        raise UsageError(
            f"{path} lies on a network file system ({kind}), whose locks cannot be trusted: "
            f"choose a directory on a disk of this machine"
        )


def _file_system(path: Path) -> str:
    """Return the type of the file system that `path` lies on, or will; empty where unknown."""
    try:
        table = Path("/proc/self/mountinfo").read_text("utf-8", "surrogateescape")
    except OSError:
        return ""
    # proc(5): ... (5) mount point ... - (9) file system type ...; blanks are written as \040.
    best, kind = "", ""
    resolved = str(path.resolve())
    for line in table.splitlines():
        before, _, after = line.partition(" - ")
        mount = before.split()[4].replace("\\040", " ")
        inside = resolved == mount or resolved.startswith(mount.rstrip("/") + "/")
        if inside and len(mount) >= len(best):
            best, kind = mount, after.split()[0]
    return kind
