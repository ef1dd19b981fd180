"""The engines' benchmark compares equals and writes every row that is demanded; nothing here depends on a time."""

from __future__ import annotations

import importlib.util
import json
import math
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import engines, engines_page
from benchmarks.engines_bandwidth import BYTES, path_bytes, path_weights, recurrent_weights
from benchmarks.engines_cases import CASES, SEED, Built, Case, build_case, make_net
from benchmarks.engines_chain import NumpyBlack76, build_chain
from benchmarks.engines_choice import absent_peers, choose, openvino_setups
from benchmarks.engines_decomposed import DecomposedStep
from benchmarks.engines_rows import FLOAT_PEERS, INT8_PEERS, timing_rows
from benchmarks.engines_runners import StepRunner, WindowRunner, encoder_file
from benchmarks.engines_steps import largest_error, native_block
from benchmarks.engines_targets import TARGETS, verdicts
from benchmarks.engines_timing import Effort, Timings, interleaved
from models.pricing import zero_states
from models.pricing_lstm import PricingLSTM
from serving import black76, native
from serving.errors import EngineError, StrikeforgeError

OPENVINO = importlib.util.find_spec("openvino") is not None

TINY = {"step_features": 5, "hidden": 8, "layers": 2, "window": 7}
BY_NAME = {case.name: case for case in CASES}


def timings(**microseconds: float) -> dict[str, Timings]:
    """Two repeats of each subject, all calls equally long but one that takes ten times as much."""
    found = {}
    for name, value in microseconds.items():
        found[name] = Timings()
        for _ in range(2):
            calls = np.full(100, int(value * 1000), np.int64)
            calls[-1] *= 10
            found[name].add({"evaluate": calls, "advance": calls[:10]})
    return found


def tiny(folder: Path, semantics: str) -> Built:
    return build_case(Case("tiny", "pricing_lstm", TINY, semantics, 3), folder)


def test_shapes_are_those_that_are_demanded() -> None:
    shapes = {name: tuple(case.sizes.values()) for name, case in BY_NAME.items()}
    assert shapes == {
        "lstm_small_step": (32, 64, 1, 50),
        "lstm_mid_step": (50, 128, 2, 50),
        "lstm_production_step": (50, 256, 3, 50),
        "stac_lstm_a_window": (100, 100, 2, 50),
        "stac_lstm_b_window": (250, 200, 3, 100),
        "transformer_step": (50, 64, 4, 2, 50, 50),
    }
    assert {name for name, case in BY_NAME.items() if case.semantics == "window"} == {
        "stac_lstm_a_window",
        "stac_lstm_b_window",
    }


def test_weights_follow_from_the_seed() -> None:
    first, second = make_net("pricing_lstm", TINY), make_net("pricing_lstm", TINY)
    assert all(torch.equal(value, second.state_dict()[name]) for name, value in first.state_dict().items())
    assert all(bool(layer.weight.any()) for layer in (first.head.linear, first.head.network[-1]))


def test_the_decomposed_step_is_the_step() -> None:
    net = make_net("pricing_lstm", TINY).double()
    assert isinstance(net, PricingLSTM)
    torch.manual_seed(SEED)
    states = [torch.rand_like(state.double()) for state in zero_states(net)]
    x = torch.rand(1, TINY["step_features"]).double()
    for ours, theirs in zip(DecomposedStep(net).double()(x, *states), net.step(x, *states), strict=True):
        # the decomposition stores its weights in float32: sums of at most 16 products of such roundings
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


def test_weights_on_the_path_are_counted_from_the_net() -> None:
    for case in CASES:
        parameters = dict(make_net(case.family, case.sizes).named_parameters())
        encoder = {
            name: value for name, value in parameters.items() if not name.startswith("head") and value.dim() == 2
        }
        encoder = {name: value for name, value in encoder.items() if not name.endswith("distance_bias")}
        recurrent = sum(value.numel() for name, value in encoder.items() if "weight_hh" in name)
        assert recurrent_weights(case) == recurrent, case.name
        assert sum(path_weights(case)) == sum(value.numel() for value in encoder.values()) - recurrent, case.name


