"""Raw SVI fitted to one smile: the usual parametric baseline of a surface completion.

In: log-moneyness k = ln(K/F) and total variance w of the visible quotes of one expiry. Out: w(k) anywhere. Invariants:
fitted to these quotes alone; |rho| < 1, sigma > 0, b >= 0, and the smallest variance isn't negative.
Source: J. Gatheral, "A parsimonious arbitrage-free implied volatility parameterization" (2004): w(k) = a + b (rho (k -
m) + sqrt((k - m)^2 + sigma^2)). For given m and sigma the rest is linear (Zeliade Systems, "Quasi-explicit
calibration", 2009): that is how it is started; least squares in volatility finishes it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import least_squares

from serving.normal import Array

FEWEST_QUOTES = 6  # five parameters, and one to say whether they mean anything
STARTS_M = (-0.4, 0.0, 0.4)  # of the range of k, from its middle
STARTS_SIGMA = (0.15, 0.5, 1.5)  # of the standard deviation of k
SMALLEST_SIGMA = 0.1  # of that too
RIDGE = 0.02  # of the smile's median volatility, per quote of FEWEST_QUOTES: pulls m, ln sigma and b, else few quotes
# fit wild wings; it fades as quotes are added, which then say it themselves
SMALLEST_VARIANCE = 1e-8


@dataclass(frozen=True)
class SVI:
    """Parameters of one smile."""

    a: float
    b: float
    rho: float
    m: float
    sigma: float

    def total_variance(self, k: Array) -> Array:
        """w(k)."""
        off = k - self.m
        w = self.a + self.b * (self.rho * off + np.sqrt(off**2 + self.sigma**2))
        return np.maximum(w, SMALLEST_VARIANCE)


def fit_svi(k: Array, w: Array) -> SVI | None:
    """The least-squares SVI in volatility, or None for fewer than FEWEST_QUOTES distinct k.

    m stays among the quotes and sigma away from zero, and a small ridge holds both and b: unbounded fits explode beyond
    the last visible quote.
    """
    if np.unique(k).size < FEWEST_QUOTES:
        return None
    deviation, middle, reach = max(float(k.std()), 1e-4), float(np.median(k)), float(np.ptp(k))
    starts = [_linear(k, w, middle + m * reach, sigma * deviation) for m in STARTS_M for sigma in STARTS_SIGMA]
    best = min(starts, key=lambda svi: float(np.sum((np.sqrt(svi.total_variance(k)) - np.sqrt(w)) ** 2)))
    floor = np.array([-np.inf, 0.0, -0.999, k.min(), SMALLEST_SIGMA * deviation])
    ceiling = np.array([np.inf, np.inf, 0.999, k.max(), 5.0 * deviation + 1.0])
    inside = 1e-6 * np.array([1.0, 1.0, 1.0, reach, deviation])
    start = np.clip([best.a, best.b, best.rho, best.m, best.sigma], floor + inside, ceiling - inside)
    target = np.sqrt(w)
    pull = RIDGE * np.sqrt(len(k)) * (FEWEST_QUOTES / len(k)) ** 2 * float(np.median(target))
    usual_b = float(np.median(w)) / deviation

    def miss(p: Array) -> Array:
        ridge = (pull * (p[3] - middle) / reach, pull * np.log(p[4] / deviation), 0.1 * pull * p[1] / usual_b)
        return np.concatenate([np.sqrt(SVI(*p).total_variance(k)) - target, ridge])

    done = least_squares(miss, start, bounds=(floor, ceiling), x_scale=np.maximum(np.abs(start), 1e-3), max_nfev=60)
    return SVI(*(float(value) for value in done.x))


def _linear(k: Array, w: Array, m: float, sigma: float) -> SVI:
    """Best a, b, rho for given m and sigma, clipped to what is allowed."""
    root = np.sqrt((k - m) ** 2 + sigma**2)
    a, slope, b = np.linalg.lstsq(np.stack([np.ones_like(k), k - m, root], axis=1), w, rcond=None)[0]
    b = max(float(b), 1e-6)
    return SVI(float(a), b, float(np.clip(slope / b, -0.99, 0.99)), m, sigma)
