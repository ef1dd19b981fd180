"""Stage features: canonical quotes -> market sequence, contract table, labels, split, scalers.

In: `OUT/ingest/quotes.parquet`. Out, in `OUT/features/`:
  steps.npy      float32 [M, F]  scaled market steps, snapshots in order of underlying, then time
  contracts.npy  float32 [N, K]  scaled contract features of the scored quotes
  steps_raw.npy, contracts_raw.npy   the same not scaled, for exams (pipelines/exam.py): other versions scale otherwise
  grids.npy      float32 [M, 4, G]  surface on the grid, its mask; the one last seen carried to now, its mask
  moves.npy      float32 [M, 3]  what the underlying did since (serving/surface_grid.py)
  rows.parquet   N rows: what the quote is, its labels (values of t), what the baselines use
  snapshots.parquet  M rows: underlying, ts, spot, split, first row, rows, anchors, realised volatility, regime,
                     segment (of an underlying between splits of its shares)
  spec.json      the `FeatureSpec` (window, anchors, scalers) that travels in the bundle
  summary.json   counts, and the snapshots passed over with the reason

Invariants: features of t come from serving/ and see nothing of t but the underlying and the anchors; scalers see
training dates only; arrays and rows keep one order.

Run: python -m pipelines.features [key=value ...]
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from pipelines.config import Config
from pipelines.progress import progress
from pipelines.regimes import label_regimes
from pipelines.remote_data import local
from pipelines.snapshots import read_history, read_snapshots
from pipelines.splits import SPLITS, assign_splits
from serving import features as shared
from serving.errors import DataError
from serving.last_seen import Anchor, AnchorTarget, LastSeen, find_anchors, last_seen, scored_range, shift_at
from serving.quotes import is_split
from serving.surface import DAYS_PER_YEAR, Bools, Quotes, Smile, Surface, build_surface
from serving.surface_grid import NOTHING, carried, fill, move_features, surface_grid


@dataclass(frozen=True)
class FeaturesResult:
    """Where the features are and how many: snapshots, scored rows, and snapshots passed over."""

    folder: Path
    snapshots: int
    rows: int
    passed_over: int


@dataclass
class _Underlying:
    """What is carried from snapshot to snapshot of one underlying."""

    times: list[np.datetime64]
    prices: list[float]
    last: LastSeen | None = None
    quotes: Quotes | None = None
    segment: int = 0  # raised by a split of the shares: nothing before one counts


def run(cfg: Config) -> FeaturesResult:
    """Compute everything of `OUT/features/`; raises TooFewSnapshotsError, DataError."""
    targets = tuple(AnchorTarget(anchor.tenor_days, anchor.moneyness) for anchor in cfg.data.anchors)
    quotes_path = cfg.folder / "ingest" / "quotes.parquet"
    if not quotes_path.exists():
        raise DataError(f"{quotes_path} isn't there: run python -m pipelines.ingest with the same out= first")
    builder = _Builder(targets, cfg)
    for underlying, quotes in progress(read_snapshots(quotes_path, cfg.data.underlyings), "features: snapshots"):
        builder.add(underlying, quotes)
    return builder.write(cfg.folder / "features")


class _Builder:
    """Collects steps and rows snapshot by snapshot, then splits, scales and writes them."""

    def __init__(self, targets: tuple[AnchorTarget, ...], cfg: Config) -> None:
        self.targets, self.cfg = targets, cfg
        self.state: dict[str, _Underlying] = {}
        self.snapshots: list[dict[str, Any]] = []
        self.steps: list[np.ndarray] = []
        self.grids: list[np.ndarray] = []
        self.moves: list[np.ndarray] = []
        self.tables: list[np.ndarray] = []
        self.frames: list[pl.DataFrame] = []
        self.passed_over: list[dict[str, str]] = []

    def add(self, underlying: str, quotes: Quotes) -> None:
        """One snapshot: its step, its rows, and what it leaves for the next."""
        surface = build_surface(quotes)
        seen = last_seen(surface)
        if not seen.usable:
            reason = "no parity forward" if not surface.smiles else "no quote in the scored range"
            self.passed_over.append({"underlying": underlying, "ts": str(quotes.ts), "reason": reason})
            return
        if underlying not in self.state:
            self.state[underlying] = self._begin(underlying, quotes)
        state = self.state[underlying]
        if state.quotes is not None and is_split(state.quotes, quotes):  # other shares: nothing before counts
            state = self.state[underlying] = _Underlying([], [], segment=state.segment + 1)
        state.times.append(quotes.ts)
        state.prices.append(quotes.spot)
        path = shared.Path(np.array(state.times[-256:]), np.array(state.prices[-256:]))
        anchors = find_anchors(quotes, state.last, self.targets) if state.last else []
        self.steps.append(shared.market_step(path, state.last, anchors))
        count = self._add_rows(underlying, surface, state.last, anchors, path) if state.last else 0
        known = len(state.prices) > REALISED_STEPS
        realised = float(self.steps[-1][_RV_21]) if known else None
        self.snapshots.append({"underlying": underlying, "ts": quotes.ts, "spot": quotes.spot, "rows": count,
                               "anchors": len(anchors), "realised_volatility": realised,
                               "segment": state.segment})  # fmt: skip
        self.grids.append(_grids(seen, state.last))
        self.moves.append(move_features(state.last, quotes.ts, quotes.spot))
        state.last, state.quotes = seen, quotes

    def _begin(self, underlying: str, quotes: Quotes) -> _Underlying:
        """The path before the first snapshot: the history, where there is one."""
        if self.cfg.data.history is None:
            return _Underlying([], [])
        if self.state:
            raise DataError(f"data.history serves one underlying, and the quotes hold {', '.join(self.state)} and "
                            f"{underlying}: leave it out or ingest one underlying")  # fmt: skip
        day = quotes.ts.astype("datetime64[D]")
        history = read_history(local(self.cfg.data.history), quotes.ts - day)
        history = history.filter(pl.col("ts") < day.astype("datetime64[ns]"))
        return _Underlying(list(history["ts"].to_numpy()), history["price"].to_list())

    def _add_rows(
        self, underlying: str, surface: Surface, last: LastSeen, anchors: list[Anchor], path: shared.Path
    ) -> int:
        """Scored quotes of this snapshot: features from the past, labels from the surface of t."""
        taken = {(anchor.key, anchor.strike) for anchor in anchors}
        labels: list[pl.DataFrame] = []
        for key, smile in surface.smiles.items():
            if key not in last.smiles or not last.smiles[key].in_range:
                continue
            rows = scored_range(smile, surface.spot)
            rows &= np.array([(key, strike) not in taken for strike in smile.strike], dtype=bool)
            count = int(rows.sum())
            if not count:
                continue
            labels.append(_labels(smile, rows, last, surface.spot))
        frame = pl.concat(labels) if labels else pl.DataFrame()
        if frame.height < self.cfg.features.smallest_rows:
            return 0
        contracts = shared.Contracts(frame["root"].to_numpy().astype(np.str_), frame["expiry"].to_numpy(),
                                     frame["strike"].to_numpy(), frame["right_sign"].to_numpy())  # fmt: skip
        table = shared.contract_table(contracts, surface.ts, surface.spot, last, anchors)
        assert len(table.rows) == frame.height, "every scored quote has an expiry that was last seen"
        frame = frame[table.rows.tolist()].with_columns(
            ts=pl.lit(surface.ts).cast(UTC_NS), underlying=pl.lit(underlying), tau=table.tau,
            forward_model=table.forward, forward_carried=table.carried_forward, discount_model=table.discount,
            last_volatility=table.last_volatility, shift=table.shift,
            log_return=pl.lit(float(np.log(surface.spot / last.spot))), spot=pl.lit(surface.spot),
            last_spot=pl.lit(last.spot), realised_volatility=pl.lit(float(self.steps[-1][_RV_21])),
        )  # fmt: skip
        self.frames.append(frame.with_columns(_anchor_moves(anchors)))
        self.tables.append(table.features)
        return int(frame.height)

    def write(self, folder: Path) -> FeaturesResult:
        """Split, fit scalers on training dates, order by underlying and time, write."""
        schema: dict[str, Any] = {
            "underlying": pl.String,
            "ts": UTC_NS,
            "spot": pl.Float64,
            "rows": pl.Int64,
            "anchors": pl.Int64,
            "realised_volatility": pl.Float64,
            "segment": pl.Int64,
        }
        columns = {name: [snapshot[name] for snapshot in self.snapshots] for name in schema}
        columns["ts"] = np.array(columns["ts"], dtype="datetime64[ns]")  # type: ignore[assignment]
        snapshots = pl.DataFrame(columns, schema_overrides=schema)
        snapshots = assign_splits(snapshots, self.cfg.split, [one["reason"] for one in self.passed_over])
        starts = np.cumsum(np.r_[0, snapshots["rows"].to_numpy()])[:-1]
        snapshots = snapshots.with_columns(first_row=starts, place=np.arange(len(snapshots)))
        frame, table = pl.concat(self.frames), np.concatenate(self.tables)
        rows_split = np.repeat(snapshots["split"].to_numpy(), snapshots["rows"].to_numpy())
        steps = np.stack(self.steps)
        spec = shared.FeatureSpec(
            self.cfg.features.window, self.targets,
            shared.Scaler.fit(steps[(snapshots["split"] == "train").to_numpy()], shared.STEP_FEATURES),
            shared.Scaler.fit(table[rows_split == "train"], shared.CONTRACT_FEATURES, shared.UNSCALED),
        )  # fmt: skip
        snapshots = label_regimes(snapshots, self.cfg.features.regimes)
        ordered = snapshots.sort("underlying", "ts")
        folder.mkdir(parents=True, exist_ok=True)
        order = ordered["place"].to_numpy()
        np.save(folder / "steps.npy", spec.step_scaler(steps[order]))
        np.save(folder / "grids.npy", np.stack(self.grids)[order].astype(np.float32))
        np.save(folder / "moves.npy", np.stack(self.moves)[order].astype(np.float32))
        np.save(folder / "contracts.npy", spec.contract_scaler(table))
        np.save(folder / "steps_raw.npy", steps[order].astype(np.float32))
        np.save(folder / "contracts_raw.npy", table.astype(np.float32))
        frame.with_columns(pl.Series("split", rows_split)).write_parquet(folder / "rows.parquet")
        ordered.drop("place").write_parquet(folder / "snapshots.parquet")
        (folder / "spec.json").write_text(json.dumps(spec.to_json(), indent=1, sort_keys=True) + "\n")
        counts = {name: int((rows_split == name).sum()) for name in SPLITS}
        borrowed = int((~frame["from_parity"]).sum())
        summary = {"snapshots": len(snapshots), "rows": len(frame), "rows_by_split": counts,
                   "rows_with_borrowed_forward": borrowed, "passed_over": self.passed_over}  # fmt: skip
        (folder / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
        return FeaturesResult(folder, len(snapshots), len(frame), len(self.passed_over))


UTC_NS = pl.Datetime("ns")
REALISED_STEPS = 21  # returns that the realised volatility of a regime label takes
_RV_21 = shared.STEP_FEATURES.index("realised_volatility_21")


def _labels(smile: Smile, rows: Bools, last: LastSeen, spot: float) -> pl.DataFrame:
    """Scored quotes of one smile: what they are, their labels, and what the baselines need of the last smile."""
    before = last.smiles[smile.key]
    strike, count = smile.strike[rows], int(rows.sum())
    now = np.log(strike / last.carried_forward(smile.key, spot)) / np.sqrt(smile.tau)
    then = np.log(before.strike / before.forward) / np.sqrt(before.tau)
    columns = {
        "root": [smile.key.root] * count, "expiry": np.full(count, smile.key.expiry), "strike": strike,
        "right_sign": smile.right[rows], "bid": smile.bid[rows], "ask": smile.ask[rows],
        "iv_market": smile.volatility[rows], "flags": smile.flags[rows],
        "last_at_moneyness": np.interp(now, then, before.volatility),
    }  # fmt: skip
    constants = {
        "forward": smile.forward, "discount": smile.discount, "from_parity": smile.from_parity,
        "last_forward": before.forward, "last_level": before.shape[0], "last_slope": before.shape[1],
        "last_curvature": before.shape[2],
    }  # fmt: skip
    return pl.DataFrame(columns | {name: np.full(count, value) for name, value in constants.items()})


def _grids(seen: LastSeen, last: LastSeen | None) -> np.ndarray:
    """Surface and mask of this snapshot; that last seen, carried to now and filled, and its mask: [4, G]."""
    now = surface_grid(seen)
    before = carried(last, seen.ts, seen.spot) if last is not None else NOTHING
    return np.stack([now.volatility, now.mask, fill(before), before.mask])


def _anchor_moves(anchors: list[Anchor]) -> list[pl.Expr]:
    """The moves at the grid tenors, sqrt(tau) (IV_t - IV_prev), for baselines with as many columns for any anchors."""
    grid = np.array(shared.GRID_DAYS) / DAYS_PER_YEAR
    moves = shift_at(anchors, grid, np.zeros_like(grid)) * np.sqrt(grid)
    return [
        pl.lit(float(move)).alias(f"anchor_move_{int(days)}")
        for days, move in zip(shared.GRID_DAYS, moves, strict=True)
    ]


if __name__ == "__main__":
    from pipelines.command import stage

    raise SystemExit(stage(__doc__, run))
