"""Completing what is hidden: nobody looks, known worlds are completed exactly, and missing smiles are bridged."""

from __future__ import annotations

import dataclasses

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.completion import FLOOR, Blend, Snapshot, complete, draw_hidden, fit_blend, without_spikes
from pipelines.dataset import FeatureStore
from pipelines.svi import SVI
from serving.features import FeatureSpec, Scaler
from serving.normal import Array
from serving.surface_grid import CELLS, MONEYNESS, MOVE_FEATURES, SHAPE, TENORS_DAYS
from serving.surface_score import SurfaceAnswer, SurfaceInput

DAYS = (15, 40, 75, 150, 260)
X, DENSE = np.linspace(-0.45, 0.28, 15), np.linspace(-0.45, 0.28, 60)
SMILE = SVI(a=0.01, b=0.12, rho=-0.5, m=0.03, sigma=0.25)
NODE_TAU = np.repeat(np.array(TENORS_DAYS) / 365, SHAPE[1])
NODE_X = np.tile(np.array(MONEYNESS), SHAPE[0])


def svi_world(tau: Array, x: Array) -> Array:
    """Total variance tau SMILE(x): each smile is an SVI in k = x sqrt(tau), total variance linear in tau."""
    return np.sqrt(SMILE.total_variance(x))


def store_of(now: Array, last: Array, split: tuple[str, ...] = ("test",), *, strikes: Array = X) -> FeatureStore:
    """A snapshot per split: DAYS expiries, the same `strikes` (moneyness) each; the last surface's grid is SMILE's."""
    count = len(DAYS) * len(strikes)
    tau, x = rows(strikes)
    one = pl.DataFrame({
        "root": "AB", "expiry": np.repeat(np.array(DAYS), len(strikes)), "tau": tau,
        "strike": 100 * np.exp(x * np.sqrt(tau)), "forward": 100.0, "iv_market": now, "last_volatility": last,
    })  # fmt: skip
    ts = pl.datetime_range(pl.datetime(2024, 1, 1), pl.datetime(2024, 12, 1), "1d", eager=True)[: len(split)]
    snapshots = pl.DataFrame({
        "underlying": "AB", "ts": ts, "split": split, "rows": count,
        "first_row": [count * place for place in range(len(split))],
    })  # fmt: skip
    grid = np.stack([svi_world(NODE_TAU, NODE_X), np.ones(CELLS)] * 2).astype(np.float32)
    scaler = Scaler((0.0,), (1.0,))
    nothing = np.zeros((len(split), 1), np.float32)
    return FeatureStore(FeatureSpec(2, (), scaler, scaler), nothing, nothing, np.stack([grid] * len(split)),
                        np.zeros((len(split), len(MOVE_FEATURES)), np.float32), pl.concat([one] * len(split)),
                        snapshots)  # fmt: skip


def rows(strikes: Array = X) -> tuple[Array, Array]:
    """tau (years) and moneyness of every quote."""
    return np.repeat(np.array(DAYS) / 365, len(strikes)), np.tile(strikes, len(DAYS))


WORLD = svi_world(*rows())


HALF = Blend(0.5, 0.5)


def answer_of(completed: Array) -> SurfaceAnswer:
    count = len(completed)
    ones = np.ones((count, 1), np.float32)
    return SurfaceAnswer(completed.astype(np.float32), 0.01 * np.ones_like(completed, np.float32), ones, ones[:, 0],
                         ones)  # fmt: skip


def level_net(known: SurfaceInput) -> SurfaceAnswer:
    """Moves the last surface by the mean of what the known cells moved by: reads all it is given."""
    change = (known.mask * (known.surface - known.last)).sum(1, keepdims=True)
    return answer_of(known.last + change / np.maximum(known.mask.sum(1, keepdims=True), 1))


def hiding(share: float = 0.5, seed: int = 0) -> np.ndarray:
    return draw_hidden(len(WORLD), share, seed)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 999), share=st.sampled_from([0.1, 0.5, 0.9, 1.0]), by=st.floats(-0.1, 0.6))
