"""Families side by side: the page's numbers are the metrics' own, its words follow from them, and what doesn't belong
together isn't compared."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

import models
from pipelines import command, compare, config, metrics, plots_compare
from pipelines.compare_report import OWN_AREA, PLAIN_AREA, Page, numbers, render, verdict
from pipelines.comparison import Comparison, evaluated, read_family
from pipelines.comparison import compare as side_by_side
from pipelines.config import load_config
from pipelines.evaluate import summarise
from pipelines.plot_style import FAMILY_COLOURS, look
from pipelines.report import Report
from serving.errors import DataError
from tests.pipelines.test_metrics import predictions, with_predictor
from tests.pipelines.test_report import HOSTILE, PNG_HEAD
from tests.pipelines.test_report import Page as Parsed

LSTM, TRANSFORMER, VAE = "pricing_lstm", "pricing_transformer", "surface_vae"
SIZES: dict[str, dict[str, int]] = {
    LSTM: {"step_features": 3, "contract_features": 4, "window": 5, "hidden": 8},
    TRANSFORMER: {"step_features": 3, "contract_features": 4, "window": 5, "width": 8, "heads": 2, "band": 3},
    VAE: {"cells": 99, "moves": 3, "regimes": 3, "latent": 2, "width": 8},
}
MEASURES: dict[str, Any] = {
    "completion": [
        {"hidden": share, "predictor": name, "iv_rmse": error, "quotes": 10}
        for share, errors in (("50 %", (0.3, 0.4, 0.5)), ("80 %", (0.6, 0.5, 0.9)))
        for name, error in zip(("model", "shifted_last", "svi"), errors, strict=True)
    ],
    "faults": [
        {"fault": fault, "surfaces": 9, OWN_AREA: own, PLAIN_AREA: other}
        for fault, own, other in (("wing", 0.9, 0.8), ("stale", 0.7, 0.75))
    ],
    "regimes": [
        {"regime": "calm", "dates": 5, "recall": 0.5, "precision": 0.25, "F1": 1 / 3},
        {"regime": "mean", "dates": 5, "recall": 0.5, "precision": 0.25, "F1": 1 / 3},
    ],
}  # fmt: skip


def improved(table: pl.DataFrame, share: float) -> pl.DataFrame:
    """The model's errors reduced to that share of what they are, in IV and price alike."""
    mid = 0.5 * (pl.col("bid") + pl.col("ask"))
    return table.with_columns(
        iv_model=pl.col("iv_market") + share * (pl.col("iv_model") - pl.col("iv_market")),
        price_model=mid + share * (pl.col("price_model") - mid),
    )


def put(out: Path, family: str, table: pl.DataFrame, *, measures: dict[str, Any] | None = None, net: str = "") -> None:
    """A family's evaluation and training as those stages leave them."""
    folder = out / "evaluate" / family
    folder.mkdir(parents=True, exist_ok=True)
    table.write_parquet(folder / "predictions.parquet")
    report = Report.of(table, title=family, split={"train": "2019-01-02 to 2019-05-01, 80 dates", "test": "6 dates"})
    content = summarise(report, table, load_config([])) | {"model": family, "measures": measures or {}}
    (folder / "metrics.json").write_text(json.dumps(content))
    training = out / "train" / family
    (training / "csv").mkdir(parents=True, exist_ok=True)
    net = net or family
    description = {
        "model": net, "sizes": SIZES[net], "seed": 7, "best_epoch": 2, "epochs": 3, "validation_iv_rmse": 0.25,
        "config_sha256": "c" * 64, "features_sha256": "f" * 64,
    }  # fmt: skip
    (training / "model.json").write_text(json.dumps(description))
    (training / "csv" / "metrics.csv").write_text("epoch,time_seconds\n1,100.0\n2,101.5\n3,103.0\n4,203.0\n")


@pytest.fixture(scope="module")
def table() -> pl.DataFrame:
    """20 dates: enough for a test to tell the families apart."""
    return predictions(dates=20, strikes=12)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory, table: pl.DataFrame) -> Path:
    """A run with all three families: the transformer errs half as much as the LSTM."""
    folder = tmp_path_factory.mktemp("families")
    put(folder, LSTM, table)
    put(folder, TRANSFORMER, improved(table, 0.5))
    put(folder, VAE, predictions(dates=5, seed=3), measures=MEASURES)
    return folder


@pytest.fixture
def out(template: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(template, tmp_path / "out"))


@pytest.fixture(scope="module")
def compared(template: Path, tmp_path_factory: pytest.TempPathFactory) -> compare.CompareResult:
    """The stage done once, for tests that only read."""
    return run(Path(shutil.copytree(template, tmp_path_factory.mktemp("compared") / "out")))


