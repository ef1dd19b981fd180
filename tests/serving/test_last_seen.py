"""What is known before t: the scored range at its edges, which contracts are anchors, and what their quotes say."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving import black76
from serving.last_seen import (
    SMALLEST_PRICE,
    Anchor,
    AnchorTarget,
    LastSeen,
    find_anchors,
    fit_shape,
    forward_deviation,
    last_seen,
    scored_range,
    shift_at,
)
from serving.normal import Array
from serving.surface import ExpiryKey, ForwardOrigin, Quotes, Smile, build_surface
from tests.serving.test_surface import EXPIRIES, SPOT, STRIKES, TS, chain, expiry_of, key_of, skewed

DAY = np.timedelta64(1, "D")
LISTED = [(root, expiry_of(root, days)) for root, days in EXPIRIES]
TARGETS = (AnchorTarget(14), AnchorTarget(45), AnchorTarget(120))


def before() -> LastSeen:
    return last_seen(build_surface(chain()))


def now(spot: float = SPOT, rise: float = 0.01, strikes: Array = STRIKES) -> Quotes:
    """The next day: volatilities `rise` above those of the same strikes the day before."""
    return chain(ts=TS + DAY, spot=spot, expiries=LISTED, strikes=strikes,
                 volatility=lambda strike, tau: skewed(strike, tau + 1 / 365) + rise)  # fmt: skip


def smile_with(*, tau: float = 0.2, moneyness: float = 0.0, mid: float = 1.0, volatility: float = 0.2) -> Smile:
    strike = np.array([100.0 * np.exp(moneyness * np.sqrt(tau))])
    one = np.ones(1)
    return Smile(
        key_of("SPX", 50), tau, 100.0, 0.99, ForwardOrigin.PARITY, strike, one, mid * one, mid * one, volatility * one,
        np.zeros(1, np.int8),
    )  # fmt: skip


def anchor(tau: float, move: float, root: str = "SPX", deviation: float = np.nan) -> Anchor:
    """An anchor whose sqrt(tau) (IV_t - IV_prev) is `move`."""
    return Anchor(
        ExpiryKey(root, expiry_of("SPX", 50)), 100.0, tau, 0.0, 0.2 + move / np.sqrt(tau), 0.2, deviation
    )  # fmt: skip


# --- the scored range


@pytest.mark.parametrize(
    ("change", "inside"),
    [
        ({}, True),
        ({"tau": 5.0 / 365.0}, False), ({"tau": 6.0 / 365.0}, True), ({"tau": 1.0}, False), ({"tau": 364 / 365}, True),
        ({"moneyness": 0.601}, False), ({"moneyness": 0.599}, True), ({"moneyness": -0.601}, False),
        ({"mid": SMALLEST_PRICE * SPOT}, False), ({"mid": np.nextafter(SMALLEST_PRICE * SPOT, 1.0)}, True),
        ({"volatility": 1.0}, False), ({"volatility": np.nextafter(1.0, 0.0)}, True),
    ],
)  # fmt: skip
def test_scored_range_excludes_its_ends(change: dict[str, float], inside: bool) -> None:
    assert scored_range(smile_with(**change), SPOT).tolist() == [inside]


def test_the_last_smile_is_the_scored_part_of_the_surface() -> None:
    surface = build_surface(chain())
    seen = last_seen(surface)
    assert seen.usable
    assert seen.smiles.keys() == surface.smiles.keys()
    cut = 0
    for key, smile in surface.smiles.items():
        kept = [
            place for place, strike in enumerate(smile.strike)
            if abs(np.log(strike / smile.forward) / np.sqrt(smile.tau)) < 0.6 and smile.volatility[place] < 1
            and 0.5 * (smile.bid[place] + smile.ask[place]) > 7e-5 * SPOT
        ]  # fmt: skip
        cut += smile.strike.size - len(kept)
        assert np.array_equal(seen.smiles[key].strike, smile.strike[kept])
        assert np.array_equal(seen.smiles[key].volatility, smile.volatility[kept])
    assert cut > 0


def test_an_expiry_outside_the_range_is_kept_whole_and_marked() -> None:
    far = chain(expiries=[("SPX", expiry_of("SPX", 400)), ("SPX", expiry_of("SPX", 3))])
    seen = last_seen(build_surface(far))
    assert len(seen.smiles) == 2
    assert not seen.usable
    assert not any(smile.in_range for smile in seen.smiles.values())
    assert seen.smiles[key_of("SPX", 400)].strike.size == STRIKES.size
    assert find_anchors(now(), seen, TARGETS) == []


def test_sticky_strike_is_linear_and_flat_outside() -> None:
    smile = before().smiles[key_of("SPX", 50)]
    middle = 0.5 * (smile.strike[3] + smile.strike[4])
    wanted = [smile.volatility[0], 0.5 * (smile.volatility[3] + smile.volatility[4]), smile.volatility[-1]]
    assert smile.at(np.array([1.0, middle, 1e4])) == pytest.approx(wanted, rel=1e-14)
    assert np.array_equal(smile.at(smile.strike), smile.volatility)


def test_forwards_are_carried_with_the_underlying() -> None:
    seen = before()
    for key, smile in seen.smiles.items():
        assert seen.carried_forward(key, 1.02 * SPOT) == pytest.approx(1.02 * smile.forward, rel=1e-15)


def test_shape_is_the_parabola_or_a_level_alone() -> None:
    x = np.linspace(-0.5, 0.4, 9)
    assert fit_shape(x, 0.2 - 0.1 * x + 0.3 * x**2) == pytest.approx([0.2, -0.1, 0.3], rel=1e-10)
    noisy = 0.2 - 0.1 * x + np.random.default_rng(0).normal(0, 0.01, 9)
    assert fit_shape(x, noisy) == pytest.approx(np.polynomial.polynomial.polyfit(x, noisy, 2), rel=1e-9)
    assert fit_shape(x[:4], noisy[:4]).tolist() == [float(np.median(noisy[:4])), 0.0, 0.0]
    assert fit_shape(x * 0.05, noisy).tolist() == [float(np.median(noisy)), 0.0, 0.0]  # no width to speak of


# --- the smoothed smile


def test_the_smoothed_smile_is_near_the_truth_and_loses_the_noise() -> None:
    """Noise of half a vol point: less than half of it is left; the smile as quoted keeps it all."""
    rng = np.random.default_rng(0)
    strikes = np.arange(80.0, 121.0, 0.25)
    noisy = chain(strikes=strikes, volatility=lambda k, tau: skewed(k, tau) + rng.normal(0.0, 0.005, k.size))
    for key, smile in last_seen(build_surface(noisy)).smiles.items():
        truth = skewed(smile.strike, smile.tau)
        raw, smooth = (np.sqrt(np.mean((f(smile.strike) - truth) ** 2)) for f in (smile.at, smile.smooth_at))
        assert raw == pytest.approx(0.005, rel=0.35), key
        assert smooth < 0.5 * raw, key
        x = np.log(smile.strike / smile.forward) / np.sqrt(smile.tau)
        assert smile.smooth_at_moneyness(x) == pytest.approx(smile.smooth_at(smile.strike), abs=1e-12)


def test_an_extension_stays_above_half_of_the_lowest_quote() -> None:
    """A smile that falls steeply into its last quote."""
    falling = chain(volatility=lambda strike, tau: np.clip(0.5 - 1.2 * np.log(strike / SPOT) / np.sqrt(tau), 0.06, 0.9))
    extended = 0
    for smile in last_seen(build_surface(falling)).smiles.values():
        far = smile.smooth_at(np.array([1.0, 1e4]))
        assert (far >= 0.5 * smile.volatility.min()).all()
        extended += int(far[1] < smile.volatility[-1])
    assert extended


def test_smiles_that_are_out_of_range_or_sparse_are_not_smoothed() -> None:
    far = last_seen(build_surface(chain(expiries=[("SPX", expiry_of("SPX", 400)), ("SPX", expiry_of("SPX", 50))])))
    assert far.smiles[key_of("SPX", 400)].smooth is None
    assert far.smiles[key_of("SPX", 50)].smooth is not None
    few = last_seen(build_surface(chain(strikes=np.array([95.0, 98.0, 100.0, 102.0, 105.0]))))
    for smile in [*few.smiles.values(), far.smiles[key_of("SPX", 400)]]:
        strikes = np.linspace(60.0, 150.0, 50)
        assert smile.smooth is None
        assert smile.smooth_at(strikes) == pytest.approx(smile.at(strikes), abs=1e-12)


def test_an_expiry_whose_total_variance_is_too_low_is_lifted() -> None:
    """An expiry so low that the shorter one's total variance is higher; its quotes stay as they are."""

    def low(strike: Array, tau: float) -> Array:
        return np.asarray(skewed(strike, tau) * (0.6 if 40 < 365 * tau < 60 else 1.0))

    seen = last_seen(build_surface(chain(volatility=low)))
    short, long = seen.smiles[key_of("SPX", 22)], seen.smiles[key_of("SPX", 50)]
    floor = short.smooth_at_moneyness(np.zeros(1))[0] ** 2 * short.tau
    assert long.at(np.array([long.forward]))[0] ** 2 * long.tau < 0.9 * floor
    assert long.smooth_at_moneyness(np.zeros(1))[0] ** 2 * long.tau > floor
    assert np.abs(long.volatility - low(long.strike, long.tau)).max() < 1e-6


