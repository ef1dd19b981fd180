"""From anything of a model to everything it belongs to: data, configuration, run, version, bundle, release, hosts.

In: the ledger, and what hosts reported. Out: `Links`: the versions that match and all that is tied to each. Invariants:
nothing is written, MLflow isn't asked; a hash or a run may be shortened to 7 characters or more, and all versions it
fits are shown; what hosts say (`reports/<host>/*.json`, a JSON object with `model` and `bundle`) is anybody's word: it
is bounded in size and number, shown harmless, and ties nothing together that the ledger doesn't.

Run: python -m pipelines.lineage_of model=M of=VERSION|release:NUMBER|HASH|RUN
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass

from pipelines.config import Operation
from pipelines.plain_text import printable
from serving.blobstore import BlobStore, open_store
from serving.canonical import is_sha256
from serving.errors import ConfigError, LedgerError, StoreError
from serving.events import Event
from serving.ledger import Ledger, Release, State, fold

REPORTS = "reports/"
MAX_HOST_REPORTS = 10_000
MAX_HOST_REPORT_BYTES = 1 << 16
MADE_BY = {"promoted": "by promotion", "rolled_back": "by a rollback to this version"}
IDENTIFIER = re.compile(r"[0-9a-f]{7,64}", re.ASCII)
RELEASE = re.compile(r"release:([1-9][0-9]{0,8})", re.ASCII)
HOW = (
    "give a version, release:NUMBER, a hash or a run (its first 7 characters or more; all digits or like 1e7 in quotes)"
)


@dataclass(frozen=True)
class VersionLinks:
    """All that is tied to one version; `named` are hashes and runs by what they are of, as recorded."""

    version: int
    bundle: str
    named: Mapping[str, str]
    releases: tuple[Release, ...]
    current: bool
    hosts: tuple[str, ...]


@dataclass(frozen=True)
class Links:
    """The versions that `of` belongs to; `unread` counts host reports that say nothing usable."""

    model: str
    of: str
    found: tuple[VersionLinks, ...]
    unread: int

    @property
    def message(self) -> str:
        """Everything as lines of text."""
        lines = [f"{self.model}, {printable(self.of)}: {len(self.found)} version{'s' if len(self.found) != 1 else ''}"]
        for one in self.found:
            lines += ["", f"version {one.version}{', the champion' if one.current else ''}", f"  bundle: {one.bundle}"]
            lines += [f"  {name}: {printable(value)}" for name, value in one.named.items()]
            lines += [
                f"  release {release.number}: {MADE_BY[release.kind]}, event {release.seq}" for release in one.releases
            ]
            lines += [] if one.releases else ["  never released"]
            said = ", ".join(printable(host) for host in one.hosts) or "none reported"
            lines.append(f"  hosts (their own word): {said}")
        if self.unread:
            lines += ["", f"{self.unread} host reports say nothing usable, or are too many"]
        return "\n".join(lines)


def links(model: str, of: str, store: BlobStore) -> Links:
    """Everything tied to `of`; LedgerError if nothing is."""
    events = Ledger(store, model).events()
    state = fold(model, events)
    if state.seq == 0:
        raise LedgerError(f"{model}: there is no ledger in {store!r}; is it the right store?")
    named = {number: _named(state, number, events) for number in sorted(state.versions)}
    chosen = _matching(state, named, of)
    if not chosen:
        raise LedgerError(f"{model}: nothing is tied to {of!r}; {HOW}")
    hosts, unread = _hosts(store, model)
    champion = state.champion.version if state.champion else None
    return Links(
        model,
        of,
        tuple(
            VersionLinks(
                version=number,
                bundle=(bundle := state.versions[number].bundle),
                named=named[number],
                releases=tuple(release for release in state.releases if release.version == number),
                current=number == champion,
                hosts=tuple(sorted(hosts.get(bundle, ()))),
            )
            for number in chosen
        ),
        unread,
    )


def _named(state: State, number: int, events: list[Event]) -> dict[str, str]:
    """Names and values recorded of a version, from its data to its gates."""
    details = state.versions[number].registered.details
    lineage = details.get("lineage") or {}
    named = {name: str(value) for name, value in lineage.items()}
    named |= {name: str(details[name]) for name in ("run_id", "exam") if details.get(name)}
    for event in events:
        if event.version != number:
            continue
        for name in ("report", "gate_report", "provenance"):
            value = event.details.get(name)
            if is_sha256(value) and value not in named.values():
                label = "provenance" if name == "provenance" else "gate report"
                named[f"{label} (event {event.seq})"] = str(value)
        packs = event.details.get("packs")
        for target, value in sorted(packs.items()) if isinstance(packs, dict) else ():
            if is_sha256(value) and value not in named.values():
                named[f"engine pack {target} (event {event.seq})"] = str(value)
    return named


def _matching(state: State, named: Mapping[int, Mapping[str, str]], of: str) -> list[int]:
    """Versions by number, by release, or by a value that begins with `of`."""
    if of.isdecimal() and int(of) in state.versions:
        return [int(of)]
    if release := RELEASE.fullmatch(of):
        return [one.version for one in state.releases if one.number == int(release[1])]
    wanted = of.lower()
    if not IDENTIFIER.fullmatch(wanted):
        return []
    return [
        number
        for number, values in named.items()
        if any(
            IDENTIFIER.fullmatch(value) and value.startswith(wanted)
            for value in (*values.values(), state.versions[number].bundle)
        )
    ]


def _hosts(store: BlobStore, model: str) -> tuple[dict[str, set[str]], int]:
    """Hosts by the bundle they say they run, and the number of reports that weren't usable."""
    hosts: dict[str, set[str]] = {}
    keys = store.list(REPORTS)
    unread = max(0, len(keys) - MAX_HOST_REPORTS)
    for key in keys[:MAX_HOST_REPORTS]:
        host, _, _ = key.removeprefix(REPORTS).partition("/")
        try:
            said = json.loads(store.get(key, max_bytes=MAX_HOST_REPORT_BYTES))
        except (StoreError, ValueError, RecursionError):  # counted and told: a host can't stop anybody from reading
            unread += 1
            continue
        if not isinstance(said, dict) or not is_sha256(said.get("bundle")):
            unread += 1
        elif said.get("model") == model:
            hosts.setdefault(said["bundle"], set()).add(host)
    return hosts, unread


def run(cfg: Operation) -> Links:
    """What `of` is tied to, of `model`."""
    if cfg.of is None:
        raise ConfigError([f"of: must be given: {HOW}"])
    return links(cfg.model.name, cfg.of, open_store(cfg.storage.url))


if __name__ == "__main__":
    from pipelines.command import operation

    raise SystemExit(operation(__doc__, run))
