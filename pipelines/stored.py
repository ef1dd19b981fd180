"""Content-addressed blobs read back: the bytes are those the name promises, or an error says which they aren't.

In: a store, a key, a sha256. Out: bytes, a manifest, a gate report. Invariant: nothing comes out unchecked.
"""

from __future__ import annotations

import json
from typing import Any

from serving.blobstore import BlobStore
from serving.bundle import bundle_key
from serving.canonical import is_sha256, sha256_hex
from serving.errors import BlobMissingError, BundleError, StoreError
from serving.manifest import MANIFEST, MAX_MANIFEST_BYTES, Manifest, parse_manifest
from serving.release import MAX_REPORT_BYTES, report_key


def read_stored(store: BlobStore, key: str, sha256: str, *, max_bytes: int) -> bytes:
    """The blob; StoreError if it is missing, too long or other bytes."""
    raw = store.get(key, max_bytes=max_bytes)
    if (found := sha256_hex(raw)) != sha256:
        raise StoreError(f"{key}: sha256 is {found}, expected {sha256}; find out who changed it")
    return raw


def stored_manifest(store: BlobStore, bundle_sha256: str) -> Manifest:
    """The manifest of a bundle in the store; BundleError if it is missing, other bytes or unusable."""
    key = bundle_key(bundle_sha256, MANIFEST)
    try:
        raw = store.get(key, max_bytes=MAX_MANIFEST_BYTES)
    except BlobMissingError as error:
        raise BundleError(f"{key}: isn't in the store, so bundle {bundle_sha256} isn't complete") from error
    if (found := sha256_hex(raw)) != bundle_sha256:
        raise BundleError(f"{key}: sha256 is {found}, expected {bundle_sha256}; find out who changed it")
    return parse_manifest(raw)


def stored_gate_report(store: BlobStore, sha256: object) -> dict[str, Any]:
    """The gate report of that hash; StoreError if it is missing, other bytes or no report."""
    if not is_sha256(sha256):
        raise StoreError(f"gate report {sha256!r}: isn't named by a sha256")
    key = report_key(str(sha256))
    raw = read_stored(store, key, str(sha256), max_bytes=MAX_REPORT_BYTES)
    try:
        report = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise StoreError(f"{key}: can't be read as JSON: {error}") from error
    outcomes = report.get("outcomes") if isinstance(report, dict) else None
    if not isinstance(outcomes, list) or not all(_is_outcome(outcome) for outcome in outcomes):
        raise StoreError(f"{key}: holds no list of outcomes")
    assert isinstance(report, dict)
    return report


def _is_outcome(value: object) -> bool:
    return isinstance(value, dict) and isinstance(value.get("name"), str) and isinstance(value.get("passed"), bool)