# --- which contracts are anchors


def test_anchors_are_nearest_in_tenor_then_nearest_the_forward() -> None:
    quotes, seen = now(1.013 * SPOT), before()
    anchors = find_anchors(quotes, seen, TARGETS)
    # a day later the tenors are 21 (both roots), 49, 112 and 169 days
    assert [one.key for one in anchors] == [key_of("SPX", 22), key_of("SPX", 50), key_of("SPX", 113)]
    assert [one.tau for one in anchors] == [21 / 365, 49 / 365, 112 / 365]
    for one in anchors:
        carried = seen.carried_forward(one.key, quotes.spot)
        nearest = min(seen.smiles[one.key].strike.tolist(), key=lambda strike: (abs(strike - carried), strike))
        assert one.strike == nearest
        assert one.moneyness == pytest.approx(np.log(nearest / carried) / np.sqrt(one.tau), rel=1e-12)


def test_a_target_may_lie_off_the_money() -> None:
    seen = before()
    for moneyness in (-0.3, 0.25):
        (found,) = find_anchors(now(), seen, (AnchorTarget(50, moneyness),))
        wanted = seen.carried_forward(found.key, SPOT) * np.exp(moneyness * np.sqrt(found.tau))
        assert abs(found.strike - wanted) == min(abs(seen.smiles[found.key].strike - wanted))