def test_nobody_looks_at_what_is_hidden(seed: int, share: float, by: float) -> None:
    noise = np.random.default_rng(seed).normal(0, 0.01, WORLD.size)
    hidden = hiding(share, seed)
    first = complete(store_of(WORLD + noise, WORLD), 0, level_net, hidden, HALF)
    second = complete(store_of(WORLD + noise + by * hidden, WORLD), 0, level_net, hidden, HALF)
    assert set(first) == {"model", "interpolation", "grid_interpolation", "svi", "sticky_strike", "shifted_last"}
    for name, values in first.items():
        np.testing.assert_array_equal(values, second[name], err_msg=name)
        assert values.shape == (hidden.sum(),)
        assert np.isfinite(values).all()
        assert (values >= FLOOR).all()


def test_everyone_but_the_last_surface_looks_at_what_is_visible() -> None:
    hidden = hiding()
    first = complete(store_of(WORLD, WORLD), 0, level_net, hidden, HALF)
    second = complete(store_of(WORLD + 0.05 * ~hidden, WORLD), 0, level_net, hidden, HALF)
    for name, values in first.items():
        assert (name == "sticky_strike") == np.array_equal(values, second[name]), name


def test_a_world_of_svi_smiles_is_completed_by_svi() -> None:
    """To 0.01 vol points where a smile shows some thirty quotes; interpolation cuts corners."""
    world = svi_world(*rows(DENSE))
    hidden = draw_hidden(world.size, 0.5, 0)
    found = complete(store_of(world, world + 0.1, strikes=DENSE), 0, level_net, hidden, HALF)
    error = 100 * np.abs(found["svi"] - world[hidden])
    assert error.max() < 0.01
    assert 100 * np.abs(found["interpolation"] - world[hidden]).max() > 0.01


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 999), share=st.sampled_from([0.3, 0.8, 0.97]), by=st.floats(-0.05, 0.2))
def test_a_shift_of_all_quotes_is_seen_in_one(seed: int, share: float, by: float) -> None:
    """Quotes that moved alike are all found from any that are visible, smiles without one included."""
    last = WORLD + np.random.default_rng(seed).normal(0, 0.01, WORLD.size)
    hidden = hiding(share, seed)
    if hidden.all():
        hidden[seed % hidden.size] = False
    found = complete(store_of(last + by, last), 0, level_net, hidden, Blend(0.0, 1.0))
    np.testing.assert_allclose(found["shifted_last"], (last + by)[hidden], atol=1e-12)
    np.testing.assert_allclose(found["model"], (last + by)[hidden], atol=1e-6)


@pytest.mark.parametrize("place", range(len(DAYS)))
def test_a_smile_without_a_visible_quote_lies_between_its_neighbours(place: int) -> None:
    hidden = np.zeros((len(DAYS), len(X)), dtype=bool)
    hidden[place] = True
    levels = 0.2 + 0.01 * np.arange(len(DAYS))
    now = np.repeat(levels, len(X))
    found = complete(store_of(now, np.full(now.size, 0.2)), 0, level_net, hidden.ravel(), HALF)
    last = len(DAYS) - 1
    before, after = {0: (1, 1), last: (last - 1, last - 1)}.get(place, (place - 1, place + 1))
    below, above = levels[before], levels[after]
    for name in ("interpolation", "svi", "shifted_last"):
        assert (found[name] >= below - 2e-3).all(), name
        assert (found[name] <= above + 2e-3).all(), name
    if before != after:
        tau = np.array(DAYS) / 365
        share = (tau[place] - tau[place - 1]) / (tau[place + 1] - tau[place - 1])
        np.testing.assert_allclose(found["shifted_last"], (1 - share) * below + share * above, atol=1e-12)


def test_everything_hidden_leaves_the_last_surface_and_the_net() -> None:
    hidden = np.ones(WORLD.size, dtype=bool)
    found = complete(store_of(WORLD + 0.05, WORLD), 0, level_net, hidden, HALF)
    np.testing.assert_array_equal(found["sticky_strike"], WORLD)
    np.testing.assert_array_equal(found["shifted_last"], WORLD)
    np.testing.assert_allclose(found["model"], WORLD, atol=5e-3)
    assert (found["interpolation"] == FLOOR).all()
    assert (found["svi"] == FLOOR).all()


