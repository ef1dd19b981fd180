"""The slow reference of the market step's features, from docs/host-features.md: plain Python doubles.

In: records one by one (`TickStream.take`), or all (`reference_rows`). Out: rows [40] as STEP_FEATURES names them. Every
sum over closed steps is made anew from a list of all of them whenever a row is asked for.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from serving.host.reference.book import CONTROL, HEARTBEAT, TRADE, Book, Levels, ends_event
from serving.host.tick_features import STEP_FEATURES
from serving.normal import Array

BUYER_TOOK, SELLER_TOOK = 1, 2
SMALLEST, LARGEST = 1e-100, 1e100
SUMS = ("trades", "volume", "notional", "bought", "sold", "quotes", "depths", "spreads", "flow", "squares")
BUCKETS = 16

Sums = dict[str, float]


def _nothing() -> Sums:
    return dict.fromkeys(SUMS, 0.0)


@dataclass
class Step:
    """One market step: its number, its sums, its trades in order, and the mid when it closed."""

    number: int
    skipped: int
    sums: Sums = field(default_factory=_nothing)
    trades: list[tuple[float, float]] = field(default_factory=list)
    mid: float = 0.0

    @property
    def vwap(self) -> float:
        """Of its trades; its last mid where there were none."""
        volume = self.sums["volume"]
        return self.sums["notional"] / volume if volume > 0 else self.mid


@dataclass(frozen=True)
class TakenBook:
    """The last usable book."""

    bids: Levels
    asks: Levels

    @property
    def mid(self) -> float:
        return 0.5 * (self.bids[0][0] + self.asks[0][0])

    @property
    def spread(self) -> float:
        return (self.asks[0][0] - self.bids[0][0]) / self.mid

    @property
    def depth(self) -> float:
        return 0.5 * (self.bids[0][1] + self.asks[0][1])

    def imbalance(self, levels: int) -> float:
        bid, ask = _total(size for _, size in self.bids[:levels]), _total(size for _, size in self.asks[:levels])
        return (bid - ask) / (bid + ask)

    @property
    def micro_price_distance(self) -> float:
        (bid, bid_size), (ask, ask_size) = self.bids[0], self.asks[0]
        micro = (bid * ask_size + ask * bid_size) / (bid_size + ask_size)
        return (micro - self.mid) / self.mid


def _total(values: Any) -> float:
    total = 0.0  # not sum(), which compensates since Python 3.12
    for value in values:
        total += value
    return total


class TickFeatures:
    """Steps of one instrument."""

    def __init__(self, step_ns: int) -> None:
        self.step_ns = step_ns
        self.refused = 0
        self.closed: list[Step] = []
        self._open: Step | None = None
        self._book: TakenBook | None = None
        self._first_mid = 0.0
        self._now_ns = self._taken_ns = self._traded_ns = 0
        self._changes_seen = 0
        self._anchor = self._width = 0.0

    def close_before(self, event_ns: int) -> npt.NDArray[np.float64] | None:
        """The open step's row if the event closes it."""
        self._now_ns = max(self._now_ns, event_ns)
        number = self._now_ns // self.step_ns
        if self._open is None or self._book is None or number <= self._open.number:
            return None
        row = self.row()
        self._open.mid = self._book.mid
        self.closed.append(self._open)
        self._open = Step(number, number - self._open.number - 1)
        bid, ask, mid = self._book.bids[0][0], self._book.asks[0][0], self._book.mid
        squares = _total(step.sums["squares"] for step in self.closed[-63:])
        self._anchor, self._width = mid, max(ask - bid, 0.25 * (mid * math.sqrt(squares)))
        return row

    def take(self, record: Any, book: Book) -> None:
        """A trade, or the change of the book that the record made."""
        if int(record["kind"]) == TRADE:
            if self._open is not None:
                self._take_trade(self._open, record)
        elif int(record["kind"]) != HEARTBEAT and book.changes != self._changes_seen:
            self._changes_seen = book.changes
            if book.usable:
                self._take_book(TakenBook(list(book.bids), list(book.asks)))

    def _take_trade(self, step: Step, record: Any) -> None:
        price, size = float(record["values"][0]), float(record["values"][1])
        if not (SMALLEST <= price <= LARGEST and SMALLEST <= size <= LARGEST):
            self.refused += 1
            return
        assert self._book is not None
        self._taken_ns = self._traded_ns = self._now_ns
        flag, mid = int(record["flags"]) & (BUYER_TOOK | SELLER_TOOK), self._book.mid
        if flag not in (BUYER_TOOK, SELLER_TOOK):
            flag = BUYER_TOOK if price > mid else SELLER_TOOK if price < mid else 0
        step.trades.append((price, size))
        step.sums["trades"] += 1
        step.sums["volume"] += size
        step.sums["notional"] += price * size
        if flag == BUYER_TOOK:
            step.sums["bought"] += size
        elif flag == SELLER_TOOK:
            step.sums["sold"] += size

    def _take_book(self, new: TakenBook) -> None:
        (bid, bid_size), (ask, ask_size) = new.bids[0], new.asks[0]
        sides = [_total(size for _, size in side) for side in (new.bids, new.asks)]
        if min(bid, bid_size, ask_size) < SMALLEST or ask > LARGEST or max(sides) > LARGEST:
            self.refused += 1
            return
        self._taken_ns = self._now_ns
        old, self._book = self._book, new
        if self._open is None or old is None:
            self._open = Step(self._now_ns // self.step_ns, 0)
            self._traded_ns = self._now_ns
            self._first_mid = self._anchor = new.mid
            self._width = ask - bid
        else:
            (old_bid, old_bid_size), (old_ask, old_ask_size) = old.bids[0], old.asks[0]
            came = (bid_size if bid >= old_bid else 0.0) - (old_bid_size if bid <= old_bid else 0.0)
            left = (ask_size if ask <= old_ask else 0.0) - (old_ask_size if ask >= old_ask else 0.0)
            self._open.sums["flow"] += came - left
            if new.mid != old.mid:
                move = math.log(new.mid / old.mid)
                self._open.sums["squares"] += move * move
        self._open.sums["quotes"] += 1
        self._open.sums["depths"] += new.depth
        self._open.sums["spreads"] += new.spread

    def row(self) -> npt.NDArray[np.float64]:
        """The open step's row."""
        if self._open is None or self._book is None:
            return np.zeros(len(STEP_FEATURES))
        step, book, mid = self._open, self._book, self._book.mid
        out: dict[str, float] = {f"imbalance_{n}": book.imbalance(n) for n in (1, 3, 5, 10)}
        out["micro_price_distance"] = book.micro_price_distance
        out["spread"] = book.spread
        for steps in (1, 8, 64):
            of, span = self._over(steps), self._span(steps)
            volume, quotes = of["volume"], of["quotes"]
            out[f"vwap_distance_{steps}"] = (of["notional"] / volume - mid) / mid if volume > 0 else 0.0
            out[f"order_flow_imbalance_{steps}"] = of["flow"] / (of["depths"] / quotes) if quotes > 0 else 0.0
            out[f"trade_imbalance_{steps}"] = (of["bought"] - of["sold"]) / volume if volume > 0 else 0.0
            out[f"realised_volatility_{steps}"] = math.sqrt(of["squares"] / span)
            out[f"trade_intensity_{steps}"] = math.log(1 + of["trades"] / span)
            out[f"quote_intensity_{steps}"] = math.log(1 + quotes / span)
        for steps in (1, 4, 8, 16, 64):
            base = self.closed[-steps].mid if len(self.closed) >= steps else self._first_mid
            out[f"momentum_{steps}"] = math.log(mid / base)
        of = self._over(64)
        seen, squares = of["quotes"] > 0, of["squares"]
        out["spread_against_mean"] = math.log(book.spread / (of["spreads"] / of["quotes"])) if seen else 0.0
        out["depth_against_mean"] = math.log(book.depth / (of["depths"] / of["quotes"])) if seen else 0.0
        out["trend_64"] = out["momentum_64"] / math.sqrt(squares) if squares > 0 else 0.0
        p, q = (self._over(steps)["volume"] / self._span(steps) for steps in (8, 64))
        out["volume_share_8"] = p / (p + q) if p > 0 else 0.0
        out["volume_spike"] = self._volume_spike()
        out |= self._profile(mid)
        out["elapsed_share"] = float(max(self._taken_ns - step.number * self.step_ns, 0)) / float(self.step_ns)
        out["trade_age"] = math.log(1 + float(self._taken_ns - self._traded_ns) / float(self.step_ns))
        out["skipped_steps"] = math.log(1 + step.skipped)
        assert out.keys() == set(STEP_FEATURES)
        return np.array([out[name] for name in STEP_FEATURES])

    def _closed_of(self, steps: int) -> list[Step]:
        return self.closed[-(steps - 1) :] if steps > 1 else []

    def _over(self, steps: int) -> Sums:
        assert self._open is not None
        closed = self._closed_of(steps)
        return {name: _total(step.sums[name] for step in closed) + self._open.sums[name] for name in SUMS}

    def _span(self, steps: int) -> float:
        assert self._open is not None
        first = (self._closed_of(steps) or [self._open])[0]
        return float(self._open.number - first.number) + 1

    def _volume_spike(self) -> float:
        assert self._open is not None
        volumes = [step.sums["volume"] for step in self._closed_of(64)]
        if not volumes:
            return 0.0
        mean = _total(volumes) / len(volumes)
        usual = mean + math.sqrt(_total((volume - mean) * (volume - mean) for volume in volumes) / len(volumes))
        return math.log((self._open.sums["volume"] + usual) / (mean + usual)) if usual > 0 else 0.0

    def _profile(self, mid: float) -> dict[str, float]:
        assert self._open is not None
        buckets, control, scale = [0.0] * BUCKETS, 0, 1 / self._width

        def bucket_of(price: float) -> int:
            place = (price - self._anchor) * scale + 8
            return 0 if place < 1 else 15 if place >= 15 else int(place)

        closed = [(step.vwap, step.sums["volume"]) for step in self._closed_of(64)]
        for price, volume in closed + self._open.trades:
            bucket = bucket_of(price)
            buckets[bucket] += volume
            if buckets[bucket] > buckets[control]:
                control = bucket
        at = bucket_of(mid)
        below, above = _total(buckets[:at]), _total(buckets[at + 1 :])
        total = (below + buckets[at]) + above
        names = ("profile_skew", "point_of_control_distance", "point_of_control_share")
        if not total > 0:
            return dict.fromkeys(names, 0.0)
        price = self._anchor + (control - 7.5) * self._width
        return dict(zip(names, ((above - below) / total, (price - mid) / mid, buckets[control] / total), strict=True))


class TickStream:
    """The book and its features, fed as the loop feeds them."""

    def __init__(self, step_ns: int) -> None:
        self.book, self.features = Book(), TickFeatures(step_ns)
        self.now_ns = 0

    def take(self, record: Any) -> tuple[bool, npt.NDArray[np.float64] | None]:
        """Whether an event ended, and the row of the step that it closed."""
        if int(record["kind"]) != CONTROL:
            self.book.follow(int(record["sequence"]))
        if int(record["instrument"]) != 0:
            return False, None
        if not ends_event(record):
            self.book.apply(record, self.now_ns)
            return False, None
        self.now_ns = max(self.now_ns, int(record["event_ns"]))
        closed = self.features.close_before(self.now_ns)
        self.book.apply(record, self.now_ns)
        self.features.take(record, self.book)
        return True, closed


def reference_rows(records: npt.NDArray[Any], step_ns: int) -> tuple[Array, Array]:
    """Rows of the closed steps [S, 40], and the open row after each event [E, 40]."""
    stream = TickStream(step_ns)
    closed, opened = [np.zeros((0, len(STEP_FEATURES)))], [np.zeros((0, len(STEP_FEATURES)))]
    for record in records:
        ended, row = stream.take(record)
        if row is not None:
            closed.append(row[None])
        if ended:
            opened.append(stream.features.row()[None])
    return np.concatenate(closed), np.concatenate(opened)