def test_a_tie_of_roots_goes_to_spx_and_without_it_to_the_other() -> None:
    quotes, seen = now(), before()
    (found,) = find_anchors(quotes, seen, TARGETS[:1])
    assert found.key == key_of("SPX", 22)
    gone = (quotes.root == "SPX") & (quotes.expiry == expiry_of("SPX", 22))
    (found,) = find_anchors(quotes.take(~gone), seen, TARGETS[:1])
    assert found.key == key_of("SPXW", 22)
    # the same with an alphabet that would have chosen otherwise
    renamed = dataclasses.replace(quotes, root=np.where(quotes.root == "SPXW", "AAA", quotes.root))
    smiles = {key._replace(root="AAA") if key.root == "SPXW" else key: smile for key, smile in seen.smiles.items()}
    (found,) = find_anchors(renamed, dataclasses.replace(seen, smiles=smiles), TARGETS[:1])
    assert found.key == key_of("SPX", 22)


def test_a_tie_of_strikes_goes_to_the_lower() -> None:
    """A carried forward half way between two strikes; powers of two, so the distances are equal to the bit."""
    seen = before()
    key = key_of("SPX", 50)
    smile = dataclasses.replace(seen.smiles[key], forward=101.0)
    seen = dataclasses.replace(seen, spot=128.0, smiles={key: smile})
    (found,) = find_anchors(dataclasses.replace(now(), spot=128.0), seen, (AnchorTarget(50),))
    assert found.strike == 100.0


def test_only_expiries_seen_before_and_quoted_now_can_anchor() -> None:
    quotes, seen = now(), before()
    key = key_of("SPX", 50)
    unseen = dataclasses.replace(seen, smiles={k: smile for k, smile in seen.smiles.items() if k != key})
    for anchors in (
        find_anchors(quotes, unseen, (AnchorTarget(50),)),
        find_anchors(quotes.take(quotes.expiry != key.expiry), seen, (AnchorTarget(50),)),
    ):
        assert [one.key for one in anchors] == [key_of("SPX", 22)]
    assert find_anchors(quotes.take(np.zeros(len(quotes), bool)), seen, TARGETS) == []


