"""What workers may do on AWS, the role that carries it, and the keys that are lent under it."""

from __future__ import annotations

import json
import os
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qs

import boto3
import pytest

from adr import keys
from adr.access import (
    Lent,
    config_text,
    ensure_profile,
    lend,
    own_keys,
    process_json,
    profile_left,
    remove_profile,
    worker_policy,
)
from adr.aws import Connection, is_denied
from adr.batch import new_batch_id
from adr.errors import RunnerGone, ServiceError, UsageError
from adr.orders import order_destruction
from adr.runner import create_runner
from tests.proxy import Call, Proxy

RUNNER = "a59fb3d2-4a0c-4ea4-92bb-1a1bd0e22b6e"
BUCKET = f"arn:aws:s3:::{RUNNER}"
QUEUE = f"arn:aws:sqs:eu-central-1:123456789012:{RUNNER}"
BATCH = new_batch_id("/data/nickling1995")
SAID = "User: arn:aws:iam::123456789012:user/bas is not authorized."


def allows(policy: Mapping[str, Any], action: str, resource: str) -> bool:
    """Tell whether a policy without conditions and denials allows something, as IAM does."""

    def listed(value: str | list[str]) -> list[str]:
        return [value] if isinstance(value, str) else value

    return any(
        any(fnmatchcase(action, each) for each in listed(statement["Action"]))
        and any(fnmatchcase(resource, each) for each in listed(statement["Resource"]))
        for statement in policy["Statement"]
    )


class TestPolicy:
    policy = worker_policy(RUNNER, "eu-central-1", "123456789012")

    @pytest.mark.parametrize(
        "key",
        [
            keys.result_key(BATCH, 1, "attempt", "out.csv"),
            keys.result_key(BATCH, 1, "attempt", "deep/out.zip"),
            keys.log_key(BATCH, 1, "attempt"),
            keys.followed_key(keys.followed_prefix(BATCH, 1, "order"), "attempt", 0),
            keys.journal_key(BATCH, "worker", 0),
            keys.card_key(BATCH, 1),
            keys.heartbeat_key("worker"),
            keys.setup_key("i-0123456789abcdef0"),
        ],
    )
    def test_a_worker_reads_and_writes_what_it_makes(self, key: str) -> None:
        for action in ("s3:GetObject", "s3:PutObject", "s3:AbortMultipartUpload"):
            assert allows(self.policy, action, f"{BUCKET}/{key}"), action

    @pytest.mark.parametrize(
        "key",
        [
            keys.bundle_key(BATCH),
            keys.manifest_key(BATCH),
            keys.seal_key(BATCH),
            keys.CONTROL + "destroyed",
            keys.FOLLOWS + f"{BATCH}/000001/order",
            keys.WORKERS + "203.0.113.1",
            keys.SSH_HOSTS + "lab1.json",
            keys.install_key("0" * 64, "adr.whl"),
            keys.LAUNCHES + "token.json",
            "anything else",
        ],
    )
    def test_a_worker_reads_all_the_rest_and_writes_none_of_it(self, key: str) -> None:
        assert allows(self.policy, "s3:GetObject", f"{BUCKET}/{key}")
        assert not allows(self.policy, "s3:PutObject", f"{BUCKET}/{key}")

    @pytest.mark.parametrize("key", [keys.bundle_key(BATCH), f"{BATCH}/000001/a/out", "_cards/b/1"])
    @pytest.mark.parametrize("action", ["s3:DeleteObject", "s3:PutObjectAcl", "s3:DeleteObjectTag"])
    def test_a_worker_removes_nothing_and_opens_nothing(self, action: str, key: str) -> None:
        assert not allows(self.policy, action, f"{BUCKET}/{key}")

    @pytest.mark.parametrize(
        "action",
        ["DeleteQueue", "PurgeQueue", "SendMessage", "SetQueueAttributes", "AddPermission"],
    )
    def test_a_worker_only_takes_jobs_from_the_queue(self, action: str) -> None:
        assert allows(self.policy, "sqs:ReceiveMessage", QUEUE)
        assert not allows(self.policy, f"sqs:{action}", QUEUE)

    @pytest.mark.parametrize("action", ["DeleteBucket", "PutBucketPolicy", "PutEncryptionConf"])
    def test_a_worker_lists_the_bucket_and_does_nothing_else_with_it(self, action: str) -> None:
        assert allows(self.policy, "s3:ListBucket", BUCKET)
        assert not allows(self.policy, f"s3:{action}", BUCKET)

    def test_other_queues_and_buckets_are_out_of_reach(self) -> None:
        assert not allows(self.policy, "sqs:ReceiveMessage", f"{QUEUE}-dead")
        assert not allows(self.policy, "s3:GetObject", f"arn:aws:s3:::{RUNNER}-mine/key")
        for statement in self.policy["Statement"]:
            assert statement["Effect"] == "Allow"
            assert RUNNER in str(statement["Resource"])

    def test_other_partitions_have_other_names(self) -> None:
        text = json.dumps(worker_policy(RUNNER, "cn-north-1", "123456789012", "aws-cn"))

        assert "arn:aws-cn:s3:::" in text
        assert "arn:aws-cn:sqs:cn-north-1:123456789012:" in text
        assert "arn:aws:" not in text


