"""Reprice a whole chain when the underlying moves: open step -> context -> every volatility -> price and Greeks.

Data in: an engine whose closed steps were advanced, a `Chain` prepared once, the open step `x` [F] of each tick.
Data out: a `Repriced` that the caller keeps; each call overwrites all of it. N contracts, K features.

The native engine does everything in one call, in batches that stay in the cache (serving/native/head/repricing.hpp);
any other engine answers through `evaluate` and `head`, and serving.black76 prices: that is the reference. In bf16 or
int8 a native engine prices in single precision from AVX-512 on, within 1e-6 of the forward (docs/options.md).

What moves with the underlying is the caller's business: `Chain` is frozen but its arrays are not, and what depends on
the tick (forwards, features of moneyness) is written into them in place between calls, e.g. `chain.forward[:] = carry
* spot`. Nothing is copied or checked again, and nothing is allocated by the native core.

Invariants: Greeks are Black-76's own, derivatives in the *forward* (spot delta at constant carry is F/S times delta,
spot gamma (F/S)^2 times gamma, as serving/pricing.py reports them); vega per 1.00 of volatility, theta per year. A
contract whose volatility isn't a positive number, or whose arguments Black-76 refuses, has NaN for a price and Greeks;
its neighbours don't notice.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from serving import black76
from serving.engine import Engine, Floats, check_array
from serving.errors import EngineError
from serving.normal import Array

VALUES = ("price", "delta", "gamma", "vega", "theta")  # rows of Repriced.values


@dataclass(frozen=True)
class Chain:
    """Contracts as the head and Black-76 take them; C-contiguous arrays, see `prepare`.

    `contracts` are scaled features; `forward` and `strike` money, `tau_years` years, `discount` the discount factor,
    `right` +1 for a call and -1 for a put.
    """

    contracts: Floats  # [N, K]
    forward: Array  # [N], as all below
    strike: Array
    tau_years: Array
    discount: Array
    right: Array

    def __post_init__(self) -> None:
        count = len(self.contracts) if isinstance(self.contracts, np.ndarray) and self.contracts.ndim else 0
        for item in fields(self):
            array = getattr(self, item.name)
            features = item.name == "contracts"
            dtype = np.dtype(np.float32 if features else np.float64)
            expected = f"{dtype} {'(N, K)' if features else (count,)}, C-contiguous and aligned"
            if not isinstance(array, np.ndarray):
                raise EngineError(f"chain: {item.name!r}: expected {expected}, found {type(array).__name__}")
            fits = array.ndim == 2 if features else array.shape == (count,)
            if array.dtype != dtype or not fits or not array.flags.carray:
                layout = "" if array.flags.carray else ", not a C-contiguous array to write into"
                raise EngineError(
                    f"chain: {item.name!r}: expected {expected}, found {array.dtype} {array.shape}{layout}: "
                    "serving.repricing.prepare makes such arrays"
                )

    def __len__(self) -> int:
        return len(self.contracts)

    @classmethod
    def prepare(
        cls, contracts: npt.ArrayLike, forward: npt.ArrayLike, strike: npt.ArrayLike, tau_years: npt.ArrayLike,
        discount: npt.ArrayLike, right: npt.ArrayLike,
    ) -> Chain:  # fmt: skip
        """A chain of its own arrays; single numbers count for all contracts. Done once, so it may copy."""
        features = np.array(contracts, dtype=np.float32, order="C", ndmin=2)
        columns = []
        for name, values in zip(
            ("forward", "strike", "tau_years", "discount", "right"),
            (forward, strike, tau_years, discount, right),
            strict=True,
        ):
            given = np.asarray(values, dtype=np.float64)
            if given.shape not in ((), (len(features),)):
                raise EngineError(
                    f"chain: {name!r}: expected one number or {(len(features),)}, as many as rows of 'contracts', "
                    f"found {given.shape}"
                )
            columns.append(np.array(np.broadcast_to(given, (len(features),)), order="C"))
        return cls(features, *columns)


@dataclass(frozen=True)
class Repriced:
    """Answers for N contracts in memory that is made once; `price` ... `theta` are rows of `values`."""

    volatility: Floats  # [N], fractions
    values: Array  # [5, N] in the order of VALUES
    price: Array = field(init=False)  # money
    delta: Array = field(init=False)  # in the forward, discounted
    gamma: Array = field(init=False)
    vega: Array = field(init=False)  # money per 1.00 of volatility
    theta: Array = field(init=False)  # money per year

    def __post_init__(self) -> None:
        check_array("volatility", self.volatility, (len(self.volatility),), written=True)
        expected = (len(VALUES), len(self.volatility))
        if self.values.dtype != np.float64 or self.values.shape != expected:
            raise EngineError(
                f"tensor 'values': expected float64 {expected}, found {self.values.dtype} {self.values.shape}"
            )
        for name, array in (("volatility", self.volatility), ("values", self.values)):
            if not array.flags.carray:
                raise EngineError(f"tensor {name!r}: expected a C-contiguous array to write into: use Repriced.empty")
        for name, row in zip(VALUES, self.values, strict=True):
            object.__setattr__(self, name, row)

    @classmethod
    def empty(cls, count: int) -> Repriced:
        """Memory for `count` contracts; NaN until repriced."""
        return cls(np.full(count, np.nan, np.float32), np.full((len(VALUES), count), np.nan))


class Fused(Protocol):
    """A chain and an engine in one native object (`_core.Repricing`)."""

    def run(self, x: Floats, volatility: Floats, values: Array, /) -> None:
        """Evaluate the open step `x` and fill volatilities [N] and values [5, N]."""


@runtime_checkable
class FusesRepricing(Protocol):
    """What an engine has that reprices in one call."""

    def fuse(
        self, contracts: Floats, forward: Array, strike: Array, tau_years: Array, discount: Array, right: Array
    ) -> Fused:
        """Arrays by reference: what is written into them later is what is priced."""


class Repricer:
    """One chain under one engine. Not thread-safe, like the engine; several may share an engine."""

    def __init__(self, engine: Engine, chain: Chain) -> None:
        info = engine.info()
        if chain.contracts.shape[1] != info.contract_features:
            raise EngineError(
                f"chain: 'contracts': expected {info.contract_features} features of a contract, as bundle "
                f"{info.bundle_sha256} takes, found {chain.contracts.shape[1]}"
            )
        self.chain = chain
        self._x_shape = (info.step_features,)
        arrays = (chain.contracts, chain.forward, chain.strike, chain.tau_years, chain.discount, chain.right)
        self._fused = engine.fuse(*arrays) if isinstance(engine, FusesRepricing) else _InTurn(engine, chain)

    def reprice(self, x: Floats, out: Repriced) -> None:
        """The chain as if the open step were `x` [F]; commits nothing."""
        check_array("x", x, self._x_shape)
        if len(out.volatility) != len(self.chain):
            raise EngineError(f"out: expected {len(self.chain)} contracts, found {len(out.volatility)}")
        self._fused.run(x, out.volatility, out.values)


class _InTurn:
    """Any engine: context, head, Black-76 in NumPy, one after the other."""

    def __init__(self, engine: Engine, chain: Chain) -> None:
        self._engine, self._chain = engine, chain
        self._context = np.zeros(engine.info().context_size, np.float32)

    def run(self, x: Floats, volatility: Floats, values: Array, /) -> None:
        self._engine.evaluate(x, self._context)
        self._engine.head(self._context, self._chain.contracts, volatility)
        chain = self._chain
        sound = np.where(np.isfinite(volatility) & (volatility > 0), volatility.astype(np.float64), np.nan)
        worth = black76.value(chain.forward, chain.strike, chain.tau_years, sound, chain.discount, chain.right)
        for name, row in zip(VALUES, values, strict=True):
            row[:] = getattr(worth, name)
