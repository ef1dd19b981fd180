"""The features of strikeforge: one implementation, called by training and by hosts.

In: the underlying's path up to and including t, what was last seen before t (`LastSeen`) and the anchors at t.
Out: `market_step` -> float64 [F], one step of the market sequence; `contract_table` -> `ContractTable`, [N, K] for the
contracts to price; `Scaler` turns either into the float32 nets take. STEP_FEATURES, CONTRACT_FEATURES name the columns.

Invariants: only what is known at t enters (see last_seen.py); no NaN or infinity leaves; a step or table computed
alone equals the one computed in a batch.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from serving.errors import DataError
from serving.last_seen import (
    MONEYNESS_LIMIT,
    TAU_RANGE,
    Anchor,
    AnchorTarget,
    LastSeen,
    forward_deviation,
    shift_at,
)
from serving.laws import LawsOfMotion
from serving.normal import Array
from serving.surface import DAYS_PER_YEAR, Texts, Times, group_rows, tau_years

GRID_DAYS = (14.0, 45.0, 120.0)  # tenors at which surface and anchors' moves enter the market sequence
RV_HORIZONS = (5, 10, 21, 63)  # steps
SMA_HORIZONS = (10, 21)
RSI_STEPS = 14
SMALLEST_PRIOR = 0.01  # volatility
VERSION = 2  # of what the columns mean: raised when a feature of the same name is computed otherwise

STEP_FEATURES: tuple[str, ...] = (
    "log_return", "absolute_return", "calendar_days", "business_days",
    *(f"realised_volatility_{n}" for n in RV_HORIZONS),
    *(f"sma_distance_{n}" for n in SMA_HORIZONS),
    "rsi", "surface_seen", "level_14", "level_45", "level_120", "skew_45", "curvature_45", "term_slope",
    "anchored", "anchor_move_14", "anchor_move_45", "anchor_move_120", "forward_deviation",
)  # fmt: skip

# The head reads the UNSCALED ones as they are: its output is a correction to the prior, made where anchors quote. The
# prior is the first law of serving/laws.py; `moneyness_law` and `scaled_law` are what the other two say beyond it.
# Tried and left out: docs/LOG.md.
CONTRACT_FEATURES: tuple[str, ...] = (
    "prior_volatility", "sqrt_tau", "anchored", "moneyness", "moneyness_squared", "last_volatility", "slope",
    "return", "return_moneyness", "return_moneyness_squared", "return_slope", "shift", "shift_sqrt_tau",
    "moneyness_law", "scaled_law", "deviation", "deviation_slope", "business_share", "elapsed_share",
)  # fmt: skip
UNSCALED = ("prior_volatility", "sqrt_tau", "anchored")


@dataclass(frozen=True)
class Scaler:
    """(x - mean) / deviation, clipped; fitted on training dates only. The columns `unscaled` stay as they are."""

    mean: tuple[float, ...]
    deviation: tuple[float, ...]
    clip: float = 3.0
    unscaled: tuple[int, ...] = ()

    def __call__(self, values: Array) -> npt.NDArray[np.float32]:
        """Scale [..., F] to float32."""
        scaled = np.clip((values - np.array(self.mean)) / np.array(self.deviation), -self.clip, self.clip)
        kept = list(self.unscaled)
        scaled[..., kept] = values[..., kept]
        return np.asarray(scaled, dtype=np.float32)

    @classmethod
    def fit(cls, values: Array, names: tuple[str, ...], unscaled: tuple[str, ...] = ()) -> Scaler:
        """Column means and standard deviations of `values` [rows, F]; a constant column gets deviation 1."""
        mean, deviation = values.mean(axis=0), values.std(axis=0)
        deviation = np.where(deviation < 1e-9, 1.0, deviation)
        kept = tuple(place for place, name in enumerate(names) if name in unscaled)
        return cls(tuple(mean.tolist()), tuple(deviation.tolist()), unscaled=kept)


@dataclass(frozen=True)
class FeatureSpec:
    """What a bundle needs to compute its inputs: window length T (steps), anchors, scalers. JSON in the manifest."""

    window: int
    anchors: tuple[AnchorTarget, ...]
    step_scaler: Scaler
    contract_scaler: Scaler
    step_features: tuple[str, ...] = STEP_FEATURES
    contract_features: tuple[str, ...] = CONTRACT_FEATURES
    version: int = VERSION

    def to_json(self) -> dict[str, Any]:
        """Plain dict of numbers, strings and lists."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> FeatureSpec:
        """Read back `to_json`; refuses a spec whose features this code doesn't compute."""
        try:
            spec = cls(
                window=int(data["window"]),
                anchors=tuple(AnchorTarget(*map(float, (a["tenor_days"], a["moneyness"]))) for a in data["anchors"]),
                step_scaler=_scaler(data["step_scaler"]),
                contract_scaler=_scaler(data["contract_scaler"]),
                step_features=tuple(data["step_features"]),
                contract_features=tuple(data["contract_features"]),
                version=int(data["version"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"feature spec can't be read ({error!r}); the bundle was made by another version"
            ) from error
        if spec.version != VERSION:
            raise DataError(
                f"feature spec has version {spec.version}, this code computes {VERSION}: install the matching version"
            )
        for ours, theirs in (
            (STEP_FEATURES, spec.step_features),
            (CONTRACT_FEATURES, spec.contract_features),
        ):
            if ours != theirs:
                differing = sorted(set(ours) ^ set(theirs)) or ["their order"]
                raise DataError(
                    f"feature spec differs from this code's in {', '.join(differing)}: install the matching version"
                )
        return spec


def _scaler(data: dict[str, Any]) -> Scaler:
    mean, deviation = (tuple(map(float, data[name])) for name in ("mean", "deviation"))
    return Scaler(mean, deviation, float(data["clip"]), tuple(map(int, data["unscaled"])))


@dataclass(frozen=True)
class Path:
    """The underlying's prices, times strictly ascending; the last one is now."""

    ts: Times
    price: Array

    def __post_init__(self) -> None:
        if len(self.ts) != len(self.price) or not len(self.ts):
            raise DataError(
                f"the underlying's path has {len(self.ts)} times and {len(self.price)} prices; it needs one each"
            )
        if np.isnat(self.ts).any():
            raise DataError(f"the underlying's path has no time at place {int(np.isnat(self.ts).argmax())}")
        wrong = np.flatnonzero(np.diff(self.ts.astype("datetime64[ns]").astype(np.int64)) <= 0)
        if wrong.size:
            raise DataError(
                f"the underlying's path isn't ascending in time at {self.ts[wrong[0] + 1]}: sort it, one price per time"
            )
        bad = np.flatnonzero(~(np.isfinite(self.price) & (self.price > 0)))
        if bad.size:
            raise DataError(
                f"the underlying's path has price {self.price[bad[0]]} at {self.ts[bad[0]]}: prices are positive"
            )

    def until(self, ts: np.datetime64) -> Path:
        """The path up to and including `ts`."""
        count = int(np.searchsorted(self.ts, ts, side="right"))
        return Path(self.ts[:count], self.price[:count])


def _elapsed(path_ts: Times) -> tuple[float, float]:
    """Calendar and business days (Monday to Friday; holidays aren't known) between the last two times."""
    if len(path_ts) < 2:
        return 1.0, 1.0
    days = path_ts[-2:].astype("datetime64[D]")
    exact = float((path_ts[-1] - path_ts[-2]) / np.timedelta64(1, "s")) / 86400.0
    return exact, float(np.busday_count(days[0], days[1])) or min(exact, 1.0)


def _realised_volatility(returns: Array, days: Array, steps: int) -> float:
    """Annualised, from the last `steps` returns (fewer where the path is short), not demeaned."""
    used, time = returns[-steps:], days[-steps:]
    if not used.size:
        return 0.0
    return float(np.sqrt(np.sum(used**2) / max(float(np.sum(time)) / DAYS_PER_YEAR, 1e-9)))


def _relative_strength(returns: Array) -> float:
    """Wilder's RSI with plain averages over the last steps, as a share between 0 and 1; 0.5 where nothing moved."""
    used = returns[-RSI_STEPS:]
    gain, loss = float(used[used > 0].sum()), float(-used[used < 0].sum())
    return gain / (gain + loss) if gain + loss > 0 else 0.5


def surface_shape(last: LastSeen) -> Array:
    """Level at the three grid tenors, skew and curvature at 45 days: [5], as last seen."""
    smiles = sorted((s for s in last.smiles.values() if s.in_range), key=lambda smile: smile.tau)
    tau = np.array([smile.tau for smile in smiles])
    shapes = np.stack([smile.shape for smile in smiles])
    at = np.log(np.array(GRID_DAYS) / DAYS_PER_YEAR)
    level = np.interp(at, np.log(tau), shapes[:, 0]).tolist()
    skew, curvature = (float(np.interp(at[1], np.log(tau), shapes[:, column])) for column in (1, 2))
    return np.array([*level, skew, curvature], dtype=np.float64)


def market_step(path: Path, last: LastSeen | None, anchors: list[Anchor]) -> Array:
    """One step of the market sequence, [F], in the order of STEP_FEATURES; unscaled."""
    recent = path.price[-(max(RV_HORIZONS) + 1) :]
    times = path.ts[-recent.size :]
    returns = np.diff(np.log(recent))
    days = np.diff(times) / np.timedelta64(1, "s") / 86400.0
    last_return = float(returns[-1]) if returns.size else 0.0
    calendar, business = _elapsed(path.ts)
    out = [last_return, abs(last_return), calendar, business]
    out += [_realised_volatility(returns, days, n) for n in RV_HORIZONS]
    out += [float(np.log(recent[-1] / recent[-n:].mean())) for n in SMA_HORIZONS]
    out.append(_relative_strength(returns))
    seen = last is not None and last.usable
    shape = surface_shape(last) if last is not None and seen else np.zeros(5)
    out += [float(seen), *shape.tolist(), float(shape[2] - shape[0])]
    grid = np.array(GRID_DAYS) / DAYS_PER_YEAR
    moves = shift_at(anchors, grid, np.zeros_like(grid)) * np.sqrt(grid)
    out += [float(bool(anchors)), *moves.tolist(), forward_deviation(anchors)]
    return np.array(out)


@dataclass(frozen=True)
class Contracts:
    """Contracts to price: arrays of one length. `right` is +1 for a call, -1 for a put."""

    root: Texts
    expiry: Times
    strike: Array
    right: Array


@dataclass(frozen=True)
class ContractTable:
    """Features and what prices the contracts that could be predicted; `rows` are their places in `Contracts`."""

    rows: npt.NDArray[np.intp]
    features: Array  # [N, K], unscaled
    tau: Array  # years
    forward: Array  # as the anchors' pairs put it right, money
    carried_forward: Array  # as it was last seen, moved with the underlying, money
    discount: Array  # last seen
    last_volatility: Array  # as quoted
    shift: Array  # how far the anchors lie above that, volatility
    in_range: npt.NDArray[np.bool_]  # the last smile and the contract lie in the scored range


def contract_table(
    contracts: Contracts, ts: np.datetime64, spot: float, last: LastSeen, anchors: list[Anchor]
) -> ContractTable:
    """Features [N, K] of the contracts whose expiry was last seen and isn't over; others are left out of `rows`."""
    log_return = float(np.log(spot / last.spot))
    elapsed_days, _ = _elapsed(np.array([last.ts, ts]))
    laws = LawsOfMotion(last, anchors, spot)
    blocks: list[tuple[np.ndarray, ...]] = []
    for key, rows in group_rows(contracts.root, contracts.expiry, contracts.strike).items():
        tau = tau_years(ts, key.expiry)
        if key not in last.smiles or tau <= 0:
            continue
        smile = last.smiles[key]
        strike = contracts.strike[rows]
        carried, root_tau = last.carried_forward(key, spot), np.sqrt(tau)
        now = np.log(strike / carried) / root_tau
        in_range = np.abs(now) < MONEYNESS_LIMIT
        in_range &= smile.in_range and TAU_RANGE[0] < tau < TAU_RANGE[1]
        x = np.clip(np.log(strike / smile.forward) / root_tau, -1.0, 1.0)  # polynomials must not explode in far wings
        law = laws.at(key, strike, tau)
        _, slope, curvature = smile.shape
        local_slope = slope + 2.0 * curvature * x
        move, off = log_return / root_tau, laws.deviation / root_tau
        one = np.ones_like(x)
        business = float(np.busday_count(ts.astype("datetime64[D]"), key.expiry.astype("datetime64[D]"))) / 252.0
        prior = np.maximum(law.sticky_strike, SMALLEST_PRIOR)
        columns = [
            prior, one * root_tau, one * float(bool(anchors)), x, x**2, law.sticky_strike - law.shift, local_slope,
            one * move, move * x, move * x**2, move * local_slope, law.shift, law.shift * root_tau,
            law.sticky_moneyness - law.sticky_strike, law.scaled - law.sticky_strike, one * off, off * local_slope,
            one * business / tau, one * elapsed_days / (tau * DAYS_PER_YEAR),
        ]  # fmt: skip
        shift = shift_at(anchors, one * tau, now)
        blocks.append((rows, np.stack(columns, axis=1), one * tau, one * laws.forward(key), one * carried,
                       one * smile.discount, smile.at(strike), shift, in_range))  # fmt: skip
    if not blocks:
        empty = np.zeros(0)
        return ContractTable(np.zeros(0, np.intp), np.zeros((0, len(CONTRACT_FEATURES))), empty, empty, empty, empty,
                             empty, empty, np.zeros(0, bool))  # fmt: skip
    return ContractTable(*(np.concatenate(parts) for parts in zip(*blocks, strict=True)))
