"""The proxy names and counts calls truly, and disturbs exactly those it was told to."""

import contextlib
import http.client
import io
import os
import signal
import subprocess
import sys
import threading
import uuid

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import (
    ClientError,
    ConnectionClosedError,
    EndpointConnectionError,
)

from tests.proxy import DROP, Answer

ONCE = Config(retries={"total_max_attempts": 1, "mode": "standard"}, read_timeout=20)


@pytest.fixture
def s3(proxy):
    return boto3.client("s3", config=ONCE)


@pytest.fixture
def sqs(proxy):
    return boto3.client("sqs", config=ONCE)


@pytest.fixture
def bucket(proxy, s3):
    name = str(uuid.uuid4())
    place = {"LocationConstraint": "eu-central-1"}
    s3.create_bucket(Bucket=name, CreateBucketConfiguration=place)
    proxy.reset()
    return name


@pytest.fixture
def queue(proxy, sqs):
    url = sqs.create_queue(QueueName=str(uuid.uuid4()))["QueueUrl"]
    proxy.reset()
    return url


def receive(sqs, queue, *, visibility=30, wait=2, most=10):
    answer = sqs.receive_message(
        QueueUrl=queue,
        MaxNumberOfMessages=most,
        VisibilityTimeout=visibility,
        WaitTimeSeconds=wait,
        MessageSystemAttributeNames=["All"],
    )
    return answer.get("Messages", [])


def code_of(failure):
    return failure.value.response["Error"]["Code"]


class TestNaming:
    def test_every_call_on_a_bucket_has_the_name_boto3_gives_it(self, proxy, s3, bucket):
        asked = []
        s3.meta.events.register(
            "before-call.s3", lambda model, **_: asked.append(f"s3.{model.name}")
        )
        block = {"BlockPublicAcls": True, "IgnorePublicAcls": True}
        rule = {"ID": "x", "Status": "Enabled", "Filter": {"Prefix": ""}}
        rule["AbortIncompleteMultipartUpload"] = {"DaysAfterInitiation": 7}
        sse = {"Rules": [{"ApplyServerSideEncryptionByDefault": {"SSEAlgorithm": "AES256"}}]}
        tags = {"TagSet": [{"Key": "a", "Value": "b"}]}

        s3.list_buckets()
        s3.head_bucket(Bucket=bucket)
        s3.get_bucket_location(Bucket=bucket)
        s3.put_public_access_block(Bucket=bucket, PublicAccessBlockConfiguration=block)
        s3.get_public_access_block(Bucket=bucket)
        s3.put_bucket_encryption(Bucket=bucket, ServerSideEncryptionConfiguration=sse)
        s3.get_bucket_encryption(Bucket=bucket)
        s3.put_bucket_lifecycle_configuration(
            Bucket=bucket, LifecycleConfiguration={"Rules": [rule]}
        )
        s3.get_bucket_lifecycle_configuration(Bucket=bucket)
        s3.put_bucket_tagging(Bucket=bucket, Tagging=tags)
        s3.get_bucket_tagging(Bucket=bucket)
        s3.list_objects(Bucket=bucket)
        s3.list_objects_v2(Bucket=bucket)
        s3.list_multipart_uploads(Bucket=bucket)
        s3.delete_bucket(Bucket=bucket)

        assert [name for name, _ in proxy.calls] == asked
        assert proxy.total == len(asked)

    def test_every_call_on_an_object_has_the_name_boto3_gives_it_and_its_key(
        self, proxy, s3, bucket
    ):
        asked = []
        s3.meta.events.register(
            "before-call.s3", lambda model, **_: asked.append(f"s3.{model.name}")
        )
        where = {"Bucket": bucket, "Key": "a b/ü+%.txt"}

        s3.put_object(**where, Body=b"1")
        s3.get_object(**where)["Body"].read()
        s3.head_object(**where)
        s3.copy_object(**where, CopySource=where, MetadataDirective="REPLACE")
        upload = s3.create_multipart_upload(**where)["UploadId"]
        part = s3.upload_part(**where, UploadId=upload, PartNumber=1, Body=b"x")
        s3.list_parts(**where, UploadId=upload)
        parts = {"Parts": [{"PartNumber": 1, "ETag": part["ETag"]}]}
        s3.complete_multipart_upload(**where, UploadId=upload, MultipartUpload=parts)
        s3.abort_multipart_upload(**where, UploadId=s3.create_multipart_upload(**where)["UploadId"])
        s3.delete_object(**where)

        assert [name for name, _ in proxy.calls] == asked
        assert {key for _, key in proxy.calls} == {where["Key"]}

        s3.delete_objects(Bucket=bucket, Delete={"Objects": [{"Key": "a"}]})
        assert proxy.calls[-1] == ("s3.DeleteObjects", "")

    def test_calls_on_queues_carry_the_name_of_the_queue(self, proxy, sqs, queue):
        name = queue.rpartition("/")[2]

        sqs.get_queue_url(QueueName=name)
        sqs.send_message_batch(QueueUrl=queue, Entries=[{"Id": "0", "MessageBody": "x"}])
        held = receive(sqs, queue)[0]["ReceiptHandle"]
        entry = {"Id": "0", "ReceiptHandle": held}
        sqs.change_message_visibility_batch(
            QueueUrl=queue, Entries=[{**entry, "VisibilityTimeout": 9}]
        )
        sqs.delete_message_batch(QueueUrl=queue, Entries=[entry])

        assert proxy.calls == [
            ("sqs.GetQueueUrl", name),
            ("sqs.SendMessageBatch", name),
            ("sqs.ReceiveMessage", name),
            ("sqs.ChangeMessageVisibilityBatch", name),
            ("sqs.DeleteMessageBatch", name),
        ]

    def test_other_services_are_named_too(self, proxy):
        boto3.client("sts", config=ONCE).get_caller_identity()

        assert proxy.counts == {"sts.GetCallerIdentity": 1}

    def test_calls_are_counted_by_key_until_they_are_reset(self, proxy, s3, bucket):
        for key in ("_journal/1", "_journal/2", "other"):
            s3.put_object(Bucket=bucket, Key=key, Body=b"")

        assert proxy.count("s3.PutObject", "^_journal/") == 2
        assert proxy.count("s3.PutObject") == 3

        proxy.reset()
        assert (proxy.total, proxy.calls) == (0, [])


