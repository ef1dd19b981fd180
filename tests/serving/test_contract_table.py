"""The contract table: each feature equals a slow recomputation, is always finite, knows neither order nor company."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.features import (
    CONTRACT_FEATURES,
    SMALLEST_PRIOR,
    STEP_FEATURES,
    Contracts,
    ContractTable,
    Path,
    contract_table,
    market_step,
)
from serving.last_seen import (
    Anchor,
    AnchorTarget,
    LastSeen,
    LastSmile,
    find_anchors,
    forward_deviation,
    last_seen,
    shift_at,
)
from serving.laws import SMALLEST_LEVEL
from serving.surface import Quotes, build_surface
from tests.serving.test_anchor_field import slow_field
from tests.serving.test_last_seen import DAY, LISTED, TARGETS, before, now
from tests.serving.test_surface import SPOT, TS, chain, expiry_of
from tests.serving.uneven_market import SEVERAL, contracts_of, weekdays_between


def slow_laws(
    strike: float, tau: float, smile: LastSmile, spot: float, last: LastSeen, anchors: list[Anchor]
) -> dict[str, float]:
    """The three laws of one contract, formulas as in serving/laws.py, floats only."""
    deviations = sorted(a.forward_deviation for a in anchors if not math.isnan(a.forward_deviation))
    off = deviations[len(deviations) // 2] if deviations else 0.0

    def volatility(one: LastSmile, x: float) -> float:
        return float(one.smooth_at_moneyness(np.array([x]))[0])

    def seen_at(one: LastSmile, at: float) -> float:
        return math.log(at / one.forward) / math.sqrt(one.tau)

    def now_at(one: LastSmile, at: float, years: float) -> float:
        return math.log(at / (spot * one.forward / last.spot * math.exp(off))) / math.sqrt(years)

    places = [(a, last.smiles[a.key], now_at(last.smiles[a.key], a.strike, a.tau)) for a in anchors]
    stuck = [(365.0 * a.tau, x, a.volatility - volatility(one, seen_at(one, a.strike))) for a, one, x in places]
    moved = [(365.0 * a.tau, x, a.volatility - volatility(one, x)) for a, one, x in places]

    def scaled_at(one: LastSmile, years: float, x: float) -> float:
        level = volatility(one, 0.0)
        scale = max(level + slow_field(moved, 365.0 * years, 0.0), min(level, SMALLEST_LEVEL)) / level
        return scale * volatility(one, x / scale)

    scaled = [(365.0 * a.tau, x, a.volatility - scaled_at(one, a.tau, x)) for a, one, x in places]
    x, days = now_at(smile, strike, tau), 365.0 * tau
    return {
        "stuck": volatility(smile, seen_at(smile, strike)), "shift": slow_field(stuck, days, x),
        "moved": volatility(smile, x) + slow_field(moved, days, x),
        "scaled": scaled_at(smile, tau, x) + slow_field(scaled, days, x), "off": off,
    }  # fmt: skip


def slow_contract_features(
    strike: float, expiry: np.datetime64, root: str, ts: np.datetime64, spot: float, last: LastSeen,
    anchors: list[Anchor],
) -> dict[str, float]:  # fmt: skip
    """One contract, floats only."""
    (smile,) = [one for key, one in last.smiles.items() if key == (root, expiry)]
    days = (expiry.astype("datetime64[D]").item() - ts.astype("datetime64[D]").item()).days
    tau = days / 365.0
    root_tau = math.sqrt(tau)
    law = slow_laws(strike, tau, smile, spot, last, anchors)
    x = min(max(math.log(strike / smile.forward) / root_tau, -1.0), 1.0)
    _, slope, curvature = smile.shape.tolist()
    move, off = math.log(spot / last.spot) / root_tau, law["off"] / root_tau
    local, shift = slope + 2.0 * curvature * x, law["shift"]
    stuck = law["stuck"] + shift
    weekdays = weekdays_between(ts.astype("datetime64[D]").item(), expiry.astype("datetime64[D]").item())
    elapsed = float((ts - last.ts) / np.timedelta64(1, "s")) / 86400.0
    return {
        "prior_volatility": max(stuck, SMALLEST_PRIOR), "sqrt_tau": root_tau, "anchored": 1.0 if anchors else 0.0,
        "moneyness": x, "moneyness_squared": x * x, "last_volatility": law["stuck"], "slope": local,
        "return": move, "return_moneyness": move * x, "return_moneyness_squared": move * x * x,
        "return_slope": move * local, "shift": shift, "shift_sqrt_tau": shift * root_tau,
        "moneyness_law": law["moved"] - stuck, "scaled_law": law["scaled"] - stuck,
        "deviation": off, "deviation_slope": off * local,
        "business_share": weekdays / 252.0 / tau, "elapsed_share": elapsed / days,
    }  # fmt: skip


@pytest.mark.parametrize("targets", [TARGETS, SEVERAL, ()])
def test_contract_features_equal_the_slow_ones(targets: tuple[AnchorTarget, ...]) -> None:
    strikes = np.array([40.0, 75.0, 85.0, 91.3, 99.0, 100.0, 104.5, 116.0, 140.0])  # between, at and beyond the nodes
    quotes, seen = now(1.012 * SPOT, 0.015, strikes=strikes), before()
    anchors = find_anchors(now(1.012 * SPOT, 0.015), seen, targets)
    assert len(anchors) == len(targets)
    table = contract_table(contracts_of(quotes), quotes.ts, quotes.spot, seen, anchors)
    assert sorted(table.rows.tolist()) == list(range(len(quotes)))
    for row, features in zip(table.rows, table.features, strict=True):
        wanted = slow_contract_features(
            float(quotes.strike[row]), quotes.expiry[row], str(quotes.root[row]), quotes.ts, quotes.spot, seen, anchors
        )
        assert list(wanted) == list(CONTRACT_FEATURES)
        for name, value in zip(CONTRACT_FEATURES, features.tolist(), strict=True):
            assert value == pytest.approx(wanted[name], rel=1e-9, abs=1e-12), name


def test_what_prices_the_contracts_is_what_was_last_seen() -> None:
    quotes, seen = now(1.01 * SPOT), before()
    anchors = find_anchors(quotes, seen, TARGETS)
    table = contract_table(contracts_of(quotes), quotes.ts, quotes.spot, seen, anchors)
    assert forward_deviation(anchors) != 0.0
    for place, row in enumerate(table.rows):
        (smile,) = [one for key, one in seen.smiles.items() if key == (quotes.root[row], quotes.expiry[row])]
        carried = table.carried_forward[place]
        assert carried == pytest.approx(1.01 * smile.forward, rel=1e-14)
        assert table.forward[place] == pytest.approx(carried * np.exp(forward_deviation(anchors)), rel=1e-14)
        assert table.discount[place] == smile.discount
        x = np.log(quotes.strike[row] / carried) / np.sqrt(table.tau[place])
        assert table.in_range[place] == (abs(x) < 0.6)
        assert table.last_volatility[place] == smile.at(quotes.strike[row : row + 1])[0]
        assert table.shift[place] == shift_at(anchors, table.tau[[place]], np.array([x]))[0]
    columns = {name: table.features[:, k] for k, name in enumerate(CONTRACT_FEATURES)}
    assert np.allclose(columns["prior_volatility"], columns["last_volatility"] + columns["shift"], rtol=1e-15)
    assert not np.array_equal(columns["last_volatility"], table.last_volatility)  # smoothed, and as quoted
    assert np.abs(columns["last_volatility"] - table.last_volatility)[table.in_range].max() < 0.01


def same_rows(table: ContractTable, other: ContractTable, places: np.ndarray) -> bool:
    """Whether every array of `other` equals that of `table` at `places`, bit by bit."""
    names = [field.name for field in dataclasses.fields(ContractTable) if field.name != "rows"]
    return all(np.array_equal(getattr(table, name)[places], getattr(other, name)) for name in names)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**31), st.integers(1, 209))
def test_order_and_company_of_contracts_do_not_matter(seed: int, count: int) -> None:
    quotes, seen = now(1.01 * SPOT), before()
    anchors = find_anchors(quotes, seen, TARGETS)
    whole = contract_table(contracts_of(quotes), quotes.ts, quotes.spot, seen, anchors)
    place_of = np.argsort(whole.rows)
    chosen = np.random.default_rng(seed).permutation(len(quotes))[:count]
    some = contract_table(contracts_of(quotes.take(chosen)), quotes.ts, quotes.spot, seen, anchors)
    assert len(some.rows) == count
    assert same_rows(whole, some, place_of[chosen[some.rows]])


def test_a_batch_equals_one_by_one() -> None:
    quotes, seen = now(1.01 * SPOT), before()
    anchors = find_anchors(quotes, seen, TARGETS)
    whole = contract_table(contracts_of(quotes), quotes.ts, quotes.spot, seen, anchors)
    for place, row in enumerate(whole.rows.tolist()):
        alone = contract_table(contracts_of(quotes.take(np.array([row]))), quotes.ts, quotes.spot, seen, anchors)
        assert alone.rows.tolist() == [0]
        assert same_rows(whole, alone, np.array([place]))


def test_call_and_put_of_a_strike_have_equal_features() -> None:
    quotes, seen = now(1.01 * SPOT), before()
    anchors = find_anchors(quotes, seen, TARGETS)
    table = contract_table(contracts_of(quotes), quotes.ts, quotes.spot, seen, anchors)
    identity = [(str(quotes.root[r]), quotes.expiry[r].item(), float(quotes.strike[r])) for r in table.rows]
    sides: dict[Any, list[np.ndarray]] = {}
    for one, features in zip(identity, table.features, strict=True):
        sides.setdefault(one, []).append(features)
    assert all(len(pair) == 2 and np.array_equal(pair[0], pair[1]) for pair in sides.values())
    assert len(sides) == len(quotes) / 2


def test_contracts_never_seen_or_over_are_left_out() -> None:
    quotes, seen = now(), before()
    unseen, over = quotes.take(np.arange(3)), quotes.take(np.arange(4))
    unseen = dataclasses.replace(unseen, expiry=unseen.expiry + 7 * DAY)
    parts = (unseen, quotes.take(np.arange(5, 9)), dataclasses.replace(over, root=np.full(4, "XSP")))
    contracts = Contracts(*(np.concatenate([getattr(p, name) for p in parts])
                            for name in ("root", "expiry", "strike", "right")))  # fmt: skip
    assert contract_table(contracts, quotes.ts, quotes.spot, seen, []).rows.tolist() == [3, 4, 5, 6]
    late = expiry_of("SPX", 22)  # on the day it expires nothing is left
    table = contract_table(contracts_of(quotes), late, quotes.spot, seen, [])
    assert not set(table.rows) & set(np.flatnonzero(quotes.expiry.astype("datetime64[D]") <= late))
    empty = contract_table(contracts_of(quotes.take(np.zeros(len(quotes), bool))), quotes.ts, quotes.spot, seen, [])
    assert empty.features.shape == (0, len(CONTRACT_FEATURES))


def test_the_unit_of_expiry_times_does_not_matter() -> None:
    quotes, seen = now(), before()
    coarse = dataclasses.replace(contracts_of(quotes), expiry=quotes.expiry.astype("datetime64[us]"))
    fine = contract_table(contracts_of(quotes), quotes.ts, quotes.spot, seen, [])
    assert same_rows(fine, contract_table(coarse, quotes.ts, quotes.spot, seen, []), np.arange(len(quotes)))


@st.composite
def odd_quotes(draw: st.DrawFn, day: int) -> Quotes:
    """Anything a bad feed may send: noise of any size, crossed, empty and enormous quotes, few rows."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    strikes = np.sort(rng.choice(np.arange(10.0, 400.0, 2.5), draw(st.integers(1, 30)), replace=False))
    spot = draw(st.floats(20.0, 300.0))
    listed = [(root, expiry_of(root, days)) for root, days in (("SPX", 4), ("SPX", 12), ("SPXW", 12), ("SPX", 300))]
    level = draw(st.floats(0.01, 3.0))
    quotes = chain(ts=TS + day * DAY, spot=spot, expiries=listed, strikes=strikes,
                   volatility=lambda strike, tau: np.full_like(strike, level))  # fmt: skip
    noise = np.exp(rng.normal(0, draw(st.sampled_from([0.0, 0.01, 1.0, 20.0])), (2, len(quotes))))
    bid, ask = quotes.bid * noise[0], quotes.ask * noise[1 if draw(st.booleans()) else 0]
    broken = rng.random(len(quotes)) < draw(st.floats(0.0, 0.6))
    bid = np.where(broken, rng.choice([0.0, np.nan, 1e300, -1.0], len(quotes)), bid)
    kept = rng.random(len(quotes)) < draw(st.floats(0.1, 1.0))
    printed = spot * draw(st.sampled_from([1.0, 1.001, 0.9, 2.0]))
    return dataclasses.replace(quotes, spot=printed, bid=bid, ask=ask).take(kept)


