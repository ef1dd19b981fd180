"""Which contracts of the sample market are listed on a day: expiries, settlement times and strikes.

Data in: session dates (real), spot, a slow volatility. Data out: `Expiry` objects and strike arrays.
Invariants: an expiry, once listed, stays until it expires; a strike stays quoted for at least
`STRIKE_MEMORY_SESSIONS` sessions after it last was near enough to the money, so consecutive days share most
strikes; strikes are multiples of 5 index points; every expiry has at least `MINIMUM_STRIKES`.
Rules, after Cboe's S&P 500 index options: SPX expires on the third Friday and settles at the open (AM);
SPXW expires on the other Fridays and on the last session of a quarter and settles at the close (PM). A
Friday holiday moves the expiry to the session before.
"""

from __future__ import annotations

import calendar
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from functools import cached_property
from zoneinfo import ZoneInfo

import numpy as np
from numpy.typing import NDArray

NEW_YORK = ZoneInfo("America/New_York")
QUOTE_CLOCK = time(15, 45)
SETTLEMENT_CLOCK = {"SPX": time(9, 30), "SPXW": time(16, 0)}
SECONDS_PER_YEAR = 365.0 * 86_400.0

WEEKLY_DAYS, MONTHLY_DAYS, QUARTER_END_DAYS, QUARTERLY_DAYS = 37, 130, 130, 380
MINIMUM_STRIKES = 21
MAXIMUM_IN_RANGE = 27
STRIKE_MEMORY_SESSIONS = 2
INNER_STEP = {5: 5, 10: 5, 15: 5, 20: 10, 25: 5, 30: 10, 40: 20, 50: 25, 75: 25, 100: 50, 150: 50}
"""Index points between strikes in the wings -> near the money."""
INNER_WIDTHS = 0.25  # half-width of the dense part, in standard deviations each way
LOWER_WIDTHS, UPPER_WIDTHS = 2.8, 1.7  # the whole range, in standard deviations below and above the spot
SHORTEST_RANGE_YEARS = 10.0 / 365.0


@dataclass(frozen=True, order=True)
class Expiry:
    """One listed expiration of one root."""

    day: date
    root: str

    @cached_property
    def settles(self) -> datetime:
        return datetime.combine(self.day, SETTLEMENT_CLOCK[self.root], NEW_YORK).astimezone(ZoneInfo("UTC"))

    def tau_years(self, quote_day: date) -> float:
        """Calendar time (365 days) from the day's quote time to settlement."""
        return (self.settles - quote_time(quote_day)).total_seconds() / SECONDS_PER_YEAR


def quote_time(day: date) -> datetime:
    """15:45 in New York, as UTC."""
    return datetime.combine(day, QUOTE_CLOCK, NEW_YORK).astimezone(ZoneInfo("UTC"))


