"""What a smile's change tells: planted changes come back in their band, an expiry that doesn't fit is the one found.

`surface` makes snapshots of smooth smiles; noise is added where real quotes would have it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.last_seen import LastSeen, LastSmile, fit_shape
from serving.normal import Array
from serving.quotes import ExpiryKey
from serving.surface import DAYS_PER_YEAR
from serving.surface_changes import (
    BANDS,
    BANDWIDTH,
    FEWEST_ROUGH,
    NODES_DAYS,
    QUOTE_STATISTICS,
    SLOPE_RIDGE,
    SMALLEST_FORWARD,
    SMALLEST_ROUGHNESS,
    SMALLEST_SIZE,
    changes,
    misfit,
    quote_statistics,
    usual_sizes,
)

TS = np.datetime64("2018-03-01T20:45", "ns")
DAYS = (10, 20, 40, 60, 90, 150, 250)
MONEYNESS = np.linspace(-0.5, 0.3, 41)


def surface(spot: float = 100.0, tenors: tuple[int, ...] = DAYS) -> LastSeen:
    """Smooth smiles at MONEYNESS."""
    smiles = {}
    for days in tenors:
        key = ExpiryKey("AB", TS + np.timedelta64(days, "D"))
        tau, forward = days / DAYS_PER_YEAR, spot * 1.001
        strike = forward * np.exp(MONEYNESS * np.sqrt(tau))
        values = 0.18 + 0.01 * np.log(days / 30.0) - 0.15 * MONEYNESS + 0.1 * MONEYNESS**2
        smiles[key] = LastSmile(key, tau, forward, 0.99, strike, values, fit_shape(MONEYNESS, values), True)
    return LastSeen(TS, spot, smiles)


def altered(seen: LastSeen, change: Callable[[LastSmile, int], Array]) -> LastSeen:
    """Volatilities replaced by `change(smile, place)`."""
    smiles = {key: dataclasses.replace(smile, volatility=change(smile, place))
              for place, (key, smile) in enumerate(seen.smiles.items())}  # fmt: skip
    return dataclasses.replace(seen, smiles=smiles)


def scaled(seen: LastSeen, factors: Array) -> LastSeen:
    """Each expiry by its factor."""
    return altered(seen, lambda smile, place: smile.volatility * factors[place])


def noisy(seen: LastSeen, seed: int, size: float = 0.003) -> LastSeen:
    generator = np.random.default_rng(seed)
    return altered(
        seen, lambda smile, _: smile.volatility * np.exp(size * generator.standard_normal(len(smile.strike)))
    )


def position(smile: LastSmile) -> Array:
    return np.asarray(np.log(smile.strike / smile.forward) / np.sqrt(smile.tau))


def named(values: Array) -> dict[str, float]:
    return dict(zip(QUOTE_STATISTICS, values.tolist(), strict=True))


SIZES = np.full((len(BANDS), len(NODES_DAYS)), 0.004)


# --- changes


def test_a_planted_change_comes_back_in_its_band() -> None:
    last = surface()
    wings = {"level": 0.0, "put_wing": 0.07, "call_wing": -0.03}

    def change(smile: LastSmile, _: int) -> Array:
        x = position(smile)
        planted = 0.05 + wings["put_wing"] * (x <= -0.2) + wings["call_wing"] * (x >= 0.1)
        return np.asarray(smile.volatility * np.exp(planted))

    found = changes(altered(last, change), last)
    np.testing.assert_allclose(found.tau * DAYS_PER_YEAR, DAYS)
    # the call wing's band overlaps the level's, whose middle is untouched
    np.testing.assert_allclose(found.bands, np.tile([0.05, 0.07, -0.03], (len(DAYS), 1)), atol=1e-12)
    np.testing.assert_allclose(found.forward, 0.0, atol=1e-12)
    assert found.log_return == 0.0


def test_one_wrong_quote_moves_no_band() -> None:
    last = surface()
    once = altered(last, lambda smile, _: smile.volatility + 0.3 * (np.arange(len(smile.strike)) == 20))
    np.testing.assert_allclose(changes(once, last).bands, 0.0, atol=1e-12)


def test_the_same_surface_again_has_no_roughness_where_it_was_copied() -> None:
    last = noisy(surface(), 1)
    at_strike = changes(dataclasses.replace(last, spot=101.0), last)
    assert (at_strike.rough[:, 0] < 1e-12).all()
    strikes = {key: dataclasses.replace(smile, forward=1.01 * smile.forward, strike=1.01 * smile.strike)
               for key, smile in last.smiles.items()}  # fmt: skip
    at_moneyness = changes(dataclasses.replace(last, spot=101.0, smiles=strikes), last)
    assert (at_moneyness.rough[:, 1] < 1e-9).all()
    assert (at_moneyness.rough[:, 0] > 1e-5).all()
    fresh = changes(noisy(surface(spot=101.0), 2), last)
    assert (fresh.rough > 1e-3).all()


def test_roughness_is_the_noise_of_the_change() -> None:
    last = surface()
    rough = changes(noisy(last, 3, 0.004), last).rough
    assert np.median(rough) == pytest.approx(0.004, rel=0.25)


def test_quotes_that_missed_a_move_show_in_the_forward() -> None:
    last = surface()
    stale = dataclasses.replace(last, spot=102.0)
    np.testing.assert_allclose(changes(stale, last).forward, -np.log(1.02), rtol=1e-9)
    fresh = surface(spot=102.0)
    np.testing.assert_allclose(changes(fresh, last).forward, 0.0, atol=1e-12)
    assert changes(fresh, last).log_return == pytest.approx(np.log(1.02))


def test_nothing_is_read_beyond_the_last_smile() -> None:
    last = surface()
    narrow = dataclasses.replace(last, smiles={
        key: dataclasses.replace(smile, strike=smile.strike[10:30], volatility=smile.volatility[10:30])
        for key, smile in last.smiles.items()})  # fmt: skip
    wild = altered(last, lambda smile, _: np.where((np.arange(41) < 10) | (np.arange(41) >= 30), 9.0, smile.volatility))
    for one, other in zip(vars(changes(last, narrow)).values(), vars(changes(wild, narrow)).values(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_too_few_quotes_say_nothing() -> None:
    last = surface()
    sparse = dataclasses.replace(last, smiles={
        key: dataclasses.replace(smile, strike=smile.strike[24:29], volatility=smile.volatility[24:29])
        for key, smile in last.smiles.items()})  # fmt: skip
    found = changes(sparse, last)
    assert FEWEST_ROUGH > 5
    assert np.isnan(found.rough).all()
    assert np.isnan(found.bands[:, 1]).all()
    assert np.isfinite(found.bands[:, 0]).all()
    values = named(quote_statistics(found, SIZES))
    assert {name for name, value in values.items() if np.isnan(value)} == {
        "worst_expiry_put_wing", "worst_expiry_call_wing", "common_put_wing", "common_call_wing", "roughness",
    }  # fmt: skip


def test_expiries_seen_once_take_no_part() -> None:
    last, now = surface(tenors=DAYS[:5]), surface(tenors=DAYS[2:])
    np.testing.assert_allclose(changes(now, last).tau * DAYS_PER_YEAR, DAYS[2:5])
    out = dict(last.smiles)
    key = next(iter(out))
    out[key] = dataclasses.replace(out[key], in_range=False)
    assert len(changes(surface(tenors=DAYS[:5]), dataclasses.replace(last, smiles=out)).tau) == 4
    none = changes(surface(tenors=(30,)), surface(tenors=(60,)))
    assert none.bands.shape == (0, 3)
    assert none.rough.shape == (0, 2)
    assert np.isnan(quote_statistics(none, SIZES)).all()


# --- misfit


def slow_misfit(tau: Array, values: Array) -> Array:
    """Weighted least squares written out, one expiry at a time."""
    out = np.full(len(values), np.nan)
    known = [place for place in range(len(values)) if np.isfinite(values[place])]
    if len(known) < 3:
        return out
    for place in known:
        others = [other for other in known if other != place]
        away = np.log(tau[others]) - np.log(tau[place])
        width = max(BANDWIDTH, float(np.sort(np.abs(away))[1]))
        weight = np.exp(-0.5 * (away / width) ** 2)
        root = np.sqrt(weight)
        rows = np.stack([root, root * away], axis=1)
        penalty = [0.0, np.sqrt(SLOPE_RIDGE * weight.sum())]
        level = np.linalg.lstsq(np.vstack([rows, penalty]), np.r_[root * values[others], 0.0], rcond=None)[0][0]
        out[place] = values[place] - level
    return out


@settings(deadline=None, max_examples=60)
@given(count=st.integers(0, 9), seed=st.integers(0, 9999), known=st.floats(0.3, 1.0))
def test_misfit_is_that_of_the_line_written_out(count: int, seed: int, known: float) -> None:
    generator = np.random.default_rng(seed)
    tau = np.sort(generator.choice(np.arange(5, 365), count, replace=False)) / DAYS_PER_YEAR
    values = np.where(generator.random(count) < known, generator.standard_normal(count), np.nan)
    np.testing.assert_allclose(misfit(tau, values), slow_misfit(tau, values), rtol=1e-7, atol=1e-9)


def test_a_parallel_change_fits_and_an_odd_one_out_misses_by_what_is_odd() -> None:
    tau = np.array(DAYS) / DAYS_PER_YEAR
    np.testing.assert_allclose(misfit(tau, np.full(len(tau), 0.3)), 0.0, atol=1e-12)
    for place in range(len(tau)):
        values = np.full(len(tau), 0.3)
        values[place] += 0.05
        assert misfit(tau, values)[place] == pytest.approx(0.05)


def test_two_smiles_of_one_date_are_each_others_neighbours() -> None:
    tau = np.array([20, 20, 20, 20]) / DAYS_PER_YEAR
    np.testing.assert_allclose(misfit(tau, np.array([0.0, 0.0, 0.0, 0.3])), [-0.1, -0.1, -0.1, 0.3], atol=1e-12)


# --- statistics


def test_usual_sizes_are_the_noise_of_each_tenor() -> None:
    """Short expiries are made four times as noisy as long ones; the sizes say so, and none is below the smallest."""
    last = surface()
    days = []
    for seed in range(60):
        generator = np.random.default_rng(seed)
        factors = np.exp(np.where(np.arange(len(DAYS)) < 3, 0.02, 0.005) * generator.standard_normal(len(DAYS)))
        days.append(changes(scaled(last, factors), last))
    sizes = usual_sizes(days)
    assert 2.5 < sizes[0, 0] / sizes[0, -1] < 6.0
    assert (usual_sizes([changes(last, last)]) == SMALLEST_SIZE).all()
    one = changes(surface(tenors=(30,)), surface(tenors=(30,)))
    assert np.isinf(usual_sizes([one])).all()
    assert np.isnan(quote_statistics(days[0], usual_sizes([one]))[:3]).all()


@pytest.mark.parametrize("place", range(len(DAYS)))
def test_a_scaled_expiry_shows_by_its_scale_or_more(place: int) -> None:
    last = surface()
    factors = np.where(np.arange(len(DAYS)) == place, 1.05, 1.0)
    values = named(quote_statistics(changes(scaled(last, factors), last), SIZES))
    own = np.log(1.05) / 0.004  # of a neighbour at the end, whose line leans on it, it may be more
    assert own - 1e-9 <= values["worst_expiry_level"] < 1.3 * own
    assert values["worst_expiry_put_wing"] == pytest.approx(0.0, abs=1e-9)
    assert values["common_level"] == pytest.approx(0.0, abs=1e-12)


def test_a_common_change_is_told_with_its_sign() -> None:
    last = surface()
    for sign in (1.0, -1.0):
        size = sign * 0.02

        def shift(smile: LastSmile, _: int, size: float = size) -> Array:
            return np.asarray(smile.volatility * np.exp(size * (position(smile) <= -0.2) / np.sqrt(smile.tau)))

        values = named(quote_statistics(changes(altered(last, shift), last), SIZES))
        assert values["common_put_wing"] == pytest.approx(sign * 0.02)
        assert values["common_level"] == pytest.approx(0.0, abs=1e-12)


def test_roughness_and_forward_have_a_floor() -> None:
    last = noisy(surface(), 1)
    values = named(quote_statistics(changes(last, last), SIZES))
    assert values["roughness"] == pytest.approx(np.log(SMALLEST_ROUGHNESS))
    assert values["forward"] == pytest.approx(np.log(SMALLEST_FORWARD))
