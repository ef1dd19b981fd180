"""All gates at once, the report and its page; a refusal changes nothing; asking again writes nothing twice."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.config import load_operation
from pipelines.gate_context import Gate, GateOutcome
from pipelines.gate_page import _lines, _plot
from pipelines.gate_report import Gated, gate_report, html_key, plain, render, same_verdict, store_report
from pipelines.gates import integrity, load_gates, run_gates
from serving.canonical import canonical_json, parse_canonical, sha256_hex
from serving.errors import LedgerError, StoreError
from serving.release import MAX_REPORT_BYTES, report_key
from tests.pipelines.gates.world import LINEAGE, LOOSE_LATENCY, World

QUICK = [f"gate.latency.{name}={value}" for name, value in LOOSE_LATENCY.items()]


def chosen(*overrides: str, task: str = "pricing") -> list[Gate]:
    return load_gates(load_operation(["model=pricing_lstm", *QUICK, *overrides]).gate, task=task)


def asked(world: World, version: int, *overrides: str, approve_by: str | None = "Ann") -> Gated:
    gates = chosen(*overrides, task="surface" if world.model == "surface_vae" else "pricing")
    return run_gates(world.state(), version, world.store, gates, by="ci", approve_by=approve_by)


def contents(world: World) -> dict[str, str]:
    return {key: sha256_hex(world.store.get(key)) for key in world.store.list()}


def test_a_good_version_passes_every_gate(world: World) -> None:
    gated = asked(world, world.register(world.bundle()))
    assert [(one.name, one.message) for one in gated.outcomes if not one.passed] == []
    assert [one.name for one in gated.outcomes][:2] == ["integrity", "accuracy"]
    assert len(gated.outcomes) == 12
    assert gated.not_asked == ()
    report = json.loads(gated.report)
    assert (report["passed"], report["approve_by"], report["champion"]) == (True, "Ann", None)
    assert report["bundle"] == world.bundle().sha256


WAYS_TO_FAIL = {
    "accuracy": ["gate.accuracy.ratio=0.01"],
    "arbitrage": ["gate.arbitrage.largest_volatility=0.01"],
    "greeks": ["gate.greeks.tolerance=1e-12"],
    "parity": ["gate.parity.required=[abacus]"],
    "precision": ["gate.precision.precisions=[]", "gate.precision.required=[int8]"],
    "size": ["gate.size.max_bytes=1"],
    "lineage": ["gate.lineage.required=[colour]"],
    "clean": [],
    "feature_spec": [],
    "latency": ["gate.latency.step_p50_us=1e-6"],
    "approval": [],
}


@pytest.mark.parametrize("failing", [*WAYS_TO_FAIL, "integrity"])
def test_one_gate_that_says_no_changes_nothing(world: World, failing: str) -> None:
    """Champion, ledger and store stay byte for byte as they were; the others are asked all the same."""
    from pipelines.promote import promote
    from serving.errors import GateError

    world.champion(world.register(world.bundle(1)))
    lineage = LINEAGE | ({"git_clean": "false"} if failing == "clean" else {})
    candidate = world.bundle(0)
    version = world.register(candidate, lineage=lineage)
    if failing == "feature_spec":
        world.store.put(f"bundles/{world.bundle(1).sha256}/manifest.json", b"{}")  # nothing to compare with
    if failing == "integrity":
        world.store.put(f"bundles/{candidate.sha256}/golden.npz", b"other")
    approve_by = None if failing == "approval" else "Ann"
    before, state = contents(world), world.state()
    gated = asked(world, version, *WAYS_TO_FAIL.get(failing, []), approve_by=approve_by)
    refused = {one.name for one in gated.outcomes if not one.passed}
    assert failing in refused
    if failing not in ("integrity", "feature_spec"):
        assert refused == {failing}
    assert len(gated.outcomes) == 12
    assert contents(world) == before  # asking writes nothing

    class Ready:
        def ready(self, model: str) -> None:
            """Nothing to sign yet."""

    nothing: Any = Ready()
    with pytest.raises(GateError, match=f"- {failing}: "):
        promote(model=world.model, version=version, store=world.store, registry=nothing, channel=nothing, by="ci",
                gates=chosen(*WAYS_TO_FAIL.get(failing, [])), approve_by=approve_by)  # fmt: skip
    after = contents(world)
    assert {key: after[key] for key in before} == before
    added = sorted(key.partition("/")[0] for key in after.keys() - before.keys())
    assert added == ["gate-reports", "gate-reports", "ledger"]  # report, page, `gated`
    assert world.state().champion == state.champion
    known = world.state().versions[version]
    assert not known.passed_gates
    assert known.gated is not None
    assert parse_canonical(world.store.get(report_key(known.gated.details["report"])))["passed"] is False


def test_a_surface_model_passes_what_it_is_asked(tmp_path: Path) -> None:
    world = World(tmp_path, "surface_vae")
    gated = asked(world, world.register(world.bundle(), lineage=LINEAGE | MATCHING), "gate.size.enabled=false")
    assert [(one.name, one.message) for one in gated.outcomes if not one.passed] == []
    assert gated.not_asked == ("precision", "size", "latency")


MATCHING = {"quotes_sha256": "ab" * 32, "trained_config_sha256": "ab" * 32}  # as tests/tiny_surface.py has them


# The same verdict.


def gated_event(world: World, version: int, gated: Gated) -> None:
    state = world.state()
    verdict = {"passed": all(one.passed for one in gated.outcomes), "report": gated.sha256}
    world.ledger.append(
        state, "gated", version=version, bundle=state.versions[version].bundle, by="ci", details=verdict
    )


def test_asking_again_keeps_the_first_report_though_latencies_differ(world: World) -> None:
    version = world.register(world.bundle())
    first = asked(world, version)
    store_report(world.store, first)
    gated_event(world, version, first)
    again = asked(world, version)
    figures = [next(one for one in gated.outcomes if one.name == "latency").figures for gated in (first, again)]
    assert figures[0] != figures[1]
    assert again.report == first.report
    before = contents(world)
    assert store_report(world.store, again) == first.sha256
    assert contents(world) == before


@pytest.mark.parametrize("what", ["approver", "settings", "champion", "verdict", "switched off"])
def test_another_verdict_makes_another_report(world: World, what: str) -> None:
    version = world.register(world.bundle())
    first = asked(world, version)
    store_report(world.store, first)
    gated_event(world, version, first)
    if what == "champion":
        world.champion(world.register(world.bundle(1)))
    overrides = {"settings": ["gate.size.max_bytes=99999999"], "verdict": ["gate.size.max_bytes=1"],
                 "switched off": ["gate.size.enabled=false"]}.get(what, [])  # fmt: skip
    again = asked(world, version, *overrides, approve_by="Bob" if what == "approver" else "Ann")
    assert again.sha256 != first.sha256


@pytest.mark.parametrize("damage", ["gone", "other bytes", "no json", "older format"])
def test_an_earlier_report_that_cant_be_used_is_made_anew(world: World, damage: str) -> None:
    version = world.register(world.bundle())
    first = asked(world, version)
    raw = {"no json": b"\xff", "older format": canonical_json({"format": 1})}.get(damage, first.report)
    if damage in ("no json", "older format"):
        world.store.put(report_key(sha256_hex(raw)), raw)
        gated_event(world, version, dataclasses.replace(first, report=raw))
    else:
        gated_event(world, version, first)
        if damage == "other bytes":
            world.store.put(report_key(first.sha256), b"{}")
    again = asked(world, version)
    assert again.report != raw or damage in ("gone", "other bytes")
    assert parse_canonical(again.report)["passed"] is True


def test_other_bytes_in_the_reports_place_are_refused(world: World) -> None:
    gated = asked(world, world.register(world.bundle()))
    world.store.put(report_key(gated.sha256), b"{}")
    with pytest.raises(StoreError, match=r"gate-reports/.*\.json: the store holds other bytes"):
        store_report(world.store, gated)


def test_an_unknown_version_isnt_asked(world: World) -> None:
    with pytest.raises(LedgerError, match="version 4 isn't registered"):
        asked(world, 4)


def test_integrity_is_always_first_and_about_this_model(world: World, tmp_path: Path) -> None:
    version = world.register(world.bundle())
    gated = run_gates(world.state(), version, world.store, [])
    assert [one.name for one in gated.outcomes] == ["integrity"]
    context = world.context(version, model="another")
    assert integrity(context).message == "a bundle of model 'small'"
    assert not integrity(context).passed
    key = f"bundles/{world.bundle().sha256}/member-0/head.onnx"
    world.store.put(key, world.store.get(key)[:-1] + b"!")
    outcome = integrity(world.context(version, work_dir=tmp_path / "other"))
    assert not outcome.passed
    assert "member-0/head.onnx: sha256 is" in outcome.message


# The bytes.


def outcome_of(**values: Any) -> GateOutcome:
    return dataclasses.replace(GateOutcome("size", True, 1.0, 2.0, "fine"), **values)


@pytest.mark.parametrize(
    ("value", "expected"),
    [(math.nan, None), (math.inf, None), (0.1 + 0.2, 0.3), (1 / 3, 0.333333), (7, 7), (True, True), (None, None),
     ((1.0, math.nan), [1.0, None]), ({"a": {"b": 123456789.123}}, {"a": {"b": 123457000.0}})],
)  # fmt: skip
def test_figures_are_rounded_and_never_nan(value: Any, expected: Any) -> None:
    assert plain(value) == expected


def test_the_report_is_canonical_and_bounded(world: World) -> None:
    version = world.register(world.bundle())
    raw = gate_report(world.state(), version, [outcome_of(value=math.nan, figures={"x": math.inf})])
    assert canonical_json(parse_canonical(raw)) == raw
    assert parse_canonical(raw)["outcomes"][0]["figures"] == {"x": None}
    assert len(asked(world, version).report) < MAX_REPORT_BYTES / 10


figures = st.dictionaries(st.text(max_size=5), st.floats(), max_size=3)


@given(figures, figures, st.floats(), st.floats(), st.booleans(), st.booleans(), st.booleans())
def test_two_reports_say_the_same_if_and_only_if_they_pass_or_refuse_alike(
    one: dict[str, float], other: dict[str, float], value: float, another: float, passed: bool, also: bool, same: bool
) -> None:
    """Figures decide nothing; of a refusal the reason does, but for the numbers in it."""
    state: Any = FakeState()
    reason = f"head.onnx takes {another:.3g} us" if same else "head.onnx: isn't there"
    first = gate_report(state, 1, [outcome_of(figures=one, value=value, passed=passed,
                                              message=f"head.onnx takes {value:.3g} us")])  # fmt: skip
    second = gate_report(state, 1, [outcome_of(figures=other, value=another, passed=also, message=reason)])
    finite = math.isfinite(value) and math.isfinite(another)
    if passed or also or finite or not same:
        assert same_verdict(first, second) == (passed == also and (passed or same))


@pytest.mark.parametrize(
    ("before", "after"),
    [("exams/1.npz: isn't in the store", "exams/1.npz: sha256 is 3f; the store was tampered with"),
     ("sha256 is 3f12ab", "sha256 is 9e12ab"), ("member-0 has no weights file", "member-1 has no weights file"),
     ("step p50 3 us > 1", "chain p50 3 us > 1")],
)  # fmt: skip
def test_a_refusal_for_another_reason_isnt_the_earlier_report(before: str, after: str) -> None:
    """The ledger's last `gated` event is to name a report that says why, today."""
    state: Any = FakeState()
    first, second = (gate_report(state, 1, [outcome_of(passed=False, message=one)]) for one in (before, after))
    assert not same_verdict(first, second)
    assert same_verdict(first, first)


