"""The accuracy benchmark as a program: figures are those of the rows it keeps and of the evaluation's own table; kept
pieces are used again, after kill -9 too, and a changed recipe computes anew; whatever is wrong is told by name."""

from __future__ import annotations

import contextlib
import fcntl
import json
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from benchmarks import accuracy, results
from benchmarks.accuracy_cases import BASELINES
from benchmarks.accuracy_keys import code
from benchmarks.accuracy_workers import refuse_changed_code
from pipelines.config import load_config
from serving.errors import ConfigError, DataError, StrikeforgeError, run_command
from tests.benchmarks import tiny_accuracy

REPOSITORY = Path(__file__).parents[2]
DEADLINE_SECONDS = 240.0
FITS = 4  # two folds, one model, two seeds


@dataclass(frozen=True)
class Done:
    """A finished run on the tiny market."""

    data: Path
    work: Path

    @property
    def rows(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.work / "results/accuracy.jsonl").read_text().splitlines()]

    @property
    def page(self) -> str:
        return (self.work / "results/accuracy.md").read_text()

    def value(self, case: str, subject: str, metric: str, **more: Any) -> float:
        """The one row's."""
        wanted = {"case": case, "subject": subject, "metric": metric, **more}
        (found,) = [row for row in self.rows if wanted.items() <= row.items()]
        return float(found["value"])


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Done:
    folder = tmp_path_factory.mktemp("accuracy")
    data, work = tiny_accuracy.write_market(folder / "data"), folder / "work"
    with pytest.MonkeyPatch.context() as patch:
        tiny_accuracy.put_in(patch)
        accuracy.run(accuracy.parse(tiny_accuracy.arguments(data, work)))
    return Done(data, work)


def kept(work: Path) -> dict[str, int]:
    """Finished cells, with the time each was written at (ns)."""
    return {str(path.relative_to(work)): path.stat().st_mtime_ns for path in work.glob("cells/*/*.parquet")
            if not path.name.startswith(".")}  # fmt: skip


def cell(work: Path, setup: str, subject: str, seed: int) -> pl.DataFrame:
    """The one cell's table."""
    (path,) = work.glob(f"cells/{setup}/{subject}-seed{seed}-*.parquet")
    return pl.read_parquet(path)


@pytest.mark.slow
def test_figures_are_those_of_the_kept_rows(done: Done) -> None:
    """The pooled case against a plain computation: both folds' rows, the mean over seeds, their spread."""
    errors: list[float] = []
    inside: list[float] = []
    for seed in (3, 4):
        parts = []
        for setup in ("tiny__a", "tiny__b"):
            base, own = (cell(done.work, setup, subject, seed) for subject in (BASELINES, "pricing_lstm"))
            parts.append(base.with_columns(own["iv_pricing_lstm"], own["price_pricing_lstm"]))
        rows = pl.concat(parts)
        errors.append(100.0 * float(np.sqrt(np.mean((rows["iv_pricing_lstm"] - rows["iv_market"]).to_numpy() ** 2))))
        price = rows["price_pricing_lstm"].to_numpy()
        inside.append(100.0 * float(np.mean((price >= rows["bid"].to_numpy()) & (price <= rows["ask"].to_numpy()))))
    case = ("tiny/walk_forward", "pricing_lstm")
    assert errors[0] != errors[1]
    assert done.value(*case, "iv_rmse") == pytest.approx(np.mean(errors), rel=1e-12)
    assert done.value(*case, "iv_rmse_std") == pytest.approx(np.std(errors, ddof=1), rel=1e-9)
    assert done.value(*case, "inside_spread") == pytest.approx(np.mean(inside), rel=1e-12)
    both = [done.value(name, "data", "rows") for name in ("tiny/a", "tiny/b")]
    assert done.value("tiny/walk_forward", "data", "rows") == sum(both) == len(rows)
    for against in ("anchored_sticky_strike", "regression_anchored", "lightgbm_anchored"):
        assert np.isfinite(done.value(*case, "dm_t", against=against))
    ratio = done.value(*case, "ratio_to_anchored")
    anchored = done.value("tiny/walk_forward", "anchored_sticky_strike", "iv_rmse")
    assert ratio == pytest.approx(np.mean(errors) / anchored, rel=1e-9)


