"""The features stage loses nothing: arrays and rows keep one order and add up, snapshots without use are named, two
underlyings stay apart, scalers see training dates only, and the same input gives the same bytes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from pipelines import features
from pipelines.config import load_config
from pipelines.dataset import FeatureStore
from pipelines.snapshots import read_snapshots
from serving.errors import DataError, TooFewSnapshotsError
from serving.features import CONTRACT_FEATURES, STEP_FEATURES, UNSCALED
from serving.last_seen import find_anchors, last_seen
from serving.laws import LawsOfMotion
from serving.quotes import Quotes
from serving.surface import ExpiryKey, build_surface
from tests.pipelines import market
from tests.pipelines.conftest import TinyRun

WITHOUT_NOISE = 1e-5  # volatility


def opened(cfg: Any) -> tuple[FeatureStore, dict[str, Any]]:
    folder = cfg.folder / "features"
    return FeatureStore.open(folder), json.loads((folder / "summary.json").read_text())


def day_of(place: int) -> str:
    return str(market.days()[place])


def history(folder: Path, count: int = 80, damaged: bool = False) -> Path:
    """Closes of the weekdays before the market begins, and one after, which must not be used."""
    first = np.datetime64(market.START)
    dates = [str(np.busday_offset(first, -place, roll="forward")) for place in range(count, 0, -1)]
    closes = 400.0 * np.exp(0.01 * np.sin(np.arange(count)))
    table = pl.DataFrame({"date": [*dates, str(first)], "close": [*closes.tolist(), 1.0]})
    return market.write(table, folder / "history.csv")


def test_rows_add_up_and_keep_one_order(tiny_run: TinyRun) -> None:
    store, summary = opened(tiny_run.cfg)
    snapshots, rows = store.snapshots, store.rows
    assert snapshots["rows"].sum() == len(rows) == len(store.contracts) == summary["rows"]
    assert sum(summary["rows_by_split"].values()) == len(rows)
    assert len(store.steps) == len(snapshots) == summary["snapshots"] == market.SNAPSHOTS
    assert summary["passed_over"] == []
    root_tau = CONTRACT_FEATURES.index("sqrt_tau")
    np.testing.assert_allclose(store.contracts[:, root_tau], np.sqrt(rows["tau"].to_numpy()), rtol=1e-6)
    for place in range(len(snapshots)):
        mine = rows[store.row_range(place)]
        assert mine["ts"].n_unique() <= 1
        assert set(mine["split"]) <= {snapshots["split"][place]}
        if len(mine):
            assert mine["ts"][0] == snapshots["ts"][place]
            assert mine["spot"][0] == snapshots["spot"][place]
    assert snapshots["rows"][0] == 0, "nothing was seen before the first snapshot"
    assert np.isfinite(store.steps).all()
    assert np.isfinite(store.contracts).all()


def test_rows_hold_the_laws_and_both_forwards(tiny_run: TinyRun) -> None:
    """Each row's prior and forwards, made anew for its expiry alone from the quotes; nothing is in another's place."""
    store, _ = opened(tiny_run.cfg)
    column = CONTRACT_FEATURES.index("prior_volatility")
    before: Quotes | None = None
    compared = 0
    for place, (_, quotes) in enumerate(read_snapshots(tiny_run.out / "ingest/quotes.parquet")):
        rows, prior = store.rows[store.row_range(place)], store.contracts[store.row_range(place), column]
        if before is not None:
            last = last_seen(build_surface(before))
            anchors = find_anchors(quotes, last, store.spec.anchors)
            laws = LawsOfMotion(last, anchors, quotes.spot)
            pairs = [anchor.forward_deviation for anchor in anchors]
            for row, found in zip(rows.to_dicts(), prior.tolist(), strict=True):
                key = ExpiryKey(row["root"], np.datetime64(row["expiry"]))
                wanted = laws.at(key, np.array([row["strike"]]), row["tau"]).sticky_strike[0]
                assert found == pytest.approx(wanted, rel=1e-6)
                carried = quotes.spot * row["last_forward"] / before.spot
                assert row["forward_carried"] == pytest.approx(carried, rel=1e-12)
                assert row["forward_model"] == pytest.approx(carried * np.exp(np.median(pairs)), rel=1e-12)
                compared += 1
        before = quotes
    assert compared == len(store.rows)


def test_without_noise_the_prior_is_the_last_smile_plus_the_shift(tmp_path: Path) -> None:
    """Smiles that are parabolas come back from smoothing as they are; what is left is the shift, as of the baseline.

    Not beyond the strikes last seen, where the one is flat and the other goes on along its slope.
    """
    cfg = market.featured(tmp_path, market.market(noise=0.0))
    store, _ = opened(cfg)
    prior = store.contracts[:, CONTRACT_FEATURES.index("prior_volatility")]
    anchored = (store.rows["last_volatility"] + store.rows["shift"]).to_numpy()
    quoted = np.zeros(len(prior), dtype=bool)
    for place, (_, quotes) in enumerate(read_snapshots(cfg.folder / "ingest/quotes.parquet")):
        if place + 1 < len(store.snapshots):
            smiles, span = last_seen(build_surface(quotes)).smiles, store.row_range(place + 1)
            for number, row in enumerate(store.rows[span].to_dicts(), start=span.start):
                strikes = smiles[ExpiryKey(row["root"], np.datetime64(row["expiry"]))].strike
                quoted[number] = strikes[0] <= row["strike"] <= strikes[-1]
    assert quoted.mean() > 0.99
    np.testing.assert_allclose(prior[quoted], anchored[quoted], atol=WITHOUT_NOISE)
    assert not np.allclose(prior[~quoted], anchored[~quoted], atol=0.001)


def test_labels_are_the_quotes(tiny_run: TinyRun) -> None:
    """Bid and ask of each row stand in the canonical quotes, and no anchor is among the rows."""
    store, _ = opened(tiny_run.cfg)
    rows = store.rows.with_columns(right=pl.when(pl.col("right_sign") > 0).then(pl.lit("C")).otherwise(pl.lit("P")))
    quotes = pl.read_parquet(tiny_run.out / "ingest/quotes.parquet").with_columns(
        pl.col("ts", "expiry").dt.replace_time_zone(None)
    )
    found = rows.join(quotes, on=["ts", "underlying", "root", "expiry", "strike", "right", "bid", "ask"], how="inner")
    assert len(found) == len(rows)
    assert not rows.select("ts", "underlying", "root", "expiry", "strike").is_duplicated().any()


def test_scalers_see_training_dates_only(tmp_path: Path, tiny_run: TinyRun) -> None:
    store, _ = opened(tiny_run.cfg)
    training = (store.snapshots["split"] == "train").to_numpy()
    contracts = store.contracts[(store.rows["split"] == "train").to_numpy(), len(UNSCALED) :]
    for values in (store.steps[training], contracts):
        scaled = (np.abs(values).max(axis=0) < 2.99) & (values.std(axis=0) > 1e-6)  # neither clipped nor constant
        assert scaled.sum() >= values.shape[1] / 4
        np.testing.assert_allclose(values[:, scaled].mean(axis=0), 0.0, atol=1e-4)
        np.testing.assert_allclose(values[:, scaled].std(axis=0), 1.0, atol=1e-3)
    wild = market.market().with_columns(
        pl.when(pl.col("ts") >= market.TEST_FROM).then(pl.col("ask") * 1.05).otherwise(pl.col("ask")).alias("ask")
    )
    other, _ = opened(market.featured(tmp_path, wild))
    assert other.spec == store.spec
    test = (store.rows["split"] == "test").to_numpy()
    assert not np.array_equal(
        store.rows["iv_market"].to_numpy()[test], other.rows["iv_market"].to_numpy()[: test.sum()]
    )


def test_two_runs_give_the_same_bytes(tmp_path: Path, tiny_run: TinyRun) -> None:
    again = market.featured(tmp_path, market.market())
    for name in ("steps.npy", "contracts.npy", "rows.parquet", "snapshots.parquet", "spec.json", "summary.json"):
        first = (tiny_run.out / "features" / name).read_bytes()
        assert (again.folder / "features" / name).read_bytes() == first, name


def test_a_day_that_cannot_be_used_is_passed_over_and_counted(tmp_path: Path) -> None:
    table = market.market()
    on = pl.col("ts").str.starts_with
    table = table.filter(~on(day_of(3))).with_columns(  # one day is absent, two have quotes nobody can use
        bid=pl.when(on(day_of(7))).then(0.0).otherwise(pl.col("bid")),
    )
    table = table.filter(~(on(day_of(12)) & (pl.col("right") == "P")))
    store, summary = opened(market.featured(tmp_path, table))
    assert summary["snapshots"] == market.SNAPSHOTS - 3
    assert [(item["underlying"], item["ts"][:10], item["reason"]) for item in summary["passed_over"]] == [
        ("AB", day_of(7), "no parity forward"), ("AB", day_of(12), "no parity forward"),
    ]  # fmt: skip
    dates = store.snapshots["ts"].dt.date().to_list()
    assert market.days()[7] not in dates
    after = dates.index(market.days()[8])
    assert store.snapshots["rows"][after] > 0, "the day after is predicted from the last usable one"
    elapsed = STEP_FEATURES.index("calendar_days")
    scaler = store.spec.step_scaler
    span = store.steps[after, elapsed] * scaler.deviation[elapsed] + scaler.mean[elapsed]
    assert span == pytest.approx((market.days()[8] - market.days()[6]).days, abs=1e-4)


def test_a_market_out_of_the_scored_range_is_passed_over(tmp_path: Path) -> None:
    """Parity is there, but every expiry is more than a year away."""
    table = market.market()
    far = pl.when(pl.col("ts").str.starts_with(day_of(9))).then(pl.lit("2026-")).otherwise(pl.lit("2024-"))
    table = table.with_columns(expiry=far + pl.col("expiry").str.slice(5))
    _, summary = opened(market.featured(tmp_path, table))
    assert [item["reason"] for item in summary["passed_over"]] == ["no quote in the scored range"]


def test_several_snapshots_a_day_share_a_split(tmp_path: Path) -> None:
    table = market.market(times=("15:00", "18:00"))
    store, summary = opened(market.featured(tmp_path, table))
    assert summary["snapshots"] == 2 * market.SNAPSHOTS
    labels = store.snapshots.filter(pl.col("split") != "unused").group_by(pl.col("ts").dt.date()).agg("split")
    assert all(len(set(split)) == 1 for split in labels["split"])


def test_two_underlyings_do_not_mix(tmp_path: Path, tiny_run: TinyRun) -> None:
    """Each alone gives the rows it gives beside the other, and its windows hold its own steps."""
    both = pl.concat([market.market(), market.market(seed=9, underlying="CD", spot=90.0)])
    store, summary = opened(market.featured(tmp_path, both))
    assert summary["snapshots"] == 2 * market.SNAPSHOTS
    assert store.snapshots["underlying"].to_list() == ["AB"] * market.SNAPSHOTS + ["CD"] * market.SNAPSHOTS
    alone = opened(tiny_run.cfg)[0]
    assert store.rows.filter(pl.col("underlying") == "AB").equals(alone.rows)
    for place in range(len(store.snapshots)):
        assert store.rows[store.row_range(place)]["underlying"].unique().to_list() in (
            [], [store.snapshots["underlying"][place]],
        )  # fmt: skip
    first = market.SNAPSHOTS
    window = store.window(first + 1)
    assert not window[:-2].any(), "before the second underlying's first step there is nothing"
    np.testing.assert_array_equal(window[-2:], store.steps[first : first + 2])


def test_history_serves_one_underlying(tmp_path: Path) -> None:
    both = pl.concat([market.market(), market.market(seed=9, underlying="CD", spot=90.0)])
    with pytest.raises(DataError, match="history serves one underlying, and the quotes hold AB and CD"):
        market.featured(tmp_path, both, f"data.history={history(tmp_path)}")


def test_history_lengthens_the_path(tmp_path: Path, tiny_run: TinyRun) -> None:
    cfg = market.featured(tmp_path, market.market(), f"data.history={history(tmp_path)}")
    column = STEP_FEATURES.index("realised_volatility_63")
    found = []
    for store in (opened(tiny_run.cfg)[0], opened(cfg)[0]):
        scaler = store.spec.step_scaler
        found.append(store.steps[:, column] * scaler.deviation[column] + scaler.mean[column])
    without, with_history = found
    assert without[0] < without[20], "one price, no return: as low as the clip lets it be"
    assert 0.05 < with_history[0] < 0.3, "sixty-three closes, none of them the one of the first snapshot's own day"


def test_no_anchors(tmp_path: Path) -> None:
    store, _ = opened(market.featured(tmp_path, market.market(), "data.anchors=[]"))
    assert store.rows["shift"].abs().max() == 0.0
    assert store.rows["forward_model"].equals(store.rows["forward_carried"].alias("forward_model"))
    assert store.snapshots["anchors"].max() == 0
    assert store.spec.anchors == ()


def test_a_snapshot_with_few_rows_keeps_its_place_and_is_not_scored(tmp_path: Path) -> None:
    table = market.market()
    thin = pl.col("ts").str.starts_with(day_of(10)) & (pl.col("expiry") != str(market.EXPIRIES[1]))
    store, _ = opened(market.featured(tmp_path, table.filter(~thin), "features.smallest_rows=20"))
    place = store.snapshots["ts"].dt.date().to_list().index(market.days()[10])
    assert store.snapshots["rows"][place] == 0
    assert store.snapshots["split"][place] == "unused"


def test_missing_and_unusable_input_is_told(tmp_path: Path) -> None:
    cfg = load_config(market.overrides(tmp_path, tmp_path / "none.csv"))
    with pytest.raises(DataError, match=r"quotes.parquet isn't there: run python -m pipelines.ingest"):
        features.run(cfg)
    with pytest.raises(TooFewSnapshotsError, match="24 snapshots passed over"):
        market.featured(tmp_path, market.market().filter(pl.col("right") == "C"))
