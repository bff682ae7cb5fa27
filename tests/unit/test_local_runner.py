"""A local runner as a directory: what is made in it, and what is removed from it again."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

import adr
from adr.errors import AdrError, UsageError
from adr.runner import create_runner, is_local_runner, local_runners, open_runner, remove_local

#: Of the user, with names that are close to those of adr.
OTHERS = (
    "thesis.tex",
    "results/final.csv",
    "work/notes.txt",
    "published.jsonl",
    "workers/list.txt",
    "destroyed-plans/a.txt",
    "bundle-of-joy/photo.png",
)


def files_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_a_purge_leaves_the_files_of_the_user_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # given a runner in a folder that has come to hold other files as well
    runner = create_runner(local=True, directory=tmp_path / "r")
    runner.store.write("20261120-0912-x-1/000001/a/out.csv", b"1")
    for name in OTHERS:
        path = Path(runner.id, name)
        path.parent.mkdir(exist_ok=True)
        path.write_text("mine")
    # when
    with caplog.at_level(logging.WARNING, "adr"):
        adr.destroy(runner.id, purge=True)
    # then those are all that is left, and it is said
    assert files_in(Path(runner.id)) == sorted(OTHERS)
    assert not is_local_runner(runner.id)
    assert local_runners() == []
    assert runner.id in caplog.text


def test_a_purge_removes_a_folder_in_which_nothing_else_lies(tmp_path: Path) -> None:
    # given
    runner = create_runner(local=True, directory=tmp_path / "r")
    runner.ledger.send([])
    runner.store.write("_batches/b.seal", b"1")
    Path(runner.id, "workers", "killed.lock").touch()
    # when
    adr.destroy(runner.id, purge=True)
    # then
    assert list(tmp_path.iterdir()) == []


def test_a_purge_removes_all_that_a_run_has_kept(tmp_path: Path) -> None:
    # given
    (tmp_path / "a.txt").write_text("a")
    adr.run([tmp_path / "a.txt"], tmp_path / "out", "cp {} b.csv", root=tmp_path, slots=1)
    state = tmp_path / "out" / ".adr"
    (state / "work" / "adr-worker-killed").mkdir(parents=True)
    # when
    adr.destroy(str(state), purge=True)
    # then
    assert files_in(tmp_path / "out") == ["a/b.csv"]
    assert not state.exists()


def test_a_purge_says_what_it_could_not_remove(tmp_path: Path) -> None:
    # given something in the place of a file of adr, which no unlink removes
    runner = create_runner(local=True, directory=tmp_path / "r")
    runner.store.write("_batches/b.seal", b"1")
    stubborn = Path(runner.id, "ledger.db-journal")
    stubborn.mkdir()
    # when
    with pytest.raises(AdrError, match=r"ledger\.db-journal"):
        remove_local(runner.id)
    # then everything else is gone
    assert [path.name for path in Path(runner.id).iterdir()] == [stubborn.name]
    with pytest.raises(AdrError):
        open_runner(runner.id)


def test_an_empty_id_is_not_the_runner_in_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given
    monkeypatch.chdir(create_runner(local=True, directory=tmp_path / "r").id)
    # when
    with pytest.raises(UsageError, match="'' is no runner"):
        adr.destroy("", purge=True)
    # then
    assert is_local_runner(".")


def test_a_runner_that_cannot_be_listed_is_not_made(isolated_home: Path, tmp_path: Path) -> None:
    # given a user data folder in which nothing can be made
    data = isolated_home / ".local" / "share"
    data.parent.mkdir(parents=True)
    data.write_text("")
    # when
    with pytest.raises(UsageError, match=f"cannot note the runner in {data}"):
        adr.create(local=True, directory=tmp_path / "r")
    # then
    assert list(tmp_path.iterdir()) == []
