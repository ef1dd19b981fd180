"""What the files of a release must say of themselves before a host takes them, beyond the hashes they were signed by.

Data in: bytes of a manifest, an engine pack's `pack.json`, a provenance statement; the targets a host asks for. Data
out: them parsed; the packs to fetch. Invariant: a TrustError names the file, what it is of and what was asked for.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from serving.bundle import bundle_key
from serving.engine_pack import PACK, PackManifest, parse_pack
from serving.errors import BundleError, TrustError
from serving.manifest import MANIFEST, MAX_BUNDLE_BYTES, Manifest, parse_manifest
from serving.release import STATEMENT_TYPE

NATIVE_TARGETS = ("native",)  # taken where a release has them; other targets must be there


def chosen_packs(released: Mapping[str, str], targets: Sequence[str]) -> dict[str, str]:
    """The engine packs that targets name, of those released: a target, or `native` for all of the native engine.

    TrustError for a target the release doesn't have; `native` may have none, as not every machine that promotes has it.
    """
    chosen: dict[str, str] = {}
    for asked in targets:
        found = {name: released[name] for name in released if name == asked}
        if asked in NATIVE_TARGETS:
            found = {name: sha256 for name, sha256 in released.items() if name.startswith(f"{asked}_")}
        elif not found:
            there = ", ".join(sorted(released)) or "none"
            raise TrustError(
                f"--target {asked}: the release has no engine pack for it; there are: {there}; compile and release one"
            )
        chosen |= found
    return chosen


def manifest_of_release(raw: bytes, model: str) -> Manifest:
    """The manifest of a bundle; TrustError unless it is of this model and not too large."""
    try:
        manifest = parse_manifest(raw)
    except BundleError as error:
        raise TrustError(f"the bundle is refused: {error}") from error
    if manifest.model != model:
        raise TrustError(f"the bundle's {MANIFEST}: is of model {manifest.model!r}, asked for was {model!r}")
    total = sum(entry.size for entry in manifest.files.values())
    if total > MAX_BUNDLE_BYTES:
        raise TrustError(f"the bundle's {MANIFEST}: {total} bytes in all, at most {MAX_BUNDLE_BYTES} are allowed")
    return manifest


def pack_of_release(raw: bytes, target: str, bundle: str) -> PackManifest:
    """What a `pack.json` says; TrustError unless it is for this target and of this bundle."""
    try:
        pack = parse_pack(raw)
    except BundleError as error:
        raise TrustError(f"the engine pack {target} is refused: {error}") from error
    if pack.target != target:
        raise TrustError(f"the engine pack {target} is refused: {PACK}: it is for target {pack.target!r}")
    if pack.bundle_sha256 != bundle:
        raise TrustError(
            f"the engine pack {target} is refused: {PACK}: it is of bundle {pack.bundle_sha256}, not {bundle}"
        )
    return pack


def check_statement(raw: bytes, bundle: str, name: str) -> None:
    """TrustError unless these bytes are an in-toto Statement v1 about the bundle's manifest."""
    try:
        statement = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise TrustError(f"{name}: isn't JSON: {error}") from error
    if not isinstance(statement, Mapping) or statement.get("_type") != STATEMENT_TYPE:
        raise TrustError(f"{name}: isn't an in-toto Statement v1")
    subjects = statement.get("subject")
    wanted = {"name": bundle_key(bundle, MANIFEST), "digest": {"sha256": bundle}}
    if not isinstance(subjects, list) or wanted not in subjects:
        raise TrustError(f"{name}: the provenance statement doesn't have the bundle's {wanted['name']} as a subject")
