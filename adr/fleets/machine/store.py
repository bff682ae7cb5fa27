"""Reach the store of the runner with the role of this instance; adr is not there yet.

store.py instance
store.py fetch BUCKET KEY FILE [SHA256]
store.py report BUCKET KEY FILE
"""

from __future__ import annotations

import hashlib
import os
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

METADATA = "http://169.254.169.254/latest"
#: A new role and its keys reach all servers of AWS only after a while.
FETCH_WITHIN_S = 300
REPORT_WITHIN_S = 60
#: What will be the same at the next try.
FINAL = {"NoSuchKey", "NoSuchBucket", "404", "PermanentRedirect", "AuthorizationHeaderMalformed"}


def instance() -> str:
    """Return the id of this instance."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def ask(method: str, path: str, **headers: str) -> str:
        request = urllib.request.Request(METADATA + path, method=method)
        for name, value in headers.items():
            request.add_header("X-aws-ec2-metadata-" + name.replace("_", "-"), value)
        with opener.open(request, timeout=5) as answer:
            body: bytes = answer.read()
        return body.decode()

    token = ask("PUT", "/api/token", token_ttl_seconds="60")
    return ask("GET", "/meta-data/instance-id", token=token)


def patiently(within_s: float, call: Callable[[Any], Any]) -> Any:
    """Call with a client of S3 until the role is usable."""
    import boto3
    from botocore.exceptions import BotoCoreError, ClientError

    over_at = time.monotonic() + within_s
    said = ""
    while True:
        try:
            # A session keeps that it has found no credentials.
            return call(boto3.Session().client("s3"))
        except (BotoCoreError, ClientError) as error:
            code = error.response["Error"].get("Code") if isinstance(error, ClientError) else ""
            if code in FINAL or time.monotonic() > over_at:
                raise
            if str(error) != said:
                said = str(error)
                print(f"adr: the store cannot be used yet: {said}", flush=True)
            time.sleep(3)


def fetch(bucket: str, key: str, file: str, sha256: str = "") -> None:
    """Write an object to a file, whole and with this digest or not at all."""
    body = patiently(
        FETCH_WITHIN_S, lambda s3: s3.get_object(Bucket=bucket, Key=key)["Body"].read()
    )
    found = hashlib.sha256(body).hexdigest()
    if sha256 not in ("", found):
        sys.exit(f"adr: {key} was changed: its SHA-256 is {found}, not {sha256}")
    part = Path(file + ".part")
    part.write_bytes(body)
    os.replace(part, file)


def report(bucket: str, key: str, file: str) -> None:
    """Store a file under a key that names this instance."""
    key = key.replace("@INSTANCE@", instance())
    body = Path(file).read_bytes()
    patiently(REPORT_WITHIN_S, lambda s3: s3.put_object(Bucket=bucket, Key=key, Body=body))


def main(verb: str, *words: str) -> None:
    """Do what the command line says."""
    try:
        if verb == "instance":
            print(instance())
        else:
            {"fetch": fetch, "report": report}[verb](*words)
    except Exception as error:
        # One line in the log of the set up instead of a traceback.
        sys.exit(f"adr: cannot {verb} {' '.join(words[1:2])}: {error}")


if __name__ == "__main__":
    main(*sys.argv[1:])
