"""``adr list`` shows what can be reached, whatever cannot."""

from __future__ import annotations

import json
from pathlib import Path

import pytest


@pytest.fixture
def local(shell, tmp_path):
    """Make a local runner; returns its folder."""
    shell.inside = True
    return shell("create", "--local", f"--dir={tmp_path / 'runner'}").out.strip()


def test_aws_out_of_reach_does_not_hide_local_runners(shell, local, monkeypatch):
    # given credentials, and nobody who answers
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "x")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    # when
    done = shell("list")
    # then
    assert done.lines == [f"* {local}  0 waiting, 0 running"]
    [sentence] = done.err.splitlines()
    assert sentence.startswith("adr: WARNING: the runners on AWS cannot be listed: ")
    assert "127.0.0.1:9" in sentence


def test_a_region_that_is_none_is_wrong_usage(shell, local, monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "x")

    assert "no AWS region" in shell("list", "--region=nowhere-1", status=2).err


def test_a_local_runner_of_a_newer_adr_does_not_hide_the_others(shell, local, tmp_path):
    # given
    other = shell("create", "--local", f"--dir={tmp_path / 'other'}").out.strip()
    Path(local, "runner.json").write_text(json.dumps({"schema": 99}))
    # when
    done = shell("list")
    # then
    assert done.lines == [f"* {other}  0 waiting, 0 running"]
    assert f"the runner in {local} cannot be listed" in done.err
    assert "upgrade adr" in done.err
