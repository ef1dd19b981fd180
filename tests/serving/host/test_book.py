"""The native book against its slow reference, and what each kind of update does to it."""

from __future__ import annotations

import itertools
import math
import struct

import pytest
from hypothesis import given, settings

from serving.host.reference.book import Book as SlowBook
from serving.host.reference.book import ends_event
from serving.host.tick_features import words_of
from tests.serving.host.tick_records import (
    ASK,
    BID,
    FIRST,
    LAST,
    LEVEL,
    Records,
    Row,
    garbage,
    heartbeat,
    markets,
    picture,
    quote,
    records_of,
    trade,
)
from tests.serving.native.built import built_core

CORE = built_core()
BIDS = [(99.0, 1.0), (98.0, 2.0), (97.0, 3.0)]
ASKS = [(101.0, 4.0), (102.0, 5.0)]


def book_after(*rows: Row):  # type: ignore[no-untyped-def]
    book = CORE.Book()
    book.apply(words_of(records_of(rows)))
    return book


def bits(levels: list[tuple[float, float]]) -> bytes:
    return b"".join(struct.pack("<2d", *level) for level in levels)


def check_equal(records: Records) -> None:
    native, slow, now = CORE.Book(), SlowBook(), 0
    for place, record in enumerate(records):
        if ends_event(record):
            now = max(now, int(record["event_ns"]))
        assert native.apply(words_of(records[place : place + 1])) == slow.apply(record, now)
        assert bits(native.bids) == bits(slow.bids)
        assert bits(native.asks) == bits(slow.asks)
        state = (native.usable, native.changed_ns, native.changes, native.refused)
        assert state == (slow.usable, slow.changed_ns, slow.changes, slow.refused)
        if native.usable:
            assert struct.pack("<d", native.mid) == struct.pack("<d", slow.mid)


@given(garbage())
@settings(max_examples=150, deadline=None)
def test_equal_to_the_reference_on_garbage(records: Records) -> None:
    check_equal(records)


@given(markets())
@settings(max_examples=50, deadline=None)
def test_equal_to_the_reference_on_a_market(rows: list[Row]) -> None:
    check_equal(records_of(rows))


@given(garbage())
@settings(max_examples=100, deadline=None)
def test_sides_stay_ordered_and_positive(records: Records) -> None:
    book = CORE.Book()
    for place in range(len(records)):
        book.apply(words_of(records[place : place + 1]))
        for levels, sign in ((book.bids, -1.0), (book.asks, 1.0)):
            assert len(levels) <= 10
            assert all(
                math.isfinite(price) and price > 0 and math.isfinite(size) and size > 0 for price, size in levels
            )
            assert all(sign * one[0] < sign * two[0] for one, two in itertools.pairwise(levels))


def test_a_picture_is_what_it_says() -> None:
    book = book_after(*picture(7, BIDS, ASKS))
    assert (book.bids, book.asks) == (BIDS, ASKS)
    assert book.usable
    assert book.mid == 100.0
    assert (book.changed_ns, book.changes, book.refused) == (7, 1, 0)


def test_a_picture_replaces_everything() -> None:
    book = book_after(*picture(1, BIDS, ASKS), *picture(2, [(50.0, 1.0)], []))
    assert (book.bids, book.asks, book.usable) == ([(50.0, 1.0)], [], False)


def test_levels_show_only_when_the_picture_is_whole() -> None:
    rows = picture(2, BIDS, ASKS)
    assert book_after(*picture(1, BIDS[:1], ASKS[:1]), *rows[:-1]).bids == BIDS[:1]


@pytest.mark.parametrize(
    ("bid", "after"),
    [
        ((99.5, 7.0), [(99.5, 7.0), *BIDS]),  # improves: those behind stay
        ((99.0, 7.0), [(99.0, 7.0), *BIDS[1:]]),  # same price: a new size
        ((98.0, 7.0), [(98.0, 7.0), BIDS[2]]),  # falls back: better levels go
        ((97.5, 7.0), [(97.5, 7.0), BIDS[2]]),
        ((10.0, 7.0), [(10.0, 7.0)]),
        ((99.0, 0.0), []),
        ((0.0, 5.0), []),
        ((math.nan, 5.0), []),
        ((99.0, math.inf), []),
    ],
)
def test_one_sided_bids(bid: tuple[float, float], after: list[tuple[float, float]]) -> None:
    book = book_after(*picture(1, BIDS, ASKS), quote(2, *bid, 100.5, 9.0, sides=BID))
    assert (book.bids, book.asks) == (after, ASKS)
    assert (book.changed_ns, book.refused) == (2, 0)


