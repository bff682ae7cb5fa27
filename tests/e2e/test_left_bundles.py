"""Bundles of ``adr queue`` that was killed: they are found again, and do not stay for ever."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from adr import destroy, queue
from adr.runner import create_runner, open_runner


@pytest.fixture
def inputs(shell):
    shell.write({"a.txt": "a", "b.txt": "b"})
    return [str(shell.folder / name) for name in ("a.txt", "b.txt")]


def zips(folder):
    return sorted(path.name for path in Path(folder).rglob("*.zip"))


def half_way(shell, runner, inputs, wait_for):
    """Begin to queue, and stop where the bundle is being made: at an input that never ends."""
    never = shell.folder / "never"
    os.mkfifo(never)
    script = (
        "import sys, adr, adr.queueing\n"
        "whole = adr.queueing.write_bundle\n"
        "def held(*words, **more):\n"
        "    whole(*words, **more)\n"
        "    open(sys.argv[1])\n"
        "adr.queueing.write_bundle = held\n"
        "adr.queue(sys.argv[2], sys.argv[3:], command='true')\n"
    )
    shell.start = ("-c", script)
    process = shell.begin(never, runner, *inputs)
    wait_for(lambda: any(path.stat().st_size for path in Path(runner).rglob("*.zip")))
    never.unlink()
    return process


@pytest.mark.parametrize("by", ["queue", "destroy"])
def test_a_bundle_of_a_killed_process_is_removed(shell, inputs, wait_for, by):
    # given
    runner = create_runner(local=True).id
    process = half_way(shell, runner, inputs, wait_for)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert len(zips(runner)) == 1
    # when
    left = [queue(runner, inputs, command="true") + ".zip"] if by == "queue" else []
    if by == "destroy":
        destroy(runner)
    # then
    assert zips(runner) == left


def test_a_bundle_that_is_being_made_is_left_alone(shell, inputs, wait_for):
    # given
    runner = create_runner(local=True).id
    process = half_way(shell, runner, inputs, wait_for)
    [theirs] = zips(runner)
    # when
    batch = queue(runner, inputs, command="true")
    # then
    assert zips(runner) == sorted([theirs, f"{batch}.zip"])
    process.kill()
    process.wait()


@pytest.mark.parametrize("kind", ["aws", "local"])
def test_destroying_removes_bundles_without_a_manifest(request, kind):
    # given what stays of queueing that was killed after its first upload
    if kind == "aws":
        request.getfixturevalue("aws_env")
    runner = create_runner(local=kind == "local")
    runner.store.write("20261120-0912-x-123456.zip", b"inputs")
    runner.store.write("20261120-0912-x-654321/000001/a/out.zip", b"a result")
    # when
    destroy(runner.id)
    # then
    keys = {entry.key for entry in open_runner(runner.id).store.list("2")}
    assert keys == {"20261120-0912-x-654321/000001/a/out.zip"}