class Iam:
    """One runner on moto, behind a proxy, and a look at its role past adr."""

    def __init__(self, proxy: Proxy) -> None:
        self.proxy = proxy
        self.runner = create_runner()
        self.connection = Connection(self.runner.id)
        self.name = f"adr-{self.runner.id}"
        self.client = boto3.client("iam")

    @property
    def policy(self) -> dict[str, Any]:
        return worker_policy(self.runner.id, "eu-central-1", "123456789012")

    def assert_complete(self) -> None:
        role = self.client.get_role(RoleName=self.name)["Role"]
        [statement] = role["AssumeRolePolicyDocument"]["Statement"]
        assert statement["Principal"]["Service"] == "ec2.amazonaws.com"
        [policy] = self.client.list_role_policies(RoleName=self.name)["PolicyNames"]
        inline = self.client.get_role_policy(RoleName=self.name, PolicyName=policy)
        assert inline["PolicyDocument"] == self.policy
        profile = self.client.get_instance_profile(InstanceProfileName=self.name)
        assert [each["RoleName"] for each in profile["InstanceProfile"]["Roles"]] == [self.name]

    def writes(self) -> int:
        return sum(
            number
            for name, number in self.proxy.counts.items()
            if name.startswith("iam.") and not name.startswith(("iam.Get", "iam.List"))
        )


@pytest.fixture
def iam(moto_env: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Iam]:
    with Proxy(moto_env) as proxy:
        for service in ("IAM", "STS"):
            monkeypatch.setenv(f"AWS_ENDPOINT_URL_{service}", proxy.url)
        yield Iam(proxy)
        assert not proxy.errors