def test_nothing_hidden_gives_nothing() -> None:
    found = complete(store_of(WORLD, WORLD), 0, level_net, np.zeros(WORLD.size, dtype=bool), HALF)
    assert all(values.shape == (0,) for values in found.values())


def test_what_is_hidden_depends_on_place_and_share_alone_and_shares_are_nested() -> None:
    first = draw_hidden(10_000, 0.3, 2)
    np.testing.assert_array_equal(first, draw_hidden(10_000, 0.3, 2))
    assert first.mean() == pytest.approx(0.3, abs=0.02)
    assert (first != draw_hidden(10_000, 0.3, 3)).mean() > 0.3
    assert (draw_hidden(10_000, 0.8, 2) >= first).all()
    assert draw_hidden(50, 1.0, 0).all()
    assert not draw_hidden(50, 0.0, 0).any()


@given(place=st.integers(0, 500), rows=st.integers(1, 5))
def test_one_quote_at_least_is_visible(place: int, rows: int) -> None:
    assert not draw_hidden(rows, 0.99, place).all()


def test_roots_of_one_date_are_smiles_of_their_own_and_equal_strikes_count_once() -> None:
    store = store_of(WORLD, WORLD)
    twice = pl.concat([store.rows, store.rows.with_columns(root=pl.lit("ABW"), iv_market=pl.col("iv_market") + 0.1)])
    snapshot = Snapshot.of(pl.concat([twice, twice.head(1)]), np.zeros(2 * WORLD.size + 1, dtype=bool))
    assert snapshot.smile.max() + 1 == 2 * len(DAYS)
    for smile in range(2 * len(DAYS)):
        visible = snapshot.visible_of(smile)
        assert len(visible) == len(X)
        assert (np.diff(snapshot.moneyness[visible]) > 0).all()
        assert np.unique(snapshot.tau[visible]).size == 1
    order = [snapshot.tau[snapshot.visible_of(smile)[0]] for smile in range(2 * len(DAYS))]
    assert order == sorted(order)


# --- how much of the last smile's detail is believed


def last_net(known: SurfaceInput) -> SurfaceAnswer:
    return answer_of(known.last)


@pytest.mark.parametrize("kept", [1.0, 0.0, 0.5])
def test_what_is_not_read_between_the_cells_is_the_share_of_bumps_that_stayed(kept: float) -> None:
    bumps = 0.01 * np.random.default_rng(0).standard_normal(WORLD.size)
    store = store_of(WORLD + kept * bumps, WORLD + bumps, ("train", "train", "validation", "test"))
    blend = fit_blend(store, last_net, 0.5)
    assert blend.between == pytest.approx(1.0 - kept, abs=0.15)
    assert min(blend.between, blend.moved) >= 0.0
    assert blend.between + blend.moved <= 1.0 + 1e-12


def test_the_blend_looks_at_nothing_of_the_test() -> None:
    bumps = 0.01 * np.random.default_rng(0).standard_normal(WORLD.size)
    store = store_of(WORLD + 0.5 * bumps, WORLD + bumps, ("train", "train", "validation", "test"))
    test = store.row_range(3)
    market = store.rows["iv_market"].to_numpy().copy()
    market[test] = 0.9
    other = dataclasses.replace(store, rows=store.rows.with_columns(iv_market=market))
    assert fit_blend(other, last_net, 0.5) == fit_blend(store, last_net, 0.5)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 9999), size=st.integers(1, 30), place=st.integers(0, 29), by=st.floats(0.05, 0.5))
def test_a_single_wrong_quote_is_not_handed_on(seed: int, size: int, place: int, by: float) -> None:
    smooth = 0.01 + 0.004 * np.sin(np.arange(size) / 8 + seed)
    spiked = smooth.copy()
    spiked[place % size] += by
    np.testing.assert_array_equal(without_spikes(smooth), smooth)
    if size >= 5:
        assert np.abs(without_spikes(spiked) - smooth).max() < 0.005
    else:
        np.testing.assert_array_equal(without_spikes(spiked), spiked)
