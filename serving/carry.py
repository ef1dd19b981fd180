"""Forwards and discounts of one snapshot: given by the venue, by put-call parity, or borrowed.

In: `Quotes` of European prices. Out: a `Carry` (forward F, discount D, where F comes from) per live expiry.

The forward of an expiry is the venue's where it gives one; else that of the least-squares line C - P = D (F - K) over
strikes within 5 % of spot, refitted twice without strikes further than three robust deviations off the line; else
borrowed, the carry interpolated in tenor between the expiries that have one. With the venue's forward the line has one
unknown, D. So has that of coin quotes, F: coin bears no interest, C - P = S - K S/F and D = S/F, and one pair will do.
Coin quotes of a snapshot in which no expiry has a forward take the index, F = S and D = 1.

Invariants: D of a line lies in (0.5, 1.2); money quotes without any line have no carries at all.
"""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple

import numpy as np

from serving.normal import Array
from serving.quotes import Bools, ExpiryKey, Quotes, Rows, tau_years

PARITY_BAND = 0.05  # strikes within this share of spot take part in the parity fit
FEWEST_PAIRS = 3
DISCOUNT_RANGE = (0.5, 1.2)
ROUNDS = 3  # of the fit: all pairs, then twice without outliers


class ForwardOrigin(StrEnum):
    """Where an expiry's forward comes from."""

    VENUE = "venue"
    PARITY = "parity"
    BORROWED = "borrowed"  # carry of the neighbouring expiries
    INDEX = "index"  # coin quotes only: no expiry of the snapshot has a forward


class Carry(NamedTuple):
    """Forward (money) and discount factor of one expiry."""

    forward: float
    discount: float
    origin: ForwardOrigin


def fit_parity(strike: Array, difference: Array) -> tuple[float, float] | None:
    """Forward and discount from call minus put mids of one expiry, or None where no sensible line fits."""
    use = np.isfinite(difference)
    line: Array = np.zeros(2)
    for _ in range(ROUNDS):
        if use.sum() < FEWEST_PAIRS or np.ptp(strike[use]) == 0:
            return None
        columns = np.stack([np.ones(int(use.sum())), strike[use]], axis=1)
        line = np.asarray(np.linalg.lstsq(columns, difference[use], rcond=None)[0], dtype=np.float64)
        use = _near(difference - line[0] - line[1] * strike, use)
    discount = -float(line[1])
    if not DISCOUNT_RANGE[0] < discount < DISCOUNT_RANGE[1] or not line[0] > 0:
        return None
    return float(line[0]) / discount, discount


def fit_discount(strike: Array, difference: Array, forward: float) -> float | None:
    """Discount from call minus put mids of one expiry whose forward is known, or None where no sensible line fits."""
    discount = _fit_slope(forward - strike, difference, FEWEST_PAIRS)
    return discount if discount is not None and DISCOUNT_RANGE[0] < discount < DISCOUNT_RANGE[1] else None


def fit_coin_forward(strike: Array, difference: Array, spot: float) -> float | None:
    """Forward from call minus put mids (money at the index `spot`) of coin quotes, or None where there isn't any."""
    discount = _fit_slope(strike, spot - difference, 1)
    return spot / discount if discount is not None and DISCOUNT_RANGE[0] < discount < DISCOUNT_RANGE[1] else None


def _fit_slope(x: Array, y: Array, fewest: int) -> float | None:
    """Least-squares a of y = a x, refitted without outliers; None with fewer points or where x is 0 everywhere."""
    use, slope = np.isfinite(y), np.nan
    for _ in range(ROUNDS):
        square = float(np.sum(x[use] ** 2))
        if use.sum() < fewest or square == 0:
            return None
        slope = float(np.sum(x[use] * y[use])) / square
        use = _near(y - slope * x, use)
    return slope


def _near(residual: Array, use: Bools) -> Bools:
    """Within three robust deviations (of those in `use`) of the line."""
    spread = 1.4826 * float(np.median(np.abs(residual[use]))) + 1e-9
    return np.asarray(np.abs(residual) <= max(3.0 * spread, 1e-6))


def pair_rows(quotes: Quotes, rows: Rows, mid: Array) -> tuple[Rows, Rows]:
    """Rows of the calls and of the puts of strikes near spot where both quote, strikes ascending."""
    near = rows[(np.abs(quotes.strike[rows] / quotes.spot - 1.0) < PARITY_BAND) & np.isfinite(mid[rows])]
    calls, puts = near[quotes.right[near] > 0], near[quotes.right[near] < 0]
    _, at_call, at_put = np.intersect1d(quotes.strike[calls], quotes.strike[puts], return_indices=True)
    return calls[at_call], puts[at_put]


def carries(quotes: Quotes, groups: dict[ExpiryKey, Rows], mid: Array) -> dict[ExpiryKey, Carry]:
    """The carry of each live expiry; empty where the quotes are money and no expiry has a forward of its own.

    `mid` are the European mids of `quotes`, NaN where a quote doesn't count.
    """
    taus = {key: tau_years(quotes.ts, key.expiry) for key in groups}
    own = {key: _own_carry(quotes, rows, mid) for key, rows in groups.items() if taus[key] > 0}
    known = sorted((taus[key], carry[:2]) for key, carry in own.items() if carry is not None)
    if not known:
        index = Carry(quotes.spot, 1.0, ForwardOrigin.INDEX)
        return dict.fromkeys(own, index) if quotes.coin else {}
    at = np.array([tau for tau, _ in known])
    growth = np.array([np.log(forward / quotes.spot) / tau for tau, (forward, _) in known])
    rates = [(tau, -np.log(discount) / tau) for tau, (_, discount) in known if np.isfinite(discount)]
    found = {}
    for key, carry in own.items():
        tau = taus[key]
        if carry is None:
            forward = quotes.spot * float(np.exp(np.interp(tau, at, growth) * tau))
            carry = Carry(forward, np.nan, ForwardOrigin.BORROWED)
        if not np.isfinite(carry.discount):
            rate = float(np.interp(tau, *np.array(rates).T)) if rates else 0.0
            carry = carry._replace(discount=float(np.exp(-rate * tau)))
        found[key] = carry
    return found


def _own_carry(quotes: Quotes, rows: Rows, mid: Array) -> Carry | None:
    """The venue's forward or parity's; D is NaN where the venue gives F and no line gives D."""
    calls, puts = pair_rows(quotes, rows, mid)
    strike, difference = quotes.strike[calls], mid[calls] - mid[puts]
    given = np.empty(0) if quotes.venue_forward is None else quotes.venue_forward[rows]
    given = given[np.isfinite(given)]
    if given.size:
        forward = float(np.median(given))
        discount = quotes.spot / forward if quotes.coin else fit_discount(strike, difference, forward)
        return Carry(forward, np.nan if discount is None else discount, ForwardOrigin.VENUE)
    if quotes.coin:
        found = fit_coin_forward(strike, difference, quotes.spot)
        return None if found is None else Carry(found, quotes.spot / found, ForwardOrigin.PARITY)
    line = fit_parity(strike, difference)
    return None if line is None else Carry(*line, ForwardOrigin.PARITY)
