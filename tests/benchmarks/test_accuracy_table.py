"""Cases, keys and scores of the accuracy benchmark: folds in order, anchors one within the other, keys that follow the
code, figures against plain formulas on made-up predictions."""

from __future__ import annotations

import datetime
from itertools import pairwise
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from scipy import stats

from benchmarks import accuracy_cases as cases
from benchmarks.accuracy_keys import code_hash, contents_hash, key_of, own_code
from benchmarks.accuracy_page import page
from benchmarks.accuracy_table import Scored, result_rows, score
from pipelines.config import load_config

DATES = 6
ROWS = 5  # a date


def test_folds_follow_one_another_and_anchors_lie_within_one_another() -> None:
    spans = []
    for dates in cases.FOLDS.values():
        split = load_config([cases.EXPERIMENT, "data.path=x", *dates]).split
        spans.append((split.test_from, split.test_to))
        assert split.embargo == 1
    assert spans == sorted(spans)
    for (_, end), (start, _) in pairwise(spans):
        assert end is not None
        assert end < start
    nested = [cases.AT_THE_MONEY, cases.FIVE, cases.TEN, cases.THIRTY]
    assert [len(set(anchors)) for anchors in nested] == [3, 5, 10, 30]
    for fewer, more in pairwise(nested):
        assert set(fewer) < set(more)


def test_three_anchors_are_the_experiments_own() -> None:
    plain = load_config([cases.EXPERIMENT, "data.path=x", "split.test_from=2019-06-03"])
    said = load_config([cases.EXPERIMENT, "data.path=x", *cases.SETUPS["spx_2019/june"].overrides])
    assert said.data.anchors == plain.data.anchors


@pytest.mark.parametrize("name", cases.SETUPS)
def test_every_setup_composes(name: str) -> None:
    setup = cases.SETUPS[name]
    cfg = load_config([cases.EXPERIMENT, *cases.MARKETS[setup.market].overrides, "data.path=x", *setup.overrides])
    assert cfg.split.validation_dates == 0
    assert any(name in case.setups for case in cases.CASES.values())


def written(folder: Path, **modules: str) -> Path:
    """A little package `pipelines` of ours."""
    (folder / "pipelines").mkdir(parents=True, exist_ok=True)
    for name, text in modules.items():
        (folder / "pipelines" / f"{name}.py").write_text(text)
    return folder


def test_a_key_follows_the_code_and_not_its_looks(tmp_path: Path) -> None:
    texts = {
        "fits": '"""Fits."""\nfrom pipelines import far\n\ndef fit():\n    return far.x\n',
        "far": "x = 1\n",
        "alien": "y = 1\n",
    }
    fits = '"""Anew."""\nfrom pipelines import far\n\ndef fit():  # a comment\n    """Too."""\n    return (far.x)\n'
    looks = {"fits": fits}
    first = code_hash("pipelines.fits", root=written(tmp_path / "1", **texts))
    assert code_hash("pipelines.fits", root=written(tmp_path / "2", **(texts | looks))) == first
    assert code_hash("pipelines.fits", root=written(tmp_path / "3", **(texts | {"alien": "y = 2\n"}))) == first
    assert code_hash("pipelines.fits", root=written(tmp_path / "4", **(texts | {"far": "x = 2\n"}))) != first
    inside = texts["fits"].replace("return far.x", "from pipelines import alien\n    return alien.y")
    by_call = code_hash("pipelines.fits", root=written(tmp_path / "5", **(texts | {"fits": inside})))
    assert by_call != code_hash(
        "pipelines.fits", root=written(tmp_path / "6", **(texts | {"fits": inside, "alien": ""}))
    )
    alone = [own_code("pipelines.fits", root=tmp_path / place) for place in ("1", "2", "4", "5")]
    assert alone[0] == alone[1] == alone[2] != alone[3]


def test_a_key_follows_contents_and_not_places(tmp_path: Path) -> None:
    for place in ("a", "b"):
        (tmp_path / place).mkdir()
        (tmp_path / place / "one").write_text("1")
        (tmp_path / place / "two").write_text("2")
    assert contents_hash(tmp_path / "a") == contents_hash(tmp_path / "b")
    (tmp_path / "b/two").write_text("3")
    assert contents_hash(tmp_path / "a") != contents_hash(tmp_path / "b")
    assert key_of({"a": 1, "b": [2]}) == key_of({"b": [2], "a": 1}) != key_of({"a": 1, "b": [3]})