def good_friday(year: int) -> date:
    """Two days before Easter (anonymous Gregorian algorithm)."""
    a, (b, c) = year % 19, divmod(year, 100)
    h = (19 * a + b - b // 4 - (b - (b + 8) // 25 + 1) // 3 + 15) % 30
    i = (32 + 2 * (b % 4) + 2 * (c // 4) - h - c % 4) % 7
    month, day = divmod(h + i - 7 * ((a + 11 * h + 22 * i) // 451) + 114, 31)
    return date(year, month, day + 1) - timedelta(days=2)


class ListingCalendar:
    """Sessions and expiries. Past the last real session, weekdays but fixed holidays count as sessions."""

    def __init__(self, sessions: Sequence[date]) -> None:
        self._sessions = frozenset(sessions)
        self._last = max(sessions)
        horizon = self._last + timedelta(days=QUARTERLY_DAYS + 7)
        self._expiries = self._all_expiries(min(sessions), horizon)

    def is_session(self, day: date) -> bool:
        if day <= self._last:
            return day in self._sessions
        fixed = (day.month, day.day) in {(1, 1), (7, 4), (12, 25)}
        return day.weekday() < calendar.SATURDAY and not fixed and day != good_friday(day.year)

    def at_or_before(self, day: date) -> date:
        while not self.is_session(day):
            day -= timedelta(days=1)
        return day

    def listed(self, day: date) -> list[Expiry]:
        """Expiries quoted on `day`, nearest first; nothing is quoted on the day it expires."""
        chosen = []
        for expiry, kinds in self._expiries.items():
            days = (expiry.day - day).days
            if days > 0 and any(days <= reach for reach in kinds):
                chosen.append(expiry)
        return sorted(chosen)

    def _all_expiries(self, first: date, last: date) -> dict[Expiry, set[int]]:
        """Every expiry with the numbers of days before expiry at which a rule lists it."""
        expiries: dict[Expiry, set[int]] = {}
        day = first
        while day <= last:
            if day.weekday() == calendar.FRIDAY:
                third = 15 <= day.day <= 21
                session = self.at_or_before(day)
                reaches = {WEEKLY_DAYS}
                if third:
                    reaches = {MONTHLY_DAYS, QUARTERLY_DAYS} if day.month % 3 == 0 else {MONTHLY_DAYS}
                expiries.setdefault(Expiry(session, "SPX" if third else "SPXW"), set()).update(reaches)
            if day.month % 3 == 0 and (day + timedelta(days=1)).day == 1:
                quarter_end = Expiry(self.at_or_before(day), "SPXW")
                expiries.setdefault(quarter_end, set()).add(QUARTER_END_DAYS)
            day += timedelta(days=1)
        return expiries


class StrikeBook:
    """Remembers, per expiry, the grid its strikes are listed on and when each strike was last in range."""

    def __init__(self) -> None:
        self._outer_step: dict[Expiry, int] = {}
        self._last_in_range: dict[Expiry, dict[int, int]] = {}

    def quoted(
        self, expiry: Expiry, session: int, *, spot: float, volatility: float, tau_years: float
    ) -> NDArray[np.int64]:
        """Strikes quoted at `session` (a running number); call once per session, in order."""
        width = spot * volatility * max(tau_years, SHORTEST_RANGE_YEARS) ** 0.5
        step = self._outer_step.get(expiry)
        if step is None or not MINIMUM_STRIKES <= len(strikes_in_range(spot, width, step)) <= MAXIMUM_IN_RANGE:
            step = coarsest_step(spot, width)
            self._outer_step[expiry] = step
        seen = self._last_in_range.setdefault(expiry, {})
        seen.update(dict.fromkeys(strikes_in_range(spot, width, step).tolist(), session))
        kept = [strike for strike, last in seen.items() if session - last <= STRIKE_MEMORY_SESSIONS]
        return np.array(sorted(kept), dtype=np.int64)


def strikes_in_range(spot: float, width: float, outer_step: int) -> NDArray[np.int64]:
    """Strikes near the money today, dense around the spot. Width: one standard deviation, in points."""
    outer = _multiples(spot - LOWER_WIDTHS * width, spot + UPPER_WIDTHS * width, outer_step)
    inner_step = INNER_STEP[outer_step]
    inner = _multiples(spot - INNER_WIDTHS * width, spot + INNER_WIDTHS * width, inner_step)
    return np.union1d(inner, outer)


def coarsest_step(spot: float, width: float) -> int:
    """The coarsest wing step that still lists a few strikes more than the minimum."""
    enough = MINIMUM_STRIKES + 1
    return next(
        (step for step in sorted(INNER_STEP, reverse=True) if len(strikes_in_range(spot, width, step)) >= enough),
        min(INNER_STEP),
    )


def _multiples(low: float, high: float, step: int) -> NDArray[np.int64]:
    first, last = int(np.ceil(low / step)), int(np.floor(high / step))
    return np.arange(first, last + 1, dtype=np.int64) * step