class TestProfile:
    def test_instances_get_the_rights_of_a_worker(self, iam: Iam) -> None:
        assert profile_left(iam.connection) == []

        assert ensure_profile(iam.connection) == iam.name

        iam.assert_complete()
        role = iam.client.get_role(RoleName=iam.name)["Role"]
        assert role["Path"] == "/"
        assert role["MaxSessionDuration"] == 12 * 3600
        profile = iam.client.get_instance_profile(InstanceProfileName=iam.name)["InstanceProfile"]
        for tags in (role["Tags"], profile["Tags"]):
            found = {tag["Key"]: tag["Value"] for tag in tags}
            assert found["Runner"] == iam.runner.id
            assert found["Version"]
        assert profile_left(iam.connection) == [f"instance profile {iam.name}", f"role {iam.name}"]

    def test_the_account_itself_may_take_on_the_role(self, iam: Iam) -> None:
        ensure_profile(iam.connection)

        role = iam.client.get_role(RoleName=iam.name)["Role"]
        [statement] = role["AssumeRolePolicyDocument"]["Statement"]
        assert statement["Principal"]["AWS"] == "arn:aws:iam::123456789012:root"

    def test_a_whole_one_is_left_as_it_is(self, iam: Iam) -> None:
        ensure_profile(iam.connection)
        iam.proxy.reset()

        ensure_profile(iam.connection)

        assert iam.writes() == 0

    @pytest.mark.parametrize("call", ["CreateRole", "CreateInstanceProfile"])
    def test_of_two_launches_at_once_both_get_it(self, iam: Iam, call: str) -> None:
        # given both find nothing and are about to make it
        meet = threading.Barrier(2)

        def wait(_: Call) -> None:
            meet.wait(20)

        iam.proxy.before(f"iam.{call}", wait, times=2)
        names: list[str] = []
        threads = [
            threading.Thread(target=lambda: names.append(ensure_profile(Connection(iam.runner.id))))
            for _ in range(2)
        ]
        # when
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        # then
        assert names == [iam.name, iam.name]
        assert iam.proxy.counts[f"iam.{call}"] == 2
        iam.assert_complete()

    @pytest.mark.parametrize("missing", ["policy", "profile", "role in it", "its rights"])
    def test_a_half_made_one_is_completed(self, iam: Iam, missing: str) -> None:
        ensure_profile(iam.connection)
        names = {"RoleName": iam.name, "InstanceProfileName": iam.name}
        [policy] = iam.client.list_role_policies(RoleName=iam.name)["PolicyNames"]
        if missing == "policy":
            iam.client.delete_role_policy(RoleName=iam.name, PolicyName=policy)
        elif missing == "its rights":
            less = json.dumps({**iam.policy, "Statement": iam.policy["Statement"][:1]})
            iam.client.put_role_policy(RoleName=iam.name, PolicyName=policy, PolicyDocument=less)
        else:
            iam.client.remove_role_from_instance_profile(**names)
            if missing == "profile":
                iam.client.delete_instance_profile(InstanceProfileName=iam.name)

        ensure_profile(iam.connection)

        iam.assert_complete()

    def test_a_role_that_is_not_known_everywhere_yet_is_waited_for(self, iam: Iam) -> None:
        iam.proxy.fail("iam.AddRoleToInstanceProfile", 404, "NoSuchEntity", times=2)

        ensure_profile(iam.connection)

        iam.assert_complete()

    def test_other_trouble_is_said_at_once(self, iam: Iam) -> None:
        iam.proxy.fail("iam.CreateRole", 400, "MalformedPolicyDocument")

        with pytest.raises(ServiceError, match="MalformedPolicyDocument"):
            ensure_profile(iam.connection)

        assert iam.proxy.counts["iam.CreateRole"] == 1

    @pytest.mark.parametrize(
        "action", ["GetRole", "CreateRole", "PutRolePolicy", "CreateInstanceProfile"]
    )
    def test_a_missing_permission_is_named_with_what_to_do(self, iam: Iam, action: str) -> None:
        iam.proxy.fail(f"iam.{action}", 403, "AccessDenied", message=SAID)

        with pytest.raises(ServiceError) as raised:
            ensure_profile(iam.connection)

        said = str(raised.value)
        assert said.startswith(
            f"cannot make the role {iam.name} for the workers: AWS denies iam:{action} to "
        )
        for words in ("the policy in the documentation", "--instance-profile", "--prepare"):
            assert words in said
        assert is_denied(raised.value)
        assert iam.proxy.counts[f"iam.{action}"] == 1

    def test_a_runner_that_is_gone_gets_none(self, iam: Iam) -> None:
        with pytest.raises(RunnerGone):
            ensure_profile(Connection(str(uuid.uuid4())))

        assert iam.writes() == 0


class TestRemoval:
    def test_nothing_is_left(self, iam: Iam) -> None:
        ensure_profile(iam.connection)

        remove_profile(iam.connection)

        assert profile_left(iam.connection) == []

    def test_it_can_be_repeated_also_without_the_runner(self, iam: Iam) -> None:
        ensure_profile(iam.connection)
        order_destruction(iam.runner.store)
        iam.runner.ledger.destroy()
        later = Connection(iam.runner.id)

        remove_profile(later)
        iam.proxy.reset()
        remove_profile(later)

        assert profile_left(later) == []
        assert iam.writes() == 0

    @pytest.mark.parametrize("left", ["role", "profile", "empty role"])
    def test_what_is_left_of_it_is_removed(self, iam: Iam, left: str) -> None:
        ensure_profile(iam.connection)
        iam.client.remove_role_from_instance_profile(
            RoleName=iam.name, InstanceProfileName=iam.name
        )
        if left != "profile":
            iam.client.delete_instance_profile(InstanceProfileName=iam.name)
        if left != "role":
            [policy] = iam.client.list_role_policies(RoleName=iam.name)["PolicyNames"]
            iam.client.delete_role_policy(RoleName=iam.name, PolicyName=policy)
        if left == "profile":
            iam.client.delete_role(RoleName=iam.name)

        remove_profile(iam.connection)

        assert profile_left(iam.connection) == []

    def test_what_was_attached_to_the_role_goes_with_it(self, iam: Iam) -> None:
        ensure_profile(iam.connection)
        document = json.dumps(iam.policy)
        made = iam.client.create_policy(PolicyName=f"mine-{iam.runner.id}", PolicyDocument=document)
        arn = made["Policy"]["Arn"]
        iam.client.attach_role_policy(RoleName=iam.name, PolicyArn=arn)
        iam.client.put_role_policy(RoleName=iam.name, PolicyName="more", PolicyDocument=document)

        remove_profile(iam.connection)

        assert profile_left(iam.connection) == []
        assert iam.client.get_policy(PolicyArn=arn)["Policy"]["AttachmentCount"] == 0

    def test_a_missing_permission_is_named_with_what_to_do(self, iam: Iam) -> None:
        ensure_profile(iam.connection)
        iam.proxy.fail("iam.DeleteRole", 403, "AccessDenied", message=SAID)

        with pytest.raises(ServiceError, match=r"denies iam:DeleteRole .* ask somebody who may"):
            remove_profile(iam.connection)

        assert profile_left(iam.connection) == [f"role {iam.name}"]

    def test_who_may_not_look_does_not_say_that_nothing_is_left(self, iam: Iam) -> None:
        iam.proxy.fail("iam.GetInstanceProfile", 403, "AccessDenied", message=SAID)

        with pytest.raises(ServiceError):
            profile_left(iam.connection)


