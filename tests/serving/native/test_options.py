"""The native core's options against mpmath, 50 digits, in every instruction set: the accuracy that is promised.

Promised (serving/native/options/): where s = sigma sqrt(tau) is in [0.01, 3] and |ln(K/F)| <= 8 s, price and Greeks
have a relative error of at most 1e-12; that of theta, vanna and volga, which have zeros, is relative to the sum of
their terms' magnitudes. Elsewhere the error is at most 1e-14 F (times a Greek's own unit). Implied volatilities of
out-of-the-money prices are within 1e-10 where vega > 1e-8 F, in the money where vega > 1e-5 F; elsewhere they reprice
within 4 units in the last place times 1 + |d ln p / d ln sigma|, or within 1e-14 F.
"""

from __future__ import annotations

import functools
from typing import Any

import mpmath
import numpy as np
import pytest

from serving import native
from serving.black76 import OUTPUTS, VolatilityStatus

WHY_NOT = native.why_unavailable()
pytestmark = pytest.mark.skipif(WHY_NOT is not None, reason=f"{WHY_NOT}")
ISAS = native.core().isas() if WHY_NOT is None else []
EPSILON = float(np.finfo(np.float64).eps)
Columns = np.ndarray  # [6, N]: forward, strike, tau, volatility, discount, right


def drawn(seed: int, deviation: np.ndarray, distance: np.ndarray) -> Columns:
    """Options of `deviation` = sigma sqrt(tau), ln(K/F) = `distance` deviations."""
    rng = np.random.default_rng(seed)
    count = len(deviation)
    forward = np.exp(rng.uniform(-3, 9, count))
    tau = np.exp(rng.uniform(np.log(1 / 365), np.log(10), count))
    strike = forward * np.exp(np.clip(distance * deviation, -600, 600))
    return np.array([forward, strike, tau, deviation / np.sqrt(tau), rng.uniform(0.6, 1.1, count),
                     rng.choice([-1.0, 1.0], count)])  # fmt: skip


@functools.cache
def inside() -> Columns:
    """The range of the relative promise, its corners more often than chance would; 7.9999: of the rounded inputs."""
    rng = np.random.default_rng(11)
    deviation = np.concatenate([np.full(100, 0.0100001), np.full(40, 2.99999), np.exp(rng.uniform(-4.6, 1.09, 260))])
    distance = np.concatenate([np.tile([-7.9999, 7.9999, 0.0, 1e-9], 35), rng.uniform(-7.9999, 7.9999, 260)])
    return drawn(12, deviation, distance)


@functools.cache
def outside() -> Columns:
    rng = np.random.default_rng(13)
    tiny = drawn(14, 10.0 ** rng.uniform(-9, -2, 100), rng.uniform(-12, 12, 100))
    wide = drawn(15, rng.uniform(3, 30, 60), rng.uniform(-12, 12, 60))
    far = drawn(16, rng.uniform(0.05, 2, 60), rng.choice([-1, 1], 60) * rng.uniform(8, 40, 60))
    return np.concatenate([tiny, wide, far], axis=1)


def exact(option: np.ndarray) -> tuple[list[Any], list[Any]]:
    """Price and Greeks in the order of OUTPUTS, and the sum of their terms' magnitudes."""
    f, k, t, v, d, w = (mpmath.mpf(float(number)) for number in option)
    root = mpmath.sqrt(t)
    s, x = v * root, mpmath.log(f / k)
    d1, d2 = x / s + s / 2, x / s - s / 2
    bell, inside1 = mpmath.npdf(d1), mpmath.ncdf(w * d1)
    price = d * w * (f * inside1 - k * mpmath.ncdf(w * d2))
    gamma, vega, rate = d * bell / (f * s), d * f * bell * root, -mpmath.log(d) / t
    decay = vega * v / (2 * t)
    values = [price, d * w * inside1, gamma, vega, rate * price - decay, -t * price, -d * bell * d2 / v,
              vega * d1 * d2 / v]  # fmt: skip
    size = abs(x / s) + s / 2
    magnitudes = [*map(abs, values[:4]), abs(rate) * price + decay, t * price, d * bell * size / v,
                  vega * ((x / s) ** 2 + s**2 / 4) / v]  # fmt: skip
    return values, magnitudes


