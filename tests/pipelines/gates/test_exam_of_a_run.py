"""The exam that evaluate writes, of a whole run on the tiny market: released bytes answer as the trained net did."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from pipelines import evaluate, export, train
from pipelines.config import Config
from pipelines.dataset import FeatureStore
from pipelines.exam import load_exam
from pipelines.exam_answers import answer, exam_table, scaled_contracts, scaled_window
from pipelines.metrics import scores
from serving.bundle import Bundle, load_bundle
from serving.pricing import feature_spec
from tests.pipelines.conftest import TinyRun


def finished(cfg: Config) -> tuple[Path, Bundle]:
    """The exam and the bundle of a run, exported where it isn't yet."""
    folder = cfg.folder / "export" / cfg.model.name / "bundle"
    if not folder.exists():
        export.run(cfg)
    return cfg.folder / "evaluate" / cfg.model.name / "exam.npz", load_bundle(folder)


@pytest.fixture(scope="module", params=["pricing_lstm", pytest.param("surface_vae", marks=pytest.mark.slow)])
def run(request: pytest.FixtureRequest, tiny_run: TinyRun) -> Config:
    cfg = tiny_run.of(request.param)
    if request.param == "surface_vae":
        train.run(cfg)
        evaluate.run(cfg)
    return cfg


def test_bytes_answer_as_the_evaluation_scored(run: Config) -> None:
    path, bundle = finished(run)
    exam = load_exam(path)
    predictions = pl.read_parquet(path.parent / "predictions.parquet")
    assert len(exam) == len(predictions)
    assert np.array_equal(exam.rows["iv_market"], predictions["iv_market"].to_numpy())
    found = answer(bundle, exam)
    assert np.max(np.abs(found - predictions["iv_model"].to_numpy())) < 1e-5
    recorded = json.loads((path.parent / "metrics.json").read_text())["test"]
    for name, score in scores(exam_table(exam, {"model": found})).items():
        for measure in ("iv_rmse", "iv_mae", "price_rmse", "inside_spread"):
            assert score[measure] == pytest.approx(recorded[name][measure], rel=1e-4), (name, measure)  # type: ignore[literal-required]


def test_its_dates_are_those_of_the_split(run: Config) -> None:
    exam = load_exam(finished(run)[0])
    store = FeatureStore.open(run.folder / "features")
    for split, days in exam.seen().items():
        mine = store.snapshots.filter(pl.col("split") == split)["ts"].dt.date().unique().sort()
        assert days == [str(day) for day in mine]
    tested = store.snapshots.filter((pl.col("split") == "test") & (pl.col("rows") > 0))["ts"].dt.date()
    assert [str(day) for day in exam.date.astype("datetime64[D]")] == [str(day) for day in tested.sort()]


def test_raw_features_scaled_are_what_training_saw(tiny_run: TinyRun) -> None:
    path, bundle = finished(tiny_run.cfg)
    exam, store, spec = load_exam(path), FeatureStore.open(tiny_run.out / "features"), feature_spec(bundle)
    for place, snapshot in enumerate(store.places("test")):
        assert np.allclose(scaled_window(spec, exam, place), store.window(int(snapshot)), atol=1e-5)
        contracts = store.contracts[store.row_range(int(snapshot))]
        assert np.allclose(scaled_contracts(spec, exam, place), contracts, atol=1e-5)


def test_equal_runs_give_equal_exams(tiny_run: TinyRun) -> None:
    path, _ = finished(tiny_run.cfg)
    before = path.read_bytes()
    assert load_exam(path).to_bytes() == before
