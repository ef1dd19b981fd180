"""The market step: each feature equals a slow recomputation from the path, the surface and the anchors."""

from __future__ import annotations

import dataclasses
import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.features import GRID_DAYS, RV_HORIZONS, STEP_FEATURES, Path, market_step
from serving.last_seen import find_anchors, last_seen
from serving.surface import build_surface
from tests.serving.test_last_seen import DAY, TARGETS, before, now
from tests.serving.test_surface import RATE, SPOT, TS, YIELD, chain, expiry_of, key_of
from tests.serving.uneven_market import by_name, uneven_path, weekdays_between


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
