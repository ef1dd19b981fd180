"""Features of time t see of t the underlying and the anchors' quotes, and of later times nothing.

Worlds: one synthetic market, and copies of it in which every other quote of t, and everything after t, is another
market's, with quotes and expiries missing. Training's code path runs on both; what it says of t, unscaled and scaled,
must agree to the last bit. The converse is held too: what may matter does, so the comparison can fail.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pipelines import features
from pipelines.config import Config, load_config
from serving.features import CONTRACT_FEATURES, STEP_FEATURES
from serving.last_seen import AnchorTarget, find_anchors, last_seen, scored_range
from serving.surface import Quotes, build_surface
from tests.serving.test_surface import EXPIRIES, TS, chain, expiry_of

DAYS = 13  # Thursday the 1st to Tuesday the 13th, weekends too
FIRST_TEST = 9
LISTED = [(root, expiry_of(root, days)) for root, days in EXPIRIES]
# Columns of rows.parquet that the baselines use at t: as much a promise as the nets' features.
KNOWN_AT_T = (
    "tau", "forward_model", "forward_carried", "discount_model", "last_volatility", "shift", "log_return", "spot",
    "last_spot", "realised_volatility", "last_at_moneyness", "last_forward", "last_level", "last_slope",
    "last_curvature", "anchor_move_14", "anchor_move_45", "anchor_move_120", "split",
)  # fmt: skip
Row = tuple[str, np.datetime64, float]


def at_time(day: int, spot: float, level: float) -> Quotes:
    def volatility(strike: np.ndarray, tau: float) -> np.ndarray:
        x = np.log(strike / spot) / np.sqrt(tau)
        return level - 0.1 * x + 0.08 * x**2 + 0.002 * np.sin(strike + 50.0 * tau)

    return chain(ts=TS + np.timedelta64(day, "D"), spot=spot, expiries=LISTED, volatility=volatility)


@cache
def market(seed: int = 5) -> tuple[Quotes, ...]:
    rng = np.random.default_rng(seed)
    spots = 100.0 * np.exp(np.cumsum(rng.normal(0, 0.008, DAYS)))
    levels = 0.2 * np.exp(np.cumsum(rng.normal(0, 0.03, DAYS)))
    return tuple(at_time(day, float(spots[day]), float(levels[day])) for day in range(DAYS))


def config(out: Path | str = "unused") -> Config:
    first_test = (TS + np.timedelta64(FIRST_TEST, "D")).astype("datetime64[D]")
    return load_config([
        f"out={out}", f"split.test_from={first_test}", "split.test_to=null", "split.validation_dates=1",
        "split.embargo=1", "features.window=4", "features.smallest_rows=5", "data.history=null",
    ])  # fmt: skip


TARGETS = tuple(AnchorTarget(anchor.tenor_days, anchor.moneyness) for anchor in config().data.anchors)


@dataclasses.dataclass(frozen=True)
class Seen:
    """What the features stage wrote of a world, and what it had before scaling."""

    times: list[np.datetime64]
    raw_steps: np.ndarray
    raw_contracts: np.ndarray
    steps: np.ndarray
    contracts: np.ndarray
    rows: pl.DataFrame
    spec: dict[str, Any]

    def step(self, ts: np.datetime64) -> tuple[bytes, bytes]:
        place = self.times.index(ts)
        return self.raw_steps[place].tobytes(), self.steps[place].tobytes()

    def contracts_at(self, ts: np.datetime64) -> dict[Row, tuple[object, ...]]:
        """Per scored contract: features before and after scaling, bit by bit, and what baselines use."""
        places = np.flatnonzero(self.rows["ts"].to_numpy() == ts)
        identity = self.rows.select("root", "expiry", "strike").rows()
        known = self.rows.select(KNOWN_AT_T).rows()
        return {identity[k]: (self.raw_contracts[k].tobytes(), self.contracts[k].tobytes(), known[k]) for k in places}


def read(builder: features._Builder, folder: Path) -> Seen:
    return Seen(
        [snapshot["ts"] for snapshot in builder.snapshots], np.stack(builder.steps), np.concatenate(builder.tables),
        np.load(folder / "steps.npy"), np.load(folder / "contracts.npy"), pl.read_parquet(folder / "rows.parquet"),
        json.loads((folder / "spec.json").read_text()),
    )  # fmt: skip


@cache
def begun(days: int) -> features._Builder:
    """The stage's builder after the first days of the market."""
    if not days:
        return features._Builder(TARGETS, config())
    builder = copy.deepcopy(begun(days - 1))
    builder.add("SPX", market()[days - 1])
    return builder


