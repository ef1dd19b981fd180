"""Arbitrage, Greeks, parity: recomputed from the bytes; pass on what is good, fail on what was planted, say which."""

from __future__ import annotations

import copy
import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import helper

from pipelines.exam_answers import answer, exam_table
from pipelines.tasks.pricing_evaluation import greeks_check
from serving import black76
from serving.bundle import store_bundle
from serving.engines import ort
from tests.pipelines.gates.world import GREEKS, World, answered, ask, with_answers
from tests.tiny_bundle import CONTRACT_TABLE, IV, onnx_bytes, tiny_bundle

# Arbitrage.


def test_smooth_smiles_offer_less_arbitrage_than_noisy_quotes(world: World, surfaces: World) -> None:
    for one in (world, surfaces):
        outcome = ask("arbitrage", one.context(one.register(one.bundle())))
        assert outcome.passed, outcome.message
        assert set(outcome.figures) == {"model", "market", "rows"}
    clean = ask("arbitrage", world.context(1))
    assert clean.figures["model"] == {"monotone": 0.0, "butterfly": 0.0, "calendar": 0.0}
    assert clean.figures["market"]["butterfly"] > 0


def _bent(world: World, by: np.ndarray) -> Any:
    """A context whose version answers its net's volatilities plus `by`, in a market that is smooth."""
    exam = answered(world.questions(), world.bundle(0), world.bundle(0), noise=0.0)
    context = world.context(world.register(world.bundle(0), exam=exam))
    vars(context)["answers"] = context.answers + by  # what a net would have to answer
    return context


@pytest.mark.parametrize("kind", ["butterfly", "calendar"])
def test_planted_arbitrage_is_found(world: World, kind: str) -> None:
    rows = world.questions().rows
    bends = {"butterfly": 0.02 * (rows["strike"] == rows["strike"][3]),
             "calendar": np.where(rows["tau"] > rows["tau"].max() - 1e-9, -0.12, 0.0)}  # fmt: skip
    outcome = ask("arbitrage", _bent(world, bends[kind]))
    assert not outcome.passed
    assert f"{kind}: " in outcome.message
    assert outcome.value is not None
    assert outcome.value > 1
    assert ask("arbitrage", _bent(World(world.folder / "again"), bends[kind]), allowed_share=1.0).passed


def test_as_much_arbitrage_as_the_market_is_allowed_no_more(world: World) -> None:
    context = world.context(world.register(world.bundle()))
    vars(context)["answers"] = context.exam.rows["iv_market"]
    assert ask("arbitrage", context).value == 1.0
    assert not ask("arbitrage", context, market_ratio=0.9).passed


@pytest.mark.parametrize("bad", [math.nan, math.inf, 0.0, -0.1, 5.1])
def test_volatilities_without_sense_are_refused(world: World, bad: float) -> None:
    context = world.context(world.register(world.bundle()))
    answers = context.answers.copy()
    answers[7] = bad
    vars(context)["answers"] = answers
    outcome = ask("arbitrage", context)
    assert not outcome.passed
    assert "row 7 of the exam has" in outcome.message
    assert ask("greeks", context).passed == (bad == 5.1)
    assert math.isfinite(bad) or not ask("accuracy", context).passed


# Greeks.


def test_greeks_of_any_task_are_recomputed(world: World, surfaces: World) -> None:
    for one, count in ((world, 12), (surfaces, 4)):  # a surface model has none on record
        outcome = ask("greeks", one.context(one.register(one.bundle())))
        assert outcome.passed, outcome.message
        assert len(outcome.figures["errors"]) == count
        assert outcome.value is not None
        assert 0 < outcome.value < 1e-4


@pytest.mark.parametrize(
    ("recorded", "says"),
    [
        (None, "no usable metrics.greeks.delta.against_the_host on record"),
        ([], "no usable metrics.greeks.theta.against_finite_differences on record"),
        (GREEKS[1:], "no usable metrics.greeks.delta.against_finite_differences"),
        ([{**GREEKS[0], "against_the_host": math.nan}, *GREEKS[1:]], "no usable metrics.greeks.delta.against_the_host"),
        ([{**GREEKS[0], "against_the_host": 2e-4}, *GREEKS[1:]], "delta against the host (on record) is off by 0.0002"),
        ([{**GREEKS[0], "against_the_host": True}, *GREEKS[1:]], "no usable metrics.greeks.delta.against_the_host"),
    ],
)
def test_greeks_on_record_must_be_there_and_right(world: World, recorded: Any, says: str) -> None:
    version = world.register(world.bundle())
    details = copy.deepcopy(dict(world.state().versions[version].registered.details))
    details["metrics"]["greeks"] = recorded
    outcome = ask("greeks", world.context(version, details=details))
    assert not outcome.passed
    assert says in outcome.message