class TestForwarding:
    @pytest.mark.parametrize("size", [0, 1, 70_000, 20_000_000])
    def test_a_body_of_any_size_passes_whole_both_ways(self, s3, bucket, size):
        body = os.urandom(size)

        s3.put_object(Bucket=bucket, Key="k", Body=io.BytesIO(body))

        assert s3.get_object(Bucket=bucket, Key="k")["Body"].read() == body
        assert s3.head_object(Bucket=bucket, Key="k")["ContentLength"] == size

    def test_a_chunked_request_passes_as_its_content(self, proxy, s3, bucket):
        connection = http.client.HTTPConnection("127.0.0.1", proxy.port)

        connection.request("PUT", f"/{bucket}/k", iter([b"one", b"two"]), encode_chunked=True)

        assert connection.getresponse().status == 200
        connection.close()
        assert s3.get_object(Bucket=bucket, Key="k")["Body"].read() == b"onetwo"

    def test_a_client_that_waits_for_100_continue_gets_it(self, proxy, s3, bucket):
        connection = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=10)
        connection.putrequest("PUT", f"/{bucket}/k")
        connection.putheader("Content-Length", "3")
        connection.putheader("Expect", "100-continue")
        connection.endheaders()

        assert connection.sock.recv(100).startswith(b"HTTP/1.1 100 ")
        connection.send(b"abc")

        assert connection.getresponse().status == 200
        connection.close()

    def test_one_connection_serves_many_calls(self, proxy, s3, bucket):
        connection = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=10)
        connection.connect()
        local = connection.sock.getsockname()

        for method in ("PUT", "HEAD", "GET", "DELETE", "GET"):
            connection.request(method, f"/{bucket}/k", b"x" if method == "PUT" else None)
            connection.getresponse().read()

        assert connection.sock.getsockname() == local
        connection.close()

    def test_conditions_and_errors_of_the_upstream_reach_the_client(self, s3, bucket):
        etag = s3.put_object(Bucket=bucket, Key="k", Body=b"1", IfNoneMatch="*")["ETag"]
        with pytest.raises(ClientError) as failure:
            s3.put_object(Bucket=bucket, Key="k", Body=b"2", IfNoneMatch="*")
        assert code_of(failure) == "PreconditionFailed"

        s3.put_object(Bucket=bucket, Key="k", Body=b"3", IfMatch=etag)
        with pytest.raises(ClientError) as failure:
            s3.put_object(Bucket=bucket, Key="k", Body=b"4", IfMatch=etag)
        assert code_of(failure) == "PreconditionFailed"

        with pytest.raises(ClientError) as failure:
            s3.head_object(Bucket=bucket, Key="none")
        assert code_of(failure) == "404"

    def test_a_long_poll_returns_when_a_message_comes(self, proxy, sqs, queue):
        found = []
        waiting = threading.Event()
        proxy.before("sqs.ReceiveMessage", lambda call: waiting.set())
        poll = threading.Thread(target=lambda: found.extend(receive(sqs, queue, wait=20)))
        poll.start()
        waiting.wait(10)

        sqs.send_message(QueueUrl=queue, MessageBody="x")
        poll.join(10)

        assert [message["Body"] for message in found] == ["x"]

    def test_a_poll_of_a_killed_process_takes_no_message(self, proxy, sqs, queue, wait_for):
        program = (
            "import boto3, sys\n"
            "boto3.client('sqs').receive_message(QueueUrl=sys.argv[1], WaitTimeSeconds=20)\n"
        )
        process = subprocess.Popen([sys.executable, "-c", program, queue])
        wait_for(lambda: proxy.count("sqs.ReceiveMessage"))

        process.kill()
        process.wait()
        sqs.send_message(QueueUrl=queue, MessageBody="x")

        assert len(receive(sqs, queue, wait=5)) == 1


