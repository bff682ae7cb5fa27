"""What `adr.worker.workspace` promises, on real directories that real jobs have worked in."""

from __future__ import annotations

import logging
import os
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from adr.bundle import restore_member, unpack_bundle, write_bundle
from adr.errors import AdrError, UsageError
from adr.members import Member
from adr.worker.baseline import Baseline, Names
from adr.worker.contents import cache_contents, restore_contents
from adr.worker.tree import Entry
from adr.worker.workspace import Changes, Workspace

ODD = os.fsdecode(b"odd \xff\n")

#: Content of the directory at the start: text of files, None for directories, links.
ORIGINALS: dict[str, bytes | str | None] = {
    "input.txt": b"wind 1\n",
    "shared": None,
    "shared/data.txt": b"data\n",
    "shared/empty": None,
    "shared/closed": None,
    "shared/closed/inner.txt": b"inner\n",
    "program": b"#!/bin/sh\necho run\n",
    ODD: b"odd\n",
    "link": "shared/data.txt",
    "dangling": "no/such/file",
    "loop": "loop",
}
MODES = {"program": 0o755, "input.txt": 0o644, "shared/closed": 0o555, "shared/data.txt": 0o640}


def build(directory: Path) -> None:
    directory.mkdir()
    for name, content in ORIGINALS.items():
        if content is None:
            (directory / name).mkdir()
        elif isinstance(content, str):
            (directory / name).symlink_to(content)
        else:
            (directory / name).write_bytes(content)
    for name, mode in MODES.items():
        (directory / name).chmod(mode)


def describe(directory: Path) -> dict[str, tuple[int, bytes | str | None]]:
    """Return type, permissions and content of all that is in a directory."""
    found: dict[str, tuple[int, bytes | str | None]] = {".": (directory.stat().st_mode, None)}
    for folder, folders, files in os.walk(directory):
        for name in [*folders, *files]:
            path = Path(folder, name)
            mode = path.lstat().st_mode
            content: bytes | str | None = None
            if stat.S_ISLNK(mode):
                content = os.readlink(path)
            elif stat.S_ISREG(mode):
                content = path.read_bytes()
            found[str(path.relative_to(directory))] = (mode, content)
    return found


class Site:
    """A workspace whose originals come from a copy beside it, and who asked for which."""

    def __init__(self, parent: Path) -> None:
        self.directory = parent / "work"
        self.restored: list[str] = []
        build(self.directory)
        self.workspace = Workspace(self.directory, self.put_back)
        self.workspace.snapshot()
        self.before = describe(self.directory)

    def put_back(self, name: str) -> None:
        content = ORIGINALS[name]
        assert isinstance(content, bytes)
        path = self.directory / name
        with path.open("xb") as file:
            file.write(content)
        self.restored.append(name)

    def job(self, text: str) -> Changes:
        """Run shell text in the directory; return what changed."""
        subprocess.run(["bash", "-ec", text], cwd=self.directory, check=True)
        return self.workspace.changes()

    def restore(self, changes: Changes) -> None:
        """Restore, and check that all is as it was."""
        self.workspace.restore(changes)
        assert describe(self.directory) == self.before
        assert self.workspace.changes() == Changes()


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


@pytest.fixture
def big_site(tmp_path: Path) -> Iterator[Site]:
    """Give a site for thousands of files, in memory where that is possible."""
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else tmp_path
    with tempfile.TemporaryDirectory(dir=memory) as parent:
        yield Site(Path(parent))


def test_an_untouched_directory_has_no_changes(site: Site) -> None:
    assert site.job("cat input.txt link; ls -R > /dev/null") == Changes()


def test_new_files_are_found_and_removed(site: Site) -> None:
    changes = site.job("mkdir -p out/deep; echo 1 > out/deep/a; echo 2 > shared/b; echo 3 > c")

    assert sorted(changes.created) == ["c", "out/deep/a", "shared/b"]
    assert sorted(changes.made) == ["c", "out", "shared/b"]
    assert changes.changed == changes.removed == changes.altered == []
    site.restore(changes)
    assert site.restored == []


