"""What must hold after a process was killed, or the power cut, in the middle of an act.

In: the place as it was left (twice: one copy is reconciled, in the other the act is typed again), and what was true
before and after an undisturbed act. Out: one line for every promise broken.
    a host        sees the old or the new release, whole: one that starts from nothing, and one that had the old release
    reconcile     ends well; then channel, MLflow and ledger agree, and reconciling again changes nothing
    nothing lost  every event, bundle, pack, report and statement there before is there, byte for byte; what was
                  reported as done is in the ledger
    again         the same act ends well, and the ledger then says what it says after an undisturbed one: not doubled
Invariant: nothing is repaired here except by the product's own commands.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from benchmarks.chaos_acts import STORIES, do_reconcile
from benchmarks.chaos_defects import DEFECTS
from benchmarks.chaos_hosts import Seen, fresh_host, installed, pull
from benchmarks.chaos_places import ENVIRONMENT, MODEL, Place
from pipelines.reconcile import alias_aims
from pipelines.registry import BUNDLE_TAG
from serving.canonical import sha256_hex
from serving.errors import StrikeforgeError
from serving.ledger import Ledger

KEPT = ("bundles/", "exams/", "gate-reports/", "provenance/", "packs/")


@dataclass(frozen=True)
class Facts:
    """What is true of a place. `decisions` are kind, version, by and reason of every event; `events` their sha256."""

    decisions: tuple[tuple[str, int, str, str], ...]
    events: tuple[str, ...]
    champion: Seen | None
    kept: Mapping[str, str]
    fresh: Seen | None
    installed: Seen | None


def facts(place: Place) -> Facts:
    """The truth about an undisturbed place; a host that can't pull anything has None."""
    os.environ.update(ENVIRONMENT)
    ledger = Ledger(place.store, MODEL)
    events = ledger.events()
    return Facts(
        decisions=tuple((event.kind, event.version, event.by, event.reason) for event in events),
        events=tuple(sha256_hex(event.to_bytes()) for event in events),
        champion=_champion(ledger),
        kept=_kept(place),
        fresh=fresh_host(place)[0],
        installed=installed(place.folder / "host"),
    )


def check_repair(place: Place, before: Facts, after: Facts, plant: str = "") -> list[str]:
    """Everything wrong with what a disturbed act left behind, and with what `reconcile` then makes of it.

    `plant` names a defect that this process has.
    """
    os.environ.update(ENVIRONMENT)
    if plant:
        DEFECTS[plant]()
    problems = [*_hosts_before_repair(place, before, after), *_lost(place, before)]
    try:
        do_reconcile(place)
        problems += _disagreements(place)
    except StrikeforgeError as error:
        problems.append(f"reconcile fails: {type(error).__name__}: {error}")
    return list(dict.fromkeys([*problems, *_lost(place, before)]))


def check_again(name: str, place: Place, after: Facts) -> list[str]:
    """Everything wrong with typing the same act again."""
    try:
        STORIES[name].act(place)
    except StrikeforgeError as error:
        return [f"the same act fails when typed again: {type(error).__name__}: {error}"]
    return [f"after the same act again: {problem}" for problem in _ended_otherwise(place, after)]


def check_reported(place: Place, after: Facts) -> list[str]:
    """Whether an act that reported success is in the ledger."""
    try:
        now = facts(place)
    except StrikeforgeError as error:
        return [f"what was reported as done can't be read: {type(error).__name__}: {error}"]
    if now.decisions != after.decisions:
        return [f"what was reported as done isn't in the ledger: {now.decisions}"]
    return []


def _hosts_before_repair(place: Place, before: Facts, after: Facts) -> Iterator[str]:
    allowed = {before.fresh, after.fresh}
    try:
        seen, refusal = fresh_host(place)
    except StrikeforgeError as error:
        yield f"a fresh host holds a mixture: {error}"
    else:
        if seen not in allowed:
            yield f"a fresh host gets {seen} ({refusal}), which is neither old nor new: {before.fresh}, {after.fresh}"
    try:
        refusal = pull(place, place.folder / "host")
        seen = installed(place.folder / "host")
    except StrikeforgeError as error:
        yield f"an installed host holds a mixture: {error}"
        return
    if seen not in {before.installed, after.fresh}:
        yield f"an installed host has {seen} ({refusal}), neither old nor new: {before.installed}, {after.fresh}"
    if refusal is not None and None not in allowed:
        yield f"an installed host is refused: {refusal}"


def _lost(place: Place, before: Facts) -> Iterator[str]:
    try:
        events = tuple(sha256_hex(event.to_bytes()) for event in Ledger(place.store, MODEL).events())
    except StrikeforgeError as error:
        yield f"the ledger is broken: {error}"
        return
    if events[: len(before.events)] != before.events:
        yield f"events are lost or changed: {len(before.events)} before, {len(events)} now"
    now = _kept(place)
    for key, sha256 in before.kept.items():
        if now.get(key) != sha256:
            yield f"{key} is {'changed' if key in now else 'lost'}"


def _disagreements(place: Place) -> Iterator[str]:
    """Between ledger, MLflow and what hosts get."""
    ledger = Ledger(place.store, MODEL)
    state = ledger.state()
    champion = _champion(ledger)
    aims = {alias: version for alias, version in alias_aims(state).items() if version is not None}
    aliases = place.registry.aliases(MODEL)
    if aliases != aims:
        yield f"MLflow's aliases are {aliases}, the ledger says {aims}"
    versions = {number: tags.get(BUNDLE_TAG) for number, tags in place.registry.versions(MODEL).items()}
    for number, known in state.versions.items():
        if versions.get(number) != known.bundle:
            yield f"MLflow has {versions.get(number)} as version {number}, the ledger {known.bundle}"
    for number, key in ((1, "gate_report"), (2, "provenance")):
        for event in ledger.events():
            if event.kind == "promoted" and not place.store.list(f"{KEPT[number + 1]}{event.details.get(key)}.json"):
                yield f"event {event.seq} names a {key} that isn't there"
    try:
        fresh, refusal = fresh_host(place)
        refused = pull(place, place.folder / "host")
        held = installed(place.folder / "host")
    except StrikeforgeError as error:
        yield f"after reconcile a host holds a mixture: {error}"
        return
    if fresh != champion:
        yield f"after reconcile a fresh host gets {fresh} ({refusal}), the ledger says {champion}"
    if held != champion:
        yield f"after reconcile an installed host has {held} ({refused}), the ledger says {champion}"
    more = do_reconcile(place)
    if more.changed or more.restored or more.published:
        yield f"reconciling again changes something: {more.message}"


def _ended_otherwise(place: Place, after: Facts) -> Iterator[str]:
    try:
        now = facts(place)
    except StrikeforgeError as error:
        yield f"the place is broken: {error}"
        return
    if now.decisions != after.decisions:
        yield f"the ledger says {now.decisions}, undisturbed it says {after.decisions}"
    if now.champion != after.champion:
        yield f"the champion is {now.champion}, undisturbed it is {after.champion}"
    yield from _disagreements(place)


def _champion(ledger: Ledger) -> Seen | None:
    found = ledger.state().champion
    if found is None:
        return None
    packs = ledger.events()[found.seq - 1].details.get("packs", {})
    return Seen(found.number, found.version, found.bundle, tuple(sorted(packs.items())))


def _kept(place: Place) -> dict[str, str]:
    store = place.store
    return {key: sha256_hex(store.get(key)) for prefix in KEPT for key in store.list(prefix)}
