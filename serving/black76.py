"""Black-76: price, Greeks and implied volatility of European options on a forward.

In: arrays that broadcast together. Units: `forward`, `strike` in money; `tau` in years (calendar days / 365);
`volatility` a fraction per square root of a year; `discount` the discount factor to expiry; `right` +1 for a call,
-1 for a put. Out: float64; a new array for each output, or the caller's own (`value_into`).

The native core computes (serving/native/options/), there where it was built; NumPy elsewhere (serving/
black76_reference.py). Meaning, edge cases and statuses are the same; digits differ by rounding, below 1e-12 of the
forward, and the native ones are the better ones in the wings. `implementation()` says which runs;
STRIKEFORGE_BLACK76=numpy or native asks for one, for training that must repeat bit for bit on another machine.

Invariants: prices lie in [D max(w(F-K), 0), D F] for calls and [.., D K] for puts; zero time or zero volatility gives
the discounted intrinsic value; bad input (negative time or volatility, non-positive forward or strike, anything
infinite) gives NaN. An option's result doesn't depend on its place or its company.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from serving import black76_reference as reference
from serving import native
from serving.black76_reference import Valuation, VolatilityStatus
from serving.errors import EngineError
from serving.normal import Array

__all__ = [
    "OUTPUTS",
    "Valuation",
    "VolatilityStatus",
    "implementation",
    "implied_volatility",
    "price",
    "value",
    "value_into",
]

INPUTS = ("forward", "strike", "tau", "volatility", "discount", "right")
OUTPUTS = ("price", "delta", "gamma", "vega", "theta", "rho", "vanna", "volga")
CHOICE = "STRIKEFORGE_BLACK76"


@functools.cache
def _core() -> Any:
    """The native core's options, or None where NumPy runs; decided once a process. Raises EngineError."""
    asked = os.environ.get(CHOICE, "")
    if asked not in ("", "native", "numpy"):
        raise EngineError(f"{CHOICE}: there is no implementation {asked!r} of Black-76; there are native and numpy")
    if asked == "numpy" or (not asked and native.why_unavailable() is not None):
        return None
    try:
        return native.core().Options()
    except ValueError as error:
        raise EngineError(f"Black-76 in the native core: {error}") from error


def implementation() -> str:
    """What computes here: `numpy`, or `native_` and the instruction set."""
    core = _core()
    return "numpy" if core is None else f"native_{core.isa}"


def _flat(shape: tuple[int, ...], value: npt.NDArray[np.float64]) -> Array:
    """`value` in one dimension: one number that stands for all, or one for each place of `shape`."""
    if value.size != 1 and value.shape != shape:
        value = np.broadcast_to(value, shape)
    flat = np.ascontiguousarray(value).reshape(-1)
    return flat if flat.flags.aligned else flat.copy()


def _spread(*values: npt.ArrayLike) -> tuple[tuple[int, ...], int, list[Array]]:
    """Shape of the answer, its size, and the flat inputs."""
    arrays = [np.asarray(value, dtype=np.float64) for value in values]
    shape = np.broadcast_shapes(*(array.shape for array in arrays))
    return shape, int(np.prod(shape, dtype=np.int64)), [_flat(shape, array) for array in arrays]


def value(
    forward: npt.ArrayLike,
    strike: npt.ArrayLike,
    tau: npt.ArrayLike,
    volatility: npt.ArrayLike,
    discount: npt.ArrayLike,
    right: npt.ArrayLike,
) -> Valuation:
    """Price and all Greeks (see `Valuation` for units)."""
    core = _core()
    if core is None:
        return reference.value(forward, strike, tau, volatility, discount, right)
    shape, count, inputs = _spread(forward, strike, tau, volatility, discount, right)
    outputs = [np.empty(count) for _ in OUTPUTS]
    core.value(count, *inputs, *outputs)
    return Valuation(*(output.reshape(shape) for output in outputs))