def run(out: Path, *more: str) -> compare.CompareResult:
    return compare.run(load_config([f"out={out}", *more]))


def joined(out: Path, *names: str) -> Comparison:
    return side_by_side([read_family(out, name) for name in names])


def refused(out: Path) -> str:
    with pytest.raises(DataError) as caught:
        run(out)
    assert not (out / "compare").exists()
    return str(caught.value)


def test_the_page_holds_every_familys_numbers_in_full(compared: compare.CompareResult, out: Path) -> None:
    done = compared
    assert (done.families, done.absent) == ((LSTM, TRANSFORMER, VAE), ())
    page = Parsed(done.report.read_text(encoding="utf-8"))
    keys = ("iv_rmse", "iv_mae", "price_rmse", "price_mae", "inside_spread")
    for name in done.families:
        own = metrics.scores(pl.read_parquet(out / "evaluate" / name / "predictions.parquet"))["model"]
        rows = [row for row in page.rows if row and row[0][0] == name and len(row) == 8]
        assert [float(value) for _, value in rows[0][1:6]] == [own[key] for key in keys]
        net = models.build(name, SIZES[name])
        assert int(rows[0][6][1]) == sum(tensor.numel() for tensor in net.parameters())
        assert rows[0][7][0] == "2 of 3"
    baselines = [row for row in page.rows if row and row[0][0] == "sticky strike" and len(row) == 8]
    assert len(baselines) == 2  # once for each task, not once for each family


def test_merged_tests_are_those_of_the_single_tables(out: Path, table: pl.DataFrame) -> None:
    both = joined(out, LSTM, TRANSFORMER)
    assert both.names == [TRANSFORMER, LSTM]
    for name in both.names:
        alone = pl.read_parquet(out / "evaluate" / name / "predictions.parquet")
        assert both.scores[name] == metrics.scores(alone)["model"]
        assert both.tests[name, "sticky_strike"] == metrics.diebold_mariano(alone, "model", "sticky_strike")
    duel = improved(table, 0.5).with_columns(iv_flat=table["iv_model"], price_flat=table["price_model"])
    assert both.tests[TRANSFORMER, LSTM] == metrics.diebold_mariano(duel, "model", "flat")


def test_scores_json_holds_the_same(compared: compare.CompareResult, out: Path) -> None:
    said = json.loads((compared.report.parent / "scores.json").read_text())
    both = joined(out, LSTM, TRANSFORMER)
    assert said["pricing"]["best_baseline"] == {
        "name": "sticky_strike",
        "iv_rmse": both.scores["sticky_strike"]["iv_rmse"],
    }
    test = both.tests[TRANSFORMER, LSTM]
    found = said["pricing"]["tests"][f"{TRANSFORMER} against {LSTM}"]
    assert found == {"t": test.t, "p": test.p, "finding": "better"}
    assert said["surface"]["families"][VAE]["iv_rmse"] == joined(out, VAE).scores[VAE]["iv_rmse"]
    assert said["absent"] == "none"


def test_order_of_rows_changes_nothing(compared: compare.CompareResult, out: Path) -> None:
    path = out / "evaluate" / TRANSFORMER / "predictions.parquet"
    pl.read_parquet(path).sample(fraction=1.0, shuffle=True, seed=1).write_parquet(path)
    assert run(out).report.read_bytes() == compared.report.read_bytes()


def test_one_file_without_scripts_or_links(out: Path) -> None:
    done = run(out, f'data.provenance="{HOSTILE}"')
    text = done.report.read_text(encoding="utf-8")
    page = Parsed(text)
    assert not {"script", "link", "iframe", "object", "form", "base"} & set(page.tags)
    assert all(link.startswith("data:image/png;base64,") for link in page.links)
    assert "&lt;script&gt;" in text
    drawn = sorted(path.relative_to(out / "compare/figures").as_posix() for path in out.glob("compare/figures/*/*.png"))
    assert len(drawn) == len(page.links) == 9  # the surfaces' buckets hold too few quotes to be drawn
    assert all((out / "compare/figures" / name).read_bytes().startswith(PNG_HEAD) for name in drawn)


def test_absent_families_are_named(tmp_path: Path, table: pl.DataFrame, capsys: pytest.CaptureFixture[str]) -> None:
    put(tmp_path, LSTM, table)
    assert command.stage(compare.__doc__, compare.run, [f"out={tmp_path}"]) == 0
    assert f"absent=('{TRANSFORMER}', '{VAE}')" in capsys.readouterr().out
    text = "".join(Parsed((tmp_path / "compare/report.html").read_text()).text)
    assert f"{TRANSFORMER}, {VAE}" in text
    assert f"{LSTM} is the only pricing family here" in text


