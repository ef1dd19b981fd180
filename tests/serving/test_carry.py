"""Forwards and discounts by where they come from: the venue, parity, the neighbours, the index."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from serving.carry import ForwardOrigin, carries, fit_coin_forward, fit_discount
from serving.quotes import Quotes, group_rows
from serving.surface import build_surface
from tests.serving.test_surface import EXPIRIES, RATE, SPOT, YIELD, chain, key_of, rows_of

KEYS = [key_of(root, days) for root, days in EXPIRIES]


def found(quotes: Quotes) -> dict[str, tuple[float, float, ForwardOrigin]]:
    """Carries by root and tenor in days."""
    groups = group_rows(quotes.root, quotes.expiry, quotes.strike)
    known = carries(quotes, groups, quotes.mid)
    names = {key: f"{root} {days}" for (root, days), key in zip(EXPIRIES, KEYS, strict=True)}
    return {names[key]: carry for key, carry in known.items()}


def true_forward(days: int) -> float:
    return SPOT * float(np.exp((RATE - YIELD) * days / 365.0))


def true_discount(days: int) -> float:
    return float(np.exp(-RATE * days / 365.0))


def with_forwards(quotes: Quotes, factor: float = 1.0, *, coin: bool = False) -> Quotes:
    """Every row with its expiry's forward times `factor` as the venue gives it."""
    given = np.full(len(quotes), np.nan)
    for root, days in EXPIRIES:
        given[rows_of(quotes, root, days)] = true_forward(days) * factor
    return dataclasses.replace(quotes, venue_forward=given, coin=coin)


def coin_chain() -> Quotes:
    """Inverse options: no interest on coin, so the discount of their money prices is S/F, whatever RATE is."""
    quotes = chain(spread=0.001)
    scale = np.ones(len(quotes))
    for root, days in EXPIRIES:
        rows = rows_of(quotes, root, days)
        scale[rows] = SPOT / true_forward(days) / true_discount(days)
    return dataclasses.replace(quotes, bid=quotes.bid * scale, ask=quotes.ask * scale, coin=True)


def test_the_venues_forward_comes_before_parity() -> None:
    """With it, D is the slope of C - P in F - K alone."""
    known = found(with_forwards(chain(), 1.0))
    for root, days in EXPIRIES:
        forward, discount, origin = known[f"{root} {days}"]
        assert origin is ForwardOrigin.VENUE
        assert forward == pytest.approx(true_forward(days), rel=1e-12)
        assert discount == pytest.approx(true_discount(days), rel=1e-9)
    shifted = found(with_forwards(chain(), 1.001))
    assert shifted["SPX 50"][0] == pytest.approx(1.001 * true_forward(50), rel=1e-12)


def test_where_the_venue_says_nothing_parity_speaks() -> None:
    quotes = with_forwards(chain())
    assert quotes.venue_forward is not None
    quotes.venue_forward[rows_of(quotes, "SPX", 50)] = np.nan
    known = found(quotes)
    assert known["SPX 50"][2] is ForwardOrigin.PARITY
    assert known["SPX 50"][:2] == found(chain())["SPX 50"][:2]
    assert known["SPX 22"][2] is ForwardOrigin.VENUE


def test_a_venues_forward_without_pairs_borrows_the_rate() -> None:
    quotes = with_forwards(chain())
    lonely = rows_of(quotes, "SPX", 50) & (quotes.right > 0)
    forward, discount, origin = found(quotes.take(~lonely))["SPX 50"]
    assert origin is ForwardOrigin.VENUE
    assert forward == pytest.approx(true_forward(50))
    assert discount == pytest.approx(true_discount(50), rel=1e-6)
    only_calls = quotes.take(quotes.right > 0)
    assert {carry[1] for carry in found(only_calls).values()} == {1.0}, "no line anywhere: nothing is discounted"


def test_smiles_say_where_their_forward_comes_from() -> None:
    venue = build_surface(with_forwards(chain())).smiles
    assert {smile.origin for smile in venue.values()} == {ForwardOrigin.VENUE}
    assert all(smile.from_parity for smile in venue.values()), "its own, not borrowed"
    quotes = chain()
    lonely = rows_of(quotes, "SPX", 50) & (quotes.right > 0)
    borrowed = build_surface(quotes.take(~lonely)).smiles[key_of("SPX", 50)]
    assert borrowed.origin is ForwardOrigin.BORROWED
    assert not borrowed.from_parity


def test_coin_quotes_need_one_pair() -> None:
    quotes = coin_chain()
    for root, days in EXPIRIES:
        forward, discount, origin = found(quotes)[f"{root} {days}"]
        assert origin is ForwardOrigin.PARITY
        assert forward == pytest.approx(true_forward(days), rel=1e-9)
        assert discount == SPOT / forward
    single = (quotes.strike == 100.0) | (quotes.right > 0)
    assert found(quotes.take(single))["SPX 113"][0] == pytest.approx(true_forward(113), rel=1e-6)


def test_coin_quotes_of_a_venue_with_forwards() -> None:
    quotes = dataclasses.replace(with_forwards(coin_chain(), coin=True))
    for root, days in EXPIRIES:
        forward, discount, origin = found(quotes)[f"{root} {days}"]
        assert origin is ForwardOrigin.VENUE
        assert discount == SPOT / forward


def test_coin_without_any_forward_takes_the_index_and_money_takes_nothing() -> None:
    calls = chain().take(chain().right > 0)
    assert found(calls) == {}
    known = found(dataclasses.replace(calls, coin=True))
    assert len(known) == len(EXPIRIES)
    assert set(known.values()) == {(SPOT, 1.0, ForwardOrigin.INDEX)}
    smiles = build_surface(dataclasses.replace(calls, coin=True)).smiles
    assert smiles
    assert not any(smile.from_parity for smile in smiles.values())


def test_coin_without_its_own_forward_borrows_that_of_its_neighbours() -> None:
    quotes = coin_chain()
    lonely = rows_of(quotes, "SPX", 50) & (quotes.right > 0)
    forward, discount, origin = found(quotes.take(~lonely))["SPX 50"]
    assert origin is ForwardOrigin.BORROWED
    assert forward == pytest.approx(true_forward(50), rel=1e-9)
    assert discount == pytest.approx(SPOT / forward, rel=1e-12)


def test_outlying_pairs_are_thrown_out_of_every_line() -> None:
    strike = np.linspace(95.0, 105.0, 15)
    off = np.where(np.arange(15) == 4, 2.0, 0.0)
    assert fit_discount(strike, 0.97 * (101.0 - strike) + off, 101.0) == pytest.approx(0.97, rel=1e-9)
    assert fit_coin_forward(strike, 100.0 - strike * 100.0 / 102.0 + off, 100.0) == pytest.approx(102.0, rel=1e-9)


def test_what_is_no_line_is_refused() -> None:
    strike = np.linspace(95.0, 105.0, 9)
    assert fit_discount(strike, 0.3 * (101.0 - strike), 101.0) is None
    assert fit_discount(strike[:2], (101.0 - strike)[:2], 101.0) is None
    assert fit_discount(np.full(5, 101.0), np.zeros(5), 101.0) is None
    assert fit_coin_forward(strike, 100.0 - strike * 3.0, 100.0) is None
    assert fit_coin_forward(strike[:0], strike[:0], 100.0) is None
