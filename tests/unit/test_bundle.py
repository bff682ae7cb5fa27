"""What goes into a bundle, and that it comes out again as it went in."""

from __future__ import annotations

import os
import random
import resource
import shutil
import socket
import stat
import struct
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import repeat
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adr.bundle import restore_member, unpack_bundle, unpacked_bytes, write_bundle
from adr.errors import AdrError, NotFound, UsageError
from adr.members import Choice, choose
from adr.zipwriter import PIECE_BYTES, ZipWriter

SEGMENTS = st.binary(min_size=1, max_size=6).filter(
    lambda raw: b"/" not in raw and b"\0" not in raw and raw.strip(b".") != b""
)


def tree(root: Path, *names: str) -> Path:
    """Write files, each with its own name as content; a name that ends in / is a folder."""
    root.mkdir(parents=True, exist_ok=True)
    for name in names:
        path = root / name
        if name.endswith("/"):
            path.mkdir(parents=True, exist_ok=True)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(name)
    return root


def chosen(root: Path, *inputs: str, **options) -> list[str]:
    return [member.name for member in choose(str(root), inputs, **options).files]


def write(root: Path, choice: Choice, target: Path, *, compress: bool = True) -> Path:
    write_bundle(root, choice.folders + choice.files, target, compress=compress)
    return target


def bundle(root: Path, target: Path, *, compress: bool = True) -> Path:
    return write(root, choose(str(root), ()), target, compress=compress)


def state(root: Path) -> dict[bytes, tuple]:
    """Return all that a bundle should keep of what lies in a folder, by name."""
    found: dict[bytes, tuple] = {}
    top = os.fsencode(root)
    for folder, folders, files in os.walk(top):
        for base in folders + files:
            path = os.path.join(folder, base)
            status = os.lstat(path)
            content: object = None
            if stat.S_ISLNK(status.st_mode):
                content = os.readlink(path)
            elif stat.S_ISREG(status.st_mode):
                with open(path, "rb") as file:
                    content = file.read()
            found[os.path.relpath(path, top)] = (status.st_mode, status.st_mtime_ns, content)
    return found


