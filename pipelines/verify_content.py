"""What a ledger names, looked at byte by byte: bundles, gate reports, engine packs, exams, provenance.

In: a store and the events of a ledger (pipelines/ledger_walk.py). Out: a `Layer` each, with every problem. Invariants:
nothing is written; big files are streamed, never held; a problem doesn't keep the next blob from being looked at.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from jinja2 import TemplateError

from pipelines.exam import MAX_EXAM_BYTES, exam_key
from pipelines.gate_report import html_key, render
from pipelines.provenance import check_statement
from pipelines.stored import read_stored, stored_gate_report, stored_manifest
from serving.blobstore import BlobStore
from serving.bundle import BUNDLE
from serving.canonical import is_sha256
from serving.engine_pack import MAX_PACK_JSON_BYTES, PACK, PACK_KIND, PackManifest, packed_key, parse_pack
from serving.errors import BlobMissingError, BundleError, StoreError, TrustError
from serving.events import Event
from serving.manifest import MANIFEST, FileEntry, Manifest
from serving.release import MAX_REPORT_BYTES, MAX_STATEMENT_BYTES, are_packs, provenance_key, report_key
from serving.sealed_folder import Kind

MAX_PAGE_BYTES = 16 << 20
PAGES_NAMED = 3  # of those that differ
REPORT_NAMED = {"gated": "report", "promoted": "gate_report", "rolled_back": "gate_report"}


@dataclass
class Layer:
    """One kind of thing: how many were looked at, what is wrong with them, what else is to be said."""

    name: str
    looked_at: int = 0
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def check_bundles(store: BlobStore, bundles: Sequence[str]) -> tuple[Layer, dict[str, Manifest]]:
    """Every file of the bundles, and the manifests that could be read."""
    layer = Layer("bundle files")
    manifests = {}
    for sha256 in dict.fromkeys(bundles):
        manifest = _check_bundle(store, sha256, layer)
        if manifest is not None:
            manifests[sha256] = manifest
    return layer, manifests


def _check_bundle(store: BlobStore, sha256: str, layer: Layer) -> Manifest | None:
    """Every file against the manifest, the manifest against the bundle's name, nothing else beside them."""
    layer.looked_at += 1
    try:
        manifest = stored_manifest(store, sha256)
    except (BundleError, StoreError) as error:
        layer.problems.append(str(error))
        return None
    _check_files(store, BUNDLE, sha256, manifest.files, layer)
    return manifest


def _check_files(store: BlobStore, kind: Kind, sha256: str, files: Mapping[str, FileEntry], layer: Layer) -> None:
    """Every file as the index lists it, and nothing beside them."""
    word = "the manifest" if kind.index == MANIFEST else kind.index
    for name, entry in sorted(files.items()):
        key = kind.key(sha256, name)
        layer.looked_at += 1
        try:
            length, found = _digest(store, key, entry.size)
        except StoreError as error:
            layer.problems.append(str(error))
            continue
        if (length, found) != (entry.size, entry.sha256):
            layer.problems.append(
                f"{key}: {length} bytes with sha256 {found}, {word} says {entry.size} and {entry.sha256}"
            )
    known = {kind.key(sha256, name) for name in (*files, kind.index)}
    strays = sorted(set(store.list(kind.key(sha256, ""))) - known)
    layer.problems += [f"{key}: isn't in {word}" for key in strays]


def check_packs(store: BlobStore, events: Sequence[Event]) -> tuple[Layer, dict[str, PackManifest]]:
    """Every engine pack a release names: all of its bytes, and that it is of that bundle and target."""
    layer, manifests = Layer("engine packs"), dict[str, PackManifest]()
    for event in events:
        packs = event.details.get("packs", {})
        if not are_packs(packs):
            layer.problems.append(f"event {event.seq}: unusable packs: {packs!r:.100}")
            continue
        for target, sha256 in packs.items():
            key = packed_key(sha256, PACK)
            if sha256 not in manifests:
                layer.looked_at += 1
                try:
                    manifest = parse_pack(read_stored(store, key, sha256, max_bytes=MAX_PACK_JSON_BYTES))
                except (BundleError, StoreError) as error:
                    layer.problems.append(f"event {event.seq}: {error}")
                    continue
                _check_files(store, PACK_KIND, sha256, manifest.files, layer)
                manifests[sha256] = manifest
            found = (manifests[sha256].target, manifests[sha256].bundle_sha256)
            if found != (target, event.bundle):
                layer.problems.append(
                    f"{key}: is for {found[0]} of bundle {found[1]}, event {event.seq} says {target} of {event.bundle}"
                )
    return layer, manifests


