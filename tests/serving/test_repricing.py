"""Chains repriced: by any engine in turn, by the native one in one call, both the same numbers.

The in-turn way is checked against serving.black76 on what the engine's own `head` answers; the native way against the
in-turn way on the same net. A native engine of a transformer stands for all: the encoder isn't what is tested here.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import models
from serving import black76, native
from serving.engine import Engine, EngineInfo, Floats, check_array, open_engine
from serving.errors import EngineError
from serving.repricing import VALUES, Chain, FusesRepricing, Repriced, Repricer
from tests.tiny_bundle import COLUMNS, tiny_bundle
from tests.tiny_family import contracts_of, family_bundle

reason = native.why_unavailable()
needs_core = pytest.mark.skipif(reason is not None, reason=str(reason))
ISAS = native.core().isas() if reason is None else ["portable"]
every_isa = pytest.mark.parametrize("isa", ISAS)
every_precision = pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])

SPOT = 3000.0
SIZES: dict[str, Any] = {
    "step_features": 5, "contract_features": 13, "window": 6, "width": 16, "heads": 2, "layers": 1, "band": 4,
    "context": 12, "head_width": 40, "dropout": 0.0,
}  # fmt: skip
BATCH = 960  # of serving/native/head/repricing.cpp
PARITY = 4e-14  # times the forward: numbers.md allows each Black-76 1e-14 F, and price and Greeks are a few of them
# The same where Black-76 is in single precision (single_avx512.cpp): 16 e F of a price, e = 2^-24, and of a Greek at
# most four times that here: (32 + 20 d^2) phi(d) e is below 16 e, and vega v / 2 tau of this chain below 3 F phi(d).
SINGLE = 64 * 2.0**-24


def a_chain(count: int, features: int = 13, seed: int = 0) -> Chain:
    """Calls and puts at strikes around the money; columns 0 and 2 as the head reads them."""
    rng = np.random.default_rng(seed)
    contracts = rng.normal(size=(count, features)).astype(np.float32)
    contracts[:, 0] = rng.uniform(0.08, 0.6, count)
    contracts[:, 2] = 1.0
    tau = rng.uniform(0.02, 1.0, count)
    return Chain.prepare(
        contracts, SPOT * np.exp(0.01 * tau), SPOT * np.exp(rng.normal(0, 0.15, count)), tau, np.exp(-0.02 * tau),
        np.where(rng.random(count) < 0.5, 1.0, -1.0),
    )  # fmt: skip


class Core:
    """The native core behind the engine's interface, of one or several nets with random weights."""

    def __init__(self, precision: str, isa: str, members: int = 1, fused: bool = True) -> None:
        sizes = {name: float(value) for name, value in SIZES.items()}
        self.engine = native.core().Engine(
            "pricing_transformer", sizes, [(f"member {seed}", tensors(seed)) for seed in range(members)], precision,
            "window", isa,
        )  # fmt: skip
        self.isa = isa
        self._info = EngineInfo(
            "native", "test", "pricing_transformer", "0" * 64, "window", members, SIZES["window"],
            SIZES["step_features"], SIZES["contract_features"], members * SIZES["context"],
        )  # fmt: skip
        if fused:
            self.fuse = lambda *arrays: native.core().Repricing(self.engine, isa, *arrays)

    def info(self) -> EngineInfo:
        return self._info

    def reset(self) -> None:
        self.engine.reset()

    def evaluate(self, x: Floats, out: Floats) -> None:
        self.engine.evaluate(x, out)

    def advance(self, x: Floats) -> None:
        self.engine.advance(x)

    def head(self, context: Floats, contracts: Floats, out: Floats) -> None:
        self.engine.head(context, contracts, out)


def tensors(seed: int) -> dict[str, NDArray[np.float32]]:
    torch.manual_seed(seed)
    net = models.build("pricing_transformer", SIZES).eval()
    for name, tensor in net.state_dict().items():
        if name != "head.trust":
            torch.nn.init.normal_(tensor, std=0.3)
    return {name: tensor.numpy() for name, tensor in net.state_dict().items()}


