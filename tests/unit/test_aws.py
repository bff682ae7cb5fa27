"""How adr finds credentials, regions and runners on AWS, and how it words what goes wrong."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
import time
import uuid
from pathlib import Path

import boto3
import pytest
from botocore import exceptions as core

from adr import config
from adr.access import Lent, config_text, process_json
from adr.aws import (
    DEFAULT_REGION,
    Connection,
    error_code,
    is_denied,
    is_uncertain,
    session,
    translated,
)
from adr.errors import (
    AdrError,
    Conflict,
    Denied,
    NotFound,
    RunnerGone,
    ServiceError,
    Unavailable,
    UsageError,
)
from adr.stores.s3 import S3Store
from tests.proxy import Proxy


@pytest.fixture
def name() -> str:
    return str(uuid.uuid4())


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")


def make_runner(name: str, region: str) -> None:
    place = {"LocationConstraint": region}
    boto3.client("s3", region).create_bucket(Bucket=name, CreateBucketConfiguration=place)
    boto3.client("sqs", region).create_queue(QueueName=name)


def make_runner_with_keys(name: str) -> None:
    """Make a runner with keys of its own, whatever the environment says."""
    mine = boto3.Session("MINE", "secret", region_name="eu-central-1")
    place = {"LocationConstraint": "eu-central-1"}
    mine.client("s3").create_bucket(Bucket=name, CreateBucketConfiguration=place)
    mine.client("sqs").create_queue(QueueName=name)


def keys_of(made: boto3.Session) -> tuple[str, str] | None:
    found = made.get_credentials()
    return (found.access_key, found.secret_key) if found else None


class TestSession:
    def test_nothing_known_is_the_default_region_without_credentials(self) -> None:
        made = session()

        assert made.region_name == DEFAULT_REGION == "eu-central-1"
        assert keys_of(made) is None

    def test_the_configuration_is_asked_where_boto3_finds_nothing(self) -> None:
        config.update_config("aws", "credentials", "access_key_id", "OURS")
        config.update_config("aws", "credentials", "secret_access_key", "our%secret")
        config.update_config("aws", "configuration", "region", "eu-west-2")

        made = session()

        assert made.region_name == "eu-west-2"
        assert keys_of(made) == ("OURS", "our%secret")

    def test_what_boto3_finds_wins_over_the_configuration(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        config.update_config("aws", "credentials", "access_key_id", "OURS")
        config.update_config("aws", "credentials", "secret_access_key", "secret")
        config.update_config("aws", "configuration", "region", "eu-west-2")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "THEIRS")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-2")

        made = session()

        assert made.region_name == "us-east-2"
        assert keys_of(made) == ("THEIRS", "secret")
        assert session("sa-east-1").region_name == "sa-east-1"

    def test_a_profile_gives_region_and_credentials(
        self, monkeypatch: pytest.MonkeyPatch, isolated_home: Path
    ) -> None:
        (isolated_home / ".aws").mkdir()
        (isolated_home / ".aws" / "config").write_text(
            "[profile work]\nregion = eu-north-1\n"
            "aws_access_key_id = PROFILE\naws_secret_access_key = s\n"
        )
        monkeypatch.setenv("AWS_PROFILE", "work")

        made = session()

        assert made.region_name == "eu-north-1"
        assert keys_of(made) == ("PROFILE", "s")

    def test_a_program_that_knows_the_credentials_is_run_once(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        (tmp_path / "keys").write_text(process_json(Lent("key", "secret")))
        program = tmp_path / "program"
        program.write_text(f"#!/bin/sh\necho >> {tmp_path}/runs; cat {tmp_path}/keys\n")
        program.chmod(0o755)
        (tmp_path / "config").write_text(config_text(str(program), "eu-west-3"))
        monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))

        made = Connection("runner")

        assert made.s3.meta.region_name == "eu-west-3"
        assert made.credentials.get_frozen_credentials().access_key == "key"
        assert (tmp_path / "runs").read_text() == "\n"

    def test_an_unknown_profile_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("AWS_PROFILE", "nowhere")

        with pytest.raises(UsageError, match=r"nowhere.*AWS_PROFILE"):
            session()

    def test_a_broken_aws_configuration_is_named(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        (tmp_path / "broken").write_text("region eu-central-1\n")
        monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "broken"))

        with pytest.raises(UsageError, match=str(tmp_path / "broken")):
            session()


class TestConnection:
    def test_making_one_opens_nothing(self) -> None:
        code = (
            "import sys; sys.addaudithook(lambda event, _: event == 'socket.connect'"
            " and sys.exit(event)); from adr.aws import Connection;"
            "c = Connection('x'); assert c.owner is None; c.region; c.s3; c.sqs"
        )

        done = subprocess.run([sys.executable, "-c", code], stderr=subprocess.PIPE, check=False)

        assert done.returncode == 0, done.stderr

    def test_the_queue_is_asked_for_once_and_tells_the_owner(self, proxy: Proxy, name: str) -> None:
        make_runner(name, "eu-central-1")
        proxy.reset()
        connection = Connection(name)
        assert connection.owner is None

        urls = {connection.queue_url for _ in range(3)}

        assert [url.rpartition("/")[2] for url in urls] == [name]
        assert proxy.counts == {"sqs.GetQueueUrl": 1}
        assert connection.owner == "000000000000"

    def test_threads_share_one_client_and_one_call(self, proxy: Proxy, name: str) -> None:
        make_runner(name, "eu-central-1")
        proxy.reset()
        connection = Connection(name)
        start = threading.Barrier(8)
        seen: list[tuple[int, str]] = []

        def use() -> None:
            start.wait()
            seen.append((id(connection.s3), connection.queue_url))

        threads = [threading.Thread(target=use) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

        assert len(seen) == 8
        assert len(set(seen)) == 1
        assert proxy.counts == {"sqs.GetQueueUrl": 1}

    @pytest.mark.parametrize("endpoint", ["proxy", "moto_env"])
    def test_a_runner_is_found_where_its_bucket_is(
        self, request: pytest.FixtureRequest, name: str, endpoint: str
    ) -> None:
        request.getfixturevalue(endpoint)
        make_runner(name, "ap-southeast-2")
        connection = Connection(name, "eu-central-1")

        assert connection.queue_url.endswith(name)
        assert connection.region == "ap-southeast-2"
        assert connection.s3.meta.region_name == "ap-southeast-2"
        assert connection.sqs.meta.region_name == "ap-southeast-2"
        connection.s3.put_object(Bucket=name, Key="key", Body=b"")

    @pytest.mark.parametrize("endpoint", ["proxy", "moto_env"])
    def test_a_runner_that_is_nowhere_is_gone(
        self, request: pytest.FixtureRequest, name: str, endpoint: str
    ) -> None:
        request.getfixturevalue(endpoint)

        with pytest.raises(RunnerGone, match=f"no runner {name}: adr list"):
            _ = Connection(name).queue_url

    @pytest.mark.parametrize("region", ["eu-central-1", "us-west-2"])
    @pytest.mark.parametrize("endpoint", ["proxy", "moto_env"])
    def test_a_bucket_without_a_queue_is_what_is_left_of_a_runner(
        self, request: pytest.FixtureRequest, name: str, endpoint: str, region: str
    ) -> None:
        request.getfixturevalue(endpoint)
        make_runner(name, region)
        sqs = boto3.client("sqs", region)
        sqs.delete_queue(QueueUrl=sqs.get_queue_url(QueueName=name)["QueueUrl"])

        with pytest.raises(RunnerGone, match=f"{name} has been destroyed, only its results"):
            _ = Connection(name).queue_url

    def test_the_owner_is_named_in_every_call_on_the_bucket_once_known(
        self, proxy: Proxy, name: str
    ) -> None:
        make_runner(name, "eu-central-1")
        owners: list[str | None] = []
        proxy.before(
            lambda call: call.name.startswith("s3."),
            lambda call: owners.append(call.lower.get("x-amz-expected-bucket-owner")),
        )
        connection = Connection(name)

        connection.s3.put_object(Bucket=name, Key="key", Body=b"")
        _ = connection.queue_url
        connection.s3.put_object(Bucket=name, Key="key", Body=b"")
        connection.s3.list_objects_v2(Bucket=name)
        connection.s3.delete_objects(Bucket=name, Delete={"Objects": [{"Key": "key"}]})
        connection.s3.list_buckets()

        assert owners == [None, "000000000000", "000000000000", "000000000000", None]

    def test_a_store_asks_for_the_owner_once_and_names_it_in_every_call(
        self, proxy: Proxy, name: str
    ) -> None:
        make_runner(name, "eu-central-1")
        owners: list[str | None] = []
        proxy.before(
            lambda call: call.name.startswith("s3."),
            lambda call: owners.append(call.lower.get("x-amz-expected-bucket-owner")),
        )
        store = S3Store(Connection(name))

        store.write("key", b"")
        store.read("key")
        list(store.list(""))
        store.delete(["key"])

        assert owners == ["000000000000"] * 4
        assert proxy.count("sqs.GetQueueUrl") == 1

    def test_a_store_works_where_nobody_tells_the_owner(self, proxy: Proxy, name: str) -> None:
        make_runner(name, "eu-central-1")
        proxy.fail("sqs.GetQueueUrl", 403, "AccessDenied")
        store = S3Store(Connection(name))

        store.write("key", b"content")

        assert store.read("key").body == b"content"
        assert proxy.count("sqs.GetQueueUrl") == 1

    def test_a_bucket_of_somebody_else_is_not_written_to(self, proxy: Proxy, name: str) -> None:
        make_runner(name, "eu-central-1")
        connection = Connection(name)
        _ = connection.queue_url
        connection._queue_url = f"https://sqs.eu-central-1.amazonaws.com/999999999999/{name}"

        with pytest.raises(ServiceError, match="denies PutObject"), translated("write", "key"):
            connection.s3.put_object(Bucket=name, Key="key", Body=b"")

    @pytest.mark.parametrize("given", [("s3",), ("sqs",), ("s3", "sqs")])
    def test_resources_of_the_caller_are_used_and_completed(
        self, aws_env: str, name: str, given: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        make_runner(name, "eu-west-1")
        other = boto3.Session("MINE", "secret", region_name="eu-west-1")
        resources = {service: other.resource(service) for service in given}
        monkeypatch.delenv("AWS_ACCESS_KEY_ID")
        monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")

        connection = Connection.from_resources(name, **resources)

        for service, resource in resources.items():
            assert getattr(connection, service) is resource.meta.client
        assert connection.region == "eu-west-1"
        assert connection.queue_url.endswith(name)
        connection.s3.put_object(Bucket=name, Key="key", Body=b"")

    def test_a_bucket_of_the_caller_gets_no_owner_of_ours(self, proxy: Proxy, name: str) -> None:
        make_runner(name, "eu-central-1")
        s3 = boto3.resource("s3")
        s3.create_bucket(
            Bucket=f"{name}-mine",
            CreateBucketConfiguration={"LocationConstraint": "eu-central-1"},
        )
        connection = Connection.from_resources(name, s3=s3)
        _ = connection.queue_url
        owners: list[str | None] = []
        proxy.before(
            "s3.PutObject",
            lambda call: owners.append(call.lower.get("x-amz-expected-bucket-owner")),
        )

        s3.meta.client.put_object(Bucket=f"{name}-mine", Key="key", Body=b"")

        assert owners == [None]


class TestWrongInput:
    def test_no_credentials_says_what_to_do(
        self, aws_env: str, name: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("AWS_ACCESS_KEY_ID")
        monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")

        with pytest.raises(ServiceError, match=r"no AWS credentials: run adr config.*AWS_PROFILE"):
            _ = Connection(name).queue_url

    def test_half_of_the_credentials_says_which_is_missing(
        self, aws_env: str, name: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")

        with pytest.raises(ServiceError, match=r"incomplete.*(?i:secret_access_key)"):
            _ = Connection(name).queue_url

    @pytest.mark.usefixtures("impatient")
    def test_an_endpoint_that_does_not_answer_is_named(self, proxy: Proxy, name: str) -> None:
        proxy.down()

        with pytest.raises(Unavailable, match=f"{proxy.url}.*AWS_ENDPOINT_URL"):
            _ = Connection(name).queue_url

    @pytest.mark.parametrize("region", ["mars-1", "eu_central_1", "x y", ""])
    def test_what_cannot_be_a_region_is_named(
        self, aws_env: str, name: str, region: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("AWS_ENDPOINT_URL")
        if not region:
            assert Connection(name, region).region == "eu-central-1"
            return

        with pytest.raises(UsageError, match=f"{region}.*such as eu-central-1"):
            _ = Connection(name, region).queue_url

    @pytest.mark.parametrize(
        ("variable", "value"), [("AWS_ENDPOINT_URL", "127.0.0.1"), ("AWS_MAX_ATTEMPTS", "many")]
    )
    def test_a_setting_that_cannot_be_used_is_named(
        self, aws_env: str, name: str, variable: str, value: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv(variable, value)

        with pytest.raises(UsageError, match=f"{value}.*{variable}"):
            _ = Connection(name).queue_url


class TestCredentialsThatEnd:
    """A client that runs, with keys that a command prints, as on hosts that adr has set up."""

    @pytest.fixture
    def keys(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
        keys = tmp_path / "keys.json"
        config = tmp_path / "aws.conf"
        config.write_text(config_text(f"cat {keys}", "eu-central-1"))
        monkeypatch.delenv("AWS_ACCESS_KEY_ID")
        monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
        monkeypatch.setenv("AWS_CONFIG_FILE", str(config))
        return keys

    @staticmethod
    def write(path: Path, name: str, end_in_s: float) -> None:
        path.write_text(process_json(Lent(name, "secret", "token", time.time() + end_in_s)))

    def test_it_says_that_they_have_ended_and_goes_on_with_new_ones(
        self, proxy: Proxy, name: str, keys: Path
    ) -> None:
        make_runner_with_keys(name)
        signed = []
        proxy.before("s3.PutObject", lambda call: signed.append(call.lower["authorization"]))
        # given keys that are about to end, and a client that has used them
        self.write(keys, "FIRST", 300)
        store = S3Store(Connection(name))
        store.write("key", b"1")
        # when they have ended
        self.write(keys, "FIRST", -1)
        for _ in range(2):
            with pytest.raises(
                Unavailable, match=r"^cannot write key .* have ended: .*adr prepare --renew"
            ) as raised:
                store.write("key", b"2")
            assert not is_uncertain(raised.value)
        # or cannot be read at all
        keys.rename(keys.with_suffix(".away"))
        with pytest.raises(Unavailable, match=r"No such file.*adr prepare --renew"):
            store.write("key", b"2")
        # then nothing is sent, and the same client takes up new ones
        self.write(keys, "SECOND", 3600)
        store.write("key", b"3")
        assert store.read("key").body == b"3"
        assert [re.search("Credential=([A-Z]+)/", each)[1] for each in signed] == [
            "FIRST",
            "SECOND",
        ]

    @pytest.mark.parametrize("size", [9 << 20, 9])
    def test_files_are_no_exception(
        self, proxy: Proxy, name: str, keys: Path, tmp_path: Path, size: int
    ) -> None:
        make_runner_with_keys(name)
        self.write(keys, "FIRST", 300)
        store = S3Store(Connection(name))
        file = tmp_path / "file"
        file.write_bytes(b"1")
        for key in ("first", "second"):
            store.upload(file, key)
        file.write_bytes(bytes(size))
        self.write(keys, "FIRST", -1)

        with pytest.raises(Unavailable, match="have ended"):
            store.upload(file, "file")

        self.write(keys, "SECOND", 3600)
        store.upload(file, "file")
        assert [entry.size_bytes for entry in store.list("file")] == [size]

    def test_other_errors_of_that_kind_pass(self) -> None:
        with pytest.raises(RuntimeError, match="another"), translated("read", "the card"):
            raise RuntimeError("another")


class TestTranslation:
    @pytest.mark.parametrize(
        ("code", "status", "kind", "words"),
        [
            ("NoSuchKey", 404, NotFound, "does not exist"),
            ("404", 404, NotFound, "does not exist"),
            ("NoSuchBucket", 404, RunnerGone, "runner is gone"),
            ("QueueDoesNotExist", 400, RunnerGone, "runner is gone"),
            ("AWS.SimpleQueueService.NonExistentQueue", 400, RunnerGone, "runner is gone"),
            ("PreconditionFailed", 412, Conflict, "changed meanwhile"),
            ("ConditionalRequestConflict", 409, Conflict, "changed meanwhile"),
            ("AccessDenied", 403, Denied, "denies PutObject .*Said by AWS"),
            ("403", 403, Denied, "denies PutObject"),
            ("ExpiredToken", 400, Unavailable, "have ended: log in again.*adr prepare --renew"),
            ("InvalidAccessKeyId", 403, ServiceError, "not accept the credentials.*adr config"),
            ("SignatureDoesNotMatch", 403, ServiceError, "not accept the credentials"),
            ("RequestTimeTooSkewed", 403, ServiceError, "the clock of this machine"),
            ("SlowDown", 503, Unavailable, "SlowDown .Said by AWS"),
            ("InternalError", 500, Unavailable, "InternalError .Said by AWS"),
            ("MalformedXML", 400, ServiceError, "MalformedXML .Said by AWS"),
        ],
    )
    def test_what_aws_answers_becomes_one_sentence(
        self, code: str, status: int, kind: type[AdrError], words: str
    ) -> None:
        answer = core.ClientError(
            {
                "Error": {"Code": code, "Message": "Said by AWS."},
                "ResponseMetadata": {"HTTPStatusCode": status},
            },
            "PutObject",
        )

        sentence = rf"^cannot write the card: .*{words}"
        with pytest.raises(AdrError, match=sentence) as raised, translated("write", "the card"):
            raise answer

        assert type(raised.value) is kind
        assert raised.value.__cause__ is answer
        assert error_code(answer) == code
        assert is_denied(raised.value) == ("denies" in words)
        assert "\n" not in str(raised.value)

    @pytest.mark.parametrize(
        ("error", "kind", "words"),
        [
            (core.NoCredentialsError(), ServiceError, "run adr config"),
            (core.ConnectTimeoutError(endpoint_url="u"), Unavailable, "check the network"),
            (core.ReadTimeoutError(endpoint_url="u"), Unavailable, "check the network"),
            (core.ConnectionClosedError(endpoint_url="u"), Unavailable, "check the network"),
            (core.SSLError(endpoint_url="u", error="e"), Unavailable, "check the network"),
            (core.IncompleteReadError(actual_bytes=1, expected_bytes=2), Unavailable, "1 read"),
            (core.UnauthorizedSSOTokenError(), Unavailable, "log in again"),
            (core.CredentialRetrievalError(provider="p", error_msg="e"), Unavailable, "log in"),
            (core.ParamValidationError(report="bad\nname"), UsageError, "bad name"),
            (core.InvalidRegionError(region_name="x y"), UsageError, "this is no region"),
        ],
    )
    def test_what_boto3_raises_itself_becomes_one_sentence(
        self, error: core.BotoCoreError, kind: type[AdrError], words: str
    ) -> None:
        with pytest.raises(AdrError, match=words) as raised, translated("read", "the card"):
            raise error

        assert type(raised.value) is kind
        assert error_code(error) == ""
        assert "\n" not in str(raised.value)

    def test_other_errors_pass(self) -> None:
        with pytest.raises(ZeroDivisionError), translated("read", "the card"):
            raise ZeroDivisionError