def test_several_surface_families_share_one_section(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(config.FAMILIES, "surface_big", config.SurfaceVAESettings)
    better = {**MEASURES, "faults": [{**row, OWN_AREA: 0.99} for row in MEASURES["faults"]]}
    put(out, "surface_big", improved(predictions(dates=5, seed=3), 0.5), measures=better, net=VAE)
    page = Parsed(run(out).report.read_text())
    wing = page.row("wing")
    assert [value for _, value in wing[1:]] == ["9", "0.99", "0.9", "0.8"]  # best family first, the plain distance last
    assert page.row("surface_big")[0][0] == "surface_big"
    assert joined(out, VAE, "surface_big").names == ["surface_big", VAE]


def test_a_table_without_baselines_claims_nothing(tmp_path: Path, table: pl.DataFrame) -> None:
    lean = table.drop(f"{kind}_{name}" for kind in ("iv", "price") for name in ("sticky_strike", "flat"))
    put(tmp_path, LSTM, table)
    put(tmp_path, TRANSFORMER, table)
    for name in (LSTM, TRANSFORMER):
        lean.write_parquet(tmp_path / "evaluate" / name / "predictions.parquet")
    run(tmp_path)
    both = joined(tmp_path, LSTM, TRANSFORMER)
    assert both.best_baseline is None
    text = " ".join(verdict(both))
    assert "There is no baseline to compare with" in text
    assert "is equal to" in text
    assert "No test is possible (the daily differences don't vary)" in text
    assert numbers([both], [])["pricing"]["best_baseline"] is None


def test_one_date_can_be_drawn_but_not_tested(tmp_path: Path, table: pl.DataFrame) -> None:
    one = table.filter(pl.col("ts") == pl.col("ts").min())
    put(tmp_path, LSTM, one)
    put(tmp_path, TRANSFORMER, improved(one, 0.5))
    text = run(tmp_path).report.read_text()
    assert "1 date(s), at least 3 needed" in text
    assert "significantly" not in " ".join(verdict(joined(tmp_path, LSTM, TRANSFORMER)))


# The words.


def test_a_difference_is_claimed_where_test_and_errors_agree(out: Path) -> None:
    both = joined(out, LSTM, TRANSFORMER)
    text = " ".join(verdict(both))
    assert f"Of 2 pricing families {TRANSFORMER} has the lowest pooled IV RMSE" in text
    assert f"is 50.0 % better than {LSTM}" in text
    assert f"{TRANSFORMER} is significantly better by the daily test" in text
    test = both.tests[TRANSFORMER, LSTM]
    for changed in (test._replace(p=0.05), test._replace(t=-test.t)):
        words = verdict(replace(both, tests={(TRANSFORMER, LSTM): changed}))
        assert "significantly" not in " ".join(words)
        assert "not statistically significant" in " ".join(words)


def test_what_was_not_tested_is_said(out: Path) -> None:
    text = " ".join(verdict(joined(out, VAE)))
    assert "With 80 % of the quotes hidden surface_vae's IV RMSE is 0.600 vol points, 20.0 % worse than" in text
    assert "areas under the ROC curve of 0.70 to 0.90 over 2 kinds of fault" in text
    assert "in 1 of 2." in text
    assert "labels of 5 test dates with a mean F1 of 0.33" in text
    assert text.endswith("No test was made of these further figures.")
    assert "further figures" not in " ".join(verdict(joined(out, LSTM)))


def test_seconds_per_epoch_are_the_median_and_missing_ones_a_dash(out: Path) -> None:
    """A training that was killed for 100 seconds isn't called slow."""
    assert read_family(out, LSTM).training.seconds_per_epoch == 1.5
    (out / "train" / LSTM / "csv" / "metrics.csv").unlink()
    assert read_family(out, LSTM).training.seconds_per_epoch is None
    page = Parsed(run(out).report.read_text())
    row = next(row for row in page.rows if row and row[0][0] == LSTM and len(row) == 10)
    assert row[5] == ("\N{EN DASH}", "")


# The figures.


def test_the_gain_ends_at_the_tests_mean_difference(out: Path) -> None:
    both = joined(out, LSTM, TRANSFORMER)
    axes = plots_compare.gain_by_date(both.table, "sticky_strike").axes[0]
    lines = {line.get_label(): line for line in axes.lines}
    for name in both.names:
        test = both.tests[name, "sticky_strike"]
        found = np.asarray(lines[name].get_ydata(), dtype=float)
        assert len(found) == test.dates
        assert found[-1] == pytest.approx(test.dates * test.mean_difference, rel=1e-9)


def test_every_family_has_one_colour_of_its_own(out: Path) -> None:
    both = joined(out, LSTM, TRANSFORMER)
    figures = plots_compare.all_figures(both.table, both.best_baseline)
    assert list(figures) == list(plots_compare.CAPTIONS)
    known = metrics.predictors(both.table)
    colours = {name: look(name, known)["color"] for name in known}
    assert len(set(colours.values())) == len(known)
    assert {colours[name] for name in both.names} <= set(FAMILY_COLOURS)
    for figure in ("error_by_date", "gain_by_date", "smiles"):
        drawn = {line.get_label(): line.get_color() for axes in figures[figure].axes for line in axes.lines}
        assert {name: drawn[name] for name in both.names} == {name: colours[name] for name in both.names}


# What doesn't belong together.


def test_nothing_evaluated_is_told(tmp_path: Path) -> None:
    assert "holds no evaluated family: run python -m pipelines.evaluate" in refused(tmp_path)


def test_an_unknown_family_is_told(out: Path) -> None:
    (out / "evaluate" / VAE).rename(out / "evaluate" / "pricing_lstn")
    assert "pricing_lstn: no such family; there are pricing_lstm" in refused(out)


@pytest.mark.parametrize("gone", ["evaluate/pricing_lstm/predictions.parquet", "train/pricing_lstm/model.json"])
def test_a_missing_file_is_named_with_the_command_that_makes_it(out: Path, gone: str) -> None:
    (out / gone).unlink()
    message = refused(out)
    assert f"{out / gone} isn't there: run python -m pipelines." in message
    assert "model=pricing_lstm" in message


def test_other_quotes_are_refused_with_their_counts(out: Path, table: pl.DataFrame) -> None:
    put(out, TRANSFORMER, table[5:].vstack(table[:2].with_columns(strike=pl.col("strike") + 0.5)))
    message = refused(out)
    assert "pricing_lstm and pricing_transformer weren't scored on the same quotes" in message
    assert f"5 of {len(table)} rows only in the first, 2 of {len(table) - 3} only in the second" in message
    assert "model=pricing_lstm, model=pricing_transformer" in message


@pytest.mark.parametrize("column", ["iv_market", "bid", "forward_model"])
def test_other_labels_are_refused(out: Path, table: pl.DataFrame, column: str) -> None:
    first = pl.int_range(pl.len()) == 0
    put(
        out,
        TRANSFORMER,
        table.with_columns(pl.when(first).then(pl.col(column) * (1 + 1e-12)).otherwise(pl.col(column)).alias(column)),
    )
    assert f"different labels, so they can't be compared: {column} differs in 1 of {len(table)} rows" in refused(out)


def test_other_baselines_are_refused(out: Path, table: pl.DataFrame) -> None:
    put(out, TRANSFORMER, table.with_columns(iv_flat=pl.col("iv_flat") + 1e-3))
    assert "held against different baselines: flat differs by up to 0.001 of volatility" in refused(out)


def test_a_baseline_of_one_family_alone_is_kept(out: Path, table: pl.DataFrame) -> None:
    put(out, TRANSFORMER, with_predictor(table, "extra", 1e-4))
    both = joined(out, LSTM, TRANSFORMER)
    assert both.best_baseline == "extra"
    assert both.scores["extra"]["iv_rmse"] == pytest.approx(0.01)
    assert (LSTM, "extra") in both.tests


def test_metrics_of_other_predictions_are_refused(out: Path, table: pl.DataFrame) -> None:
    improved(table, 0.9).write_parquet(out / "evaluate" / LSTM / "predictions.parquet")
    assert "metrics.json has IV RMSE" in refused(out)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda table: table.drop("iv_model", "price_model"), "no iv_model"),
        (lambda table: table.drop("bid"), "missing bid"),
        (lambda table: table.with_columns(iv_flat=pl.lit(math.nan)), "not a finite number: iv_flat"),
    ],
)
def test_unusable_predictions_are_refused_by_name(out: Path, table: pl.DataFrame, spoil: Any, says: str) -> None:
    path = out / "evaluate" / LSTM / "predictions.parquet"
    spoil(table).write_parquet(path)
    message = refused(out)
    assert message.startswith(str(path))
    assert says in message


def test_a_damaged_file_is_told(out: Path) -> None:
    path = out / "evaluate" / LSTM / "predictions.parquet"
    path.write_bytes(path.read_bytes()[:-100])
    assert refused(out).startswith(str(path))


def test_the_page_can_be_made_from_what_is_there(out: Path) -> None:
    """Without figures and measures; nothing is left of a section whose input is missing."""
    both = joined(out, LSTM, TRANSFORMER)
    page = Parsed(render(Page(comparisons=[both])))
    text = "".join(page.text)
    assert "img" not in page.tags
    for absent in ("Figures", "Completion", "Faults", "Regimes", "not evaluated here"):
        assert absent not in text
    assert evaluated(out) == [LSTM, TRANSFORMER, VAE]
