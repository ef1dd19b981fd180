"""The sweep as a whole, on the tiny market: trials, MLflow, the best as an experiment, and a process killed with -9."""

from __future__ import annotations

import random
import re
import shutil
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState

from pipelines import command, ingest, sweep, sweep_experiment, sweep_objective
from pipelines.config import CONF, config_hash, load_config
from pipelines.registry import open_registry
from pipelines.sweep_study import MESSAGE, STARTS
from serving.errors import ConfigError, DataError, StrikeforgeError
from tests.pipelines import market
from tests.pipelines.conftest import TinyRun

pytestmark = pytest.mark.slow
REPOSITORY = Path(__file__).parents[2]
DEADLINE_SECONDS = 120.0
EPOCHS = 5
TRIALS = 6
SPACE = (
    "sweep.space={model: {hidden: {choices: [2, 4]}, dropout: {low: 0.0, high: 0.4}}, "
    "trainer: {learning_rate: {low: 0.001, high: 0.1, log: true}}}"
)
STUDY = ("sweep=pricing_lstm", SPACE, "sweep.sampler.startup_trials=3", "sweep.pruner.startup_trials=1",
         "sweep.pruner.warmup_epochs=2", f"trainer.epochs={EPOCHS}", "sweep.study=tiny")  # fmt: skip


def words(tiny_run: TinyRun, folder: Path, *more: str, trials: int = TRIALS) -> list[str]:
    """A sweep's command line, everything in the folder; its features are those of the tiny run."""
    (folder / "out").mkdir(parents=True, exist_ok=True)
    if not (folder / "out/features").exists():
        (folder / "out/features").symlink_to(tiny_run.out / "features")
    swept = ("model.hidden", "model.dropout", "trainer.learning_rate", "trainer.epochs", "out", "registry", "storage")
    base = [text for text in tiny_run.overrides if not text.startswith(swept)]
    return [*STUDY, f"sweep.trials={trials}", *base, *market.places(folder), *more]


def trials_in(folder: Path, study: str = "tiny") -> list[FrozenTrial]:
    database = f"sqlite:///{folder}/out/sweep/{study}/study.db"
    return optuna.load_study(study_name=study, storage=database).get_trials()


def told(folder: Path) -> list[tuple[Any, ...]]:
    """What must be equal between a killed sweep and another one."""
    return [(trial.number, trial.state.name, trial.value, trial.params, trial.intermediate_values)
            for trial in trials_in(folder)]  # fmt: skip


def children(folder: Path) -> list[Any]:
    """Every run of MLflow that has a parent."""
    client = open_registry(f"sqlite:///{folder}/mlflow.db").client
    runs = client.search_runs([one.experiment_id for one in client.search_experiments()])
    return [run for run in runs if "mlflow.parentRunId" in run.data.tags]


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


def reported(database: Path) -> int:
    """Values in the database, -1 where there is none yet."""
    if not database.exists():
        return -1
    connection = sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=30)
    try:
        return int(connection.execute("select count(*) from trial_intermediate_values").fetchone()[0])
    finally:
        connection.close()


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
