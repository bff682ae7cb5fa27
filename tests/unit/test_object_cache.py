"""Copies of objects on this machine: used only where they hold, private, bounded, dispensable."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from adr.objectcache import ObjectCache


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def test_what_was_kept_is_found_by_its_key_and_tells_its_etag(folder: Path) -> None:
    cache = ObjectCache("runner", folder)
    assert cache.get("key") is None

    cache.put("key", "1", b"old")
    cache.put("key", "2", b"new \n \x00")

    assert ObjectCache("runner", folder).get("key") == ("2", b"new \n \x00")
    assert cache.get("another") is None
    assert ObjectCache("another", folder).get("key") is None
    assert len(list(folder.iterdir())) == 1


def test_nobody_else_can_read_it(folder: Path) -> None:
    before = os.umask(0)
    try:
        ObjectCache("runner", folder).put("key", "1", b"body")
    finally:
        os.umask(before)

    assert folder.stat().st_mode & 0o777 == 0o700
    assert [path.stat().st_mode & 0o777 for path in folder.iterdir()] == [0o600]


def test_the_oldest_make_room(folder: Path) -> None:
    # given three copies, of which the oldest was used since
    cache = ObjectCache("runner", folder)
    for number in range(3):
        cache.put(f"key{number}", "1", bytes(1000))
        for path in folder.iterdir():
            os.utime(path, (path.stat().st_mtime - 100,) * 2)
    assert cache.get("key0")

    # when the next process keeps something, and has room for two and a half
    ObjectCache("another", folder, most_bytes=2700).put("key", "1", bytes(1000))

    # then
    assert [cache.get(f"key{number}") is not None for number in range(3)] == [True, False, True]
    assert ObjectCache("another", folder).get("key")


def test_trouble_with_it_is_none(folder: Path, tmp_path: Path) -> None:
    # given copies that are broken in every way
    cache = ObjectCache("runner", folder)
    cache.put("key", "1", b"body")
    (path,) = folder.iterdir()
    whole = path.read_bytes()
    for broken in (b"", whole[:-1], whole[:20], b"[]\n", b"{}\nbody", b"\xff" * 50, whole + b"x"):
        path.write_bytes(broken)
        assert cache.get("key") is None

    # and places where nothing can be kept
    for place in (tmp_path / "file" / "cache", Path("/proc/none")):
        (tmp_path / "file").touch()
        nowhere = ObjectCache("runner", place)
        nowhere.put("key", "1", b"body")
        assert nowhere.get("key") is None
