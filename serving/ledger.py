"""The record of every release decision: append-only, hash-chained events of one model.

Data in and out: events `ledger/<model>/<seq:08d>.json` in a blob store, canonical JSON, numbered from 1; each
holds the sha256 of the exact bytes before it. State is the fold of the events; aliases and channels are
derived from it.
Invariants: an event is never changed or removed; the store's create-if-absent picks one winner of a race and
the loser is told who won; a version has one bundle and a bundle one version; only a version whose latest
gates passed is promoted; a release number is never used twice. Cutting events off the end, or rewriting the
very last one, can't be seen from the chain alone: the signed channel's release number and the head's hash are
what a host compares with.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any

from serving.blobstore import BlobStore
from serving.canonical import is_model_name, sha256_hex
from serving.errors import LedgerError
from serving.events import TIME_FORMAT, Event, event_key, parse_event

CHANNELS = ("champion", "challenger")
GENESIS = "0" * 64
MAX_EVENT_BYTES = 1 << 20
EVENT_NAME = re.compile(r"[0-9]{8}\.json", re.ASCII)


class LedgerRaceError(LedgerError):
    """Somebody else wrote the next event first; `winner` is that event. Nothing of ours was written."""

    def __init__(self, winner: Event) -> None:
        self.winner = winner
        super().__init__(
            f"{winner.key}: {winner.by} wrote it meanwhile ({winner.kind} version {winner.version} "
            f"at {winner.at}); nothing of yours was written; look at the new state, then run again"
        )


@dataclass(frozen=True)
class Version:
    """What the ledger knows of one registered version."""

    version: int
    bundle: str
    registered: Event
    gated: Event | None = None  # the latest one
    promoted: Event | None = None  # the latest one; a rollback goes back to what it names
    was_champion: bool = False
    retired: bool = False

    @property
    def passed_gates(self) -> bool:
        return self.gated is not None and self.gated.details["passed"] is True


@dataclass(frozen=True)
class Release:
    """One answer to "what runs now": its number only grows, also on a rollback."""

    number: int
    version: int
    bundle: str
    kind: str
    seq: int


@dataclass(frozen=True)
class State:
    """Everything that follows from the first `seq` events of a model."""

    model: str
    seq: int = 0
    head: str = GENESIS  # sha256 of the latest event's bytes
    versions: Mapping[int, Version] = field(default_factory=lambda: MappingProxyType({}))
    releases: tuple[Release, ...] = ()  # the champion's history, oldest first
    fallbacks: tuple[int, ...] = ()  # champions a rollback walks down, the current one last; a rollback pops

    @property
    def release_number(self) -> int:
        return len(self.releases)

    @property
    def champion(self) -> Release | None:
        return self.releases[-1] if self.releases else None

    @property
    def challenger(self) -> Version | None:
        """The latest registered version that passed its gates and has never been champion."""
        candidates = [
            version
            for version in self.versions.values()
            if version.passed_gates and not version.was_champion and not version.retired
        ]
        return max(candidates, key=lambda version: version.registered.seq, default=None)

    @property
    def retired(self) -> frozenset[int]:
        return frozenset(number for number, version in self.versions.items() if version.retired)

    @property
    def rollback_target(self) -> int | None:
        """The champion before the current one that isn't retired; never one that was rolled back from."""
        for number in reversed(self.fallbacks[:-1]):
            if number != self.fallbacks[-1] and not self.versions[number].retired:
                return number
        return None

    def version_of_bundle(self, bundle: str) -> int | None:
        return next((number for number, version in self.versions.items() if version.bundle == bundle), None)

    def known(self, version: int) -> Version:
        """The registered version; LedgerError, naming those there are, if it isn't."""
        if version not in self.versions:
            there_are = ", ".join(str(number) for number in sorted(self.versions)) or "none"
            raise LedgerError(f"{self.model}: version {version} isn't registered; there are: {there_are}")
        return self.versions[version]

    def resolve(self, channel: str) -> Version:
        """The version a channel points at; LedgerError if there is none."""
        if channel not in CHANNELS:
            raise LedgerError(f"{self.model}: no channel {channel!r}; there are {', '.join(CHANNELS)}")
        found = self.challenger
        if channel == "champion":
            found = self.versions[self.champion.version] if self.champion else None
        if found is None:
            raise LedgerError(f"{self.model}: there is no {channel} yet; promote a version first")
        return found


def fold(model: str, events: Iterable[Event]) -> State:
    """The state after the events; LedgerError, naming the event, for one that contradicts those before it."""
    state = State(model)
    for event in events:
        state = apply_event(state, event)
    return state


def apply_event(state: State, event: Event) -> State:
    """The state after one more event."""
    problem = _contradiction(state, event)
    if problem:
        raise LedgerError(f"{event.key}: {event.kind} version {event.version}: {problem}")
    old = state.versions.get(event.version)
    if old is None:
        new = Version(event.version, event.bundle, event)
    elif event.kind == "gated":
        new = dataclasses.replace(old, gated=event)
    elif event.kind == "retired":
        new = dataclasses.replace(old, retired=True)
    elif event.kind == "promoted":
        new = dataclasses.replace(old, was_champion=True, promoted=event)
    else:
        new = old
    releases, fallbacks = state.releases, state.fallbacks
    if event.kind in ("promoted", "rolled_back"):
        releases = (*releases, Release(len(releases) + 1, event.version, event.bundle, event.kind, event.seq))
        if not is_renewal(state, event):
            fallbacks = (*_walked_down(fallbacks, event), event.version)
    return State(
        model=state.model,
        seq=event.seq,
        head=sha256_hex(event.to_bytes()),
        versions=MappingProxyType({**state.versions, event.version: new}),
        releases=releases,
        fallbacks=fallbacks,
    )


