"""The normal distribution holds its stated relative errors against mpmath at 50 digits, its symmetry and its shapes."""

from __future__ import annotations

import warnings

import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.normal import cdf, density

EPSILON = float(np.finfo(np.float64).eps)
DOCUMENTED_TAIL_ERROR = 2e-13  # relative, down to x = -37
BRANCH_POINTS = np.sqrt(2.0) * np.array([0.46875, 4.0])


def points() -> np.ndarray:
    """[-37, 8]: a fine grid, random points, both sides of each branch of the approximation, tiny arguments."""
    near = [np.nextafter(x, side) for x in (*BRANCH_POINTS, *-BRANCH_POINTS) for side in (-np.inf, x, np.inf)]
    tiny = [sign * 10.0**power for sign in (-1, 1) for power in (-300, -17, -9, -3)]
    drawn = np.random.default_rng(0).uniform(-37.0, 8.0, 1500)
    return np.concatenate([np.linspace(-37.0, 8.0, 1001), drawn, near, tiny, [0.0]])


def relative_errors(values: np.ndarray, x: np.ndarray, exact: object) -> np.ndarray:
    with mpmath.workdps(50):
        wanted = [exact(mpmath.mpf(float(one))) for one in x]  # type: ignore[operator]
        return np.array([abs(float(mpmath.mpf(float(v)) / w - 1)) for v, w in zip(values, wanted, strict=True)])


def test_cdf_has_its_stated_relative_error() -> None:
    """x^2 eps is what rounding the argument alone costs; the rational functions may add a few eps."""
    x = points()
    errors = relative_errors(cdf(x), x, mpmath.ncdf)
    assert (errors <= (4.0 + x**2) * EPSILON).all()
    assert errors.max() < DOCUMENTED_TAIL_ERROR
    assert errors[x > -1.0].max() < 1e-15


def test_density_has_the_error_of_its_rounded_exponent() -> None:
    x = points()
    errors = relative_errors(density(x), x, mpmath.npdf)
    assert (errors <= (2.0 + x**2) * EPSILON).all()


def test_cdf_is_the_integral_of_the_density() -> None:
    """Gauss-Legendre over short pieces: the two functions share no code."""
    nodes, weights = np.polynomial.legendre.leggauss(20)
    edges = np.linspace(-20.0, 8.0, 57)
    half = 0.5 * np.diff(edges)
    inside = (0.5 * (edges[1:] + edges[:-1]))[:, None] + half[:, None] * nodes
    pieces = (density(inside) * weights).sum(axis=1) * half
    assert np.allclose(cdf(edges[-1]) - cdf(edges[0]), pieces.sum(), rtol=1e-14)
    assert np.allclose(np.diff(cdf(edges)), pieces, rtol=1e-12, atol=2 * EPSILON)


@settings(deadline=None, max_examples=200)
@given(st.floats(-50.0, 50.0), st.floats(0.0, 5.0))
def test_symmetric_and_rising(x: float, further: float) -> None:
    assert float(cdf(x) + cdf(-x)) == pytest.approx(1.0, abs=EPSILON)
    assert density(x) == density(-x)
    # where the true increase is below the error of two roundings, a step down of that size is no fault
    assert cdf(x + further) >= cdf(x) * (1.0 - 2.0 * (4.0 + x * x) * EPSILON)


def test_no_jump_at_the_branches() -> None:
    """Neighbouring floats on the two sides of a branch differ by rounding only."""
    for point in (*BRANCH_POINTS, *-BRANCH_POINTS):
        left, right = cdf(np.array([np.nextafter(point, -np.inf), np.nextafter(point, np.inf)]))
        assert abs(left / right - 1.0) < 2.0 * (4.0 + point**2) * EPSILON


def test_limits() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.array_equal(
            cdf([np.nan, np.inf, -np.inf, 1e308, -1e308, -60.0]), [np.nan, 1, 0, 1, 0, 0], equal_nan=True
        )
        assert np.array_equal(density([np.nan, np.inf, -np.inf, 1e200]), [np.nan, 0, 0, 0], equal_nan=True)
    assert cdf(0.0) == 0.5
    assert density(0.0) == pytest.approx(1.0 / np.sqrt(2.0 * np.pi), rel=EPSILON)


@pytest.mark.parametrize("function", [cdf, density])
@pytest.mark.parametrize("shape", [(), (1,), (0,), (3, 4), (2, 0, 3)])
def test_shape_is_kept_and_the_input_left_alone(function: object, shape: tuple[int, ...]) -> None:
    x = np.random.default_rng(1).normal(0, 4, shape)
    before = np.array(x)
    result = function(x)  # type: ignore[operator]
    assert isinstance(result, np.ndarray)
    assert (result.shape, result.dtype) == (shape, np.float64)
    assert np.array_equal(x, before)
    assert np.array_equal(result.ravel(), [float(function(float(one))) for one in np.ravel(x)])  # type: ignore[operator]


def test_integers_and_lists_are_taken() -> None:
    assert np.array_equal(cdf([-1, 0, 1]), cdf(np.array([-1.0, 0.0, 1.0])))
    assert density(np.array([2], dtype=np.int64)).dtype == np.float64