def test_one_sided_asks_mirror_them() -> None:
    book = book_after(*picture(1, BIDS, ASKS), quote(2, 0.0, 0.0, 101.5, 9.0, sides=ASK))
    assert (book.bids, book.asks) == (BIDS, [(101.5, 9.0), (102.0, 5.0)])


def test_eleven_levels_are_ten() -> None:
    rows = [quote(at, 90.0 + at, 1.0, 200.0, 1.0) for at in range(11)]
    assert [price for price, _ in book_after(*rows).bids] == [100.0 - at for at in range(10)]


def changed(rows: list[Row], place: int, flags: int) -> list[Row]:
    at, kind, _, values = rows[place]
    return [*rows[:place], (at, kind, flags, values), *rows[place + 1 :]]


WHOLE = picture(5, BIDS, [*ASKS, (103.0, 6.0)])


@pytest.mark.parametrize(
    "rows",
    [
        WHOLE[1:],  # no beginning
        [WHOLE[0], WHOLE[2]],  # a hole
        [WHOLE[0], WHOLE[1], WHOLE[1], WHOLE[2]],  # twice the same
        changed(WHOLE, 1, 2 << 4 | BID | ASK),  # wrongly numbered
        [*WHOLE[:2], trade(5, 100.0, 1.0)],  # a trade within
        [*picture(5, BIDS, [ASKS[1], ASKS[0]])],  # asks not ascending
        [*picture(5, [BIDS[0], BIDS[0]], ASKS)],  # a level twice
    ],
)
def test_broken_pictures_are_refused_whole(rows: list[Row]) -> None:
    before = [(80.0, 1.0)], [(120.0, 1.0)]
    book = book_after(*picture(1, *before), *rows)
    assert (book.bids, book.asks, book.changed_ns) == (*before, 1)
    assert book.refused == 1


def test_a_picture_begun_anew_refuses_what_came_before() -> None:
    book = book_after(*WHOLE[:2], *WHOLE)
    assert (book.bids, book.changes, book.refused) == (BIDS, 1, 1)


def test_a_level_without_numbers_leaves_no_hole() -> None:
    book = book_after(*picture(1, [BIDS[0], (math.nan, 1.0), BIDS[2]], ASKS))
    assert (book.bids, book.refused) == ([BIDS[0], BIDS[2]], 0)


def test_a_quote_within_a_picture_is_taken_and_the_picture_refused() -> None:
    book = book_after(*WHOLE[:2], quote(6, 99.0, 1.0, 101.0, 1.0))
    assert (book.bids, book.asks, book.refused) == ([(99.0, 1.0)], [(101.0, 1.0)], 1)


def test_a_heartbeat_within_a_picture_lets_it_go_on() -> None:
    book = book_after(*WHOLE[:2], heartbeat(6), WHOLE[2])
    assert (book.bids, book.refused) == (BIDS, 0)


def test_crossed_books_are_kept_but_not_usable() -> None:
    book = book_after(*picture(1, BIDS, ASKS), quote(2, 101.0, 1.0, 0.0, 0.0, sides=BID))
    assert not book.usable
    assert (book.bids[0], book.asks) == ((101.0, 1.0), ASKS)


def test_a_quote_of_neither_side_is_refused() -> None:
    book = book_after(*picture(1, BIDS, ASKS), quote(2, 99.0, 1.0, 101.0, 1.0, sides=0))
    assert (book.bids, book.asks, book.changed_ns, book.refused) == (BIDS, ASKS, 1, 1)


def test_time_that_goes_back_counts_as_now() -> None:
    assert book_after(*picture(9, BIDS, ASKS), quote(2, 99.0, 1.0, 101.0, 1.0)).changed_ns == 9


def test_levels_beyond_ten_are_left_alone() -> None:
    bids = [(100.0 - level, 1.0) for level in range(16)]
    book = book_after(*picture(1, bids, []))
    assert (book.bids, book.refused) == (bids[:10], 0)


def test_a_level_alone_may_be_a_whole_picture() -> None:
    row: Row = (1, LEVEL, FIRST | LAST | BID | ASK, (99.0, 1.0, 101.0, 1.0))
    assert book_after(row).usable
