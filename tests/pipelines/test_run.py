"""A whole run as a user types it: one command gives three files, and whatever is wrong with the input or a key ends in
one message with a documented exit code, no traceback, and the former results as they were."""

from __future__ import annotations

import dataclasses
import datetime
import gzip
import importlib
import json
import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from pipelines import command, ingest, run
from pipelines.config import load_config
from pipelines.dataset import FeatureStore
from pipelines.progress import progress
from tests.pipelines import market
from tests.pipelines.conftest import TinyRun

REPOSITORY = Path(__file__).parents[2]
STAGES = ("ingest", "features", "train", "evaluate", "export", "register", "promote", "rollback", "retire", "reconcile",
          "status", "run", "summary")  # fmt: skip
FORMER = {name: f"former {name}" for name in run.RESULTS}


def refused(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> tuple[int, str]:
    """Exit code and message of a run that can't be done; nothing on stdout, no traceback."""
    code = command.stage(run.__doc__, run.run, arguments)
    out, err = capsys.readouterr()
    messages = [line for line in err.splitlines() if line.startswith("error: ")]
    assert out == ""
    assert "Traceback" not in err
    assert len(messages) == 1, err
    return code, err[err.index("error: ") :]


def former(folder: Path) -> None:
    """Results of an earlier run."""
    (folder / "out").mkdir(parents=True)
    for name, text in FORMER.items():
        (folder / "out" / name).write_text(text)


def untouched(folder: Path) -> bool:
    return {name: (folder / "out" / name).read_text() for name in FORMER} == FORMER


def spoilt(**columns: Any) -> pl.DataFrame:
    """The market with whole columns replaced."""
    return market.market().with_columns(**{name: pl.lit(value) for name, value in columns.items()})


def truncated(path: Path) -> Path:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    return path


def zipped(path: Path) -> Path:
    path.write_bytes(gzip.compress(market.market().write_csv().encode()))
    return path


def text(path: Path, content: str) -> Path:
    path.write_text(content)
    return path


HEADER = ",".join(market.market(1).columns) + "\n"
DAMAGED: dict[str, tuple[Any, list[str]]] = {
    "truncated Parquet": (
        lambda folder: truncated(market.write(market.market(), folder / "q.parquet")),
        ["q.parquet", "truncated or damaged"],
    ),
    "truncated csv.gz": (lambda folder: truncated(zipped(folder / "q.csv.gz")), ["q.csv.gz"]),
    "no such file": (lambda folder: folder / "nowhere.csv", ["nowhere.csv", "no such file"]),
    "other kind of file": (lambda folder: text(folder / "q.xlsx", "x"), ["q.xlsx", ".csv, .csv.gz, .parquet"]),
    "empty folder": (lambda folder: folder, ["holds no data file"]),
    "empty file": (lambda folder: text(folder / "q.csv", ""), ["q.csv", "empty"]),
    "header only": (lambda folder: text(folder / "q.csv", HEADER), ["q.csv", "nothing but a header"]),
    "wrong column": (
        lambda folder: market.write(market.market().rename({"strike": "strikes"}), folder / "q.csv"),
        ["q.csv", "column 'strike' is missing", "closest: 'strikes'"],
    ),
    "NaN strikes": (
        lambda folder: market.write(spoilt(strike=float("nan")), folder / "q.parquet"),
        ["none of 2304 quotes", "missing_value: 2304", "row 1"],
    ),
    "past expiries": (
        lambda folder: market.write(spoilt(expiry="2020-01-17"), folder / "q.csv"),
        ["expired: 2304", "row 1", "2020-01-17"],
    ),
    "negative prices": (
        lambda folder: market.write(spoilt(bid=-1.0, ask=-0.5), folder / "q.csv"),
        ["negative_price: 2304", "must be 0 or more"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGED)
def test_damaged_input_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: str) -> None:
    former(tmp_path)
    (tmp_path / "input").mkdir()
    make, words = DAMAGED[damage]
    code, message = refused(capsys, market.overrides(tmp_path, make(tmp_path / "input")))
    assert code == 3
    for word in words:
        assert word in message
    assert untouched(tmp_path)


LATE = {
    "test after the data": (["split.test_from=2031-01-01"], ["have 23 before", "2031-01-01", "move split.test_from"]),
    "too few dates": (["split.validation_dates=40"], ["have 18 before", "need 47 before"]),
    "rows wanted that aren't there": (["features.smallest_rows=1000"], ["have 0 before"]),
}


@pytest.mark.parametrize("case", LATE)
def test_too_little_data_is_exit_code_four(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], tiny_run: TinyRun, case: str
) -> None:
    former(tmp_path)
    more, words = LATE[case]
    code, message = refused(capsys, market.overrides(tmp_path, tiny_run.quotes, *more))
    assert code == 4
    for word in words:
        assert word in message
    assert untouched(tmp_path)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["trainer.epoch=3"], ["trainer.epoch", "did you mean epochs?"]),
        (["experiment=spx2019"], ["experiment=spx2019", "did you mean spx_2019?"]),
        (["split.test_form=2024-01-29", "seed=x"], ["split.test_form", "test_from", "seed", "2 problems"]),
        (["data.columns.strikes=strike"], ["strikes", "no canonical column"]),
        (["data.layout=vendor_x"], ["vendor_x"]),
        (["data.time_zone=Mars/Base"], ["Mars/Base"]),
        (["data.path=???"], ["data.path: must be given"]),
        (["hardware.accelerator=tpu"], ["hardware.accelerator", "tpu"]),
        ([f"out={REPOSITORY}/artifacts"], ["out: ", "belongs to dvc repro"]),
        ([f"out={REPOSITORY}/artifacts/mine"], ["out: ", "belongs to dvc repro"]),
        (["out=artifacts"], ["out: artifacts belongs to dvc repro"]),
    ],
)
def test_wrong_key_or_value_is_exit_code_two(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], tiny_run: TinyRun, more: list[str], words: list[str]
) -> None:
    former(tmp_path)
    code, message = refused(capsys, market.overrides(tmp_path, tiny_run.quotes, *more))
    assert code == 2
    for word in words:
        assert word in message
    assert untouched(tmp_path)