def a_step(seed: int = 3) -> Floats:
    return np.random.default_rng(seed).normal(size=SIZES["step_features"]).astype(np.float32)


def repriced(engine: Engine, chain: Chain, x: Floats) -> Repriced:
    out = Repriced.empty(len(chain))
    Repricer(engine, chain).reprice(x, out)
    return out


def assert_worth(chain: Chain, out: Repriced, room: float = PARITY) -> None:
    """Price and Greeks are Black-76's at the volatilities found, within `room` times the forward."""
    worth = black76.value(
        chain.forward, chain.strike, chain.tau_years, out.volatility.astype(np.float64), chain.discount, chain.right
    )
    for name in VALUES:
        found, wanted = getattr(out, name), getattr(worth, name)
        scale = np.maximum(chain.forward, np.abs(wanted))
        if name == "theta":  # the sum of a decay and an interest term, each up to vega v / 2 tau
            scale = scale + worth.vega * out.volatility / chain.tau_years
        assert np.all(np.abs(found - wanted) <= room * scale), name


def test_any_engine_reprices_in_turn(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="the engine 'ort' isn't installed")
    engine = open_engine(tiny_bundle(tmp_path / "bundle"))
    chain = a_chain(40, COLUMNS)
    x = np.ones(engine.info().step_features, np.float32)
    out = repriced(engine, chain, x)
    context, iv = np.zeros(engine.info().context_size, np.float32), np.zeros(40, np.float32)
    engine.evaluate(x, context)
    engine.head(context, chain.contracts, iv)
    assert np.array_equal(out.volatility, iv)
    assert np.all(out.price > 0)
    assert_worth(chain, out)


@needs_core
@pytest.mark.parametrize("semantics", ["window", "stateful"])
def test_the_native_engine_of_an_exported_bundle_reprices_as_onnx_runtime_does(tmp_path: Path, semantics: str) -> None:
    """In one call to the bit what native gives in turn; ONNX Runtime as near as both are to the golden net."""
    pytest.importorskip("onnxruntime", reason="the engine 'ort' isn't installed")
    bundle = family_bundle(tmp_path / "bundle", "pricing_lstm", semantics=semantics, members=2)
    engines = open_engine(bundle, "native"), open_engine(bundle, "ort")
    assert isinstance(engines[0], FusesRepricing)
    assert not isinstance(engines[1], FusesRepricing)
    count = BATCH + 7
    chain = dataclasses.replace(a_chain(count), contracts=contracts_of(count))
    steps = np.random.default_rng(4).normal(size=(8, engines[0].info().step_features)).astype(np.float32)
    for x in steps[:-1]:
        for engine in engines:
            engine.advance(x)
    fused, other = (repriced(engine, chain, steps[-1]) for engine in engines)
    context, iv = np.zeros(engines[0].info().context_size, np.float32), np.zeros(count, np.float32)
    engines[0].evaluate(steps[-1], context)
    engines[0].head(context, chain.contracts, iv)
    assert np.array_equal(fused.volatility, iv)
    tolerance = 2 * bundle.manifest.tolerances["iv"]
    assert np.abs(fused.volatility - other.volatility).max() <= tolerance
    vega = np.maximum(fused.vega, other.vega)  # the slope of the price; its own change over the tolerance is within 1 %
    assert np.all(np.abs(fused.price - other.price) <= 1.01 * vega * tolerance + PARITY * chain.forward)
    for out in (fused, other):
        assert_worth(chain, out)


@needs_core
def test_an_unknown_instruction_set_is_refused() -> None:
    chain = a_chain(3)
    arrays = (chain.contracts, chain.forward, chain.strike, chain.tau_years, chain.discount, chain.right)
    with pytest.raises(EngineError, match="no instruction set 'mmx'; there are portable"):
        native.core().Repricing(Core("fp32", "portable").engine, "mmx", *arrays)


@needs_core
@every_isa
@every_precision
@pytest.mark.parametrize("count", [0, 1, 50, BATCH, BATCH + 1, 2 * BATCH + 7])
def test_one_call_equals_in_turn(count: int, precision: str, isa: str) -> None:
    chain, x = a_chain(count), a_step()
    fused = repriced(Core(precision, isa), chain, x)
    in_turn = repriced(Core(precision, isa, fused=False), chain, x)
    assert np.array_equal(fused.volatility, in_turn.volatility)
    assert_worth(chain, fused, PARITY if precision == "fp32" or isa in ("portable", "avx2") else SINGLE)
    assert_worth(chain, in_turn)