def price(
    forward: npt.ArrayLike,
    strike: npt.ArrayLike,
    tau: npt.ArrayLike,
    volatility: npt.ArrayLike,
    discount: npt.ArrayLike,
    right: npt.ArrayLike,
) -> Array:
    """Price in money, discounted."""
    core = _core()
    if core is None:
        return reference.price(forward, strike, tau, volatility, discount, right)
    shape, count, inputs = _spread(forward, strike, tau, volatility, discount, right)
    output = np.empty(count)
    core.value(count, *inputs, output, *[None] * 7)
    return output.reshape(shape)


def value_into(
    forward: Array,
    strike: Array,
    tau: Array,
    volatility: Array,
    discount: Array,
    right: Array,
    *,
    price: Array | None = None,
    delta: Array | None = None,
    gamma: Array | None = None,
    vega: Array | None = None,
    theta: Array | None = None,
    rho: Array | None = None,
    vanna: Array | None = None,
    volga: Array | None = None,
) -> None:
    """Write what is wanted of price and Greeks into the caller's arrays: the hot path's form.

    All arrays are float64, contiguous, aligned, in one dimension; outputs of one length, inputs of that length or of
    one element that stands for all. An output may be an input's own array, but may not overlap one otherwise. Where the
    native core runs, no array is made. Raises ValueError, naming the array.
    """
    inputs = (forward, strike, tau, volatility, discount, right)
    outputs = (price, delta, gamma, vega, theta, rho, vanna, volga)
    count = next((array.size for array in outputs if isinstance(array, np.ndarray)), 0)
    core = _core()
    if core is None:
        _check(count, inputs, outputs)
        found = reference.value(*inputs)
        for name, array in zip(OUTPUTS, outputs, strict=True):
            if array is not None:
                array[:] = getattr(found, name)
        return
    try:
        core.value(count, *inputs, *outputs)
    except (TypeError, ValueError):  # the native core checks as much, in less time, but names less
        _check(count, inputs, outputs)
        raise
    if count == 0:
        _check(count, inputs, outputs)


def _check(count: int, inputs: Sequence[Array], outputs: Sequence[Array | None]) -> None:
    """Raise ValueError where `value_into` can't take these arrays."""
    if all(array is None for array in outputs):
        raise ValueError(f"value_into: no output is wanted; name at least one of {', '.join(OUTPUTS)}")
    named = [(name, one) for name, one in zip(INPUTS + OUTPUTS, (*inputs, *outputs), strict=True) if one is not None]
    for name, array in named:
        if not isinstance(array, np.ndarray):
            raise ValueError(f"value_into: {name}: expected a NumPy array, found {type(array).__name__}")
    for name, array in named:
        lengths = (1, count) if name in INPUTS else (count,)
        fine = array.dtype == np.float64 and array.ndim == 1 and array.flags.c_contiguous and array.size in lengths
        if not fine or not array.flags.aligned or (name in OUTPUTS and not array.flags.writeable):
            flags = [word for word, off in (("not contiguous", not array.flags.c_contiguous),
                                            ("not aligned", not array.flags.aligned),
                                            ("not writeable", not array.flags.writeable)) if off]  # fmt: skip
            raise ValueError(
                f"value_into: {name}: expected contiguous float64 of shape "
                f"{' or '.join(f'({length},)' for length in lengths)}, "
                f"found {', '.join([f'{array.dtype} {array.shape}', *flags])}"
            )


def implied_volatility(
    option_price: npt.ArrayLike,
    forward: npt.ArrayLike,
    strike: npt.ArrayLike,
    tau: npt.ArrayLike,
    discount: npt.ArrayLike,
    right: npt.ArrayLike,
) -> tuple[Array, npt.NDArray[np.int8]]:
    """Volatility that reprices `option_price` (money, discounted), and a `VolatilityStatus` for each.

    NaN where the status isn't OK. A price at the intrinsic value, to rounding, has no volatility: BELOW_INTRINSIC.
    """
    core = _core()
    if core is None:
        return reference.implied_volatility(option_price, forward, strike, tau, discount, right)
    shape, count, inputs = _spread(option_price, forward, strike, tau, discount, right)
    found, status = np.empty(count), np.empty(count, dtype=np.int8)
    core.implied_volatility(count, *inputs, found, status)
    return found.reshape(shape), status.reshape(shape)
