"""Features: each equals a slow recomputation, is finite on any chain, and depends on neither order nor company."""

from __future__ import annotations

import dataclasses
import datetime
import json
import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.errors import DataError
from serving.features import (
    CONTRACT_FEATURES,
    GRID_DAYS,
    RV_HORIZONS,
    SMALLEST_PRIOR,
    STEP_FEATURES,
    UNSCALED,
    Contracts,
    ContractTable,
    FeatureSpec,
    Path,
    Scaler,
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
from tests.serving.test_surface import RATE, SPOT, TS, YIELD, chain, expiry_of, key_of

STEPS = 80
SEVERAL = (AnchorTarget(22, -0.2), AnchorTarget(22, 0.1), AnchorTarget(50, 0.1), AnchorTarget(113, -0.3),
           AnchorTarget(113))  # fmt: skip


def uneven_path(count: int = STEPS, seed: int = 0) -> Path:
    """Weekdays with holidays and odd hours, ending at the snapshot of `now`."""
    rng = np.random.default_rng(seed)
    gaps = rng.choice([0.25, 1.0, 1.0, 1.0, 3.0, 4.0], count - 1)
    days = np.r_[0.0, -np.cumsum(gaps)][::-1]
    ts = TS + DAY + (days * 86400e9).astype("timedelta64[ns]")
    return Path(ts, SPOT * np.exp(np.cumsum(rng.normal(0, 0.012, count))))


def by_name(step: np.ndarray) -> dict[str, float]:
    return dict(zip(STEP_FEATURES, step.tolist(), strict=True))


def contracts_of(quotes: Quotes) -> Contracts:
    return Contracts(quotes.root, quotes.expiry, quotes.strike, quotes.right)


# --- the market step


def weekdays_between(first: datetime.date, last: datetime.date) -> int:
    """Mondays to Fridays from `first`, included, to `last`, excluded."""
    return sum((first + datetime.timedelta(days=k)).weekday() < 5 for k in range((last - first).days))


def slow_path_features(path: Path) -> dict[str, float]:
    """One loop per feature, no arrays."""
    price = path.price.tolist()
    seconds = [int((t - path.ts[0]) / np.timedelta64(1, "s")) for t in path.ts]
    returns = [math.log(b / a) for a, b in pairwise(price)]
    days = [(b - a) / 86400.0 for a, b in pairwise(seconds)]
    out = {"log_return": returns[-1], "absolute_return": abs(returns[-1]), "calendar_days": days[-1]}
    first, last = (t.astype("datetime64[D]").item() for t in path.ts[-2:])
    out["business_days"] = weekdays_between(first, last) or min(days[-1], 1.0)
    for n in RV_HORIZONS:
        squares, time = sum(r * r for r in returns[-n:]), sum(days[-n:])
        out[f"realised_volatility_{n}"] = math.sqrt(squares / (time / 365.0))
    for n in (10, 21):
        out[f"sma_distance_{n}"] = math.log(price[-1] / (sum(price[-n:]) / len(price[-n:])))
    gains = sum(r for r in returns[-14:] if r > 0)
    losses = -sum(r for r in returns[-14:] if r < 0)
    out["rsi"] = gains / (gains + losses)
    return out


@settings(deadline=None, max_examples=60)
@given(st.integers(2, 90), st.integers(0, 2**31))
def test_path_features_equal_the_slow_ones(count: int, seed: int) -> None:
    path = uneven_path(count, seed)
    found = by_name(market_step(path, None, []))
    for name, wanted in slow_path_features(path).items():
        assert found[name] == pytest.approx(wanted, rel=1e-9, abs=1e-13), name
    assert {name: found[name] for name in STEP_FEATURES[11:]} == dict.fromkeys(STEP_FEATURES[11:], 0.0)


def test_realised_volatility_of_a_constant_daily_move_is_that_move_annualised() -> None:
    """Over calendar time: a weekend's gap counts three days, so the same moves make less volatility."""
    ts = TS - np.arange(70)[::-1] * DAY
    alternating = 100.0 * np.exp(0.01 * (np.arange(70) % 2))
    found = by_name(market_step(Path(ts, alternating), None, []))
    gapped = by_name(market_step(Path(TS - 3 * np.arange(70)[::-1] * DAY, alternating), None, []))
    for n in RV_HORIZONS:
        assert found[f"realised_volatility_{n}"] == pytest.approx(0.01 * math.sqrt(365.0), rel=1e-10)
        assert gapped[f"realised_volatility_{n}"] == pytest.approx(0.01 * math.sqrt(365.0 / 3.0), rel=1e-10)
    assert found["rsi"] == pytest.approx(0.5)


def test_one_way_markets_and_still_ones() -> None:
    ts = TS - np.arange(30)[::-1] * DAY
    up, down, still = (by_name(market_step(Path(ts, np.exp(m * np.arange(30.0))), None, [])) for m in (0.01, -0.01, 0))
    assert (up["rsi"], down["rsi"], still["rsi"]) == (1.0, 0.0, 0.5)
    assert up["sma_distance_10"] > 0 > down["sma_distance_10"]
    assert still["realised_volatility_63"] == still["log_return"] == 0.0


def test_the_first_price_of_all_has_no_past() -> None:
    alone = by_name(market_step(Path(np.array([TS]), np.array([SPOT])), None, []))
    assert (alone["calendar_days"], alone["business_days"], alone["rsi"]) == (1.0, 1.0, 0.5)
    assert alone["log_return"] == alone["realised_volatility_21"] == alone["sma_distance_21"] == 0.0


def test_only_the_longest_horizon_of_the_path_counts() -> None:
    path = uneven_path(200)
    cut = Path(path.ts[-64:], path.price[-64:])
    seen, anchors = before(), find_anchors(now(), before(), TARGETS)
    assert np.array_equal(market_step(path, seen, anchors), market_step(cut, seen, anchors))


def interpolated(x: float, nodes: list[tuple[float, float]]) -> float:
    """Linear between nodes, flat outside."""
    if x <= nodes[0][0]:
        return nodes[0][1]
    for (a, low), (b, high) in pairwise(nodes):
        if a <= x < b:
            return low + (high - low) * (x - a) / (b - a)
    return nodes[-1][1]


def test_surface_and_anchor_features_equal_the_slow_ones() -> None:
    surface = build_surface(chain())
    surface.smiles.pop(key_of("SPXW", 22))  # one smile per tenor: interpolation between equal tenors has no one answer
    seen = last_seen(surface)
    quotes = now(1.01 * SPOT, 0.02)
    anchors = find_anchors(dataclasses.replace(quotes, spot=quotes.spot * 1.003), seen, TARGETS)
    assert len(anchors) == 3
    found = by_name(market_step(uneven_path(), seen, anchors))
    smiles = sorted(seen.smiles.values(), key=lambda smile: smile.tau)
    fits = []
    for smile in smiles:
        x = np.log(smile.strike / smile.forward) / np.sqrt(smile.tau)
        fits.append((math.log(smile.tau), np.polynomial.polynomial.polyfit(x, smile.volatility, 2)))
    grid = [math.log(days / 365.0) for days in GRID_DAYS]
    level = [interpolated(x, [(at, fit[0]) for at, fit in fits]) for x in grid]
    moves = [(math.log(a.tau), math.sqrt(a.tau) * (a.volatility - a.last_volatility)) for a in anchors]
    wanted = {
        "surface_seen": 1.0, "level_14": level[0], "level_45": level[1], "level_120": level[2],
        "skew_45": interpolated(grid[1], [(at, fit[1]) for at, fit in fits]),
        "curvature_45": interpolated(grid[1], [(at, fit[2]) for at, fit in fits]),
        "term_slope": level[2] - level[0], "anchored": 1.0,
        "anchor_move_14": interpolated(grid[0], moves), "anchor_move_45": interpolated(grid[1], moves),
        "anchor_move_120": interpolated(grid[2], moves),
        "forward_deviation": sorted(a.forward_deviation for a in anchors)[1],
    }  # fmt: skip
    assert list(wanted) == list(STEP_FEATURES[11:])
    for name, value in wanted.items():
        assert found[name] == pytest.approx(value, rel=1e-8, abs=1e-12), name
    assert found["forward_deviation"] == pytest.approx(-math.log(1.003) - (RATE - YIELD) / 365, abs=5e-6)


def test_a_surface_without_smiles_in_range_is_not_seen() -> None:
    far = last_seen(build_surface(chain(expiries=[("SPX", expiry_of("SPX", 400))])))
    assert far.smiles
    assert np.array_equal(market_step(uneven_path(), far, []), market_step(uneven_path(), None, []))


# --- the contract table


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


# --- the scaler


def test_scaler_standardises_and_clips() -> None:
    values = np.random.default_rng(0).normal([3.0, -100.0], [2.0, 0.01], (5000, 2))
    scaler = Scaler.fit(values, ("a", "b"))
    scaled = scaler(values)
    assert scaled.dtype == np.float32
    assert np.allclose(scaled.mean(axis=0), 0.0, atol=1e-3)
    assert np.allclose(scaled.std(axis=0), 1.0, atol=5e-3)  # three deviations are the most it lets through
    assert np.array_equal(scaler(np.array([[1e9, -1e9]])), [[3.0, -3.0]])
    assert np.array_equal(scaler(values[7]), scaled[7])  # a row alone


def test_unscaled_columns_pass_untouched_and_unclipped() -> None:
    values = np.random.default_rng(0).normal(50.0, 30.0, (100, 3))
    scaled = Scaler.fit(values, ("a", "keep", "b"), ("keep",))(values)
    assert np.array_equal(scaled[:, 1], values[:, 1].astype(np.float32))
    assert np.abs(scaled[:, [0, 2]]).max() < 6.0 < np.abs(scaled[:, 1]).max()


def test_a_constant_column_becomes_zero_not_infinite() -> None:
    values = np.full((50, 2), 0.1)
    values[:, 1] = -7.0
    scaled = Scaler.fit(values, ("a", "b"))(values)
    assert np.abs(scaled).max() < 1e-12
    assert Scaler.fit(values, ("a", "b")).deviation == (1.0, 1.0)


# --- the spec and the path


def spec() -> FeatureSpec:
    rng = np.random.default_rng(4)
    steps, contracts = rng.normal(size=(20, len(STEP_FEATURES))), rng.normal(size=(20, len(CONTRACT_FEATURES)))
    return FeatureSpec(20, (AnchorTarget(14), AnchorTarget(45.5, -0.1)), Scaler.fit(steps, STEP_FEATURES),
                       Scaler.fit(contracts, CONTRACT_FEATURES, UNSCALED))  # fmt: skip


def test_spec_survives_json_to_the_last_bit() -> None:
    again = FeatureSpec.from_json(json.loads(json.dumps(spec().to_json())))
    assert again == spec()
    assert again.step_scaler.mean == spec().step_scaler.mean


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"step_features": list(STEP_FEATURES[:-1])}, "forward_deviation"),
        ({"contract_features": [*CONTRACT_FEATURES, "vibes"]}, "vibes"),
        ({"contract_features": list(CONTRACT_FEATURES[::-1])}, "their order"),
        ({"version": 1}, "version 1"),
        ({"version": 3}, "version 3"),
        ({"window": "many"}, "can't be read"),
        ({"anchors": [{"tenor": 3}]}, "can't be read"),
        ({"anchors": [{"tenor_days": "soon", "moneyness": 0.0}]}, "can't be read"),
        ({"step_scaler": {"mean": [0.0]}}, "can't be read"),
        ({"step_scaler": None}, "can't be read"),
    ],
)
def test_foreign_specs_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        FeatureSpec.from_json(spec().to_json() | change)


