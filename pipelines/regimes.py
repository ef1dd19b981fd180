"""Labels of market regimes for the semi-supervised head of surface_vae: a user's, or by realised volatility.

In: snapshots with `ts`, `split` and `realised_volatility`; optionally a CSV or Parquet of (date, regime), any names.
Out: the column `regime`, null where a date has no label. Without a file: calm, normal and stressed are the clear cases
of the realised volatility over 21 steps (below the 25th, between the 40th and 60th, above the 80th percentile of the
training dates); dates between have no label.

Invariant: thresholds come from training dates only; a label looks at nothing after its date.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl

from pipelines.dated_tables import read_dated

FEWEST_VALUES = 10  # different realised volatilities of training dates, to speak of percentiles
CLEAR_CASES = {"calm": (0.0, 0.25), "normal": (0.40, 0.60), "stressed": (0.80, 1.0)}  # percentiles of training dates


def label_regimes(snapshots: pl.DataFrame, file: str | None) -> pl.DataFrame:
    """Add `regime`; raises SchemaError, DataError for a file that can't be used."""
    if file is not None:
        return snapshots.join(_read(Path(file)), left_on=pl.col("ts").dt.date(), right_on="date", how="left",
                              maintain_order="left").drop("date", strict=False)  # fmt: skip
    realised = snapshots["realised_volatility"].fill_null(np.nan).to_numpy()
    is_training = (snapshots["split"] == "train").to_numpy() & np.isfinite(realised)
    names = snapshots["underlying"].to_numpy()
    labels = np.full(len(snapshots), None, dtype=object)
    for underlying in np.unique(names):
        mine = names == underlying
        training = realised[mine & is_training]
        if np.unique(training).size < FEWEST_VALUES:
            continue
        for name, shares in CLEAR_CASES.items():
            low, high = np.quantile(training, shares)
            low, high = (-np.inf if shares[0] == 0.0 else low), (np.inf if shares[1] == 1.0 else high)
            labels[mine & (realised >= low) & (realised <= high)] = name
    return snapshots.with_columns(pl.Series("regime", labels.tolist(), dtype=pl.String))


def _read(path: Path) -> pl.DataFrame:
    return read_dated(path, "regime", "features.regimes", typed=pl.String,
                      usable=lambda names: names.str.len_chars() > 0, rule="every row names a regime")  # fmt: skip
