"""What is particular to a store in a directory."""

from __future__ import annotations

import errno
import fcntl
import multiprocessing
import os
import resource
import stat
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from adr.errors import Conflict, RunnerGone, ServiceError, UsageError
from adr.stores.directory import DirectoryStore


@pytest.fixture
def directory(tmp_path: Path) -> DirectoryStore:
    made = DirectoryStore(tmp_path / "runner")
    made.create()
    return made


def a_file(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def keys(store: DirectoryStore) -> list[str]:
    return [entry.key for entry in store.list("")]


def _count_up(path: Path, times: int) -> None:
    store = DirectoryStore(path)
    for _ in range(times):
        while True:
            old = store.read("counter")
            try:
                store.write("counter", str(int(old.body) + 1).encode(), if_match=old.etag)
            except Conflict:
                continue
            break


def test_only_the_owner_may_look_inside(directory: DirectoryStore, tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        other = DirectoryStore(tmp_path / "other")
        other.create()
        other.write("a/b", b"")
        os.chmod(a_file(tmp_path / "f", b""), 0o666)
        other.upload(tmp_path / "f", "a/c", move=True)
    finally:
        os.umask(before)

    for path in (tmp_path / "other", *(tmp_path / "other").rglob("*")):
        mode = stat.S_IMODE(path.stat().st_mode)
        assert mode == (0o700 if path.is_dir() else 0o600), path


@pytest.mark.parametrize("key", ["", "/etc/x", "../x", "a/../../x", "a//b", "a/", "./a", "a\0b"])
def test_keys_that_are_no_relative_paths_are_refused(
    directory: DirectoryStore, tmp_path: Path, key: str
) -> None:
    for attempt in (
        lambda: directory.write(key, b""),
        lambda: directory.upload(a_file(tmp_path / "f", b""), key, move=True),
        lambda: directory.read(key),
        lambda: directory.download(key, tmp_path / "copy"),
        lambda: directory.delete([key]),
    ):
        with pytest.raises(UsageError, match="key"):
            attempt()

    assert sorted(p.name for p in tmp_path.rglob("*")) == ["f", "objects", "runner", "tmp"]


def test_moving_takes_the_file_itself(directory: DirectoryStore, tmp_path: Path) -> None:
    source = a_file(tmp_path / "f", b"content")
    inode = source.stat().st_ino

    directory.upload(source, "a/b", move=True)

    assert not source.exists()
    assert (tmp_path / "runner/objects/a/b").stat().st_ino == inode


def test_a_file_with_another_name_is_copied_not_moved(
    directory: DirectoryStore, tmp_path: Path
) -> None:
    source = a_file(tmp_path / "f", b"content")
    os.link(source, tmp_path / "input")
    directory.upload(source, "key", move=True)

    (tmp_path / "input").write_bytes(b"changed")

    assert directory.read("key").body == b"content"


def test_what_a_link_names_is_stored_not_the_link(
    directory: DirectoryStore, tmp_path: Path
) -> None:
    a_file(tmp_path / "f", b"content")
    (tmp_path / "link").symlink_to("f")

    directory.upload(tmp_path / "link", "key", move=True)

    assert directory.read("key").body == b"content"
    assert (tmp_path / "f").exists()


def test_a_file_on_another_file_system_is_copied(directory: DirectoryStore, tmp_path: Path) -> None:
    elsewhere = Path("/dev/shm")
    if not elsewhere.is_dir() or elsewhere.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("there is no second file system here")
    source = a_file(elsewhere / f"adr-{uuid.uuid4()}", b"content" * 1000)
    try:
        directory.upload(source, "key", move=True)

        assert directory.read("key").body == b"content" * 1000
    finally:
        source.unlink(missing_ok=True)


def test_a_listing_does_not_see_what_is_being_written(
    directory: DirectoryStore, tmp_path: Path
) -> None:
    a_file(tmp_path / "runner/tmp/half", b"half")

    assert keys(directory) == []


def test_what_killed_processes_left_is_removed(directory: DirectoryStore, tmp_path: Path) -> None:
    left, slow = (a_file(tmp_path / "runner/tmp" / (32 * digit), b"half") for digit in "12")
    others = a_file(tmp_path / "runner/tmp/bundle", b"half")

    # The machine of who writes it may have slept, or its clock been set: its lock alone counts.
    with slow.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        directory.write("key", b"")

    assert not left.exists()
    assert slow.exists()
    assert others.exists()


def test_removing_the_last_file_removes_its_directories(
    directory: DirectoryStore, tmp_path: Path
) -> None:
    directory.write("a/b/c/d", b"")
    directory.write("a/x", b"")

    directory.delete(["a/b/c/d"])

    assert [p.name for p in (tmp_path / "runner/objects/a").iterdir()] == ["x"]


def test_etags_differ_when_the_clock_stands_still(
    directory: DirectoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.time_ns", lambda: 10**18)

    etags = [directory.write("key", b"same") for _ in range(10)]

    assert len(set(etags)) == 10


def test_conditions_hold_between_processes(directory: DirectoryStore, tmp_path: Path) -> None:
    directory.write("counter", b"0")
    fork = multiprocessing.get_context("spawn")

    processes = [fork.Process(target=_count_up, args=(tmp_path / "runner", 25)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()

    assert directory.read("counter").body == b"50"


def test_destroying_spares_what_is_not_the_stores(
    directory: DirectoryStore, tmp_path: Path
) -> None:
    directory.write("key", b"")
    a_file(tmp_path / "runner/ledger.db", b"")

    directory.destroy()

    assert [p.name for p in (tmp_path / "runner").iterdir()] == ["ledger.db"]


def test_an_error_of_the_system_is_one_sentence_with_the_path(
    directory: DirectoryStore, tmp_path: Path
) -> None:
    directory.write("a", b"")

    with pytest.raises(ServiceError, match=rf"{tmp_path}/runner/objects/a/b.*"):
        directory.write("a/b", b"")
    with pytest.raises(ServiceError, match=os.strerror(errno.ENAMETOOLONG)):
        directory.write("x" * 300, b"")

    assert list((tmp_path / "runner/tmp").iterdir()) == []


def test_a_full_disk_leaves_what_was_there_and_nothing_else(
    directory: DirectoryStore, tmp_path: Path
) -> None:
    directory.write("key", b"old")
    source = a_file(tmp_path / "f", bytes(1 << 20))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    # A file that may not grow fails as one on a full disk does.
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 19, limits[1]))
    try:
        for attempt in (
            lambda: directory.write("key", bytes(1 << 20)),
            lambda: directory.upload(source, "key"),
        ):
            with pytest.raises(ServiceError, match=os.strerror(errno.EFBIG)):
                attempt()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    assert directory.read("key").body == b"old"
    assert list((tmp_path / "runner/tmp").iterdir()) == []


def test_those_who_write_while_it_is_destroyed_learn_that_it_is_gone(
    directory: DirectoryStore,
) -> None:
    writing = threading.Barrier(9)

    def write(n: int) -> None:
        directory.write(f"{n}/before", b"")
        writing.wait()
        while True:
            directory.write(f"{n}/after", b"")

    with ThreadPoolExecutor(8) as pool:
        writers = [pool.submit(write, n) for n in range(8)]
        writing.wait()
        directory.destroy()
        ends = [writer.exception() for writer in writers]

    assert {type(end) for end in ends} == {RunnerGone}, ends
