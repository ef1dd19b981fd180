"""From one snapshot of quotes to its surface: forwards and discounts by put-call parity, implied volatilities, flags.

In: `Quotes`, the quotes of one underlying at one time. Out: `Surface`, a `Smile` per (root, expiry).

Conventions (docs/conventions.md): tau is whole calendar days / 365; a mid counts where bid > 2e-5 S and ask > bid;
the forward F and discount D of an expiry are the least-squares line of C - P = D (F - K) over strikes within 5 % of
spot, refitted twice without strikes further than three robust deviations off the line; the implied volatility of a
strike is that of its out-of-the-money mid.

Invariants: nothing here looks at any other snapshot; coin prices were converted to money at the index before.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from serving import black76
from serving.normal import Array

Bools = npt.NDArray[np.bool_]
Texts = npt.NDArray[np.str_]
Times = npt.NDArray[np.datetime64]

SMALLEST_BID = 2e-5  # of spot
PARITY_BAND = 0.05  # strikes within this share of spot take part in the parity fit
FEWEST_PAIRS = 3
DISCOUNT_RANGE = (0.5, 1.2)
DAYS_PER_YEAR = 365.0

BROKEN_MONOTONE, BROKEN_CONVEX, BROKEN_CALENDAR = 1, 2, 4  # bits of a quote's no-arbitrage flags


class ExpiryKey(NamedTuple):
    """One smile: roots that settle in the morning and in the afternoon are two smiles of one date."""

    root: str
    expiry: np.datetime64


@dataclass(frozen=True)
class Quotes:
    """Quotes of one underlying at one time; arrays of one length. Prices in money per unit of the underlying."""

    ts: np.datetime64
    spot: float
    root: Texts
    expiry: Times
    strike: Array
    right: Array  # +1 call, -1 put
    bid: Array
    ask: Array

    def __len__(self) -> int:
        return len(self.strike)

    def take(self, rows: npt.NDArray[np.intp] | Bools) -> Quotes:
        """The same snapshot with some of its rows."""
        return Quotes(self.ts, self.spot, self.root[rows], self.expiry[rows], self.strike[rows], self.right[rows],
                      self.bid[rows], self.ask[rows])  # fmt: skip

    @property
    def mid(self) -> Array:
        """Middle of bid and ask, NaN where the quote doesn't count as two-sided."""
        counts = (self.bid > SMALLEST_BID * self.spot) & (self.ask > self.bid)
        return np.where(counts, 0.5 * (self.bid + self.ask), np.nan)


@dataclass(frozen=True)
class Smile:
    """One expiry seen at one time; arrays over strikes, ascending. `volatility` is a fraction, never NaN."""

    key: ExpiryKey
    tau: float  # years
    forward: float
    discount: float
    from_parity: bool  # False: carry borrowed from the neighbouring expiries
    strike: Array
    right: Array
    bid: Array
    ask: Array
    volatility: Array
    flags: npt.NDArray[np.int8]

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


def tau_years(ts: np.datetime64, expiry: np.datetime64) -> float:
    """Whole calendar days from `ts` to `expiry`, both UTC, over 365."""
    days = expiry.astype("datetime64[D]") - ts.astype("datetime64[D]")
    return float(days.astype(np.int64)) / DAYS_PER_YEAR


def fit_parity(strike: Array, difference: Array) -> tuple[float, float] | None:
    """Forward and discount from call minus put mids of one expiry, or None where no sensible line fits."""
    use = np.isfinite(difference)
    line: Array = np.zeros(2)
    for _ in range(3):
        if use.sum() < FEWEST_PAIRS or np.ptp(strike[use]) == 0:
            return None
        columns = np.stack([np.ones(int(use.sum())), strike[use]], axis=1)
        line = np.asarray(np.linalg.lstsq(columns, difference[use], rcond=None)[0], dtype=np.float64)
        residual = difference - line[0] - line[1] * strike
        spread = 1.4826 * float(np.median(np.abs(residual[use]))) + 1e-9
        use = np.abs(residual) <= max(3.0 * spread, 1e-6)
    discount = -float(line[1])
    if not DISCOUNT_RANGE[0] < discount < DISCOUNT_RANGE[1] or not line[0] > 0:
        return None
    return float(line[0]) / discount, discount


