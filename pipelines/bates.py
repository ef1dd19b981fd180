"""Bates model: characteristic function, COS prices of European options, and its relation to the VIX.

Purpose: price the sample market. Under the forward measure, with z = ln(S_T / F_T):

    dS/S = (carry - lambda kbar) dt + sqrt(v) dW + (e^J - 1) dN,  J ~ Normal(mean, deviation^2)
    dv   = kappa (theta - v) dt + sigma sqrt(v) dB,               d<W, B> = rho dt,   kbar = E[e^J] - 1

Data in: `BatesParameters`, one forward, strikes, one tenor in years. Data out: undiscounted call and put
prices in the unit of the forward; the caller discounts. VIX is a decimal here (0.15, not 15).
Invariants: E[e^z] = 1; call - put = forward - strike exactly; prices lie within their no-arbitrage bounds;
at zero volatility of variance and zero jump intensity the model is Black-76; the VIX map and its inverse
are exact.
Sources: Heston (1993); Bates (1996); Albrecher, Mayer, Schoutens, Tistaert (2007), "The little Heston
trap"; Fang and Oosterlee (2008), "A novel pricing method for European options based on Fourier-cosine
series expansions"; Cboe VIX white paper (VIX^2 as the price of a log contract).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Complexes = NDArray[np.complex128]

VIX_TENOR_YEARS = 30.0 / 365.0
TRUNCATION_DEVIATIONS = 12.0  # half-width of the COS interval, in standard deviations enlarged by kurtosis
TRUNCATION_JUMP_DEVIATIONS = 7.0  # the interval always holds one jump of this many deviations
CHARACTERISTIC_FLOOR = 1e-11  # |characteristic function| at the last COS term
NON_NEGATIVE = (
    "variance", "long_run_variance", "volatility_of_variance",
    "jump_intensity_per_year", "jump_deviation_log",
)  # fmt: skip
TERMS_FIRST, TERMS_MAXIMUM = 64, 16_384


@dataclass(frozen=True, kw_only=True)
class BatesParameters:
    """One day's model. Variances are per year; jumps act on the logarithm of the price."""

    variance: float
    mean_reversion_per_year: float
    long_run_variance: float
    volatility_of_variance: float
    correlation: float
    jump_intensity_per_year: float = 0.0
    jump_mean_log: float = 0.0
    jump_deviation_log: float = 0.0

    def __post_init__(self) -> None:
        values = vars(self)
        problems = [f"{name} = {value!r} is not finite" for name, value in values.items() if not math.isfinite(value)]
        problems += [f"{name} = {values[name]!r} is negative" for name in NON_NEGATIVE if values[name] < 0]
        if self.mean_reversion_per_year <= 0:
            problems.append(f"mean_reversion_per_year = {self.mean_reversion_per_year!r} is not positive")
        if abs(self.correlation) > 1:
            problems.append(f"correlation = {self.correlation!r} is outside [-1, 1]")
        if problems:
            raise ValueError("; ".join(problems))

    @property
    def mean_jump_return(self) -> float:
        """E[e^J] - 1, the compensator of one jump."""
        return math.expm1(self.jump_mean_log + 0.5 * self.jump_deviation_log**2)


class ForwardPrices(NamedTuple):
    """Undiscounted prices, one per strike."""

    call: Floats
    put: Floats


def log_characteristic(parameters: BatesParameters, u: NDArray[Any], tau_years: float) -> Complexes:
    """ln E[exp(i u z)] of z = ln(S_T / F_T), for real or complex u.

    Written so that nothing cancels as the volatility of variance goes to zero: xi - d is replaced by
    (xi^2 - d^2) / (xi + d), and g is kept divided by sigma^2.
    """
    p = parameters
    u = np.asarray(u, dtype=np.complex128)
    kappa, sigma2 = p.mean_reversion_per_year, p.volatility_of_variance**2
    quadratic = u * u + 1j * u
    xi = kappa - 1j * p.correlation * p.volatility_of_variance * u
    d = np.sqrt(xi * xi + sigma2 * quadratic)
    slope = -quadratic / (xi + d)  # (xi - d) / sigma^2
    g_scaled = slope / (xi + d)  # g / sigma^2
    g = sigma2 * g_scaled
    decay = -np.expm1(-d * tau_years)
    inner = decay / (1.0 - g)
    log_ratio = _log1p(g * inner) / sigma2 if sigma2 > 0 else g_scaled * inner
    heston = kappa * p.long_run_variance * (slope * tau_years - 2.0 * log_ratio)
    heston += p.variance * slope * decay / (1.0 - g * (1.0 - decay))
    jump = np.expm1(1j * u * p.jump_mean_log - 0.5 * (p.jump_deviation_log * u) ** 2) - 1j * u * p.mean_jump_return
    result: Complexes = heston + p.jump_intensity_per_year * tau_years * jump
    return result


def _log1p(z: Complexes) -> Complexes:
    """ln(1 + z), exact for small |z| also in the real part (NumPy's complex log1p rounds 1 + z first)."""
    x, y = z.real, z.imag
    result: Complexes = 0.5 * np.log1p(x * (2.0 + x) + y * y) + 1j * np.arctan2(y, 1.0 + x)
    return result


def characteristic_function(parameters: BatesParameters, u: NDArray[Any], tau_years: float) -> Complexes:
    """E[exp(i u z)] of z = ln(S_T / F_T)."""
    result: Complexes = np.exp(log_characteristic(parameters, u, tau_years))
    return result