class TestRules:
    def test_an_action_before_sees_the_call_and_the_work_is_not_yet_done(
        self, proxy, s3, aws_env, bucket
    ):
        seen = []
        direct = boto3.client("s3", endpoint_url=aws_env)

        def look(call):
            seen.append((call.name, call.bucket, call.key, call.body, call.lower["if-none-match"]))
            seen.append(direct.list_objects_v2(Bucket=bucket)["KeyCount"])

        proxy.before("s3.PutObject", look)
        s3.put_object(Bucket=bucket, Key="a/b", Body=b"body", IfNoneMatch="*")

        assert seen == [("s3.PutObject", bucket, "a/b", b"body", "*"), 0]

    def test_an_action_after_runs_when_the_work_is_done_and_nobody_knows(
        self, proxy, s3, aws_env, bucket
    ):
        seen = []
        direct = boto3.client("s3", endpoint_url=aws_env)

        def look(call):
            seen.append((call.answer.status, direct.list_objects_v2(Bucket=bucket)["KeyCount"]))

        proxy.after("s3.PutObject", look)
        s3.put_object(Bucket=bucket, Key="a", Body=b"")

        assert seen == [(200, 1)]

    def test_a_process_can_be_killed_between_its_write_and_the_answer(self, proxy, s3, bucket):
        program = (
            "import boto3, sys\n"
            "s3 = boto3.client('s3')\n"
            "s3.put_object(Bucket=sys.argv[1], Key='first', Body=b'')\n"
            "s3.put_object(Bucket=sys.argv[1], Key='second', Body=b'')\n"
        )
        go = threading.Event()
        pids = []

        def kill(call):
            go.wait(10)
            os.kill(pids[0], signal.SIGKILL)

        proxy.after("s3.PutObject", kill, key="^first$", times=1)
        process = subprocess.Popen([sys.executable, "-c", program, bucket])
        pids.append(process.pid)
        go.set()

        assert process.wait(30) == -signal.SIGKILL
        keys = [item["Key"] for item in s3.list_objects_v2(Bucket=bucket)["Contents"]]
        assert keys == ["first"]

    def test_an_action_may_answer_itself(self, proxy, s3, bucket):
        proxy.before("s3.GetObject", lambda call: Answer(200, b"mine"))

        assert s3.get_object(Bucket=bucket, Key="none")["Body"].read() == b"mine"

    def test_a_rule_takes_only_its_calls_as_often_as_it_was_told(self, proxy, s3, bucket):
        rule = proxy.before("s3.PutObject", lambda call: DROP, key="^b", times=2)

        s3.put_object(Bucket=bucket, Key="a", Body=b"")
        for key in ("b1", "b2"):
            with pytest.raises(ConnectionClosedError):
                s3.put_object(Bucket=bucket, Key=key, Body=b"")
        s3.put_object(Bucket=bucket, Key="b3", Body=b"")

        rule.wait(2, timeout=1)
        with pytest.raises(AssertionError):
            rule.wait(3, timeout=0.01)

    def test_a_stopped_rule_lets_every_call_pass(self, proxy, s3, bucket):
        rule = proxy.fail("s3.PutObject", 503, "SlowDown")
        with pytest.raises(ClientError):
            s3.put_object(Bucket=bucket, Key="k", Body=b"")

        rule.stop()

        s3.put_object(Bucket=bucket, Key="k", Body=b"")

    def test_a_predicate_may_choose(self, proxy, s3, bucket):
        proxy.fail(lambda call: call.body == b"bad", 500, "InternalError")

        s3.put_object(Bucket=bucket, Key="k", Body=b"good")
        with pytest.raises(ClientError):
            s3.put_object(Bucket=bucket, Key="k", Body=b"bad")

    def test_chance_comes_from_the_seed(self, proxy, s3, bucket):
        rule = proxy.fail("s3.HeadBucket", 500, "InternalError", p=0.5)
        for _ in range(60):
            with contextlib.suppress(ClientError):
                s3.head_bucket(Bucket=bucket)

        assert 15 <= rule.hits <= 45

    def test_an_action_that_raises_is_remembered_and_answers_500(self, proxy, s3, bucket):
        proxy.before("s3.GetObject", lambda call: 1 / 0)

        with pytest.raises(ClientError) as failure:
            s3.get_object(Bucket=bucket, Key="k")

        assert code_of(failure) == "InternalError"
        assert isinstance(proxy.errors.pop().__cause__, ZeroDivisionError)


