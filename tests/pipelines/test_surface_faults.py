"""Faults change what they say and nothing else; without a fault nothing is found, a huge one always."""

from __future__ import annotations

import dataclasses

import numpy as np
import polars as pl
import pytest
import torch

from models.surface_vae import SurfaceVAE, SurfaceVAEConfig
from pipelines import surface_faults
from pipelines.dataset import FeatureStore
from pipelines.surface_days import SurfaceDays
from pipelines.surface_faults import (
    AFTER_A_MOVE,
    FAULTS,
    SCALE,
    STALE,
    WING,
    WING_SHIFT,
    Detection,
    Fault,
    detect,
    moneyness,
    scaled_tenor,
    shifted_wing,
    stale_at_moneyness,
    stale_at_strike,
    stale_quotes,
    swapped_expiries,
)
from pipelines.tasks.surface import SurfaceTask
from pipelines.tasks.surface_bundle import reference, torch_net
from serving import black76
from serving.errors import TooFewSnapshotsError
from serving.last_seen import LastSeen, LastSmile
from serving.surface import DAYS_PER_YEAR, tau_years
from tests.pipelines.conftest import TinyRun

SCORE, PLAIN = "AUC of the score", "AUC of the distance from the last surface"


@pytest.fixture
def store(tiny_run: TinyRun) -> FeatureStore:
    return FeatureStore.open(tiny_run.out / "features")


@pytest.fixture
def days(tiny_run: TinyRun, store: FeatureStore) -> SurfaceDays:
    return SurfaceDays.read(store, tiny_run.out / "ingest" / "quotes.parquet")


@pytest.fixture
def pair(store: FeatureStore, days: SurfaceDays) -> tuple[LastSeen, LastSeen]:
    return days.pair(int(store.places("test")[0]))


@pytest.fixture
def net(tiny_run: TinyRun, store: FeatureStore) -> SurfaceVAE:
    task = SurfaceTask(tiny_run.of("surface_vae"), store)
    torch.manual_seed(0)
    made = SurfaceVAE(SurfaceVAEConfig(**task.sizes())).eval()
    task.prepare(made)
    return made


# --- faults


def same(one: LastSmile, other: LastSmile) -> bool:
    return all(np.array_equal(getattr(one, field.name), getattr(other, field.name))
               for field in dataclasses.fields(LastSmile) if field.name != "key")  # fmt: skip


def changed(now: LastSeen, wrong: LastSeen) -> list[float]:
    """Tenors [days] of the expiries that differ."""
    assert list(now.smiles) == list(wrong.smiles)
    return [one.tau * DAYS_PER_YEAR for key, one in now.smiles.items() if not same(one, wrong.smiles[key])]


def test_the_low_strikes_are_shifted(pair: tuple[LastSeen, LastSeen]) -> None:
    now, last = pair
    wrong = shifted_wing(now, last)
    low = 0
    for key, smile in now.smiles.items():
        wing = moneyness(smile) <= WING
        low += int(wing.sum())
        np.testing.assert_allclose(wrong.smiles[key].volatility, smile.volatility + WING_SHIFT * wing, atol=1e-12)
        assert same(dataclasses.replace(wrong.smiles[key], volatility=smile.volatility), smile)
    assert low


def test_one_expiry_is_scaled(pair: tuple[LastSeen, LastSeen]) -> None:
    now, last = pair
    wrong = scaled_tenor(now, last)
    tenors = [smile.tau * DAYS_PER_YEAR for key, smile in now.smiles.items() if smile.in_range and key in last.smiles]
    nearest = min(tenors, key=lambda days: abs(np.log(days / 60.0)))
    assert changed(now, wrong) == [nearest]
    for key, smile in now.smiles.items():
        scale = SCALE if smile.tau * DAYS_PER_YEAR == nearest else 1.0
        np.testing.assert_allclose(wrong.smiles[key].volatility, scale * smile.volatility, rtol=1e-12)


def test_two_expiries_swap_their_smiles(pair: tuple[LastSeen, LastSeen]) -> None:
    now, last = pair
    wrong = swapped_expiries(now, last)
    assert len(changed(now, wrong)) == 2
    first, second = (key for key in now.smiles if not same(now.smiles[key], wrong.smiles[key]))
    for key, other in ((first, second), (second, first)):
        smile, from_ = wrong.smiles[key], now.smiles[other]
        inside = (moneyness(smile) >= moneyness(from_)[0]) & (moneyness(smile) <= moneyness(from_)[-1])
        assert inside.any()
        wanted = np.interp(moneyness(smile), moneyness(from_), from_.volatility)
        np.testing.assert_allclose(smile.volatility[inside], wanted[inside], rtol=1e-12)
        np.testing.assert_array_equal(smile.strike, now.smiles[key].strike)


def test_stale_quotes_have_the_old_prices(pair: tuple[LastSeen, LastSeen]) -> None:
    now, last = pair
    wrong = stale_quotes(now, last)
    assert (wrong.ts, wrong.spot) == (now.ts, now.spot)
    for key, smile in wrong.smiles.items():
        before = last.smiles[key]
        assert smile.tau == tau_years(now.ts, key.expiry) < before.tau
        right = np.where(before.strike >= before.forward, 1.0, -1.0)
        new, old = (black76.price(one.forward, one.strike, one.tau, one.volatility, one.discount, right)
                    for one in (smile, before))  # fmt: skip
        np.testing.assert_allclose(new, old, rtol=1e-12)