def truncation_interval(parameters: BatesParameters, tau_years: float) -> tuple[float, float]:
    """An interval [a, b] of z outside which the density doesn't matter (Fang and Oosterlee, eq. 49)."""
    h = 0.25
    arguments = -1j * h * np.array([-2.0, -1.0, 1.0, 2.0])
    k = log_characteristic(parameters, arguments, tau_years).real
    mean = (k[2] - k[1]) / (2 * h)
    second = (k[1] + k[2]) / h**2
    fourth = max(0.0, (k[0] + k[3] - 4 * (k[1] + k[2])) / h**4)
    half = TRUNCATION_DEVIATIONS * math.sqrt(second + math.sqrt(fourth))
    if parameters.jump_intensity_per_year > 0:
        reach = abs(parameters.jump_mean_log) + TRUNCATION_JUMP_DEVIATIONS * parameters.jump_deviation_log
        half = max(half, reach)
    if not math.isfinite(half) or half <= 0:
        raise ValueError(f"no truncation interval for {parameters} at tau_years = {tau_years!r}")
    return mean - half, mean + half


def forward_prices(
    parameters: BatesParameters, forward: float, strikes: NDArray[Any], tau_years: float
) -> ForwardPrices:
    """Undiscounted European calls and puts for all strikes of one expiry, by the COS method.

    The cosine series is that of the density of z, so it is computed once; only payoff coefficients depend
    on strike. Puts are summed (their payoff is bounded), calls follow from parity. The error is below 1e-9 of
    the forward for tenors from a day to years (held to quadrature in the tests).
    """
    strikes = np.asarray(strikes, dtype=np.float64)
    if not (forward > 0 and tau_years > 0 and np.all(strikes > 0)):
        raise ValueError(f"forward = {forward!r}, tau_years = {tau_years!r} and all strikes must be positive")
    a, b = truncation_interval(parameters, tau_years)
    u, cf = _series_terms(parameters, tau_years, b - a)
    weights = (cf * np.exp(-1j * u * a)).real * (2.0 / (b - a))
    weights[0] *= 0.5
    k = np.clip(np.log(strikes / forward), a, b)
    angle = np.outer(k - a, u)
    sine, cosine = np.sin(angle), np.cos(angle)
    with np.errstate(invalid="ignore"):
        flat = sine / u  # integral of cos(u (z - a)) from a to k
    flat[:, 0] = k - a
    exponential = (np.exp(k)[:, None] * (cosine + u * sine) - math.exp(a)) / (1.0 + u * u)  # same, times e^z
    put = forward * ((np.exp(k)[:, None] * flat - exponential) @ weights)
    put += np.where(np.log(strikes / forward) > b, strikes - forward * math.exp(b), 0.0)
    put = np.clip(put, np.maximum(strikes - forward, 0.0), strikes)
    return ForwardPrices(call=put + (forward - strikes), put=put)


def _series_terms(parameters: BatesParameters, tau_years: float, width: float) -> tuple[Floats, Complexes]:
    """Frequencies and characteristic function, as many terms as its decay asks for."""
    terms = TERMS_FIRST
    while terms < TERMS_MAXIMUM:
        last = characteristic_function(parameters, np.array([(terms - 1) * math.pi / width]), tau_years)
        if abs(last[0]) < CHARACTERISTIC_FLOOR:
            break
        terms = int(terms * 1.5)
    u: Floats = np.arange(terms, dtype=np.float64) * (math.pi / width)
    return u, characteristic_function(parameters, u, tau_years)


def _mean_reversion_weight(mean_reversion_per_year: float, tau_years: float) -> float:
    """Weight of today's variance in the average expected variance over the tenor."""
    x = mean_reversion_per_year * tau_years
    return -math.expm1(-x) / x


def jump_log_variance(parameters: BatesParameters) -> float:
    """Jump part of VIX^2 (per year): 2 lambda (E[e^J] - 1 - E[J])."""
    p = parameters
    return 2.0 * p.jump_intensity_per_year * (p.mean_jump_return - p.jump_mean_log)


def log_contract_variance(parameters: BatesParameters, tau_years: float) -> float:
    """-(2 / tau) E[ln(S_T / F_T)]: the variance per year that a continuum of options prices."""
    p = parameters
    weight = _mean_reversion_weight(p.mean_reversion_per_year, tau_years)
    return p.long_run_variance + (p.variance - p.long_run_variance) * weight + jump_log_variance(p)


def implied_vix(parameters: BatesParameters) -> float:
    """Model VIX as a decimal."""
    return math.sqrt(log_contract_variance(parameters, VIX_TENOR_YEARS))


def with_vix(parameters: BatesParameters, vix: float) -> BatesParameters:
    """The same model with the variance state that makes `implied_vix` equal to `vix` (a decimal)."""
    weight = _mean_reversion_weight(parameters.mean_reversion_per_year, VIX_TENOR_YEARS)
    diffusive = vix**2 - jump_log_variance(parameters)
    variance = parameters.long_run_variance + (diffusive - parameters.long_run_variance) / weight
    if variance < 0:
        raise ValueError(f"no variance state gives VIX {vix!r}: it would be {variance!r}; {parameters}")
    return replace(parameters, variance=variance)
