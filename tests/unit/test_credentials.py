"""Whether boto3 is asked for credentials at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from adr import config, credentials
from adr.credentials import may_have_credentials


@pytest.fixture(autouse=True)
def no_machine_of_ec2(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Let this machine, whatever it is, show no sign of EC2; returns where signs are looked for."""
    sign = tmp_path / "sys_vendor"
    monkeypatch.setattr(credentials, "_SIGNS_OF_EC2", ((str(sign), "amazon"),))
    monkeypatch.setattr(credentials, "_OF_BOTO", ("~/.aws", "~/.boto"))
    return sign


def test_where_nothing_speaks_of_aws_there_are_none() -> None:
    assert not may_have_credentials()


@pytest.mark.parametrize("name", ["AWS_PROFILE", "AWS_ACCESS_KEY_ID", "BOTO_CONFIG"])
def test_a_variable_may_tell_of_some(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "x")
    assert may_have_credentials()


@pytest.mark.parametrize("name", [".aws", ".boto"])
def test_a_file_of_boto_may_tell_of_some(isolated_home: Path, name: str) -> None:
    (isolated_home / name).mkdir()
    assert may_have_credentials()


def test_the_configuration_may_have_some() -> None:
    config.update_config("aws", "credentials", "access_key_id", "AKIA")
    assert may_have_credentials()


def test_a_machine_of_ec2_may_have_a_role(no_machine_of_ec2: Path) -> None:
    no_machine_of_ec2.write_text("Amazon EC2\n")
    assert may_have_credentials()


def test_a_machine_of_another_maker_has_none(no_machine_of_ec2: Path) -> None:
    no_machine_of_ec2.write_bytes(b"\xffQEMU\n")
    assert not may_have_credentials()
