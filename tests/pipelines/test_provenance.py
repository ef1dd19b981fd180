"""Provenance says what was recorded, of the very bytes hosts get, in the words of in-toto and SLSA, always the same."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.json_format import ParseDict
from hypothesis import given
from hypothesis import strategies as st
from in_toto_attestation.predicates.provenance.v1 import provenance_pb2
from in_toto_attestation.v1 import statement_pb2
from in_toto_attestation.v1.statement import Statement

from pipelines.provenance import check_statement, provenance_key, statement, store_provenance
from pipelines.stored import stored_manifest
from serving.bundle import bundle_key
from serving.canonical import canonical_json, sha256_hex
from serving.errors import BundleError, LedgerError, StoreError, TrustError
from serving.events import Event
from serving.manifest import MANIFEST, Manifest
from tests.pipelines.released import COMMIT, CONFIG, LINEAGE, ReleaseDesk

REPORT = "9a" * 32


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> ReleaseDesk:
    """One registered version; tests that change the store take another."""
    desk = ReleaseDesk(tmp_path_factory.mktemp("provenance"))
    desk.registered(1)
    return desk


@pytest.fixture(scope="module")
def registered(desk: ReleaseDesk) -> Event:
    return desk.state().versions[1].registered


@pytest.fixture(scope="module")
def manifest(desk: ReleaseDesk, registered: Event) -> Manifest:
    return stored_manifest(desk.store, registered.bundle)


@pytest.fixture(scope="module")
def raw(registered: Event, manifest: Manifest) -> bytes:
    return statement(registered, manifest, gate_report_sha256=REPORT)


def test_it_is_an_in_toto_statement_with_slsa_provenance(raw: bytes) -> None:
    """As the schemas of both, which refuse unknown fields and other types, read it."""
    value = json.loads(raw)
    parsed = Statement.copy_from_pb(ParseDict(value, statement_pb2.Statement()))
    parsed.validate()
    provenance = ParseDict(value["predicate"], provenance_pb2.Provenance())
    definition, details = provenance.build_definition, provenance.run_details
    assert definition.build_type.startswith("urn:")
    assert details.builder.id == LINEAGE["builder"]
    assert definition.external_parameters["model"] == "tiny"
    assert definition.external_parameters["config"]["trainer"]["epochs"] == CONFIG["trainer"]["epochs"]  # type: ignore
    assert list(definition.internal_parameters["seeds"]) == [7]
    assert value["predicate"]["buildDefinition"]["internalParameters"]["seeds"] == [7]
    digests = {item.name: dict(item.digest) for item in definition.resolved_dependencies}
    assert digests == {
        "source": {"gitCommit": COMMIT},
        "dvc.lock#stages": {"sha256": LINEAGE["dvc_lock_sha256"]},
        "constraints.txt": {"sha256": LINEAGE["constraints_sha256"]},
        "raw-data": {"sha256": LINEAGE["raw_data_sha256"]},
        "quotes.parquet": {"sha256": LINEAGE["quotes_sha256"]},
        "features": {"sha256": LINEAGE["features_sha256"]},
    }
    with pytest.raises(Exception, match="no field named"):
        ParseDict({**value["predicate"], "unknown": 1}, provenance_pb2.Provenance())


def test_its_subjects_are_the_bytes_in_the_store(desk: ReleaseDesk, registered: Event, raw: bytes) -> None:
    said = {item["name"]: item["digest"]["sha256"] for item in json.loads(raw)["subject"]}
    keys = desk.store.list(bundle_key(registered.bundle, ""))
    assert said == {key: sha256_hex(desk.store.get(key)) for key in keys}
    assert said[bundle_key(registered.bundle, MANIFEST)] == registered.bundle


def test_run_exam_and_gates_are_named(registered: Event, raw: bytes) -> None:
    details = json.loads(raw)["predicate"]["runDetails"]
    assert details["metadata"] == {"invocationId": registered.details["run_id"]}
    exam = registered.details["exam"]
    assert details["byproducts"] == [
        {"name": f"gate-reports/{REPORT}.json", "digest": {"sha256": REPORT}},
        {"name": f"exams/{exam}.npz", "digest": {"sha256": exam}},
    ]


def test_a_second_attempt_writes_the_same_bytes(tmp_path: Path) -> None:
    desk = ReleaseDesk(tmp_path)
    desk.registered(1)
    first = store_provenance(desk.store, desk.state(), 1, gate_report=REPORT)
    keys = desk.store.list()
    desk.registered(2)  # meanwhile
    assert store_provenance(desk.store, desk.state(), 1, gate_report=REPORT) == first
    assert [key for key in desk.store.list() if key.startswith("provenance/")] == [provenance_key(first)]
    assert provenance_key(first) in keys
    assert sha256_hex(desk.store.get(provenance_key(first))) == first
    assert store_provenance(desk.store, desk.state(), 1, gate_report="00" * 32) != first
    assert store_provenance(desk.store, desk.state(), 2, gate_report=REPORT) != first


def test_neither_time_nor_person_nor_place_is_in_it(registered: Event, manifest: Manifest, raw: bytes) -> None:
    other = dataclasses.replace(registered, at="2001-01-01T00:00:00.000000Z", by="somebody", reason="r", seq=99)
    assert statement(other, manifest, gate_report_sha256=REPORT) == raw
    assert registered.at.encode() not in raw
    assert b'trainer"' not in raw.replace(b'"trainer":', b"")  # the one who registered


def test_what_was_not_recorded_is_not_claimed(registered: Event, manifest: Manifest) -> None:
    details = {"run_id": "ab", "lineage": {"git_commit": "unknown", "dvc_clean": "unknown", "quotes_sha256": "absent"}}
    bare = dataclasses.replace(registered, details=details)
    value = json.loads(statement(bare, manifest, gate_report_sha256=REPORT))
    definition = value["predicate"]["buildDefinition"]
    assert definition["resolvedDependencies"] == []
    assert definition["internalParameters"] == {"seeds": []}
    assert definition["externalParameters"] == {"model": "tiny"}
    assert [item["name"] for item in value["predicate"]["runDetails"]["byproducts"]] == [f"gate-reports/{REPORT}.json"]
    Statement.copy_from_pb(ParseDict(value, statement_pb2.Statement())).validate()


def test_ci_is_named_by_its_workflow(registered: Event, manifest: Manifest) -> None:
    told = {**LINEAGE, "builder": "https://host/o/r/.github/workflows/retrain.yml@refs/heads/main",
            "builder_run": "https://host/o/r/actions/runs/5/attempts/1", "source": "git+https://host/o/r"}  # fmt: skip
    built = dataclasses.replace(registered, details={**registered.details, "lineage": told})
    predicate = json.loads(statement(built, manifest, gate_report_sha256=REPORT))["predicate"]
    assert predicate["runDetails"]["builder"] == {"id": told["builder"]}
    assert predicate["buildDefinition"]["internalParameters"]["builder_run"] == told["builder_run"]
    source = predicate["buildDefinition"]["resolvedDependencies"][0]
    assert source == {"name": "source", "digest": {"gitCommit": COMMIT}, "uri": "git+https://host/o/r"}


def test_a_store_that_was_tampered_with_gets_no_statement(tmp_path: Path) -> None:
    desk = ReleaseDesk(tmp_path)
    bundle = desk.registered(1).bundle_sha256
    with pytest.raises(LedgerError, match="version 2 isn't registered"):
        store_provenance(desk.store, desk.state(), 2, gate_report=REPORT)
    sha256 = store_provenance(desk.store, desk.state(), 1, gate_report=REPORT)
    desk.store.put(provenance_key(sha256), b"{}\n")
    with pytest.raises(StoreError, match=f"{sha256}[.]json: the store holds other bytes"):
        store_provenance(desk.store, desk.state(), 1, gate_report=REPORT)
    key = bundle_key(bundle, MANIFEST)
    desk.store.put(key, desk.store.get(key).replace(b'"tiny"', b'"tony"'))
    with pytest.raises(BundleError, match=f"{key}: sha256 is"):
        store_provenance(desk.store, desk.state(), 1, gate_report=REPORT)


def test_the_statement_of_a_bundle_is_accepted(registered: Event, manifest: Manifest, raw: bytes) -> None:
    value = check_statement(raw, registered.bundle, manifest=manifest, gate_report=REPORT)
    assert canonical_json(value) == raw


def change(raw: bytes, path: tuple[Any, ...], new: Any) -> bytes:
    """The statement with one value replaced; `...` appends a copy of a list's first item, None removes."""
    value = json.loads(raw)
    inner = value
    for step in path[:-1]:
        inner = inner[step]
    if new is None:
        del inner[path[-1]]
    elif new is ...:
        inner[path[-1]].append(inner[path[-1]][0])
    else:
        inner[path[-1]] = new
    return canonical_json(value)


