"""What is known before time t: the last seen smiles, and the anchors that quote again at t.

In: the `Surface` of the snapshot before t; of the snapshot t only the underlying's price and the anchors' own quotes.
Out: `LastSeen` (smiles restricted to the range that is scored, their shapes, raw and smoothed) and `Anchor`s.

Conventions (docs/conventions.md): the last smile is linear in strike and flat outside; forwards are carried,
F = S_t F_prev / S_prev, discounts are those last seen. An anchor is a strike quoted as call and put: the pair gives
its own forward by parity, so its volatility needs no other quote of t; where one side only quotes, the carried forward
serves.

Invariant: nothing at t but the underlying's price and the quotes at the anchors' strikes is read (tests/contract/
test_no_leak.py changes all the rest).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from serving import black76
from serving.american import european_mids
from serving.anchor_field import AnchorField
from serving.normal import Array
from serving.smooth_smile import SmoothSmile, fit_smooth_smile, ordered
from serving.surface import DAYS_PER_YEAR, Bools, ExpiryKey, Quotes, Smile, Surface, group_rows, tau_years

TAU_RANGE = (5.0 / DAYS_PER_YEAR, 1.0)  # years, both ends excluded
MONEYNESS_LIMIT = 0.6  # |ln(K/F)/sqrt(tau)|
SMALLEST_PRICE = 7e-5  # of spot
LARGEST_VOLATILITY = 1.0
SHAPE_NODES = 5  # strikes needed before a smile's skew and curvature are believed
SMALLEST_SHARE = 0.5  # of the smile's lowest quote: an extension goes no lower
PRIMARY_ROOTS = ("SPX",)  # wins a tie between roots of one expiry


@dataclass(frozen=True)
class LastSmile:
    """One expiry as last seen, in the scored range; `shape` = level, slope, curvature of a parabola in moneyness."""

    key: ExpiryKey
    tau: float
    forward: float
    discount: float
    strike: Array
    volatility: Array
    shape: Array
    in_range: bool  # False: nothing lay in the scored range, all strikes are kept instead
    exercise_rate: float | None = None  # per year; None where no quote of the snapshot was American
    smooth: SmoothSmile | None = None  # None where quotes are few or nothing lay in the scored range

    def at(self, strike: Array) -> Array:
        """Volatility as quoted: linear in strike, flat outside."""
        return np.interp(strike, self.strike, self.volatility)

    def smooth_at(self, strike: Array) -> Array:
        """Volatility at a strike without the quotes' noise; as quoted where there is no smoothed smile."""
        return self.smooth_at_moneyness(np.log(strike / self.forward) / np.sqrt(self.tau))

    def smooth_at_moneyness(self, moneyness: Array) -> Array:
        """The same at ln(K/F)/sqrt(tau) of the time it was seen."""
        if self.smooth is None:
            return self.at(self.forward * np.exp(moneyness * np.sqrt(self.tau)))
        return np.maximum(self.smooth.at(moneyness), SMALLEST_SHARE * float(self.volatility.min()))

    @property
    def rate(self) -> float:
        """Rate per year at which an American contract's exercise is valued: `exercise_rate`, or the discount's."""
        return -float(np.log(self.discount)) / self.tau if self.exercise_rate is None else self.exercise_rate


@dataclass(frozen=True)
class LastSeen:
    """The surface of the snapshot before t."""

    ts: np.datetime64
    spot: float
    smiles: dict[ExpiryKey, LastSmile]

    @property
    def usable(self) -> bool:
        """Whether any smile lies in the scored range; an unusable snapshot is passed over, as if it hadn't been."""
        return any(smile.in_range for smile in self.smiles.values())

    def carried_forward(self, key: ExpiryKey, spot: float) -> float:
        """Forward of t: the last one, moved with the underlying."""
        return spot * self.smiles[key].forward / self.spot


@dataclass(frozen=True)
class AnchorTarget:
    """Which contract quotes again: the strike nearest F exp(moneyness sqrt(tau)) in the expiry nearest `tenor_days`."""

    tenor_days: float
    moneyness: float = 0.0


@dataclass(frozen=True)
class Anchor:
    """One strike that has quoted again at t."""

    key: ExpiryKey
    strike: float
    tau: float
    moneyness: float  # ln(K/F_carried)/sqrt(tau)
    volatility: float
    last_volatility: float
    forward_deviation: float  # ln(F_pair/F_carried), NaN where only one side quotes

    @property
    def move(self) -> float:
        """sqrt(tau) (IV_t - IV_prev)."""
        return float(np.sqrt(self.tau) * (self.volatility - self.last_volatility))


def scored_range(smile: Smile, spot: float) -> Bools:
    """Rows of a smile inside the range that is scored."""
    if not TAU_RANGE[0] < smile.tau < TAU_RANGE[1]:
        return np.zeros(smile.strike.size, dtype=bool)
    inside: Bools = (
        (np.abs(smile.moneyness) < MONEYNESS_LIMIT)
        & (smile.mid > SMALLEST_PRICE * spot)
        & (smile.volatility < LARGEST_VOLATILITY)
    )
    return inside


def fit_shape(moneyness: Array, volatility: Array) -> Array:
    """Level, slope and curvature of the least-squares parabola; a level alone where strikes are few."""
    if moneyness.size < SHAPE_NODES or np.ptp(moneyness) < 0.05:
        return np.array([float(np.median(volatility)), 0.0, 0.0])
    columns = np.stack([np.ones_like(moneyness), moneyness, moneyness**2], axis=1)
    return np.asarray(np.linalg.lstsq(columns, volatility, rcond=None)[0], dtype=np.float64)


