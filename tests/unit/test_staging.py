"""Results are taken out of a workspace as they are, whatever a job did to their permissions."""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

from adr.worker.staging import stage
from adr.worker.workspace import Workspace
from tests.unit.test_workspace import as_ordinary_user


def test_files_that_their_owner_may_not_read_are_results_of_an_ordinary_user() -> None:
    def check() -> None:
        with tempfile.TemporaryDirectory() as place:
            directory, staging = Path(place, "work"), Path(place, "staging")
            directory.mkdir()
            (directory / "input").write_text("before\n")
            workspace = Workspace(directory, lambda name: None)
            workspace.snapshot()
            text = (
                "echo 1 > new; ln new twin; ln -s new link; echo 2 > away; mkdir inner;"
                "echo 3 > inner/new; chmod 0 inner/new inner away new; echo after > input;"
                "chmod 0 input"
            )
            subprocess.run(["bash", "-ec", text], cwd=directory, check=True)

            files = stage(directory, staging, workspace.changes(), ["new", "twin", "link", "in"])

            assert {name: path.read_text() for path, name in files} == {
                "new": "1\n",
                "twin": "1\n",
                "link": "1\n",
                "inner/new": "3\n",
                "input": "after\n",
            }
            assert {path.stat().st_nlink for path, _ in files} == {1}
            assert sorted(staging.iterdir()) == sorted(path for path, _ in files)

    as_ordinary_user(check)


def test_a_link_and_what_it_leads_to_are_both_results(tmp_path: Path) -> None:
    directory, staging = tmp_path / "work", tmp_path / "staging"
    directory.mkdir()
    workspace = Workspace(directory, lambda name: None)
    workspace.snapshot()
    (directory / "a").write_text("content")
    (directory / "latest").symlink_to("a")

    files = stage(directory, staging, workspace.changes(), [])

    assert {name: path.read_text() for path, name in files} == {"a": "content", "latest": "content"}