def test_no_targets_no_anchors_and_shared_contracts_once() -> None:
    assert find_anchors(now(), before(), ()) == []
    anchors = find_anchors(now(), before(), (AnchorTarget(45), AnchorTarget(50), AnchorTarget(49, 0.001)))
    assert len(anchors) == 1


@settings(deadline=None, max_examples=30)
@given(st.randoms(use_true_random=False), st.permutations(TARGETS))
def test_order_of_rows_and_targets_does_not_matter(random: object, targets: list[AnchorTarget]) -> None:
    quotes, seen = now(1.004 * SPOT), before()
    rows = list(range(len(quotes)))
    random.shuffle(rows)  # type: ignore[attr-defined]
    found = find_anchors(quotes.take(np.array(rows)), seen, tuple(targets))
    assert found == find_anchors(quotes, seen, TARGETS)
    assert [one.tau for one in found] == sorted(one.tau for one in found)


# --- what an anchor's quotes say


@settings(deadline=None, max_examples=40)
@given(st.floats(-0.01, 0.01), st.floats(-0.03, 0.03))
def test_a_pair_gives_its_own_forward_so_errors_of_spot_dont_reach_its_volatility(error: float, rise: float) -> None:
    """The quotes are made at the true spot; the underlying printed is off by `error`."""
    quotes, seen = now(SPOT, rise), before()
    for one in find_anchors(dataclasses.replace(quotes, spot=SPOT * float(np.exp(error))), seen, TARGETS):
        true = float(skewed(np.array([one.strike]), one.tau + 1 / 365)[0]) + rise
        # the discount last seen is a day older than the true one, 1e-4 of the price: below 5e-5 in volatility
        assert one.volatility == pytest.approx(true, abs=5e-5)
        carried = seen.smiles[one.key].forward * np.exp(error)
        own = SPOT * np.exp((0.04 - 0.015) * one.tau)
        assert one.forward_deviation == pytest.approx(np.log(own / carried), abs=1e-5)
        assert one.last_volatility == pytest.approx(
            float(skewed(np.array([one.strike]), one.tau + 1 / 365)[0]), abs=1e-7
        )
        assert one.move == pytest.approx(np.sqrt(one.tau) * rise, abs=2e-5)


@pytest.mark.parametrize("right", [1.0, -1.0])
def test_one_side_alone_is_inverted_at_the_carried_forward(right: float) -> None:
    quotes, seen = now(), before()
    key = key_of("SPX", 50)
    (whole,) = find_anchors(quotes, seen, (AnchorTarget(50),))
    rows = (quotes.root == key.root) & (quotes.expiry == key.expiry) & (quotes.strike == whole.strike)
    (found,) = find_anchors(quotes.take(~rows | (quotes.right == right)), seen, (AnchorTarget(50),))
    assert found.strike == whole.strike
    assert np.isnan(found.forward_deviation)
    carried = seen.carried_forward(key, quotes.spot)
    mid = float(quotes.mid[rows & (quotes.right == right)][0])
    repriced = black76.price(carried, found.strike, found.tau, found.volatility, seen.smiles[key].discount, right)
    assert repriced == pytest.approx(mid, rel=1e-12)


def test_a_strike_without_a_usable_quote_is_passed_over_for_the_next() -> None:
    quotes, seen = now(), before()
    target = (AnchorTarget(50),)
    key = key_of("SPX", 50)
    smile_strikes = seen.smiles[key].strike
    distance = np.abs(smile_strikes - seen.carried_forward(key, quotes.spot))
    order = smile_strikes[np.lexsort((smile_strikes, distance))]
    here = (quotes.root == key.root) & (quotes.expiry == key.expiry)
    for count in range(4):
        missing = here & np.isin(quotes.strike, order[:count])
        one_sided = dataclasses.replace(quotes, bid=np.where(missing, 0.0, quotes.bid))
        senseless = dataclasses.replace(  # a pair worth more than the underlying
            quotes, bid=np.where(missing, 5 * SPOT, quotes.bid), ask=np.where(missing, 6 * SPOT, quotes.ask)
        )
        for changed in (quotes.take(~missing), one_sided, senseless):
            (found,) = find_anchors(changed, seen, target)
            assert (found.key, found.strike) == (key, order[count])
    (found,) = find_anchors(dataclasses.replace(quotes, bid=np.where(here, 0.0, quotes.bid)), seen, target)
    assert found.key == key_of("SPX", 22)  # nothing of that expiry quotes: 21 days are nearer 50 than 112


