"""The numbers in the native options code are those of the script that says where they come from."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import mpmath

FOLDER = Path(__file__).parents[3] / "serving" / "native" / "options"


def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("coefficients", FOLDER / "coefficients.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_header_is_what_the_script_writes() -> None:
    assert (FOLDER / "coefficients.hpp").read_text() == script().header()


def test_fits_are_closer_than_a_quarter_of_a_unit_in_the_last_place() -> None:
    """Between the nodes, as polynomials with exact arithmetic, weighed as the kernels use them."""
    module = script()
    with mpmath.workdps(60):
        tables = module.tables()
        quarter = mpmath.mpf(2) ** -54
        for place in range(201):
            share = mpmath.mpf(place) / 200
            z = module.FARTHEST * share**2
            t = (z - module.CENTRE) / (z + module.CENTRE)
            fitted = mpmath.polyval(tables["mills"][::-1], t) / (z + module.CENTRE)
            assert abs(fitted / module.mills(z) - 1) <= quarter
            f = (3 - 2 * mpmath.sqrt(2)) * share
            twice = 2 * f + f**3 * mpmath.polyval(tables["atanh"][::-1], f * f)
            assert abs(twice - 2 * mpmath.atanh(f)) <= quarter * twice
            r = mpmath.log(2) * (share - mpmath.mpf(1) / 2)
            assert abs(1 + r + r * r * mpmath.polyval(tables["exp"][::-1], r) - mpmath.exp(r)) <= quarter * mpmath.exp(
                r
            )


def test_single_precision_fits_are_closer_than_half_a_rounding() -> None:
    """With the coefficients as rounded, each of which may add as much again."""
    module = script()
    with mpmath.workdps(40):
        mills, atanh, exp2 = (module.single_tables()[f"single_{name}"][::-1] for name in ("mills", "atanh", "exp2"))
        half = mpmath.mpf(2) ** -25
        for place in range(201):
            share = mpmath.mpf(place) / 200
            z = module.SINGLE_FARTHEST * share
            t = (z - module.SINGLE_CENTRE) / (z + module.SINGLE_CENTRE)
            sizes = sum(abs(number) * abs(t) ** power for power, number in enumerate(mills[::-1]))
            error = mpmath.polyval(mills, t) - (z + module.SINGLE_CENTRE) * module.mills(z)
            assert abs(error) <= half * ((z + module.SINGLE_CENTRE) * module.mills(z) + sizes)
            f = share / 5
            assert abs(2 * f + f**3 * mpmath.polyval(atanh, f * f) - 2 * mpmath.atanh(f)) <= half * 2 * f
            r = share - mpmath.mpf(1) / 2
            assert abs(1 + r * mpmath.polyval(exp2, r) - mpmath.power(2, r)) <= 2 * half * mpmath.power(2, r)
