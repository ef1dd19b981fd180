"""Where every number of `coefficients.hpp` comes from: fits by mpmath with 60 digits, printed as exact hexadecimals.

Run: python serving/native/options/coefficients.py > serving/native/options/coefficients.hpp (mpmath is a development
dependency; tests/serving/native/test_options_coefficients.py holds the file to this script).

Each fit interpolates at the zeros of a Chebyshev polynomial, within a factor of about two of the best there is, with
as many terms as leave its error below a quarter of a unit in the last place:

- `mills`: (z + 5) M(z), with M(z) = Phi(-z) / phi(z) Mills' ratio, as a polynomial in t = (z - 5) / (z + 5), for z in
  [0, 42] (beyond it phi underflows). The transformation is that of M. M. Shepherd and J. G. Laframboise, "Chebyshev
  approximation of (1 + 2x) exp(x^2) erfc(x) in 0 <= x < infinity", Math. Comp. 36 (1981); with the weight z + 5 a
  single division gives both t and M.
- `atanh`: (atanh(f) / f - 1) / f^2 times 2, as a polynomial in f^2, for |f| <= 3 - 2 sqrt(2) (a ratio in
  [sqrt(1/2), sqrt(2)]).
- `exp`: (exp(r) - 1 - r) / r^2 as a polynomial in r, for |r| <= ln(2) / 2.

Those of single_avx512.cpp, rounded to floats; terms for an error below 2^-25, half of a float's rounding:

- `single_mills`: as `mills`, with the centre 4, for z in [0, 12] (further out is the double kernel's).
- `single_atanh`: as `atanh`, for |f| <= 1/5 (a ratio in [3/4, 3/2]).
- `single_exp2`: (2^r - 1) / r as a polynomial in r, for |r| <= 1/2.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Callable
from typing import Any

import mpmath as mp  # type: ignore[import-untyped]

CENTRE = 5
FARTHEST = 42
SINGLE_CENTRE = 4
SINGLE_FARTHEST = 12


def mills(z: Any) -> Any:
    return mp.sqrt(mp.pi / 2) * mp.erfc(z / mp.sqrt(2)) * mp.exp(z * z / 2)


def fit(function: Callable[[Any], Any], low: Any, high: Any, count: int) -> list[Any]:
    """The polynomial of `count` terms, lowest power first, through the Chebyshev nodes of [low, high]."""
    middle, half = (high + low) / 2, (high - low) / 2
    nodes = [middle + half * mp.cos(mp.pi * (2 * k + 1) / (2 * count)) for k in range(count)]
    matrix = mp.matrix(count, count)
    for row, node in enumerate(nodes):
        for column in range(count):
            matrix[row, column] = node**column
    return list(mp.lu_solve(matrix, mp.matrix([function(node) for node in nodes])))


def fit_mills(centre: int, farthest: int, count: int) -> list[Any]:
    def scaled(t: Any) -> Any:
        z = centre * (1 + t) / (1 - t)
        return (z + centre) * mills(z)

    return fit(scaled, mp.mpf(-1), mp.mpf(farthest - centre) / (farthest + centre), count)


def atanh_rest(square: Any) -> Any:
    f = mp.sqrt(square)
    return 2 * (mp.atanh(f) / f - 1) / square


def exp_rest(r: Any) -> Any:
    return mp.hyp1f1(1, 3, r) / 2


def power_rest(r: Any) -> Any:
    return mp.expm1(r * mp.log(2)) / r if r else mp.log(2)


def tables() -> dict[str, list[Any]]:
    """Every table by name, lowest power first."""
    half = mp.log(2) / 2
    return {
        "mills": fit_mills(CENTRE, FARTHEST, 22),
        "atanh": fit(atanh_rest, mp.mpf(0), (3 - 2 * mp.sqrt(2)) ** 2, 8),
        "exp": fit(exp_rest, -half, half, 11),
    }


def single_tables() -> dict[str, list[float]]:
    """The same in single precision, as rounded."""
    fits = {
        "single_mills": fit_mills(SINGLE_CENTRE, SINGLE_FARTHEST, 10),
        "single_atanh": fit(atanh_rest, mp.mpf(0), mp.mpf(1) / 25, 3),
        "single_exp2": fit(power_rest, -mp.mpf(1) / 2, mp.mpf(1) / 2, 6),
    }
    return {name: [single(number) for number in numbers] for name, numbers in fits.items()}


def single(number: Any) -> float:
    """The nearest float of 32 bits."""
    rounded: float = struct.unpack("f", struct.pack("f", float(number)))[0]
    return rounded


def constants() -> dict[str, Any]:
    # 41 bits: times an exponent of up to 12 bits it is exact without a fused multiply-add.
    high = mp.floor(mp.log(2) * 2**41) / 2**41
    return {
        "ln2_high": high,
        "ln2_low": mp.log(2) - high,
        "inverse_ln2": 1 / mp.log(2),
        "sqrt2": mp.sqrt(2),
        "inverse_sqrt_2pi": 1 / mp.sqrt(2 * mp.pi),
    }


def header() -> str:
    with mp.workdps(60):
        lines = [
            "// Written by coefficients.py, which says where each number comes from. Lowest power first.",
            "// clang-format off",
            "#pragma once",
            "",
            "namespace strikeforge::coefficients {",
            "",
            f"constexpr double mills_centre = {CENTRE}.0;",
            f"constexpr float single_mills_centre = {SINGLE_CENTRE}.0f;",
            f"constexpr float single_mills_farthest = {SINGLE_FARTHEST}.0f;",
        ]
        lines += [f"constexpr double {name} = {float(number).hex()};" for name, number in constants().items()]
        for name, numbers in tables().items():
            cells = ",\n    ".join(float(number).hex() for number in numbers)
            lines += ["", f"constexpr double {name}[{len(numbers)}] = {{\n    {cells},\n}};"]
        for name, numbers in single_tables().items():
            cells = ",\n    ".join(f"{number.hex()}f" for number in numbers)
            lines += ["", f"constexpr float {name}[{len(numbers)}] = {{\n    {cells},\n}};"]
        return "\n".join([*lines, "", "}  // namespace strikeforge::coefficients", "// clang-format on", ""])


if __name__ == "__main__":
    sys.stdout.write(header())