def test_bytes_on_the_path_shrink_with_the_precision() -> None:
    for case in CASES:
        fp32, bf16, int8 = (path_bytes(case, precision) for precision in ("fp32", "bf16", "int8"))
        reduced, fuller = path_weights(case)
        assert fp32 > 4 * (reduced + fuller)
        assert int8 < bf16 < fp32
        assert 4 * int8 >= fp32, "nothing is narrower than a byte"


def test_the_page_states_the_bytes_of_the_shapes() -> None:
    lines = engines_page.PAGE.read_text(encoding="utf-8").split("## How it is measured")[0].splitlines()
    for case in CASES:
        (line,) = (line for line in lines if line.startswith(f"| {case.name} |"))
        on_path = [path_bytes(case, precision) for precision in BYTES]
        whole = [path + recurrent_weights(case) * width for path, width in zip(on_path, BYTES.values(), strict=True)]
        stated = [cell.strip().removesuffix(" KB") for cell in line.split("|")[2:-1]]
        expected = [f"{round(count / 1000):,}" for count in (on_path if whole == on_path else on_path + whole)]
        assert [cell for cell in stated if cell and cell != "the same"] == expected, case.name


@pytest.mark.slow
@pytest.mark.parametrize("semantics", ["stateful", "window"])
def test_runners_carry_the_state_of_the_reference(tmp_path: Path, semantics: str) -> None:
    from benchmarks import engines_ort, engines_torch

    built = tiny(tmp_path, semantics)
    file = encoder_file(built.bundle)
    raw = built.bundle.read(file.name)
    (part,) = (part for part in built.net.parts() if part.role == ("step" if semantics == "stateful" else "window"))
    everything = {
        **engines_ort.setups(raw),
        **openvino_setups(raw, []),
        **engines_torch.setups(part.module, False),
    }
    runner_class = StepRunner if semantics == "stateful" else WindowRunner
    for subject in ("ort", "ort_iobinding", "torch", *["openvino_f32"] * OPENVINO):
        for setup, make in everything[subject].items():
            runner = runner_class(file, make)
            # float32 sums of 2 x 15 products and smooth activations, carried over seven steps
            assert largest_error(built, runner) < 1e-4, (subject, setup)
    broken = runner_class(file, everything["ort"]["run"])
    broken.advance = lambda x: None  # type: ignore[method-assign]
    assert largest_error(built, broken) > 1e-2, "a runner that forgets its steps must show"


def test_numpy_black76_prices_as_the_reference() -> None:
    chain = build_chain(make_net("pricing_lstm", {"step_features": 32, "hidden": 64, "layers": 1, "window": 50}), 40)
    peer = NumpyBlack76(chain)
    volatility = chain.volatility.astype(np.float32)
    peer.run(volatility)
    worth = black76.value(
        chain.forward, chain.strike, chain.tau_years, volatility.astype(np.float64), chain.discount, chain.right
    )
    for row, name in enumerate(("price", "delta", "gamma", "vega", "theta")):
        expected = getattr(worth, name)
        scale = chain.forward if name in ("price", "vega", "theta") else np.abs(expected) + 1e-300
        assert np.all(np.abs(peer.values[row] - expected) <= 1e-12 * np.maximum(scale, np.abs(expected))), name


def test_ratios_say_what_is_divided_by_what() -> None:
    found = timings(native_fp32=4, native_bf16=2, native_int8=1, ort=40, openvino_f32=30, openvino_bf16=20, ort_int8=10)
    rows = timing_rows("case", found, dict.fromkeys(found, ("", 0.0)))
    ratios = {(row["subject"], row["of"], row["against"]): row["value"] for row in rows if row["unit"] == "ratio"
              and row["metric"] == "p50"}  # fmt: skip
    assert ratios == pytest.approx({
        ("ratio", "native_int8", "openvino_bf16"): 20, ("ratio", "native_bf16", "openvino_bf16"): 10,
        ("ratio", "native_fp32", "openvino_bf16"): 5, ("ratio", "native_fp32", "openvino_f32"): 7.5,
        ("ratio", "native_int8", "ort_int8"): 10, ("ratio", "native_bf16", "ort_int8"): 5,
        ("ratio", "native_fp32", "ort_int8"): 2.5, ("ratio_int8", "native_int8", "ort_int8"): 10,
    })  # fmt: skip
    assert [row["value"] for row in rows if row["subject"] == "ort" and row["metric"] == "max"] == [400]
    assert not timing_rows("case", {}, {})


