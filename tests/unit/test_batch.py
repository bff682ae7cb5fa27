"""From files to a batch: roots, labels, commands, plans, fingerprints and manifests."""

from __future__ import annotations

import gzip
import json
import os
import re
import subprocess
import unicodedata
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adr.batch import BatchPlan, find_root, new_batch_id, plan_batch
from adr.errors import AdrError, UsageError
from adr.joblimits import JobLimits
from adr.keys import manifest_key
from adr.manifest import manifest_bytes, read_manifest
from adr.models import Job
from adr.templates import expand, labels

SEGMENTS = st.binary(min_size=1, max_size=8).filter(
    lambda raw: b"/" not in raw and b"\0" not in raw and raw not in (b".", b"..")
)
PATHS = st.lists(SEGMENTS, min_size=1, max_size=3).map(lambda parts: os.fsdecode(b"/".join(parts)))
ABOUT: Mapping[str, Any] = {
    "root": "/data/case",
    "created": 12.5,
    "bundle_bytes": 10,
    "unpacked_bytes": 20,
}


def tree(root: Path, *names: str) -> list[str]:
    """Write files, each with its own name as content, and return their paths."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return [str(root / name) for name in names]


def names(plan: BatchPlan) -> list[str]:
    return [member.name for member in plan.files]


class TestFindRoot:
    def test_of_one_file_is_its_folder(self):
        assert find_root(["/data/case/a.txt"]) == "/data/case"

    @pytest.mark.parametrize(
        ("files", "root"),
        [
            (["/d/a.txt", "/d/b.txt"], "/d"),
            (["/d/a.txt", "/d/sub/deep/b.txt"], "/d"),
            (["/d/x/a.txt", "/d/y/b.txt"], "/d"),
            (["/d/case", "/d/case1.txt"], "/d"),
            (["/d/case/a.txt", "/d/case1/a.txt"], "/d"),
            (["/d/run/a.txt", "/d/run/a.txt.d/b"], "/d/run"),
            (["/d/a.txt", "/d/a.txt"], "/d"),
            (["/d/./x/../a.txt", "//d/b.txt"], "/d"),
            (["/one/a.txt", "/two/a.txt"], "/"),
        ],
    )
    def test_is_the_deepest_common_folder(self, files, root):
        assert find_root(files) == root

    def test_takes_relative_paths_from_the_current_folder(self, tmp_path, monkeypatch):
        (tmp_path / "here").mkdir()
        monkeypatch.chdir(tmp_path / "here")
        assert find_root(["a.txt"]) == str(tmp_path / "here")
        assert find_root(["a.txt", "../b.txt"]) == str(tmp_path)
        assert find_root(["a.txt", str(tmp_path / "here" / "b.txt")]) == str(tmp_path / "here")

    def test_does_not_resolve_links(self, tmp_path):
        (tmp_path / "real").mkdir()
        (tmp_path / "link").symlink_to("real")
        assert find_root([tmp_path / "link" / "a.txt"]) == str(tmp_path / "link")

    def test_refuses_nothing(self):
        with pytest.raises(UsageError, match="no input files"):
            find_root([])

    @given(st.lists(PATHS, min_size=1, max_size=5))
    def test_holds_every_file_and_could_not_be_deeper(self, paths):
        files = ["/" + path for path in paths]
        root = find_root(files).rstrip("/") + "/"
        assert all(file.startswith(root) for file in files)
        folders = {file[len(root) :].partition("/")[::2] for file in files}
        heads = {head for head, rest in folders}
        assert len(heads) > 1 or any(not rest for _, rest in folders)


class TestLabels:
    @pytest.mark.parametrize(
        ("paths", "expected"),
        [
            (["a.txt", "sub/b.tar.gz", "c"], ["a", "sub/b.tar", "c"]),
            (["a.txt", "a.csv", "b.txt"], ["a.txt", "a.csv", "b"]),
            (["A.txt", "a.csv"], ["A.txt", "a.csv"]),
            (["A.txt", "a.TXT", "b.txt"], ["1", "2", "b"]),
            (["a.txt", "a/b.txt", "a/c.txt"], ["a.txt", "a/b", "a/c"]),
            (["x/a.txt", "X/A/b.txt"], ["x/a.txt", "X/A/b"]),
            (["A", "a/b.txt"], ["1", "a/b"]),
            ([".adrignore", ".ADR/x.txt", "b/.adr/x.txt"], ["1", "2", "b/.adr/x"]),
            ([".hidden", "x..y.txt", "new\nline.txt", "\udcff.txt"], [".hidden", "2", "3", "4"]),
        ],
    )
    def test_are_the_shortest_that_do_not_clash(self, paths, expected):
        assert labels(paths) == expected

    def test_that_fall_back_on_a_number_push_others_from_it(self):
        assert labels([".adr", "1.txt"]) == ["1", "1.txt"]
        assert labels([".adr", "1"]) == ["1", "2"]
        assert labels([".adr", "1/a.txt"]) == ["1", "2"]
        assert labels(["3/a.txt", "A.x", "a.X"]) == ["1", "2", "3"]

    def test_take_accents_written_in_two_ways_as_equal(self):
        composed, combined = "\u00e9.txt", "e\u0301.csv"
        assert labels([composed, combined]) == [composed, combined]

    def test_of_a_chain_of_clashing_numbers_are_found_soon(self):
        paths = [".adr", *(str(number) for number in range(1, 30_000))]
        assert labels(paths) == [str(number) for number in range(1, 30_001)]

    @given(
        st.lists(
            st.text("aA.1/", min_size=1, max_size=6).filter(
                lambda text: {"", ".", ".."}.isdisjoint(text.split("/"))
            )
            | st.integers(1, 9).map(str)
            | PATHS
            | st.just(".adr/x"),
            unique=True,
            max_size=12,
        )
    )
    @settings(max_examples=300)
    def test_can_all_be_folders_side_by_side(self, paths):
        found = [unicodedata.normalize("NFC", label.casefold()) for label in labels(paths)]
        assert len(set(found)) == len(paths)
        for label in found:
            assert not any(other.startswith(label + "/") for other in found)
            assert not label.startswith((".adr", "/"))
            assert ".." not in label
            assert label.isprintable()
            assert {"", "."}.isdisjoint(label.split("/"))


class TestExpand:
    @pytest.mark.parametrize(
        ("template", "command"),
        [
            ("run {}", "run dir/my.case.txt"),
            ("run {.}", "run dir/my.case"),
            ("run {/}", "run my.case.txt"),
            ("run {//}", "run dir"),
            ("run {/.}", "run my.case"),
            ("run {#}", "run 7"),
            ("cp {} out_{#}_{/}", "cp dir/my.case.txt out_7_my.case.txt"),
            ("run", "run dir/my.case.txt"),
            ("awk '{print $1}' ${HOME}/{a,b} {}", "awk '{print $1}' ${HOME}/{a,b} dir/my.case.txt"),
            ("awk '{print}'", "awk '{print}' dir/my.case.txt"),
        ],
    )
    def test_fills_in_the_placeholders_and_leaves_other_braces(self, template, command):
        assert expand(template, "dir/my.case.txt", 7) == command

    def test_says_dot_for_the_folder_of_a_file_in_the_root(self):
        assert expand("ls {//}", "a.txt", 1) == "ls ."

    def test_does_not_expand_what_a_file_name_brings_in(self):
        assert expand("run {} {#}", "{}{#}.txt", 2) == "run '{}{#}.txt' 2"

    def test_quotes_for_the_shell(self):
        assert expand("run {}", "a b;$(rm).txt", 1) == "run 'a b;$(rm).txt'"

    def test_keeps_a_leading_dash_from_becoming_an_option(self):
        assert expand("run {} {/.}", "-n.txt", 1) == "run ./-n.txt ./-n"
        assert expand("run", "-n.txt", 1) == "run ./-n.txt"
        assert expand("run >out/{/} --in={} log{/}", "-n", 1) == "run >out/-n --in=./-n log-n"

    @given(PATHS, st.sampled_from(["{}", "x{}", "{.}", "{/}", "{//}", "{/.}"]))
    @settings(max_examples=40, deadline=None)
    def test_gives_bash_exactly_the_bytes_of_the_name(self, path, placeholder):
        raw = os.fsencode(path)
        base = os.path.basename(raw)
        expected = {
            "{}": raw,
            "x{}": b"x" + raw,
            "{.}": os.path.splitext(raw)[0],
            "{/}": base,
            "{//}": os.path.dirname(raw) or b".",
            "{/.}": os.path.splitext(base)[0],
        }[placeholder]
        command = expand(f"printf '%s\\0' {placeholder}", path, 1)
        output = subprocess.run(["bash", "-c", command], capture_output=True, check=True).stdout
        assert output in (expected + b"\0", b"./" + expected + b"\0")
        assert not output.startswith(b"-")


class TestPlan:
    def test_makes_one_job_per_file_in_the_order_given(self, tmp_path):
        files = tree(tmp_path, "b.txt", "sub/a.txt", "wind.dat")[:2]
        plan = plan_batch(
            files,
            command="model {}",
            preprocessing="module load model",
            store_patterns=[r"\.csv$"],
            env={"B": "2", "A": "1"},
            limits=JobLimits(60, 3, (75,), 2),
        )
        assert plan.root == tmp_path
        assert plan.jobs == (
            Job(
                batch="",
                index=1,
                count=2,
                label="b",
                command="model b.txt",
                input="b.txt",
                preprocessing="module load model",
                store=(r"\.csv$",),
                env=(("A", "1"), ("B", "2")),
                timeout_s=60,
                attempts=3,
                retry_on=(75,),
                crash_limit=2,
            ),
            replace(
                plan.jobs[0],
                index=2,
                label="sub/a",
                command="model sub/a.txt",
                input="sub/a.txt",
            ),
        )
        assert names(plan) == ["b.txt", "sub/a.txt", "wind.dat"]
        assert plan.other_files == 1
        assert plan.size_bytes == sum(map(len, ("b.txt", "sub/a.txt", "wind.dat")))
        assert plan.too_large is None

    def test_queues_a_file_that_is_named_twice_once(self, tmp_path, monkeypatch):
        tree(tmp_path, "a.txt", "b.txt")
        monkeypatch.chdir(tmp_path)
        again = ["./a.txt", str(tmp_path / "a.txt"), f"/{tmp_path}/a.txt"]
        plan = plan_batch(["a.txt", *again, "b.txt"], command="m")
        assert [job.input for job in plan.jobs] == ["a.txt", "b.txt"]
        assert plan.duplicates == 3

    def test_takes_a_given_root(self, tmp_path):
        files = tree(tmp_path, "cases/a.txt", "shared/wind.dat")[:1]
        plan = plan_batch(files, command="m {}", root=tmp_path)
        assert plan.jobs[0].command == "m cases/a.txt"
        assert names(plan) == ["cases/a.txt", "shared/wind.dat"]

    def test_gives_all_jobs_a_batch(self, tmp_path):
        plan = plan_batch(tree(tmp_path, "a.txt", "b.txt"), command="m").with_batch("x-1")
        assert [job.name for job in plan.jobs] == ["x-1/a", "x-1/b"]

    def test_can_be_cut_down_to_some_jobs_that_stay_what_they_are(self, tmp_path):
        files = tree(tmp_path, "a.txt", "a.csv", "b.txt", "wind.dat")
        plan = plan_batch(files[:3], command="m {#} {}").with_fingerprints()
        cut = plan.only([2])
        assert cut.jobs == plan.jobs[1:2]
        assert (cut.jobs[0].index, cut.jobs[0].count, cut.jobs[0].label) == (2, 3, "a.csv")
        assert names(cut) == ["a.csv", "wind.dat"]
        assert cut.with_fingerprints().jobs == cut.jobs
        assert cut.other_files == 1

    def test_keeps_what_two_jobs_share_when_one_is_cut(self, tmp_path):
        files = tree(tmp_path, "real.txt", "b.txt")
        (tmp_path / "link.txt").symlink_to("real.txt")
        plan = plan_batch([*files, tmp_path / "link.txt"], command="m")
        assert names(plan.only([1])) == ["real.txt"]
        assert names(plan.only([2])) == ["b.txt"]
        assert names(plan.only([3])) == ["link.txt", "real.txt"]

    def test_says_that_a_root_is_too_large(self, tmp_path):
        files = tree(tmp_path, "a.txt")
        with open(tmp_path / "huge.bin", "wb") as file:
            file.truncate((1 << 30) + 1)
        plan = plan_batch(files, command="m")
        assert plan.too_large == f"the root {tmp_path} has 1.0 GiB to bundle"

    def test_says_that_a_root_has_too_many_other_files(self, tmp_path):
        files = tree(tmp_path, "a.txt")
        for number in range(10_000):
            (tmp_path / f"{number}.dat").touch()
        assert plan_batch(files, command="m").too_large is None
        (tmp_path / "one.more").touch()
        plan = plan_batch(files, command="m")
        assert plan.too_large == f"the root {tmp_path} has 10,001 files beside the queued ones"
        queued = plan_batch(sorted(tmp_path.iterdir()), command="m")
        assert queued.too_large is None


class TestBadInput:
    @pytest.mark.parametrize(
        ("options", "sentence"),
        [
            ({"files": []}, "no input files"),
            ({"files": ["missing.txt"]}, "no such file: missing.txt"),
            ({"files": ["a.txt/b"]}, "no such file: a.txt/b"),
            ({"files": ["a\0b"]}, "no such file"),
            ({"files": ["folder"]}, "folder is a folder, not an input file"),
            ({"files": ["/dev/null"]}, "/dev/null is no regular file"),
            ({"files": ["a.txt", "/etc/hostname"]}, "no folder in common but /"),
            ({"root": "folder"}, "a.txt lies outside the root"),
            ({"root": "a.txt"}, "the root a.txt is no folder"),
            ({"command": None}, "no command"),
            ({"command": "  "}, "no command"),
            ({"store_patterns": ["ok", "(x"]}, r"'\(x' is no regular expression: .+unterminated"),
            ({"exclude": ["!"]}, "exclude patterns are broken.*'!'"),
            ({"env": {"1A": "x"}}, "'1A' cannot name an environment variable"),
            ({"env": {"A": "x\0"}}, "variable A cannot hold a NUL"),
        ],
    )
    def test_is_refused_in_one_sentence(self, options, sentence, tmp_path, monkeypatch):
        tree(tmp_path, "a.txt", "folder/b.txt")
        monkeypatch.chdir(tmp_path)
        with pytest.raises(UsageError, match=sentence) as caught:
            plan_batch(**{"files": ["a.txt"], "command": "m", **options})
        assert "\n" not in str(caught.value)


class TestFingerprints:
    @pytest.fixture
    def files(self, tmp_path):
        tree(tmp_path, "wind.dat", "sub/run.sh")
        (tmp_path / "ways.dat").symlink_to("wind.dat")
        return tree(tmp_path, "a.txt", "b.txt")

    def fingerprints(self, files, **options):
        plan = plan_batch(files, **{"command": "m {}", **options}).with_fingerprints()
        return {job.input: job.fingerprint for job in plan.jobs}

    def test_stay_while_nothing_that_counts_changes(self, files, tmp_path):
        before = self.fingerprints(files)
        os.utime(tmp_path / "wind.dat", (1, 1))
        (tmp_path / "wind.dat").chmod(0o600)
        after = self.fingerprints(files, limits=JobLimits(5, 2, (1,), 1), avoid=[tmp_path / "none"])
        assert after == before
        assert len(set(before.values())) == 2

    @pytest.mark.parametrize(
        "options",
        [
            {"command": "m -v {}"},
            {"preprocessing": "true"},
            {"postprocessing": "true"},
            {"store_patterns": ["x"]},
            {"env": {"A": "1"}},
        ],
    )
    def test_of_all_jobs_change_with_the_options(self, files, options):
        before, after = self.fingerprints(files), self.fingerprints(files, **options)
        assert all(before[name] != after[name] for name in before)

    def test_of_one_job_change_with_its_own_input(self, files):
        before = self.fingerprints(files)
        Path(files[0]).write_text("changed")
        after = self.fingerprints(files)
        assert before["a.txt"] != after["a.txt"]
        assert before["b.txt"] == after["b.txt"]

    def test_of_the_others_stay_when_a_case_is_added(self, files, tmp_path):
        before = self.fingerprints(files)
        after = self.fingerprints([*tree(tmp_path, "0.txt"), *files])
        assert {name: after[name] for name in before} == before

    @pytest.mark.parametrize(
        "change",
        [
            lambda root: (root / "wind.dat").write_text("changed"),
            lambda root: (root / "wind.dat").rename(root / "WIND.dat"),
            lambda root: (root / "sub/run.sh").chmod(0o755),
            lambda root: (root / "new.dat").touch(),
            lambda root: ((root / "ways.dat").unlink(), (root / "ways.dat").symlink_to("a.txt")),
        ],
        ids=["content", "name", "executable", "new", "link"],
    )
    def test_of_all_jobs_change_with_a_shared_file(self, files, tmp_path, change):
        before = self.fingerprints(files)
        change(tmp_path)
        after = self.fingerprints(files)
        assert all(before[name] != after[name] for name in before)

    def test_follow_the_link_that_is_an_input(self, files, tmp_path):
        tree(tmp_path, "base/v1")
        (tmp_path / "c.txt").symlink_to("base/v1")
        files.append(str(tmp_path / "c.txt"))
        before = self.fingerprints(files)
        (tmp_path / "base/v1").write_text("changed")
        after = self.fingerprints(files)
        assert [name for name in before if before[name] != after[name]] == ["c.txt"]

    def test_are_refused_for_a_file_that_changed_since(self, files):
        plan = plan_batch(files, command="m")
        Path(files[1]).write_text("changed meanwhile")
        with pytest.raises(AdrError, match=r"b\.txt changed while the inputs were read"):
            plan.with_fingerprints()
        Path(files[1]).unlink()
        with pytest.raises(AdrError, match=r"b\.txt vanished"):
            plan.with_fingerprints()


class TestBatchId:
    def test_says_when_and_what(self):
        found = new_batch_id("/data/Nickling 1995", now=1_795_165_920.0)
        assert re.fullmatch(r"20261120-0912-nickling-1995-[0-9a-f]{6}", found)

    def test_differs_each_time(self):
        assert len({new_batch_id("/x", now=0) for _ in range(50)}) == 50

    @given(SEGMENTS)
    def test_is_plain_whatever_the_folder_is_called(self, raw):
        found = new_batch_id("/data/" + os.fsdecode(raw) * 9, now=0)
        assert re.fullmatch(r"19700101-0000-([a-z0-9_.-]{1,40}-)?[0-9a-f]{6}", found)
        assert ".." not in found

    def test_needs_no_folder_name(self):
        assert re.fullmatch(r"19700101-0000-[0-9a-f]{6}", new_batch_id("/", now=0))


class TestManifest:
    @given(PATHS)
    def test_comes_back_whole(self, path):
        job = Job(
            batch="x-1", index=1, count=2, label="1", command=expand("m", path, 1), input=path
        )
        jobs = (job, replace(job, index=2, label="2", env=(("A", "b"),), store=("x|y",)))
        manifest = read_manifest(manifest_bytes(jobs, **ABOUT), manifest_key("x-1"))
        assert tuple(manifest.jobs()) == jobs
        assert (manifest.batch, manifest.created, manifest.root) == ("x-1", 12.5, "case")
        assert (manifest.bundle_bytes, manifest.unpacked_bytes) == (10, 20)

    def test_is_gzip_with_a_line_for_each_job(self, tmp_path):
        plan = plan_batch(tree(tmp_path, "a.txt", "b.txt"), command="m").with_batch("x-1")
        body = manifest_bytes(plan.jobs, **ABOUT)
        header, *lines = gzip.decompress(body).splitlines()
        assert json.loads(header)["count"] == 2
        assert [json.loads(line)["input"] for line in lines] == ["a.txt", "b.txt"]
        assert body == manifest_bytes(plan.jobs, **ABOUT)

    def test_of_many_jobs_is_small(self):
        jobs = [
            Job("x-1", k, 20_000, f"case{k}", f"model case{k}.txt", f"case{k}.txt", "source env")
            for k in range(1, 20_001)
        ]
        assert len(manifest_bytes(jobs, **ABOUT)) < 20 * len(jobs)

    def test_that_is_broken_or_too_new_is_refused(self, tmp_path):
        jobs = plan_batch(tree(tmp_path, "a.txt", "b.txt"), command="m").with_batch("x-1").jobs
        body = manifest_bytes(jobs, **ABOUT)
        lines = gzip.decompress(body).splitlines(keepends=True)
        for broken in (b"", body[:-9], gzip.compress(b""), gzip.compress(b"[]"), b"plain text"):
            with pytest.raises(AdrError, match=r"broken|not adr"):
                read_manifest(broken, manifest_key("x-1"))
        with pytest.raises(AdrError, match="jobs are missing"):
            read_manifest(gzip.compress(b"".join(lines[:-1])), manifest_key("x-1"))
        newer = json.dumps({**json.loads(lines[0]), "schema": 99}).encode()
        with pytest.raises(AdrError, match="upgrade adr"):
            read_manifest(gzip.compress(newer + b"\n"), manifest_key("x-1"))
