"""SVI smiles: known ones are recovered, few noisy quotes fit nothing wild, and no variance is negative."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.svi import FEWEST_QUOTES, SMALLEST_VARIANCE, SVI, fit_svi
from serving.normal import Array

TAU = 0.25
INDEX = SVI(a=0.002, b=0.03, rho=-0.6, m=0.02, sigma=0.08)  # at the money 0.15 a year, a steep left wing
LEVEL = SVI(a=0.008, b=0.015, rho=0.2, m=-0.03, sigma=0.15)


def volatility(w: Array) -> Array:
    return np.sqrt(w / TAU)


@pytest.mark.parametrize("true", [INDEX, LEVEL])
@pytest.mark.parametrize(("quotes", "vol_points"), [(8, 0.1), (15, 0.02), (60, 0.001)])
def test_a_known_smile_is_recovered_from_its_quotes(true: SVI, quotes: int, vol_points: float) -> None:
    """What is left is the ridge, which fades as quotes are added."""
    k = np.linspace(-0.25, 0.2, quotes)
    fitted = fit_svi(k, true.total_variance(k))
    assert fitted is not None
    among = np.linspace(-0.25, 0.2, 91)
    np.testing.assert_allclose(volatility(fitted.total_variance(among)), volatility(true.total_variance(among)),
                               atol=vol_points / 100)  # fmt: skip


def test_total_variance_is_the_formula_and_its_slopes_are_those_of_the_wings() -> None:
    k = np.array([-0.1, 0.0, 0.3])
    wanted = [0.002 + 0.03 * (-0.6 * (x - 0.02) + ((x - 0.02) ** 2 + 0.08**2) ** 0.5) for x in k]
    np.testing.assert_allclose(INDEX.total_variance(k), wanted, rtol=1e-14)
    far = np.array([-200.0, -100.0, 100.0, 200.0])
    w = INDEX.total_variance(far)
    assert (w[1] - w[0]) / 100 == pytest.approx(-0.03 * 1.6, rel=1e-4)
    assert (w[3] - w[2]) / 100 == pytest.approx(0.03 * 0.4, rel=1e-4)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 100_000), quotes=st.integers(FEWEST_QUOTES, 10), noise=st.sampled_from([0.002, 0.005]))
def test_few_noisy_quotes_stay_sane_beyond_the_last(seed: int, quotes: int, noise: float) -> None:
    """Half a range beyond the quotes the volatility stays within a factor of three of those quoted."""
    generator = np.random.default_rng(seed)
    k = np.sort(generator.choice(np.linspace(-0.2, 0.15, 40), quotes, replace=False))
    quoted = volatility(INDEX.total_variance(k)) + noise * generator.standard_normal(quotes)
    fitted = fit_svi(k, quoted**2 * TAU)
    assert fitted is not None
    reach = np.ptp(k)
    found = volatility(fitted.total_variance(np.linspace(k[0] - 0.5 * reach, k[-1] + 0.5 * reach, 101)))
    assert found.max() <= 3.0 * quoted.max()
    assert found.min() >= quoted.min() / 3.0
    assert np.abs(volatility(fitted.total_variance(k)) - quoted).max() < 0.05


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 100_000), quotes=st.integers(FEWEST_QUOTES, 30))
def test_whatever_is_quoted_variances_are_positive_and_parameters_allowed(seed: int, quotes: int) -> None:
    generator = np.random.default_rng(seed)
    k = np.unique(np.round(generator.uniform(-0.6, 0.6, quotes), 3))
    fitted = fit_svi(k, generator.uniform(1e-4, 0.5, k.size))
    if k.size < FEWEST_QUOTES:
        assert fitted is None
        return
    assert fitted is not None
    assert (fitted.total_variance(np.linspace(-3, 3, 301)) >= SMALLEST_VARIANCE).all()
    assert fitted.b >= 0
    assert abs(fitted.rho) < 1
    assert fitted.sigma > 0
    assert k.min() <= fitted.m <= k.max()


def test_too_few_quotes_are_no_smile() -> None:
    k = np.linspace(-0.1, 0.1, FEWEST_QUOTES)
    w = INDEX.total_variance(k)
    assert fit_svi(k, w) is not None
    assert fit_svi(k[1:], w[1:]) is None
    assert fit_svi(np.r_[k[1:], k[1:]], np.r_[w[1:], w[1:]]) is None  # distinct ones count
