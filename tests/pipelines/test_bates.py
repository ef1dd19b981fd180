"""Bates prices: identities and limits first, then an independent integral, then the relation to VIX."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.special import ndtr

from pipelines.bates import (
    VIX_TENOR_YEARS,
    BatesParameters,
    characteristic_function,
    forward_prices,
    implied_vix,
    jump_log_variance,
    log_contract_variance,
    with_vix,
)

FORWARD = 2000.0
TENORS_YEARS = (1 / 365, 0.02, 0.1, 1.0, 3.0)
MARKET = BatesParameters(
    variance=0.02,
    mean_reversion_per_year=5.0,
    long_run_variance=0.03,
    volatility_of_variance=0.8,
    correlation=-0.74,
    jump_intensity_per_year=0.5,
    jump_mean_log=-0.085,
    jump_deviation_log=0.055,
)
CALM = replace(MARKET, variance=0.003)
STORM = replace(MARKET, variance=0.25, jump_intensity_per_year=4.0)
HESTON = replace(MARKET, jump_intensity_per_year=0.0)


def strikes_around(parameters: BatesParameters, tau_years: float, count: int = 41) -> np.ndarray:
    deviation = math.sqrt(log_contract_variance(parameters, tau_years) * tau_years)
    return FORWARD * np.exp(deviation * np.linspace(-4, 3, count))


def black76(strikes: np.ndarray, total_variance: float) -> tuple[np.ndarray, np.ndarray]:
    deviation = math.sqrt(total_variance)
    d1 = np.log(FORWARD / strikes) / deviation + 0.5 * deviation
    call = FORWARD * ndtr(d1) - strikes * ndtr(d1 - deviation)
    put = strikes * ndtr(deviation - d1) - FORWARD * ndtr(-d1)
    return call, put


def call_by_quadrature(parameters: BatesParameters, strike: float, tau_years: float) -> float:
    """Lewis (2001): an adaptive integral that shares only the characteristic function with the COS method."""
    k = math.log(strike / FORWARD)

    def integrand(u: float) -> float:
        cf = characteristic_function(parameters, np.array([u - 0.5j]), tau_years)[0]
        return float((np.exp(-1j * u * k) * cf).real / (u * u + 0.25))

    edges = [0.0, *np.geomspace(1.0, 8192.0, 27)]
    total = sum(quad(integrand, low, high, limit=400, epsabs=1e-13, epsrel=1e-11)[0] for low, high in pairwise(edges))
    return FORWARD * (1.0 - math.exp(k / 2) / math.pi * total)


@pytest.mark.parametrize("tau_years", TENORS_YEARS)
@pytest.mark.parametrize("parameters", [CALM, MARKET, STORM, HESTON])
class TestIdentities:
    def test_total_probability_and_martingale(self, parameters: BatesParameters, tau_years: float) -> None:
        values = characteristic_function(parameters, np.array([0.0, -1j]), tau_years)
        np.testing.assert_allclose(values, [1.0, 1.0], rtol=1e-12)

    def test_conjugate_symmetry_and_modulus(self, parameters: BatesParameters, tau_years: float) -> None:
        u = np.linspace(0.1, 300.0, 200)
        positive = characteristic_function(parameters, u, tau_years)
        np.testing.assert_allclose(characteristic_function(parameters, -u, tau_years), np.conj(positive), rtol=1e-12)
        assert np.all(np.abs(positive) <= 1.0)

    def test_put_call_parity(self, parameters: BatesParameters, tau_years: float) -> None:
        strikes = strikes_around(parameters, tau_years)
        call, put = forward_prices(parameters, FORWARD, strikes, tau_years)
        np.testing.assert_allclose(call - put, FORWARD - strikes, atol=1e-9)

    def test_bounds_monotone_convex_in_strike(self, parameters: BatesParameters, tau_years: float) -> None:
        strikes = strikes_around(parameters, tau_years)
        call, put = forward_prices(parameters, FORWARD, strikes, tau_years)
        slack = 1e-9 * FORWARD
        assert np.all(call >= np.maximum(FORWARD - strikes, 0.0) - slack)
        assert np.all(call <= FORWARD)
        assert np.all((put >= 0.0) & (put <= strikes))
        slopes = np.diff(put) / np.diff(strikes)
        assert np.all((slopes >= -slack) & (slopes <= 1.0 + slack))
        assert np.all(np.diff(slopes) * np.diff(strikes)[1:] >= -4 * slack)

    def test_scales_with_the_forward(self, parameters: BatesParameters, tau_years: float) -> None:
        strikes = strikes_around(parameters, tau_years)
        unit = forward_prices(parameters, 1.0, strikes / FORWARD, tau_years)
        np.testing.assert_allclose(
            forward_prices(parameters, FORWARD, strikes, tau_years).put, FORWARD * unit.put, atol=1e-9
        )


@pytest.mark.parametrize("tau_years", TENORS_YEARS)
@pytest.mark.parametrize("variance", [0.003, 0.04, 0.5])
def test_constant_volatility_without_jumps_is_black76(variance: float, tau_years: float) -> None:
    parameters = replace(HESTON, variance=variance, long_run_variance=variance, volatility_of_variance=0.0)
    strikes = strikes_around(parameters, tau_years)
    call, put = black76(strikes, variance * tau_years)
    prices = forward_prices(parameters, FORWARD, strikes, tau_years)
    np.testing.assert_allclose(prices.call, call, atol=1e-9 * FORWARD)
    np.testing.assert_allclose(prices.put, put, atol=1e-9 * FORWARD)


@pytest.mark.parametrize("tau_years", TENORS_YEARS)
def test_deterministic_variance_is_black76_at_the_average(tau_years: float) -> None:
    parameters = replace(HESTON, variance=0.09, long_run_variance=0.02, volatility_of_variance=0.0)
    reverting = -math.expm1(-5.0 * tau_years) / 5.0
    strikes = strikes_around(parameters, tau_years)
    call, _ = black76(strikes, 0.02 * tau_years + 0.07 * reverting)
    np.testing.assert_allclose(forward_prices(parameters, FORWARD, strikes, tau_years).call, call, atol=1e-9 * FORWARD)


@pytest.mark.parametrize("sigma", [1e-8, 1e-6, 1e-5])
def test_vanishing_volatility_of_variance_is_continuous(sigma: float) -> None:
    u = np.linspace(0.0, 200.0, 400)
    at_zero = characteristic_function(replace(MARKET, volatility_of_variance=0.0), u, 0.3)
    near_zero = characteristic_function(replace(MARKET, volatility_of_variance=sigma), u, 0.3)
    np.testing.assert_allclose(near_zero, at_zero, atol=10 * sigma)


def test_pure_jumps_on_constant_volatility_are_mertons_sum() -> None:
    parameters = replace(MARKET, variance=0.04, long_run_variance=0.04, volatility_of_variance=0.0)
    tau_years, strikes = 0.5, np.linspace(1400.0, 2400.0, 21)
    expected = np.zeros_like(strikes)
    mean = parameters.jump_intensity_per_year * tau_years
    for jumps in range(30):
        drift = -mean * parameters.mean_jump_return + jumps * (-0.085 + 0.5 * 0.055**2)
        shifted = strikes * math.exp(-drift)
        call, _ = black76(shifted, 0.04 * tau_years + jumps * 0.055**2)
        expected += math.exp(-mean + drift) * mean**jumps / math.factorial(jumps) * call
    np.testing.assert_allclose(
        forward_prices(parameters, FORWARD, strikes, tau_years).call, expected, atol=1e-9 * FORWARD
    )


@pytest.mark.parametrize("tau_years", [1 / 365, 0.02, 0.1, 1.0])
@pytest.mark.parametrize("parameters", [CALM, MARKET, STORM], ids=["calm", "market", "storm"])
@pytest.mark.filterwarnings("ignore::scipy.integrate.IntegrationWarning")
def test_cos_equals_quadrature(parameters: BatesParameters, tau_years: float) -> None:
    strikes = strikes_around(parameters, tau_years, count=5)
    expected = [call_by_quadrature(parameters, float(strike), tau_years) for strike in strikes]
    np.testing.assert_allclose(
        forward_prices(parameters, FORWARD, strikes, tau_years).call, expected, atol=1e-9 * FORWARD
    )


class TestVix:
    def test_is_the_price_of_the_log_contract(self) -> None:
        """-2 E[z] / tau, from the slope of the characteristic function at zero."""
        h = 1e-4
        cf = characteristic_function(MARKET, np.array([-h, h]), VIX_TENOR_YEARS)
        mean = (cf[1] - cf[0]).imag / (2 * h)
        assert implied_vix(MARKET) ** 2 == pytest.approx(-2 * mean / VIX_TENOR_YEARS, rel=1e-6)

    def test_is_replicated_by_a_strip_of_options(self) -> None:
        """Cboe's definition: 2 / tau times the integral of out-of-the-money prices over strike squared."""
        strikes = np.linspace(600.0, 3600.0, 12_001)
        call, put = forward_prices(MARKET, FORWARD, strikes, VIX_TENOR_YEARS)
        strip = np.trapezoid(np.where(strikes < FORWARD, put, call) / strikes**2, strikes)
        assert implied_vix(MARKET) == pytest.approx(math.sqrt(2 / VIX_TENOR_YEARS * strip), abs=2e-6)

    @settings(deadline=None, max_examples=200)
    @given(
        vix=st.floats(0.08, 0.9),
        share=st.floats(0.0, 0.5),
        long_run=st.floats(0.001, 0.02),
        kappa=st.floats(0.5, 8.0),
    )
    def test_round_trip(self, vix: float, share: float, long_run: float, kappa: float) -> None:
        unit = jump_log_variance(replace(MARKET, jump_intensity_per_year=1.0))
        template = replace(
            MARKET,
            long_run_variance=min(long_run, vix**2 * (1 - share)),
            mean_reversion_per_year=kappa,
            jump_intensity_per_year=share * vix**2 / unit,
        )
        solved = with_vix(template, vix)
        assert solved.variance >= 0
        assert implied_vix(solved) == pytest.approx(vix, rel=1e-12)

    def test_rises_with_variance(self) -> None:
        values = [implied_vix(replace(MARKET, variance=v)) for v in (0.0, 0.01, 0.04, 0.2)]
        assert values == sorted(values)

    def test_refuses_what_no_variance_explains(self) -> None:
        with pytest.raises(ValueError, match="no variance state gives VIX"):
            with_vix(replace(MARKET, long_run_variance=0.2), 0.05)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"variance": -0.01}, "variance = -0.01 is negative"),
        ({"mean_reversion_per_year": 0.0}, "mean_reversion_per_year = 0.0"),
        ({"correlation": -1.5}, "correlation = -1.5"),
        ({"jump_mean_log": math.nan}, "jump_mean_log = nan"),
    ],
)
def test_refuses_bad_parameters(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(MARKET, **change)


def test_names_all_bad_parameters_at_once() -> None:
    with pytest.raises(ValueError, match=r"variance = -1\.0.*correlation = 2\.0"):
        replace(MARKET, variance=-1.0, correlation=2.0)


@pytest.mark.parametrize("case", [(0.0, 100.0, 0.1), (100.0, 0.0, 0.1), (100.0, 100.0, 0.0)])
def test_refuses_bad_contracts(case: tuple[float, float, float]) -> None:
    forward, strike, tau_years = case
    with pytest.raises(ValueError, match="must be positive"):
        forward_prices(MARKET, forward, np.array([strike]), tau_years)