@needs_core
@every_isa
def test_members_volatilities_are_averaged_before_pricing(isa: str) -> None:
    chain, x = a_chain(100), a_step()
    both = repriced(Core("fp32", isa, members=2), chain, x)
    engine = Core("fp32", isa, members=2)
    context, mean = np.zeros(2 * SIZES["context"], np.float32), np.zeros(100, np.float32)
    engine.evaluate(x, context)
    engine.head(context, chain.contracts, mean)
    alone = repriced(Core("fp32", isa), chain, x)
    assert np.array_equal(both.volatility, mean)
    assert not np.array_equal(both.volatility, alone.volatility)
    assert_worth(chain, both)


@needs_core
@every_isa
def test_calls_and_puts_keep_parity(isa: str) -> None:
    chain, x = a_chain(200), a_step()
    calls, puts = (
        Chain.prepare(chain.contracts, chain.forward, chain.strike, chain.tau_years, chain.discount, right)
        for right in (1.0, -1.0)
    )
    engine = Core("fp32", isa)
    difference = repriced(engine, calls, x).price - repriced(engine, puts, x).price
    parity = chain.discount * (chain.forward - chain.strike)
    assert np.all(np.abs(difference - parity) <= PARITY * chain.forward)


@needs_core
@every_isa
def test_what_is_written_into_the_chain_is_priced(isa: str) -> None:
    """Moving the forwards in place gives delta and gamma as differences."""
    chain, x = a_chain(100), a_step()
    repricer = Repricer(Core("fp32", isa), chain)
    here, up, down = (Repriced.empty(100) for _ in range(3))
    repricer.reprice(x, here)
    step = 1e-4 * chain.forward
    chain.forward[:] += step
    repricer.reprice(x, up)
    chain.forward[:] -= 2 * step
    repricer.reprice(x, down)
    # central differences: third and fourth derivatives are below 1 / (F s^2), 1 / (F^2 s^3), s = v sqrt(tau)
    s = here.volatility * np.sqrt(chain.tau_years)
    noise = 1e-13 * chain.forward
    assert np.all(np.abs((up.price - down.price) / (2 * step) - here.delta) <= 1e-8 / s**2 + noise / step)
    gamma = (up.price - 2 * here.price + down.price) / step**2
    assert np.all(np.abs(gamma - here.gamma) <= 1e-8 / (chain.forward * s**3) + 4 * noise / step**2)
    chain.contracts[:, 0] *= 2.0
    repricer.reprice(x, up)
    assert np.all(up.volatility > 1.2 * here.volatility)


@needs_core
@every_isa
@every_precision
@pytest.mark.parametrize("fused", [True, False])
def test_a_bad_contract_is_alone(fused: bool, precision: str, isa: str) -> None:
    """A volatility of 0 isn't one, in any precision: its intrinsic value would pass for a price."""
    chain, x = a_chain(100), a_step()
    engine = Core(precision, isa, fused=fused)
    before = repriced(engine, chain, x)
    chain.contracts[10, 5] = np.nan
    chain.contracts[11, 0] = -0.2
    chain.contracts[12, 0] = 0.0
    chain.strike[13] = -1.0
    after = repriced(engine, chain, x)
    bad = [10, 11, 12, 13]
    assert np.all(np.isnan(after.values[:, bad]))
    assert np.array_equal(np.delete(after.values, bad, axis=1), np.delete(before.values, bad, axis=1))


@needs_core
@every_isa
def test_nothing_is_committed(isa: str) -> None:
    chain, engine = a_chain(30), Core("fp32", isa)
    first = repriced(engine, chain, a_step(1))
    repriced(engine, chain, a_step(2))
    again = repriced(engine, chain, a_step(1))
    assert np.array_equal(first.values, again.values)
    engine.advance(a_step(2))
    assert not np.array_equal(first.values, repriced(engine, chain, a_step(1)).values)


