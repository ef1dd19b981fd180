"""The contracts of tests/serving/host/worlds.py as a table, with a chain behind them that is only swept."""

from __future__ import annotations

from functools import cache

import numpy as np

from serving.host.contracts import COLUMNS, ContractTable, listed_chain
from tests.serving.host.worlds import contracts_of


@cache
def table() -> ContractTable:
    """The worlds' quoted contracts, then a listed chain around the same price."""
    quoted = contracts_of()
    first = slice(0, quoted.quoted)
    rest = listed_chain(quoted.reference_spot, expiry_days=(5, 31, 95), quoted_days=31)
    columns = {name: np.concatenate([getattr(quoted, name)[first], getattr(rest, name)]) for name in COLUMNS}
    return ContractTable(**columns, quoted=quoted.quoted, reference_spot=quoted.reference_spot)