class FakeState:
    """As much of a ledger's state as a report needs."""

    model = "small"
    champion = None

    class Known:
        bundle = "0" * 64

    versions = {1: Known()}  # noqa: RUF012


# The page.


def test_the_page_shows_every_gate_and_escapes_what_people_typed(world: World) -> None:
    version = world.register(world.bundle())
    gated = asked(world, version, "gate.size.max_bytes=1", "gate.clean.enabled=false", approve_by="<b>Ann</b>")
    page = render(gated.report)
    assert "<b>Ann" not in page
    assert "&lt;b&gt;Ann&lt;/b&gt;" in page
    assert "Refused: 1 of 11 gates say no (size)" in page
    assert len(re.findall(r'class="passed"', page)) == 10
    assert len(re.findall(r'class="FAILED"', page)) == 1
    assert len(re.findall(r'class="not-asked"', page)) == 1
    assert "<b>Not asked:</b> clean." in page
    assert "<script" not in page
    assert not re.search(r"(src|href)=", page)
    assert gated.sha256 in page
    assert page == render(gated.report)


def test_the_page_draws_errors_by_date_for_baseline_and_champion(world: World) -> None:
    world.champion(world.register(world.bundle(1)))
    page = render(asked(world, world.register(world.bundle(0))).report)
    assert "Errors by date against the baseline" in page
    assert "Errors by date against the champion" in page
    points = re.findall(r'<polyline(?: class="model")? points="([^"]+)"', page)
    assert [len(line.split()) for line in points] == [14] * 4
    places = [tuple(map(float, point.split(","))) for line in points for point in line.split()]
    assert all(0 <= x <= 900 and 0 <= y <= 220 for x, y in places)