@contextmanager
def largest_file(size_bytes: int) -> Iterator[None]:
    """Let writing beyond a size fail, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextmanager
def ordinary_user() -> Iterator[None]:
    """Give up the rights of root, whom no permission bits stop."""
    if os.geteuid():
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def public_path():
    """Make a folder that an ordinary user owns."""
    with tempfile.TemporaryDirectory() as folder:
        if not os.geteuid():
            os.chown(folder, 65534, 65534)
        yield Path(folder)


class Watcher:
    """Remember the progress that was told."""

    def __init__(self) -> None:
        self.calls: list[tuple] = []

    def start(self, what, total, unit):
        self.calls.append(("start", total, unit))

    def advance(self, amount=1):
        self.calls.append(("advance", amount))

    def note(self, **counts):
        raise AssertionError("nothing to note")

    def finish(self):
        self.calls.append(("finish",))


class TestRules:
    def test_leave_out_version_control_caches_and_outputs(self, tmp_path):
        root = tree(
            tmp_path / "root",
            *(f"{name}/x" for name in (".git", "sub/.hg", ".svn", ".bzr", "CVS", "__pycache__")),
            *("submodule/.git", "a.log", "sub/b.nc", "c.pyc", "CVS.txt", "log", "x.nc.txt"),
        )
        choice = choose(str(root), ())
        assert [each.name for each in choice.files] == ["CVS.txt", "log", "x.nc.txt"]
        assert [each.name for each in choice.folders] == ["sub", "submodule"]
        assert len(choice.left_out) == 10
        assert choice.left_out_bytes == sum(map(len, choice.left_out))

    def test_of_gitignore_are_followed_in_every_folder(self, tmp_path):
        root = tree(
            tmp_path, "a.tmp", "keep.tmp", "old/x", "sub/a.tmp", "sub/b.dat", "sub/old/x", "c/b.dat"
        )
        (root / ".adrignore").write_text("# rules\n*.tmp\r\n!keep.tmp\n/old/\n")
        (root / "sub/.adrignore").write_text("/b.dat\n!a.tmp\n")
        assert chosen(root) == [
            ".adrignore",
            "c/b.dat",
            "keep.tmp",
            "sub/.adrignore",
            "sub/a.tmp",
            "sub/old/x",
        ]

    def test_of_the_command_line_are_the_strongest(self, tmp_path):
        root = tree(tmp_path, "a.nc", "b.nc", "c.dat", "d.dat", "build/x")
        (root / ".adrignore").write_text("!a.nc\nc.dat\nbuild/\n")
        assert chosen(root) == [".adrignore", "a.nc", "d.dat"]
        assert chosen(root, exclude=["a.nc", "!c.dat", "d.*", "!build/"]) == [
            ".adrignore",
            "build/x",
            "c.dat",
        ]

    def test_never_leave_out_an_input(self, tmp_path):
        names = ["a.nc", "old/b.txt", ".git/c", "out/d.txt"]
        root = tree(tmp_path, *names, "old/other.txt", "out/other.txt", "e.txt")
        (root / ".adrignore").write_text("old/\n")
        choice = choose(str(root), names, exclude=["*.txt"], avoid=[str(root / "out")])
        assert [each.name for each in choice.files] == sorted([".adrignore", *names])
        assert [each.name for each in choice.folders] == [".git", "old", "out"]
        assert choice.left_out == ("e.txt", "old/other.txt")

    def test_name_what_they_left_out_that_looks_like_an_input(self, tmp_path):
        root = tree(tmp_path, "a.nc", "b.nc", "x.log", "old/c.nc", "old/d.txt", ".git/e.nc")
        choice = choose(str(root), ["a.nc"], exclude=["old/"])
        assert choice.inputs_left_out == ("b.nc", "old/c.nc")

    def test_pass_over_folders_to_avoid(self, tmp_path):
        root = tree(tmp_path / "root", "a.txt", "results/x.txt", "deep/runner/db")
        (tmp_path / "alias").symlink_to(root / "deep")
        choice = choose(
            str(root),
            ["a.txt"],
            avoid=[str(root / "results"), str(tmp_path / "alias/runner"), "/does/not/exist"],
        )
        assert [each.name for each in choice.files] == ["a.txt"]
        assert [each.name for each in choice.folders] == ["deep"]
        assert choice.left_out == ()

    @pytest.mark.parametrize("avoided", ["root", "."])
    def test_refuse_a_root_within_a_folder_to_avoid(self, tmp_path, avoided):
        root = tree(tmp_path / "root", "a.txt")
        with pytest.raises(UsageError, match="which adr itself writes to"):
            choose(str(root), ["a.txt"], avoid=[str(tmp_path / avoided)])

    def test_that_are_broken_are_refused_with_their_place(self, tmp_path):
        (tree(tmp_path, "sub/a.txt") / "sub/.adrignore").write_text("ok\n!\n")
        with pytest.raises(UsageError, match=r"patterns in .+/sub/\.adrignore are broken.+'!'"):
            choose(str(tmp_path), ())

    def test_refuse_what_cannot_be_read(self, public_path):
        with ordinary_user():
            tree(public_path, "a.txt", "sub/b.txt")
            (public_path / "a.txt").chmod(0)
            with pytest.raises(UsageError, match=r"cannot read .+a\.txt: permission denied"):
                choose(str(public_path), ())
            assert chosen(public_path, exclude=["a.txt"]) == ["sub/b.txt"]
            (public_path / "sub").chmod(0)
            with pytest.raises(UsageError, match=r"cannot read .+sub: Permission denied"):
                choose(str(public_path), (), exclude=["a.txt"])
            (public_path / "sub").chmod(0o700)


class TestLinks:
    def targets(self, root: Path, *inputs: str, **options) -> dict[str, str]:
        return {
            each.name: each.target
            for each in choose(str(root), inputs, **options).files
            if stat.S_ISLNK(each.mode)
        }

    def test_that_stay_inside_are_kept(self, tmp_path):
        root = tree(tmp_path / "root", "data/x", "sub/y")
        (root / "to_file").symlink_to("./data/x")
        (root / "sub/to_folder").symlink_to("../data")
        (root / "sub/absolute").symlink_to(root / "data" / "x")
        (root / "sub/detour").symlink_to("../../root/data/x")
        (root / "broken").symlink_to("data/none")
        (root / "loop").symlink_to("loop")
        (root / "to_root").symlink_to(".")
        assert self.targets(root) == {
            "to_file": "./data/x",
            "sub/to_folder": "../data",
            "sub/absolute": "../data/x",
            "sub/detour": "../data/x",
            "broken": "data/none",
            "loop": "loop",
            "to_root": ".",
        }

    def test_that_lead_out_are_left_out_and_said(self, tmp_path):
        root = tree(tmp_path / "root", "sub/x")
        tree(tmp_path / "elsewhere", "y")
        (root / "absolute").symlink_to("/etc/hostname")
        (root / "above").symlink_to("../elsewhere")
        (root / "sub/over").symlink_to("../above/y")
        choice = choose(str(root), ())
        assert [each.name for each in choice.files] == ["sub/x"]
        assert choice.refused == (
            "above is a link that leads out of the root",
            "absolute is a link that leads out of the root",
            "sub/over is a link that leads out of the root",
        )

    def test_stay_inside_a_root_that_is_itself_reached_by_a_link(self, tmp_path):
        root = tree(tmp_path / "root", "x")
        (root / "link").symlink_to(root / "x")
        (tmp_path / "alias").symlink_to(root)
        assert self.targets(tmp_path / "alias") == {"link": "x"}

    def test_are_matched_by_rules_like_files(self, tmp_path):
        root = tree(tmp_path, "data/x")
        (root / "a.log").symlink_to("data/x")
        (root / "b").symlink_to("data")
        assert self.targets(root, exclude=["b/"]) == {"b": "data"}
        assert self.targets(root, exclude=["b"]) == {}

    def test_to_inputs_are_kept_with_what_they_point_to(self, tmp_path):
        root = tree(tmp_path, "store/x.txt", "store/y.txt")
        (root / "middle").symlink_to("store/x.txt")
        (root / "case.txt").symlink_to("middle")
        choice = choose(str(root), ["case.txt"], exclude=["store/", "middle"])
        files = {each.name: each.target for each in choice.files}
        assert files == {"case.txt": "store/x.txt", "store/x.txt": ""}
        assert choice.linked == {"case.txt": ("case.txt", "store/x.txt")}
        assert choice.left_out == ("middle", "store/y.txt")

    def test_to_folders_with_inputs_are_kept_with_the_inputs(self, tmp_path):
        root = tree(tmp_path, "store/v1/x.txt")
        (root / "current").symlink_to("store/v1")
        choice = choose(str(root), ["current/x.txt"], exclude=["current", "*.txt"])
        files = {each.name: each.target for each in choice.files}
        assert files == {"current": "store/v1", "store/v1/x.txt": ""}
        assert choice.linked == {"current/x.txt": ("store/v1/x.txt",)}

    def test_that_lead_out_give_their_content_where_they_are_inputs(self, tmp_path):
        root = tree(tmp_path / "root", "z")
        tree(tmp_path / "elsewhere", "x.txt", "other.txt")
        (root / "case.txt").symlink_to(tmp_path / "elsewhere/x.txt")
        (root / "far").symlink_to(tmp_path / "elsewhere")
        choice = choose(str(root), ["case.txt", "far/x.txt"])
        assert [each.name for each in choice.files] == ["case.txt", "far/x.txt", "z"]
        assert choice.refused == ("far is a link that leads out of the root",)
        unpack_bundle(write(root, choice, tmp_path / "b.zip"), tmp_path / "out")
        assert (tmp_path / "out/case.txt").read_text() == "x.txt"
        assert (tmp_path / "out/far/x.txt").read_text() == "x.txt"
        assert not (tmp_path / "out/case.txt").is_symlink()

    def test_and_pipes_and_sockets_do_not_hold_the_walk_up(self, tmp_path, monkeypatch):
        root = tree(tmp_path, "x")
        os.mkfifo(root / "pipe")
        monkeypatch.chdir(root)
        with socket.socket(socket.AF_UNIX) as server:
            server.bind("socket")
            choice = choose(str(root), ())
        assert [each.name for each in choice.files] == ["x"]
        assert choice.refused == (
            "pipe is neither a file nor a folder",
            "socket is neither a file nor a folder",
        )


class TestRoundTrip:
    @pytest.mark.parametrize("compress", [True, False])
    def test_keeps_modes_times_links_and_empty_folders(self, tmp_path, compress):
        root = tree(tmp_path / "root", "run.sh", "sub/deep/x.dat", "empty/", "old", "future")
        (root / "run.sh").chmod(0o750)
        (root / "sub/link").symlink_to("../run.sh")
        (root / "x.png").write_bytes(b"\0" * 5000)
        (root / "void").touch(0o600)
        os.utime(root / "old", ns=(0, -86_400_000_000_001))
        os.utime(root / "future", ns=(0, 5_000_000_000_123_456_789))
        os.utime(root / "run.sh", ns=(0, 1_700_000_000_123_456_789))
        (root / "sub/deep").chmod(0o555)
        before = state(root)
        unpack_bundle(bundle(root, tmp_path / "b.zip", compress=compress), tmp_path / "out")
        assert state(tmp_path / "out") == before

    @given(
        st.dictionaries(
            st.lists(SEGMENTS, min_size=1, max_size=3).map(b"/".join),
            st.tuples(
                st.binary(max_size=40),
                st.sampled_from([0o644, 0o755, 0o400, 0o666]),
                st.integers(-(2**40), 2**60),
            ),
            max_size=6,
        ),
        st.booleans(),
    )
    @settings(max_examples=60, deadline=None)
    def test_keeps_files_of_any_name_and_content(self, files, compress):
        with tempfile.TemporaryDirectory() as scratch:
            root = os.path.join(scratch, "root")
            os.mkdir(root)
            for name, (content, mode, mtime_ns) in files.items():
                if name.endswith((b".log", b".nc", b".pyc")) or b"__pycache__" in name:
                    continue
                path = os.path.join(os.fsencode(root), name)
                try:
                    os.makedirs(os.path.dirname(path), exist_ok=True)
                    with open(path, "xb") as file:
                        file.write(content)
                except (FileExistsError, NotADirectoryError, IsADirectoryError):
                    continue
                os.chmod(path, mode)
                os.utime(path, ns=(mtime_ns, mtime_ns))
            before = state(Path(root))
            made = bundle(Path(root), Path(scratch, "b.zip"), compress=compress)
            unpack_bundle(made, os.path.join(scratch, "out"))
            assert state(Path(scratch, "out")) == before

    def test_can_be_read_by_other_programs(self, tmp_path):
        root = tree(tmp_path / "root", "a.txt", "sub/b.txt")
        os.utime(root / "a.txt", (0, 0))
        with zipfile.ZipFile(bundle(root, tmp_path / "b.zip")) as archive:
            assert archive.testzip() is None
            assert archive.namelist() == ["sub/", "a.txt", "sub/b.txt"]
            assert archive.getinfo("a.txt").date_time == (1980, 1, 1, 0, 0, 0)
            assert archive.read("sub/b.txt") == b"sub/b.txt"

    def test_makes_the_same_bytes_again_and_says_how_many(self, tmp_path):
        root = tree(tmp_path / "root", "a.txt", "sub/b.txt")
        choice = choose(str(root), ())
        members = choice.folders + choice.files
        made = [write_bundle(root, members, tmp_path / name, compress=True) for name in ("1", "2")]
        assert made[0] == made[1]
        assert made[0].size_bytes == (tmp_path / "1").stat().st_size
        assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()
        assert unpacked_bytes(tmp_path / "1") == len("a.txt") + len("sub/b.txt")

    def test_deflates_only_what_shrinks(self, tmp_path):
        root = tree(tmp_path / "root")
        chance = random.Random(1)
        lines = b"".join(b"%d\t%d\n" % (n, chance.randrange(99)) for n in range(300_000))
        noise = chance.randbytes(3 << 20)
        contents = {
            "empty": b"",
            "short.txt": b"a line\n" * 20,
            "short.bin": noise[:200],
            "piece.txt": lines[: 1 << 20],
            "piece.bin": noise[: 1 << 20],
            "long.txt": lines,
            "long.bin": noise,
            "mixed.bin": lines[: 1 << 20] + noise,
        }
        for name, content in contents.items():
            (root / name).write_bytes(content)
        made = bundle(root, tmp_path / "b.zip")
        with zipfile.ZipFile(made) as archive:
            methods = {info.filename: info.compress_type for info in archive.infolist()}
            found = {name: archive.read(name) for name in contents}
        stored = {name for name, method in methods.items() if method == zipfile.ZIP_STORED}
        assert found == contents
        assert stored == {"empty", "short.bin", "piece.bin", "long.bin"}
        assert made.stat().st_size < 1.001 * 3 * len(noise) + 0.6 * 2 * len(lines)
        assert bundle(root, tmp_path / "c.zip", compress=False).stat().st_size > sum(
            map(len, contents.values())
        )

    def test_of_more_than_its_first_format_could_say_can_be_read(self, tmp_path):
        zeros = bytes(PIECE_BYTES)
        kept = {"mtime_s": 0, "attributes": 0o100644 << 16, "extra": b""}
        with open(tmp_path / "b.zip", "wb") as file:

            def write(data):
                # The large one takes no room on the disk.
                return file.seek(len(data), os.SEEK_CUR) if data is zeros else file.write(data)

            with ZipWriter(write, compress=False) as archive:
                for number in range(66_000):
                    archive.add(f"{number}", [], 0, **kept)
                archive.add("large", repeat(zeros, 4096), 4 << 30, **kept)
                archive.add("last", [b"content"], 7, **kept)

        with zipfile.ZipFile(tmp_path / "b.zip") as archive:
            assert len(archive.namelist()) == 66_002
            assert archive.getinfo("large").file_size == 4 << 30
            assert archive.open("large").read(5) == bytes(5)
            assert archive.read("last") == b"content"

    def test_tells_its_progress_in_bytes(self, tmp_path):
        root = tree(tmp_path / "root", "a.txt", "sub/b.txt")
        watcher = Watcher()
        choice = choose(str(root), ())
        write_bundle(root, choice.files, tmp_path / "b.zip", compress=True, progress=watcher)
        assert watcher.calls == [
            ("start", 14, "bytes"),
            ("advance", 5),
            ("advance", 9),
            ("finish",),
        ]

    def test_fills_an_empty_folder_and_keeps_its_mode(self, tmp_path):
        made = bundle(tree(tmp_path / "root", "a.txt"), tmp_path / "b.zip")
        (tmp_path / "out").mkdir(0o700)
        unpack_bundle(made, tmp_path / "out")
        assert (tmp_path / "out/a.txt").read_text() == "a.txt"
        assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o700
        with pytest.raises(AdrError, match="not empty"):
            unpack_bundle(made, tmp_path / "out")

    def test_of_a_big_file_takes_little_memory(self, tmp_path):
        root = tree(tmp_path / "root")
        with open(root / "big.dat", "wb") as file:
            file.truncate(200 << 20)
        script = (
            "import resource, sys\n"
            "from pathlib import Path\n"
            "from adr.batch import plan_batch\n"
            "from adr.bundle import unpack_bundle, write_bundle\n"
            "top = Path(sys.argv[1])\n"
            "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
            "plan = plan_batch([top / 'root/big.dat'], command='m').with_fingerprints()\n"
            "write_bundle(plan.root, plan.members, top / 'b.zip', compress=True)\n"
            "unpack_bundle(top / 'b.zip', top / 'out')\n"
            "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
        )
        grown_kib = int(subprocess.check_output([sys.executable, "-c", script, tmp_path]))
        assert grown_kib < 40 << 10
        assert (tmp_path / "out/big.dat").stat().st_size == 200 << 20
        shutil.rmtree(tmp_path / "out")


class TestTrouble:
    def test_with_a_file_that_vanished_or_changed_leaves_no_bundle(self, tmp_path):
        root = tree(tmp_path / "root", "a.txt", "b.txt")
        choice = choose(str(root), ())
        target = tmp_path / "b.zip"
        (root / "b.txt").write_text("longer than before")
        with pytest.raises(AdrError, match=r"b\.txt changed while the inputs were read"):
            write(root, choice, target)
        assert not target.exists()
        (root / "b.txt").unlink()
        with pytest.raises(AdrError, match=r"b\.txt vanished"):
            write(root, choice, target)
        os.mkfifo(root / "b.txt")
        with pytest.raises(AdrError, match=r"b\.txt changed"):
            write(root, choice, target)
        assert not target.exists()

    def test_with_a_file_that_became_unreadable_names_it(self, public_path):
        with ordinary_user():
            root = tree(public_path / "root", "a.txt")
            choice = choose(str(root), ())
            (root / "a.txt").chmod(0)
            with pytest.raises(UsageError, match=r"cannot read .+a\.txt: Permission denied"):
                write(root, choice, public_path / "b.zip")
            assert not (public_path / "b.zip").exists()

    def test_with_a_full_disk_leaves_nothing(self, tmp_path):
        root = tree(tmp_path / "root", "a.txt")
        (root / "z.dat").write_bytes(os.urandom(300_000))
        made = bundle(root, tmp_path / "b.zip")
        with largest_file(100_000):
            with pytest.raises(AdrError, match=r"cannot write the bundle .+c\.zip: File too large"):
                bundle(root, tmp_path / "c.zip")
            with pytest.raises(AdrError, match=r"b\.zip cannot be unpacked: File too large"):
                unpack_bundle(made, tmp_path / "out")
        assert sorted(each.name for each in tmp_path.iterdir()) == ["b.zip", "root"]

    def test_with_no_place_to_write_is_said(self, tmp_path):
        root = tree(tmp_path / "root", "a.txt")
        with pytest.raises(
            AdrError, match=r"cannot write the bundle .+: No such file or directory"
        ):
            bundle(root, tmp_path / "none/b.zip")


class TestUnsafe:
    """Bundles that adr did not write."""

    def make(self, path: Path, *entries: tuple[str, int, bytes]) -> Path:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, mode, content in entries:
                info = zipfile.ZipInfo(name)
                info.external_attr = mode << 16
                info.compress_type = zipfile.ZIP_DEFLATED
                archive.writestr(info, content)
        return path

    @pytest.mark.filterwarnings("ignore:Duplicate name")
    @pytest.mark.parametrize(
        ("entries", "reason"),
        [
            ([("/etc/x", stat.S_IFREG, b"")], "unsafe name, '/etc/x'"),
            ([("a/../../x", stat.S_IFREG, b"")], "unsafe name"),
            ([("..", stat.S_IFREG, b"")], "unsafe name"),
            ([("../x/", stat.S_IFDIR, b"")], "unsafe name"),
            ([("a//b", stat.S_IFREG, b"")], "unsafe name"),
            ([("./a", stat.S_IFREG, b"")], "unsafe name"),
            ([("d", stat.S_IFBLK, b"")], "device or socket, 'd'"),
            ([("d", stat.S_IFIFO, b"")], "device or socket"),
            ([("a", stat.S_IFREG, b"1"), ("a", stat.S_IFREG, b"2")], "'a' twice"),
            ([("l", stat.S_IFLNK, b"/etc/passwd")], "link 'l' leads out"),
            ([("l", stat.S_IFLNK, b"../x")], "link 'l' leads out"),
            ([("a/l", stat.S_IFLNK, b"../../x")], "link 'a/l' leads out"),
            (
                [("a/b/up", stat.S_IFLNK, b"../.."), ("l", stat.S_IFLNK, b"a/b/up/../x")],
                "link 'l' leads out",
            ),
            ([("l", stat.S_IFLNK, b"")], "link 'l' has no target"),
            ([("l", stat.S_IFLNK, b"x" * 5000)], "link 'l' has no target"),
            ([("l", stat.S_IFLNK, b"."), ("l/x", stat.S_IFREG, b"")], "'l/x' lies under"),
            ([("f", stat.S_IFREG, b""), ("f/x", stat.S_IFREG, b"")], "'f/x' lies under"),
        ],
    )
    def test_are_refused_whole(self, tmp_path, entries, reason):
        first = ("0-good", stat.S_IFREG | 0o644, b"good")
        path = self.make(tmp_path / "b.zip", first, *entries)
        with pytest.raises(AdrError, match=reason) as caught:
            unpack_bundle(path, tmp_path / "out")
        assert str(path) in str(caught.value)
        assert [each.name for each in tmp_path.iterdir()] == ["b.zip"]

    def test_by_the_name_in_the_extra_field_are_refused(self, tmp_path):
        path = tmp_path / "b.zip"
        with zipfile.ZipFile(path, "w") as archive:
            info = zipfile.ZipInfo("harmless")
            info.extra = struct.pack("<HHq", 0x6461, 12, 0) + b"../x"
            archive.writestr(info, b"")
        with pytest.raises(AdrError, match=r"unsafe name, '\.\./x'"):
            unpack_bundle(path, tmp_path / "out")

    def test_that_declare_more_than_they_could_hold_are_refused(self, tmp_path):
        path = self.make(tmp_path / "b.zip", ("a", stat.S_IFREG | 0o644, b"x" * 100))
        self.declare(path, 100, 10 << 20)
        for look in (unpacked_bytes, lambda each: unpack_bundle(each, tmp_path / "out")):
            with pytest.raises(AdrError, match="declares 10,485,760 bytes, more than"):
                look(path)
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize("declared", [50, 150])
    def test_with_content_of_another_size_than_declared_are_refused(self, tmp_path, declared):
        path = self.make(tmp_path / "b.zip", ("a", stat.S_IFREG | 0o644, b"x" * 100))
        self.declare(path, 100, declared)
        with pytest.raises(AdrError, match="is broken"):
            unpack_bundle(path, tmp_path / "out")
        assert [each.name for each in tmp_path.iterdir()] == ["b.zip"]

    def declare(self, path: Path, true_bytes: int, declared_bytes: int) -> None:
        """Change the size of the only entry in the directory of the zip."""
        body = path.read_bytes()
        start = body.index(b"PK\x01\x02") + 24
        assert body[start : start + 4] == struct.pack("<I", true_bytes)
        path.write_bytes(body[:start] + struct.pack("<I", declared_bytes) + body[start + 4 :])

    @pytest.mark.parametrize("keep", [0, 10, 200, -30])
    def test_that_are_cut_off_are_refused(self, tmp_path, keep):
        root = tree(tmp_path / "root")
        (root / "a").write_bytes(os.urandom(1000))
        path = bundle(root, tmp_path / "b.zip")
        path.write_bytes(path.read_bytes()[:keep])
        for act in (
            unpacked_bytes,
            lambda each: unpack_bundle(each, tmp_path / "out"),
            lambda each: restore_member(each, "a", tmp_path),
        ):
            with pytest.raises(AdrError, match=r"b\.zip is broken"):
                act(path)
        assert not (tmp_path / "out").exists()

    def test_with_damaged_content_are_refused(self, tmp_path):
        root = tree(tmp_path / "root")
        (root / "a").write_bytes(os.urandom(1000))
        path = bundle(root, tmp_path / "b.zip")
        body = bytearray(path.read_bytes())
        body[500] ^= 1
        path.write_bytes(body)
        with pytest.raises(AdrError, match=r"b\.zip is broken"):
            unpack_bundle(path, tmp_path / "out")
        assert sorted(each.name for each in tmp_path.iterdir()) == ["b.zip", "root"]

    def test_that_are_missing_are_said(self, tmp_path):
        with pytest.raises(AdrError, match=r"b\.zip cannot be unpacked: No such file"):
            unpack_bundle(tmp_path / "b.zip", tmp_path / "out")


class TestRestore:
    @pytest.fixture
    def root(self, tmp_path):
        root = tree(tmp_path / "root", "a.txt", "sub/b.txt", "sub/deep/c.txt", "empty/")
        (root / "a.txt").chmod(0o640)
        (root / "link").symlink_to("sub/b.txt")
        (root / os.fsdecode(b"\xff")).write_text("odd")
        return root

    @pytest.fixture
    def work(self, root, tmp_path):
        unpack_bundle(bundle(root, tmp_path / "b.zip"), tmp_path / "work")
        return tmp_path / "work"

    def restore_all(self, root: Path, work: Path) -> None:
        """Restore everything that differs, folders last as their times change until then."""
        before = state(root)
        for folders in (False, True):
            for name, about in sorted(before.items(), reverse=True):
                if stat.S_ISDIR(about[0]) == folders and state(work).get(name) != about:
                    restore_member(work.parent / "b.zip", os.fsdecode(name), work)

    @pytest.mark.parametrize(
        "spoil",
        [
            lambda work: (work / "a.txt").write_text("changed"),
            lambda work: (work / "a.txt").unlink(),
            lambda work: (work / "a.txt").chmod(0o777),
            lambda work: ((work / "a.txt").unlink(), tree(work / "a.txt", "x/y")),
            lambda work: ((work / "a.txt").unlink(), (work / "a.txt").symlink_to("/etc/hostname")),
            lambda work: ((work / "link").unlink(), (work / "link").symlink_to("a.txt")),
            lambda work: (work / "empty").rmdir(),
            lambda work: (work / "empty").chmod(0o500),
            lambda work: ((work / "empty").rmdir(), (work / "empty").write_text("file")),
            lambda work: shutil.rmtree(work / "sub"),
            lambda work: (shutil.rmtree(work / "sub"), (work / "sub").write_text("file")),
            lambda work: (work / os.fsdecode(b"\xff")).write_text("changed"),
        ],
        ids=[
            *("changed", "deleted", "mode", "file-to-folder", "file-to-link", "link", "rmdir"),
            *("folder-mode", "folder-to-file", "rmtree", "tree-to-file", "odd-name"),
        ],
    )
    def test_puts_the_original_back_whatever_is_there(self, root, work, spoil):
        spoil(work)
        self.restore_all(root, work)
        assert state(work) == state(root)

    def test_does_not_write_through_a_link_to_elsewhere(self, root, work, tmp_path):
        shutil.rmtree(work / "sub")
        tree(tmp_path / "elsewhere", "b.txt")
        (work / "sub").symlink_to(tmp_path / "elsewhere")
        (tmp_path / "elsewhere/b.txt").write_text("precious")
        self.restore_all(root, work)
        assert state(work) == state(root)
        assert (tmp_path / "elsewhere/b.txt").read_text() == "precious"

    def test_leaves_a_hard_link_elsewhere_alone(self, work, tmp_path):
        os.link(work / "a.txt", tmp_path / "other")
        (work / "a.txt").write_text("changed")
        restore_member(tmp_path / "b.zip", "a.txt", work)
        assert (tmp_path / "other").read_text() == "changed"
        assert (work / "a.txt").read_text() == "a.txt"

    def test_works_in_a_folder_that_is_protected_from_writing(self, public_path):
        with ordinary_user():
            root = tree(public_path / "root", "sub/a.txt")
            (root / "sub").chmod(0o555)
            unpack_bundle(bundle(root, public_path / "b.zip"), public_path / "work")
            (public_path / "work/sub/a.txt").write_text("changed")
            restore_member(public_path / "b.zip", "sub/a.txt", public_path / "work")
            restore_member(public_path / "b.zip", "sub", public_path / "work")
            assert state(public_path / "work") == state(root)
            for name in ("root", "work"):
                (public_path / name / "sub").chmod(0o755)

    def test_reads_a_bundle_again_that_was_replaced(self, root, work, tmp_path):
        restore_member(tmp_path / "b.zip", "a.txt", work)
        (root / "a.txt").write_text("a second bundle")
        bundle(root, tmp_path / "b.zip")
        restore_member(tmp_path / "b.zip", "a.txt", work)
        assert (work / "a.txt").read_text() == "a second bundle"

    def test_says_that_there_is_no_such_member(self, work, tmp_path):
        with pytest.raises(NotFound, match=r"b\.zip has no none"):
            restore_member(tmp_path / "b.zip", "none", work)
