"""One snapshot of quotes: what everything in serving/ starts from.

In: arrays of one length, a place per quote. Out: `Quotes`, its mids, its groups by expiry. Invariants: prices are money
per unit of the underlying (coin quotes were multiplied by the index before, and say so in `coin`); nothing here looks
at any other snapshot.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from serving.normal import Array

Bools = npt.NDArray[np.bool_]
Rows = npt.NDArray[np.intp]
Texts = npt.NDArray[np.str_]
Times = npt.NDArray[np.datetime64]

SMALLEST_BID = 2e-5  # of spot
DAYS_PER_YEAR = 365.0
SPLIT_MOVE = float(np.log(1.25))  # of the price, from one snapshot to the next, before a split is thought of
SPLIT_SHARE = 0.5  # of the contracts that are in both where nothing was split


class ExpiryKey(NamedTuple):
    """One smile: roots that settle in the morning and in the afternoon are two smiles of one date."""

    root: str
    expiry: np.datetime64


@dataclass(frozen=True)
class Quotes:
    """Quotes of one underlying at one time; arrays of one length. Prices in money per unit of the underlying.

    `american` says which rows are American (None: none is), `venue_forward` is the forward the venue gives for the
    row's expiry, NaN where it gives none (None: nowhere), `coin` that the prices were coin before.
    """

    ts: np.datetime64
    spot: float
    root: Texts
    expiry: Times
    strike: Array
    right: Array  # +1 call, -1 put
    bid: Array
    ask: Array
    american: Bools | None = None
    venue_forward: Array | None = None
    coin: bool = False

    def __len__(self) -> int:
        return len(self.strike)

    def take(self, rows: Rows | Bools) -> Quotes:
        """The same snapshot with some of its rows."""
        return replace(
            self, root=self.root[rows], expiry=self.expiry[rows], strike=self.strike[rows], right=self.right[rows],
            bid=self.bid[rows], ask=self.ask[rows], american=None if self.american is None else self.american[rows],
            venue_forward=None if self.venue_forward is None else self.venue_forward[rows],
        )  # fmt: skip

    @property
    def mid(self) -> Array:
        """Middle of bid and ask, NaN where the quote doesn't count as two-sided."""
        counts = (self.bid > SMALLEST_BID * self.spot) & (self.ask > self.bid)
        return np.where(counts, 0.5 * (self.bid + self.ask), np.nan)

    @property
    def is_american(self) -> Bools:
        """Which rows are American, as an array."""
        return np.zeros(len(self), dtype=bool) if self.american is None else self.american


def tau_years(ts: np.datetime64, expiry: np.datetime64) -> float:
    """Whole calendar days from `ts` to `expiry`, both UTC, over 365."""
    days = expiry.astype("datetime64[D]") - ts.astype("datetime64[D]")
    return float(days.astype(np.int64)) / DAYS_PER_YEAR


def group_rows(root: Texts, expiry: Times, strike: Array) -> dict[ExpiryKey, Rows]:
    """Row numbers of each smile, strikes ascending, in order of expiry and root."""
    if not len(strike):
        return {}
    order = np.lexsort((strike, root, expiry))
    root, expiry = root[order], expiry[order]
    starts = np.flatnonzero(np.r_[True, (root[1:] != root[:-1]) | (expiry[1:] != expiry[:-1])])
    return {
        ExpiryKey(str(root[start]), expiry[start]): rows
        for start, rows in zip(starts, np.split(order, starts[1:]), strict=True)
    }


def is_split(before: Quotes, now: Quotes) -> bool:
    """Whether the underlying was split, or its contracts adjusted otherwise, between two of its snapshots.

    That moves the price and replaces the strikes at once, while in a crash the contracts stay. Only expiries of both
    count; either snapshot may hold fewer contracts than the other.
    """
    if abs(np.log(now.spot / before.spot)) < SPLIT_MOVE:
        return False
    old, new = ({(key, strike) for key, rows in group_rows(quotes.root, quotes.expiry, quotes.strike).items()
                 for strike in quotes.strike[rows].tolist()} for quotes in (before, now))  # fmt: skip
    common = {key for key, _ in old} & {key for key, _ in new}
    old, new = ({contract for contract in contracts if contract[0] in common} for contracts in (old, new))
    return bool(common) and len(old & new) < SPLIT_SHARE * min(len(old), len(new))
