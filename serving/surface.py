"""From one snapshot of quotes to its surface: forwards and discounts, implied volatilities, no-arbitrage flags.

In: `Quotes`, the quotes of one underlying at one time. Out: `Surface`, a `Smile` per (root, expiry).

Conventions (docs/conventions.md): tau is whole calendar days / 365; a mid counts where bid > 2e-5 S and ask > bid;
American quotes become European first (serving/american.py); forward and discount are those of serving/carry.py; the
implied volatility of a strike is that of its out-of-the-money mid.

Invariants: nothing here looks at any other snapshot; coin prices were converted to money at the index before.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from serving import black76
from serving.american import european_quotes
from serving.carry import Carry, ForwardOrigin, carries, fit_parity
from serving.normal import Array
from serving.quotes import DAYS_PER_YEAR, Bools, ExpiryKey, Quotes, Rows, Texts, Times, group_rows, tau_years

__all__ = [
    "BROKEN_CALENDAR", "BROKEN_CONVEX", "BROKEN_MONOTONE", "DAYS_PER_YEAR", "Bools", "ExpiryKey", "ForwardOrigin",
    "Quotes", "Smile", "Surface", "Texts", "Times", "arbitrage_flags", "build_surface", "fit_parity", "group_rows",
    "tau_years",
]  # fmt: skip

BROKEN_MONOTONE, BROKEN_CONVEX, BROKEN_CALENDAR = 1, 2, 4  # bits of a quote's no-arbitrage flags


@dataclass(frozen=True)
class Smile:
    """One expiry seen at one time; arrays over strikes, ascending. `volatility` is a fraction, never NaN.

    Bids and asks of American quotes are their European equivalents; `exercise_rate` is the rate per year at which their
    exercise was valued, None where nothing in the snapshot was American.
    """

    key: ExpiryKey
    tau: float  # years
    forward: float
    discount: float
    origin: ForwardOrigin
    strike: Array
    right: Array
    bid: Array
    ask: Array
    volatility: Array
    flags: npt.NDArray[np.int8]
    exercise_rate: float | None = None

    @property
    def from_parity(self) -> bool:
        """Whether the forward is the expiry's own, by parity or from the venue, and not borrowed or the index."""
        return self.origin in (ForwardOrigin.PARITY, ForwardOrigin.VENUE)

    @property
    def mid(self) -> Array:
        """Out-of-the-money mid, money."""
        return 0.5 * (self.bid + self.ask)

    @property
    def moneyness(self) -> Array:
        """ln(K/F)/sqrt(tau)."""
        return np.asarray(np.log(self.strike / self.forward) / np.sqrt(self.tau))


@dataclass(frozen=True)
class Surface:
    """All smiles of one underlying at one time."""

    ts: np.datetime64
    spot: float
    smiles: dict[ExpiryKey, Smile]


def build_surface(quotes: Quotes) -> Surface:
    """Forwards, discounts, out-of-the-money implied volatilities and no-arbitrage flags of one snapshot.

    A surface without smiles means that nothing in the snapshot could be used (no parity anywhere, no two-sided quotes).
    """
    quotes, rates = european_quotes(quotes)
    mid = quotes.mid
    groups = group_rows(quotes.root, quotes.expiry, quotes.strike)
    known = carries(quotes, groups, mid)
    chosen = {}
    for key, (forward, _, _) in known.items():
        rows, strike, right = groups[key], quotes.strike[groups[key]], quotes.right[groups[key]]
        chosen[key] = rows[np.isfinite(mid[rows]) & np.where(right > 0, strike >= forward, strike < forward)]
    volatility = _volatilities(quotes, mid, known, chosen)
    smiles: dict[ExpiryKey, Smile] = {}
    for key, (forward, discount, origin) in known.items():
        rows = chosen[key][np.isfinite(volatility[chosen[key]])]
        if rows.size:
            smiles[key] = Smile(
                key, tau_years(quotes.ts, key.expiry), forward, discount, origin, quotes.strike[rows],
                quotes.right[rows], quotes.bid[rows], quotes.ask[rows], volatility[rows],
                np.zeros(rows.size, dtype=np.int8), rates.get(key),
            )  # fmt: skip
    flagged = {key: _flag(smile) for key, smile in smiles.items()}
    _flag_calendar(flagged)
    return Surface(quotes.ts, quotes.spot, flagged)


def _volatilities(
    quotes: Quotes,
    mid: Array,
    known: dict[ExpiryKey, Carry],
    chosen: dict[ExpiryKey, Rows],
) -> Array:
    """Implied volatility of the chosen rows (NaN elsewhere and where none exists), all smiles in one call."""
    out = np.full(len(quotes), np.nan)
    if not chosen:
        return out
    rows = np.concatenate(list(chosen.values()))
    counts = [len(part) for part in chosen.values()]
    carry = np.array([[tau_years(quotes.ts, key.expiry), *known[key][:2]] for key in chosen])
    tau, forward, discount = np.repeat(carry, counts, axis=0).T
    out[rows], _ = black76.implied_volatility(
        mid[rows], forward, quotes.strike[rows], tau, discount, quotes.right[rows]
    )
    return out


def arbitrage_flags(strike: Array, call: Array, discount: float) -> npt.NDArray[np.int8]:
    """Bit mask per strike: call prices (money) that rise in strike, fall faster than the discount, or aren't convex."""
    flags = np.zeros(strike.size, dtype=np.int8)
    if strike.size > 1:
        slope = np.diff(call) / np.diff(strike)
        broken = (slope > 1e-9) | (slope < -discount - 1e-9)
        flags[:-1] |= np.where(broken, BROKEN_MONOTONE, 0).astype(np.int8)
        flags[1:] |= np.where(broken, BROKEN_MONOTONE, 0).astype(np.int8)
        flags[1:-1] |= np.where(np.diff(slope) < -1e-9, BROKEN_CONVEX, 0).astype(np.int8)
    return flags


def _flag(smile: Smile) -> Smile:
    call = smile.mid + np.where(smile.right < 0, smile.discount * (smile.forward - smile.strike), 0.0)
    flags = arbitrage_flags(smile.strike, call, smile.discount)
    return replace(smile, flags=flags)


def _flag_calendar(smiles: dict[ExpiryKey, Smile]) -> None:
    """Flag, in place, strikes whose total variance lies below that of the expiry before, at equal ln(K/F)."""
    ordered = sorted(smiles.values(), key=lambda smile: smile.tau)
    for earlier, later in pairwise(ordered):
        if later.tau == earlier.tau:
            continue
        log_earlier = np.log(earlier.strike / earlier.forward)
        log_later = np.log(later.strike / later.forward)
        inside = (log_later >= log_earlier[0]) & (log_later <= log_earlier[-1])
        before = np.interp(log_later, log_earlier, earlier.volatility**2 * earlier.tau)
        broken = inside & (later.volatility**2 * later.tau < before * (1.0 - 1e-9))
        later.flags[broken] |= BROKEN_CALENDAR