def test_other_quotes_of_the_expiry_are_not_read() -> None:
    quotes, seen = now(), before()
    anchors = find_anchors(quotes, seen, TARGETS)
    mine = np.zeros(len(quotes), dtype=bool)
    for one in anchors:
        mine |= (quotes.root == one.key.root) & (quotes.expiry == one.key.expiry) & (quotes.strike == one.strike)
    factor = np.where(mine, 1.0, np.random.default_rng(0).uniform(0.3, 3.0, len(quotes)))
    noisy = dataclasses.replace(quotes, bid=quotes.bid * factor, ask=quotes.ask * factor)
    assert find_anchors(noisy, seen, TARGETS) == anchors
    assert find_anchors(quotes.take(mine), seen, TARGETS) == anchors


# --- the shift


@settings(deadline=None, max_examples=100)
@given(
    st.lists(
        st.tuples(st.integers(6, 360), st.floats(-0.05, 0.05)), min_size=1, max_size=5, unique_by=lambda pair: pair[0]
    ),
    st.floats(1.0, 500.0),
)
def test_shift_is_linear_in_the_logarithm_of_tau(nodes: list[tuple[int, float]], days: float) -> None:
    anchors = [anchor(day / 365, move) for day, move in nodes]
    ordered = sorted(nodes)
    if days <= ordered[0][0]:
        wanted = ordered[0][1]
    elif days >= ordered[-1][0]:
        wanted = ordered[-1][1]
    else:
        place = next(k for k in range(len(ordered) - 1) if ordered[k][0] <= days < ordered[k + 1][0])
        (a, low), (b, high) = ordered[place : place + 2]
        wanted = low + (high - low) * np.log(days / a) / np.log(b / a)
    found = shift_at(anchors, np.full(3, days / 365), np.array([-0.5, 0.0, 0.3]))
    assert found * np.sqrt(days / 365) == pytest.approx(np.full(3, wanted), abs=1e-12)


def test_shift_gives_back_the_anchors_and_without_any_nothing() -> None:
    """Two of them at one tenor, one off the money, and asked for in any order."""
    skew = dataclasses.replace(anchor(45 / 365, 0.005), moneyness=-0.2)
    anchors = [anchor(14 / 365, 0.004), anchor(45 / 365, 0.003), skew, anchor(120 / 365, -0.002)]
    tau, moneyness = (np.array([getattr(one, name) for one in anchors]) for name in ("tau", "moneyness"))
    wanted = np.array([one.volatility - one.last_volatility for one in anchors])
    assert shift_at(anchors, tau, moneyness) == pytest.approx(wanted, rel=1e-12)
    assert shift_at(anchors, tau[::-1], moneyness[::-1]) == pytest.approx(wanted[::-1], rel=1e-12)
    assert shift_at([], tau, moneyness).tolist() == [0.0] * 4


def test_anchors_of_one_tenor_are_averaged_whatever_their_root() -> None:
    anchors = [anchor(0.1, 0.004), anchor(0.1, 0.002, "SPXW"), anchor(0.4, 0.0)]
    at = np.zeros(1)
    assert shift_at(anchors, np.array([0.1]), at)[0] * np.sqrt(0.1) == pytest.approx(0.003, rel=1e-12)
    assert np.array_equal(shift_at(anchors, np.array([0.2]), at), shift_at(anchors[::-1], np.array([0.2]), at))


def test_forward_deviation_is_the_median_of_the_pairs() -> None:
    known = [anchor(0.1, 0.0, deviation=value) for value in (0.001, -0.002, 0.005)]
    assert forward_deviation([*known, anchor(0.2, 0.0)]) == 0.001
    assert forward_deviation([anchor(0.2, 0.0)]) == 0.0
    assert forward_deviation([]) == 0.0