def test_wrong_greeks_of_the_host_are_found(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(*args: Any) -> black76.Valuation:
        worth = right(*args)
        return dataclasses.replace(worth, vega=-worth.vega)

    right = black76.value
    context = world.context(world.register(world.bundle()))
    monkeypatch.setattr("pipelines.gates.greeks.black76.value", wrong)
    outcome = ask("greeks", context)
    assert not outcome.passed
    assert "vega is off by 2 of the largest" in outcome.message
    assert "vega negative" in outcome.message


def test_what_an_evaluation_records_is_what_the_gate_reads(world: World) -> None:
    bundle = world.bundle()
    exam = answered(world.questions(), bundle, bundle)
    recorded = greeks_check(exam_table(exam, {"model": answer(bundle, exam)})).to_dicts()
    version = world.register(bundle, exam=exam, metrics={"greeks": recorded})
    outcome = ask("greeks", world.context(version))
    assert outcome.passed, outcome.message
    assert sum("on record" in name for name in outcome.figures["errors"]) == 8


# Parity.


@pytest.mark.parametrize("way", ["iv (window)", "iv (step)", "exam (window)", "exam (step)", "context (window)"])
def test_every_way_of_computing_is_compared(world: World, way: str) -> None:
    outcome = ask("parity", world.context(world.register(world.bundle())))
    assert outcome.passed, outcome.message
    assert f"ort: {way}" in [one["name"] for one in outcome.figures["checks"]]


def test_golden_vectors_that_differ_are_named(world: World, surfaces: World) -> None:
    outcome = ask("parity", world.context(world.register(world.bundle(golden_shift=1e-3))))
    assert not outcome.passed
    assert "ort: iv (window) differs by 0.001, allowed 2e-06; ort: iv (step)" in outcome.message
    assert "exam" not in outcome.message
    outcome = ask("parity", surfaces.context(surfaces.register(surfaces.bundle(golden_shift=2e-4))))
    assert "ort: completed differs by 0.0002, allowed 0.0001" in outcome.message


def test_the_exams_real_features_are_compared(world: World, surfaces: World) -> None:
    for one, says in ((world, "ort: exam (window) differs by 0.001"), (surfaces, "ort: exam differs by 0.001")):
        exam = with_answers(one)
        answer = exam.rows["answer"].copy()
        answer[5] += np.float32(1e-3)
        outcome = ask("parity", one.context(one.register(one.bundle(0), exam=with_answers(one, answer=answer))))
        assert not outcome.passed
        assert says in outcome.message


OTHER_HEAD = onnx_bytes(
    [helper.make_node("ReduceSum", ["contracts", "axis"], ["iv"], keepdims=0)], [CONTRACT_TABLE], [IV],
    axis=np.array([1]),
)  # fmt: skip


@pytest.mark.parametrize(
    ("bundle", "says"),
    [
        ({"tolerances": {"context": 1e-5}}, "no tolerance 'iv'"),
        ({"extra_files": {"member-0/head.onnx": b"rubbish"}}, "member-0/head.onnx: ONNX Runtime"),
        ({"extra_files": {"member-0/head.onnx": OTHER_HEAD}}, "the file's are ['contracts']"),
    ],
)
def test_a_bundle_no_engine_takes_fails_with_the_reason(tmp_path: Path, bundle: dict[str, Any], says: str) -> None:
    world = World(tmp_path)
    good = world.bundle()
    exam = answered(world.questions(), good, good)
    bad = tiny_bundle(tmp_path / "bad", model="small", **bundle)
    outcome = ask(
        "parity", world.context(world.register(good, exam=exam), bundle_sha256=store_bundle(world.store, bad))
    )
    assert not outcome.passed
    assert says in outcome.message


def test_engines_that_cant_run_are_named_and_required_ones_must(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    context = world.context(world.register(world.bundle()))
    outcome = ask("parity", context, required=["native"])
    assert not outcome.passed
    assert "required engines that can't run here: native" in outcome.message
    monkeypatch.setattr(ort, "why_unavailable", lambda: "it was taken out")
    outcome = ask("parity", context)
    assert not outcome.passed
    assert "ort: it was taken out" in outcome.message
