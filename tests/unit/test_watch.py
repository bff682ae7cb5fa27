"""What the watch tells of a tree, and that a workspace sees the same with it as without."""

import gc
import mmap
import os
import random
from pathlib import Path

import pytest

from adr.worker.watch import Watch
from adr.worker.workspace import Workspace


@pytest.fixture
def tree(tmp_path):
    """Return a tree with a few files, and its directories."""
    top = tmp_path / "tree"
    for folder in ("", "a", "a/deep", "b"):
        (top / folder).mkdir(parents=True)
        (top / folder / "file").write_text("content")
    return top, ["", "a", "a/deep", "b"]


def test_nothing_touched_is_nothing_told(tree):
    top, folders = tree
    watch = Watch(top, folders)

    (top / "a" / "file").read_text()

    assert watch.touched() == set()


@pytest.mark.parametrize(
    ("touch", "names"),
    [
        (lambda top: (top / "new").write_text("x"), {"new"}),
        (lambda top: (top / "a/deep/file").write_text("x"), {"a/deep/file"}),
        (lambda top: (top / "b/file").unlink(), {"b/file"}),
        (lambda top: (top / "b/file").rename(top / "a/other"), {"b/file", "a/other"}),
        (lambda top: (top / "b/file").chmod(0o600), {"b/file"}),
        (lambda top: os.utime(top / "b/file", (1, 1)), {"b/file"}),
        (lambda top: os.symlink("file", top / "link"), {"link"}),
        (lambda top: os.mkfifo(top / os.fsdecode(b"pipe\xff\n")), {os.fsdecode(b"pipe\xff\n")}),
    ],
)
def test_each_kind_of_change_is_told_once(tree, touch, names):
    top, folders = tree
    watch = Watch(top, folders)

    touch(top)

    assert watch.touched() == names
    assert watch.touched() == set()


def test_writing_through_a_memory_map_is_told(tree):
    top, folders = tree
    with open(top / "file", "r+b") as file:
        memory = mmap.mmap(file.fileno(), 0)
    watch = Watch(top, folders)

    memory[0:1] = b"X"
    memory.close()

    assert watch.touched() == {"file"}


def flood(top):
    """Make more events than the kernel keeps; alternating names, since equal ones are merged."""
    limit = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    for number in range(limit // 2 + 2):
        os.utime(top / "file", (number, number))
        os.utime(top / "a/file", (number, number))


@pytest.mark.parametrize(
    "upset",
    [
        lambda top: (top / "a").rename(top / "moved"),
        lambda top: ((top / "b/file").unlink(), (top / "b").rmdir()),
        lambda top: (top / "a").chmod(0o500),
        lambda top: (top / "b/dir").mkdir(),
        lambda top: ((top / "b/dir").mkdir(), (top / "b/dir").rmdir()),
        lambda top: ((top / "new").touch(), (top / "new").unlink()),
        lambda top: ((top / "new").touch(), (top / "new").rename(top / "a/file")),
        lambda top: ((top / "new").touch(), (top / "b/file").rename(top / "new")),
        flood,
    ],
    ids=[
        "moved directory",
        "removed directory",
        "closed directory",
        "new directory",
        "directory that came and went",
        "file that came and went",
        "file that came and was moved",
        "file that came and was replaced",
        "too many events",
    ],
)
def test_what_names_cannot_tell_is_unknown_and_stays_so(tree, upset):
    top, folders = tree
    watch = Watch(top, folders)

    upset(top)

    assert watch.touched() is None
    assert watch.touched() is None


def test_a_directory_that_is_not_there_cannot_be_watched(tmp_path):
    assert Watch(tmp_path, ["", "gone"]).touched() is None


def test_a_closed_watch_holds_no_descriptor(tree):
    top, folders = tree
    # What earlier tests have left open is closed now, not in between.
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))

    for _ in range(50):
        Watch(top, folders).close()

    assert len(os.listdir("/proc/self/fd")) == before


def steps(top, chance):
    """Do a handful of random things to a tree, as a job might."""
    for _ in range(chance.randrange(1, 8)):
        names = sorted(
            os.path.join(folder, name)
            for folder, folders, files in os.walk(top)
            for name in [*folders, *files]
        )
        path = chance.choice(names) if names else str(top / "a")
        kind = chance.randrange(7)
        try:
            if kind == 0:
                with open(path, "a") as file:
                    file.write("more")
            elif kind == 1:
                os.remove(path)
            elif kind == 2:
                os.makedirs(f"{path}-{chance.randrange(9)}/inner")
            elif kind == 3:
                with open(f"{path}-{chance.randrange(9)}", "w") as file:
                    file.write("new")
            elif kind == 4:
                os.rename(path, f"{path}-moved")
            elif kind == 5:
                os.chmod(path, chance.choice([0o700, 0o755]))
            else:
                outside = str(top.parent / "outside")  # is written to as well, through the link
                os.symlink(chance.choice(["file", outside, "."]), f"{path}-link")
        except OSError:
            pass


def test_a_workspace_sees_the_same_with_the_watch_as_without(tree):
    top, _ = tree
    originals = {
        os.path.relpath(path, top): path.read_bytes() for path in top.rglob("*") if path.is_file()
    }

    def restore(name):
        (top / name).write_bytes(originals[name])

    workspace = Workspace(top, restore)
    workspace.snapshot()
    chance = random.Random(4)
    watched = 0
    for _ in range(150):
        steps(top, chance)
        changes = workspace.changes()
        watched += workspace._watch.touched() is not None

        everything = workspace._all_changes()
        for part in ("created", "changed", "removed", "altered", "made"):
            assert sorted(getattr(changes, part)) == sorted(getattr(everything, part)), part
        workspace.restore(changes)
        assert workspace._all_changes() == type(changes)()
    assert watched > 20
