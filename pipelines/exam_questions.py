"""An exam written down: what evaluate asked of the net on the test dates, with the inputs not yet scaled.

In: the features stage's files, the predictions of all predictors on the test rows (columns: pipelines/metrics.py).
Out: `Exam` (pipelines/exam.py). Invariants: every scored test row is asked; features are those that training saw before
its scaler; of a surface model, what was hidden from the net is hidden here.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from pipelines.completion import Blend, Snapshot
from pipelines.dataset import FeatureStore
from pipelines.exam import HISTORY_STEPS, QUOTES, Exam
from serving.errors import DataError
from serving.normal import Array
from serving.surface_grid import grid_spec

Bools = npt.NDArray[np.bool_]
SPEC_KEYS = ("version", "anchors", "step_features", "contract_features")  # of a FeatureSpec: what inputs mean
RAW = ("steps_raw.npy", "contracts_raw.npy")


def pricing_exam(
    features: Path, store: FeatureStore, predictions: pl.DataFrame, *, priced_like_the_model: Sequence[str]
) -> Exam:
    """Of a pricing model; `predictions` has a row for every test row, in the store's order, with `forward_carried`.

    DataError where the features were made before raw ones were kept.
    """
    missing = [name for name in RAW if not (features / name).exists()]
    if missing:
        raise DataError(f"{features} lacks {', '.join(missing)}: run python -m pipelines.features with the same out=")
    steps, contracts = (np.load(features / name, mmap_mode="r") for name in RAW)
    places = store.places("test")
    history = max(HISTORY_STEPS, store.spec.window)
    counts = np.array([_steps_known(store, int(place), history) for place in places])
    kept = np.unique(np.concatenate([np.arange(p + 1 - n, p + 1) for p, n in zip(places, counts, strict=True)]))
    test = (store.rows["split"] == "test").to_numpy()
    spec = {name: value for name, value in store.spec.to_json().items() if name in SPEC_KEYS}
    return _exam(
        "pricing", spec, store, places, predictions, _counts(store, places), priced_like_the_model,
        {"steps": np.array(steps[kept], np.float32), "contracts": np.array(contracts[test], np.float32),
         "step_end": (np.searchsorted(kept, places) + 1).astype(np.int32), "step_count": counts.astype(np.int32)},
    )  # fmt: skip


def surface_exam(store: FeatureStore, predictions: pl.DataFrame, hidden: Sequence[Bools], blend: Blend) -> Exam:
    """Of a surface model; `hidden` says of every test snapshot (in order) which rows `predictions` completes."""
    places = store.places("test")
    snapshots = [Snapshot.of(store.rows[store.row_range(int(place))], mask)
                 for place, mask in zip(places, hidden, strict=True)]  # fmt: skip
    quotes: dict[str, Any] = {
        "snapshot": np.repeat(np.arange(len(places), dtype=np.int32), [len(one.tau) for one in snapshots]),
        **{name: np.concatenate([getattr(one, name) for one in snapshots]) for name in QUOTES[1:]},
    }
    quotes["smile"] = quotes["smile"].astype(np.int32)
    table = predictions.with_columns(forward_carried=pl.col("forward"))
    baselines = [name for name in _predictors(predictions) if name != "model"]
    return _exam(
        "surface", grid_spec(), store, places, table, [int(mask.sum()) for mask in hidden], baselines,
        {**{f"quote_{name}": values for name, values in quotes.items()},
         "last": store.grids[places, 2], "last_mask": store.grids[places, 3], "move": store.moves[places],
         "blend": np.array([blend.between, blend.moved])},
    )  # fmt: skip


def _exam(
    task: str, spec: dict[str, Any], store: FeatureStore, places: npt.NDArray[np.intp], table: pl.DataFrame,
    counts: Sequence[int], priced_like_the_model: Sequence[str], inputs: dict[str, Any],
) -> Exam:  # fmt: skip
    """The parts that both tasks share; `counts` are the rows of each snapshot."""
    plain: dict[str, Array] = {
        name: table[name].cast(pl.Float64).to_numpy() for name in ("strike", "tau", "bid", "ask", "forward", "discount",
        "forward_carried", "forward_model", "discount_model", "iv_market")
    }  # fmt: skip
    rows: dict[str, Any] = {
        "snapshot": np.repeat(np.arange(len(places), dtype=np.int32), counts),
        "root": np.unique(table["root"].to_numpy().astype(np.str_), return_inverse=True)[1].astype(np.int32),
        "right": np.where((table["right"] == "C").to_numpy(), 1, -1).astype(np.int8),
        "answer": table["iv_model"].to_numpy().astype(np.float32), **plain,
    }  # fmt: skip
    names = [name for name in _predictors(table) if name != "model"]
    forwards = {name: "forward_model" if name in priced_like_the_model else "forward_carried" for name in names}
    return Exam(
        task, spec, forwards, _days(store, places), _seen(store, "train"), _seen(store, "validation"),
        rows, {name: table[f"iv_{name}"].to_numpy().astype(np.float32) for name in names}, inputs,
    )  # fmt: skip


def _predictors(table: pl.DataFrame) -> list[str]:
    return [column[3:] for column in table.columns if column.startswith("iv_") and column != "iv_market"]


def _counts(store: FeatureStore, places: npt.NDArray[np.intp]) -> list[int]:
    return [int(store.snapshots["rows"][int(place)]) for place in places]


def _steps_known(store: FeatureStore, place: int, most: int) -> int:
    """Steps of this underlying since it last split, up to and including the snapshot's; at most `most`."""
    underlying, segment = store.snapshots["underlying"], store.snapshots["segment"]
    first = max(0, place - most + 1)
    while (underlying[first], segment[first]) != (underlying[place], segment[place]):
        first += 1
    return place + 1 - first


def _days(store: FeatureStore, places: npt.NDArray[np.intp]) -> npt.NDArray[np.int32]:
    ts = store.snapshots["ts"].to_numpy()[places]
    return np.asarray(ts.astype("datetime64[D]").astype(np.int32))


def _seen(store: FeatureStore, split: str) -> npt.NDArray[np.int32]:
    """Every date of a split, whether its snapshots had rows to score or not."""
    places = np.flatnonzero((store.snapshots["split"] == split).to_numpy())
    return np.unique(_days(store, places))