def computed(world: Sequence[Quotes]) -> Seen:
    """The stage's own builder, fed from memory; days that are the market's own are computed once."""
    shared = 0
    while shared < len(world) and world[shared] is market()[shared]:
        shared += 1
    builder = copy.deepcopy(begun(shared))
    for quotes in world[shared:]:
        builder.add("SPX", quotes)
    with tempfile.TemporaryDirectory() as folder:
        builder.write(Path(folder))
        return read(builder, Path(folder))


@cache
def truth() -> Seen:
    return computed(market())


def anchor_rows(t: int) -> np.ndarray:
    """Rows of the snapshot t that are anchors' quotes."""
    now = market()[t]
    rows = np.zeros(len(now), dtype=bool)
    anchors = find_anchors(now, last_seen(build_surface(market()[t - 1])), TARGETS)
    assert len(anchors) == len(TARGETS)
    for anchor in anchors:
        rows |= (now.root == anchor.key.root) & (now.expiry == anchor.key.expiry) & (now.strike == anchor.strike)
    assert rows.sum() == 2 * len(TARGETS)
    return rows


def other_quotes(quotes: Quotes, keep: np.ndarray, rng: np.random.Generator) -> Quotes:
    """Another market's quotes at the same time, all but `keep`: moved, noisy, thinned; one expiry stays coherent.

    The coherent one has its own forward, so the snapshot still counts, with other labels.
    """
    day = int((quotes.ts - TS) / np.timedelta64(1, "D"))
    other = at_time(day, quotes.spot * float(np.exp(rng.normal(0, 0.02))), float(rng.uniform(0.12, 0.4)))
    assert np.array_equal(other.strike, quotes.strike)
    calm_root, calm_expiry = LISTED[rng.integers(len(LISTED))]
    calm = (quotes.root == calm_root) & (quotes.expiry == calm_expiry)
    noise = np.where(calm, 1.0, np.exp(rng.normal(0, rng.choice([0.0, 0.02, 0.5]), len(quotes))))
    gone = ~calm & (rng.random(len(quotes)) < rng.uniform(0, 0.7))
    for root, expiry in LISTED:
        if rng.random() < 0.25:
            gone |= ~calm & (quotes.root == root) & (quotes.expiry == expiry)
    changed = dataclasses.replace(
        quotes, bid=np.where(keep, quotes.bid, other.bid * noise), ask=np.where(keep, quotes.ask, other.ask * noise)
    )
    return changed.take(rng.permutation(np.flatnonzero(keep | ~gone)))


def other_world(t: int, rng: np.random.Generator) -> list[Quotes]:
    """The market up to t, with other quotes at t but the anchors', and another future or none."""
    world = [*market()[:t], other_quotes(market()[t], anchor_rows(t), rng)]
    for day in range(t + 1, DAYS):
        if rng.random() < 0.7:
            spot, level = float(rng.uniform(40.0, 250.0)), float(rng.uniform(0.1, 0.8))
            fresh = at_time(day, spot, level)
            world.append(other_quotes(fresh, np.zeros(len(fresh), dtype=bool), rng))
    return world


@settings(deadline=None, max_examples=50)
@given(t=st.integers(FIRST_TEST, DAYS - 1), seed=st.integers(0, 2**32 - 1))
def test_nothing_of_t_but_underlying_and_anchors_and_nothing_later_is_seen(t: int, seed: int) -> None:
    real, other = truth(), computed(other_world(t, np.random.default_rng(seed)))
    ts = market()[t].ts
    assume(ts in other.times)  # so thin that it's passed over says nothing
    assert other.spec == real.spec  # the scalers are the training dates'
    for day in range(t + 1):
        assert other.step(market()[day].ts) == real.step(market()[day].ts)
    for day in range(1, t):
        assert other.contracts_at(market()[day].ts) == real.contracts_at(market()[day].ts)
    wanted, found = real.contracts_at(ts), other.contracts_at(ts)
    both = wanted.keys() & found.keys()
    assert both
    for row in both:
        assert found[row] == wanted[row], row


@pytest.mark.parametrize("t", [FIRST_TEST, DAYS - 2])
def test_the_other_worlds_are_other_worlds(t: int) -> None:
    """The labels of t differ almost everywhere, contracts come and go, and most stay comparable somewhere."""
    ts, rng = market()[t].ts, np.random.default_rng(t)
    before = truth().rows.filter(pl.col("ts") == ts).select("root", "expiry", "strike", "iv_market", "forward")
    compared = 0
    for _ in range(5):
        other = computed(other_world(t, rng)).rows.filter(pl.col("ts") == ts)
        joined = before.join(other, on=["root", "expiry", "strike"])
        assert other.height != before.height
        assert (joined["iv_market"] - joined["iv_market_right"]).abs().median() > 0.005
        assert (joined["forward"] != joined["forward_right"]).all()
        compared += joined.height
    assert compared > 2 * before.height