@settings(deadline=None, max_examples=150)
@given(odd_quotes(0), odd_quotes(1), st.integers(1, 70))
def test_nothing_that_isnt_finite_ever_leaves(first: Quotes, second: Quotes, length: int) -> None:
    seen = last_seen(build_surface(first))
    for smile in seen.smiles.values():
        assert np.isfinite([smile.forward, smile.discount, *smile.shape, *smile.volatility]).all()
    anchors = find_anchors(second, seen, (*TARGETS, AnchorTarget(12.0, -0.5)))
    prices = np.r_[SPOT * np.exp(np.linspace(0.0, 3.0, length)), second.spot]
    step = market_step(Path(second.ts - np.arange(length + 1)[::-1] * DAY, prices), seen, anchors)
    assert step.shape == (len(STEP_FEATURES),)
    assert np.isfinite(step).all()
    table = contract_table(contracts_of(second), second.ts, second.spot, seen, anchors)
    for field in dataclasses.fields(ContractTable):
        assert np.isfinite(getattr(table, field.name)).all(), field.name
    assert (table.features[:, 0] >= SMALLEST_PRIOR).all()
    assert (table.tau > 0).all()


def test_the_shared_chain_quotes_every_listed_contract() -> None:
    """What the tests above stand on: two roots, five expiries, calls and puts."""
    quotes = now()
    assert len(quotes) == 2 * 21 * len(LISTED)
    assert len(find_anchors(quotes, before(), TARGETS)) == len(TARGETS)
