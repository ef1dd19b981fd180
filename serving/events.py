"""One event of a ledger: its fields, its bytes, and what makes it unusable on its own.

Data in: bytes of `ledger/<model>/<seq:08d>.json`. Data out: `Event`. Invariants:
`parse_event(event.to_bytes())` is the event; bytes with an unknown or missing field, another type, or not in
canonical form are refused, naming key and field. What makes an event impossible after others is the fold's
business, in serving/ledger.py.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from serving.canonical import canonical_json, is_model_name, is_sha256, parse_canonical
from serving.errors import LedgerError

EVENT_FORMAT = 1
KINDS = ("registered", "gated", "promoted", "rolled_back", "retired")
TIME_FORMAT = "%Y-%m-%dT%H:%M:%S.%fZ"


@dataclass(frozen=True, kw_only=True)
class Event:
    """One decision; field for field what the file holds."""

    model: str
    seq: int
    kind: str
    version: int
    bundle: str
    at: str
    by: str
    reason: str
    previous: str
    details: Mapping[str, Any]
    format: int = EVENT_FORMAT

    @property
    def key(self) -> str:
        return event_key(self.model, self.seq)

    def to_bytes(self) -> bytes:
        values = {item.name: getattr(self, item.name) for item in dataclasses.fields(self)}
        return canonical_json(values | {"details": dict(self.details)})


EVENT_FIELDS = frozenset(item.name for item in dataclasses.fields(Event))


def event_key(model: str, seq: int) -> str:
    return f"ledger/{model}/{seq:08d}.json"


def parse_event(raw: bytes, *, model: str, seq: int) -> Event:
    """The event of these bytes; LedgerError naming its key and what is wrong."""
    key = event_key(model, seq)
    try:
        values = parse_canonical(raw)
    except ValueError as error:
        raise LedgerError(f"{key}: {error}") from error
    if not isinstance(values, dict):
        raise LedgerError(f"{key}: isn't a JSON object")
    unknown, missing = values.keys() - EVENT_FIELDS, EVENT_FIELDS - values.keys()
    if unknown or missing:
        raise LedgerError(f"{key}: unknown fields {sorted(unknown)}, missing fields {sorted(missing)}")
    event = Event(**values)
    for problem in _field_problems(event):
        raise LedgerError(f"{key}: {problem}")
    if (event.model, event.seq) != (model, seq):
        raise LedgerError(f"{key}: says it is event {event.seq} of model {event.model!r}")
    return event


def _field_problems(event: Event) -> Sequence[str]:
    checks = {
        "format": type(event.format) is int and event.format == EVENT_FORMAT,
        "model": is_model_name(event.model),
        "seq": type(event.seq) is int and event.seq >= 1,
        "kind": event.kind in KINDS,
        "version": type(event.version) is int and event.version >= 1,
        "bundle": is_sha256(event.bundle),
        "at": is_time(event.at),
        "by": isinstance(event.by, str) and bool(event.by.strip()),
        "reason": isinstance(event.reason, str) and (event.kind != "rolled_back" or bool(event.reason.strip())),
        "previous": is_sha256(event.previous),
        "details": isinstance(event.details, dict),
    }
    return [f"unusable {name}: {getattr(event, name)!r}" for name, fine in checks.items() if not fine]


def is_time(text: object) -> bool:
    """Whether it is a time as events hold them (TIME_FORMAT, UTC)."""
    if not isinstance(text, str):
        return False
    try:
        return datetime.strptime(text, TIME_FORMAT).replace(tzinfo=UTC).strftime(TIME_FORMAT) == text
    except ValueError:
        return False