def changed_at(t: int, change: Any) -> Seen:
    world = list(market())
    world[t] = change(world[t])
    return computed(world)


def scaled(rows: np.ndarray, factor: float) -> Any:
    def change(quotes: Quotes) -> Quotes:
        scale = np.where(rows, factor, 1.0)
        return dataclasses.replace(quotes, bid=quotes.bid * scale, ask=quotes.ask * scale)

    return change


@pytest.mark.parametrize("t", [FIRST_TEST, DAYS - 1])
def test_the_underlying_of_t_matters(t: int) -> None:
    ts = market()[t].ts
    other = changed_at(t, lambda quotes: dataclasses.replace(quotes, spot=quotes.spot * 1.0005))
    assert other.step(ts) != truth().step(ts)
    wanted, found = truth().contracts_at(ts), other.contracts_at(ts)
    both = wanted.keys() & found.keys()
    assert both
    assert all(wanted[row][0] != found[row][0] for row in both)


@settings(deadline=None, max_examples=8)
@given(t=st.integers(FIRST_TEST, DAYS - 1), which=st.integers(0, 5))
def test_each_anchor_quote_of_t_matters(t: int, which: int) -> None:
    ts = market()[t].ts
    one = np.arange(len(market()[t])) == np.flatnonzero(anchor_rows(t))[which]
    other = changed_at(t, scaled(one, 1.01))
    assert other.step(ts) != truth().step(ts)
    wanted, found = truth().contracts_at(ts), other.contracts_at(ts)
    both = wanted.keys() & found.keys()
    assert any(wanted[row][0] != found[row][0] for row in both)
    assert other.spec == truth().spec


LAST_SEEN = (
    "sqrt_tau", "moneyness", "moneyness_squared", "last_volatility", "slope", "return", "return_moneyness",
    "return_moneyness_squared", "return_slope", "business_share", "elapsed_share",
)  # fmt: skip
OF_THE_ANCHORS = (
    "prior_volatility", "shift", "shift_sqrt_tau", "moneyness_law", "scaled_law", "deviation", "deviation_slope",
)  # fmt: skip


@pytest.mark.parametrize("t", [FIRST_TEST, DAYS - 1])
def test_the_anchors_pairs_put_one_forward_right_and_leave_the_other(t: int) -> None:
    """Dearer calls of the anchors: laws and `forward_model` follow, what was last seen and `forward_carried` stay."""
    assert {*LAST_SEEN, *OF_THE_ANCHORS, "anchored"} == set(CONTRACT_FEATURES)
    ts, calls = market()[t].ts, anchor_rows(t) & (market()[t].right > 0)
    worlds = (truth(), changed_at(t, scaled(calls, 1.02)))
    rows = [seen.rows.filter(pl.col("ts") == ts) for seen in worlds]
    features_of = [seen.raw_contracts[seen.rows["ts"].to_numpy() == ts] for seen in worlds]
    assert rows[0].select("root", "expiry", "strike").equals(rows[1].select("root", "expiry", "strike"))
    assert rows[0]["forward_carried"].equals(rows[1]["forward_carried"])
    ratio = (rows[1]["forward_model"] / rows[0]["forward_model"]).to_numpy()
    assert ratio[0] > 1.0 + 1e-5
    np.testing.assert_allclose(ratio, ratio[0], rtol=1e-12)  # one number for all expiries
    for name in LAST_SEEN:
        place = CONTRACT_FEATURES.index(name)
        np.testing.assert_allclose(features_of[0][:, place], features_of[1][:, place], rtol=1e-13, err_msg=name)
    for name in OF_THE_ANCHORS:
        place = CONTRACT_FEATURES.index(name)
        assert (features_of[0][:, place] != features_of[1][:, place]).mean() > 0.9, name


@settings(deadline=None, max_examples=12)
@given(t=st.integers(FIRST_TEST + 1, DAYS - 1), which=st.integers(0, 10**6))
def test_every_scored_quote_of_the_snapshot_before_matters(t: int, which: int) -> None:
    """Any quote a last smile was made of, anchor or not, shows in the features of t."""
    before, ts = market()[t - 1], market()[t].ts
    surface = build_surface(before)
    used = [
        (key, strike, right)
        for key, smile in surface.smiles.items()
        for strike, right in np.stack([smile.strike, smile.right], axis=1)[scored_range(smile, surface.spot)]
    ]
    key, strike, right = used[which % len(used)]
    one = (before.root == key.root) & (before.expiry == key.expiry) & (before.strike == strike)
    one &= before.right == right
    assert one.sum() == 1
    other = changed_at(t - 1, scaled(one, 1.02))
    assert {row: seen[0] for row, seen in other.contracts_at(ts).items()} != {
        row: seen[0] for row, seen in truth().contracts_at(ts).items()
    }
    assert other.spec == truth().spec