def test_wrong_and_broken_set_ups_are_noted_not_timed() -> None:
    notes: list[str] = []

    def broken() -> Any:
        raise RuntimeError("no such kernel\nand a stack")

    setups = {"broken": broken, "wrong": lambda: 1.0, "not a number": lambda: math.nan, "right": lambda: 0.1}
    chosen = choose("case", "peer", setups, lambda runner: float(runner), lambda runner: None, 0.5, notes, 5)
    assert chosen is not None
    assert chosen.setup == "right"
    assert [note.split(":")[1] for note in notes] == [
        " peer (broken) doesn't run", " peer (wrong) answers wrongly", " peer (not a number) answers wrongly",
    ]  # fmt: skip
    assert choose("case", "peer", {"broken": broken}, lambda runner: 0.0, lambda runner: None, 0.5, notes, 5) is None
    assert notes[-1].startswith("case: no row of peer")


def test_fast_subjects_get_their_calls_and_blocks_take_turns() -> None:
    assert Effort(calls=20_000, seconds=0.001, repeats=5).calls_of(2.0, 2.0) * 5 >= 20_000
    assert Effort(calls=20_000, seconds=1.0, repeats=5).calls_of(10_000.0, 10_000.0) == 200
    order: list[str] = []

    def block(name: str) -> Any:
        return lambda calls: order.append(name) or {"evaluate": np.full(calls, 10, np.int64)}

    found = interleaved({name: block(name) for name in "abc"}, Effort(calls=4, repeats=3), warm_up=1)
    assert "".join(order[6:]) == "abc" + "bca" + "cab"
    assert found["a"].calls("evaluate") == 12


def test_the_page_keeps_what_stands_around_its_tables(tmp_path: Path) -> None:
    page = tmp_path / "engines.md"
    page.write_text(f"before\n{engines_page.BEGIN}\nold\n{engines_page.END}\nafter\n")
    found = timings(native_int8=1, ort=40, null=0.5)
    engines_page.write_tables(timing_rows("lstm_small_step", found, dict.fromkeys(found, ("as is", 0.0))), page)
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    assert "| native_int8 | ort |" in text
    assert "| lstm_small_step | times the best peer | >= 8 | 40 | yes |" in text
    assert "| lstm_small_step | p99 over p50 | <= 3 | 1.09 | yes |" in text
    engines_page.write_tables(
        timing_rows("lstm_small_step", timings(native_int8=4, ort=12), dict.fromkeys(found, ("", 0.0))), page
    )
    assert "| lstm_small_step | times the best peer | >= 8 | 3 | **no** |" in page.read_text()
    page.write_text("no markers")
    with pytest.raises(ValueError, match="bench-engines: begin"):
        engines_page.write_tables([], page)


def test_the_tail_without_what_the_machine_adds() -> None:
    found = Timings()
    calls, idle = np.full(1000, 2000, np.int64), np.full(1000, 2100, np.int64)
    calls[:20], idle[:20] = 9000, 5100
    found.add({"evaluate": calls, "native": calls, "idle": idle})
    rows = {
        row["metric"]: row["value"] for row in timing_rows("case", {"native_int8": found}, {"native_int8": ("", 0.0)})
    }
    assert rows["p99"] == 9.0
    assert rows["idle_p99"] == pytest.approx(5.1)
    assert rows["p99_excess"] == pytest.approx(9.0 - 3.0)


def test_native_calls_and_idle_waits_are_as_many_as_asked_for() -> None:
    class Core:
        def time_evaluate(self, rows: Any, advance: bool) -> Any:
            assert advance
            return np.concatenate([[9999], np.full(len(rows) - 1, 50)])  # the first call of a chunk is a slow one

    found = native_block(np.zeros((7, 2), np.float32), Core(), 450)
    assert len(found["native"]) == len(found["idle"]) == 450
    assert found["native"].max() == 50


