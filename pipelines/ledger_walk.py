"""A ledger read to its end even where it is broken: for people who must know what is wrong with it.

In: a store. Out: `Walk`: every readable event, every problem, the state before the first of them. Whoever acts on a
ledger reads it with serving/ledger.py, which stops at the first problem. Invariant: no problem means that
`Ledger.events` and `fold` accept the ledger too.
"""

from __future__ import annotations

from dataclasses import dataclass

from serving.blobstore import BlobStore
from serving.canonical import is_model_name, sha256_hex
from serving.errors import LedgerError, StoreError
from serving.events import Event, event_key, parse_event
from serving.ledger import EVENT_NAME, MAX_EVENT_BYTES, State, apply_event


@dataclass(frozen=True)
class Walk:
    """What a ledger holds; `hashes` are the sha256 of the events' bytes, `problems` begins with the earliest."""

    events: tuple[Event, ...]
    hashes: tuple[str, ...]
    problems: tuple[str, ...]
    state: State


def walk(store: BlobStore, model: str) -> Walk:
    """Read all of it; LedgerError only if there is nothing to read."""
    if not is_model_name(model):
        raise LedgerError(f"model name {model!r}: use lower case letters, digits, '_' and '-', at most 63")
    prefix = f"ledger/{model}/"
    keys = store.list(prefix)
    if not keys:
        raise LedgerError(f"{model}: there is no ledger in {store!r}; is it the right store?")
    events, hashes, problems = [], [], []
    state, whole = State(model), True
    previous: str | None = state.head
    expected = 1
    for key in keys:
        name = key.removeprefix(prefix)
        if not EVENT_NAME.fullmatch(name):
            problems.append(f"{key}: isn't an event; nothing else belongs into {prefix}")
            whole = False
            continue
        seq = int(name.removesuffix(".json"))
        if seq != expected:
            problems.append(f"{event_key(model, expected)}: is missing, yet there is {key}")
            whole, previous = False, None
        expected = seq + 1
        try:
            raw = store.get(key, max_bytes=MAX_EVENT_BYTES)
        except StoreError as error:
            problems.append(str(error))
            whole, previous = False, None
            continue
        found = sha256_hex(raw)
        try:
            event = parse_event(raw, model=model, seq=seq)
        except LedgerError as error:
            problems.append(str(error))
            whole, previous = False, found
            continue
        if previous is not None and event.previous != previous:
            problems.append(
                f"{key}: previous is {event.previous}, but {event_key(model, seq - 1)} has sha256 {previous}: one of "
                "them was rewritten"
            )
            whole = False
        if whole:
            try:
                state = apply_event(state, event)
            except LedgerError as error:
                problems.append(str(error))
                whole = False
        events.append(event)
        hashes.append(found)
        previous = found
    return Walk(tuple(events), tuple(hashes), tuple(problems), state)