def test_results_may_be_moved_away_before_restoring(site: Site, tmp_path: Path) -> None:
    changes = site.job("mkdir out; echo 1 > out/a; echo 2 > b")
    (site.directory / "out/a").rename(tmp_path / "a")
    (site.directory / "b").rename(tmp_path / "b")

    site.restore(changes)


@pytest.mark.parametrize(
    "job",
    [
        "echo more >> input.txt",
        "echo wind 2 > input.txt",
        "echo wind 2 > new; mv new input.txt",
        "echo wind 2 > other; touch -r input.txt other; mv other input.txt",
        "echo wind 2 > input.txt; touch -r program input.txt",
        "rm input.txt; ln -s shared/data.txt input.txt",
        "truncate -s 0 input.txt",
    ],
)
def test_a_changed_original_is_a_result_and_is_put_back(site: Site, job: str) -> None:
    changes = site.job(job)

    assert changes.changed == ["input.txt"]
    assert changes.created == changes.removed == []
    site.restore(changes)
    assert site.restored == ["input.txt"]


def test_a_change_that_keeps_size_and_time_is_found(site: Site) -> None:
    changes = site.job("touch -r input.txt time; echo wind 2 > input.txt; touch -r time input.txt")

    assert changes.changed == ["input.txt"]
    site.restore(changes)


def test_a_change_right_after_the_restore_is_found(site: Site) -> None:
    # Given that nothing but time tells two contents apart
    path = site.directory / "input.txt"
    for _ in range(20):
        path.write_bytes(b"wind 2\n")
        changes = site.workspace.changes()

        # Then the change is found, however little time has passed since the last
        assert changes.changed == ["input.txt"]
        site.workspace.restore(changes)


def test_a_changed_original_is_replaced_and_not_written_through_a_hard_link(
    site: Site, tmp_path: Path
) -> None:
    kept = tmp_path / "kept"
    changes = site.job(f"echo wind 2 > input.txt; ln input.txt {kept}")

    site.restore(changes)

    assert kept.read_bytes() == b"wind 2\n"


@pytest.mark.parametrize(
    "job",
    [
        "ln input.txt copy; echo 2 >> copy",
        "ln input.txt copy; echo 2 >> copy; rm copy",
        "ln input.txt copy; echo 2 >> copy; rm copy; touch copy",
        "ln input.txt copy; echo 2 >> copy; mv program copy",
        "ln input.txt copy; echo 2 >> copy; mv copy shared/data.txt",
        "ln input.txt copy; echo 2 >> copy; mv copy other; rm other",
        "rm program; ln input.txt program; echo 2 >> program; rm program; touch program",
        "mkdir new; ln input.txt new/copy; echo 2 >> new/copy",
        "mkdir new; ln input.txt new/copy; echo 2 >> new/copy; rm new/copy",
        "mkdir new; ln input.txt new/copy; echo 2 >> new/copy; rm -r new",
    ],
)
def test_an_original_written_through_a_hard_link_is_put_back(site: Site, job: str) -> None:
    changes = site.job(job)

    assert "input.txt" in changes.changed
    site.restore(changes)
    assert "input.txt" in site.restored


def test_what_a_directory_in_place_of_an_original_file_holds_is_a_result(site: Site) -> None:
    changes = site.job("rm input.txt; mkdir -p input.txt/deep; echo 1 > input.txt/deep/out")

    assert changes.created == ["input.txt/deep/out"]
    site.restore(changes)


def test_changed_permissions_are_no_result_and_are_put_back(site: Site) -> None:
    changes = site.job("chmod +x input.txt; chmod 700 shared; chmod 777 .")

    assert sorted(changes.altered) == ["", "input.txt", "shared"]
    assert changes.created == changes.changed == changes.removed == changes.made == []
    site.restore(changes)