@pytest.mark.slow
def test_a_cell_holds_what_the_stages_give(done: Done, tmp_path: Path) -> None:
    """Fit and table as the train and evaluate stages make them, with the same seed, on the same features."""
    from pipelines.dataset import FeatureStore
    from pipelines.tasks.pricing_evaluation import predict_table
    from pipelines.trust import fit_trusted

    (folder,) = done.work.glob("setups/tiny__b-*")
    setup, market = tiny_accuracy.SETUPS["tiny/b"], tiny_accuracy.MARKETS["tiny"]
    cfg = load_config([
        "experiment=spx_2019", *market.overrides, f"data.path={done.data}/tiny.parquet", *setup.overrides,
        *tiny_accuracy.SMALL, "hardware=cpu", "hardware.threads=1", "seed=4", f"out={folder}",
    ])  # fmt: skip
    store = FeatureStore.open(folder / "features")
    whole = predict_table(cfg, store, fit_trusted(cfg, store, tmp_path).net)  # type: ignore[arg-type]
    for subject, names in (("pricing_lstm", {"pricing_lstm": "model"}), (BASELINES, {})):
        own = cell(done.work, "tiny__b", subject, 4)
        compared = own.rename(
            {f"{kind}_{mine}": f"{kind}_{its}" for mine, its in names.items() for kind in ("iv", "price")}
        )
        for name in compared.columns:
            if compared[name].dtype.is_float():
                assert compared[name].to_numpy() == pytest.approx(whole[name].to_numpy(), rel=1e-6), name
            else:
                assert compared[name].equals(whole[name]), name


@pytest.mark.slow
def test_too_few_data_is_told_in_the_table_and_ends_nothing(done: Done) -> None:
    (row,) = [row for row in done.rows if row["case"] == "tiny/early"]
    assert (row["metric"], row["value"]) == ("exit_code", 4)
    assert "TooFewSnapshotsError: too few dates with scored quotes: have 2 before" in row["message"]
    assert "`tiny/early`: TooFewSnapshotsError (exit code 4): too few dates" in done.page


@pytest.mark.slow
def test_rows_of_more_anchors_are_scored_with_fewer(done: Done) -> None:
    """An anchor's strike is left out for all counts: fewer rows than the setup's own."""
    own, common = (done.value(case, "data", "rows") for case in ("tiny/b", "tiny/two_anchors"))
    assert common == len(cell(done.work, "tiny__more", BASELINES, 3)) < own


