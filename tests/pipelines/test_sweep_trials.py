"""Trials that can't be: refused before any, recorded, or the end of the sweep; and features made once each."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState

from pipelines import command, ingest, sweep, sweep_objective
from pipelines.config import load_config
from pipelines.sweep_study import MESSAGE
from serving.errors import ConfigError, DataError, StrikeforgeError
from tests.pipelines.conftest import TinyRun
from tests.pipelines.sweeps import DEADLINE_SECONDS, REPOSITORY, children, reported, trials_in, words

pytestmark = pytest.mark.slow


def test_parts_of_lists_are_refused_before_any_trial(tiny_run: TinyRun, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="can't be told in an experiment file; give whole values"):
        sweep.planned(words(tiny_run, tmp_path, "data.anchors.0.tenor_days=7"))


def test_a_trial_that_its_configuration_forbids_is_recorded_and_the_sweep_goes_on(
    tmp_path: Path, tiny_run: TinyRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = sweep_objective.fit

    def choosy(cfg: Any, *args: Any, **options: Any) -> Any:
        if cfg.model.hidden == 4:
            raise DataError("this net is <too> wide")
        return whole(cfg, *args, **options)

    monkeypatch.setattr(sweep_objective, "fit", choosy)
    sweep.run(words(tiny_run, tmp_path, trials=4))
    trials = trials_in(tmp_path)
    assert len(trials) == 4
    failed = [trial for trial in trials if trial.params["model.hidden"] == 4]
    assert failed
    assert all(trial.state is TrialState.FAIL for trial in failed)
    assert failed[0].user_attrs[MESSAGE] == "DataError: this net is <too> wide"
    runs = {int(run.data.tags["trial"]): run for run in children(tmp_path)}
    assert runs[failed[0].number].info.status == "FAILED"
    assert runs[failed[0].number].data.tags["message"] == failed[0].user_attrs[MESSAGE]
    page = (tmp_path / "out/sweep/tiny/report.html").read_text()
    assert "DataError: this net is &lt;too&gt; wide" in page


def test_no_complete_trial_is_an_error_with_the_reasons(
    tmp_path: Path, tiny_run: TinyRun, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise DataError("no net will do")

    monkeypatch.setattr(sweep_objective, "fit", never)
    code = command.with_overrides(sweep.__doc__, sweep.run, words(tiny_run, tmp_path, trials=2))
    assert code == 1
    assert "no trial of 2 is complete" in (err := capsys.readouterr().err)
    assert "DataError: no net will do" in err
    assert "nothing to choose" in (tmp_path / "out/sweep/tiny/report.html").read_text()


def test_swept_features_are_made_once_each(tmp_path: Path, tiny_run: TinyRun, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []
    for stage in (sweep_objective.ingest, sweep_objective.features):
        whole = stage.run

        def counted(cfg: Any, whole: Any = whole, name: str = stage.__name__) -> Any:
            made.append(name)
            return whole(cfg)

        monkeypatch.setattr(stage, "run", counted)
    space = ("sweep.space={features: {window: {choices: [3, 6]}}, data: {anchors: {choices: [[], [{tenor_days: 45}]]}},"
             " split: {embargo: {choices: [1, 40]}}}")  # fmt: skip
    base = [text for text in words(tiny_run, tmp_path, trials=6)
            if not text.startswith(("features.window", "sweep.space", "data.anchors", "split.embargo"))]  # fmt: skip
    small = ["model.hidden=2", "sweep.sampler.name=random", space]
    sweep.run([*base, *small])
    trials = trials_in(tmp_path)
    late = [trial for trial in trials if trial.params["split.embargo"] == 40]
    assert late
    assert all(trial.state is TrialState.FAIL for trial in late)
    assert "TooFewSnapshotsError" in late[0].user_attrs[MESSAGE]
    others = {str(trial.params) for trial in trials if trial not in late}
    assert made.count("pipelines.ingest") == 1
    assert made.count("pipelines.features") == len(others) + len(late)
    made.clear()
    sweep.run([*base, *small])
    assert made == []
    prepared = tmp_path / "out/sweep/tiny/prepared"
    assert len(list(prepared.glob("features-*"))) == len(others)
    assert (prepared / next(iter(prepared.glob("features-*"))) / "ingest/quotes.parquet").exists()


def test_files_that_cannot_be_read_are_no_trials_fault(tmp_path: Path, tiny_run: TinyRun) -> None:
    base = [text for text in words(tiny_run, tmp_path, trials=2)
            if not text.startswith(("features.window", "data.path"))]  # fmt: skip
    with pytest.raises(DataError, match=r"nowhere.parquet"):
        sweep.run([*base, f"data.path={tmp_path}/nowhere.parquet", "sweep.space.features.window={low: 3, high: 4}"])
    assert trials_in(tmp_path) == []


def test_features_that_do_not_fit_are_refused(tmp_path: Path, tiny_run: TinyRun) -> None:
    with pytest.raises(DataError, match=r"windows of 5 steps and features.window is 7: run python -m pipelines.f"):
        sweep.run(words(tiny_run, tmp_path, "features.window=7"))
    (tmp_path / "out/features").unlink()
    arguments = [text for text in words(tiny_run, tmp_path / "b") if not text.startswith("out=")]
    with pytest.raises(DataError, match=r"run python -m pipelines.features"):
        sweep.run([*arguments, f"out={tmp_path}/c"])
    assert not (tmp_path / "out/sweep").exists()


def test_a_second_process_is_refused_while_the_first_is_at_work(tmp_path: Path, tiny_run: TinyRun) -> None:
    line = [sys.executable, "-m", "pipelines.sweep", *words(tiny_run, tmp_path, trials=200)]
    first = subprocess.Popen(line, cwd=REPOSITORY, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        end = time.monotonic() + DEADLINE_SECONDS
        while reported(tmp_path / "out/sweep/tiny/study.db") < 1:
            assert first.poll() is None
            assert time.monotonic() < end
            time.sleep(0.01)
        with pytest.raises(StrikeforgeError, match=f"another sweep \\(process {first.pid}\\) is at work"):
            sweep.run(words(tiny_run, tmp_path, trials=200))
        assert first.poll() is None
    finally:
        first.kill()
        first.wait()


def test_ingest_is_what_the_prepared_folder_is_named_after() -> None:
    """Every key of `data` is either read by ingest or known not to be."""
    import dataclasses

    names = {field.name for field in dataclasses.fields(load_config([]).data)}
    assert names - set(sweep_objective.INGESTED) == {"underlyings", "anchors", "provenance"}
    assert ingest.run.__module__ == "pipelines.ingest"
