"""What a model's role signs: the release file the ledger decided, and everything that file names.

Data in: a ledger's events, the store. Data out: `ReleaseFile`, TUF targets. Invariants: both follow from the ledger and
from content-addressed blobs alone, so a lost channel is made again byte for byte; nothing is named that the store
doesn't hold; a channel that names an event the ledger lacks is never written over (the ledger was cut or rewritten).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial

from tuf.api.metadata import TargetFile, Targets

from serving.blobstore import BlobStore
from serving.bundle import bundle_key
from serving.canonical import sha256_hex
from serving.engine_pack import MAX_PACK_JSON_BYTES, PACK, packed_key, parse_pack
from serving.errors import BlobMissingError, BundleError, LedgerError, TrustError
from serving.events import TIME_FORMAT, Event
from serving.ledger import Ledger, fold
from serving.manifest import MANIFEST, MAX_MANIFEST_BYTES, FileEntry, parse_manifest
from serving.release import (
    MAX_RELEASE_BYTES,
    MAX_REPORT_BYTES,
    MAX_STATEMENT_BYTES,
    RELEASED_CHANNELS,
    ReleaseFile,
    content_target,
    parse_release,
    provenance_key,
    release_key,
    release_target,
    report_key,
)

CHAMPION = RELEASED_CHANNELS[0]


@dataclass(frozen=True)
class Wanted:
    """What a model's role should say: the release (None: no champion yet) and the ledger it follows from."""

    model: str
    release: ReleaseFile | None
    events: tuple[Event, ...]


def wanted(store: BlobStore, model: str) -> Wanted:
    """What the ledger has decided; LedgerError if its latest decision can't be released."""
    events = tuple(Ledger(store, model).events())
    champion = fold(model, events).champion
    if champion is None:
        return Wanted(model, None, events)
    return Wanted(model, _release(model, champion.number, events[champion.seq - 1]), events)


def check_fence(store: BlobStore, says: Wanted, published: Targets | None) -> None:
    """LedgerError if the channel already names an event that this ledger doesn't have, or has with another hash."""
    target = release_target(says.model, CHAMPION)
    named = published.targets.get(target) if published is not None else None
    if named is None:
        return
    sha256 = named.hashes.get("sha256", "")
    ours = {sha256_hex(release.to_bytes()) for release in _all_releases(says)}
    if sha256 in ours:
        return
    try:
        release = parse_release(store.get(release_key(sha256), max_bytes=MAX_RELEASE_BYTES))
    except BlobMissingError as error:
        raise LedgerError(
            f"{target}: the channel names release {released_number(published, says.model)}, which doesn't follow from "
            f"the {len(says.events)} events of the ledger, and {release_key(sha256)} is missing; the ledger was cut or "
            "rewritten: bring the store back from its versions or a backup"
        ) from error
    event = says.events[release.seq - 1] if release.seq <= len(says.events) else None
    if event is None or sha256_hex(event.to_bytes()) != release.event:
        found = "ends before it" if event is None else "has another one there"
        raise LedgerError(
            f"{target}: the channel names event {release.seq} (release {release.release}), the ledger of {says.model} "
            f"{found}: it was cut or rewritten; nothing was published: bring the store back from its versions or backup"
        )


def is_released(says: Wanted, published: Targets | None) -> bool:
    """Whether the role's targets already say what the ledger says."""
    if published is None:
        return says.release is None
    named = published.targets.get(release_target(says.model, CHAMPION))
    if named is None or says.release is None:
        return named is None and says.release is None
    return named.hashes.get("sha256") == sha256_hex(says.release.to_bytes()) and named.custom == says.release.custom()


def released_number(published: Targets | None, model: str) -> int | None:
    """The release number that the role's targets name."""
    named = published.targets.get(release_target(model, CHAMPION)) if published is not None else None
    number = (named.custom or {}).get("release") if named is not None else None
    return number if isinstance(number, int) else None


def check_releasable(store: BlobStore, model: str, number: int, event: Event) -> None:
    """LedgerError if hosts could never be given what the event would decide as release `number`.

    Something it names isn't recorded, isn't in the store or isn't what it was. StoreError if the store can't be read.
    """
    try:
        targets_of(store, _release(model, number, event))
    except (BlobMissingError, BundleError, TrustError, LedgerError) as error:
        raise LedgerError(
            f"{model}: {event.kind} version {event.version} isn't decided, as it couldn't be released: {error}; bring "
            "that back from the store's versions or a backup, or choose another version"
        ) from error