@functools.cache
def exact_of(which: str) -> tuple[np.ndarray, np.ndarray]:
    """[N, 8] of mpmath numbers each."""
    with mpmath.workdps(50):
        found = [exact(option) for option in {"inside": inside, "outside": outside}[which]().T]
    return np.array([one[0] for one in found]), np.array([one[1] for one in found])


def valued(isa: str, columns: Columns) -> np.ndarray:
    """[8, N]."""
    out = [np.empty(columns.shape[1]) for _ in OUTPUTS]
    native.core().Options(isa).value(columns.shape[1], *np.ascontiguousarray(columns), *out)
    return np.array(out)


def implied(isa: str, prices: np.ndarray, columns: Columns) -> tuple[np.ndarray, np.ndarray]:
    forward, strike, tau, _, discount, right = np.ascontiguousarray(columns)
    found, status = np.empty(len(prices)), np.empty(len(prices), dtype=np.int8)
    native.core().Options(isa).implied_volatility(
        len(prices), prices, forward, strike, tau, discount, right, found, status
    )
    return found, status


@pytest.mark.parametrize("isa", ISAS)
def test_relative_error_in_the_promised_range(isa: str) -> None:
    values, magnitudes = exact_of("inside")
    found = valued(isa, inside())
    for place, name in enumerate(OUTPUTS):
        errors = [
            float(abs(mpmath.mpf(float(ours)) - true) / size)
            for ours, true, size in zip(found[place], values[:, place], magnitudes[:, place], strict=True)
        ]
        assert max(errors) <= 1e-12, name


@pytest.mark.parametrize("isa", ISAS)
def test_absolute_error_elsewhere(isa: str) -> None:
    """Price against F; a Greek against F over its denominators, times what the argument's own rounding costs it."""
    columns = outside()
    values, _ = exact_of("outside")
    f, k, t, v, d, _ = columns
    found = valued(isa, columns)
    price_room = 1e-14 * np.maximum(f, np.abs(f - k))  # in the money the intrinsic value has its own last place
    error = np.abs(found[0] - values[:, 0].astype(float))
    assert (error <= price_room).all()
    assert np.abs(found[5] - values[:, 5].astype(float)).max() <= (t * price_room).max()
    assert (np.abs(found[5] + t * found[0]) <= 2 * EPSILON * t * found[0]).all()
    own = EPSILON * (1.0 + 1.0 / (v * np.sqrt(t)))  # ln(F/K) over the deviation: rounding of F/K, amplified
    assert (np.abs(found[1] - values[:, 1].astype(float)) <= 8 * d * own).all()
    assert (np.abs(found[3] - values[:, 3].astype(float)) <= 8 * f * np.sqrt(t) * own).all()
    assert np.isfinite(found).all()


@pytest.mark.parametrize("isa", [isa for isa in ISAS if isa in ("vnni", "bf16", "amx")])
def test_later_sets_run_the_kernels_of_avx512(isa: str) -> None:
    assert np.array_equal(valued(isa, inside()), valued("avx512", inside()))
    prices = valued("avx512", inside())[0]
    assert np.array_equal(implied(isa, prices, inside())[0], implied("avx512", prices, inside())[0], equal_nan=True)


@pytest.mark.parametrize("isa", ISAS)
def test_an_option_is_worth_the_same_at_every_place_of_any_length(isa: str) -> None:
    columns = inside()[:, ::17]
    whole = valued(isa, columns)
    prices = whole[0].copy()
    volatilities, statuses = implied(isa, prices, columns)
    for begin, end in ((0, 1), (1, 4), (2, 13), (5, 22)):
        assert np.array_equal(valued(isa, columns[:, begin:end]), whole[:, begin:end])
        some, why = implied(isa, prices[begin:end].copy(), columns[:, begin:end])
        assert np.array_equal(some, volatilities[begin:end], equal_nan=True)
        assert np.array_equal(why, statuses[begin:end])