def _digest(store: BlobStore, key: str, max_bytes: int) -> tuple[int, str]:
    """Length and sha256; StoreError as soon as it is longer than `max_bytes`."""
    digest, length = hashlib.sha256(), 0
    for chunk in store.stream(key):
        digest.update(chunk)
        length += len(chunk)
        if length > max_bytes:
            raise StoreError(f"{key}: longer than the {max_bytes} bytes it should have")
    return length, digest.hexdigest()


def check_reports(store: BlobStore, events: Sequence[Event]) -> Layer:
    """Every gate report an event names: its bytes, and that it says of this version what the event says."""
    layer, named = Layer("gate reports"), set[str]()
    for event in events:
        if event.kind not in REPORT_NAMED:
            continue
        layer.looked_at += 1
        sha256 = event.details.get(REPORT_NAMED[event.kind])
        try:
            report = stored_gate_report(store, sha256)
        except StoreError as error:
            layer.problems.append(f"event {event.seq}: {error}")
            continue
        said = {
            "model": event.model,
            "version": event.version,
            "bundle": event.bundle,
            "passed": event.details.get("passed", True),
        }
        layer.problems += [
            f"{report_key(str(sha256))}: {name} is {report.get(name)!r}, event {event.seq} says {value!r}"
            for name, value in said.items()
            if report.get(name) != value
        ]
        named.add(str(sha256))
    other = [sha256 for sha256 in sorted(named) if _is_another_page(store, sha256, layer)]
    if other:
        names = ", ".join(html_key(sha256) for sha256 in other[:PAGES_NAMED]) + (", ..." * (len(other) > PAGES_NAMED))
        layer.notes.append(
            f"{len(other)} of {len(named)} pages aren't what this code draws from their reports, older code may have "
            f"drawn them; trust the .json beside each: {names}"
        )
    return layer


def _is_another_page(store: BlobStore, sha256: str, layer: Layer) -> bool:
    """Whether the page beside a report differs from what its JSON gives; it is for people, nobody signs it."""
    try:
        page = store.get(html_key(sha256), max_bytes=MAX_PAGE_BYTES)
        drawn = render(store.get(report_key(sha256), max_bytes=MAX_REPORT_BYTES)).encode("utf-8")
    except BlobMissingError:
        return False
    except (StoreError, LookupError, TypeError, ValueError, TemplateError) as error:
        layer.notes.append(f"{html_key(sha256)}: can't be compared with its report: {error}")
        return False
    return page != drawn


def check_exams(store: BlobStore, events: Sequence[Event]) -> Layer:
    """The exam each version was registered with."""
    layer = Layer("exams")
    for event in events:
        sha256 = event.details.get("exam") if event.kind == "registered" else None
        if sha256 is None:
            continue
        layer.looked_at += 1
        try:
            length, found = _digest(store, exam_key(str(sha256)), MAX_EXAM_BYTES)
        except StoreError as error:
            layer.problems.append(f"event {event.seq}: {error}")
            continue
        if found != sha256:
            layer.problems.append(f"{exam_key(str(sha256))}: {length} bytes with sha256 {found}")
    return layer


def check_provenance(store: BlobStore, events: Sequence[Event], manifests: Mapping[str, Manifest]) -> Layer:
    """The statement each release names: its bytes, its subjects against the bundle, its gate report."""
    layer = Layer("provenance")
    for event in events:
        if event.kind not in ("promoted", "rolled_back"):
            continue
        layer.looked_at += 1
        try:
            _check_statement(store, event, manifests.get(event.bundle))
        except (StoreError, TrustError) as error:
            layer.problems.append(f"event {event.seq}: {error}")
    return layer


def _check_statement(store: BlobStore, event: Event, manifest: Manifest | None) -> None:
    sha256 = event.details.get("provenance")
    if not is_sha256(sha256):
        raise TrustError(f"version {event.version} was released without provenance; promote it again")
    key = provenance_key(str(sha256))
    raw = read_stored(store, key, str(sha256), max_bytes=MAX_STATEMENT_BYTES)
    try:
        check_statement(raw, event.bundle, manifest=manifest, gate_report=str(event.details.get("gate_report")))
    except TrustError as error:
        raise TrustError(f"{key}: {error}") from error
