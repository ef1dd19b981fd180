"""The slow reference of scaling and of the quoted contracts' values: docs/host-rules.md, "Scaling" and "Contracts".

Data in: rows in doubles, a spot, the engine's context. Data out: float32 inputs of the net, and values in doubles.
Volatilities (the engine's head, all quoted contracts as one batch) and Black-76 are the product's own kernels, of the
engine's instruction set; all else is written out here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from serving.engine import Engine
from serving.host.reference.states import ContractState

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Scaling:
    """Of the known columns; `unscaled` ones go into the net as they are."""

    mean: Sequence[float]
    deviation: Sequence[float]
    clip: float
    unscaled: Sequence[bool]


@dataclass(frozen=True)
class Quoted:
    """One contract as the table holds it; `forward = carry * spot`, `right` +1 for a call and -1 for a put."""

    strike: float
    tau_years: float
    carry: float
    discount: float
    right: float
    last_volatility: float


def net_input(row: Sequence[float], scaling: Scaling, columns: int) -> tuple[Floats, float]:
    """`row` scaled and padded to `columns`, and its clipped share."""
    out = np.zeros(columns, np.float32)
    clipped = 0
    for place, value in enumerate(row):
        if scaling.unscaled[place]:
            out[place] = value
            continue
        plain = (value - scaling.mean[place]) / scaling.deviation[place]
        out[place] = min(max(plain, -scaling.clip), scaling.clip)
        clipped += abs(plain) >= scaling.clip
    return out, clipped / len(row)


def features(contract: Quoted, spot: float, reference_spot: float) -> list[float]:
    """The eight known columns, unscaled."""
    forward = contract.carry * spot
    root = math.sqrt(contract.tau_years)
    moneyness = min(max(math.log(contract.strike / forward) / root, -1.0), 1.0)
    move = math.log(spot / reference_spot) / root
    return [
        contract.last_volatility, root, 1.0, moneyness, moneyness * moneyness, move, move * moneyness, contract.right,
    ]  # fmt: skip


def value(
    engine: Engine, options: Any, context: Floats, quoted: Sequence[Quoted], scaling: Scaling, columns: int,
    spot: float, reference_spot: float, contracts: Sequence[ContractState],
) -> None:  # fmt: skip
    """Fair values and Greeks of `contracts` under `spot`; NaN where there is no volatility. `options`: core.Options."""
    rows = [net_input(features(one, spot, reference_spot), scaling, columns)[0] for one in quoted]
    found = np.empty(len(quoted), np.float32)
    engine.head(context, np.stack(rows), found)
    volatility = [float(one) if one > 0 else math.nan for one in found]
    inputs = (
        [one.carry * spot for one in quoted], [one.strike for one in quoted], [one.tau_years for one in quoted],
        volatility, [one.discount for one in quoted], [one.right for one in quoted],
    )  # fmt: skip
    price, delta, gamma, vega = (np.empty(len(quoted)) for _ in range(4))
    options.value(len(quoted), *map(np.array, inputs), price, delta, gamma, vega, None, None, None, None)
    for place, (one, contract) in enumerate(zip(quoted, contracts, strict=True)):
        contract.volatility = float(found[place])
        contract.fair = float(price[place])
        contract.delta = float(delta[place]) * one.carry
        contract.gamma = float(gamma[place]) * one.carry * one.carry
        contract.vega = float(vega[place])


def forget(contracts: Sequence[ContractState]) -> None:
    """No usable book: nothing is known."""
    for contract in contracts:
        contract.volatility = contract.fair = contract.delta = contract.gamma = contract.vega = math.nan
