"""Jobs are found by the very name they have, whatever it would mean as a glob."""

from __future__ import annotations

import pytest

from adr import download, logs, process, status
from adr import queue as queue_files
from adr.runner import create_runner


@pytest.fixture
def runner(tmp_path):
    """Make a runner with three jobs that are done."""
    made = create_runner(local=True).id
    names = ("a[1]", "a1", "b")
    for name in names:
        (tmp_path / f"{name}.txt").write_text(name)
    paths = [tmp_path / f"{name}.txt" for name in names]
    queue_files(made, paths, command="echo {/.}; cat {} > out")
    process(made, tmp_path / "work", stop_on_empty=True, slots=1)
    return made


@pytest.mark.parametrize(
    ("glob", "found"),
    [("a[1]", ["a[1]"]), ("a*", ["a1", "a[1]"]), ("[b]", ["b"]), ("3", ["b"])],
)
def test_a_name_goes_before_a_pattern(runner, tmp_path, glob, found):
    download(runner, tmp_path / "to", job=glob)

    assert sorted(path.name for path in (tmp_path / "to").glob("*/*")) == found


def test_the_full_name_goes_before_a_pattern_too(runner, tmp_path):
    batch = status(runner).batches[0].batch

    download(runner, tmp_path / "to", job=f"{batch}/a[1]")

    assert [path.name for path in (tmp_path / "to").glob("*/*")] == ["a[1]"]
    assert b"".join(logs(runner, "a[1]")) == b"a[1]\n"
