"""American quotes: the early exercise premium by a binomial tree, and quotes turned into their European equivalent.

In: American prices with the spot S, the forward F and the rate r of their expiry. Out: premiums (American minus
European price), volatilities, `Quotes` of European prices. Units: money; tau in years; rate per year, continuously
compounded.

Model: the underlying is lognormal with one volatility and pays a continuous yield q = r - ln(F/S)/tau; discrete
dividends enter through the forward alone. The tree is that of D. Leisen and M. Reimer, "Binomial models for option
valuation" (1996), centred on the strike; European and American prices come from the same tree, so most of its error
cancels in the premium, and two step counts are extrapolated in 1/n (Richardson; M. Broadie and J. Detemple, 1996).

Invariants: a premium is never negative; it is 0 where exercise can't pay (calls where q <= 0 <= r, puts where
r <= 0 <= q); European quotes leave as they came; only quotes of one time are looked at.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from serving import black76
from serving.carry import Carry, ForwardOrigin, carries, pair_rows
from serving.normal import Array
from serving.quotes import Bools, ExpiryKey, Quotes, Rows, group_rows, tau_years

STEPS = (25, 51)  # odd: the tree is centred on the strike
DEEP = 15.0  # standard deviations from the strike beyond which no tree is needed
CHUNK = 1024  # contracts priced at once: what a core's cache holds
SOLVED = 1e-7  # of volatility
SOLVER_ROUNDS = 8
PREMIUM_ROUNDS = 3  # premium -> parity line -> premium, then extrapolated
RATE_WIDTH = float(np.log(2.0))  # of the kernel, in ln(tau), that averages rates over expiries
RATE_RANGE = (-0.01, 0.15)  # what a noisy line may say


def exercise_premium(
    spot: npt.ArrayLike,
    forward: npt.ArrayLike,
    strike: npt.ArrayLike,
    tau: npt.ArrayLike,
    volatility: npt.ArrayLike,
    rate: npt.ArrayLike,
    right: npt.ArrayLike,
) -> Array:
    """American minus European price, money, >= 0; NaN where an input isn't positive and finite (`tau` may be 0)."""
    columns = np.broadcast_arrays(
        *(np.asarray(one, dtype=np.float64) for one in (spot, forward, strike, tau, volatility, rate, right))
    )
    shape = columns[0].shape
    s, f, k, t, v, r, w = (one.ravel() for one in columns)
    with np.errstate(all="ignore"):
        fine = (np.minimum.reduce([s, f, k, v]) > 0) & (t >= 0) & np.isfinite(s + f + k + t + v + r) & (np.abs(w) == 1)
        growth = np.log(f / s)
        gain = np.where(w > 0, r * t - growth, r * t)  # what waiting costs a holder: the yield of a call's underlying,
        cost = np.where(w > 0, r * t, r * t - growth)  # the interest on a put's strike; and what it earns
        pays = fine & (t > 0) & ~((gain <= 0) & (cost >= 0))
        deviation = v * np.sqrt(t)
        d2 = np.log(f / k) / deviation - 0.5 * deviation
    out = np.where(fine, 0.0, np.nan)
    near = np.flatnonzero(pays & (np.abs(d2) <= DEEP))
    for begin in range(0, near.size, CHUNK):
        rows = near[begin : begin + CHUNK]
        out[rows] = _extrapolated(s[rows], f[rows], k[rows], d2[rows], deviation[rows], r[rows] * t[rows], w[rows])
    deep = np.flatnonzero(pays & (w * d2 > DEEP))
    european = black76.price(f[deep], k[deep], t[deep], v[deep], np.exp(-r[deep] * t[deep]), w[deep])
    out[deep] = np.maximum(w[deep] * (s[deep] - k[deep]) - european, 0.0)
    return out.reshape(shape)


def _extrapolated(s: Array, f: Array, k: Array, d2: Array, deviation: Array, interest: Array, w: Array) -> Array:
    """The premium of two trees, extrapolated to infinitely many steps."""
    few, many = STEPS
    coarse, fine = (_tree_premium(s, f, k, d2, deviation, interest, w, steps) for steps in STEPS)
    return np.maximum((many * fine - few * coarse) / (many - few), 0.0)


