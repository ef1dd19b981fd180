"""A diff names every difference of two versions with its figures, and says what can't be compared."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines import command, diff
from pipelines.gates import GateOutcome
from pipelines.register import register
from serving.bundle import bundle_key
from serving.errors import BundleError, ConfigError, LedgerError
from serving.ledger import Ledger
from serving.manifest import MANIFEST
from serving.release import report_key
from tests.pipelines.released import CONFIG, LINEAGE, ReleaseDesk
from tests.tiny_bundle import FEATURES, npz_bytes, tiny_bundle

SPEC = {"step": "1d", "window": 4, "scaler": {"mean": [0.0] * FEATURES}}


@pytest.fixture
def desk(tmp_path: Path) -> ReleaseDesk:
    return ReleaseDesk(tmp_path)


def changed(tree: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """A copy with one leaf replaced."""
    tree = copy.deepcopy(tree)
    inner = tree
    *way, last = path.split("/")
    for step in way:
        inner = inner[step]
    inner[last] = value
    return tree


def test_two_real_versions(desk: ReleaseDesk) -> None:
    desk.registered(1, iv_rmse=0.4)
    desk.registered(
        2,
        iv_rmse=0.3,
        lineage={**LINEAGE, "raw_data_sha256": "77" * 32, "seed": "8"},
        config=changed(CONFIG, "trainer/epochs", 60),
        bundle={
            "feature_spec": changed(SPEC, "scaler/mean", [0.0, 0.5, -0.25]),
            "extra_files": {"notes.npz": npz_bytes(a=np.zeros(3))},
        },
    )
    found = diff.diff("tiny", 1, 2, desk.store)
    by_key = {part.title: {change.key: change for change in part.changes} for part in found.parts}
    assert set(by_key["configuration"]) == {"trainer/epochs"}
    assert (by_key["configuration"]["trainer/epochs"].a, by_key["configuration"]["trainer/epochs"].b) == (40, 60)
    assert set(by_key["origin"]) == {"raw_data_sha256", "seed", "exam"}
    error = by_key["metrics"]["test/model/iv_rmse"]
    assert error.change == pytest.approx(-0.1)
    assert error.percent == pytest.approx(-25.0)
    assert set(by_key["metrics"]) == {"test/model/iv_rmse"}
    assert set(by_key["features"]) == {"scaler/mean"}
    files = by_key["files (bytes)"]
    assert set(files) == {"golden.npz", "notes.npz", *(f"member-0/{name}.onnx" for name in ("head", "step", "window"))}
    assert files["notes.npz"].a == diff.ABSENT
    assert set(by_key["net"]) == {"model_config/net/seed"}
    lines = found.message.splitlines()
    assert lines[0].startswith("tiny: a = version 1, b = version 2; bundles ")
    assert any(line.split() == ["test/model/iv_rmse", "0.4", "0.3", "-0.1", "-25.00"] for line in lines)
    (features,) = [line for line in lines if "scaler/mean" in line]
    assert "3 numbers" in features
    assert "2 of them differ, by up to 0.5" in features
    assert "version 1 hasn't been gated; version 2 hasn't been gated" in found.message


def test_a_version_does_not_differ_from_itself(desk: ReleaseDesk) -> None:
    desk.registered(1)
    found = diff.diff("tiny", 1, 1, desk.store)
    assert [part.changes for part in found.parts] == [()] * len(found.parts)
    assert all(part.equal for part in found.parts if part.title != "gates")


def test_differing_is_symmetric(desk: ReleaseDesk) -> None:
    desk.registered(1, iv_rmse=0.4)
    desk.registered(2, iv_rmse=0.3, config=None)
    there, back = diff.diff("tiny", 1, 2, desk.store), diff.diff("tiny", 2, 1, desk.store)
    for one, other in zip(there.parts, back.parts, strict=True):
        assert [(x.key, x.a, x.b) for x in one.changes] == [(x.key, x.b, x.a) for x in other.changes]
        assert [x.change for x in one.changes] == [None if x.change is None else -x.change for x in other.changes]


def test_gates_are_compared_by_their_latest_reports(desk: ReleaseDesk) -> None:
    desk.registered(1)
    desk.registered(2)
    desk.release(1)
    gates = diff.diff("tiny", 1, 2, desk.store).part("gates")
    assert {change.key: (change.a, change.b) for change in gates.changes} == {
        "integrity": ("passed", "-"), "taste": ("passed 1 (limit 2)", "-"),
    }  # fmt: skip
    assert gates.remark == "version 1 judged without a champion; version 2 hasn't been gated"
    desk.release(2)
    remark = diff.diff("tiny", 1, 2, desk.store).part("gates").remark
    assert remark == "version 1 judged without a champion; version 2 judged beside champion 1"
    gated = desk.state().versions[1].gated
    assert gated is not None
    key = report_key(gated.details["report"])
    desk.store.put(key, desk.store.get(key).replace(b'"passed":true', b'"passed":false'))
    assert f"version 1: {key}: sha256 is" in diff.diff("tiny", 1, 2, desk.store).part("gates").remark


def test_a_failed_gate_shows_its_figure() -> None:
    assert diff._verdict({"name": "taste", "passed": False, "value": 3.25}) == "FAILED 3.25"
    assert diff._verdict({"name": "taste", "passed": False, "value": 0.0, "threshold": 0}) == "FAILED 0 (limit 0)"
    assert diff._verdict({"name": "taste", "passed": False, "value": None, "threshold": 1.0}) == "FAILED"
    outcome = GateOutcome("taste", True, None, None, "")
    assert diff._verdict({"name": outcome.name, "passed": outcome.passed, "value": outcome.value}) == "passed"
    assert diff._verdict({"name": "taste", "passed": True, "asked": False, "value": 1.0}) == "not asked"


def test_what_was_not_recorded_is_said(desk: ReleaseDesk) -> None:
    desk.registered(1)
    register(
        model="tiny", bundle_dir=tiny_bundle(desk.folder / "old", seed=9).directory, metrics={"test_set": "other"},
        parity={}, lineage={}, registry=desk.registry, store=desk.store, by="trainer",
    )  # fmt: skip
    found = diff.diff("tiny", 1, 2, desk.store)
    assert found.part("configuration").remark == "not recorded of version 2"
    assert "test sets differ" in found.part("metrics").remark
    assert diff.diff("tiny", 2, 2, desk.store).part("configuration").remark == "not recorded of either"


def test_long_values_are_cut_where_they_still_differ() -> None:
    one, two = diff._shown("a" * 200 + "x" + "b" * 200, "a" * 200 + "y" + "b" * 200)
    assert one != two
    assert max(len(one), len(two)) <= diff.SHOWN + 6
    assert diff._shown([1.0, 2.0], [1.0, 2.0, 3.0]) == ("[1.0, 2.0]", "[1.0, 2.0, 3.0]")
    assert diff._shown(0.1 + 0.2, 0.3) == ("0.30000000000000004", "0.3")


def test_measured_errors_are_short_have_units_and_still_differ(desk: ReleaseDesk) -> None:
    desk.registered(1, iv_rmse=0.2762559909304804)
    desk.registered(2, iv_rmse=0.372284516879101)
    desk.registered(3, iv_rmse=0.372284516879102)
    lines = diff.diff("tiny", 1, 2, desk.store).message.splitlines()
    place = next(at for at, line in enumerate(lines) if line.startswith("metrics: 1 differ"))
    assert lines[place + 1].strip().startswith("iv_*: vol points; price_*: money")
    assert lines[place + 3].split() == ["test/model/iv_rmse", "0.276256", "0.372285", "+0.09603", "+34.76"]
    nearly = diff.diff("tiny", 2, 3, desk.store).message
    assert ["test/model/iv_rmse", "0.372284516879101", "0.372284516879102"] in [
        line.split()[:3] for line in nearly.splitlines()
    ]


def test_what_is_missing_or_damaged_is_named(desk: ReleaseDesk, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = desk.registered(1).bundle_sha256
    places = [f"storage.url={desk.folder}/store", "registry.tracking_uri=unused"]
    assert command.operation(diff.__doc__, diff.run, [*places, "a=1"]) == ConfigError.exit_code
    assert "b: must be given, as b=NUMBER" in capsys.readouterr().err
    with pytest.raises(LedgerError, match="version 2 isn't registered"):
        diff.diff("tiny", 1, 2, desk.store)
    key = bundle_key(bundle, MANIFEST)
    desk.store.put(key, desk.store.get(key) + b" ")
    with pytest.raises(BundleError, match=f"{key}: sha256 is"):
        diff.diff("tiny", 1, 1, desk.store)


def test_it_writes_nothing(desk: ReleaseDesk) -> None:
    desk.registered(1)
    desk.registered(2)
    before = {path: path.stat().st_mtime_ns for path in desk.folder.rglob("*")}
    head = Ledger(desk.store, "tiny").state().head
    assert diff.diff("tiny", 1, 2, desk.store).message
    assert {path: path.stat().st_mtime_ns for path in desk.folder.rglob("*")} == before
    assert Ledger(desk.store, "tiny").state().head == head
