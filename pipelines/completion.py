"""Completing a surface of which a share of the quotes is hidden: surface_vae against interpolation, SVI and the last
surface.

In: a `FeatureStore` and, per snapshot, which of its rows are hidden. Out: a volatility per hidden row and predictor.

The net completes the grid from the visible rows. At a quote its answer is read twice, between the cells, and as the
quote's own last volatility moved by the net's change between the cells; to each is added what the visible quotes of the
expiry miss it by, interpolated in moneyness (flat outside), without single spikes. The model is a blend of both and of
the last smile so corrected (which is also a baseline), its weights fitted on earlier dates. Every baseline sees the
same visible rows and the same last surface.

Invariants: no predictor reads a hidden row; forwards and discounts of the snapshot are taken as known.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl
from scipy.optimize import nnls

from pipelines.dataset import FeatureStore
from pipelines.svi import fit_svi
from serving.normal import Array
from serving.surface_grid import Grid, at_points, fill, to_grid
from serving.surface_score import SurfaceInput, SurfaceNet

Bools = npt.NDArray[np.bool_]
HIDDEN_SEED = 0
FLOOR = 0.01  # a predicted volatility below this would price nothing
DETAIL_DATES = 40
SPIKE_WINDOW, SPIKE_DEVIATIONS = 5, 5.0
SMALLEST_SPIKE = 0.02  # volatility; chosen on training dates (docs/LOG.md): smaller steps are real on listed chains


@dataclass(frozen=True)
class Snapshot:
    """Rows of one snapshot: arrays over its quotes, `smile` numbering its (root, expiry)s in order of tau."""

    smile: npt.NDArray[np.int64]
    tau: Array
    moneyness: Array  # ln(K/F)/sqrt(tau), F of the snapshot
    volatility: Array
    last: Array  # last smile at the strike
    hidden: Bools

    @classmethod
    def of(cls, rows: pl.DataFrame, hidden: Bools) -> Snapshot:
        """From rows of `rows.parquet`."""
        tau = rows["tau"].to_numpy()
        names = rows.select(pl.struct("tau", "root", "expiry").rank("dense").cast(pl.Int64) - 1).to_series().to_numpy()
        moneyness = np.log(rows["strike"].to_numpy() / rows["forward"].to_numpy()) / np.sqrt(tau)
        return cls(names, tau, moneyness, rows["iv_market"].to_numpy(), rows["last_volatility"].to_numpy(), hidden)

    def visible_of(self, smile: int) -> npt.NDArray[np.intp]:
        """Visible rows of one smile, ascending in moneyness, one for each moneyness."""
        rows = np.flatnonzero((self.smile == smile) & ~self.hidden)
        rows = rows[np.argsort(self.moneyness[rows], kind="stable")]
        return rows[np.r_[True, np.diff(self.moneyness[rows]) > 0]] if rows.size else rows

    def grid(self) -> Grid:
        """The grid of the visible rows."""
        smiles = [rows for rows in (self.visible_of(smile) for smile in range(self.smile.max() + 1)) if rows.size]
        tau = np.array([self.tau[rows[0]] for rows in smiles])
        return to_grid(tau, [self.moneyness[rows] for rows in smiles], [self.volatility[rows] for rows in smiles])


def draw_hidden(rows: int, share: float, place: int) -> Bools:
    """Which rows of the snapshot at `place` are hidden: each on its own with probability `share`, but never all below
    1.

    The same whatever the training's seed; of two shares the larger hides what the smaller does, and more.
    """
    drawn = np.random.default_rng((HIDDEN_SEED, place)).random(rows)
    hidden = drawn < share
    if share < 1.0 and hidden.all():
        hidden[int(drawn.argmax())] = False
    return np.asarray(hidden)


def readings(store: FeatureStore, place: int, net: SurfaceNet, hidden: Bools) -> tuple[Snapshot, Array, Array]:
    """The snapshot and the two readings of the net's answer at its rows (`net_readings`)."""
    snapshot = Snapshot.of(store.rows[store.row_range(place)], hidden)
    return snapshot, *net_readings(snapshot, _known(store, place, snapshot), net)


def net_readings(snapshot: Snapshot, known: SurfaceInput, net: SurfaceNet) -> tuple[Array, Array]:
    """The net's answer at every row of a snapshot, read between the cells and as the last smile moved; corrected."""
    between = at_points(net(known).completed[0], snapshot.tau, snapshot.moneyness)
    moved = snapshot.last + between - at_points(known.last[0], snapshot.tau, snapshot.moneyness)
    return _corrected(snapshot, between), _corrected(snapshot, moved)


@dataclass(frozen=True)
class Blend:
    """Weights of the readings `between` and `moved`; the rest is the last smile with the visible changes."""

    between: float
    moved: float


def blended(snapshot: Snapshot, between: Array, moved: Array, blend: Blend) -> Array:
    """The model's volatility at every row: both readings and the last smile with the visible changes, weighted."""
    rest = 1.0 - blend.between - blend.moved
    return blend.between * between + blend.moved * moved + rest * _corrected(snapshot, snapshot.last)


def fit_blend(store: FeatureStore, net: SurfaceNet, share: float) -> Blend:
    """Least-squares weights, none negative and together at most 1, on the latest dates before the test."""
    columns, wanted = [], []
    for place in _latest_before_test(store):
        hidden = draw_hidden(int(store.snapshots["rows"][place]), share, place)
        snapshot, between, moved = readings(store, place, net, hidden)
        shifted = _corrected(snapshot, snapshot.last)
        columns.append(np.stack([between - shifted, moved - shifted], axis=1)[hidden])
        wanted.append((snapshot.volatility - shifted)[hidden])
    weights, _ = nnls(np.concatenate(columns), np.concatenate(wanted))
    between, moved = weights / max(float(weights.sum()), 1.0)
    return Blend(float(between), float(moved))


