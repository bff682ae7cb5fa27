"""Workers with no more rights than they need, and with keys that end while they work."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError

from adr.access import (
    Lent,
    config_text,
    ensure_profile,
    lend,
    process_json,
    profile_left,
    remove_profile,
)
from adr.aws import Connection
from adr.keys import FOLLOWS
from tests.servers import start_moto

REGION = "eu-central-1"
#: What moto asks for under another name than AWS: the calls for ten messages at a time are
#: permitted by the name of the single one, and a queue is named in the call for its address.
ONLY_MOTO = {
    "Version": "2012-10-17",
    "Statement": [
        {
            "Effect": "Allow",
            "Action": [
                "sqs:GetQueueUrl",
                "sqs:DeleteMessageBatch",
                "sqs:ChangeMessageVisibilityBatch",
            ],
            "Resource": "*",
        }
    ],
}


def service(name: str):
    """Make a client with the keys of the moment, which boto3 itself would remember."""
    return boto3.Session().client(name)


class Account:
    """An account on a moto that checks signatures and permissions once it is told to."""

    def __init__(self, url: str, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        self.url = url
        self._folder = folder
        self._monkeypatch = monkeypatch
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        monkeypatch.setenv("AWS_DEFAULT_REGION", REGION)
        monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "before")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "before")
        everything = {"Effect": "Allow", "Action": "*", "Resource": "*"}
        self._admin = self.user("admin", [everything])
        self.be_admin()

    def user(self, name: str, statements: list[dict[str, Any]]) -> Lent:
        """Make a user with these rights; returns the keys."""
        iam = service("iam")
        iam.create_user(UserName=name)
        policy = {"Version": "2012-10-17", "Statement": statements}
        iam.put_user_policy(UserName=name, PolicyName="rights", PolicyDocument=json.dumps(policy))
        keys = iam.create_access_key(UserName=name)["AccessKey"]
        return Lent(keys["AccessKeyId"], keys["SecretAccessKey"])

    def enforce(self) -> None:
        request = urllib.request.Request(
            f"{self.url}/moto-api/reset-auth", b"0", {"Content-Type": "text/plain"}
        )
        urllib.request.urlopen(request).close()

    def be_admin(self) -> None:
        self.be(self._admin)

    def be(self, lent: Lent) -> None:
        """Let boto3 find these keys the way a host finds what is handed over to it."""
        keys, config = self._folder / "keys.json", self._folder / "aws.conf"
        keys.write_text(process_json(lent))
        config.write_text(config_text(f"cat {keys}", REGION))
        self._monkeypatch.setenv("AWS_CONFIG_FILE", str(config))
        self._monkeypatch.delenv("AWS_ACCESS_KEY_ID", raising=False)
        self._monkeypatch.delenv("AWS_SECRET_ACCESS_KEY", raising=False)

    def lend_role(self, runner: str) -> Lent:
        """Lend the rights of the runner's role: moto knows no federated users."""
        iam = service("iam")
        name = ensure_profile(Connection(runner))
        iam.put_role_policy(
            RoleName=name, PolicyName="only-moto", PolicyDocument=json.dumps(ONLY_MOTO)
        )
        self.be(Lent("temporary", "temporary", "token"))
        lent = lend(Connection(runner))
        self.be_admin()
        return lent


@pytest.fixture
def account(tmp_path, monkeypatch):
    server = start_moto(tmp_path)
    yield Account(server.url, monkeypatch, tmp_path)
    server.stop()


COMMAND = """
case {/.} in
    large) head -c 9000000 /dev/zero > {/.}.out ;;
    talks) seq 100000; sleep 3; cp {} {/.}.out ;;
    fails) echo tried; exit 3 ;;
    *) cp {} {/.}.out ;;
esac
"""


