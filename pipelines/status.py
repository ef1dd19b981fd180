"""What an operator asks first: who is champion, who could follow, what is there to go back to, what happened last.

Data in: the ledger and the gate reports of a model, the signed channel. Data out: `Status`, and its text of plain
lines. Invariants: nothing is written, MLflow isn't asked (its aliases are derived: pipelines/reconcile.py); a channel
that can't be read is told, not fatal; whatever people typed is shown harmless (pipelines/plain_text.py).

Run: python -m pipelines.status model=M
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from pipelines.config import Operation
from pipelines.gates import MODEL_PREDICTOR
from pipelines.plain_text import HASH_SHOWN, printable, table
from serving.blobstore import BlobStore, open_store
from serving.errors import BlobMissingError, LedgerError, StrikeforgeError
from serving.events import TIME_FORMAT, Event, is_time
from serving.ledger import Ledger, State, Version, fold
from serving.release import report_key

if TYPE_CHECKING:
    from pipelines.channel.publish import Channel

EVENTS_SHOWN = 10


@dataclass(frozen=True)
class VersionLine:
    """One version; `test_error` is IV RMSE on its test dates in vol points, None if none was recorded."""

    version: int
    role: str  # champion, challenger, former champion, registered, refused, retired
    test_error: float | None
    gates: str
    bundle_sha256: str
    registered_at: str


@dataclass(frozen=True)
class Status:
    """A model's ledger as of its event `seq`; the numbers are versions."""

    model: str
    store: str
    seq: int
    head: str
    champion: int | None
    challenger: int | None
    rollback_target: int | None
    release_number: int
    versions: tuple[VersionLine, ...]
    events: tuple[Event, ...]  # the latest, oldest first
    gated: int | None  # the version gated last
    outcomes: tuple[str, ...]  # its gates, one line each
    channel: tuple[str, ...]  # how the signed channel stands to the ledger
    expiry_warning: str  # that hosts refuse the release, or soon will; else empty

    @property
    def message(self) -> str:
        """Everything as lines of text."""
        release = f", release {self.release_number}" if self.champion else ""
        lines = [
            f"{self.model}: champion {_version(self.champion)}{release}; challenger {_version(self.challenger)}; "
            f"a rollback would go to {_version(self.rollback_target)}",
            f"{self.store}, event {self.seq}, head {self.head}",
            *(f"signed channel: {printable(line)}" for line in self.channel),
            *([self.expiry_warning] if self.expiry_warning else []),
            "",
            *table(
                ("version", "role", "test error", "gates", "bundle", "registered"),
                [
                    (
                        str(line.version),
                        line.role,
                        "-" if line.test_error is None else f"{line.test_error:.4g}",
                        line.gates,
                        line.bundle_sha256[:HASH_SHOWN],
                        line.registered_at,
                    )
                    for line in self.versions
                ],
            ),
            "test error: IV RMSE on the version's own test dates, vol points",
            "",
        ]
        if self.gated is not None:
            lines += [f"latest gates, of version {self.gated}:", *(f"  {line}" for line in self.outcomes), ""]
        lines.append(f"last {len(self.events)} of {self.seq} events:")
        lines += [
            f"  {event.seq} {event.at} {event.kind} {_which(event)} by {printable(event.by)}"
            + (f": {printable(event.reason)}" if event.reason else "")
            for event in self.events
        ]
        return "\n".join(lines)


def status(model: str, store: BlobStore, channel: Channel, *, now: datetime | None = None) -> Status:
    """Read ledger and channel; LedgerError if there is no ledger, or if it is broken. `now` has a time zone."""
    ledger = Ledger(store, model)
    events = ledger.events()
    state = fold(model, events)
    if state.seq == 0:
        raise LedgerError(f"{model}: there is no ledger in {store!r}; is it the right store?")
    gated = next((event for event in reversed(events) if event.kind == "gated"), None)
    return Status(
        model=model,
        store=repr(store),
        seq=state.seq,
        head=state.head,
        champion=state.champion.version if state.champion else None,
        challenger=state.challenger.version if state.challenger else None,
        rollback_target=state.rollback_target,
        release_number=state.release_number,
        versions=tuple(_line(state, state.versions[number]) for number in sorted(state.versions)),
        events=tuple(events[-EVENTS_SHOWN:]),
        gated=gated.version if gated else None,
        outcomes=_outcomes(gated, store) if gated else (),
        channel=_channel_lines(state, channel),
        expiry_warning=_expiry_warning(state, events, now or datetime.now(UTC)),
    )


