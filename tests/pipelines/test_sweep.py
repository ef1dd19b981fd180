"""A finished sweep, on the tiny market: trials, MLflow, the best as an experiment, and a process killed with -9."""

from __future__ import annotations

import random
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState

from pipelines import command, sweep, sweep_experiment, sweep_objective
from pipelines.config import CONF, config_hash, load_config
from pipelines.registry import open_registry
from pipelines.sweep_study import STARTS
from serving.errors import ConfigError
from tests.pipelines.conftest import TinyRun
from tests.pipelines.sweeps import (
    DEADLINE_SECONDS,
    EPOCHS,
    REPOSITORY,
    TRIALS,
    children,
    reported,
    told,
    trials_in,
    words,
)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def done(tiny_run: TinyRun, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A finished sweep: its folder and its command line. Nobody writes into it."""
    folder = tmp_path_factory.mktemp("sweep")
    arguments = words(tiny_run, folder)
    sweep.run(arguments)
    return folder, arguments


def test_the_budget_is_exact_and_the_states_are_what_happened(done: tuple[Path, list[str]]) -> None:
    trials = trials_in(done[0])
    assert [trial.number for trial in trials] == list(range(TRIALS))
    for trial in trials:
        epochs = list(trial.intermediate_values)
        assert epochs == list(range(1, len(epochs) + 1))
        if trial.state is TrialState.PRUNED:
            assert 2 <= len(epochs) <= EPOCHS
            assert trial.value == trial.intermediate_values[len(epochs)]
        else:
            assert trial.state is TrialState.COMPLETE
            assert len(epochs) == EPOCHS
            assert trial.value <= min(trial.intermediate_values.values())
        assert trial.user_attrs[STARTS] == 1
    assert {trial.state for trial in trials} == {TrialState.COMPLETE, TrialState.PRUNED}
    assert list((done[0] / "out/sweep/tiny/trials").iterdir()) == [], "checkpoints of finished trials go"


def test_a_complete_trial_has_the_error_the_train_stage_finds(
    tmp_path: Path, tiny_run: TinyRun, done: tuple[Path, list[str]]
) -> None:
    from pipelines.dataset import FeatureStore
    from pipelines.fit import fit

    plan = sweep.planned(done[1])
    complete = next(trial for trial in trials_in(done[0]) if trial.state is TrialState.COMPLETE)
    cfg = load_config(plan.trial_overrides(complete.params))
    assert (cfg.model.hidden, cfg.model.dropout) == (complete.params["model.hidden"], complete.params["model.dropout"])
    fitted = fit(cfg, FeatureStore.open(tiny_run.out / "features"), tmp_path)
    assert fitted.best_validation == complete.value
    assert fitted.history["validation_iv_rmse"].to_list() == list(complete.intermediate_values.values())


def test_every_trial_is_one_child_run(done: tuple[Path, list[str]]) -> None:
    runs = {int(run.data.tags["trial"]): run for run in children(done[0])}
    trials = trials_in(done[0])
    assert len(children(done[0])) == len(runs) == TRIALS
    assert len({run.data.tags["mlflow.parentRunId"] for run in runs.values()}) == 1
    client = open_registry(f"sqlite:///{done[0]}/mlflow.db").client
    parent = client.get_run(runs[0].data.tags["mlflow.parentRunId"])
    assert parent.info.run_name == "sweep tiny"
    assert parent.info.status == "FINISHED"
    assert {path.path for path in client.list_artifacts(parent.info.run_id)} == {"best.yaml", "report.html"}
    for trial in trials:
        run = runs[trial.number]
        assert run.info.status == {"COMPLETE": "FINISHED", "PRUNED": "KILLED"}[trial.state.name]
        assert run.data.params == {key: str(value) for key, value in trial.params.items()}
        assert run.data.metrics["value"] == trial.value
        history = client.get_metric_history(run.info.run_id, "validation_iv_rmse")
        assert {point.step: point.value for point in history} == trial.intermediate_values
        assert len(history) == len(trial.intermediate_values)


def test_again_it_does_nothing_but_write(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_run: TinyRun, done: tuple[Path, list[str]]
) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("nothing is left to train")

    shutil.copytree(done[0], tmp_path, dirs_exist_ok=True, symlinks=True)
    monkeypatch.setattr(sweep_objective, "fit", never)
    before = told(tmp_path)
    report = tmp_path / "out/sweep/tiny/report.html"
    report.unlink()
    result = sweep.run(words(tiny_run, tmp_path))
    assert told(tmp_path) == before
    assert report.exists()
    assert len(children(tmp_path)) == TRIALS
    best = min((trial for trial in trials_in(tmp_path) if trial.state is TrialState.COMPLETE),
               key=lambda trial: (trial.value, trial.number))  # fmt: skip
    assert (result.trials, result.best_trial, result.validation_iv_rmse) == (TRIALS, best.number, best.value)
    assert f"best: trial {best.number}," in command.describe(result)


def test_trials_missing_in_mlflow_are_made_up_for(
    tmp_path: Path, tiny_run: TinyRun, done: tuple[Path, list[str]]
) -> None:
    """Another MLflow, or a kill between the database and MLflow."""
    shutil.copytree(done[0], tmp_path, dirs_exist_ok=True, symlinks=True)
    (tmp_path / "mlflow.db").unlink()
    sweep.run(words(tiny_run, tmp_path))
    assert len(children(tmp_path)) == TRIALS
    assert {run.info.status for run in children(tmp_path)} == {"FINISHED", "KILLED"}


@pytest.fixture
def experiments(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A copy of conf/ that the test may write into."""
    copy = tmp_path / "conf"
    shutil.copytree(CONF, copy)
    monkeypatch.setattr("pipelines.config.loading.CONF", copy)
    monkeypatch.setattr(sweep_experiment, "CONF", copy)
    return copy / "experiment"


def test_the_best_is_an_experiment_that_composes(
    tmp_path: Path, tiny_run: TinyRun, done: tuple[Path, list[str]], experiments: Path
) -> None:
    folder, arguments = done
    plan = sweep.planned(arguments)
    best = min((trial for trial in trials_in(folder) if trial.state is TrialState.COMPLETE),
               key=lambda trial: (trial.value, trial.number))  # fmt: skip
    wanted = load_config(plan.trial_overrides(best.params))
    text = (folder / "out/sweep/tiny/best.yaml").read_text()
    assert text.splitlines()[:2] == [
        "# @package _global_", "# python -m pipelines.run experiment=tiny data.path=FILE out=DIR"
    ]  # fmt: skip
    assert f"trial {best.number}" in text.splitlines()[2]
    assert str(folder) not in text
    (experiments / "tiny.yaml").write_text(text)
    composed = load_config(["experiment=tiny", f"data.path={tiny_run.quotes}"])
    assert config_hash(composed) == config_hash(wanted)
    assert composed.trainer.learning_rate == best.params["trainer.learning_rate"]


def test_write_experiment_overwrites_only_what_a_sweep_wrote(
    tmp_path: Path, tiny_run: TinyRun, done: tuple[Path, list[str]], experiments: Path
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(done[0], folder, symlinks=True)
    for _ in range(2):
        sweep.run(words(tiny_run, folder, "sweep.write_experiment=found"))
    text = (experiments / "found.yaml").read_text()
    assert "experiment=found" in text
    assert text == (folder / "out/sweep/tiny/best.yaml").read_text()
    kept = (experiments / "spx_2019.yaml").read_text()
    with pytest.raises(ConfigError, match=r"sweep.write_experiment: .*spx_2019.yaml is there"):
        sweep.run(words(tiny_run, folder, "sweep.write_experiment=spx_2019"))
    assert (experiments / "spx_2019.yaml").read_text() == kept


EXPERIMENTS = {
    "an experiment to build on": ["experiment=spx_2019", "data.path=f", "split.test_from=2019-06-03",
                                  "split.validation_dates=3"],
    "mappings and nulls": ["data=generic", "data.path=f", "split=short", "split.test_from=2019-06-03",
                           "split.validation_dates=3", "data.constants.currency=null", "data.columns.currency=ccy",
                           "data.columns={root: symbol}", "data.settlement_by_root={SPX: am}"],
    "lists, quotes, groups": ["data.anchors=[{tenor_days: 14}, {tenor_days: 60, moneyness: -0.1}]", "trainer=short",
                              "data.provenance='it\\'s: \"mine\"'", "trainer.clip_norm=2.0", "hardware=cpu", "seed=3"],
    "a history taken away": ["data.history=null"],
    "the last of two": ["trainer.epochs=3", "trainer.epochs=4"],
}  # fmt: skip


@pytest.mark.parametrize("case", EXPERIMENTS)
def test_any_overrides_can_be_told_in_a_file(case: str, experiments: Path) -> None:
    overrides = EXPERIMENTS[case]
    text = sweep_experiment.experiment_text("told", overrides, [], None)
    (experiments / "told.yaml").write_text(text)
    files = [text for text in overrides if text.startswith(("data.path", "data.history=f"))]
    composed, wanted = load_config(["experiment=told", *files]), load_config(overrides)
    assert config_hash(composed) == config_hash(wanted)
    assert composed.data.history == wanted.data.history


def test_swept_places_are_in_the_file() -> None:
    text = sweep_experiment.experiment_text("told", ["hardware.threads=2", "data.history=other.csv"],
                                            ["hardware.threads", "data.history"], None)  # fmt: skip
    assert "threads: 2" in text
    assert "history: other.csv" in text


@pytest.mark.parametrize("error", [OSError("disk full"), ZeroDivisionError("ours"), KeyboardInterrupt()])
def test_any_other_error_ends_the_sweep_and_the_trial_is_gone_on_with(
    tmp_path: Path,
    tiny_run: TinyRun,
    done: tuple[Path, list[str]],
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
) -> None:
    """In the middle of a fit, after its second epoch was reported."""
    whole = sweep_objective.ReportEpochs.on_train_epoch_end

    def ending(self: Any, trainer: Any, module: Any) -> None:
        whole(self, trainer, module)
        if self.trial.number == 1 and trainer.current_epoch == 1:
            raise error

    with monkeypatch.context() as patch:
        patch.setattr(sweep_objective.ReportEpochs, "on_train_epoch_end", ending)
        with pytest.raises((type(error), SystemExit)):
            sweep.run(words(tiny_run, tmp_path, trials=3))
    assert [trial.state for trial in trials_in(tmp_path)] == [TrialState.COMPLETE, TrialState.RUNNING]
    assert (tmp_path / "out/sweep/tiny/trials/1/last.ckpt").exists()
    sweep.run(words(tiny_run, tmp_path, trials=3))
    assert told(tmp_path) == told(done[0])[:3]
    assert trials_in(tmp_path)[1].user_attrs[STARTS] == 2
    assert len(children(tmp_path)) == 3


def test_other_features_are_another_study(tmp_path: Path, tiny_run: TinyRun, done: tuple[Path, list[str]]) -> None:
    shutil.copytree(done[0], tmp_path, dirs_exist_ok=True, symlinks=True)
    (tmp_path / "out/features").unlink()
    shutil.copytree(tiny_run.out / "features", tmp_path / "out/features")
    rows = tmp_path / "out/features/contracts.npy"
    rows.write_bytes(rows.read_bytes()[:-4] + b"\0\0\0\0")
    with pytest.raises(ConfigError, match=r"features_sha256: study tiny was made with"):
        sweep.run(words(tiny_run, tmp_path))
    with pytest.raises(ConfigError, match=r"config.trainer.patience: study tiny was made with 15, now it is 3"):
        sweep.run(words(tiny_run, tmp_path, "trainer.patience=3"))


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.with_overrides(sweep.__doc__, sweep.run, ["--help"]) == 0
    assert capsys.readouterr().out.startswith(str(sweep.__doc__))


def test_kill_minus_nine_anywhere_leaves_the_budget_exact(
    tmp_path: Path, tiny_run: TinyRun, done: tuple[Path, list[str]]
) -> None:
    """A real process, killed when the database holds so and so many values and some random milliseconds later."""
    generator = random.Random(11)
    line = [sys.executable, "-m", "pipelines.sweep", *words(tiny_run, tmp_path)]
    values = sum(len(trial.intermediate_values) for trial in trials_in(done[0]))
    for goal in (0, *sorted(generator.sample(range(1, values - 1), 4))):
        killed_with_values(line, tmp_path / "out/sweep/tiny/study.db", goal, generator.uniform(0.0, 0.03))
        left = trials_in(tmp_path)
        assert sum(trial.state is TrialState.RUNNING for trial in left) <= 1
        assert len(left) <= TRIALS
    second = subprocess.Popen(line, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    out, err = second.communicate(timeout=DEADLINE_SECONDS)
    assert second.returncode == 0, err
    assert re.match(rf"{TRIALS} trials, best: trial \d", out)
    assert told(tmp_path) == told(done[0])
    assert (tmp_path / "out/sweep/tiny/best.yaml").read_text() == (done[0] / "out/sweep/tiny/best.yaml").read_text()
    assert sum(trial.user_attrs[STARTS] for trial in trials_in(tmp_path)) > TRIALS
    runs = children(tmp_path)
    assert sorted(int(run.data.tags["trial"]) for run in runs) == list(range(TRIALS))
    for run in runs:
        client = open_registry(f"sqlite:///{tmp_path}/mlflow.db").client
        steps = [point.step for point in client.get_metric_history(run.info.run_id, "validation_iv_rmse")]
        assert sorted(steps) == list(trials_in(tmp_path)[int(run.data.tags["trial"])].intermediate_values)


def killed_with_values(line: list[str], database: Path, goal: int, seconds_later: float) -> None:
    """Kill the process once the database holds that many reported values (0: as soon as it is there)."""
    process = subprocess.Popen(line, cwd=REPOSITORY, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        end = time.monotonic() + DEADLINE_SECONDS
        while reported(database) < goal:
            assert process.poll() is None, "it ended before it was killed"
            assert time.monotonic() < end, "too few values in time"
            time.sleep(0.001)
        time.sleep(seconds_later)
    finally:
        process.kill()
        process.wait()