def _latest_before_test(store: FeatureStore) -> list[int]:
    """Places of the snapshots of the last DETAIL_DATES dates before the test."""
    places = np.concatenate([store.places("train"), store.places("validation")])
    dates = store.snapshots["ts"].dt.date().to_numpy()[places]
    return [int(place) for place in places[np.isin(dates, np.unique(dates)[-DETAIL_DATES:])]]


def complete(store: FeatureStore, place: int, net: SurfaceNet, hidden: Bools, blend: Blend) -> dict[str, Array]:
    """Volatilities of the hidden rows by predictor, in the order of the rows."""
    snapshot, between, moved = readings(store, place, net, hidden)
    flat_grid = at_points(fill(snapshot.grid()), snapshot.tau, snapshot.moneyness)
    out = {
        "model": blended(snapshot, between, moved, blend),
        "interpolation": _corrected(snapshot, np.zeros_like(between), variance=True),
        "grid_interpolation": _corrected(snapshot, flat_grid),
        "svi": _svi(snapshot),
        "sticky_strike": snapshot.last,
        "shifted_last": _corrected(snapshot, snapshot.last),
    }
    return {name: np.maximum(values[hidden], FLOOR) for name, values in out.items()}


def alone(store: FeatureStore, place: int, net: SurfaceNet, hidden: Bools) -> Array:
    """What the net says of the hidden rows by itself, read between the cells as a host shows it; uncorrected."""
    snapshot = Snapshot.of(store.rows[store.row_range(place)], hidden)
    answer = net(_known(store, place, snapshot))
    return at_points(answer.completed[0], snapshot.tau, snapshot.moneyness)[hidden]


def _known(store: FeatureStore, place: int, snapshot: Snapshot) -> SurfaceInput:
    last, last_mask = (store.grids[place, part] for part in (2, 3))
    return SurfaceInput.of(snapshot.grid(), Grid(last, last_mask), store.moves[place])


def _corrected(snapshot: Snapshot, base: Array, *, variance: bool = False) -> Array:
    """Base plus the visible rows' misses, interpolated within each smile; a smile without any takes its neighbours'.

    `variance`: in total variance instead of volatility (of use where the base is zero).
    """
    tau = snapshot.tau
    miss = snapshot.volatility**2 * tau - base**2 * tau if variance else snapshot.volatility - base

    def inside(rows: npt.NDArray[np.intp], at: Array) -> Array:
        known = miss[rows] if variance else without_spikes(miss[rows])
        return np.interp(at, snapshot.moneyness[rows], known)

    added = _by_smile(snapshot, inside, variance=variance)
    return np.sqrt(np.maximum(base**2 * tau + added, 0.0) / tau) if variance else base + added


def without_spikes(miss: Array) -> Array:
    """Misses along a smile, those far off the median of their SPIKE_WINDOW replaced by it (Hampel filter): a single
    wrong quote shows against a base, and must not be handed on to its neighbours."""
    if miss.size < SPIKE_WINDOW:
        return miss
    padded = np.pad(miss, SPIKE_WINDOW // 2, mode="reflect")
    around = np.lib.stride_tricks.sliding_window_view(padded, SPIKE_WINDOW)
    median = np.median(around, axis=1)
    spread = 1.4826 * np.median(np.abs(around - median[:, np.newaxis]), axis=1)
    return np.where(np.abs(miss - median) > np.maximum(SPIKE_DEVIATIONS * spread, SMALLEST_SPIKE), median, miss)


def _svi(snapshot: Snapshot) -> Array:
    """An SVI per smile; interpolation where its visible quotes are too few."""

    def inside(rows: npt.NDArray[np.intp], at: Array) -> Array:
        root_tau = float(np.sqrt(snapshot.tau[rows[0]]))
        variance = snapshot.volatility[rows] ** 2 * root_tau**2
        svi = fit_svi(snapshot.moneyness[rows] * root_tau, variance)
        if svi is None:
            return np.interp(at, snapshot.moneyness[rows], variance)
        return svi.total_variance(at * root_tau)

    return np.sqrt(_by_smile(snapshot, inside, variance=True) / snapshot.tau)


def _by_smile(snapshot: Snapshot, inside: Callable[[npt.NDArray[np.intp], Array], Array], *, variance: bool) -> Array:
    """`inside(visible rows, moneyness)` for each smile; one without visible rows is put between those around it in
    tau, and takes the nearest's before the first and after the last (a `variance` in proportion to tau)."""
    count = int(snapshot.smile.max()) + 1
    visible = [snapshot.visible_of(smile) for smile in range(count)]
    seen = [smile for smile in range(count) if visible[smile].size]
    out = np.zeros(len(snapshot.tau))
    if not seen:
        return out
    tau_of = np.array([snapshot.tau[visible[smile][0]] for smile in seen])
    for smile in range(count):
        rows = np.flatnonzero(snapshot.smile == smile)
        at = snapshot.moneyness[rows]
        if visible[smile].size:
            out[rows] = inside(visible[smile], at)
            continue
        tau = snapshot.tau[rows[0]]
        after = int(np.searchsorted(tau_of, tau))
        low, high = max(after - 1, 0), min(after, len(seen) - 1)
        if low == high:
            nearest = inside(visible[seen[low]], at)
            out[rows] = nearest * tau / tau_of[low] if variance else nearest
            continue
        share = float((tau - tau_of[low]) / (tau_of[high] - tau_of[low]))
        out[rows] = (1 - share) * inside(visible[seen[low]], at) + share * inside(visible[seen[high]], at)
    return out
