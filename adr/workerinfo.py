"""What a worker tells of itself in its heartbeats, for `adr.roster` to keep and others to show."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from adr.documents import known_fields, reading
from adr.models import SCHEMA, check_schema
from adr.times import parse_time, time_text

__all__ = ["SlotInfo", "WorkerInfo"]


@dataclass(frozen=True)
class SlotInfo:
    """Say what one slot of a worker runs."""

    batch: str
    index: int
    generation: int
    attempt: str
    started_at: float


@dataclass(frozen=True)
class WorkerInfo:
    """Describe a worker, as its heartbeat tells it."""

    worker: str
    host: str
    pid: int
    slots: int
    started_at: float
    adr_version: str
    done: int = 0
    running: tuple[SlotInfo, ...] = field(default=())
    #: What somebody should know of it, in words: why it is about to leave.
    note: str = ""
    #: True in the last heartbeat of a worker that has left in good order.
    left: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON object; times as text."""
        data: dict[str, Any] = {"schema": SCHEMA, **asdict(self)}
        data["started_at"] = time_text(self.started_at)
        data["running"] = [
            {**asdict(slot), "started_at": time_text(slot.started_at)} for slot in self.running
        ]
        return data

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> WorkerInfo:
        """Read what `to_dict` wrote; unknown fields are ignored."""
        what = "the heartbeat of a worker"
        check_schema(data, what)
        with reading(what):
            values = {**data}
            values["started_at"] = parse_time(values["started_at"])
            running = [
                {**slot, "started_at": parse_time(slot["started_at"])}
                for slot in values.get("running", ())
            ]
            values["running"] = tuple(SlotInfo(**known_fields(SlotInfo, each)) for each in running)
            return cls(**known_fields(cls, values))