def test_absent_peers_are_named_and_a_whole_run_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert openvino_setups(b"", []) == {}
    assert absent_peers("case")[0].startswith("case: no rows of openvino: it isn't installed")
    with pytest.raises(EngineError, match="make bench-engines"):
        engines.main(["--cases", "overhead"])


def test_a_failing_case_loses_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"{engines_page.BEGIN}\n{engines_page.END}\n")

    def answered(command: Sequence[str], **_: Any) -> subprocess.CompletedProcess[str]:
        case = command[-1]
        value = math.inf if case == "transformer_step" else 1.0
        row = {"case": case, "subject": "null", "metric": "p50", "unit": "us", "value": value}
        return subprocess.CompletedProcess(command, 1 if case == "chain_5000" else 0, json.dumps([[row], ["a note"]]))

    monkeypatch.setattr(subprocess, "run", answered)
    cases = ["chain_5000", "overhead", "transformer_step", "bandwidth"]
    with pytest.raises(StrikeforgeError, match="2 of 4 cases failed: chain_5000, transformer_step"):
        engines.main(["--quick", "--cases", *cases, "--results", str(tmp_path), "--page", str(page)])
    rows = [json.loads(line)["case"] for line in (tmp_path / "engines.jsonl").read_text().splitlines()]
    assert rows == ["overhead", "bandwidth"]
    assert "chain_5000: failed" in (tmp_path / "engines.md").read_text()


def test_targets_take_the_peers_they_name() -> None:
    found = timings(native_fp32=10, native_int8=2, ort=60, openvino_bf16=40, ort_int8=12)
    rows = timing_rows("lstm_production_step", found, dict.fromkeys(found, ("", 0.0)))
    judged = {one.target.what: (one.found, one.reached) for one in verdicts(rows)}
    assert judged["times the best fp32 or bf16 peer"] == (pytest.approx(20), True)
    assert judged["times the best int8 peer"] == (pytest.approx(6), True)
    rows = timing_rows("chain_5000", found, dict.fromkeys(found, ("", 0.0)))
    judged = {one.target.what: (one.found, one.reached) for one in verdicts(rows)}
    assert judged["in fp32: times the best fp32 peer"] == (pytest.approx(6), True)
    assert judged["in bf16 or int8: times the best peer"] == (pytest.approx(6), False)
    assert {target.case for target in TARGETS} == {*engines.STEPS, engines.CHAIN}
    assert verdicts([]) == []


@pytest.mark.slow
def test_a_quick_run_writes_every_row(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"{engines_page.BEGIN}\n{engines_page.END}\n")
    cases = ["stac_lstm_a_window", "chain_5000", "overhead", "bandwidth"]
    quick = ["--quick", "--calls", "3", "--seconds", "0.001", "--repeats", "1"]
    assert engines.main(["--cases", *cases, *quick, "--results", str(tmp_path), "--page", str(page)]) == 0
    rows = [json.loads(line) for line in (tmp_path / "engines.jsonl").read_text().splitlines()]
    there = {(row["case"], row["subject"], row["metric"]) for row in rows}
    ours = ("native_fp32", "native_bf16", "native_int8") if native.why_unavailable() is None else ()
    peers = {*FLOAT_PEERS, *INT8_PEERS} - {"openvino_int8", "ort_int8"}  # int8 may be refused for its answers
    peers -= set() if OPENVINO else {"openvino_f32", "openvino_bf16"}
    for case in cases[:2]:
        for subject in (*ours, *peers, "null"):
            metrics = {"p50", "p99", "max"} | ({"error"} if subject != "null" else set())
            metrics |= {"advance_p50"} if case != "chain_5000" else set()
            metrics |= {"head_p50"} if case == "chain_5000" else set()
            metrics |= {"python_p99"} if case.startswith("stac") else set()
            metrics |= {"idle_p99", "p99_excess"} if case.startswith("stac") and subject in ours else set()
            assert {(case, subject, metric) for metric in metrics} <= there, (case, subject)
        if ours:
            assert any(row["case"] == case and row["subject"] == "ratio" for row in rows)
    assert ("lstm_mid_step", "native_int8", "lower_bound") in there
    assert all(row["bench"] == "engines" and row["machine"] and row["date"] for row in rows)
    assert page.read_text().count("### ") == len(cases)