@pytest.mark.slow
def test_what_is_kept_is_used_and_what_changed_is_computed(
    done: Done, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tiny_accuracy.put_in(monkeypatch)
    before, rows = kept(done.work), done.rows
    accuracy.run(accuracy.parse(tiny_accuracy.arguments(done.data, done.work)))
    assert kept(done.work) == before
    assert done.rows == rows
    elsewhere = tmp_path / "results"
    changed = tiny_accuracy.arguments(done.data, done.work, "trainer.learning_rate=0.001", seeds="3")
    accuracy.run(accuracy.parse([*changed, "--results", str(elsewhere), "--only", "tiny/b"]))
    after = kept(done.work)
    assert before.items() <= after.items()
    (new,) = after.keys() - before.keys()
    assert new.startswith("cells/tiny__b/pricing_lstm-seed3-"), "the baselines don't know the trainer"
    assert done.rows == rows
    assert (elsewhere / "accuracy.jsonl").exists()


def children(process: int) -> list[int]:
    """Of a process, by /proc."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            words = stat.read_text().rpartition(")")[2].split()
            if int(words[1]) == process:
                found.append(int(stat.parent.name))
    return found


def running(process: int) -> bool:
    """Whether it is there and no zombie."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def until(condition: Any, what: str) -> None:
    """Poll with a deadline."""
    end = time.monotonic() + DEADLINE_SECONDS
    while not condition():
        assert time.monotonic() < end, f"not within {DEADLINE_SECONDS:.0f} s: {what}"
        time.sleep(0.02)


def fits(work: Path) -> int:
    """Nets that are finished."""
    return sum("pricing_lstm" in name for name in kept(work))


def command(done: Done, work: Path) -> list[str]:
    """The tiny run as a process."""
    return [sys.executable, "-m", "tests.benchmarks.tiny_accuracy", *tiny_accuracy.arguments(done.data, work)]


def ended_by(how: signal.Signals, words: list[str], work: Path) -> int:
    """Exit code of a run that gets a signal after its first fit; its workers have ended too."""
    with (work / "said").open("w") as said:
        process = subprocess.Popen(
            words, cwd=REPOSITORY, stderr=said, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            until(lambda: fits(work) > 0 or process.poll() is not None, "a first cell")
            assert process.poll() is None, (work / "said").read_text()
            workers = children(process.pid)
            process.send_signal(how)
            code = process.wait(DEADLINE_SECONDS)
        finally:
            process.kill()
    assert workers
    until(lambda: not any(map(running, workers)), "the workers' end")
    return code


@pytest.mark.slow
def test_a_killed_run_goes_on(done: Done, tmp_path: Path) -> None:
    """kill -9 after the first fit: workers end too, finished cells stay as they are, the result is the same."""
    words = command(done, tmp_path)
    assert ended_by(signal.SIGKILL, words, tmp_path) == -signal.SIGKILL
    before, count = kept(tmp_path), fits(tmp_path)
    assert 0 < count < FITS
    again = subprocess.run(words, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    after = kept(tmp_path)
    assert before.items() <= after.items(), "no finished cell was computed again"
    assert fits(tmp_path) == FITS
    assert not list(tmp_path.glob("cells/*/.*"))
    assert Done(done.data, tmp_path).rows == done.rows


@pytest.mark.slow
def test_ctrl_c_ends_a_run_before_its_work_is_done(done: Done, tmp_path: Path) -> None:
    """Of the command's process alone, as a supervisor sends it: what runs is given up, what is finished stays."""
    assert ended_by(signal.SIGINT, command(done, tmp_path), tmp_path) == 130
    assert 0 < fits(tmp_path) < FITS
    assert "interrupted" in (tmp_path / "said").read_text()
    assert not (tmp_path / "results").exists()


@pytest.mark.slow
def test_cells_of_other_rows_are_refused(done: Done) -> None:
    """Two subjects that weren't scored on the same quotes never share a table."""
    from benchmarks.accuracy_table import Computed, setup_table

    files = {("tiny/b", subject, 3): next(done.work.glob(f"cells/{place}/{subject}-seed3-*"))
             for subject, place in ((BASELINES, "tiny__b"), ("pricing_lstm", "tiny__a"))}  # fmt: skip
    with pytest.raises(DataError, match=r"doesn't hold the rows of .*tiny__b/baselines"):
        setup_table("tiny/b", ["pricing_lstm"], 3, Computed(files, {}))


def test_one_run_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_accuracy.put_in(monkeypatch)
    data = tiny_accuracy.write_market(tmp_path / "data")
    with (tmp_path / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(StrikeforgeError, match="another run works there"):
            accuracy.run(accuracy.parse(tiny_accuracy.arguments(data, tmp_path)))


def test_workers_of_other_code_refuse(tmp_path: Path) -> None:
    """A file saved between the naming of results and the loading of the code must not be named by what it was."""
    named = dict(code())
    refuse_changed_code(named)
    with pytest.raises(StrikeforgeError, match=r"the code changed while the run began \(fit\)"):
        refuse_changed_code(named | {"fit": "another"})


def test_absent_market_data_are_named_with_exit_code_three(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = run_command(accuracy.main, ["--data", str(tmp_path), "--work", str(tmp_path / "work")])
    told = capsys.readouterr().err
    assert code == 3
    for name in ("spx_options_2019", "spy_options_2021", "equity_options_hourly_2014", "--data DIR"):
        assert name in told


def test_every_wrong_option_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        accuracy.parse(["--only", "spx_2020/june", "--models", "surface_vae", "--seeds", "7,eight", "--workers", "0",
                        "--override", "model=pricing_lstm", "data.path=x"])  # fmt: skip
    told = "\n".join(caught.value.problems)
    assert len(caught.value.problems) == 6
    for words in (
        "'spx_2020/june'",
        "'surface_vae'",
        "'eight'",
        "--workers",
        "model is decided",
        "data.path is decided",
    ):
        assert words in told


def test_a_part_of_the_table_doesnt_replace_the_whole(tmp_path: Path) -> None:
    assert accuracy.parse(["--work", str(tmp_path)]).results == results.FOLDER
    for part in (["--only", "spx_2019/*"], ["--seeds", "7"], ["--models", "pricing_lstm"], ["--override", "x=1"]):
        assert accuracy.parse(["--work", str(tmp_path), *part]).results == tmp_path / "results"
        said = ["--work", str(tmp_path), *part, "--results", str(tmp_path / "here")]
        assert accuracy.parse(said).results == tmp_path / "here"
