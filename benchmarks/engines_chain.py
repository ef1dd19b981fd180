"""A chain repriced at one tick: 5,000 contracts through the head (16 features and the context, 64-64-1, SiLU), then
Black-76 price, delta, gamma, vega and theta.

Ours is one native call on the open step (`serving.repricing`), a small LSTM's evaluate included. A peer gets the
context for nothing: its head, then Black-76 in NumPy and SciPy written for speed (what time alone determines is
prepared, every array is preallocated). `error`: of the volatility, against the same net in float64; `price_error`: of
the price over the forward, against serving.black76 on those volatilities.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.special import ndtr

from benchmarks.engines_cases import CONTEXT, CONTRACT_FEATURES, SEED, Floats, make_bundle, make_net
from benchmarks.engines_choice import TRIAL_CALLS, Subject, absent_peers, choose, openvino_setups
from benchmarks.engines_rows import timing_rows
from benchmarks.engines_runners import MakeProgram
from benchmarks.engines_timing import Block, Effort, interleaved, pin, timed_calls
from models.pricing import PricingNet, zero_states
from serving import black76, native
from serving.bundle import Bundle

CASE = "chain_5000"
CONTRACTS = 5000
SIZES = {"step_features": 32, "hidden": 64, "layers": 1, "window": 50}  # lstm_small_step's encoder
PRECISIONS = ("fp32", "bf16", "int8")
LARGEST_ERROR = 0.02  # of a volatility, two vol points: what differs by more answers something else
ROOT_TWO_PI = float(np.sqrt(2.0 * np.pi))

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Chain:
    """Contracts of a listed-like chain, and what the float64 net answers under `context`."""

    contracts: Floats
    forward: Array
    strike: Array
    tau_years: Array
    discount: Array
    right: Array
    step: Floats
    context: Floats
    volatility: Array
    price: Array


def build_chain(net: PricingNet, count: int) -> Chain:
    """Ten expiries, strikes within 2.5 deviations, volatilities around 20 %; seeded."""
    random = np.random.default_rng(SEED)
    tau = np.repeat(np.linspace(7, 360, 10) / 365.0, -(-count // 10))[:count]
    moneyness = random.uniform(-0.5, 0.5, count)
    forward = 4000.0 * np.exp(0.03 * tau)
    contracts = random.standard_normal((count, CONTRACT_FEATURES)).astype(np.float32)
    contracts[:, 0] = 0.2 - 0.1 * moneyness + 0.05 * moneyness**2  # the head's unscaled columns: prior, anchors there
    contracts[:, 2] = 1.0
    step = random.standard_normal(SIZES["step_features"]).astype(np.float32)
    exact = make_net("pricing_lstm", SIZES).double()
    with torch.no_grad():
        context = exact.step(torch.from_numpy(step).double()[None], *(state.double() for state in zero_states(exact)))[
            0
        ]
        volatility = exact.head(context.expand(count, -1), torch.from_numpy(contracts).double()).numpy()
    strike, discount = forward * np.exp(moneyness * np.sqrt(tau)), np.exp(-0.03 * tau)
    right = np.where(random.random(count) < 0.5, 1.0, -1.0)
    price = black76.value(forward, strike, tau, volatility, discount, right).price
    return Chain(contracts, forward, strike, tau, discount, right, step, context[0].float().numpy(), volatility, price)


class NumpyBlack76:
    """Price and Greeks into `values` [5, N], as a careful NumPy programmer writes it."""

    def __init__(self, chain: Chain) -> None:
        self._chain = chain
        self._root = np.sqrt(chain.tau_years)
        self._rate = -np.log(chain.discount) / chain.tau_years
        self._half_over_tau = 0.5 / chain.tau_years
        self._scratch = np.zeros((6, len(chain.strike)))
        self.values = np.zeros((5, len(chain.strike)))

    def run(self, volatility: Floats) -> None:
        chain, (sigma, deviation, d1, d2, first, second) = self._chain, self._scratch
        price, delta, gamma, vega, theta = self.values
        sigma[:] = volatility
        np.multiply(sigma, self._root, out=deviation)
        np.divide(chain.forward, chain.strike, out=d1)
        np.log(d1, out=d1)
        np.divide(d1, deviation, out=d1)
        np.multiply(deviation, 0.5, out=d2)
        np.add(d1, d2, out=d1)
        np.subtract(d1, deviation, out=d2)
        np.multiply(d1, chain.right, out=first)
        ndtr(first, out=first)
        np.multiply(d2, chain.right, out=second)
        ndtr(second, out=second)
        np.multiply(chain.right, chain.discount, out=d2)
        np.multiply(d2, first, out=delta)
        np.multiply(d2, second, out=second)
        np.multiply(second, chain.strike, out=second)
        np.multiply(delta, chain.forward, out=price)
        np.subtract(price, second, out=price)
        np.multiply(d1, d1, out=d1)
        np.multiply(d1, -0.5, out=d1)
        np.exp(d1, out=d1)
        np.multiply(d1, chain.discount, out=d1)
        np.divide(d1, ROOT_TWO_PI, out=d1)
        np.multiply(chain.forward, deviation, out=gamma)
        np.divide(d1, gamma, out=gamma)
        np.multiply(d1, chain.forward, out=vega)
        np.multiply(vega, self._root, out=vega)
        np.multiply(vega, sigma, out=theta)
        np.multiply(theta, self._half_over_tau, out=theta)
        np.multiply(self._rate, price, out=d1)
        np.subtract(d1, theta, out=theta)


class PeerChain:
    """A library's head, then NumPy's Black-76."""

    def __init__(self, bundle: Bundle, chain: Chain, make: MakeProgram) -> None:
        self._context = np.zeros((1, CONTEXT), np.float32)
        self._given = chain.context
        file = bundle.manifest.members[0].files["head"]
        self._program = make(file, {"context": self._context, "contracts": chain.contracts})
        self._black76 = NumpyBlack76(chain)
        self.values = self._black76.values

    def head(self) -> None:
        """The volatilities alone."""
        self._context[0] = self._given
        self._program.run()

    def reprice(self) -> Floats:
        """Everything once more; the volatilities."""
        self.head()
        volatility = self._program.read("iv")
        self._black76.run(volatility)
        return volatility


class NativeChain:
    """serving.repricing on the native engine."""

    def __init__(self, bundle: Bundle, chain: Chain, precision: str) -> None:
        repricing = importlib.import_module("serving.repricing")
        engine = importlib.import_module("serving.engines.native").open_engine(bundle, precision=precision)
        self.setup = engine.info().runtime
        prepared = repricing.Chain.prepare(
            chain.contracts, chain.forward, chain.strike, chain.tau_years, chain.discount, chain.right
        )
        self._repricer, self._step, self._chain, self._engine = (
            repricing.Repricer(engine, prepared),
            chain.step,
            chain,
            engine,
        )
        self._volatility = np.zeros(len(chain.strike), np.float32)
        self._out = repricing.Repriced.empty(len(chain.strike))
        self.values = self._out.values

    def head(self) -> None:
        """The volatilities alone, under the context that peers get."""
        self._engine.head(self._chain.context, self._chain.contracts, self._volatility)

    def reprice(self) -> Floats:
        """Everything once more; the volatilities."""
        self._repricer.reprice(self._step, self._out)
        volatility: Floats = self._out.volatility
        return volatility


class NullChain:
    """No work: the answers' memory is cleared."""

    def __init__(self, count: int) -> None:
        self._volatility, self.values = np.zeros(count, np.float32), np.zeros((5, count))

    def head(self) -> None:
        self._volatility.fill(0.0)

    def reprice(self) -> Floats:
        self.head()
        self.values.fill(0.0)
        return self._volatility