def expiry_note(number: int, expires_at: str, lifetime: timedelta, now: datetime) -> str:
    """What is to be said of a release that hosts refuse, or soon will; empty while a third of its life is left."""
    left = datetime.strptime(expires_at, TIME_FORMAT).replace(tzinfo=UTC) - now
    if left >= lifetime / 3:
        return ""
    remedy = "promote it again with renew=true, or another version"
    if left <= timedelta():
        return f"release {number} EXPIRED at {expires_at}, hosts refuse it: {remedy}"
    return f"release {number} expires at {expires_at}, in {left.total_seconds() / 86400:.0f} days: {remedy}"


def targets_of(store: BlobStore, release: ReleaseFile) -> dict[str, TargetFile]:
    """Every target of a release; StoreError or TrustError naming what the store lacks or holds otherwise."""
    raw = release.to_bytes()
    path = release_target(release.model, release.channel)
    file = TargetFile.from_data(path, raw, ["sha256"])
    file.unrecognized_fields["custom"] = release.custom()
    found = {path: file}

    def add(key: str, length: int, sha256: str) -> None:
        target = content_target(release.model, key)
        found[target] = TargetFile(length, {"sha256": sha256}, target)

    for key, sha256, max_bytes in (
        (report_key(release.gate_report), release.gate_report, MAX_REPORT_BYTES),
        (provenance_key(release.provenance), release.provenance, MAX_STATEMENT_BYTES),
    ):
        add(key, len(_content(store, key, sha256, max_bytes)), sha256)
    key = bundle_key(release.bundle, MANIFEST)
    manifest = _content(store, key, release.bundle, MAX_MANIFEST_BYTES)
    add(key, len(manifest), release.bundle)

    def add_all(files: Mapping[str, FileEntry], key_of: Callable[[str], str]) -> None:
        there = set(store.list(key_of("")))
        for name, entry in files.items():
            key = key_of(name)
            if key not in there:
                raise BlobMissingError(f"{key}: isn't in the store, so release {release.release} can't be published")
            add(key, entry.size, entry.sha256)

    add_all(parse_manifest(manifest).files, partial(bundle_key, release.bundle))
    for target, sha256 in release.packs.items():
        key = packed_key(sha256, PACK)
        raw = _content(store, key, sha256, MAX_PACK_JSON_BYTES)
        pack = parse_pack(raw)
        if (pack.target, pack.bundle_sha256) != (target, release.bundle):
            raise TrustError(f"{key}: a pack of bundle {pack.bundle_sha256} for {pack.target}, released as {target}")
        add(key, len(raw), sha256)
        add_all(pack.files, partial(packed_key, sha256))
    return found


def _content(store: BlobStore, key: str, sha256: str, max_bytes: int) -> bytes:
    raw = store.get(key, max_bytes=max_bytes)
    if sha256_hex(raw) != sha256:
        raise TrustError(f"{key}: its content has sha256 {sha256_hex(raw)}; find out who changed it")
    return raw


def _all_releases(says: Wanted) -> Sequence[ReleaseFile]:
    """Every release that follows from the ledger and can be a release file."""
    decided = fold(says.model, says.events).releases
    found = []
    for release in decided:
        try:
            found.append(_release(says.model, release.number, says.events[release.seq - 1]))
        except LedgerError:  # decided before releases were signed, so no channel can name it
            continue
    return found


def _release(model: str, number: int, event: Event) -> ReleaseFile:
    """The release that an event decided."""
    details = event.details
    lacking = [name for name in ("gate_report", "provenance", "expires_at") if not isinstance(details.get(name), str)]
    if lacking:
        raise LedgerError(
            f"{event.key}: {event.kind} version {event.version} says nothing of {', '.join(lacking)}, so it can't be "
            "released; it was decided before releases were signed: promote another version"
        )
    packs = details.get("packs", {})
    if not isinstance(packs, dict):
        raise LedgerError(f"{event.key}: unusable packs: {packs!r:.100}")
    release = ReleaseFile(
        model=model, channel=CHAMPION, release=number, kind=event.kind, version=event.version, bundle=event.bundle,
        seq=event.seq, event=sha256_hex(event.to_bytes()), gate_report=details["gate_report"],
        provenance=details["provenance"], at=event.at, expires_at=details["expires_at"], packs=packs,
    )  # fmt: skip
    try:
        return parse_release(release.to_bytes())
    except TrustError as error:
        raise LedgerError(f"{event.key}: {error}") from error