def test_a_worker_with_the_rights_of_one_does_all_its_work_and_nothing_else(
    account, shell, wait_for
):
    # given a runner and jobs of all kinds, of which somebody follows one
    shell.write({f"{name}.txt": name for name in ("plain", "large", "talks", "fails")})
    runner = shell("create").out.strip()
    batch = shell(
        "queue", "--attempts=2", "--command", COMMAND, "--store=out$", *shell.tree("")
    ).out.strip()
    worker = account.lend_role(runner)
    follower = shell.begin("logs", "--follow", "talks")
    s3 = service("s3")
    wait_for(lambda: s3.list_objects_v2(Bucket=runner, Prefix=FOLLOWS)["KeyCount"])
    account.enforce()
    # when a worker has the rights of its role only
    account.be(worker)
    done = shell("process", "--stop-on-empty", "--slots=3", "--verbose=DEBUG", runner)
    # then it lacks none
    assert "denies" not in done.err
    account.be_admin()
    followed, said = follower.communicate(timeout=60)
    assert followed.splitlines() == [str(number) for number in range(1, 100001)], said
    totals = shell("status", "--json").json["totals"]
    assert (totals["jobs"], totals["succeeded"], totals["failed"]) == (4, 3, 1)
    assert shell("status", "--json").json["workers"] == []
    assert shell("logs", "talks").out.splitlines()[-1] == "100000"
    shell("download", "results", "--job=large")
    assert (shell.folder / "results" / batch / "large" / "large.out").stat().st_size == 9000000
    s3 = service("s3")
    found = [each["Key"] for each in s3.list_objects_v2(Bucket=runner)["Contents"]]
    for prefix in ("_journal/", "_cards/", "_logs/", "_workers/live/"):
        assert any(key.startswith(prefix) for key in found), prefix
    # and can do nothing that is none of its business
    account.be(worker)
    s3, sqs, iam = service("s3"), service("sqs"), service("iam")
    url = sqs.get_queue_url(QueueName=runner)["QueueUrl"]
    result = next(key for key in found if key.endswith("large.out"))
    refused = [
        lambda: s3.delete_object(Bucket=runner, Key=result),
        lambda: s3.put_object(Bucket=runner, Key="_control/destroyed", Body=b""),
        lambda: s3.put_object(Bucket=runner, Key=f"{FOLLOWS}{batch}/000001/a", Body=b""),
        lambda: s3.put_object(Bucket=runner, Key=f"{batch}.zip", Body=b""),
        lambda: s3.put_object(Bucket=runner, Key=f"_batches/{batch}.seal", Body=b""),
        lambda: s3.put_object(Bucket=runner, Key="_install/0/adr.whl", Body=b""),
        lambda: s3.delete_bucket(Bucket=runner),
        lambda: s3.list_buckets(),
        lambda: sqs.send_message(QueueUrl=url, MessageBody="{}"),
        lambda: sqs.purge_queue(QueueUrl=url),
        lambda: sqs.delete_queue(QueueUrl=url),
        lambda: iam.list_roles(),
    ]
    for call in refused:
        with pytest.raises(ClientError, match="AccessDenied"):
            call()
    # which is because of its rights, not because of moto
    account.be_admin()
    assert service("s3").head_object(Bucket=runner, Key=f"{batch}.zip")
    shell("destroy", "--yes", "--purge")


def documented() -> list[dict[str, Any]]:
    """Return the policy of the documentation in the words of moto.

    It takes ``?`` for a sign of regular expressions, knows neither conditions nor what is about
    to be made, and asks for the bucket where several objects are deleted at once.
    """
    text = (Path(__file__).parents[2] / "docs" / "howto" / "policy.json").read_text("utf-8")
    statements = json.loads(text.replace("?", "."))["Statement"]
    for statement in statements:
        statement.pop("Condition", None)
        if statement["Sid"] == "RolesOfWorkers":
            statement["Resource"] = "*"
    buckets = [each for each in statements if each["Sid"] == "Buckets"]
    deleting = {**buckets[0], "Sid": "Several", "Action": "s3:DeleteObject"}
    more = ["sqs:CreateQueue", "sqs:SendMessageBatch"]
    queueing = {"Effect": "Allow", "Action": more, "Resource": "*"}
    return [*statements, deleting, queueing, *ONLY_MOTO["Statement"]]


