"""Small tables of one value per date that a configuration names: the underlying's history, regime labels.

In: CSV or Parquet with a column `date` and another. Out: `date` and that column. Invariants: every date and value can
be used, and a date stands there once; what can't be used is an error that names file, row and value.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import polars as pl

from serving.errors import DataError, SchemaError


def read_dated(
    path: Path, column: str, key: str, *, typed: type[pl.DataType], usable: Callable[[pl.Series], pl.Series], rule: str
) -> pl.DataFrame:
    """Columns `date` and `column` (of type `typed`); `usable` judges its values and `rule` says what it wants.

    `key` is the configuration's, for messages. Raises SchemaError, DataError.
    """
    try:
        table = pl.read_parquet(path) if path.suffix == ".parquet" else pl.read_csv(path, infer_schema=False)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise DataError(f"{path}: can't be read, for {key}: {error}") from error
    missing = [name for name in ("date", column) if name not in table.columns]
    if missing:
        raise SchemaError(f"{path}: no column {', '.join(missing)} (found {', '.join(table.columns)}); "
                          f"{key} needs date and {column}")  # fmt: skip
    dates = table["date"].cast(pl.String).str.slice(0, 10).str.to_date("%Y-%m-%d", strict=False)
    values = table[column].cast(typed, strict=False)
    bad = dates.is_null() | values.is_null() | ~usable(values).fill_null(value=False)
    if bad.any():
        row = int(bad.arg_max() or 0)
        raise DataError(f"{path}: row {row + 1} has date {table['date'][row]!r} and {column} {table[column][row]!r} "
                        f"({bad.sum()} such rows); dates are YYYY-MM-DD and {rule}")  # fmt: skip
    if dates.is_duplicated().any():
        twice = dates.filter(dates.is_duplicated())[0]
        raise DataError(f"{path}: date {twice} is there more than once; keep one {column} per date")
    return pl.DataFrame({"date": dates, column: values})
