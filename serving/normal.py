"""The normal distribution in NumPy, to the last bits of float64, without SciPy (a host doesn't carry it).

In: float64 arrays. Out: float64 arrays of the same shape. `cdf` follows W. J. Cody, "Rational Chebyshev approximations
for the error function", Math. Comp. 23 (1969), the three intervals of his CALERF. Relative error: about 1e-15 near the
middle, growing with x^2 in the left tail (the argument's own rounding), below 2e-13 down to x = -37.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

_SQRT_HALF = float(np.sqrt(0.5))
_INVERSE_SQRT_2PI = float(1.0 / np.sqrt(2.0 * np.pi))
_INVERSE_SQRT_PI = float(1.0 / np.sqrt(np.pi))

# Highest power first. erf(y) = y P(y^2)/Q(y^2) for y <= 0.46875.
_ERF_TOP = (1.85777706184603153e-1, 3.16112374387056560, 1.13864154151050156e2, 3.77485237685302021e2,
            3.20937758913846947e3)  # fmt: skip
_ERF_BOTTOM = (
    1.0,
    2.36012909523441209e1,
    2.44024637934444173e2,
    1.28261652607737228e3,
    2.84423683343917062e3,
)
# exp(y^2) erfc(y) = P(y)/Q(y) for 0.46875 < y <= 4.
_MIDDLE_TOP = (2.15311535474403846e-8, 5.64188496988670089e-1, 8.88314979438837594, 6.61191906371416295e1,
               2.98635138197400131e2, 8.81952221241769090e2, 1.71204761263407058e3, 2.05107837782607147e3,
               1.23033935479799725e3)  # fmt: skip
_MIDDLE_BOTTOM = (1.0, 1.57449261107098347e1, 1.17693950891312499e2, 5.37181101862009858e2, 1.62138957456669019e3,
                  3.29079923573345963e3, 4.36261909014324716e3, 3.43936767414372164e3,
                  1.23033935480374942e3)  # fmt: skip
# exp(y^2) erfc(y) = (1/sqrt(pi) - z P(z)/Q(z)) / y with z = 1/y^2 for y > 4.
_TAIL_TOP = (1.63153871373020978e-2, 3.05326634961232344e-1, 3.60344899949804439e-1, 1.25781726111229246e-1,
             1.60837851487422766e-2, 6.58749161529837803e-4)  # fmt: skip
_TAIL_BOTTOM = (1.0, 2.56852019228982242, 1.87295284992346725, 5.27905102951428412e-1, 6.05183413124413191e-2,
                2.33520497626869185e-3)  # fmt: skip


def _polynomial(coefficients: tuple[float, ...], x: Array) -> Array:
    total = np.full_like(x, coefficients[0])
    for coefficient in coefficients[1:]:
        total *= x
        total += coefficient
    return total


def _erfc_positive(y: Array) -> Array:
    """erfc(y) for y >= 0."""
    out = np.empty_like(y)
    small = y <= 0.46875
    large = y > 4.0
    middle = ~(small | large)
    out[np.isnan(y)] = np.nan
    if small.any():
        s = y[small]
        z = s * s
        out[small] = 1.0 - s * _polynomial(_ERF_TOP, z) / _polynomial(_ERF_BOTTOM, z)
    if middle.any():
        m = y[middle]
        out[middle] = _exp_minus_square(m) * _polynomial(_MIDDLE_TOP, m) / _polynomial(_MIDDLE_BOTTOM, m)
    if large.any():
        t = y[large]
        with np.errstate(over="ignore"):
            z = 1.0 / (t * t)
        scaled = (_INVERSE_SQRT_PI - z * _polynomial(_TAIL_TOP, z) / _polynomial(_TAIL_BOTTOM, z)) / t
        out[large] = _exp_minus_square(np.minimum(t, 30.0)) * scaled
    return out


def _exp_minus_square(y: Array) -> Array:
    """exp(-y^2) with y split into a short and a small part, so that the square's rounding doesn't grow (Cody)."""
    short = np.trunc(y * 16.0) / 16.0
    rest: Array = np.exp(-short * short) * np.exp(-(y - short) * (y + short))
    return rest


def cdf(x: npt.ArrayLike) -> Array:
    """Standard normal distribution function of `x` (any shape, float64)."""
    values = np.asarray(x, dtype=np.float64)
    flat = np.atleast_1d(values)
    upper = 0.5 * _erfc_positive(np.abs(flat) * _SQRT_HALF)
    return np.where(flat < 0.0, upper, 1.0 - upper).reshape(values.shape)


def density(x: npt.ArrayLike) -> Array:
    """Standard normal density of `x` (any shape, float64)."""
    values = np.asarray(x, dtype=np.float64)
    with np.errstate(over="ignore"):
        return np.asarray(_INVERSE_SQRT_2PI * np.exp(-0.5 * values * values))