def _tree_premium(
    s: Array, f: Array, k: Array, d2: Array, deviation: Array, interest: Array, w: Array, steps: int
) -> Array:
    """American minus European price of one Leisen-Reimer tree; arrays [N], `interest` = r tau."""
    up_share, up_share_stock = _peizer_pratt(d2, steps), _peizer_pratt(d2 + deviation, steps)
    drift = np.exp(np.log(f / s) / steps)
    up, down = drift * up_share_stock / up_share, drift * (1.0 - up_share_stock) / (1.0 - up_share)
    discount = np.exp(-interest / steps)
    to_up, to_down, back = discount * up_share, discount * (1.0 - up_share), 1.0 / down
    ups = np.arange(steps + 1)[:, np.newaxis]
    node = w * s * np.exp(ups * np.log(up) + (steps - ups) * np.log(down))  # [steps + 1, N], signed by the right
    signed_strike = w * k
    american = np.maximum(node - signed_strike, 0.0)
    european = american.copy()
    first, second = np.empty_like(node), np.empty_like(node)
    for count in range(steps, 0, -1):
        one, other = first[:count], second[:count]
        np.multiply(european[1 : count + 1], to_up, out=one)
        np.multiply(european[:count], to_down, out=european[:count])
        european[:count] += one
        np.multiply(american[1 : count + 1], to_up, out=one)
        np.multiply(american[:count], to_down, out=other)
        one += other
        node[:count] *= back
        np.subtract(node[:count], signed_strike, out=other)
        np.maximum(one, other, out=american[:count])
    return np.asarray(american[0] - european[0])


def _peizer_pratt(z: Array, steps: int) -> Array:
    """Peizer and Pratt's second inversion: the binomial share whose upper tail has probability N(z)."""
    scaled = z / (steps + 1.0 / 3.0 + 0.1 / (steps + 1.0))
    return np.asarray(0.5 + np.sign(z) * np.sqrt(0.25 * -np.expm1(-(scaled**2) * (steps + 1.0 / 6.0))))


def american_volatility(
    price: npt.ArrayLike,
    spot: npt.ArrayLike,
    forward: npt.ArrayLike,
    strike: npt.ArrayLike,
    tau: npt.ArrayLike,
    rate: npt.ArrayLike,
    right: npt.ArrayLike,
) -> tuple[Array, Array]:
    """Volatility that reprices an American price, and the premium in it; arrays [N], NaN where there is none.

    There is none at or below the value of exercise, where every small volatility gives the same price. Fixed point
    sigma -> Black-76 volatility of (price - premium(sigma)), accelerated by Aitken's formula (Steffensen's method).
    """
    columns = np.broadcast_arrays(
        *(np.atleast_1d(np.asarray(one, dtype=np.float64)) for one in (price, spot, forward, strike, tau, rate, right))
    )
    p, s, f, k, t, r, w = columns

    def improved(rows: Rows, premium: Array) -> Array:
        found, _ = black76.implied_volatility(p[rows] - premium, f[rows], k[rows], t[rows], np.exp(-r * t)[rows],
                                              w[rows])  # fmt: skip
        return found

    def premium_at(rows: Rows, volatility: Array) -> Array:
        return exercise_premium(s[rows], f[rows], k[rows], t[rows], volatility, r[rows], w[rows])

    volatility, premium = np.full(p.shape, np.nan), np.full(p.shape, np.nan)
    with np.errstate(invalid="ignore"):
        active = np.flatnonzero(p > np.maximum(w * (s - k), 0.0))
    guess = improved(active, np.zeros(active.size))
    for _ in range(SOLVER_ROUNDS):
        active, guess = active[np.isfinite(guess)], guess[np.isfinite(guess)]
        paid = premium_at(active, guess)
        second = improved(active, paid)
        volatility[active], premium[active] = second, paid
        moving = np.abs(second - guess) > SOLVED
        active, guess, second = active[moving], guess[moving], second[moving]
        if not active.size:
            break
        paid = premium_at(active, second)
        third = improved(active, paid)
        volatility[active], premium[active] = third, paid
        guess = _accelerated(guess, second, third)
    unsolved = np.isnan(volatility)
    premium[unsolved] = np.nan
    return volatility, premium


def _accelerated(first: Array, second: Array, third: Array) -> Array:
    """Aitken's limit of three iterates that converge geometrically; the third where they don't."""
    before, after = second - first, third - second
    with np.errstate(all="ignore"):
        limit = third - after**2 / (after - before)
    return np.where((np.abs(after) < 0.95 * np.abs(before)) & np.isfinite(limit), limit, third)


def european_quotes(quotes: Quotes) -> tuple[Quotes, dict[ExpiryKey, float]]:
    """The same quotes as European ones, and the rate at which each expiry's exercise was valued.

    Bid and ask lose the premium of the mid. Call and put of a strike share a volatility, that of the out-of-the-money
    quote (its own where the other side doesn't quote). Premiums follow from the parity line and the parity line from
    European prices: both are iterated to a fixed point, first over the pairs that make the line, then over everything.
    A quote that no volatility gives becomes NaN; a snapshot without American quotes or without any forward is returned
    as it is, with no rates.
    """
    mid = quotes.mid
    if not (quotes.is_american & np.isfinite(mid)).any():
        return quotes, {}
    groups = {key: rows for key, rows in group_rows(quotes.root, quotes.expiry, quotes.strike).items()
              if tau_years(quotes.ts, key.expiry) > 0}  # fmt: skip
    pairs = [np.concatenate(pair_rows(quotes, rows, mid)) for rows in groups.values()]
    everything = [rows[np.isfinite(mid[rows])] for rows in groups.values()]
    premium = np.zeros(len(quotes))
    known: dict[ExpiryKey, Carry] = {}
    for chosen in (pairs, everything):
        rows = np.concatenate([np.empty(0, np.intp), *chosen])
        seen = []
        for _ in range(PREMIUM_ROUNDS):
            known = carries(quotes, groups, mid - premium)
            if not known:
                return quotes, {}
            premium = _next_premium(quotes, groups, known, mid, rows, premium)
            seen.append(premium)
        premium = np.maximum(_accelerated(*seen), 0.0)
    return replace(quotes, bid=quotes.bid - premium, ask=quotes.ask - premium, american=None), smooth_rates(
        quotes.ts, known
    )