def test_out_that_cannot_be_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str], tiny_run: TinyRun) -> None:
    file = text(tmp_path / "file", "mine")
    places = [file, file / "below"]
    if os.geteuid() != 0:
        places.append(tmp_path / "closed/below")
        (tmp_path / "closed").mkdir(mode=0o500)
    for place in places:
        code, message = refused(capsys, market.overrides(tmp_path, tiny_run.quotes, f"out={place}"))
        assert code == 1
        assert str(place) in message
    assert file.read_text() == "mine"


def test_a_file_that_cannot_be_read(tmp_path: Path, capsys: pytest.CaptureFixture[str], tiny_run: TinyRun) -> None:
    more = f"data.history={tmp_path}/nowhere.csv"
    code, message = refused(capsys, market.overrides(tmp_path, tiny_run.quotes, more))
    assert code == 3
    assert "nowhere.csv: can't be read, for data.history" in message


def test_results_are_told_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    """A message of its own, fields as words, plain text, or nothing."""
    result = run.RunResult(Path("o"), 0.3, "flat", 5.0)
    told = "RunResult: folder=o, model_iv_rmse=0.3, best_baseline=flat, best_baseline_iv_rmse=5.0\n"
    spoken = dataclasses.make_dataclass("Spoken", ["message"])("done")
    for value, expected in ((result, told), ("text", "text\n"), (None, ""), (spoken, "done\n")):
        assert command.operation("help", lambda _, value=value: value, ["version=1"]) == 0
        assert capsys.readouterr().out == expected


@pytest.mark.parametrize("wanted", ["0", "1"])
def test_progress_passes_everything_through(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, wanted: str
) -> None:
    monkeypatch.setenv("STRIKEFORGE_PROGRESS", wanted)
    assert list(progress(iter("abc"), "letters", total=3)) == ["a", "b", "c"]
    out, err = capsys.readouterr()
    assert out == ""
    assert ("letters" in err) == (wanted == "1")


def test_our_own_mistakes_keep_their_traceback() -> None:
    def mistaken(cfg: Any) -> None:
        raise OSError("no file is to blame")

    with pytest.raises(OSError, match="no file is to blame"):
        command.stage("help", mistaken, ["data=generic", "data.path=x", "split.test_from=2024-01-29"])