@given(st.floats(1e-6, 1e6))
def test_a_plot_has_few_round_ticks_and_everything_under_the_highest(highest: float) -> None:
    plot = _plot({"date": ["a", "b"], "model": [highest, highest / 3]}, "")
    values = [float(tick["text"]) for tick in plot["ticks"]]
    assert values[0] == 0
    assert 3 <= len(values) <= 6
    assert values[-1] >= highest * (1 - 1e-5)
    assert values[-2] < highest
    assert {f"{value:e}"[0] for value in np.diff(values)} <= {"1", "2", "5"}
    assert min(float(point.split(",")[1]) for point in plot["lines"][0]["runs"][0].split()) >= 0


def test_figures_are_a_line_each_however_deep() -> None:
    lines = _lines({"a": {"b": 1.5, "c": {"d": None}}, "e": [1, 2], "checks": [{"name": "x", "by": 0.1}], "f": []})
    assert lines.splitlines() == [
        "a, b: 1.5", "a, c, d: null", "e: [1, 2]", 'checks 1: {"name": "x", "by": 0.1}', "f: []",
    ]  # fmt: skip


def test_a_date_without_a_figure_is_a_gap_not_a_zero() -> None:
    series = {"date": ["a", "b", "c", "d"], "model": [1.0, 2.0, None, 1.0]}
    raw = gate_report(FakeState(), 1, [outcome_of(figures={"by_date": series})])  # type: ignore[arg-type]
    points = re.findall(r'points="([^"]+)"', render(raw))
    assert [len(line.split()) for line in points] == [2, 1]


def test_report_and_page_are_stored_whatever_the_verdict(world: World) -> None:
    version = world.register(world.bundle())
    for overrides in ((), ("gate.size.max_bytes=1",)):
        gated = asked(world, version, *overrides)
        sha256 = store_report(world.store, gated)
        assert world.store.get(report_key(sha256)) == gated.report
        assert world.store.get(html_key(sha256)).decode() == render(gated.report)