class TestFaults:
    def test_an_error_of_s3_reads_as_from_aws(self, proxy, s3, bucket):
        proxy.fail("s3.PutObject", 503, "SlowDown", 1, message="Please reduce your request rate.")

        with pytest.raises(ClientError) as failure:
            s3.put_object(Bucket=bucket, Key="k", Body=b"")

        error = failure.value.response["Error"]
        assert (error["Code"], error["Message"]) == ("SlowDown", "Please reduce your request rate.")
        assert failure.value.response["ResponseMetadata"]["HTTPStatusCode"] == 503
        s3.put_object(Bucket=bucket, Key="k", Body=b"")

    def test_an_error_of_sqs_carries_the_old_code_too(self, proxy, sqs, queue):
        proxy.fail("sqs.SendMessage", 400, "QueueDoesNotExist")

        with pytest.raises(sqs.exceptions.QueueDoesNotExist) as failure:
            sqs.send_message(QueueUrl=queue, MessageBody="x")

        assert code_of(failure) == "AWS.SimpleQueueService.NonExistentQueue"

    def test_an_error_of_another_service_reads_as_from_aws(self, proxy):
        proxy.fail("sts.GetCallerIdentity", 403, "ExpiredToken")

        with pytest.raises(ClientError) as failure:
            boto3.client("sts", config=ONCE).get_caller_identity()

        assert code_of(failure) == "ExpiredToken"

    def test_a_lost_answer_leaves_the_work_done(self, proxy, s3, bucket):
        proxy.lose_answer("s3.PutObject", 1)

        with pytest.raises(ConnectionClosedError):
            s3.put_object(Bucket=bucket, Key="k", Body=b"1")

        assert s3.get_object(Bucket=bucket, Key="k")["Body"].read() == b"1"

    def test_a_lost_request_leaves_it_undone(self, proxy, s3, bucket):
        proxy.lose_request("s3.PutObject", 1)

        with pytest.raises(ConnectionClosedError):
            s3.put_object(Bucket=bucket, Key="k", Body=b"1")

        assert s3.list_objects_v2(Bucket=bucket)["KeyCount"] == 0

    def test_a_late_write_lands_over_a_newer_one(self, proxy, s3, bucket):
        late = proxy.delay_late("s3.PutObject", key="^k$")
        with pytest.raises(ConnectionClosedError):
            s3.put_object(Bucket=bucket, Key="k", Body=b"old")
        late.wait_held(timeout=5)
        s3.put_object(Bucket=bucket, Key="k", Body=b"new")
        assert s3.get_object(Bucket=bucket, Key="k")["Body"].read() == b"new"

        answers = late.release(timeout=10)

        assert [answer.status for answer in answers] == [200]
        assert s3.get_object(Bucket=bucket, Key="k")["Body"].read() == b"old"

    def test_a_late_conditional_write_is_refused_as_any_other(self, proxy, s3, bucket):
        late = proxy.delay_late("s3.PutObject", key="^k$")
        with pytest.raises(ConnectionClosedError):
            s3.put_object(Bucket=bucket, Key="k", Body=b"old", IfNoneMatch="*")
        s3.put_object(Bucket=bucket, Key="k", Body=b"new", IfNoneMatch="*")

        assert late.release(timeout=10)[0].status == 412
        assert s3.get_object(Bucket=bucket, Key="k")["Body"].read() == b"new"

    def test_down_refuses_and_up_serves_again_at_the_same_address(self, proxy, s3, bucket):
        proxy.down()
        with pytest.raises((EndpointConnectionError, ConnectionClosedError)):
            s3.head_bucket(Bucket=bucket)
        with pytest.raises(EndpointConnectionError):
            boto3.client("s3", config=ONCE).head_bucket(Bucket=bucket)

        proxy.up()

        s3.head_bucket(Bucket=bucket)

    def test_down_cuts_a_call_that_is_under_way(self, proxy, sqs, queue):
        waiting = threading.Event()
        proxy.before("sqs.ReceiveMessage", lambda call: waiting.set())
        outcome = []

        def poll():
            try:
                receive(sqs, queue, wait=20)
            except ConnectionClosedError as error:
                outcome.append(error)

        thread = threading.Thread(target=poll)
        thread.start()
        waiting.wait(10)
        proxy.down()
        thread.join(10)

        assert len(outcome) == 1