def volatility_error(chain: Chain, runner: Any) -> float:
    """Largest absolute error of a volatility; infinite where one isn't a number."""
    found = float(np.abs(runner.reprice() - chain.volatility).max())
    return found if np.isfinite(found) else np.inf


def price_error(chain: Chain, runner: Any) -> float:
    """Largest error of a price, as a share of the forward."""
    runner.reprice()
    return float((np.abs(runner.values[0] - chain.price) / chain.forward).max())


def peer_setups(bundle: Bundle, net: PricingNet, chain: Chain, compiled: bool) -> dict[str, dict[str, MakeProgram]]:
    """All set-ups of all peers' heads."""
    from benchmarks import engines_ort, engines_torch

    raw = bundle.read(bundle.manifest.members[0].files["head"].name)
    seen = [{"context": chain.context[np.newaxis], "contracts": chain.contracts}]
    (part,) = (part for part in net.parts() if part.role == "head")
    return {
        **engines_ort.setups(raw), **openvino_setups(raw, seen), **engines_torch.setups(part.module, compiled)
    }  # fmt: skip


def _reprice(runner: Any) -> None:
    runner.reprice()


def block_of(subject: Subject) -> Block:
    """`count` times the whole chain, then `count` times the head alone."""
    reprice: Callable[[], Floats] = subject.runner.reprice
    head: Callable[[], None] = subject.runner.head
    return lambda count: {
        "evaluate": timed_calls(lambda _: reprice(), count), "head": timed_calls(lambda _: head(), count)
    }  # fmt: skip


def run_chain(
    folder: Path, effort: Effort, *, compiled: bool = True, count: int = CONTRACTS
) -> tuple[list[dict[str, Any]], list[str]]:
    """Rows and notes of the case."""
    core = pin()
    bundle, net = make_bundle(folder, "pricing_lstm", SIZES, "stateful")
    chain = build_chain(net, count)
    varies = float((chain.volatility - chain.contracts[:, 0]).std())
    notes = [f"{CASE}: on core {core}; corrections to the prior vary by {varies:.3g} (standard deviation)"]
    subjects: dict[str, Subject] = {}
    reason = native.why_unavailable()
    if reason is None:
        for precision in PRECISIONS:
            runner = NativeChain(bundle, chain, precision)
            subjects[f"native_{precision}"] = Subject(runner, runner.setup, volatility_error(chain, runner))
    else:
        notes.append(f"{CASE}: no native rows: {reason}")
    notes += absent_peers(CASE)
    for name, setups in peer_setups(bundle, net, chain, compiled).items():
        makes = {setup: functools.partial(PeerChain, bundle, chain, make) for setup, make in setups.items()}
        chosen = choose(CASE, name, makes, functools.partial(volatility_error, chain), _reprice, LARGEST_ERROR,
                        notes, min(TRIAL_CALLS, effort.calls))  # fmt: skip
        if chosen is not None:
            subjects[name] = chosen
    subjects["null"] = Subject(NullChain(count), "no work", 0.0)
    timings = interleaved({name: block_of(subject) for name, subject in subjects.items()}, effort, warm_up=50)
    about = {name: (one.setup, one.error) for name, one in subjects.items()}
    rows = timing_rows(CASE, timings, about, spread=varies, error_of="volatility")
    rows += [
        {"case": CASE, "subject": name, "metric": "price_error", "unit": "of the forward",
         "value": price_error(chain, one.runner), "setup": one.setup}
        for name, one in subjects.items() if name != "null"
    ]  # fmt: skip
    return rows, notes
