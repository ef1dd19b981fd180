"""The dense surfaces of a finished run: the net is asked as in evaluation, and what predictors plant is counted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest

import models
from models.pricing import PricingNet
from pipelines import shape_surfaces
from pipelines.dataset import FeatureStore
from pipelines.shape_surfaces import shape_table, standard_predictors
from pipelines.tasks.pricing import predict
from pipelines.trained import load_trained
from serving.errors import DataError
from serving.features import CONTRACT_FEATURES, Contracts, ContractTable, contract_table
from serving.normal import Array
from tests.pipelines.conftest import TinyRun


@pytest.fixture
def store(tiny_run: TinyRun) -> FeatureStore:
    return FeatureStore.open(tiny_run.out / "features")


@pytest.fixture
def quotes(tiny_run: TinyRun) -> Path:
    return tiny_run.out / "ingest" / "quotes.parquet"


def row(table: pl.DataFrame, name: str) -> dict[str, float]:
    """Figures of one predictor."""
    return {key: value for key, value in table.row(by_predicate=pl.col("predictor") == name, named=True).items()
            if key != "predictor"}  # fmt: skip


def of(answer: Callable[[ContractTable], Array]) -> shape_surfaces.Predictor:
    """A predictor that looks at the table alone."""
    return lambda _snapshot, table: answer(table)


def test_the_net_answers_as_in_evaluation(tiny_run: TinyRun, store: FeatureStore, quotes: Path) -> None:
    """At the scored quotes the predictor gives what `predict` gives; and they all lie within the strikes judged."""
    net = load_trained(tiny_run.out / "train" / "pricing_lstm", tiny_run.out / "features").net
    assert isinstance(net, PricingNet)
    rows = store.rows.with_row_index("row").filter(pl.col("split") == "test")
    expected = predict(net, store, "test")
    ask = shape_surfaces.net_predictor(store, net)
    seen = 0
    for snapshot in shape_surfaces.snapshots(store, quotes):
        span = store.row_range(snapshot.place)
        mine = (rows["row"] >= span.start) & (rows["row"] < span.stop)
        asked = rows.filter(mine)
        contracts = Contracts(asked["root"].to_numpy().astype(np.str_), asked["expiry"].to_numpy(),
                              asked["strike"].to_numpy(), asked["right_sign"].to_numpy())  # fmt: skip
        table = contract_table(contracts, snapshot.quotes.ts, snapshot.quotes.spot, snapshot.last, snapshot.anchors)
        np.testing.assert_allclose(ask(snapshot, table), expected[mine.to_numpy()][table.rows], atol=1e-6)
        for (_, expiry), part in asked.group_by("root", "expiry"):
            strikes = next(found for key, (found, _) in snapshot.scored.items() if key.expiry == np.datetime64(expiry))
            assert set(part["strike"].to_list()) <= set(strikes.tolist())
        seen += asked.height
    assert seen == len(expected) > 0


def test_an_untrained_net_is_its_prior(tiny_run: TinyRun, store: FeatureStore, quotes: Path) -> None:
    sizes = load_trained(tiny_run.out / "train" / "pricing_lstm", tiny_run.out / "features").sizes
    net = models.build("pricing_lstm", sizes).eval()
    assert isinstance(net, PricingNet)
    prior = of(lambda table: table.features[:, CONTRACT_FEATURES.index("prior_volatility")])
    table = shape_table(store, quotes, {**standard_predictors(store, net), "prior": prior})
    assert table["predictor"].to_list() == ["market", "model", "anchored_sticky_strike", "sticky_strike", "prior"]
    assert row(table, "model") == pytest.approx(row(table, "prior"), rel=1e-3, abs=1e-3)
    model, raw = row(table, "model"), row(table, "anchored_sticky_strike")
    assert model["butterfly"] < raw["butterfly"], "the last smile's noise is smoothed away"
    assert table["smiles"].n_unique() == table["butterfly_nodes"].n_unique() == table["calendar_nodes"].n_unique() == 1
    assert table["butterfly_nodes"][0] > 1000


def test_planted_violations_are_counted(store: FeatureStore, quotes: Path) -> None:
    """Flat: none. Total variance that falls with tenor: every calendar node, no butterfly. Equal: none."""
    planted = {
        "flat": of(lambda table: np.full(len(table.rows), 0.2)),
        "falling": of(lambda table: 0.03 / table.tau),
        "equal": of(lambda table: 0.06 / np.sqrt(table.tau)),
    }
    table = shape_table(store, quotes, planted)
    for name, calendar in (("flat", 0.0), ("falling", 1.0), ("equal", 0.0)):
        figures = row(table, name)
        assert (figures["butterfly"], figures["durrleman"], figures["negative_probability"]) == (0.0, 0.0, 0.0)
        assert figures["calendar"] == calendar
    assert row(table, "falling")["calendar_money"] > 0
    assert row(table, "equal")["calendar_money"] == 0


def test_a_predictor_that_jumps_is_caught_at_every_smile(store: FeatureStore, quotes: Path) -> None:
    """A step of the volatility near the forward: the call price rises at once, so its slope falls after it."""

    column = CONTRACT_FEATURES.index("moneyness")
    jump = of(lambda table: np.where(table.features[:, column] > 0.0011, 0.202, 0.2))
    table = shape_table(store, quotes, {"jump": jump})
    figures = row(table, "jump")
    assert figures["butterfly"] * figures["butterfly_nodes"] == pytest.approx(figures["smiles"], abs=0.1)
    assert figures["negative_probability"] > 0.1


def test_fewer_snapshots_are_spread_over_the_test(store: FeatureStore, quotes: Path) -> None:
    """First, middle and last of five."""
    places = store.places("test")
    taken = [snapshot.place for snapshot in shape_surfaces.snapshots(store, quotes, 3)]
    assert taken == [places[0], places[2], places[4]]
    assert len(list(shape_surfaces.snapshots(store, quotes, 9))) == len(places) == 5


def test_other_quotes_than_the_features_are_refused(store: FeatureStore, quotes: Path, tmp_path: Path) -> None:
    fewer = tmp_path / "quotes.parquet"
    table = pl.read_parquet(quotes)
    table.filter(pl.col("ts") < table["ts"].max()).write_parquet(fewer)
    with pytest.raises(DataError, match="holds 4 of the 5 test snapshots"):
        shape_table(store, fewer, {})