@needs_core
@every_isa
@every_precision
def test_nothing_is_allocated(precision: str, isa: str) -> None:
    chain, x, out = a_chain(2000), a_step(), Repriced.empty(2000)
    repricer = Repricer(Core(precision, isa), chain)
    repricer.reprice(x, out)
    before = native.core().allocation_count()
    for _ in range(5):
        repricer.reprice(x, out)
    assert native.core().allocation_count() == before


@needs_core
def test_arrays_and_engine_outlive_their_names() -> None:
    x = a_step()
    wanted = repriced(Core("fp32", "portable"), a_chain(64), x)
    repricer = Repricer(Core("fp32", "portable"), a_chain(64))
    out = Repriced.empty(64)
    repricer.reprice(x, out)
    assert np.array_equal(out.values, wanted.values)


GOOD = {"contracts": np.zeros((4, 3), np.float32)} | {
    name: np.ones(4) for name in ("forward", "strike", "tau_years", "discount", "right")
}


@pytest.mark.parametrize("name", list(GOOD))
@pytest.mark.parametrize("spoil", ["shape", "dtype", "strides", "kind"])
def test_a_chain_refuses_arrays_by_name(name: str, spoil: str) -> None:
    array = GOOD[name]
    wrong: Any = {
        "shape": array[:3] if name != "contracts" else array[0],
        "dtype": array.astype(np.float16),
        "strides": np.repeat(array, 2, axis=0)[::2],
        "kind": array.tolist(),
    }[spoil]
    with pytest.raises(EngineError, match=f"chain: '{name}'"):
        Chain(**(GOOD | {name: wrong}))


def test_prepare_takes_one_number_for_all_and_refuses_others_by_name() -> None:
    chain = Chain.prepare(np.zeros((4, 3)), 100.0, [90, 95, 100, 105], 0.5, 0.99, 1)
    assert np.array_equal(chain.forward, np.full(4, 100.0))
    assert len(chain) == 4
    chain.forward[0] = 101.0  # its own memory
    with pytest.raises(EngineError, match=r"'strike'.*\(4,\).*\(3,\)"):
        Chain.prepare(np.zeros((4, 3)), 100.0, [90, 95, 100], 0.5, 0.99, 1)


def test_a_repricer_refuses_what_does_not_fit(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="the engine 'ort' isn't installed")
    engine = open_engine(tiny_bundle(tmp_path / "bundle"))
    with pytest.raises(EngineError, match=f"'contracts': expected {COLUMNS} features.*found 13"):
        Repricer(engine, a_chain(5))
    repricer = Repricer(engine, a_chain(5, COLUMNS))
    x = np.ones(engine.info().step_features, np.float32)
    with pytest.raises(EngineError, match="'x'"):
        repricer.reprice(x[:-1], Repriced.empty(5))
    with pytest.raises(EngineError, match="out: expected 5 contracts, found 6"):
        repricer.reprice(x, Repriced.empty(6))


@needs_core
def test_a_step_that_does_not_fit_is_refused_by_name_in_one_call_too() -> None:
    """Also where only its layout is wrong, which NumPy's own checks let through."""
    repricer = Repricer(Core("fp32", ""), a_chain(5))
    spread = np.zeros(2 * SIZES["step_features"], np.float32)[::2]
    for x in (spread, np.broadcast_to(np.float32(0), spread.shape), spread.astype(">f4")):
        with pytest.raises(EngineError, match=r"tensor 'x': expected"):
            repricer.reprice(x, Repriced.empty(5))


def test_repriced_refuses_memory_that_does_not_fit() -> None:
    with pytest.raises(EngineError, match="'values'"):
        Repriced(np.zeros(4, np.float32), np.zeros((5, 3)))
    with pytest.raises(EngineError, match=r"'values'.*C-contiguous"):
        Repriced(np.zeros(4, np.float32), np.zeros((4, 5)).T)
    out = Repriced.empty(4)
    out.values[2] = 5.0
    assert np.array_equal(out.gamma, np.full(4, 5.0))
    check_array("volatility", out.volatility, (4,), written=True)
