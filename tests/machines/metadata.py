"""The metadata service of EC2, version 2 only, at its own address on the bridge of a network.

It tells its clients apart by their addresses. What it answers follows "Instance metadata
categories" of the EC2 User Guide.
"""

from __future__ import annotations

import json
import secrets
import socket
import socketserver
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from http.server import BaseHTTPRequestHandler

from tests.network import Network

ADDRESS = "169.254.169.254"
ACCOUNT = "123456789012"


@dataclass
class Credentials:
    """Keys of a role, as STS gives them."""

    key_id: str
    secret: str
    token: str
    expires_at: datetime


@dataclass
class InstanceData:
    """What the service tells one instance of itself."""

    instance_id: str
    region: str
    type: str = "t3.micro"
    public_ip: str | None = None
    user_data: bytes = b""
    profile: str | None = None
    role: str | None = None
    #: Gives the keys of the role; called at each request.
    lend: Callable[[], Credentials] | None = None
    #: How often the role is still unknown, as it is at first in a new instance.
    unknown: int = 0
    #: Action and time of the interruption that is announced.
    notice: tuple[str, datetime] | None = None
    #: Every path that was asked for, with the status of the answer.
    asked: list[tuple[str, int]] = field(default_factory=list)
    tokens: set[str] = field(default_factory=set)


class MetadataService:
    """Serve instances of one network; a context manager."""

    def __init__(self, network: Network) -> None:
        network.add_address(ADDRESS)
        #: By the address of the instance.
        self.instances: dict[str, InstanceData] = {}
        self._server = _Server(network.bridge, self)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def __enter__(self) -> MetadataService:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def announce(self, address: str, action: str = "terminate", seconds: float = 120) -> None:
        """Tell a spot instance that it is interrupted in so many seconds."""
        at = datetime.now(timezone.utc) + timedelta(seconds=seconds)
        self.instances[address].notice = (action, at)


class _Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True

    def __init__(self, device: str, service: MetadataService) -> None:
        self.service = service
        super().__init__((ADDRESS, 80), _Handler, bind_and_activate=False)
        # Other networks of this machine have the same address.
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device.encode())
        self.server_bind()
        self.server_activate()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 30
    server: _Server

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_PUT(self) -> None:
        data = self.server.service.instances.get(self.client_address[0])
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        lifetime = self.headers.get("X-aws-ec2-metadata-token-ttl-seconds", "")
        if data is None or self.path != "/latest/api/token":
            self._answer(data, 404)
        elif "X-Forwarded-For" in self.headers:
            self._answer(data, 403)
        elif not lifetime.isdigit() or not 1 <= int(lifetime) <= 21600:
            self._answer(data, 400)
        else:
            token = secrets.token_urlsafe()
            data.tokens.add(token)
            self._answer(data, 200, token)

    def do_GET(self) -> None:
        data = self.server.service.instances.get(self.client_address[0])
        if data is None:
            self._answer(data, 404)
        elif self.headers.get("X-aws-ec2-metadata-token") not in data.tokens:
            self._answer(data, 401)
        else:
            found = _read(data, self.client_address[0], self.path)
            self._answer(data, 404 if found is None else 200, found or "")

    def _answer(self, data: InstanceData | None, status: int, body: str | bytes = "") -> None:
        if data is not None:
            data.asked.append((self.path, status))
        content = body.encode() if isinstance(body, str) else body
        self.send_response(status)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


def _read(data: InstanceData, address: str, path: str) -> str | bytes | None:
    """Return what stands at a path; None where nothing does."""
    if path == "/latest/user-data":
        return data.user_data or None
    if path == "/latest/dynamic/instance-identity/document":
        return json.dumps(
            {
                "accountId": ACCOUNT,
                "instanceId": data.instance_id,
                "instanceType": data.type,
                "privateIp": address,
                "region": data.region,
                "availabilityZone": f"{data.region}a",
            }
        )
    top, _, name = path.partition("/meta-data/")
    if top != "/latest":
        return None
    plain = {
        "instance-id": data.instance_id,
        "instance-type": data.type,
        "local-ipv4": address,
        "public-ipv4": data.public_ip,
        "placement/region": data.region,
        "placement/availability-zone": f"{data.region}a",
    }
    if name in plain:
        return plain[name]
    if name.startswith("spot/"):
        return _notice(data, name)
    if name.startswith("iam/"):
        return _role(data, name)
    return None


def _notice(data: InstanceData, name: str) -> str | None:
    if data.notice is None:
        return None
    action, at = data.notice
    if name == "spot/instance-action":
        return json.dumps({"action": action, "time": _time(at)})
    return _time(at) if name == "spot/termination-time" and action == "terminate" else None


def _role(data: InstanceData, name: str) -> str | None:
    if data.role is None or data.lend is None:
        return None
    now = _time(datetime.now(timezone.utc))
    if name == "iam/info":
        arn = f"arn:aws:iam::{ACCOUNT}:instance-profile/{data.profile}"
        return json.dumps({"Code": "Success", "LastUpdated": now, "InstanceProfileArn": arn})
    if name.rstrip("/") == "iam/security-credentials":
        if data.unknown:
            data.unknown -= 1
            return None
        return data.role
    if name != f"iam/security-credentials/{data.role}":
        return None
    keys = data.lend()
    return json.dumps(
        {
            "Code": "Success",
            "LastUpdated": now,
            "Type": "AWS-HMAC",
            "AccessKeyId": keys.key_id,
            "SecretAccessKey": keys.secret,
            "Token": keys.token,
            "Expiration": _time(keys.expires_at),
        }
    )


def _time(at: datetime) -> str:
    return at.strftime("%Y-%m-%dT%H:%M:%SZ")