def smooth_rates(ts: np.datetime64, known: Mapping[ExpiryKey, Carry]) -> dict[ExpiryKey, float]:
    """Rate of each expiry: those of the parity lines, averaged over neighbours in ln(tau).

    The error of a line's discount doesn't shrink with tau, so that of its rate grows like 1/tau: weights are tau^2.
    """
    tau = {key: tau_years(ts, key.expiry) for key in known}
    own = [key for key, carry in known.items() if carry.origin in (ForwardOrigin.PARITY, ForwardOrigin.VENUE)]
    if not own:  # coin at the index: no interest
        return dict.fromkeys(known, 0.0)
    at = np.array([tau[key] for key in own])
    found = np.array([-np.log(known[key].discount) for key in own]) / at
    rates = {}
    for key in known:
        weight = at**2 * np.exp(-0.5 * (np.log(at / tau[key]) / RATE_WIDTH) ** 2)
        rates[key] = float(np.clip(np.sum(weight * found) / np.sum(weight), *RATE_RANGE))
    return rates


def _next_premium(
    quotes: Quotes, groups: Mapping[ExpiryKey, Rows], known: Mapping[ExpiryKey, Carry], mid: Array, rows: Rows,
    premium: Array,
) -> Array:  # fmt: skip
    """Premium [N] of the American ones among `rows`, at the volatilities of mid less the premium before."""
    forward, tau, rate = (np.full(len(quotes), np.nan) for _ in range(3))
    smile = np.zeros(len(quotes), dtype=np.intp)
    rates = smooth_rates(quotes.ts, known)
    for number, (key, members) in enumerate(groups.items()):
        forward[members], rate[members] = known[key].forward, rates[key]
        tau[members], smile[members] = tau_years(quotes.ts, key.expiry), number
    strike, right = quotes.strike, quotes.right
    outside = np.where(right > 0, strike >= forward, strike < forward)
    givers, place = np.unique(_volatility_givers(rows, smile, strike, outside), return_inverse=True)
    volatility, _ = black76.implied_volatility(
        (mid - premium)[givers], forward[givers], strike[givers], tau[givers], np.exp(-rate * tau)[givers],
        right[givers],
    )  # fmt: skip
    exercised = right[givers] * (quotes.spot - strike[givers])
    volatility[quotes.is_american[givers] & ~(mid[givers] > exercised)] = np.nan
    american = quotes.is_american[rows]
    priced = rows[american]
    found = premium.copy()
    found[priced] = exercise_premium(quotes.spot, forward[priced], strike[priced], tau[priced],
                                     volatility[place[american]], rate[priced], right[priced])  # fmt: skip
    return found


def _volatility_givers(rows: Rows, smile: npt.NDArray[np.intp], strike: Array, outside: Bools) -> Rows:
    """For each of `rows` the row whose volatility it has: the out-of-the-money one of its strike, or itself."""
    order = rows[np.lexsort((~outside[rows], strike[rows], smile[rows]))]  # out-of-the-money first
    same = np.r_[False, (smile[order][1:] == smile[order][:-1]) & (strike[order][1:] == strike[order][:-1])]
    first = np.maximum.accumulate(np.where(same, 0, np.arange(len(order))))
    giver = np.empty(int(order.max()) + 1 if len(order) else 0, dtype=np.intp)
    giver[order] = order[first]
    return giver[rows]


def european_mids(
    mids: Mapping[float, float], american: Mapping[float, bool], spot: float, forward: float, strike: float,
    tau: float, rate: float,
) -> dict[float, float]:  # fmt: skip
    """European mids of one strike's call (+1.0) and put (-1.0), by the rules of `european_quotes`."""
    if not any(american.get(right, False) for right in mids):
        return dict(mids)
    outside = 1.0 if strike >= forward else -1.0
    giver = outside if outside in mids else -outside
    found = dict(mids)
    if american[giver]:
        volatility, premium = american_volatility(mids[giver], spot, forward, strike, tau, rate, giver)
        found[giver] -= float(premium[0])
    else:
        volatility, _ = black76.implied_volatility(
            np.atleast_1d(mids[giver]), forward, strike, tau, np.exp(-rate * tau), giver
        )
    other = -giver
    if other in mids and american[other]:
        found[other] -= float(exercise_premium(spot, forward, strike, tau, volatility[0], rate, other))
    return {right: mid for right, mid in found.items() if np.isfinite(mid)}