class Asked:
    """Take note of what STS is asked for."""

    def __init__(self, proxy: Proxy, name: str) -> None:
        self.questions: list[dict[str, str]] = []
        proxy.before(f"sts.{name}", self._note)

    def _note(self, call: Call) -> None:
        fields = parse_qs(call.body.decode())
        self.questions.append({name: values[0] for name, values in fields.items()})


@pytest.fixture
def temporary(iam: Iam, monkeypatch: pytest.MonkeyPatch) -> Connection:
    """Return a connection with temporary keys."""
    monkeypatch.setenv("AWS_SESSION_TOKEN", "token")
    return Connection(iam.runner.id)


class TestLending:
    def test_from_long_lived_keys_come_some_that_end_and_are_limited(self, iam: Iam) -> None:
        asked = Asked(iam.proxy, "GetFederationToken")

        lent = lend(iam.connection, 36)

        [question] = asked.questions
        assert json.loads(question["Policy"]) == iam.policy
        assert len(question["Policy"]) <= 2048
        assert question["DurationSeconds"] == str(36 * 3600)
        assert 2 <= len(question["Name"]) <= 32
        assert lent.session_token
        assert lent.ends_at == pytest.approx(time.time() + 36 * 3600, abs=600)
        assert iam.proxy.counts["sts.AssumeRole"] == 0
        assert iam.writes() == 0

    @pytest.mark.parametrize("hours", [0, 0.9, 37, -1, float("nan")])
    def test_a_time_that_cannot_be_had_is_refused(self, iam: Iam, hours: float) -> None:
        with pytest.raises(UsageError, match=f"{hours:g} hours: give a number from 1 to 36"):
            lend(iam.connection, hours)

        assert iam.proxy.total == 0

    def test_from_temporary_keys_the_role_is_assumed_for_half_a_day(
        self, iam: Iam, temporary: Connection
    ) -> None:
        asked = Asked(iam.proxy, "AssumeRole")

        lent = lend(temporary, 36)

        [question] = asked.questions
        assert question["RoleArn"] == f"arn:aws:iam::123456789012:role/{iam.name}"
        assert json.loads(question["Policy"]) == iam.policy
        assert question["DurationSeconds"] == str(12 * 3600)
        assert lent.session_token
        assert lent.ends_at == pytest.approx(time.time() + 12 * 3600, abs=600)
        assert iam.proxy.counts["sts.GetFederationToken"] == 0

    def test_the_role_is_made_where_there_is_none_and_waited_for(
        self, iam: Iam, temporary: Connection
    ) -> None:
        # as AWS does before there is such a role, and for some seconds afterwards
        iam.proxy.fail("sts.AssumeRole", 403, "AccessDenied", times=3, message=SAID)

        lent = lend(temporary, 2)

        assert lent.session_token
        assert profile_left(temporary) == [f"role {iam.name}"]
        assert iam.proxy.counts["sts.AssumeRole"] == 4

    def test_a_new_role_is_waited_for_up_to_a_minute(
        self, iam: Iam, temporary: Connection, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        waited: list[float] = []
        monkeypatch.setattr("adr.clock.time", SimpleNamespace(sleep=waited.append))
        iam.proxy.fail("sts.AssumeRole", 403, "AccessDenied", message=SAID)

        with pytest.raises(ServiceError, match="AWS denies sts:AssumeRole"):
            lend(temporary, 2)

        assert 50 < sum(waited) <= 60

    def test_the_role_is_assumed_where_federating_is_denied(self, iam: Iam) -> None:
        iam.proxy.fail("sts.GetFederationToken", 403, "AccessDenied", message=SAID)

        assert lend(iam.connection, 2).session_token

        assert iam.proxy.counts["sts.AssumeRole"] == 1

    def test_who_has_assumed_a_role_already_gets_an_hour_and_is_told(
        self, iam: Iam, temporary: Connection
    ) -> None:
        asked = Asked(iam.proxy, "AssumeRole")
        iam.proxy.fail(
            "sts.AssumeRole",
            400,
            "ValidationError",
            times=1,
            message="The requested DurationSeconds exceeds the 1 hour session limit for roles "
            "assumed by role chaining.",
        )

        lent = lend(temporary, 12)

        assert [each["DurationSeconds"] for each in asked.questions] == ["43200", "3600"]
        assert lent.ends_at == pytest.approx(time.time() + 3600, abs=600)

    @pytest.mark.parametrize("denied", ["sts:AssumeRole", "iam:CreateRole"])
    def test_who_may_do_neither_is_told_what_would_help(self, iam: Iam, denied: str) -> None:
        if denied == "sts:AssumeRole":
            ensure_profile(iam.connection)
        for call in {"sts:GetFederationToken", "sts:AssumeRole", denied}:
            iam.proxy.fail(call.replace(":", "."), 403, "AccessDenied", message=SAID)

        with pytest.raises(ServiceError) as raised:
            lend(iam.connection)

        said = str(raised.value)
        assert f"AWS denies {denied} to these credentials; ask for " in said
        assert f"sts:GetFederationToken or sts:AssumeRole on the role {iam.name}" in said
        assert "--copy-credentials" in said
        # A role that was there all the time is not waited for.
        assert iam.proxy.counts["sts.AssumeRole"] <= 2

    def test_trouble_that_is_no_denial_is_said_as_it_is(self, iam: Iam) -> None:
        iam.proxy.fail("sts.GetFederationToken", 400, "PackedPolicyTooLarge")

        with pytest.raises(ServiceError, match="PackedPolicyTooLarge"):
            lend(iam.connection)

        assert iam.proxy.counts["sts.AssumeRole"] == 0


class TestOwnKeys:
    def test_long_lived_keys_are_handed_over_as_they_are(self, iam: Iam) -> None:
        assert own_keys(iam.connection) == Lent("test", "test", None, None)
        assert iam.proxy.total == 0

    def test_the_end_of_temporary_ones_is_told_where_it_is_known(
        self, iam: Iam, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("AWS_SESSION_TOKEN", "token")
        monkeypatch.setenv("AWS_CREDENTIAL_EXPIRATION", "2100-01-01T00:00:00Z")

        lent = own_keys(Connection(iam.runner.id))

        assert lent == Lent("test", "test", "token", 4102444800.0)

    def test_where_there_are_none_that_is_said(
        self, iam: Iam, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("AWS_ACCESS_KEY_ID")
        monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")

        with pytest.raises(ServiceError, match="no AWS credentials: run adr config"):
            own_keys(Connection(iam.runner.id))


class TestHandingOver:
    lent = Lent("AKIDEXAMPLE", "SECRETEXAMPLE", "TOKENEXAMPLE", 4102444800.25)

    def test_keys_show_in_no_message(self) -> None:
        for text in (repr(self.lent), str(self.lent), f"{self.lent}"):
            assert "EXAMPLE" not in text

    @pytest.mark.parametrize(
        "lent", [lent, Lent("AKIDEXAMPLE", "SECRETEXAMPLE")], ids=["lent", "own"]
    )
    def test_boto3_reads_what_is_handed_over(
        self, lent: Lent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        keys = tmp_path / "with a blank.json"
        keys.write_text(process_json(lent))
        config = tmp_path / "aws.conf"
        config.write_text(config_text(f"cat '{keys}'", "eu-north-1"))
        monkeypatch.setenv("AWS_CONFIG_FILE", str(config))
        monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)

        session = boto3.Session()

        assert session.region_name == "eu-north-1"
        found = session.get_credentials()
        assert found is not None
        assert found.get_frozen_credentials()[:3] == (
            lent.access_key_id, lent.secret_access_key, lent.session_token
        )  # fmt: skip

    def test_the_end_is_written_for_those_that_have_one(self) -> None:
        assert json.loads(process_json(self.lent))["Expiration"] == "2100-01-01T00:00:00Z"
        assert "Expiration" not in json.loads(process_json(Lent("id", "secret")))