class TestLimits:
    @pytest.mark.parametrize(
        ("region", "place", "code"),
        [
            ("us-east-1", None, None),
            ("us-east-1", "us-east-1", "InvalidLocationConstraint"),
            ("eu-central-1", "eu-central-1", None),
            ("eu-central-1", None, "IllegalLocationConstraintException"),
            ("eu-central-1", "eu-west-1", "IllegalLocationConstraintException"),
        ],
    )
    def test_a_bucket_is_created_only_with_the_place_aws_accepts(self, proxy, region, place, code):
        s3 = boto3.client("s3", region_name=region, config=ONCE)
        extra = {"CreateBucketConfiguration": {"LocationConstraint": place}} if place else {}

        if code is None:
            s3.create_bucket(Bucket=str(uuid.uuid4()), **extra)
        else:
            with pytest.raises(ClientError) as failure:
                s3.create_bucket(Bucket=str(uuid.uuid4()), **extra)
            assert code_of(failure) == code

    def test_the_bucket_of_another_owner_is_denied(self, s3, bucket):
        s3.put_object(Bucket=bucket, Key="k", ExpectedBucketOwner="000000000000")
        with pytest.raises(ClientError) as failure:
            s3.put_object(Bucket=bucket, Key="k", ExpectedBucketOwner="111122223333")

        assert code_of(failure) == "AccessDenied"

    @pytest.mark.parametrize("kind", ["SHA256", "SHA1", "CRC32"])
    def test_content_that_is_not_what_its_checksum_says_is_refused(self, s3, bucket, kind):
        s3.put_object(Bucket=bucket, Key="k", Body=b"1", ChecksumAlgorithm=kind)
        answer = s3.head_object(Bucket=bucket, Key="k", ChecksumMode="ENABLED")
        checksum = {f"Checksum{kind}": answer[f"Checksum{kind}"]}

        s3.put_object(Bucket=bucket, Key="k", Body=b"1", **checksum)
        with pytest.raises(ClientError) as failure:
            s3.put_object(Bucket=bucket, Key="k", Body=b"2", **checksum)

        assert code_of(failure) == "BadDigest"

    def test_a_key_has_at_most_1024_bytes(self, s3, bucket):
        s3.put_object(Bucket=bucket, Key="ü" * 512)
        with pytest.raises(ClientError) as failure:
            s3.put_object(Bucket=bucket, Key="ü" * 512 + "x")

        assert code_of(failure) == "KeyTooLongError"

    def test_at_most_1000_objects_are_deleted_at_once(self, s3, bucket):
        many = [{"Key": str(number)} for number in range(1001)]
        s3.delete_objects(Bucket=bucket, Delete={"Objects": many[:1000]})
        with pytest.raises(ClientError) as failure:
            s3.delete_objects(Bucket=bucket, Delete={"Objects": many})

        assert code_of(failure) == "MalformedXML"

    @pytest.mark.parametrize(
        ("ids", "code"),
        [
            ([], "EmptyBatchRequest"),
            (list("0123456789a"), "TooManyEntriesInBatchRequest"),
            (["same", "same"], "BatchEntryIdsNotDistinct"),
            (["not plain"], "InvalidBatchEntryId"),
        ],
    )
    def test_a_batch_has_one_to_ten_entries_with_ids_of_their_own(self, sqs, queue, ids, code):
        with pytest.raises(ClientError) as failure:
            sqs.send_message_batch(
                QueueUrl=queue, Entries=[{"Id": id_, "MessageBody": "x"} for id_ in ids]
            )

        assert code_of(failure) == f"AWS.SimpleQueueService.{code}"
        assert depth(sqs, queue) == 0

    def test_a_batch_has_at_most_1_mib(self, sqs, queue):
        entries = [{"Id": str(number), "MessageBody": "x" * 200_000} for number in range(6)]
        with pytest.raises(ClientError) as failure:
            sqs.send_message_batch(QueueUrl=queue, Entries=entries)

        assert code_of(failure) == "AWS.SimpleQueueService.BatchRequestTooLong"

    @pytest.mark.parametrize(
        "beyond", [{"MaxNumberOfMessages": 11}, {"WaitTimeSeconds": 21}, {"VisibilityTimeout": -1}]
    )
    def test_a_receive_stays_within_its_ranges(self, sqs, queue, beyond):
        with pytest.raises(ClientError) as failure:
            sqs.receive_message(QueueUrl=queue, **beyond)

        assert code_of(failure) == "InvalidParameterValue"


