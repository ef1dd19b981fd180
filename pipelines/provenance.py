"""Where a promoted version comes from: an in-toto statement with SLSA provenance, beside what hosts install.

Data in: a version's `registered` event, the manifest of its bundle, the hash of its gate report. Data out: canonical
JSON `provenance/<sha256>.json`: subjects are the bundle's files as they lie in the store, the predicate says which
commit, dvc.lock, data, features, constraints, configuration and seed they were made from, by which builder, and what
the gates were asked and answered. https://in-toto.io/Statement/v1, https://slsa.dev/provenance/v1.
Invariants: no time and no place in it, so equal inputs give equal bytes and a second attempt writes nothing new; what
wasn't recorded at registration isn't claimed; the `promoted` event holds the sha256, so the ledger's chain covers it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipelines.lineage import LOCAL_BUILDER
from pipelines.stored import stored_manifest
from serving.blobstore import BlobStore
from serving.bundle import bundle_key
from serving.canonical import canonical_json, is_sha256, parse_canonical, sha256_hex
from serving.errors import StoreError, TrustError
from serving.events import Event
from serving.ledger import State
from serving.manifest import MANIFEST, Manifest
from serving.release import MAX_STATEMENT_BYTES, STATEMENT_TYPE, provenance_key, report_key

PREDICATE_TYPE = "https://slsa.dev/provenance/v1"
BUILD_TYPE = "urn:strikeforge:build:dvc-pipeline:v1"
# Names of resolved dependencies and the keys of the recorded lineage that hold their sha256.
HASHED = {
    "dvc.lock#stages": "dvc_lock_sha256",  # of the version's own entries, see pipelines/lineage.py
    "constraints.txt": "constraints_sha256",
    "raw-data": "raw_data_sha256",
    "quotes.parquet": "quotes_sha256",
    "features": "features_sha256",
}
TOLD = ("git_clean", "dvc_clean", "training_run", "builder_run")  # of the lineage, as it was recorded


def store_provenance(store: BlobStore, state: State, version: int, *, gate_report: str) -> str:
    """Write the statement of a registered version and return its sha256; written before, it stays as it is.

    LedgerError if the version isn't registered; BundleError if the store's manifest isn't the registered one.
    """
    registered = state.known(version).registered
    raw = statement(registered, stored_manifest(store, registered.bundle), gate_report_sha256=gate_report)
    sha256 = sha256_hex(raw)
    key = provenance_key(sha256)
    if not store.put_if_absent(key, raw) and store.get(key, max_bytes=MAX_STATEMENT_BYTES) != raw:
        raise StoreError(f"{key}: the store holds other bytes; find out who changed it, then delete it")
    return sha256


def statement(registered: Event, manifest: Manifest, *, gate_report_sha256: str) -> bytes:
    """The statement's canonical bytes; they follow from the arguments alone."""
    details = registered.details
    lineage: Mapping[str, Any] = details.get("lineage") or {}
    definition = {
        "buildType": BUILD_TYPE,
        "externalParameters": {
            "model": registered.model,
            **_known({"config_sha256": lineage.get("config_sha256"), "config": details.get("config")}),
        },
        "internalParameters": {"seeds": _seeds(lineage), **_known({name: lineage.get(name) for name in TOLD})},
        "resolvedDependencies": _dependencies(lineage),
    }
    byproducts = [_file(report_key(gate_report_sha256), gate_report_sha256)]
    exam = details.get("exam")
    if is_sha256(exam):
        byproducts.append(_file(f"exams/{exam}.npz", str(exam)))
    run = {
        "builder": {"id": lineage.get("builder", LOCAL_BUILDER)},
        "metadata": _known({"invocationId": details.get("run_id")}),
        "byproducts": byproducts,
    }
    return canonical_json(
        {
            "_type": STATEMENT_TYPE,
            "subject": [_file(name, sha256) for name, sha256 in _subjects(registered.bundle, manifest).items()],
            "predicateType": PREDICATE_TYPE,
            "predicate": {"buildDefinition": definition, "runDetails": run},
        }
    )


def check_statement(
    raw: bytes, bundle_sha256: str, *, manifest: Manifest | None = None, gate_report: str | None = None
) -> dict[str, Any]:
    """The statement of these bytes if it is about this bundle; TrustError naming what is wrong.

    With a `manifest` its files must be the subjects, all of them with their hashes; with a `gate_report` (sha256) it
    must be among the byproducts.
    """
    try:
        value = parse_canonical(raw)
    except ValueError as error:
        raise TrustError(f"provenance: {error}") from error
    fields = {"_type", "subject", "predicateType", "predicate"}
    if not isinstance(value, dict) or value.keys() != fields:
        found = sorted(value) if isinstance(value, dict) else type(value).__name__
        raise TrustError(f"provenance: fields {found}, expected {sorted(fields)}")
    for name, expected in (("_type", STATEMENT_TYPE), ("predicateType", PREDICATE_TYPE)):
        if value[name] != expected:
            raise TrustError(f"provenance: {name} is {value[name]!r}, expected {expected!r}")
    named = _digests(value["subject"], "subject")
    own = named.get(bundle_key(bundle_sha256, MANIFEST))
    if own != bundle_sha256:
        raise TrustError(f"provenance: isn't of bundle {bundle_sha256}; its subjects are {sorted(named)}")
    if manifest is not None and named != (expected_files := _subjects(bundle_sha256, manifest)):
        differing = sorted(set(named.items()) ^ set(expected_files.items()))
        raise TrustError(f"provenance: subjects aren't the bundle's files; differing: {differing}")
    run = _object(_object(value["predicate"], "predicate").get("runDetails"), "runDetails")
    if gate_report is not None:
        reports = _digests(run.get("byproducts"), "byproducts")
        if reports.get(report_key(gate_report)) != gate_report:
            raise TrustError(f"provenance: doesn't name gate report {gate_report}; byproducts are {sorted(reports)}")
    return value


def _subjects(bundle_sha256: str, manifest: Manifest) -> dict[str, str]:
    files = {name: entry.sha256 for name, entry in manifest.files.items()} | {MANIFEST: bundle_sha256}
    return {bundle_key(bundle_sha256, name): files[name] for name in sorted(files)}


def _file(name: str, sha256: str) -> dict[str, Any]:
    return {"name": name, "digest": {"sha256": sha256}}


def _dependencies(lineage: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A resource descriptor for each input whose hash was recorded."""
    found: list[dict[str, Any]] = []
    commit = lineage.get("git_commit", "unknown")
    if commit != "unknown":
        found.append({"name": "source", "digest": {"gitCommit": commit}, **_known({"uri": lineage.get("source")})})
    found += [_file(name, lineage[key]) for name, key in HASHED.items() if is_sha256(lineage.get(key))]
    return found


def _seeds(lineage: Mapping[str, Any]) -> list[int]:
    return [int(lineage["seed"])] if "seed" in lineage else []


def _known(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value not in (None, "", "unknown", "none")}


def _digests(value: object, where: str) -> dict[str, str]:
    """Names and sha256 of a list of resource descriptors."""
    if not isinstance(value, list):
        raise TrustError(f"provenance: {where} must be a list")
    named: dict[str, str] = {}
    for item in value:
        entry = _object(item, where)
        name, sha256 = entry.get("name"), _object(entry.get("digest"), f"{where}: digest").get("sha256")
        if not isinstance(name, str) or not is_sha256(sha256) or name in named:
            raise TrustError(f"provenance: {where} {name!r} has no sha256, or stands there twice")
        named[name] = str(sha256)
    return named


def _object(value: object, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise TrustError(f"provenance: {where} must be a JSON object")
    return value
