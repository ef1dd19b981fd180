"""Released bytes put to an exam: the volatility they give for every row, and the table that scores it.

In: a verified bundle, an `Exam`. Out: volatilities float64 [N] by a named engine and way of computing; a table as
pipelines/metrics.py scores it. Windows are the bundle's last T market steps scaled by its own scaler, zeros before the
first, as in training (pipelines/dataset.py); a surface net's grid is read at the hidden quotes and blended as its own
evaluation did (pipelines/completion.py).
Invariants: what a bundle can't answer (other features, other anchors, a longer history than the exam's) is a DataError
that names the difference, never an answer from wrong inputs; no torch is imported.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from pipelines.exam import HISTORY_STEPS, Exam
from serving import black76
from serving.bundle import Bundle
from serving.engine import Engine, SurfaceEngine, open_engine, open_surface_engine
from serving.errors import DataError
from serving.features import FeatureSpec
from serving.normal import Array
from serving.pricing import feature_spec
from serving.surface_grid import Grid, check_grid_spec
from serving.surface_score import SurfaceInput

if TYPE_CHECKING:
    import polars as pl

REFERENCE_BACKEND = "ort"


def answer(
    bundle: Bundle, exam: Exam, *, backend: str = REFERENCE_BACKEND, semantics: str | None = None,
    read_as: Exam | None = None, precision: str = "fp32",
) -> Array:  # fmt: skip
    """Volatility of every row, [N].

    `precision`: of a pricing model's weights, as the engine has it. `semantics`: another way of computing than the
    bundle's own. `read_as`: the bundle's own exam, whose blend says how a surface net's grid is read at quotes; empty:
    this exam's. BundleError, EngineError, DataError.
    """
    task = bundle.manifest.task
    if task != exam.task:
        raise DataError(f"bundle {bundle.sha256} is a {task} model, the exam asks a {exam.task} model")
    if task == "surface":
        check_grid_spec(dict(bundle.manifest.feature_spec))
        return _complete(open_surface_engine(bundle, backend), exam, (read_as or exam).inputs["blend"])
    spec = feature_spec(bundle)
    require_same_inputs(spec, exam, bundle.sha256)
    judged = bundle if semantics is None else replace(bundle, manifest=replace(bundle.manifest, semantics=semantics))
    return _price(open_engine(judged, backend, precision=precision), spec, exam)


def require_same_inputs(spec: FeatureSpec, exam: Exam, bundle_sha256: str) -> None:
    """DataError unless the exam's features are those this spec is computed from."""
    ours = spec.to_json()
    differing = [name for name, value in exam.spec.items() if _listed(ours.get(name)) != _listed(value)]
    count = exam.inputs["step_count"]
    if ((count >= HISTORY_STEPS) & (count < spec.window)).any():  # cut off there, or as good as
        differing.append(f"window ({spec.window} steps, the exam keeps {count.max()})")
    if differing:
        raise DataError(f"bundle {bundle_sha256} can't answer this exam: its features differ in {', '.join(differing)}")


def _listed(value: object) -> object:
    """Tuples as lists, as JSON has them."""
    if isinstance(value, list | tuple):
        return [_listed(one) for one in value]
    return {name: _listed(one) for name, one in value.items()} if isinstance(value, dict) else value


def scaled_window(spec: FeatureSpec, exam: Exam, place: int) -> npt.NDArray[np.float32]:
    """[T, F]: the last T steps up to and including the snapshot, scaled, zeros before the first."""
    end, count = int(exam.inputs["step_end"][place]), min(int(exam.inputs["step_count"][place]), spec.window)
    steps = exam.inputs["steps"][end - count : end].astype(np.float64)
    out = np.zeros((spec.window, steps.shape[1]), np.float32)
    out[spec.window - count :] = spec.step_scaler(steps)
    return out


def scaled_contracts(spec: FeatureSpec, exam: Exam, place: int) -> npt.NDArray[np.float32]:
    """[n, K]: the snapshot's contracts, scaled."""
    return spec.contract_scaler(exam.inputs["contracts"][exam.row_range(place)].astype(np.float64))


def _price(engine: Engine, spec: FeatureSpec, exam: Exam) -> Array:
    context = np.zeros(engine.info().context_size, np.float32)
    out = np.full(len(exam), np.nan, np.float32)
    for place in range(len(exam.date)):
        window = scaled_window(spec, exam, place)
        engine.reset()
        for step in window[:-1]:
            engine.advance(step)
        engine.evaluate(window[-1], context)
        engine.head(context, scaled_contracts(spec, exam, place), out[exam.row_range(place)])
    return out.astype(np.float64)


def _complete(engine: SurfaceEngine, exam: Exam, blend: npt.NDArray[np.float64]) -> Array:
    from pipelines.completion import FLOOR, Blend, Snapshot, blended, net_readings

    weights = Blend(*(float(one) for one in blend))
    parts = []
    edges = np.searchsorted(exam.inputs["quote_snapshot"], np.arange(len(exam.date) + 1))
    for place in range(len(exam.date)):
        span = slice(int(edges[place]), int(edges[place + 1]))
        columns = {name: exam.inputs[f"quote_{name}"][span] for name in Snapshot.__dataclass_fields__}
        snapshot = Snapshot(**columns)
        last = Grid(exam.inputs["last"][place], exam.inputs["last_mask"][place])
        known = SurfaceInput.of(snapshot.grid(), last, exam.inputs["move"][place])
        between, moved = net_readings(snapshot, known, engine.answer)
        parts.append(np.maximum(blended(snapshot, between, moved, weights)[snapshot.hidden], FLOOR))
    out = np.concatenate(parts)
    if len(out) != len(exam):
        raise DataError(f"the exam hides {len(out)} quotes but scores {len(exam)} rows")
    return out


def exam_table(exam: Exam, answers: Mapping[str, Array], *, baselines: bool = True) -> pl.DataFrame:
    """A table as pipelines/metrics.py takes it: the rows with the volatility and price of each of `answers` (the first
    is to be `model`) and of every baseline."""
    import polars as pl

    rows = exam.rows
    place = rows["snapshot"]
    # Two snapshots of one date stay apart: by a millisecond for each before them.
    ts = exam.date[place].astype("datetime64[D]").astype("datetime64[ms]") + place.astype("timedelta64[ms]")
    days = np.round(rows["tau"] * 365.0).astype(np.int64)
    volatilities = dict(answers)
    forwards = dict.fromkeys(answers, "forward_model")
    if baselines:
        volatilities |= {name: values.astype(np.float64) for name, values in exam.baselines.items()}
        forwards |= exam.baseline_forwards
    columns = {
        "ts": ts, "expiry": exam.date[place].astype("datetime64[D]") + days, "underlying": np.full(len(exam), "one"),
        "root": rows["root"].astype(np.str_), "right": np.where(rows["right"] > 0, "C", "P"),
        **{name: rows[name] for name in ("strike", "tau", "bid", "ask", "forward", "discount", "forward_model",
                                         "discount_model", "iv_market")},
    }  # fmt: skip
    for name, volatility in volatilities.items():
        columns[f"iv_{name}"] = volatility
        columns[f"price_{name}"] = black76.price(
            rows[forwards[name]], rows["strike"], rows["tau"], volatility, rows["discount_model"], rows["right"]
        )
    return pl.DataFrame(columns)