def test_mixed_currencies_and_duplicates_are_set_aside(tmp_path: Path, tiny_run: TinyRun) -> None:
    """The run goes on with the rest; a whole snapshot twice gives the features it gives once."""
    table = market.market().with_columns(currency=pl.lit("USD"))
    foreign = table.head(20).with_columns(currency=pl.lit("EUR"), strike=pl.col("strike") + 0.5)
    both = pl.concat([table, table, foreign])
    cfg = market.featured(tmp_path, both, "data.columns.currency=currency", "data.constants.currency=null",
                          )  # fmt: skip
    counts = json.loads((cfg.folder / "ingest/counts.json").read_text())
    assert counts["quotes_in"] == counts["kept"] + counts["quarantined"] == len(both)
    assert counts["reasons"]["duplicate"] == len(table)
    assert counts["reasons"]["currency"] == 20
    rows = FeatureStore.open(cfg.folder / "features").rows
    assert rows.equals(FeatureStore.open(tiny_run.out / "features").rows)


def test_a_few_damaged_rows_do_not_end_a_run(tmp_path: Path) -> None:
    table = market.market().with_row_index("row")
    table = table.with_columns(
        strike=pl.when(pl.col("row") == 5).then(float("nan")).otherwise(pl.col("strike")),
        bid=pl.when(pl.col("row") == 7).then(-1.0).otherwise(pl.col("bid")),
        expiry=pl.when(pl.col("row") == 9).then(pl.lit("2023-01-01")).otherwise(pl.col("expiry")),
    )
    cfg = load_config(market.overrides(tmp_path, market.write(table, tmp_path / "q.csv")))
    result = ingest.run(cfg)
    assert result.reasons == {"missing_value": 1, "expired": 1, "negative_price": 1}
    assert sorted(pl.read_parquet(result.quarantine_path)["row"]) == [6, 8, 10]


@pytest.mark.parametrize("stage", STAGES)
def test_help_of_every_stage(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, stage: str) -> None:
    monkeypatch.setattr(sys, "argv", [stage, "--help"])
    monkeypatch.delitem(sys.modules, f"pipelines.{stage}", raising=False)
    with pytest.raises(SystemExit) as caught:
        runpy.run_module(f"pipelines.{stage}", run_name="__main__", alter_sys=False)
    assert caught.value.code == 0
    out = capsys.readouterr().out
    assert out.startswith(str(importlib.import_module(f"pipelines.{stage}").__doc__))
    assert "Exit codes" in out


def test_result_of_a_run(tiny_run: TinyRun) -> None:
    for name in run.RESULTS:
        assert (tiny_run.out / name).read_bytes() == (tiny_run.out / "evaluate/pricing_lstm" / name).read_bytes()
    assert not [path for path in tiny_run.out.iterdir() if path.name.startswith(".")]


@pytest.mark.slow
def test_the_issues_command_works_and_a_failing_one_changes_nothing(tmp_path: Path) -> None:
    """experiment=spx_2019 as it is typed, on a file in that layout; then again with a damaged one."""
    quotes = market.write(market.as_cboe(market.market()), tmp_path / "chain.parquet")

    def typed(*more: str) -> subprocess.CompletedProcess[str]:
        places = market.places(tmp_path)
        words = ["experiment=spx_2019", f"data.path={quotes}", f"split.test_from={market.TEST_FROM}", *places]
        small = ["trainer.epochs=2", *market.SMALL_NET[:3], "hardware=cpu", *more]
        return subprocess.run([sys.executable, "-m", "pipelines.run", *words, *small], cwd=REPOSITORY,
                              capture_output=True, text=True, check=False)  # fmt: skip

    done = typed()
    assert done.returncode == 0, done.stderr
    assert "model_iv_rmse=" in done.stdout
    results = {name: (tmp_path / "out" / name).read_bytes() for name in run.RESULTS}
    predictions = pl.read_parquet(tmp_path / "out/predictions.parquet")
    assert set(predictions["root"]) == {"SPXW"}
    assert predictions["ts"].dt.time().unique().to_list() == [datetime.time(20, 45)]  # 15:45 in New York
    assert json.loads(results["metrics.json"])["test"]["model"]["dates"] == 5
    truncated(quotes)
    failed = typed()
    assert failed.returncode == 3
    assert "Traceback" not in failed.stderr
    assert "chain.parquet" in failed.stderr
    assert {name: (tmp_path / "out" / name).read_bytes() for name in run.RESULTS} == results
