"""Engines and precisions as part of promotion: what is as good is admitted, what was planted is not, by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.exam_answers import answer
from pipelines.gate_report import same_verdict
from pipelines.gates import load_gates, run_gates
from pipelines.native_packs import admitted_precisions, make_native_packs
from serving.canonical import canonical_json, parse_canonical
from serving.engine_pack import EnginePack
from serving.golden import GOLDEN
from tests.pipelines.gates.world import LOOSE_LATENCY, NOISE, World, ask
from tests.stand_in_native import Moves, install


@pytest.fixture
def moves(monkeypatch: pytest.MonkeyPatch) -> Moves:
    """A native engine that answers as ONNX Runtime does until a test moves it."""
    made = Moves()
    install(monkeypatch, made)
    return made


def test_an_equal_native_engine_is_compared_and_admitted(world: World, moves: Moves) -> None:
    outcome = ask("parity", world.context(world.register(world.bundle())))
    assert outcome.passed, outcome.message
    assert outcome.figures["admitted"] == ["native", "ort"]
    named = {one["name"] for one in outcome.figures["checks"]}
    for way in ("iv (window)", "iv (step)", "exam (window)", "exam (step)", "context (window)", "context (step)"):
        assert {f"native: {way}", f"ort: {way}"} <= named


@pytest.mark.parametrize("planted", [{"shift": {"fp32": 1e-4}}, {"context_shift": {"fp32": 1e-3}}])
def test_a_native_engine_with_a_wrong_weight_fails_the_gate_though_it_isnt_required(
    world: World, moves: Moves, planted: dict[str, Any]
) -> None:
    for name, value in planted.items():
        setattr(moves, name, value)
    outcome = ask("parity", world.context(world.register(world.bundle())))
    assert not outcome.passed
    assert "native: " in outcome.message
    assert "ort: " not in outcome.message
    assert outcome.figures["admitted"] == []


def test_a_native_engine_that_refuses_the_net_is_named_and_must_not_be_required(world: World, moves: Moves) -> None:
    moves.refuses = {"fp32": "layer 'Einsum' of member-0/head.onnx isn't known"}
    context = world.context(world.register(world.bundle()))
    outcome = ask("parity", context)
    assert outcome.passed
    assert "native not asked: refuses this net: engine 'native': layer 'Einsum'" in outcome.message
    assert outcome.figures["admitted"] == ["ort"]
    outcome = ask("parity", context, required=["ort", "native"])
    assert not outcome.passed
    assert "layer 'Einsum' of member-0/head.onnx isn't known" in outcome.message


def test_precisions_within_the_slack_are_admitted_and_their_distance_is_told(world: World, moves: Moves) -> None:
    moves.shift = {"bf16": 1e-5, "int8": -2e-5}
    outcome = ask("precision", world.context(world.register(world.bundle())))
    assert outcome.passed
    assert outcome.figures["admitted"] == ["bf16", "int8"]
    for name, shift in (("bf16", 1e-5), ("int8", 2e-5)):
        found = outcome.figures["precisions"][name]
        assert found["largest_distance"] == pytest.approx(shift, rel=0.02)  # float32 rounds volatilities near 0.2
        assert 0.99 < found["ratio"] <= 1.01
    assert outcome.value == max(one["ratio"] for one in outcome.figures["precisions"].values())


def noise_for(ratio: float) -> float:
    """Independent noise that raises an RMSE of NOISE to `ratio` times it: sqrt(ratio^2 - 1) of it."""
    return NOISE * float(np.sqrt(ratio**2 - 1.0))


def test_a_precision_that_is_five_percent_worse_isnt_admitted_and_if_required_refuses(
    world: World, moves: Moves
) -> None:
    moves.noise = {"int8": noise_for(1.05)}
    context = world.context(world.register(world.bundle()))
    outcome = ask("precision", context)
    assert outcome.passed
    assert outcome.figures["admitted"] == ["bf16"]
    assert outcome.figures["precisions"]["int8"]["ratio"] > 1.01
    assert "int8 NOT admitted: IV RMSE" in outcome.message
    assert ask("precision", context, required=["bf16"]).passed
    refused = ask("precision", context, required=["int8"])
    assert not refused.passed
    assert refused.value is not None
    assert refused.value > refused.threshold == pytest.approx(1.01)
    assert ask("precision", context, required=["int8"], precision_slack=0.5).passed


def test_answers_that_arent_numbers_are_never_admitted(world: World, moves: Moves) -> None:
    moves.shift = {"bf16": float("nan")}
    outcome = ask("precision", world.context(world.register(world.bundle())), precision_slack=0.9)
    assert outcome.figures["admitted"] == ["int8"]


def test_a_precision_the_engine_hasnt_is_told_and_a_required_one_must_be_there(world: World, moves: Moves) -> None:
    moves.refuses = {"bf16": "this CPU has no bf16"}
    context = world.context(world.register(world.bundle()))
    outcome = ask("precision", context)
    assert outcome.figures["admitted"] == ["int8"]
    assert "bf16 refused: engine 'native': this CPU has no bf16" in outcome.message
    assert not ask("precision", context, required=["bf16"]).passed
    moves.absent = "there was no compiler"
    outcome = ask("precision", context)
    assert (outcome.passed, outcome.figures["admitted"]) == (True, [])
    assert "there was no compiler" in outcome.message
    assert not ask("precision", context, required=["bf16"]).passed
    unasked = ask("precision", context, precisions=["bf16"], required=["int8"])
    assert "required precisions int8 aren't among those measured" in unasked.message


def test_latency_is_measured_of_every_engine_and_precision(world: World, moves: Moves) -> None:
    context = world.context(world.register(world.bundle()))
    outcome = ask("latency", context, **LOOSE_LATENCY)
    assert outcome.passed, outcome.message
    assert list(outcome.figures["engines"]) == ["native fp32", "native bf16", "native int8", "ort fp32"]
    assert outcome.figures["engines"]["native bf16"]["runtime"] == "native stand-in bf16"
    moves.takes_us = 1000.0
    outcome = ask("latency", context, **(LOOSE_LATENCY | {"step_p50_us": 900.0}))
    assert not outcome.passed
    assert "native int8: step p50" in outcome.message
    assert "ort fp32: step" not in outcome.message
    moves.absent = "there was no compiler"
    outcome = ask("latency", context, **LOOSE_LATENCY)
    assert outcome.passed
    assert "native not timed: there was no compiler" in outcome.message
    assert list(outcome.figures["engines"]) == ["ort fp32"]


# The packs that follow from the report.


def gated(world: World, version: int) -> bytes:
    gates = [
        gate
        for gate in load_gates({"latency": LOOSE_LATENCY}, task="pricing")
        if gate.name in ("parity", "precision", "latency")
    ]
    return run_gates(world.state(), version, world.store, gates).report


def packs_of(world: World, report: bytes, folder: Path) -> dict[str, EnginePack]:
    made = make_native_packs(world.bundle(), parse_canonical(report), folder)
    return {pack.manifest.target: pack for pack in made}


def test_native_packs_hold_the_answers_and_the_figures_of_what_was_admitted(
    world: World, moves: Moves, tmp_path: Path
) -> None:
    moves.shift, moves.noise = {"bf16": 1e-5}, {"int8": noise_for(1.05)}
    report = gated(world, world.register(world.bundle()))
    packs = packs_of(world, report, tmp_path / "packs")
    assert list(packs) == ["native_fp32", "native_bf16"]
    golden = world.bundle().arrays(GOLDEN)
    np.testing.assert_allclose(packs["native_fp32"].arrays("golden.npz")["iv"], golden["iv"], atol=2e-6)
    np.testing.assert_allclose(packs["native_bf16"].arrays("golden.npz")["iv"], golden["iv"] + 1e-5, atol=2e-6)
    for pack in packs.values():
        said = pack.manifest
        assert (said.backend, said.executed, said.sm, said.bundle_sha256) == (
            "native",
            True,
            None,
            world.bundle().sha256,
        )
        assert said.latency is not None
        assert said.latency["step_p50_us"] > 0
        assert said.configuration["engine_runtime"] == f"native stand-in {said.precision}"
        assert said.parity
        assert all(one.difference <= one.tolerance for one in said.parity)
    again = packs_of(world, report, tmp_path / "again")
    assert {name: pack.sha256 for name, pack in again.items()} == {name: one.sha256 for name, one in packs.items()}


def test_without_the_native_engine_there_are_no_packs(world: World, moves: Moves, tmp_path: Path) -> None:
    moves.absent = "there was no compiler"
    report = gated(world, world.register(world.bundle()))
    assert packs_of(world, report, tmp_path / "packs") == {}
    for outcomes in ({}, {"parity": {"figures": {}}}, {"parity": {"figures": {"admitted": ["ort"]}}}):
        assert admitted_precisions(outcomes) == []


def test_another_admission_is_another_verdict(world: World, moves: Moves) -> None:
    version = world.register(world.bundle())
    first = gated(world, version)
    assert same_verdict(first, gated(world, version))
    moves.noise = {"int8": noise_for(1.05)}
    assert not same_verdict(first, gated(world, version))
    assert canonical_json(parse_canonical(first)) == first


def test_the_exam_is_answered_in_the_precision_asked_for(world: World, moves: Moves) -> None:
    moves.shift = {"bf16": 1e-3}
    questions = world.questions()
    plain, reduced = (answer(world.bundle(), questions, backend="native", precision=one) for one in ("fp32", "bf16"))
    np.testing.assert_allclose(reduced - plain, 1e-3, atol=1e-7)
