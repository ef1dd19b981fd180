"""The host's recipe: against a slow recomputation, its accounting of contracts, and what it may look at.

`small_market` is a chain with a known smile that moves from snapshot to snapshot.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from serving import black76
from serving.american import exercise_premium
from serving.engine import Engine, open_engine
from serving.errors import BundleError, DataError
from serving.features import Contracts, contract_table, market_step
from serving.features import Path as UnderlyingPath
from serving.last_seen import find_anchors, last_seen
from serving.pricing import (
    EXPIRED,
    EXPIRY_NOT_SEEN,
    FAR_FORWARD,
    MODEL_REFUSED,
    OK,
    OUTSIDE_TRAINING_RANGE,
    PricedChain,
    feature_spec,
    price_chain,
)
from serving.surface import Quotes, build_surface, tau_years
from serving.tables import Market
from tests.small_nets import SPEC, T, reference_context, reference_head, small_bundle, weights_of

START = np.datetime64("2018-03-01T20:45", "ns")
DAY = np.timedelta64(1, "D")
EXPIRY_DAYS = (3, 22, 44, 100, 400)  # after the first snapshot; the first and the last lie outside the scored range
RATE, YIELD = 0.05, 0.01


def volatility_of(strike: np.ndarray, spot: float, tau: float, level: float) -> np.ndarray:
    x = np.log(strike / spot) / np.sqrt(tau)
    return level - 0.15 * x + 0.1 * x**2


def snapshot(index: int, spot: float, level: float, strikes: np.ndarray | None = None) -> Quotes:
    """All listed contracts quoted at Black-76 prices, spread 1 %."""
    strikes = np.arange(80.0, 121.0, 2.5) if strikes is None else strikes
    ts = START + index * DAY
    parts: list[tuple[np.ndarray, ...]] = []
    for days in EXPIRY_DAYS:
        expiry = (START + days * DAY).astype("datetime64[D]").astype("datetime64[ns]") + np.timedelta64(20, "h")
        tau = tau_years(ts, expiry)
        if tau <= 0:
            continue
        for right in (1.0, -1.0):
            volatility = volatility_of(strikes, spot, tau, level)
            forward, discount = spot * np.exp((RATE - YIELD) * tau), np.exp(-RATE * tau)
            middle = black76.price(forward, strikes, tau, volatility, discount, right)
            one = np.ones_like(strikes)
            parts.append((np.full(len(one), "SPX"), np.full(len(one), expiry), strikes, right * one, middle * 0.995,
                          middle * 1.005))  # fmt: skip
    return Quotes(ts, spot, *(np.concatenate(column) for column in zip(*parts, strict=True)))


def small_market(
    snapshots: int = 8, *, anchors: bool = True, seed: int = 3, strikes: np.ndarray | None = None
) -> Market:
    """Snapshots on consecutive days, then now; `now` quotes the whole chain or nothing."""
    rng = np.random.default_rng(seed)
    spots = 100.0 * np.exp(np.cumsum(rng.normal(0, 0.01, 80 + snapshots + 1)))
    levels = 0.2 + np.cumsum(rng.normal(0, 0.004, snapshots + 1))
    path_ts = START + DAY * np.arange(-80, snapshots)
    chain = [snapshot(k, float(spots[80 + k]), float(levels[k]), strikes) for k in range(snapshots)]
    now = snapshot(snapshots, float(spots[-1]), float(levels[-1]), strikes)
    if not anchors:
        now = now.take(np.zeros(len(now), dtype=bool))
    return Market("SPX", chain, UnderlyingPath(path_ts, spots[:-1]), now)


def priced_by(engine: Engine, market: Market) -> PricedChain:
    return price_chain(engine, SPEC, market.chain, market.path, market.now)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    return open_engine(small_bundle(tmp_path_factory.mktemp("pricing") / "bundle", members=2))


def slow_volatilities(market: Market, semantics: str) -> np.ndarray:
    """The same answer from all snapshots, with the nets in NumPy."""
    path = UnderlyingPath(np.r_[market.path.ts, [market.now.ts]], np.r_[market.path.price, [market.now.spot]])
    steps, last = [], None
    for quotes in [*market.chain, market.now]:
        anchors = find_anchors(quotes, last, SPEC.anchors) if last is not None else []
        steps.append(SPEC.step_scaler(market_step(path.until(quotes.ts), last, anchors)))
        if quotes is not market.now:
            last = last_seen(build_surface(quotes))
    assert last is not None
    sequence = np.array(steps)
    if semantics == "window":
        sequence = np.concatenate([np.zeros((T, sequence.shape[1])), sequence])[-T:]
    final = market.chain[-1]
    contracts = Contracts(final.root, final.expiry, final.strike, final.right)
    table = contract_table(contracts, market.now.ts, market.now.spot, last, anchors)
    rows = SPEC.contract_scaler(table.features)
    weights = [weights_of(index) for index in range(2)]
    heads = [reference_head(one, reference_context(one, sequence, T), rows) for one in weights]
    out = np.full(len(final), np.nan)
    out[table.rows] = np.mean(heads, axis=0)
    return out


@pytest.mark.parametrize(
    ("semantics", "snapshots"),
    [
        *[("window", count) for count in (1, 2, T - 1, T, T + 1, 12)],
        *[("stateful", count) for count in (T - 1, T, T + 1, 12)],  # with fewer, the attention sees unwritten memory
    ],
)
@pytest.mark.parametrize("anchors", [True, False])
def test_equals_the_slow_recomputation(tmp_path: Path, semantics: str, snapshots: int, anchors: bool) -> None:
    market = small_market(snapshots, anchors=anchors)
    engine = open_engine(small_bundle(tmp_path / "bundle", semantics=semantics, members=2))
    priced = priced_by(engine, market)
    expected = slow_volatilities(market, semantics)
    assert len(priced) == len(expected)
    assert np.array_equal(np.isnan(priced.volatility), np.isnan(expected))
    assert np.nanmax(np.abs(priced.volatility - expected)) < 3e-6
    assert len(priced.anchors) == (3 if anchors else 0)


def american(market: Market) -> Market:
    """The same contracts American, their quotes raised by the premium of their volatility."""

    def change(quotes: Quotes) -> Quotes:
        tau = np.array([tau_years(quotes.ts, expiry) for expiry in quotes.expiry])
        forward, discount = quotes.spot * np.exp((RATE - YIELD) * tau), np.exp(-RATE * tau)
        volatility, _ = black76.implied_volatility(quotes.mid, forward, quotes.strike, tau, discount, quotes.right)
        premium = exercise_premium(quotes.spot, forward, quotes.strike, tau, volatility, RATE, quotes.right)
        premium = np.nan_to_num(premium)
        return dataclasses.replace(quotes, bid=quotes.bid + premium, ask=quotes.ask + premium,
                                   american=np.ones(len(quotes), dtype=bool))  # fmt: skip

    return dataclasses.replace(market, chain=[change(one) for one in market.chain], now=change(market.now))


def test_american_contracts_are_worth_their_european_part_and_the_premium(engine: Engine) -> None:
    """Quotes that differ by the premium alone give nearly the same volatilities; prices differ by the premium."""
    market = small_market(8)
    european, found = priced_by(engine, market), priced_by(engine, american(market))
    rows = european.status == OK
    assert np.array_equal(found.status == OK, rows)
    assert np.abs(found.volatility - european.volatility)[rows].max() < 3e-3
    assert (european.early_exercise[rows] == 0.0).all()
    assert (found.early_exercise[rows] >= 0.0).all()
    own = black76.price(found.forward, found.strike, found.tau, found.volatility, found.discount, found.right)
    premium = found.price - own
    exercised = np.maximum(found.right * (found.spot - found.strike), 0.0)
    assert (found.price[rows] >= exercised[rows]).all()
    assert np.abs(premium - found.early_exercise)[rows & (found.price > exercised + 1e-9)].max() < 1e-9
    in_money_puts = rows & (found.right < 0) & (found.strike > found.spot)
    assert found.early_exercise[in_money_puts].mean() > 0.1
    assert found.price[rows] == pytest.approx((european.price + found.early_exercise)[rows], abs=0.1)
    assert any("American" in note for note in found.notes)
    assert not any("American" in note for note in european.notes)


@pytest.mark.parametrize("error", [-0.006, 0.004])
def test_prices_stand_on_the_forward_of_the_anchors_pairs(engine: Engine, error: float) -> None:
    """The underlying is printed off: pairs put every forward right, one-sided anchors leave it carried."""
    market = small_market(8)
    printed = dataclasses.replace(market.now, spot=market.now.spot * float(np.exp(error)))
    found = priced_by(engine, dataclasses.replace(market, now=printed))
    true = market.now.spot * np.exp((RATE - YIELD) * found.tau)
    assert found.forward == pytest.approx(true, rel=2e-4)  # a day's carry is the rest
    assert any("off the carried one" in note for note in found.notes) == (abs(error) > FAR_FORWARD)
    calls = printed.take(printed.right > 0)
    alone = priced_by(engine, dataclasses.replace(market, now=calls))
    assert alone.forward == pytest.approx(true[: len(alone)] * np.exp(error), rel=2e-4)
    deep = (found.status == OK) & (found.strike < 0.9 * market.now.spot) & (found.right > 0)
    assert deep.any()
    error_of_price = found.price - found.discount * (true - found.strike)
    assert (error_of_price[deep] > -3e-4 * market.now.spot).all(), "a call is worth its forward's intrinsic value"


def test_a_chain_across_a_split_is_refused(engine: Engine) -> None:
    market = small_market(8)
    halved = [
        dataclasses.replace(quotes, spot=quotes.spot / 7, strike=quotes.strike / 7, bid=quotes.bid / 7,
                            ask=quotes.ask / 7)
        for quotes in market.chain[:4]
    ]  # fmt: skip
    chain = [*halved, *market.chain[4:]]
    with pytest.raises(DataError, match=r"split between 2018-03-04T.* and 2018-03-05T.*begin after that"):
        price_chain(engine, SPEC, chain, market.path, market.now)


def test_every_contract_appears_once_with_a_status(engine: Engine) -> None:
    market = small_market(8)
    last, now = market.chain[-1], market.now
    seen, rows = np.unique(last.expiry), np.arange(len(now))
    fresh = dataclasses.replace(now.take(rows[:2]), strike=np.array([61.5, 61.5]), right=np.array([1.0, -1.0]))
    unseen = dataclasses.replace(
        now.take(rows[:1]), expiry=np.array(["2018-07-20T20:00"], "datetime64[ns]"), strike=np.array([100.0])
    )
    over = dataclasses.replace(last.take(np.array([0])), expiry=np.array(["2018-03-07T20:00"], "datetime64[ns]"))
    today = dataclasses.replace(over, expiry=np.array([now.ts.astype("datetime64[D]")], last.expiry.dtype))
    market.chain[-1] = joined(last, over, today, last.take(np.array([4, 5])))  # two rows twice
    market = dataclasses.replace(market, now=joined(now, fresh, unseen))
    priced = priced_by(engine, market)
    columns = (priced.root, priced.expiry, priced.strike, priced.right)
    keys = list(zip(*(column.tolist() for column in columns), strict=True))
    assert len(set(keys)) == len(keys) == len(last) + 5
    status = dict(zip(keys, priced.status.tolist(), strict=True))
    for quotes, expected in ((over, EXPIRED), (today, EXPIRED), (unseen, EXPIRY_NOT_SEEN)):
        assert status[(str(quotes.root[0]), quotes.expiry.tolist()[0], quotes.strike[0], quotes.right[0])] == expected
    assert np.array_equal(priced.strike[: len(last)], last.strike)  # order of first appearance
    far = priced.expiry == seen[-1]
    assert set(priced.status[far]) == {OUTSIDE_TRAINING_RANGE}
    assert np.isfinite(priced.price[far]).all()
    assert sum(priced.counts().values()) == len(priced)
    unpriced = ~np.isin(priced.status, [OK, OUTSIDE_TRAINING_RANGE])
    for values in (priced.volatility, priced.price, priced.delta, priced.gamma, priced.vega, priced.theta):
        assert np.array_equal(np.isnan(values), unpriced)
    assert np.isfinite(priced.tau).all()


def joined(*parts: Quotes) -> Quotes:
    names = ("root", "expiry", "strike", "right", "bid", "ask")
    columns = [np.concatenate([getattr(one, name) for one in parts]) for name in names]
    return Quotes(parts[0].ts, parts[0].spot, *columns)


def test_prices_and_greeks_are_those_of_the_volatilities(engine: Engine) -> None:
    """Delta and gamma against finite differences in the spot, at constant carry and volatility."""
    priced = priced_by(engine, small_market(8))
    done = priced.status == OK
    assert done.sum() > 50
    leverage = priced.forward / priced.spot

    def worth(spot: float) -> np.ndarray:
        forward = leverage * spot
        return black76.price(forward, priced.strike, priced.tau, priced.volatility, priced.discount, priced.right)

    h = 1e-4 * priced.spot
    up, middle, down = worth(priced.spot + h), worth(priced.spot), worth(priced.spot - h)
    assert np.allclose(priced.price[done], middle[done], rtol=1e-12)
    assert np.allclose(priced.delta[done], ((up - down) / (2 * h))[done], atol=2e-5)
    assert np.allclose(priced.gamma[done], ((up - 2 * middle + down) / h**2)[done], rtol=1e-3, atol=1e-5)
    floor = priced.discount * np.maximum(priced.right * (priced.forward - priced.strike), 0)
    assert (priced.price[done] >= floor[done] - 1e-9).all()


def test_put_call_parity_holds(engine: Engine) -> None:
    priced = priced_by(engine, small_market(8))
    for expiry in np.unique(priced.expiry[priced.status == OK]):
        rows = (priced.expiry == expiry) & (priced.status == OK)
        calls, puts = rows & (priced.right > 0), rows & (priced.right < 0)
        assert np.array_equal(priced.strike[calls], priced.strike[puts])
        gap = priced.discount[calls] * (priced.forward[calls] - priced.strike[calls])
        # the head sees `right`, so volatilities of call and put may differ; parity holds up to vega times that
        slack = priced.vega[calls] * np.abs(priced.volatility[calls] - priced.volatility[puts]) * 1.5 + 1e-9
        assert (np.abs(priced.price[calls] - priced.price[puts] - gap) <= slack).all()


def test_nothing_but_spot_and_anchors_of_now_is_read(engine: Engine) -> None:
    market = small_market(8)
    priced = priced_by(engine, market)
    keep = np.zeros(len(market.now), dtype=bool)
    for anchor in priced.anchors:
        keep |= (market.now.expiry == anchor.key.expiry) & (market.now.strike == anchor.strike)
    assert keep.sum() == 6
    alone = priced_by(engine, dataclasses.replace(market, now=market.now.take(keep)))
    rng = np.random.default_rng(0)
    noise = np.where(keep, 1.0, rng.uniform(0.5, 2.0, len(keep)))
    noisy = dataclasses.replace(market.now, bid=market.now.bid * noise, ask=market.now.ask * noise)
    changed = priced_by(engine, dataclasses.replace(market, now=noisy))
    for other in (alone, changed):
        assert np.array_equal(priced.volatility, other.volatility, equal_nan=True)
        assert np.array_equal(priced.price, other.price, equal_nan=True)


def test_surfaces_before_the_window_dont_matter(engine: Engine) -> None:
    market = small_market(12)
    whole = priced_by(engine, market)
    recent = priced_by(engine, dataclasses.replace(market, chain=market.chain[-T:]))
    assert np.array_equal(whole.price, recent.price, equal_nan=True)


def test_path_lacking_the_snapshots_is_completed(engine: Engine) -> None:
    market = small_market(8)
    cut = market.path.until(START - DAY)
    assert np.array_equal(
        priced_by(engine, market).price, priced_by(engine, dataclasses.replace(market, path=cut)).price, equal_nan=True
    )


def test_prices_after_now_are_not_used_and_noted(engine: Engine) -> None:
    market = small_market(8)
    later = UnderlyingPath(np.r_[market.path.ts, [market.now.ts + DAY]], np.r_[market.path.price, [1.0]])
    priced = priced_by(engine, dataclasses.replace(market, path=later))
    assert np.array_equal(priced.price, priced_by(engine, market).price, equal_nan=True)
    assert "1 prices of the path lie after now and weren't used" in priced.notes


def test_short_history_and_missing_anchors_are_noted(engine: Engine) -> None:
    market = small_market(2, anchors=False)
    notes = " ".join(priced_by(engine, dataclasses.replace(market, path=market.path.until(START - 70 * DAY))).notes)
    assert "14 prices; the longest feature looks back over 64" in notes
    assert "2 snapshots for a window of 5 steps" in notes
    assert "0 of 3 anchors" in notes


def test_a_model_without_sense_is_refused_per_contract(tmp_path: Path) -> None:
    """The null engine answers volatility 0, which is no volatility."""
    market = small_market(8)
    priced = priced_by(open_engine(small_bundle(tmp_path / "bundle"), "null"), market)
    assert priced.counts()[MODEL_REFUSED] == len(priced)
    assert np.isnan(priced.price).all()


def test_times_out_of_order_and_no_snapshot_are_refused(engine: Engine) -> None:
    market = small_market(4)
    with pytest.raises(DataError, match="ascend in time"):
        priced_by(engine, dataclasses.replace(market, chain=market.chain[::-1]))
    with pytest.raises(DataError, match="ascend in time"):
        priced_by(engine, dataclasses.replace(market, now=market.chain[-1]))
    with pytest.raises(DataError, match="no snapshot"):
        priced_by(engine, dataclasses.replace(market, chain=[]))


def test_spec_that_doesnt_fit_is_refused(tmp_path: Path, engine: Engine) -> None:
    other = dataclasses.replace(SPEC, window=T + 1)
    market = small_market(3)
    with pytest.raises(BundleError, match=r"\(6, .* its nets take \(5"):
        price_chain(engine, other, market.chain, market.path, market.now)
    short = dataclasses.replace(SPEC, step_scaler=dataclasses.replace(SPEC.step_scaler, mean=(0.0,)))
    with pytest.raises(BundleError, match="step_scaler has 1 means"):
        feature_spec(small_bundle(tmp_path / "short", spec=short))
    odd = dataclasses.replace(SPEC, step_features=SPEC.step_features[:-1])
    with pytest.raises(BundleError, match="forward_deviation"):
        feature_spec(small_bundle(tmp_path / "odd", spec=odd))
    assert feature_spec(small_bundle(tmp_path / "good")) == SPEC