class TestQueuesLikeSqs:
    def test_a_leased_message_is_delivered_again_as_often_as_told(self, proxy, sqs, queue):
        proxy.duplicate_deliveries(times=2)
        sqs.send_message(QueueUrl=queue, MessageBody="x")

        deliveries = [receive(sqs, queue, wait=0) for _ in range(4)]

        assert [len(messages) for messages in deliveries] == [1, 1, 1, 0]
        counts = [m[0]["Attributes"]["ApproximateReceiveCount"] for m in deliveries[:3]]
        assert counts == ["1", "2", "3"]

    def test_some_messages_are_delivered_again(self, proxy, sqs, queue):
        queues = proxy.duplicate_deliveries(0.5)
        for _ in range(4):
            entries = [{"Id": str(i), "MessageBody": "x"} for i in range(10)]
            sqs.send_message_batch(QueueUrl=queue, Entries=entries)

        received = 0
        while messages := receive(sqs, queue, wait=0):
            received += len(messages)

        assert received == 40 + queues.duplicated.total()
        assert 5 <= queues.duplicated.total() <= 35

    @pytest.mark.parametrize("batch", [False, True])
    def test_a_delete_with_an_older_handle_removes_the_message(self, proxy, sqs, queue, batch):
        proxy.duplicate_deliveries()
        sqs.send_message(QueueUrl=queue, MessageBody="x")
        old, new = receive(sqs, queue)[0], receive(sqs, queue)[0]
        assert old["ReceiptHandle"] != new["ReceiptHandle"]

        for message in (old, new, old):
            delete(sqs, queue, message["ReceiptHandle"], batch=batch)

        assert depth(sqs, queue) == 0

    @pytest.mark.parametrize("batch", [False, True])
    def test_a_delete_with_an_older_handle_may_do_nothing(self, proxy, sqs, queue, batch):
        proxy.duplicate_deliveries()
        proxy.like_sqs(stale_deletes=False)
        sqs.send_message(QueueUrl=queue, MessageBody="x")
        old, new = receive(sqs, queue)[0], receive(sqs, queue)[0]

        delete(sqs, queue, old["ReceiptHandle"], batch=batch)
        assert depth(sqs, queue) == 1

        delete(sqs, queue, new["ReceiptHandle"], batch=batch)
        assert depth(sqs, queue) == 0

    def test_an_older_handle_exposes_what_another_holds(self, proxy, sqs, queue):
        proxy.duplicate_deliveries()
        sqs.send_message(QueueUrl=queue, MessageBody="x")
        old, _ = receive(sqs, queue)[0], receive(sqs, queue)[0]
        assert receive(sqs, queue, wait=0) == []

        hide(sqs, queue, old["ReceiptHandle"], 0)

        assert len(receive(sqs, queue, wait=0)) == 1

    def test_extending_what_is_not_in_flight_answers_200_and_does_nothing(self, proxy, sqs, queue):
        sqs.send_message(QueueUrl=queue, MessageBody="x")
        message = receive(sqs, queue, visibility=0)[0]

        hide(sqs, queue, message["ReceiptHandle"], 30)

        assert len(receive(sqs, queue, wait=0)) == 1

    def test_extending_what_was_deleted_is_refused(self, proxy, sqs, queue):
        sqs.send_message(QueueUrl=queue, MessageBody="x")
        handle = receive(sqs, queue)[0]["ReceiptHandle"]
        delete(sqs, queue, handle, batch=False)

        with pytest.raises(ClientError) as failure:
            hide(sqs, queue, handle, 30)

        assert code_of(failure) == "InvalidParameterValue"

    def test_a_batch_is_answered_entry_by_entry(self, proxy, sqs, queue):
        for body in "ab":
            sqs.send_message(QueueUrl=queue, MessageBody=body)
        handles = {m["Body"]: m["ReceiptHandle"] for m in receive(sqs, queue)}
        delete(sqs, queue, handles["a"], batch=True)
        entries = [
            {"Id": "deleted", "ReceiptHandle": handles["a"], "VisibilityTimeout": 9},
            {"Id": "held", "ReceiptHandle": handles["b"], "VisibilityTimeout": 9},
            {"Id": "foreign", "ReceiptHandle": "nobody's", "VisibilityTimeout": 9},
        ]

        answer = sqs.change_message_visibility_batch(QueueUrl=queue, Entries=entries)

        assert [entry["Id"] for entry in answer["Successful"]] == ["held"]
        failed = {entry["Id"]: entry["Code"] for entry in answer["Failed"]}
        assert failed == {"deleted": "InvalidParameterValue", "foreign": "ReceiptHandleIsInvalid"}

    def test_empty_lists_are_absent_from_answers(self, proxy, sqs, queue):
        sqs.send_message(QueueUrl=queue, MessageBody="x")
        entry = {"Id": "0", "ReceiptHandle": receive(sqs, queue)[0]["ReceiptHandle"]}

        answer = sqs.delete_message_batch(QueueUrl=queue, Entries=[entry])

        assert "Failed" not in answer

    @pytest.mark.parametrize("batch", [False, True])
    def test_the_ceiling_refuses_what_ends_beyond_it(self, proxy, sqs, queue, batch):
        ceiling = proxy.ceiling(60)
        sqs.send_message(QueueUrl=queue, MessageBody="x")
        handle = receive(sqs, queue)[0]["ReceiptHandle"]

        hide(sqs, queue, handle, 50)
        if batch:
            entry = {"Id": "0", "ReceiptHandle": handle, "VisibilityTimeout": 61}
            failed = sqs.change_message_visibility_batch(QueueUrl=queue, Entries=[entry])["Failed"]
            code, message = failed[0]["Code"], failed[0]["Message"]
        else:
            with pytest.raises(ClientError) as failure:
                hide(sqs, queue, handle, 61)
            error = failure.value.response["Error"]
            code, message = error["Code"], error["Message"]

        assert code == "InvalidParameterValue"
        assert "beyond the limit [43200 seconds]" in message
        assert ceiling.refused == 1

    def test_a_new_receive_counts_anew_for_the_ceiling(self, proxy, sqs, queue, wait_for):
        proxy.ceiling(1.3)
        sqs.send_message(QueueUrl=queue, MessageBody="x")
        handle = receive(sqs, queue, visibility=1)[0]["ReceiptHandle"]
        wait_for(lambda: refused(sqs, queue, handle, 1), timeout=5)

        handle = receive(sqs, queue, wait=5)[0]["ReceiptHandle"]

        assert not refused(sqs, queue, handle, 1)

    def test_the_default_visibility_of_the_queue_is_known(self, proxy, sqs, queue):
        attributes = {"VisibilityTimeout": "0"}
        sqs.set_queue_attributes(QueueUrl=queue, Attributes=attributes)
        sqs.send_message(QueueUrl=queue, MessageBody="x")
        handle = sqs.receive_message(QueueUrl=queue)["Messages"][0]["ReceiptHandle"]

        hide(sqs, queue, handle, 30)

        assert len(receive(sqs, queue, wait=0)) == 1

    def test_nothing_is_lost_where_two_consumers_fight_over_doubles(self, proxy, sqs, queue):
        queues = proxy.duplicate_deliveries(0.7, times=3)
        bodies = {str(number) for number in range(100)}
        for start in range(0, 100, 10):
            entries = [{"Id": str(i), "MessageBody": str(start + i)} for i in range(10)]
            sqs.send_message_batch(QueueUrl=queue, Entries=entries)
        seen, failures = [], []

        def consume():
            while messages := receive(sqs, queue, wait=1):
                entries = [
                    {"Id": str(i), "ReceiptHandle": m["ReceiptHandle"]}
                    for i, m in enumerate(messages)
                ]
                longer = [{**entry, "VisibilityTimeout": 60} for entry in entries]
                sqs.change_message_visibility_batch(QueueUrl=queue, Entries=longer)
                answer = sqs.delete_message_batch(QueueUrl=queue, Entries=entries)
                failures.extend(answer.get("Failed", []))
                seen.extend(m["Body"] for m in messages)

        threads = [threading.Thread(target=consume) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)

        assert set(seen) == bodies
        assert failures == []
        assert queues.duplicated.total() > 50
        assert depth(sqs, queue) == 0


def delete(sqs, queue, handle, *, batch):
    if batch:
        entries = [{"Id": "0", "ReceiptHandle": handle}]
        answer = sqs.delete_message_batch(QueueUrl=queue, Entries=entries)
        assert [entry["Id"] for entry in answer["Successful"]] == ["0"]
    else:
        sqs.delete_message(QueueUrl=queue, ReceiptHandle=handle)


def hide(sqs, queue, handle, seconds):
    sqs.change_message_visibility(QueueUrl=queue, ReceiptHandle=handle, VisibilityTimeout=seconds)


def refused(sqs, queue, handle, seconds):
    try:
        hide(sqs, queue, handle, seconds)
    except ClientError as error:
        return error.response["Error"]["Code"] == "InvalidParameterValue"
    return False


def depth(sqs, queue):
    names = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]
    answer = sqs.get_queue_attributes(QueueUrl=queue, AttributeNames=names)
    return sum(int(value) for value in answer["Attributes"].values())
