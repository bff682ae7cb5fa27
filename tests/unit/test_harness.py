"""The helpers of the other tests find what they look for, and keep the real user out."""

import os
import subprocess
import sys
import urllib.request
import uuid
from pathlib import Path

import boto3
import pytest

from tests.servers import Server, require


def test_a_test_sees_nothing_of_the_real_user(isolated_home, tmp_path):
    assert Path.home() == isolated_home
    assert not any(isolated_home.iterdir())
    assert not any(tmp_path.iterdir())
    assert os.environ["ADR_CONFIG"].startswith(str(isolated_home))
    assert boto3.Session().get_credentials() is None


def test_both_emulators_keep_objects(aws_env, moto_url):
    for url in (aws_env, moto_url):
        s3 = boto3.client("s3", endpoint_url=url)
        name = str(uuid.uuid4())
        place = {"LocationConstraint": "eu-central-1"}
        s3.create_bucket(Bucket=name, CreateBucketConfiguration=place)
        s3.put_object(Bucket=name, Key="k", Body=b"x")
        assert s3.get_object(Bucket=name, Key="k")["Body"].read() == b"x"


def test_a_server_ends_when_it_is_stopped(tmp_path):
    server = Server(
        "files",
        lambda port: [sys.executable, "-m", "http.server", "--bind", "127.0.0.1", str(port)],
        "/",
        tmp_path,
    )
    assert urllib.request.urlopen(server.url).status == 200

    server.stop()

    assert server.process.poll() is not None


def test_a_server_that_cannot_start_says_why(tmp_path):
    command = [sys.executable, "-c", "raise SystemExit('the reason')"]

    with pytest.raises(RuntimeError, match="the reason"):
        Server("broken", lambda port: command, "/", tmp_path)


def test_processes_are_found_by_a_variable_whatever_their_session(descendants_with_env, wait_for):
    value = str(uuid.uuid4())
    process = subprocess.Popen(
        ["sleep", "60"], env={**os.environ, "ADR_TEST": value}, start_new_session=True
    )
    wait_for(lambda: descendants_with_env("ADR_TEST", value) == [process.pid])
    assert descendants_with_env("ADR_TEST", value[:-1]) == []

    process.kill()
    process.wait()

    assert descendants_with_env("ADR_TEST", value) == []


def test_waiting_gives_up_with_an_error(wait_for):
    assert wait_for(lambda: 7) == 7
    with pytest.raises(AssertionError, match="within"):
        wait_for(lambda: False, timeout=0.01)


def test_what_is_missing_skips_on_a_laptop_and_fails_in_ci(monkeypatch):
    require(True, "present")

    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match="absent"):
        require(False, "absent")

    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="absent"):
        require(False, "absent")