@pytest.mark.parametrize(
    ("path", "new", "why"),
    [
        (("_type",), "https://in-toto.io/Statement/v0.1", "_type is"),
        (("predicateType",), "https://slsa.dev/provenance/v0.2", "predicateType is"),
        (("predicate",), None, "fields"),
        (("more",), 1, "fields"),
        (("subject",), {}, "subject must be a list"),
        (("subject",), ..., "stands there twice"),
        (("subject", 0), None, "subjects aren't the bundle's files"),
        (("subject", 0, "digest", "sha256"), "00" * 32, "subjects aren't the bundle's files"),
        (("subject", 0, "digest"), {"md5": "00"}, "has no sha256"),
        (("predicate", "runDetails"), 1, "runDetails must be"),
        (("predicate", "runDetails", "byproducts", 0), None, "doesn't name gate report"),
    ],
)
def test_another_statement_is_refused(
    registered: Event, manifest: Manifest, raw: bytes, path: tuple[Any, ...], new: Any, why: str
) -> None:
    with pytest.raises(TrustError, match=why):
        check_statement(change(raw, path, new), registered.bundle, manifest=manifest, gate_report=REPORT)


def test_of_another_bundle_or_gate_report(registered: Event, manifest: Manifest, raw: bytes) -> None:
    with pytest.raises(TrustError, match=f"isn't of bundle {'00' * 32}"):
        check_statement(raw, "00" * 32)
    with pytest.raises(TrustError, match="doesn't name gate report"):
        check_statement(raw, registered.bundle, gate_report="00" * 32)
    with pytest.raises(TrustError, match="not canonical"):
        check_statement(raw.rstrip(), registered.bundle)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=8,
)
FIELDS = st.fixed_dictionaries(
    {"_type": st.just("https://in-toto.io/Statement/v1"), "predicateType": st.just("https://slsa.dev/provenance/v1"),
     "subject": JSON | st.lists(st.fixed_dictionaries({"name": JSON, "digest": JSON})), "predicate": JSON}
)  # fmt: skip


@given(st.binary() | (JSON | FIELDS).map(canonical_json))
def test_whatever_else_is_refused_by_name(raw: bytes) -> None:
    with pytest.raises(TrustError, match=r"^provenance: "):
        check_statement(raw, "ab" * 32, gate_report=REPORT)