def test_who_has_the_documented_policy_can_do_everything_with_a_runner(account, shell):
    bas = account.user("bas", documented())
    account.enforce()
    account.be(bas)
    shell.write({"a.txt": "a", "b.txt": "b"})
    # given that other things are denied
    for call in (
        lambda: service("s3").create_bucket(
            Bucket="my-thesis", CreateBucketConfiguration={"LocationConstraint": REGION}
        ),
        lambda: service("iam").create_user(UserName="eve"),
    ):
        with pytest.raises(ClientError, match="AccessDenied"):
            call()
    # when
    runner = shell("create").out.strip()
    shell("queue", "--command=cp {} out", "a.txt", "b.txt")
    assert ensure_profile(Connection(runner)) == f"adr-{runner}"
    shell("process", "--stop-on-empty")
    assert shell("status", "--json").json["totals"]["succeeded"] == 2
    shell("download", "results")
    assert sorted(shell.tree("results").values()) == ["a", "b"]
    assert runner in shell("list").out
    shell("destroy", "--yes", "--purge")
    remove_profile(Connection(runner))
    # then
    assert profile_left(Connection(runner)) == []
    account.be_admin()
    assert service("s3").list_buckets()["Buckets"] == []
    assert "QueueUrls" not in service("sqs").list_queues()


@pytest.fixture
def keys(aws_env, shell, monkeypatch):
    """Return what writes the keys of a worker, to last for so many seconds, and its variables."""
    path, config = shell.folder.parent / "keys.json", shell.folder.parent / "aws.conf"
    config.write_text(config_text(f"cat {path}", REGION))

    def write(end_in_s: float) -> None:
        new = path.with_suffix(".new")
        new.write_text(process_json(Lent("test", "test", "token", time.time() + end_in_s)))
        new.rename(path)

    return write, config


def test_a_worker_whose_keys_have_ended_keeps_what_is_done_until_they_are_renewed(
    keys, shell, wait_for, tmp_path
):
    write, config = keys
    began, end, ran = (tmp_path / name for name in ("began", "end", "ran"))
    shell.write({"a.txt": "a", "b.txt": "b"})
    runner = shell("create").out.strip()
    command = (
        f"touch {began}; until [ -e {end} ]; do sleep 0.05; done; echo {{}} >> {ran}; cp {{}} c"
    )
    shell("queue", "--command", command, "a.txt")
    # given a worker at work
    write(300)
    log = tmp_path / "worker.log"
    variables = {
        name: value for name, value in os.environ.items() if not name.startswith("AWS_ACCESS_")
    }
    variables["AWS_CONFIG_FILE"] = str(config)
    with log.open("wb") as output:
        worker = subprocess.Popen(
            [sys.executable, "-m", "adr", "process", "--slots=2", runner],
            cwd=shell.folder, env=variables, stdout=output, stderr=output,
        )  # fmt: skip
    try:
        wait_for(began.exists)
        # when its keys end before its job does
        write(-1)
        end.touch()
        wait_for(lambda: "cannot store" in log.read_text() and "ended" in log.read_text())
        assert shell("status", "--json").json["totals"]["succeeded"] == 0
        # then it goes on by itself once they are renewed, and does nothing twice
        write(300)
        shell("queue", "--command", command, "b.txt")
        wait_for(lambda: shell("status", "--json").json["totals"]["succeeded"] == 2, timeout=60)
        assert ran.read_text().split() == ["a.txt", "b.txt"]
        assert "Traceback" not in log.read_text()
    finally:
        worker.terminate()
        worker.wait(30)
