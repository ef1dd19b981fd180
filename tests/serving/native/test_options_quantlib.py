"""The native core's options equal QuantLib's, an implementation by other people, where that is installed."""

from __future__ import annotations

import importlib
import importlib.util

import numpy as np
import pytest

from serving import native
from serving.black76 import VolatilityStatus
from tests.serving.native.test_options import ISAS, drawn, implied, valued

pytestmark = [
    pytest.mark.skipif(native.why_unavailable() is not None, reason=f"{native.why_unavailable()}"),
    pytest.mark.skipif(importlib.util.find_spec("QuantLib") is None, reason="QuantLib isn't installed (extra dev)"),
]


def options() -> np.ndarray:
    rng = np.random.default_rng(21)
    return drawn(22, rng.uniform(0.02, 1.5, 400), rng.uniform(-4, 4, 400))


@pytest.mark.parametrize("isa", ISAS)
def test_price_and_greeks(isa: str) -> None:
    """QuantLib's normal distribution is good to about 1e-15 absolutely, which s = 0.02 amplifies in the wings."""
    quantlib = importlib.import_module("QuantLib")
    columns = options()
    f, k, t, v, d, w = columns
    price, delta, gamma, vega, _, rho, _, _ = valued(isa, columns)
    for place in range(len(f)):
        right = quantlib.Option.Call if w[place] > 0 else quantlib.Option.Put
        payoff, deviation = quantlib.PlainVanillaPayoff(right, k[place]), float(v[place] * np.sqrt(t[place]))
        other = quantlib.BlackCalculator(payoff, f[place], deviation, d[place])
        assert price[place] == pytest.approx(other.value(), abs=1e-13 * max(f[place], k[place]))
        assert delta[place] == pytest.approx(other.deltaForward(), abs=1e-12)
        assert gamma[place] == pytest.approx(other.gammaForward(), rel=1e-12, abs=1e-12 / (f[place] * v[place]))
        assert vega[place] == pytest.approx(other.vega(t[place]), rel=1e-12, abs=1e-13 * f[place])
        assert rho[place] == pytest.approx(-t[place] * other.value(), abs=1e-13 * t[place] * max(f[place], k[place]))


@pytest.mark.parametrize("isa", ISAS)
def test_implied_volatility(isa: str) -> None:
    quantlib = importlib.import_module("QuantLib")
    columns = options()
    f, k, t, _, d, w = columns
    prices, vega = valued(isa, columns)[[0, 3]]
    found, status = implied(isa, prices.copy(), columns)
    clear = (vega > 1e-4 * f) & (status == VolatilityStatus.OK)
    assert clear.sum() > 200
    for place in np.flatnonzero(clear):
        right = quantlib.Option.Call if w[place] > 0 else quantlib.Option.Put
        deviation = quantlib.blackFormulaImpliedStdDevLiRS(
            right, k[place], f[place], prices[place], float(d[place]), 0.0, quantlib.nullDouble(), 1.0, 1e-12, 100
        )
        assert found[place] * np.sqrt(t[place]) == pytest.approx(deviation, abs=1e-9 * (1 + f[place] / vega[place]))