def test_the_underlying_of_the_snapshot_before_matters() -> None:
    t = FIRST_TEST + 1
    ts = market()[t].ts
    other = changed_at(t - 1, lambda quotes: dataclasses.replace(quotes, spot=quotes.spot * 1.0005))
    assert other.step(ts) != truth().step(ts)
    wanted, found = truth().contracts_at(ts), other.contracts_at(ts)
    assert all(wanted[row][0] != found[row][0] for row in wanted.keys() & found.keys())


@pytest.mark.parametrize("day", [3, FIRST_TEST - 3])
def test_scalers_are_made_of_training_dates(day: int) -> None:
    """Validation and embargo dates don't enter, training dates do."""
    splits = truth().rows.filter(pl.col("ts") == market()[day].ts)["split"].unique().to_list()
    other = changed_at(day, lambda quotes: dataclasses.replace(quotes, spot=quotes.spot * 1.01))
    assert splits == ["train" if day == 3 else "embargo"]
    assert (other.spec == truth().spec) == (day != 3)


def test_the_venues_forward_of_t_is_not_seen() -> None:
    """It makes the labels of t; features use only forwards carried from the snapshot before."""

    def with_forwards(quotes: Quotes, factor: float) -> Quotes:
        tau = (quotes.expiry - quotes.ts) / np.timedelta64(365, "D")
        return dataclasses.replace(quotes, venue_forward=quotes.spot * factor * np.exp(0.02 * tau))

    world = [with_forwards(quotes, 1.0) for quotes in market()]
    other = [*world[:FIRST_TEST], with_forwards(market()[FIRST_TEST], 1.002), *world[FIRST_TEST + 1 :]]
    first, second = computed(world), computed(other)
    ts, after = (market()[day].ts for day in (FIRST_TEST, FIRST_TEST + 1))
    assert first.step(ts) == second.step(ts)
    wanted, found = first.contracts_at(ts), second.contracts_at(ts)
    both = wanted.keys() & found.keys()
    assert both
    assert all(wanted[row] == found[row] for row in both)
    assert first.contracts_at(after) != second.contracts_at(after)
    labels = [seen.rows.filter(pl.col("ts") == ts)["forward"].mean() for seen in (first, second)]
    assert labels[0] != labels[1]


def write_quotes(path: Path, world: Sequence[Quotes]) -> None:
    frames = [
        pl.DataFrame({
            "ts": np.full(len(quotes), quotes.ts), "underlying": ["SPX"] * len(quotes), "root": quotes.root.tolist(),
            "expiry": quotes.expiry, "strike": quotes.strike, "right": np.where(quotes.right > 0, "C", "P").tolist(),
            "bid": quotes.bid, "ask": quotes.ask, "underlying_price": np.full(len(quotes), quotes.spot),
            "price_unit": ["money"] * len(quotes), "style": ["european"] * len(quotes),
            "forward": np.full(len(quotes), np.nan),
        })
        for quotes in world
    ]  # fmt: skip
    path.parent.mkdir(parents=True)
    pl.concat(frames).write_parquet(path, row_group_size=len(world[0]))


def test_through_files_the_stage_computes_the_same(tmp_path: Path) -> None:
    """`pipelines.features.run` on a quotes.parquet equals the builder on the same worlds, real and other."""
    for name, world in (("real", list(market())), ("other", other_world(FIRST_TEST, np.random.default_rng(2)))):
        write_quotes(tmp_path / name / "ingest" / "quotes.parquet", world)
        result = features.run(config(tmp_path / name))
        expected = computed(world)
        assert np.array_equal(np.load(result.folder / "steps.npy"), expected.steps)
        assert np.array_equal(np.load(result.folder / "contracts.npy"), expected.contracts)
        assert pl.read_parquet(result.folder / "rows.parquet").equals(expected.rows)
        assert json.loads((result.folder / "spec.json").read_text()) == expected.spec
        assert expected.steps.shape[1] == len(STEP_FEATURES)
        assert expected.contracts.shape[1] == len(CONTRACT_FEATURES)
        assert np.isfinite(expected.steps).all()
        assert np.isfinite(expected.contracts).all()
