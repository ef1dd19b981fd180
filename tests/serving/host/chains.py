"""The contracts of tests/serving/host/worlds.py as a table, with a chain behind them that is only swept."""

from __future__ import annotations

from functools import cache

import numpy as np

from serving.host.contracts import ContractTable, listed_chain
from tests.serving.host.worlds import REFERENCE_SPOT, quoted


@cache
def table() -> ContractTable:
    """The worlds' quoted contracts, then a listed chain around 100."""
    rows = [(one.strike, one.tau_years, one.carry, one.discount, one.right, one.last_volatility) for one in quoted()]
    rest = listed_chain(REFERENCE_SPOT, expiry_days=(7, 30, 90), quoted_days=30)
    columns = [
        np.concatenate([column, more])
        for column, more in zip(
            np.array(rows).T,
            (rest.strike, rest.tau_years, rest.carry, rest.discount, rest.right, rest.last_volatility),
            strict=True,
        )
    ]
    strike, tau_years, carry, discount, right, last_volatility = columns
    return ContractTable(strike, tau_years, carry, discount, right, last_volatility, len(rows), REFERENCE_SPOT)