def predictions(seed: int) -> pl.DataFrame:
    """Made-up predictions of a net, which the seed decides, and baselines, which it doesn't."""
    generator, own = np.random.default_rng(0), np.random.default_rng(seed)
    count = DATES * ROWS
    days = np.repeat(np.arange(DATES), ROWS)
    market = 0.2 + 0.01 * generator.standard_normal(count)
    columns: dict[str, object] = {
        "ts": [datetime.datetime(2024, 1, 1 + int(day), tzinfo=datetime.UTC) for day in days],
        "expiry": [datetime.datetime(2024, 6, 21, tzinfo=datetime.UTC)] * count,
        "underlying": "X", "root": "X", "strike": np.tile(np.arange(ROWS) + 98.0, DATES), "right": "C",
        "tau": 0.4, "bid": 4.0, "ask": 5.0, "forward": 100.0, "discount": 0.99, "forward_model": 100.0,
        "discount_model": 0.99, "iv_market": market,
        "iv_net": market + 0.002 * own.standard_normal(count), "price_net": 4.5 + own.standard_normal(count),
    }  # fmt: skip
    for name, size in (("anchored_sticky_strike", 0.004), ("regression_anchored", 0.003), ("lightgbm_anchored", 0.003)):
        columns[f"iv_{name}"] = market + size * generator.standard_normal(count)
        columns[f"price_{name}"] = 4.5 + generator.standard_normal(count)
    return pl.DataFrame(columns)


def daily(table: pl.DataFrame, name: str) -> np.ndarray:
    """Mean squared error of each date, squared vol points."""
    error = 100.0 * (table[f"iv_{name}"] - table["iv_market"]).to_numpy()
    return np.asarray(np.mean(error.reshape(DATES, ROWS) ** 2, axis=1))


def test_scores_against_plain_formulas() -> None:
    """Mean and spread over seeds; the test of the mean over seeds of each date's error."""
    tables = [predictions(seed) for seed in (1, 2, 3)]
    scored = score(tables, ["net"])
    errors = [float(np.sqrt(np.mean(daily(table, "net")))) for table in tables]
    assert scored.mean("net", "iv_rmse") == pytest.approx(np.mean(errors))
    assert scored.spread("net", "iv_rmse") == pytest.approx(np.std(errors, ddof=1))
    assert scored.spread("regression_anchored", "iv_rmse") is None
    assert scored.mean("anchored_sticky_strike", "ratio_to_anchored") == 1.0
    anchored = daily(tables[0], "anchored_sticky_strike")
    lead = anchored - np.mean([daily(table, "net") for table in tables], axis=0)
    plain = stats.ttest_1samp(lead, 0.0)  # at a horizon of one the corrected test is Student's
    t, p, worst = scored.tests["net", "anchored_sticky_strike"]
    assert (t, p) == pytest.approx((plain.statistic, plain.pvalue))
    singly = [stats.ttest_1samp(anchored - daily(table, "net"), 0.0) for table in tables]
    assert worst == pytest.approx(max(one.pvalue if one.statistic > 0 else 1.0 for one in singly))
    assert (scored.rows, scored.dates) == (DATES * ROWS, DATES)
    metrics = {(row["subject"], row["metric"]) for row in result_rows({"c": scored}, 3)}
    for subject in ("net", "regression_anchored"):
        assert {(subject, name) for name in ("iv_rmse", "iv_mae", "price_rmse", "inside_spread", "dm_t")} <= metrics


def test_a_seed_that_is_behind_has_the_worst_p() -> None:
    tables = [predictions(1), predictions(2).with_columns(iv_net=pl.col("iv_net") + 0.05)]
    assert score(tables, ["net"]).tests["net", "anchored_sticky_strike"][2] == 1.0


def test_a_net_that_answers_as_its_prior_does_is_not_tested_against_it() -> None:
    """Rounding in single precision is no lead, however steady."""
    table = predictions(1).with_columns(iv_net=pl.col("iv_anchored_sticky_strike") * (1.0 + 1e-8))
    scored = score([table], ["net"])
    assert ("net", "anchored_sticky_strike") not in scored.tests
    assert scored.untested["net", "anchored_sticky_strike"] == "net answers as anchored_sticky_strike does"
    case = cases.Case("spx_2019/june", ("spx_2019/june",), cases.MAIN, "june")
    told = page([case], ["net"], [1], {"spx_2019/june": scored})
    assert "No test for `spx_2019/june`: net answers as anchored_sticky_strike does." in told


def test_the_page_has_a_column_per_case_and_a_row_per_subject() -> None:
    chosen = [case for case in cases.CASES.values() if case.table == cases.MAIN]
    scored: dict[str, Scored] = {case.name: score([predictions(1), predictions(2)], ["net"]) for case in chosen}
    lines = page(chosen, ["net"], [1, 2], scored).splitlines()
    head = next(line for line in lines if line.startswith("| subject |"))
    assert [cell.split(" (")[0].strip() for cell in head.strip("|").split("|")][1:] == [*cases.FOLDS, "all folds"]
    (row,) = [line for line in lines if line.startswith("| `net` |")]
    found = scored[chosen[0].name]
    assert f"{found.mean('net', 'iv_rmse'):.3f} ± {found.spread('net', 'iv_rmse'):.3f}" in row
