"""The rights of another user, lent to one thread of a worker."""

from __future__ import annotations

import os
import pwd
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from adr.errors import AdrError, UsageError
from adr.worker.jobuser import JobUser
from adr.worker.workspace import Workspace
from tests.servers import require
from tests.unit.workers import Site

NAME = "nobody"


@pytest.fixture
def user() -> JobUser:
    require(os.geteuid() == 0, "only root can act for another user")
    return JobUser.find(NAME)


@pytest.fixture
def folder(user: JobUser) -> Iterator[Path]:
    """Return a folder of that user's that he can get to, unlike those of pytest."""
    with tempfile.TemporaryDirectory(dir="/tmp") as above:
        os.chmod(above, 0o711)
        made = Path(above, "his")
        made.mkdir()
        user.give(made)
        yield made


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path)
    yield made
    made.clean_up()


@pytest.mark.parametrize("name", ["", "no-such-user", "x\0y"])
def test_an_unknown_user_is_refused(site: Site, name: str) -> None:
    worker = site.worker(job_user=name)

    with pytest.raises(UsageError, match=r"there is no user .* useradd"):
        worker.run()

    assert list(site.workingdir.iterdir()) == []


def test_root_and_the_user_of_the_worker_itself_are_refused(monkeypatch) -> None:
    with pytest.raises(UsageError, match="who is root"):
        JobUser.find("root")
    own = pwd.getpwnam(NAME)
    monkeypatch.setattr(os, "geteuid", lambda: own.pw_uid)
    with pytest.raises(UsageError, match="the user of the worker itself"):
        JobUser.find(NAME)


def test_missing_privileges_are_named() -> None:
    if os.geteuid():
        with pytest.raises(UsageError, match=r"lacks CAP_CHOWN, .*CAP_SETUID"):
            JobUser.find(NAME)
        return
    with JobUser.find(NAME).rights(), pytest.raises(UsageError, match=r"lacks CAP_CHOWN, "):
        JobUser.find(NAME)


def test_a_working_directory_out_of_that_users_reach_is_refused(user: JobUser, site: Site) -> None:
    site.workingdir.chmod(0o700)
    worker = site.worker(job_user=NAME)

    with pytest.raises(UsageError, match=r"cannot get there .* chmod o\+x"):
        worker.run()

    assert list(site.workingdir.iterdir()) == []


def test_a_thread_has_the_users_rights_and_no_more_for_as_long_as_it_needs(
    user: JobUser, folder: Path
) -> None:
    secret = folder.parent / "secret"
    secret.write_text("secret")
    secret.chmod(0o600)
    inside, done = threading.Event(), threading.Event()
    seen: list[str] = []

    def work() -> None:
        with user.rights():
            (folder / "made").write_text("his")
            for step in (secret.read_text, lambda: os.chown(folder / "made", 0, 0)):
                try:
                    step()
                except PermissionError as error:
                    seen.append(error.strerror)
            inside.set()
            done.wait(30)
        seen.append(secret.read_text())

    thread = threading.Thread(target=work)
    thread.start()
    assert inside.wait(30)
    # Meanwhile the other threads have their own.
    assert secret.read_text() == "secret"
    done.set()
    thread.join()

    assert seen == ["Permission denied", "Operation not permitted", "secret"]
    made = (folder / "made").stat()
    assert (made.st_uid, made.st_gid) == (user.uid, user.gid)


def test_rights_end_with_an_error_as_well(user: JobUser, folder: Path) -> None:
    with pytest.raises(KeyError, match="it"), user.rights():
        raise KeyError("it")

    os.chown(folder, 0, 0)
    assert folder.stat().st_uid == 0


@pytest.mark.parametrize("kind", ["file of another", "link", "pipe"])
def test_only_a_regular_file_of_that_user_becomes_the_workers(
    user: JobUser, folder: Path, kind: str
) -> None:
    with user.rights():
        (folder / "result").write_text("result")
        make: dict[str, Callable[[Path], None]] = {
            "link": lambda path: path.symlink_to("result"),
            "pipe": os.mkfifo,
        }
        if kind in make:
            make[kind](folder / "odd")
    if kind not in make:
        (folder / "odd").write_text("mine")
    owner = (folder / "odd").lstat().st_uid

    user.take(folder / "result")
    with pytest.raises(AdrError, match="no regular file, or belongs to another user"):
        user.take(folder / "odd")

    assert (folder / "result").stat().st_uid == 0
    assert (folder / "odd").lstat().st_uid == owner


def test_a_link_put_there_at_the_last_moment_leads_nowhere(user: JobUser, folder: Path) -> None:
    """Another job of that user may still run when a workspace is put back."""
    # given a workspace, and a folder of the worker's that looks like one in it
    top = folder / "workspace"
    victim = folder.parent / "victim"
    victim.mkdir()
    (victim / "file").write_text("of the worker")

    def put_back(name: str) -> None:
        (top / "inner").rename(top / "away")
        (top / "inner").symlink_to(victim)
        (top / name).unlink(missing_ok=True)
        (top / name).write_text("original")

    with user.rights():
        (top / "inner").mkdir(parents=True)
        (top / "inner" / "file").write_text("original")
    workspace = Workspace(top, put_back, user.rights)
    workspace.snapshot()

    # when a job has changed an input, and its folder becomes a link before that is undone
    with user.rights():
        (top / "inner" / "file").write_text("changed by a job")
    changes = workspace.changes()
    assert changes.changed == ["inner/file"]
    with pytest.raises(PermissionError):
        workspace.restore(changes)

    # then the worker has changed nothing that the job could not have changed
    assert [path.read_text() for path in victim.iterdir()] == ["of the worker"]