def test_removed_originals_are_put_back(site: Site) -> None:
    changes = site.job("chmod u+w shared/closed; rm -r shared link dangling program")

    assert changes.removed == sorted(
        name for name in ORIGINALS if name.startswith(("shared", "link", "dangling", "program"))
    )
    site.restore(changes)
    assert sorted(site.restored) == ["program", "shared/closed/inner.txt", "shared/data.txt"]


def test_originals_replaced_by_another_kind_are_put_back(site: Site) -> None:
    changes = site.job(
        "rm input.txt; mkdir input.txt; echo 1 > input.txt/inner;"
        "chmod u+w shared/closed; rm -r shared; echo 2 > shared;"
        "rm link; mkfifo link; ln -sfn program dangling; rm program; ln -s /etc/passwd program"
    )

    assert changes.created == ["input.txt/inner"]
    assert sorted(changes.changed) == ["shared"]
    assert {"input.txt", "link", "program", "dangling"} <= set(changes.removed)
    site.restore(changes)


def test_links_are_results_only_where_they_lead_to_a_file_inside(site: Site) -> None:
    changes = site.job(
        "ln -s input.txt good; ln -s $PWD/shared/data.txt absolute; ln -s link through;"
        "ln -s /etc/passwd outside; ln -s shared folder; ln -s nowhere dead; ln -s turn turn;"
        "ln -s ../work up; ln -s .. parent"
    )

    assert sorted(changes.created) == ["absolute", "good", "through"]
    assert len(changes.made) == 9
    site.restore(changes)


def test_what_is_no_file_is_no_result_and_is_removed(site: Site) -> None:
    listener = socket.socket(socket.AF_UNIX)
    here = os.getcwd()
    os.chdir(site.directory)
    listener.bind("socket")
    os.chdir(here)
    listener.close()

    changes = site.job("mkfifo fifo; mkdir -p a/b; mkfifo a/b/fifo")

    assert changes.created == []
    assert sorted(changes.made) == ["a", "fifo", "socket"]
    site.restore(changes)


def test_names_may_be_any_bytes(site: Site) -> None:
    name = os.fsdecode(b"\xfe\n'\x01")
    (site.directory / name).mkdir()
    (site.directory / name / name).write_text("1")
    (site.directory / ODD).write_text("2")

    changes = site.workspace.changes()

    assert changes.created == [f"{name}/{name}"]
    assert changes.changed == [ODD]
    site.restore(changes)