def last_seen(surface: Surface) -> LastSeen:
    """Keep of a surface what the next snapshot's prediction may use."""
    smiles: dict[ExpiryKey, LastSmile] = {}
    quoted: dict[ExpiryKey, tuple[Array, Array]] = {}
    for key, smile in surface.smiles.items():
        rows = scored_range(smile, surface.spot)
        in_range = bool(rows.any())
        if not in_range:
            rows = np.ones(smile.strike.size, dtype=bool)
        moneyness, volatility = smile.moneyness[rows], smile.volatility[rows]
        smiles[key] = LastSmile(
            key, smile.tau, smile.forward, smile.discount, smile.strike[rows], volatility,
            fit_shape(moneyness, volatility), in_range, smile.exercise_rate,
        )  # fmt: skip
        if in_range:
            quoted[key] = moneyness, volatility
    fitted = {key: fit_smooth_smile(*quotes) for key, quotes in quoted.items()}
    known = {key: smooth for key, smooth in fitted.items() if smooth is not None}
    for key, smooth in ordered(known, {key: smiles[key].tau for key in known}, quoted).items():
        smiles[key] = replace(smiles[key], smooth=smooth)
    return LastSeen(surface.ts, surface.spot, smiles)


def _preference(key: ExpiryKey) -> tuple[int, str]:
    return (0 if key.root in PRIMARY_ROOTS else 1, key.root)


def find_anchors(now: Quotes, last: LastSeen, targets: tuple[AnchorTarget, ...]) -> list[Anchor]:
    """The anchors among the quotes of t, in order of tenor, then strike.

    For each target: the expiry nearest its tenor among those with a last smile in range and quotes now (a tie goes to
    the primary root), then the strikes of that last smile in order of distance from the target (a tie goes to the
    lower), until one quotes two-sided now. A target without any is left out; two targets may not share a strike.
    """
    if not targets:
        return []
    mid = now.mid
    groups = group_rows(now.root, now.expiry, now.strike)
    live = [
        key for key in groups if key in last.smiles and last.smiles[key].in_range and tau_years(now.ts, key.expiry) > 0
    ]
    found: dict[tuple[ExpiryKey, float], Anchor] = {}
    for target in targets:
        days = {key: tau_years(now.ts, key.expiry) * DAYS_PER_YEAR for key in live}
        for key in sorted(live, key=lambda key: (abs(days[key] - target.tenor_days), days[key], _preference(key))):
            anchor = _nearest_anchor(now, mid, groups[key], last, key, target.moneyness)
            if anchor is not None:
                found.setdefault((key, anchor.strike), anchor)
                break
    return sorted(found.values(), key=lambda anchor: (anchor.tau, _preference(anchor.key), anchor.strike))


def _nearest_anchor(
    now: Quotes, mid: Array, rows: np.ndarray, last: LastSeen, key: ExpiryKey, moneyness: float
) -> Anchor | None:
    smile = last.smiles[key]
    tau = tau_years(now.ts, key.expiry)
    forward = last.carried_forward(key, now.spot)
    wanted = forward * np.exp(moneyness * np.sqrt(tau))
    for strike in smile.strike[np.lexsort((smile.strike, np.abs(smile.strike - wanted)))]:
        at_strike = rows[(now.strike[rows] == strike) & np.isfinite(mid[rows])]
        mids = {float(now.right[row]): float(mid[row]) for row in at_strike}
        if now.american is not None:
            american = {float(now.right[row]): bool(now.american[row]) for row in at_strike}
            mids = european_mids(mids, american, now.spot, forward, float(strike), tau, smile.rate)
        volatility, deviation = _anchor_volatility(mids, forward, float(strike), tau, smile.discount)
        if np.isfinite(volatility):
            last_volatility = float(smile.at(np.array([strike]))[0])
            position = float(np.log(strike / forward) / np.sqrt(tau))
            return Anchor(key, float(strike), tau, position, volatility, last_volatility, deviation)
    return None


def _anchor_volatility(
    mids: dict[float, float], forward: float, strike: float, tau: float, discount: float
) -> tuple[float, float]:
    """Volatility of a strike from its own quotes, and how far its own forward lies from the carried one (log)."""
    deviation = np.nan
    if len(mids) == 2:
        own = strike + (mids[1.0] - mids[-1.0]) / discount
        if own <= 0:
            return np.nan, np.nan
        deviation = float(np.log(own / forward))
        forward = own
    right = 1.0 if strike >= forward else -1.0
    if right not in mids:
        right = -right
    if right not in mids:
        return np.nan, np.nan
    volatility, _ = black76.implied_volatility(mids[right], forward, strike, tau, discount, right)
    return float(volatility), deviation


def shift_at(anchors: list[Anchor], tau: Array, moneyness: Array) -> Array:
    """How far the anchors lie above the smile last quoted, at `tau` [N] (years) and `moneyness` [N]; 0 without any.

    Volatility [N], through every anchor (serving/anchor_field.py).
    """
    field = AnchorField.through(
        np.array([anchor.tau for anchor in anchors]), np.array([anchor.moneyness for anchor in anchors]),
        np.array([anchor.volatility - anchor.last_volatility for anchor in anchors]),
    )  # fmt: skip
    out = np.zeros_like(tau)
    for one in np.unique(tau):
        out[tau == one] = field.at(float(one), moneyness[tau == one])
    return out


def forward_deviation(anchors: list[Anchor]) -> float:
    """Median log distance of the anchors' own forwards from the carried ones; 0 where none has a pair."""
    known = [anchor.forward_deviation for anchor in anchors if np.isfinite(anchor.forward_deviation)]
    return float(np.median(known)) if known else 0.0