def test_stale_volatilities_stay_where_they_say(pair: tuple[LastSeen, LastSeen]) -> None:
    now, last = pair
    for fault, held in ((stale_at_strike, lambda smile: smile.strike), (stale_at_moneyness, moneyness)):
        wrong = fault(now, last)
        for key, smile in wrong.smiles.items():
            np.testing.assert_array_equal(smile.volatility, last.smiles[key].volatility)
            np.testing.assert_allclose(held(smile), held(last.smiles[key]), rtol=1e-9, atol=1e-12)
            assert smile.forward == last.carried_forward(key, now.spot)


# --- detection


def found(
    store: FeatureStore, days: SurfaceDays, net: SurfaceVAE, monkeypatch: pytest.MonkeyPatch, fault: Fault
) -> Detection:
    monkeypatch.setattr(surface_faults, "FAULTS", {"this": fault})
    return detect(store, days, torch_net(net), reference(net, store, days))


def row(found: Detection, fault: str) -> dict[str, float | None]:
    return found.table.filter(pl.col("fault") == fault).to_dicts()[0]


def test_no_fault_is_not_found_and_a_huge_one_always(
    store: FeatureStore, days: SurfaceDays, net: SurfaceVAE, monkeypatch: pytest.MonkeyPatch
) -> None:
    clean = found(store, days, net, monkeypatch, lambda now, _: now)
    assert (row(clean, "this")[SCORE], row(clean, "this")[PLAIN]) == (0.5, 0.5)
    assert clean.places.tolist() == store.places("test").tolist()
    assert len(clean.clean) == len(clean.percentile) == len(clean.places)

    def huge(now: LastSeen, _: LastSeen) -> LastSeen:
        smiles = {key: dataclasses.replace(smile, volatility=smile.volatility * (1.5 if place == 1 else 1.0))
                  for place, (key, smile) in enumerate(now.smiles.items())}  # fmt: skip
        return dataclasses.replace(now, smiles=smiles)

    assert row(found(store, days, net, monkeypatch, huge), "this")[SCORE] == 1.0


def test_stale_snapshots_are_tried_where_the_underlying_moved_and_told_from_fresh_ones(
    store: FeatureStore, days: SurfaceDays, net: SurfaceVAE, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = found(store, days, net, monkeypatch, lambda now, _: now)
    moved = sum(abs(days.move(int(place))) > surface_faults.MOVED for place in store.places("test"))
    assert moved
    for name in STALE:
        assert AFTER_A_MOVE in name
        assert row(tried, name)["surfaces"] == moved
        assert row(tried, name)[SCORE] == 1.0
    monkeypatch.setattr(surface_faults, "MOVED", 1.0)
    assert not set(found(store, days, net, monkeypatch, lambda now, _: now).table["fault"]) & set(STALE)


def test_the_verdict_is_counted_where_there_is_one(
    store: FeatureStore, days: SurfaceDays, net: SurfaceVAE, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three validation dates give none; with a hundred scores, all of them low, every fault gets it."""
    assert row(found(store, days, net, monkeypatch, shifted_wing), "this")["share flagged"] is None
    low = dataclasses.replace(reference(net, store, days), scores=np.zeros(100), held_out=True)
    given = row(detect(store, days, torch_net(net), low), "this")
    assert (given["share flagged"], given["share flagged of clean ones"]) == (1.0, 1.0)
    high = dataclasses.replace(low, scores=np.full(100, 1e12))
    assert row(detect(store, days, torch_net(net), high), "this")["share flagged"] == 0.0


def test_the_faults_named_are_tried_on_every_test_date(store: FeatureStore, days: SurfaceDays, net: SurfaceVAE) -> None:
    table = detect(store, days, torch_net(net), reference(net, store, days)).table
    assert table["fault"].to_list() == [*FAULTS, *STALE]
    assert table["surfaces"].to_list()[: len(FAULTS)] == [len(store.places("test"))] * len(FAULTS)


# --- the reference


def test_the_reference_needs_some_dates(store: FeatureStore, days: SurfaceDays, net: SurfaceVAE) -> None:
    made = reference(net, store, days)
    assert len(made.scores) == len(store.places("train"))  # three validation dates are too few
    assert not made.held_out
    few = pl.when(pl.int_range(pl.len()) > 3).then(pl.lit("unused")).otherwise(pl.col("split"))
    with pytest.raises(TooFewSnapshotsError, match="needs 5 training dates"):
        reference(net, dataclasses.replace(store, snapshots=store.snapshots.with_columns(split=few)), days)


def test_nothing_of_the_test_dates_enters_the_reference(
    store: FeatureStore, days: SurfaceDays, net: SurfaceVAE
) -> None:
    now = list(days.now)
    for place in (int(place) for place in store.places("test")):
        now[place] = shifted_wing(now[place], now[place])
    other = SurfaceDays(now, days.before)
    for name, values in reference(net, store, other).to_arrays().items():
        np.testing.assert_array_equal(values, reference(net, store, days).to_arrays()[name])
