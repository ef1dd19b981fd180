"""The native transformer encoder: the torch net's context, in both semantics, every precision and instruction set."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from models import build
from models.pricing import zero_states
from models.pricing_transformer import PricingTransformer
from serving import native
from serving.errors import EngineError
from tests.serving.native.error_bound import error_bound

reason = native.why_unavailable()
pytestmark = pytest.mark.skipif(reason is not None, reason=str(reason))

Floats = NDArray[np.float32]
ISAS = native.core().isas() if reason is None else ["portable"]
PRECISIONS = ("fp32", "bf16", "int8")
every_isa = pytest.mark.parametrize("isa", ISAS)
every_precision = pytest.mark.parametrize("precision", PRECISIONS)
both_semantics = pytest.mark.parametrize("semantics", ["window", "stateful"])


@dataclass(frozen=True)
class Case:
    """Sizes of a net; weights follow from the seed."""

    step_features: int = 5
    window: int = 12
    width: int = 16
    heads: int = 4
    layers: int = 2
    band: int = 5
    context: int = 3
    seed: int = 0

    @property
    def sizes(self) -> dict[str, float]:
        return {name: float(getattr(self, name)) for name in
                ("step_features", "window", "width", "heads", "layers", "band", "context")}  # fmt: skip


CASES = {
    "carried_window": Case(),  # the window is longer than what the last row reaches
    "window_of_exactly_the_reach": Case(window=9),
    "window_within_the_reach": Case(window=8),
    "window_within_the_band": Case(window=3, band=6),
    "one_row": Case(window=1, band=4, layers=1),
    "no_past": Case(window=4, band=1, heads=2),
    "odd_widths": Case(step_features=7, width=21, heads=3, band=4, layers=3, window=7, context=5),
    "full_ring": Case(band=16, window=20, layers=1, width=8, heads=1),
    "ring_of_two_vectors": Case(band=17, window=18, width=36, heads=2, layers=1),
    "ring_of_many_vectors": Case(band=70, window=75, width=12, heads=3, layers=1),
    "wide_heads": Case(width=40, heads=2, band=3, window=6),
}
every_case = pytest.mark.parametrize("name", CASES)


@cache
def net(case: Case) -> PricingTransformer:
    """float64, evaluation mode; every weight is random, and is a float32."""
    torch.manual_seed(case.seed)
    sizes = {name: int(size) for name, size in case.sizes.items()}
    made = build("pricing_transformer", {**sizes, "contract_features": 4, "head_width": 8}).eval()
    assert isinstance(made, PricingTransformer)
    for name, parameter in made.named_parameters():
        torch.nn.init.normal_(parameter, std=0.25, mean=1.0 if "norm.weight" in name else 0.0)
    return made.double()


def tensors(case: Case) -> dict[str, Floats]:
    """The encoder's share of the state dict; the head is another's."""
    state = net(case).state_dict()
    return {name: np.ascontiguousarray(value.numpy(), np.float32) for name, value in state.items()
            if not name.startswith("head.")}  # fmt: skip


def encoder(case: Case, precision: str = "fp32", semantics: str = "window", isa: str = "", **changed: Any) -> Any:
    weights = tensors(case) | changed
    weights = {name: value for name, value in weights.items() if value is not None}
    return native.core().Encoder("pricing_transformer", case.sizes, "weights.safetensors", weights, precision,
                                 semantics, isa or ISAS[-1])  # fmt: skip


def steps(case: Case, count: int, seed: int = 1) -> Floats:
    return np.random.default_rng(seed).normal(size=(count, case.step_features)).astype(np.float32)


@dataclass
class Market:
    """An encoder and the rows that were committed to it."""

    case: Case
    engine: Any
    rows: deque[Floats] = field(default_factory=deque)

    def reset(self) -> None:
        self.engine.reset()
        self.rows.clear()

    def advance(self, x: Floats) -> None:
        self.engine.advance(x)
        self.rows.append(x)

    def context(self, x: Floats) -> Floats:
        out = np.full(self.case.context, np.nan, np.float32)
        self.engine.evaluate(x, out)
        return out


def window_of(case: Case, rows: Floats, semantics: str) -> torch.Tensor:
    """What the last of `rows` is encoded from: zeros before the first, or all there was."""
    if semantics == "stateful":
        reach = case.layers * (case.band - 1) + 1
        return torch.from_numpy(rows[-reach:].astype(np.float64))
    filled = np.concatenate([np.zeros((case.window, case.step_features)), rows.astype(np.float64)])
    return torch.from_numpy(filled[-case.window :])


@cache
def expected(case: Case, semantics: str, precision: str, count: int, every: int) -> list[tuple[int, Any, Any]]:
    """Place, context and its bound, of each `every`-th of `count` steps."""
    made, rows = net(case), steps(case, count)
    matrices = {name: precision for name, _ in made.named_modules() if name.startswith("layers.")}
    out = []
    for place in range(0, count, every):
        window = window_of(case, rows[: place + 1], semantics).unsqueeze(0)
        bound = error_bound(made, lambda window=window: made.encode(window), matrices)  # type: ignore[misc]
        out.append((place, made.encode(window).detach().numpy()[0], bound))
    return out


# --- parity with the torch net


@every_isa
@every_precision
@both_semantics
@every_case
def test_contexts_are_the_torch_nets_within_what_rounding_allows(
    name: str, semantics: str, precision: str, isa: str
) -> None:
    case, count = CASES[name], 60
    market = Market(case, encoder(case, precision, semantics, isa))
    rows = steps(case, count)
    wanted = {place: (context, bound) for place, context, bound in expected(case, semantics, precision, count, 7)}
    for place, x in enumerate(rows):
        if place in wanted:
            context, bound = wanted[place]
            assert np.all(np.abs(market.context(x) - context) <= bound), f"step {place}"
        market.advance(x)


@every_precision
def test_the_bounds_are_no_blank_cheque(precision: str) -> None:
    """fp32: the same steps in another order are further away than rounding may take them; else: another open step."""
    case = CASES["carried_window"]
    far = 0
    sampled = expected(case, "window", precision, 60, 7)
    for place, context, bound in sampled:
        rows = steps(case, 60)[: place + 1].copy()
        if precision == "fp32" and place > 1:
            rows[[-2, -3]] = rows[[-3, -2]]
        else:
            rows[-1] = steps(case, 1, seed=place + 2)[0]
        other = net(case).encode(window_of(case, rows, "window").unsqueeze(0)).detach().numpy()[0]
        far += bool(np.any(np.abs(other - context) > bound))
    assert far > len(sampled) / 2


@every_isa
@pytest.mark.parametrize("name", ["carried_window", "full_ring", "ring_of_two_vectors", "odd_widths"])
def test_hundreds_of_steps_are_the_steps_of_the_torch_net(name: str, isa: str) -> None:
    """Stateful: `step` of the torch net, from its zero states, however often the ring goes round."""
    case, count = CASES[name], 300
    made, states = net(case), [state.double() for state in zero_states(net(case))]
    limit = np.max([bound for _, _, bound in expected(case, "stateful", "fp32", 60, 7)], axis=0)
    market = Market(case, encoder(case, "fp32", "stateful", isa))
    with torch.no_grad():
        for place, x in enumerate(steps(case, count)):
            context, *states = made.step(torch.from_numpy(x.astype(np.float64))[None], *states)
            # the bound of sampled steps, four times as wide for the steps that weren't sampled
            assert np.all(np.abs(market.context(x) - context.numpy()[0]) <= 4.0 * limit), f"step {place}"
            market.advance(x)


@settings(max_examples=40, deadline=None)
@given(
    step_features=st.integers(1, 40), window=st.integers(1, 25), heads=st.integers(1, 5), dimensions=st.integers(1, 20),
    layers=st.integers(1, 3), band=st.integers(1, 40), context=st.integers(1, 20), seed=st.integers(0, 1000),
    semantics=st.sampled_from(["window", "stateful"]), precision=st.sampled_from(PRECISIONS),
    isa=st.sampled_from(ISAS), count=st.integers(1, 45),
)  # fmt: skip
def test_any_size_goes(
    step_features: int, window: int, heads: int, dimensions: int, layers: int, band: int, context: int, seed: int,
    semantics: str, precision: str, isa: str, count: int,
) -> None:  # fmt: skip
    case = Case(step_features, window, heads * dimensions, heads, layers, band, context, seed)
    made, rows = net.__wrapped__(case), steps(case, count, seed)
    sizes = {name: precision for name, _ in made.named_modules() if name.startswith("layers.")}
    window_TF = window_of(case, rows, semantics).unsqueeze(0)
    market = Market(case, encoder(case, precision, semantics, isa))
    for x in rows[:-1]:
        market.advance(x)
    wanted = made.encode(window_TF).detach().numpy()[0]
    bound = error_bound(made, lambda: made.encode(window_TF), sizes)
    assert np.all(np.abs(market.context(rows[-1]) - wanted) <= bound)


# --- what is committed and what isn't


@every_isa
@both_semantics
@pytest.mark.parametrize("name", ["carried_window", "window_within_the_reach", "one_row"])
def test_evaluate_commits_nothing_and_reset_forgets_all(name: str, semantics: str, isa: str) -> None:
    case = CASES[name]
    quiet, busy = (Market(case, encoder(case, "fp32", semantics, isa)) for _ in range(2))
    for market in (quiet, busy):
        for x in steps(case, 20, seed=9):
            market.advance(x)
        market.reset()
    fresh = Market(case, encoder(case, "fp32", semantics, isa))
    for x, other in zip(steps(case, 40), steps(case, 40, seed=2), strict=True):
        for _ in range(3):
            busy.context(100.0 * other)
        assert np.array_equal(busy.context(x), quiet.context(x))
        assert np.array_equal(fresh.context(x), quiet.context(x))
        for market in (quiet, busy, fresh):
            market.advance(x)


@every_isa
@both_semantics
@pytest.mark.parametrize("name", ["carried_window", "window_within_the_reach", "full_ring", "no_past"])
def test_what_has_left_the_reach_leaves_no_trace(name: str, semantics: str, isa: str) -> None:
    """A row of NaN makes contexts NaN while it can be seen, and not a step longer."""
    case = CASES[name]
    market, clean = (Market(case, encoder(case, "fp32", semantics, isa)) for _ in range(2))
    reach = case.layers * (case.band - 1)
    if semantics == "window":
        reach = min(reach, case.window - 1)
    broken = np.full(case.step_features, np.nan, np.float32)
    rows = steps(case, 40)
    for x in rows[:10]:
        for one in (market, clean):
            one.advance(x)
    assert np.isnan(market.context(broken)).all()
    assert np.isfinite(market.context(rows[0])).all()
    market.advance(broken)
    clean.advance(rows[0])
    for place, x in enumerate(rows[10:]):
        assert np.isnan(market.context(x)).all() == (place < reach), f"{place + 1} steps later"
        if place >= reach:
            assert np.array_equal(market.context(x), clean.context(x)), f"{place + 1} steps later"
        for one in (market, clean):
            one.advance(x)


# --- limits


@every_isa
@every_precision
def test_a_net_that_looks_nowhere_sees_only_the_open_step(precision: str, isa: str) -> None:
    """With a bias that hides all distances but 0, every step stands for itself."""
    case = Case()
    alone = np.full((case.heads, case.band), -1e4, np.float32)
    alone[:, 0] = 0.0
    biases = {f"layers.{layer}.distance_bias": alone for layer in range(case.layers)}
    engine = encoder(case, precision, "stateful", isa, **biases)
    market, rows = Market(case, engine), steps(case, 25)
    first = [market.context(x) for x in rows]
    for x in rows:
        market.advance(x)
    for x, context in zip(rows, first, strict=True):
        assert np.allclose(market.context(x), context, rtol=0.0, atol=case.layers * 2.0**-18)  # weights of e^-1e4


@every_isa
def test_equal_steps_forget_how_many_they_are(isa: str) -> None:
    """Softmax weights add up to 1: any number of equal values mixes to that value."""
    case, x = Case(), steps(Case(), 1)[0]
    market = Market(case, encoder(case, "fp32", "stateful", isa))
    first = market.context(x)
    (_, _, bound) = expected(case, "stateful", "fp32", 60, 7)[-1]
    for _ in range(40):
        market.advance(x)
        assert np.all(np.abs(market.context(x) - first) <= 4.0 * bound)


def test_scores_too_large_for_exp_are_no_trouble() -> None:
    case = Case()
    bias = np.random.default_rng(3).choice([-3e3, 0.0, 3e3], (case.heads, case.band)).astype(np.float32)
    market = Market(case, encoder(case, **{"layers.0.distance_bias": bias}))
    for x in steps(case, 20):
        assert np.isfinite(market.context(x)).all()
        market.advance(x)


# --- refusals, and memory


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"layers.1.mix.bias": None}, ["lacks", "layers.1.mix.bias", "(16,)"]),
        ({"layers.0.distance_bias": np.zeros((4, 6), np.float32)}, ["layers.0.distance_bias", "(4, 5)", "(4, 6)"]),
        ({"layers.2.mix.bias": np.zeros(16, np.float32)}, ["layers.2.mix.bias", "no layer"]),
    ],
)
def test_wrong_tensors_are_refused_by_name(changed: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(EngineError) as refused:
        encoder(Case(), **changed)
    for word in ["weights.safetensors", *words]:
        assert word in str(refused.value)


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(EngineError, match=r"model_config.heads: expected a divisor of width 16, found 5"):
        native.core().Encoder("pricing_transformer", Case().sizes | {"heads": 5.0}, "weights.safetensors", {}, "fp32",
                              "window", "")  # fmt: skip


@every_precision
@both_semantics
def test_nothing_allocates_after_construction(semantics: str, precision: str) -> None:
    case = CASES["window_within_the_reach"]
    market = Market(case, encoder(case, precision, semantics))
    rows, out = steps(case, 50), np.zeros(case.context, np.float32)
    before = native.core().allocation_count()
    market.engine.reset()
    for x in rows:
        market.engine.evaluate(x, out)
        market.engine.advance(x)
    assert native.core().allocation_count() == before
    assert math.isfinite(float(out.sum()))
