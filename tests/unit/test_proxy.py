import boto3


def test_smoke(proxy):
    s3 = boto3.client("s3")
    s3.create_bucket(Bucket="b-1", CreateBucketConfiguration={"LocationConstraint": "eu-central-1"})
    s3.put_object(Bucket="b-1", Key="a b/ü", Body=b"x" * 100)
    assert s3.get_object(Bucket="b-1", Key="a b/ü")["Body"].read() == b"x" * 100
    print(proxy.counts)
    sqs = boto3.client("sqs")
    url = sqs.create_queue(QueueName="q1")["QueueUrl"]
    sqs.send_message(QueueUrl=url, MessageBody="x")
    print(proxy.calls, url)