def _channel_lines(state: State, channel: Channel) -> tuple[str, ...]:
    """What would have to change in the channel for it to say what the ledger says."""
    try:
        due = channel.follow(state.model, dry_run=True)
    except (StrikeforgeError, OSError) as error:  # OSError: a folder of keys that can't be read
        return (f"can't be relied on: {error}",)
    if due:
        return tuple(f"is behind, reconcile: {line}" for line in due)
    return (f"says release {state.release_number}",) if state.champion else ("says nothing, as there is no champion",)


def _expiry_warning(state: State, events: Sequence[Event], now: datetime) -> str:
    """What is to be said of the champion's release if hosts refuse it, or soon will."""
    from pipelines.channel.content import expiry_note

    if state.champion is None:
        return ""
    decided = events[state.champion.seq - 1]
    expires_at = decided.details.get("expires_at")
    if not is_time(expires_at):
        return ""
    life = _parsed(str(expires_at)) - _parsed(decided.at)
    return expiry_note(state.release_number, str(expires_at), life, now)


def _parsed(time: str) -> datetime:
    return datetime.strptime(time, TIME_FORMAT).replace(tzinfo=UTC)


def _line(state: State, known: Version) -> VersionLine:
    gates = "not run" if known.gated is None else f"{'passed' if known.passed_gates else 'failed'} {known.gated.at}"
    return VersionLine(
        known.version, _role(state, known), _test_error(known.registered.details), gates, known.bundle,
        known.registered.at,
    )  # fmt: skip


def _role(state: State, known: Version) -> str:
    if known.retired:
        return "retired"
    if state.champion is not None and state.champion.version == known.version:
        return "champion"
    if state.challenger is not None and state.challenger.version == known.version:
        return "challenger"
    if known.was_champion:
        return "former champion"
    return "refused" if known.gated is not None and not known.passed_gates else "registered"


def _test_error(details: Mapping[str, Any]) -> float | None:
    value: Any = details
    for key in ("metrics", "test", MODEL_PREDICTOR, "iv_rmse"):
        value = value.get(key) if isinstance(value, Mapping) else None
    usable = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if usable else None


def _verdict(outcome: Mapping[str, Any]) -> str:
    if outcome.get("asked") is False:
        return "NOT ASKED"
    return "passed" if outcome["passed"] else "FAILED"


def _outcomes(gated: Event, store: BlobStore) -> tuple[str, ...]:
    """The gates of the report the event names; a report that isn't there, or says nothing of gates, is told."""
    sha256 = str(gated.details.get("report"))
    try:
        report = json.loads(store.get(report_key(sha256)))
        return tuple(
            f"{outcome['name']} {_verdict(outcome)}: {printable(outcome['message'])}" for outcome in report["outcomes"]
        )
    except BlobMissingError:
        return (f"{report_key(sha256)} isn't in the store",)
    except (ValueError, KeyError, TypeError) as error:
        return (f"{report_key(sha256)} can't be read: {type(error).__name__}: {error}",)


def _which(event: Event) -> str:
    """The version an event is about; a rollback goes from one to another."""
    before = event.details.get("from")
    step = event.kind == "rolled_back" and type(before) is int
    return f"version {before} -> {event.version}" if step else f"version {event.version}"


def _version(number: int | None) -> str:
    return "none" if number is None else f"version {number}"


def run(cfg: Operation) -> Status:
    """The state of `model` in the store and in the channel."""
    from pipelines.channel.publish import open_channel

    store = open_store(cfg.storage.url)
    return status(cfg.model.name, store, open_channel(cfg.signing, store))


if __name__ == "__main__":
    from pipelines.command import operation

    raise SystemExit(operation(__doc__, run))
