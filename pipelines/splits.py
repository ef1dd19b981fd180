"""Split snapshots by date: training, validation, test, an embargo before validation and before the test.

In: a table with `ts` and `rows` per snapshot. Out: the same with `split` in train/validation/test/embargo/unused.
Invariants: dates of one split never reach into another; all snapshots and underlyings of a date share its split; dates
without scored rows keep their place in the market sequence and are `unused`, as are dates
after `test_to`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import polars as pl

from pipelines.config import SplitConfig
from serving.errors import TooFewSnapshotsError

SPLITS = ("train", "validation", "test", "embargo", "unused")
FEWEST_TRAINING_DATES = 5


def assign_splits(snapshots: pl.DataFrame, split: SplitConfig, passed_over: Sequence[str] = ()) -> pl.DataFrame:
    """Add the column `split`; raises TooFewSnapshotsError with what there is and what is needed.

    `passed_over` holds the reason of each snapshot that wasn't used, for the message.
    """
    dates = snapshots["ts"].to_numpy().astype("datetime64[D]")
    scored = np.unique(dates[snapshots["rows"].to_numpy() > 0]) if len(snapshots) else dates[:0]
    first, last = np.datetime64(split.test_from), np.datetime64(split.test_to) if split.test_to else None
    test = scored[(scored >= first) & ((scored <= last) if last is not None else True)]
    before = scored[scored < first]
    gaps = split.embargo * (2 if split.validation_dates else 1)
    needed = split.validation_dates + gaps + FEWEST_TRAINING_DATES
    if before.size < needed or not test.size:
        reasons = ", ".join(f"{count} for {reason}" for reason, count in Counter(passed_over).most_common())
        skipped = f"{len(passed_over)} snapshots passed over" + (f": {reasons}" if reasons else "")
        span = f"{scored[0]} to {scored[-1]}" if scored.size else "none"
        raise TooFewSnapshotsError(
            f"too few dates with scored quotes: have {before.size} before split.test_from={split.test_from} and "
            f"{test.size} from it on ({scored.size} in all, {span}; {skipped}), "
            f"need {needed} before (split.validation_dates={split.validation_dates}, "
            f"{gaps} for split.embargo={split.embargo}, {FEWEST_TRAINING_DATES} to train on) and 1 after: give more "
            "data, move split.test_from or lower split.validation_dates"
        )
    end = before.size - split.embargo
    start = end - split.validation_dates
    names = {}
    for place, date in enumerate(before):
        in_train, in_validation = place < start - gaps + split.embargo, start <= place < end
        names[date] = "train" if in_train else "validation" if in_validation else "embargo"
    names |= dict.fromkeys(test, "test")
    rows = snapshots["rows"].to_numpy()
    labels = [names.get(date, "unused") if count else "unused" for date, count in zip(dates, rows, strict=True)]
    return snapshots.with_columns(pl.Series("split", labels))
