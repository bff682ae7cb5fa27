"""The notice that EC2 gives before it takes a spot instance away, two minutes at best.

It is read from the instance metadata service, version 2: a token first, then the notice,
where 404 means that there is none. EC2 advises to look every 5 seconds. Nothing but urllib,
since this has to work wherever a worker runs, and not through any proxy: the address is only
reached from the instance itself.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from http.client import HTTPException
from urllib.error import HTTPError
from urllib.request import ProxyHandler, Request, build_opener

from adr.times import parse_time

__all__ = ["Notice", "watch"]

_log = logging.getLogger(__name__)

_EVERY_S = 5.0
_TIMEOUT_S = 2.0
_TOKEN_S = 3600
#: Where the notice does not say when: what EC2 promises.
_USUAL_S = 120.0
#: Kept free before that moment, to store and give back.
_RESERVE_S = 30.0
_LEAST_S = 5.0
_ENDPOINT = "http://169.254.169.254"
_ACTIONS = {"terminate", "stop", "hibernate"}


@dataclass(frozen=True)
class Notice:
    """Say when the instance is taken away."""

    at: float

    def until_s(self) -> float:
        """Return how long it is until then, in seconds; a wrong clock makes it no longer."""
        return min(self.at - time.time(), _USUAL_S)

    def left_s(self) -> float:
        """Return how long jobs may still run, in seconds."""
        return max(_LEAST_S, self.until_s() - _RESERVE_S)


def watch(over: threading.Event, on_notice: Callable[[Notice], None]) -> None:
    """Look for a notice until `over`, or until there is one; blocks.

    The service is sought at ``AWS_EC2_METADATA_SERVICE_ENDPOINT`` if that is set.

    Parameters
    ----------
    over : Event
        Ends the watch.
    on_notice : callable
        Called once, with the notice.
    """
    service = _Metadata(os.environ.get("AWS_EC2_METADATA_SERVICE_ENDPOINT") or _ENDPOINT)
    is_away = False
    while not over.is_set():
        try:
            notice = service.notice()
        except (OSError, HTTPException, ValueError) as error:
            if not is_away:
                _log.warning("cannot see interruptions of this instance: %s", error)
            is_away = True
        else:
            is_away = False
            if notice is not None:
                on_notice(notice)
                return
        over.wait(_EVERY_S)


class _Metadata:
    def __init__(self, endpoint: str) -> None:
        self._latest = endpoint.rstrip("/") + "/latest"
        self._opener = build_opener(ProxyHandler({}))
        self._token: str | None = None

    def notice(self) -> Notice | None:
        """Ask once; twice where the token has ended."""
        fresh = self._token is None
        try:
            return self._ask()
        except HTTPError as error:
            if error.code != 401 or fresh:
                raise
            self._token = None
            return self._ask()

    def _ask(self) -> Notice | None:
        if self._token is None:
            headers = {"X-aws-ec2-metadata-token-ttl-seconds": str(_TOKEN_S)}
            self._token = self._call("PUT", "/api/token", headers)
        headers = {"X-aws-ec2-metadata-token": self._token}
        try:
            text = self._call("GET", "/meta-data/spot/instance-action", headers)
        except HTTPError as error:
            if error.code == 404:
                return None
            raise
        return _read(text)

    def _call(self, method: str, path: str, headers: dict[str, str]) -> str:
        request = Request(self._latest + path, headers=headers, method=method)
        with self._opener.open(request, timeout=_TIMEOUT_S) as answer:
            body: bytes = answer.read()
            return body.decode("utf-8", "replace")


def _read(text: str) -> Notice | None:
    """Read ``{"action": "terminate", "time": "2026-11-20T09:12:00Z"}``."""
    said = json.loads(text)
    if not isinstance(said, dict) or said.get("action") not in _ACTIONS:
        return None
    try:
        at = parse_time(said["time"])
    except (KeyError, ValueError, TypeError, AttributeError):
        at = None
    return Notice(time.time() + _USUAL_S if at is None else at)