@functools.cache
def quoted() -> tuple[Columns, np.ndarray, np.ndarray, np.ndarray]:
    """Options (volatility: that which the float64 price implies, exactly), price, vega, d ln p / d ln sigma."""
    rng = np.random.default_rng(17)
    columns = drawn(18, np.exp(rng.uniform(np.log(1e-3), np.log(8.0), 300)), rng.uniform(-8, 8, 300))
    columns[1] = np.clip(columns[1], columns[0] * 1e-6, columns[0] * 1e6)
    kept, prices, vegas, elasticities = [], [], [], []
    with mpmath.workdps(50):
        for option in columns.T:
            values, _ = exact(option)
            price, target = float(values[0]), mpmath.mpf(float(values[0]))
            volatility = mpmath.mpf(float(option[3]))
            for _ in range(8):  # the price moved by a rounding only
                here = option.astype(object)
                here[3] = volatility
                values = _exact_price_and_vega(here)
                change = (target - values[0]) / values[1]
                if not abs(change) < volatility / 4:
                    break
                volatility += change
            else:
                kept.append([*option[:3], float(volatility), *option[4:]])
                prices.append(price)
                vegas.append(float(values[1]))
                elasticities.append(float(values[1] * volatility / values[0]))
    return np.array(kept, dtype=float).T, np.array(prices), np.array(vegas), np.array(elasticities)


def _exact_price_and_vega(option: np.ndarray) -> tuple[Any, Any]:
    f, k, t, v, d, w = (mpmath.mpf(number) for number in option)
    s = v * mpmath.sqrt(t)
    d1 = mpmath.log(f / k) / s + s / 2
    return d * w * (f * mpmath.ncdf(w * d1) - k * mpmath.ncdf(w * (d1 - s))), d * f * mpmath.npdf(d1) * mpmath.sqrt(t)


@pytest.mark.parametrize("isa", ISAS)
def test_implied_volatility_is_the_exact_one(isa: str) -> None:
    columns, prices, vega, elasticity = quoted()
    f, k, _, volatility, _, right = columns
    found, status = implied(isa, prices, columns)
    out_of_money = right * (f - k) <= 0
    told = (out_of_money & (vega > 1e-8 * f)) | (~out_of_money & (vega > 1e-5 * f))
    assert told.sum() > 150
    assert (~out_of_money & told).sum() > 50
    assert (status[told] == VolatilityStatus.OK).all()
    assert (np.abs(found - volatility)[told] <= 1e-10).all()
    answered = status == VolatilityStatus.OK
    assert (answered | ~out_of_money).all()
    with mpmath.workdps(50):
        for place in np.flatnonzero(answered):
            option = columns[:, place].astype(object)
            option[3] = found[place]
            error = float(abs(_exact_price_and_vega(option)[0] - mpmath.mpf(prices[place])))
            assert error <= max(4 * EPSILON * (1 + elasticity[place]) * prices[place], 1e-14 * f[place])


@pytest.mark.parametrize("isa", ISAS)
def test_volatility_to_price_to_volatility(isa: str) -> None:
    rng = np.random.default_rng(19)
    columns = drawn(20, rng.uniform(0.01, 3.0, 4000), rng.uniform(-5, 5, 4000))
    columns[5] = np.where(columns[1] >= columns[0], 1.0, -1.0)
    found, status = implied(isa, valued(isa, columns)[0], columns)
    assert (status == VolatilityStatus.OK).all()
    assert (np.abs(found - columns[3]) <= 1e-12 * columns[3]).all()


def test_lengths_and_types_are_checked() -> None:
    core = native.core().Options()
    column, out = np.ones(3), [np.empty(3), *[None] * 7]
    with pytest.raises(ValueError, match="strike: expected 1 or 3 numbers, found 2"):
        core.value(3, column, np.ones(2), *[column] * 4, *out)
    with pytest.raises(ValueError, match="price: expected 3 numbers, found 4"):
        core.value(3, *[column] * 6, np.empty(4), *[None] * 7)
    with pytest.raises(TypeError):
        core.value(3, *[column.astype(np.float32)] * 6, *out)
    with pytest.raises(ValueError, match="status: expected 3 numbers, found 1"):
        core.implied_volatility(3, *[column] * 6, np.empty(3), np.empty(1, dtype=np.int8))
    with pytest.raises(ValueError, match="no instruction set 'mmx'"):
        native.core().Options("mmx")