def is_renewal(state: State, event: Event) -> bool:
    """The champion promoted again, knowingly, so that it doesn't expire: it names the release it takes the place of."""
    champion = state.champion
    return (
        event.kind == "promoted"
        and champion is not None
        and champion.version == event.version
        and event.details.get("renews") == champion.number
    )


def _walked_down(fallbacks: tuple[int, ...], event: Event) -> tuple[int, ...]:
    """What stays below the new champion: all of it after a promotion, what lay below it after a rollback."""
    if event.kind == "promoted" or event.version not in fallbacks:
        return fallbacks
    from_the_top = fallbacks[::-1].index(event.version)
    return fallbacks[: len(fallbacks) - 1 - from_the_top]


def _contradiction(state: State, event: Event) -> str | None:
    if event.model != state.model:
        return f"model is {event.model!r}, this is the ledger of {state.model!r}"
    if event.seq != state.seq + 1:
        return f"seq is {event.seq}, after {state.seq} comes {state.seq + 1}"
    if event.previous != state.head:
        return f"previous is {event.previous}, the event before it has sha256 {state.head}"
    known = state.versions.get(event.version)
    if event.kind == "registered":
        taken = state.version_of_bundle(event.bundle)
        if known is not None:
            return f"is registered already, with bundle {known.bundle}"
        if taken is not None:
            return f"bundle {event.bundle} is registered already, as version {taken}"
        return None
    if known is None:
        return f"isn't registered; registered are {sorted(state.versions) or 'none'}"
    if known.bundle != event.bundle:
        return f"bundle is {event.bundle}, registered was {known.bundle}"
    if known.retired:
        return "is retired"
    if event.kind == "gated":
        is_verdict = isinstance(event.details.get("passed"), bool)
        return None if is_verdict else "details.passed must be true or false"
    if state.champion is not None and state.champion.version == event.version and not is_renewal(state, event):
        remedy = "; promote another version or roll back first" if event.kind == "retired" else " already"
        return f"is the champion{remedy}"
    if event.kind == "promoted" and not known.passed_gates:
        return "hasn't passed its gates"
    if event.kind == "rolled_back" and not known.was_champion:
        return "has never been champion, so it can't be rolled back to; promote it"
    return None


class Ledger:
    """One model's events in a store."""

    def __init__(self, store: BlobStore, model: str) -> None:
        if not is_model_name(model):
            raise LedgerError(f"model name {model!r}: use lower case letters, digits, '_' and '-', at most 63")
        self.store = store
        self.model = model

    def events(self) -> list[Event]:
        """All events, oldest first, the chain verified."""
        prefix = f"ledger/{self.model}/"
        keys = self.store.list(prefix)
        events: list[Event] = []
        previous = GENESIS
        for seq, key in enumerate(keys, start=1):
            if not EVENT_NAME.fullmatch(key.removeprefix(prefix)):
                raise LedgerError(f"{key}: isn't an event; nothing else belongs into {prefix}")
            if key != event_key(self.model, seq):
                raise LedgerError(f"{event_key(self.model, seq)}: is missing, yet there is {key}")
            raw = self.store.get(key, max_bytes=MAX_EVENT_BYTES)
            event = parse_event(raw, model=self.model, seq=seq)
            if event.previous != previous:
                raise LedgerError(f"{key}: previous is {event.previous}, the event before it has sha256 {previous}")
            events.append(event)
            previous = sha256_hex(raw)
        return events

    def state(self) -> State:
        return fold(self.model, self.events())

    def settle(self, event: Event) -> None:
        """Make sure that an event which was read outlives a power cut, before anything is derived from it.

        Its writer may have been killed before the store had it on disk; the store sees to that when asked again.
        """
        self.store.put_if_absent(event.key, event.to_bytes())

    def prepare(
        self,
        expected_head: State,
        kind: str,
        *,
        version: int,
        bundle: str,
        by: str,
        reason: str = "",
        details: Mapping[str, Any] | None = None,
    ) -> tuple[Event, State]:
        """The event after `expected_head` and the state it leads to; writes nothing.

        LedgerError if the event contradicts the state or can't be written.
        """
        event = Event(
            model=self.model,
            seq=expected_head.seq + 1,
            kind=kind,
            version=version,
            bundle=bundle,
            at=datetime.now(UTC).strftime(TIME_FORMAT),
            by=by,
            reason=reason,
            previous=expected_head.head,
            details=dict(details or {}),
        )
        try:
            raw = event.to_bytes()
        except (ValueError, TypeError) as error:
            raise LedgerError(f"{event.key}: {kind} version {version} isn't plain JSON: {error}") from error
        if len(raw) > MAX_EVENT_BYTES:
            raise LedgerError(f"{event.key}: {len(raw)} bytes, at most {MAX_EVENT_BYTES}; shorten the details")
        event = parse_event(raw, model=self.model, seq=event.seq)
        return event, apply_event(expected_head, event)

    def append(
        self,
        expected_head: State,
        kind: str,
        *,
        version: int,
        bundle: str,
        by: str,
        reason: str = "",
        details: Mapping[str, Any] | None = None,
    ) -> State:
        """Write the event after `expected_head` and return the new state.

        LedgerRaceError if somebody else wrote that event first; LedgerError as in `prepare`.
        """
        event, after = self.prepare(
            expected_head, kind, version=version, bundle=bundle, by=by, reason=reason, details=details
        )
        if not self.store.put_if_absent(event.key, event.to_bytes()):
            winner = self.store.get(event.key, max_bytes=MAX_EVENT_BYTES)
            raise LedgerRaceError(parse_event(winner, model=self.model, seq=event.seq))
        return after
