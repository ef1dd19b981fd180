"""The files of a release fetched for a host: each from the key its content is named by, of the length and sha256 known.

Data in: a store, what the channel signs (or, unsigned and for development, what the ledger names), the engine packs
asked for. Data out: `Files`, verified, by their name in the release's folder (serving/installed.py).
Invariants: nothing is fetched that wasn't named by hash; of a pack `pack.json` comes first and must be for its target
and of the release's bundle; small files come before the bundle's large ones; partial files of others are dropped.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from serving.blobstore import BlobStore
from serving.bundle import bundle_key
from serving.canonical import sha256_hex
from serving.downloads import Content, fetch
from serving.engine_pack import MAX_PACK_JSON_BYTES, PACK, packed_key
from serving.errors import BlobMissingError, TrustError
from serving.installed import BUNDLE, PACKS, Place
from serving.manifest import MANIFEST, MAX_FILE_BYTES, MAX_MANIFEST_BYTES
from serving.pull_checks import check_statement, manifest_of_release, pack_of_release
from serving.release import (
    MAX_REPORT_BYTES,
    MAX_STATEMENT_BYTES,
    ReleaseFile,
    content_target,
    provenance_key,
    report_key,
)
from serving.trust import SignedChannel

PROVENANCE_JSON, GATE_REPORT_JSON = "provenance.json", "gate-report.json"

Files = dict[str, Path | bytes]


def signed_files(
    store: BlobStore, signed: SignedChannel, release: ReleaseFile, packs: Mapping[str, str], place: Place
) -> Files:
    """Everything a signed release names, on disk and verified; cheap checks come before large downloads."""
    provenance = _named(signed, release, provenance_key(release.provenance), release.provenance, MAX_STATEMENT_BYTES)
    gate_report = _named(signed, release, report_key(release.gate_report), release.gate_report, MAX_REPORT_BYTES)
    manifest_key = bundle_key(release.bundle, MANIFEST)
    manifest_content = _named(signed, release, manifest_key, release.bundle, MAX_MANIFEST_BYTES)
    manifest_file = fetch(store, manifest_content, place.partial)
    manifest = manifest_of_release(manifest_file.read_bytes(), release.model)
    contents = {}
    for name, entry in manifest.files.items():
        content = _named(signed, release, bundle_key(release.bundle, name), entry.sha256, MAX_FILE_BYTES)
        if content.length != entry.size:
            raise TrustError(f"{content.target}: {content.length} bytes were signed, {entry.size} in the manifest")
        contents[name] = content
    packed = _signed_contents(store, signed, release, packs, place)
    wanted = (provenance, gate_report, manifest_content, *contents.values(), *packed.values())
    place.drop_partials({item.sha256 for item in wanted})
    statement = fetch(store, provenance, place.partial)
    check_statement(statement.read_bytes(), release.bundle, provenance.target)
    return {
        PROVENANCE_JSON: statement,
        GATE_REPORT_JSON: fetch(store, gate_report, place.partial),
        f"{BUNDLE}/{MANIFEST}": manifest_file,
        **{f"{BUNDLE}/{name}": fetch(store, content, place.partial) for name, content in contents.items()},
        **{name: fetch(store, content, place.partial) for name, content in packed.items()},
    }


def signed_packs(
    store: BlobStore, signed: SignedChannel, release: ReleaseFile, packs: Mapping[str, str], place: Place
) -> Files:
    """Engine packs of a signed release, without the rest of it."""
    packed = _signed_contents(store, signed, release, packs, place)
    place.drop_partials({content.sha256 for content in packed.values()})
    return {name: fetch(store, content, place.partial) for name, content in packed.items()}


def _named(signed: SignedChannel, release: ReleaseFile, key: str, sha256: str, max_bytes: int) -> Content:
    content = signed.content(content_target(release.model, key), max_bytes=max_bytes)
    if content.sha256 != sha256:
        raise TrustError(f"{content.target}: signed with sha256 {content.sha256}, but named by {sha256}")
    return content


def _signed_contents(
    store: BlobStore, signed: SignedChannel, release: ReleaseFile, packs: Mapping[str, str], place: Place
) -> dict[str, Content]:
    """What is to be fetched of the packs, by name in the release's folder; every `pack.json` is fetched and checked."""
    indices = {
        target: _named(signed, release, packed_key(sha256, PACK), sha256, MAX_PACK_JSON_BYTES)
        for target, sha256 in packs.items()
    }
    packed: dict[str, Content] = {}
    for target, index in indices.items():
        pack = pack_of_release(fetch(store, index, place.partial).read_bytes(), target, release.bundle)
        packed[f"{PACKS}/{target}/{PACK}"] = index
        for name, entry in pack.files.items():
            content = _named(signed, release, packed_key(index.sha256, name), entry.sha256, MAX_FILE_BYTES)
            if content.length != entry.size:
                raise TrustError(f"{content.target}: {content.length} bytes were signed, {entry.size} in {PACK}")
            packed[f"{PACKS}/{target}/{name}"] = content
    return packed


def unsigned_files(store: BlobStore, bundle: str, packs: Mapping[str, str], place: Place) -> Files:
    """Bundle and packs on the ledger's word alone."""
    raw = _named_by_the_ledger(store, bundle_key(bundle, MANIFEST), bundle, MAX_MANIFEST_BYTES)
    manifest = manifest_of_release(raw, place.home.parent.name)
    contents = {}
    for name, entry in manifest.files.items():
        key = bundle_key(bundle, name)
        contents[f"{BUNDLE}/{name}"] = Content(key, key, entry.size, entry.sha256)
    indices, packed = _unsigned_contents(store, bundle, packs)
    contents |= packed
    place.drop_partials({content.sha256 for content in contents.values()})
    fetched = {name: fetch(store, content, place.partial) for name, content in contents.items()}
    return {f"{BUNDLE}/{MANIFEST}": raw, **indices, **fetched}


def unsigned_packs(store: BlobStore, bundle: str, packs: Mapping[str, str], place: Place) -> Files:
    """Engine packs on the ledger's word alone, without the rest of the release."""
    indices, packed = _unsigned_contents(store, bundle, packs)
    place.drop_partials({content.sha256 for content in packed.values()})
    return {**indices, **{name: fetch(store, content, place.partial) for name, content in packed.items()}}


def _unsigned_contents(
    store: BlobStore, bundle: str, packs: Mapping[str, str]
) -> tuple[dict[str, bytes], dict[str, Content]]:
    """Every `pack.json`, and what is to be fetched beside them."""
    indices: dict[str, bytes] = {}
    packed: dict[str, Content] = {}
    for target, sha256 in packs.items():
        index = _named_by_the_ledger(store, packed_key(sha256, PACK), sha256, MAX_PACK_JSON_BYTES)
        indices[f"{PACKS}/{target}/{PACK}"] = index
        for name, entry in pack_of_release(index, target, bundle).files.items():
            key = packed_key(sha256, name)
            packed[f"{PACKS}/{target}/{name}"] = Content(key, key, entry.size, entry.sha256)
    return indices, packed


def _named_by_the_ledger(store: BlobStore, key: str, sha256: str, max_bytes: int) -> bytes:
    try:
        raw = store.get(key, max_bytes=max_bytes)
    except BlobMissingError as error:
        raise TrustError(f"{key}: is missing in the store, though the ledger names it") from error
    if sha256_hex(raw) != sha256:
        raise TrustError(f"{key}: has sha256 {sha256_hex(raw)}, the ledger names {sha256}")
    return raw