def _pairs(quotes: Quotes, rows: npt.NDArray[np.intp], mid: Array) -> tuple[Array, Array]:
    """Strikes near spot quoted as call and put, and call mid minus put mid."""
    near = rows[(np.abs(quotes.strike[rows] / quotes.spot - 1.0) < PARITY_BAND) & np.isfinite(mid[rows])]
    calls, puts = near[quotes.right[near] > 0], near[quotes.right[near] < 0]
    strikes, at_call, at_put = np.intersect1d(quotes.strike[calls], quotes.strike[puts], return_indices=True)
    return strikes, mid[calls[at_call]] - mid[puts[at_put]]


def group_rows(root: Texts, expiry: Times, strike: Array) -> dict[ExpiryKey, npt.NDArray[np.intp]]:
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


def _carries(
    quotes: Quotes, groups: dict[ExpiryKey, npt.NDArray[np.intp]], mid: Array
) -> dict[ExpiryKey, tuple[float, float, bool]]:
    """Forward, discount and whether parity gave them, for each live expiry; empty where no expiry has parity."""
    taus = {key: tau_years(quotes.ts, key.expiry) for key in groups}
    fitted = {key: fit_parity(*_pairs(quotes, rows, mid)) for key, rows in groups.items() if taus[key] > 0}
    known = sorted((taus[key], fit) for key, fit in fitted.items() if fit is not None)
    if not known:
        return {}
    at = np.array([tau for tau, _ in known])
    growth = np.array([np.log(fit[0] / quotes.spot) / tau for tau, fit in known])
    rate = np.array([-np.log(fit[1]) / tau for tau, fit in known])
    carries = {}
    for key, fit in fitted.items():
        tau = taus[key]
        if fit is not None:
            carries[key] = (*fit, True)
        else:
            forward = quotes.spot * float(np.exp(np.interp(tau, at, growth) * tau))
            carries[key] = (forward, float(np.exp(-np.interp(tau, at, rate) * tau)), False)
    return carries


def build_surface(quotes: Quotes) -> Surface:
    """Forwards, discounts, out-of-the-money implied volatilities and no-arbitrage flags of one snapshot.

    A surface without smiles means that nothing in the snapshot could be used (no parity anywhere, no two-sided quotes).
    """
    mid = quotes.mid
    groups = group_rows(quotes.root, quotes.expiry, quotes.strike)
    carries = _carries(quotes, groups, mid)
    chosen = {}
    for key, (forward, _, _) in carries.items():
        rows, strike, right = groups[key], quotes.strike[groups[key]], quotes.right[groups[key]]
        chosen[key] = rows[np.isfinite(mid[rows]) & np.where(right > 0, strike >= forward, strike < forward)]
    volatility = _volatilities(quotes, mid, carries, chosen)
    smiles: dict[ExpiryKey, Smile] = {}
    for key, (forward, discount, from_parity) in carries.items():
        rows = chosen[key][np.isfinite(volatility[chosen[key]])]
        if rows.size:
            smiles[key] = Smile(
                key, tau_years(quotes.ts, key.expiry), forward, discount, from_parity, quotes.strike[rows],
                quotes.right[rows], quotes.bid[rows], quotes.ask[rows], volatility[rows],
                np.zeros(rows.size, dtype=np.int8),
            )  # fmt: skip
    flagged = {key: _flag(smile) for key, smile in smiles.items()}
    _flag_calendar(flagged)
    return Surface(quotes.ts, quotes.spot, flagged)


def _volatilities(
    quotes: Quotes,
    mid: Array,
    carries: dict[ExpiryKey, tuple[float, float, bool]],
    chosen: dict[ExpiryKey, npt.NDArray[np.intp]],
) -> Array:
    """Implied volatility of the chosen rows (NaN elsewhere and where none exists), all smiles in one call."""
    out = np.full(len(quotes), np.nan)
    if not chosen:
        return out
    rows = np.concatenate(list(chosen.values()))
    counts = [len(part) for part in chosen.values()]
    carry = np.array([[tau_years(quotes.ts, key.expiry), *carries[key][:2]] for key in chosen])
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
    return Smile(**{**smile.__dict__, "flags": flags})


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