@pytest.mark.parametrize("missing", ["window", "anchors", "contract_scaler", "version"])
def test_a_spec_that_lacks_a_field_is_refused_by_its_name(missing: str) -> None:
    data = spec().to_json()
    del data[missing]
    with pytest.raises(DataError, match=missing):
        FeatureSpec.from_json(data)


@pytest.mark.parametrize(
    ("ts", "price", "message"),
    [
        ([0, 1], [1.0], "2 times and 1 prices"),
        ([], [], "0 times and 0 prices"),
        ([0, 2, 1], [1.0, 1.0, 1.0], "ascending in time at 2018-03-02"),
        ([0, 1, 1], [1.0, 1.0, 1.0], "ascending in time at 2018-03-02"),
        ([0, 1], [1.0, 0.0], "price 0.0 at 2018-03-02"),
        ([0, 1], [np.nan, 1.0], "price nan at 2018-03-01"),
        ([0, 1], [1.0, np.inf], "price inf at 2018-03-02"),
        ([0, 1], [-2.0, 1.0], r"price -2\.0 at 2018-03-01"),
    ],
)
def test_bad_paths_are_refused(ts: list[int], price: list[float], message: str) -> None:
    with pytest.raises(DataError, match=message):
        Path(TS + np.array(ts, dtype=np.int64) * DAY, np.array(price))


def test_a_path_without_a_time_is_refused() -> None:
    with pytest.raises(DataError, match="no time at place 0"):
        Path(np.array(["NaT", TS], dtype="datetime64[ns]"), np.array([1.0, 1.0]))


def test_until_keeps_the_present_and_drops_the_future() -> None:
    path = uneven_path()
    for place in (0, 10, STEPS - 1):
        cut = path.until(path.ts[place])
        assert np.array_equal(cut.ts, path.ts[: place + 1])
        assert np.array_equal(cut.price, path.price[: place + 1])
    assert len(path.until(path.ts[3] + np.timedelta64(1, "ns")).ts) == 4
    with pytest.raises(DataError, match="0 times"):
        path.until(path.ts[0] - DAY)


def test_the_shared_chain_quotes_every_listed_contract() -> None:
    """What the tests above stand on: two roots, five expiries, calls and puts."""
    quotes = now()
    assert len(quotes) == 2 * 21 * len(LISTED)
    assert len(find_anchors(quotes, before(), TARGETS)) == len(TARGETS)