def test_links_out_of_the_tree_are_not_followed(site: Site, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("1")
    outside.chmod(0o500)

    changes = site.job(
        f"ln -s {outside} a; mkdir b; ln -s {outside} b/c;"
        f"chmod u+w shared/closed; rm -r shared; ln -s {outside} shared"
    )

    assert changes.created == []
    site.restore(changes)
    assert (outside / "precious").read_text() == "1"
    assert stat.S_IMODE(outside.stat().st_mode) == 0o500


def test_the_directory_itself_may_be_gone(site: Site) -> None:
    changes = site.job('chmod -R u+w . && rm -rf "$PWD"')

    assert set(changes.removed) == {"", *ORIGINALS}
    site.restore(changes)


@pytest.mark.parametrize("kind", ["touch", "ln -s /etc", "mkfifo"])
def test_the_directory_itself_may_be_replaced(site: Site, kind: str) -> None:
    changes = site.job(f'chmod -R u+w . && rm -rf "$PWD" && {kind} "$PWD"')

    site.restore(changes)


def test_a_tree_deeper_than_the_longest_path_is_no_problem(big_site: Site) -> None:
    depth, name = 1500, "deep"
    fd = os.open(big_site.directory, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir(name, dir_fd=fd)
        inner = os.open(name, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = inner
    os.close(os.open("bottom", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
    os.close(fd)

    changes = big_site.workspace.changes()

    assert changes.created == ["/".join([*[name] * depth, "bottom"])]
    assert changes.made == [name]
    big_site.restore(changes)


def test_ten_thousand_results_are_found_and_removed(big_site: Site) -> None:
    changes = big_site.job("mkdir d; for i in {1..5000}; do : > out-$i; : > d/$i; done")

    assert len(set(changes.created)) == 10_000
    big_site.restore(changes)


def test_directories_without_permissions_are_no_problem_for_an_ordinary_user() -> None:
    def check() -> None:
        with tempfile.TemporaryDirectory() as parent:
            site = Site(Path(parent))
            changes = site.job(
                "mkdir -p new/inner; echo 1 > new/inner/out; chmod 000 new/inner; chmod 000 new;"
                "mkdir -p bare/x; echo 1 > bare/x/y; chmod 555 bare/x bare; echo 2 > shared/result;"
                "rm shared/data.txt; chmod 000 shared; chmod 500 ."
            )
            assert sorted(changes.created) == ["bare/x/y", "new/inner/out", "shared/result"]
            assert (site.directory / "new/inner/out").read_text() == "1\n"
            assert changes.removed == ["shared/data.txt"]
            site.restore(changes)

            # Also where the originals were closed from the start, and are so again
            changes = site.job(
                "chmod 755 shared/closed; rm shared/closed/inner.txt; echo 1 > shared/closed/x;"
                "chmod 555 shared/closed"
            )
            assert changes.altered == []
            site.restore(changes)

            # Also where they could not even be listed
            hidden = site.directory / "shared"
            hidden.chmod(0)
            site.workspace.snapshot()
            assert stat.S_IMODE(hidden.stat().st_mode) == 0
            site.workspace.restore(site.job("true"))
            assert stat.S_IMODE(hidden.stat().st_mode) == 0
            hidden.chmod(0o755)
            (hidden / "closed").chmod(0o755)

    as_ordinary_user(check)


def as_ordinary_user(check: Callable[[], None]) -> None:
    """Run a check in a child process that is not root."""
    if os.getuid():
        check()
        return
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        try:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
            os.chdir("/")
            tempfile.tempdir = "/tmp"
            check()
        except BaseException:
            sys.excepthook(*sys.exc_info())
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    assert status == 0, "the check failed: see its traceback in the output"


def test_an_original_that_cannot_be_had_again_is_an_error(tmp_path: Path) -> None:
    directory = tmp_path / "work"
    build(directory)
    workspace = Workspace(directory, lambda name: (directory / name).write_text("short"))
    workspace.snapshot()
    (directory / "input.txt").unlink()

    with pytest.raises(AdrError, match=r"input\.txt"):
        workspace.restore(workspace.changes())

    workspace = Workspace(directory, lambda name: None)
    workspace.snapshot()
    (directory / "program").unlink()
    with pytest.raises(FileNotFoundError):
        workspace.restore(workspace.changes())


def test_states_of_any_kind_are_kept_apart_where_names_are_shared() -> None:
    names = Names()
    one, other = Baseline(names), Baseline(names)
    file, link = Entry(0o100644, 5, -1, 1, 2**64 - 1), Entry(0o120777, target="file")
    ancient = Entry(0o100644, 5, -(2**70), 1, 1)

    one["file"], one["link"], one["ancient"] = file, link, ancient
    other["only"], other["link"] = Entry(0o40755), file
    one["link"], one["ancient"] = file, link

    assert dict(one) == {"file": file, "link": file, "ancient": link}
    assert dict(other) == {"only": Entry(0o40755), "link": file}
    assert (len(one), len(other), other.get("file"), other.get("none")) == (3, 2, None, None)
    assert list(other.folders()) == [("only", Entry(0o40755))]


class TestCachedContents:
    def test_added_files_and_directories_are_removed(self, tmp_path: Path) -> None:
        directory = tmp_path / "work"
        build(directory)
        before = describe(directory)

        cache = cache_contents(str(directory))
        (directory / "new").mkdir()
        (directory / "new/file").write_text("1")
        (directory / "shared/more").write_text("2")
        (directory / "shared/empty").rmdir()
        (directory / "link").unlink()
        (directory / "program").chmod(0o600)
        (directory / "shared").chmod(0o700)
        restore_contents(str(directory))

        assert cache == str(tmp_path / ".work.contents")
        assert describe(directory) == before
        assert stat.S_IMODE(os.stat(cache).st_mode) == 0o600

    def test_changed_and_removed_files_are_left_with_a_warning(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        directory = tmp_path / "work"
        build(directory)
        cache_contents(directory)
        (directory / "input.txt").write_text("changed")
        (directory / "program").unlink()
        (directory / "new").write_text("1")

        with caplog.at_level(logging.WARNING):
            restore_contents(directory)

        assert (directory / "input.txt").read_text() == "changed"
        assert not (directory / "program").exists()
        assert not (directory / "new").exists()
        warned = [record.getMessage() for record in caplog.records]
        assert [each.split()[0] for each in warned] == ["input.txt", "program"]

    def test_a_directory_that_is_gone_is_made_again(self, tmp_path: Path) -> None:
        directory = tmp_path / "work"
        build(directory)
        cache_contents(directory)
        (directory / "shared/closed").chmod(0o755)
        shutil.rmtree(directory)

        restore_contents(directory)

        made = [name for name, content in ORIGINALS.items() if not isinstance(content, bytes)]
        assert sorted(describe(directory)) == sorted([".", *made])

    def test_originals_are_put_back_where_they_can_be(self, tmp_path: Path) -> None:
        site = Site(tmp_path)
        cache = tmp_path / "elsewhere"

        assert cache_contents(site.directory, cache_path=cache) == str(cache)
        for _ in range(2):
            (site.directory / "input.txt").write_text("changed")
            (site.directory / ODD).unlink()
            restore_contents(site.directory, cache_path=cache, restore=site.put_back)
            assert describe(site.directory) == site.before

        # The cache knows what was put back: nothing is to be done again
        site.restored.clear()
        restore_contents(site.directory, cache_path=cache, restore=site.put_back)
        assert site.restored == []

    def test_bad_input_is_one_sentence(self, tmp_path: Path) -> None:
        directory = tmp_path / "work"
        directory.mkdir()
        foreign = (
            '{"schema": 99}',
            '{"schema": 1, "entries": {"a": ["wide", 0, 0, 0, 0, ""]}}',
            '{"schema": 1, "entries": []}',
        )

        with pytest.raises(UsageError, match="is not a directory"):
            cache_contents(tmp_path / "gone")
        with pytest.raises(UsageError, match="lies within"):
            cache_contents(directory, cache_path=directory / "cache")
        with pytest.raises(UsageError, match="call cache_contents first"):
            restore_contents(tmp_path)
        for text in foreign:
            (tmp_path / ".work.contents").write_text(text)
            with pytest.raises(UsageError, match="was not written by"):
                restore_contents(directory)


def test_a_workspace_unpacked_from_a_bundle_is_put_back_from_it(site: Site, tmp_path: Path) -> None:
    members = []
    for name, content in ORIGINALS.items():
        status = (site.directory / name).lstat()
        size, target = 0, ""
        if isinstance(content, bytes):
            size = len(content)
        elif isinstance(content, str):
            target = content
        members.append(Member(name, status.st_mode, status.st_mtime_ns, size, target))
    bundle, directory = tmp_path / "bundle.zip", tmp_path / "unpacked"
    write_bundle(site.directory, members, bundle, compress=True)
    unpack_bundle(bundle, directory)
    before = describe(directory)
    workspace = Workspace(directory, lambda name: restore_member(bundle, name, directory))
    workspace.snapshot()

    wreck = "echo 1 >> input.txt; chmod -R u+w shared; rm -r shared; touch new; chmod 700 program"
    for text in (wreck, 'chmod -R u+w . && rm -rf "$PWD"'):
        subprocess.run(["bash", "-ec", text], cwd=directory, check=True)
        workspace.restore(workspace.changes())

        assert describe(directory) == before
        assert workspace.changes() == Changes()
