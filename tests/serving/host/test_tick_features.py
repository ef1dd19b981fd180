"""Tick features, native: equal to the reference bit for bit, finite whatever comes, the same in a batch as streamed."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.errors import DataError
from serving.host.reference.book import HEARTBEAT, ends_event
from serving.host.reference.tick_features import TickStream, reference_rows
from serving.host.tick_features import STEP_FEATURES, tick_rows, words_of
from tests.serving.host.tick_records import (
    STEP_NS,
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
from tests.serving.native.test_allocations import allocated

CORE = built_core()
F = len(STEP_FEATURES)


def bits(rows: npt.NDArray[np.float64]) -> npt.NDArray[np.uint64]:
    return np.ascontiguousarray(rows).view(np.uint64)


def check_equal(records: Records, step_ns: int) -> None:
    native = tick_rows(records, step_ns, open_rows=True)
    closed, opened = reference_rows(records, step_ns)
    for name, ours, theirs in (("closed", native.closed, closed), ("open", native.open, opened)):
        assert ours.shape == theirs.shape
        differing = np.argwhere(bits(ours) != bits(theirs))
        assert not len(differing), [
            f"{name} {row} {STEP_FEATURES[column]}: {ours[row, column]!r}, reference {theirs[row, column]!r}"
            for row, column in differing[:5]
        ]


def test_columns_are_named_alike_on_both_sides() -> None:
    assert CORE.TICK_FEATURES == STEP_FEATURES
    assert len(set(STEP_FEATURES)) == F


@given(markets(), st.sampled_from([100, STEP_NS, 7777]))
@settings(max_examples=120, deadline=None)
def test_equal_to_the_reference_on_a_market(rows: list[Row], step_ns: int) -> None:
    check_equal(records_of(rows), step_ns)


@given(garbage(), st.sampled_from([1, STEP_NS, 2**62]))
@settings(max_examples=120, deadline=None)
def test_equal_to_the_reference_on_garbage(records: Records, step_ns: int) -> None:
    check_equal(records, step_ns)


def walk(seed: int, events: int, step_ns: int = STEP_NS) -> Records:
    """A long market: the ring of steps goes round several times, sizes and prices have all their digits."""
    rng = np.random.default_rng(seed)
    rows: list[Row] = picture(0, [(99.9 - 0.1 * n, rng.uniform(1, 9)) for n in range(10)], [(100.1, 3.0)])
    middle, now = 100.0, 0
    for _ in range(events):
        now += int(rng.exponential(step_ns / 3))
        middle *= float(np.exp(rng.normal(0, 1e-4)))
        what = rng.random()
        if what < 0.4:
            rows.append(trade(now, middle * (1 + rng.normal(0, 1e-4)), rng.lognormal(), int(rng.integers(0, 3))))
        elif what < 0.45:
            now = -(-now // step_ns) * step_ns
            rows.append(heartbeat(now))
        elif what < 0.6:
            sides = [[(middle + s * 0.02 * (n + rng.random()), rng.lognormal()) for n in range(10)] for s in (-1, 1)]
            rows += picture(now, *sides)
        else:
            half = middle * 1e-4 * rng.random() + 1e-9
            rows.append(
                quote(now, middle - half, rng.lognormal(), middle + half, rng.lognormal(), int(rng.integers(1, 4)))
            )
    return records_of(rows)


@pytest.mark.parametrize("seed", range(3))
def test_equal_to_the_reference_on_a_long_market(seed: int) -> None:
    records = walk(seed, 900)
    assert len(tick_rows(records, STEP_NS).closed) > 150  # the ring of 64 goes round
    check_equal(records, STEP_NS)


@given(garbage(most=80), st.sampled_from([1, STEP_NS, 10**9]))
@settings(max_examples=150, deadline=None)
def test_every_column_is_finite_whatever_comes(records: Records, step_ns: int) -> None:
    rows = tick_rows(records, step_ns, open_rows=True)
    assert np.isfinite(rows.closed).all()
    assert np.isfinite(rows.open).all()


def test_extremes_that_are_taken_stay_finite() -> None:
    """The largest and smallest prices and sizes in turn, over more steps than the ring has."""
    rows: list[Row] = []
    ends = ((1e-100, 1e-100), (1e100, 1e99), (1.0, 1e-100), (1e-100, 1e99))
    for at in range(200):
        price, size = ends[at * 7 % 4]
        other, other_size = ends[at * 3 % 4]
        low, high = sorted((price, other * 0.999))
        rows += [quote(at * 700, low, size, high, other_size), trade(at * 700, other, size, at % 3)]
    found = tick_rows(records_of(rows), STEP_NS, open_rows=True)
    assert len(found.closed) > 100
    assert np.isfinite(found.closed).all()
    assert np.isfinite(found.open).all()
    assert (found.closed != 0).any(axis=0).sum() > 30


def test_refused_numbers_are_counted_and_change_nothing() -> None:
    before = [*picture(0, [(99.0, 1.0)], [(101.0, 2.0)]), trade(1, 100.5, 1.0)]
    bad: list[Row] = [trade(2, float("nan"), 1.0), trade(2, 100.0, -1.0), trade(2, 1e101, 1.0), trade(2, 100.0, 1e-101)]
    bad += [quote(2, 99.0, 1.0, 1e101, 1.0), quote(2, 99.0, 1e101, 101.0, 1.0)]
    found = tick_rows(records_of([*before, *bad]), STEP_NS, open_rows=True)
    assert found.refused_numbers == len(bad)
    assert (found.open[2:] == found.open[1]).all()


@given(markets())
@settings(max_examples=50, deadline=None)
def test_streamed_rows_equal_the_batch(rows: list[Row]) -> None:
    records = records_of(rows)
    batch = tick_rows(records, STEP_NS, open_rows=True)
    stream, closed, opened = CORE.TickFeatures(STEP_NS), np.zeros(F), np.zeros(F)
    closes, events = 0, 0
    for place, record in enumerate(records):
        if stream.take(words_of(records[place : place + 1]), closed, opened):
            np.testing.assert_array_equal(bits(closed), bits(batch.closed[closes]))
            assert batch.closed_by[closes] == place
            closes += 1
        if ends_event(record):
            np.testing.assert_array_equal(bits(opened), bits(batch.open[events]))
            assert batch.open_record[events] == place
            events += 1
    assert (closes, events) == (len(batch.closed), len(batch.open))


@given(markets(), st.integers(0, 80))
@settings(max_examples=50, deadline=None)
def test_a_row_holds_nothing_of_later_records(rows: list[Row], cut: int) -> None:
    records = records_of(rows)
    whole, part = (tick_rows(some, STEP_NS, open_rows=True) for some in (records, records[:cut].copy()))
    np.testing.assert_array_equal(whole.open[: len(part.open)], part.open)
    np.testing.assert_array_equal(whole.closed[: len(part.closed)], part.closed)


@given(markets())
@settings(max_examples=50, deadline=None)
def test_a_step_closes_with_the_row_it_had(rows: list[Row]) -> None:
    """The row that closes is the open one of the event before, also where only a heartbeat opened the step."""
    records = records_of(rows)
    found = tick_rows(records, STEP_NS, open_rows=True)
    before = {int(record): row for record, row in zip(found.open_record[1:], found.open[:-1], strict=True)}
    for by, row, start in zip(found.closed_by, found.closed, found.closed_start_ns, strict=True):
        np.testing.assert_array_equal(row, before[int(by)])
        assert start % STEP_NS == 0
        assert start + STEP_NS <= records["event_ns"][by]
    assert (np.diff(found.closed_start_ns) >= STEP_NS).all()


@given(markets())
@settings(max_examples=30, deadline=None)
def test_mids_of_events_and_steps(rows: list[Row]) -> None:
    records, stream = records_of(rows), TickStream(STEP_NS)
    found = tick_rows(records, STEP_NS, open_rows=True)
    mids = []
    for record in records:
        if stream.take(record)[0]:
            mids.append(stream.book.mid if stream.book.usable else np.nan)
    np.testing.assert_array_equal(found.open_mid, mids)
    np.testing.assert_array_equal(found.closed_mid, [step.mid for step in stream.features.closed])


@given(markets())
@settings(max_examples=50, deadline=None)
def test_a_heartbeat_within_the_step_changes_nothing(rows: list[Row]) -> None:
    records = records_of(rows)
    found = tick_rows(records, 10**12, open_rows=True)
    for place in range(1, len(found.open)):
        if records["kind"][found.open_record[place]] == HEARTBEAT:
            np.testing.assert_array_equal(found.open[place], found.open[place - 1])


def test_other_instruments_are_passed_over() -> None:
    records = walk(5, 100)
    other = records.copy()
    other["instrument"] = 3
    mixed = np.stack([records, other], axis=1).ravel()
    np.testing.assert_array_equal(tick_rows(mixed, STEP_NS).closed, tick_rows(records, STEP_NS).closed)
    assert not len(tick_rows(other, STEP_NS, open_rows=True).open)


def test_reset_begins_anew() -> None:
    records, stream = walk(6, 200), CORE.TickFeatures(STEP_NS)
    rows = []
    for _ in range(2):
        row = np.zeros(F)
        stream.take(words_of(records), np.zeros(F), row)
        rows.append(row)
        stream.reset()
        assert not stream.started
    np.testing.assert_array_equal(*rows)


def test_streaming_allocates_nothing() -> None:
    words, stream = words_of(walk(7, 400)), CORE.TickFeatures(STEP_NS)
    one = [words[place : place + 1] for place in range(len(words))]
    closed, row = np.zeros(F), np.zeros(F)

    def work() -> None:
        for record in one:
            stream.take(record, closed, row)
        stream.reset()

    native, python = allocated(work)
    assert native == 0
    assert python < 1024


@pytest.mark.parametrize("step_ns", [0, -5])
def test_steps_have_a_length(step_ns: int) -> None:
    with pytest.raises(DataError, match=f"found {step_ns}"):
        tick_rows(records_of([heartbeat(1)]), step_ns)
    with pytest.raises(ValueError, match=f"found {step_ns}"):
        CORE.TickFeatures(step_ns)


def test_records_of_another_type_are_refused() -> None:
    with pytest.raises(DataError, match="56 bytes"):
        tick_rows(np.zeros(4), STEP_NS)
    with pytest.raises(DataError, match="contiguous"):
        tick_rows(walk(8, 20)[::2], STEP_NS)
