"""The sample market: real inputs, listing rules, quotes, planted damage, determinism, the full set."""

from __future__ import annotations

import csv
import hashlib
from datetime import UTC, date, datetime
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from pipelines.bates import implied_vix
from pipelines.sample_card import DAMAGE, SampleMarket
from pipelines.sample_chain import Expiry, ListingCalendar, StrikeBook, good_friday, quote_time
from pipelines.sample_market import SCHEMA, make_sample_market, price_chain
from pipelines.sample_quotes import FairChain, clean_quotes, make_quotes, tick_ceiling, tick_floor
from pipelines.sample_state import StatePath, build_state_path, load_real_market

SEED = 20140103
FIRST, LAST = date(2015, 8, 10), date(2015, 9, 11)  # a calm fortnight, the crash of 24 August, its aftermath


@pytest.fixture(scope="module")
def path() -> StatePath:
    return build_state_path(load_real_market(), SEED)


@pytest.fixture(scope="module")
def days(path: StatePath) -> list[date]:
    return list(path.dates.astype(datetime))


@pytest.fixture(scope="module")
def chain(path: StatePath, days: list[date]) -> FairChain:
    sessions = [index for index, day in enumerate(days) if FIRST <= day <= LAST]
    return price_chain(path, days, sessions, SEED)[0]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, SampleMarket]:
    out = tmp_path_factory.mktemp("sample")
    return out, make_sample_market(out, first_day=FIRST, last_day=LAST, seed=SEED)


@pytest.fixture(scope="module")
def quotes(small: tuple[Path, SampleMarket]) -> pl.DataFrame:
    local_day = pl.col("quote_time").dt.convert_time_zone("America/New_York").dt.date()
    return pl.read_parquet(small[0] / "quotes/2015.parquet").with_columns(day=local_day)


def hashes(directory: Path) -> dict[str, str]:
    return {
        file.relative_to(directory).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(directory.rglob("*.*"))
    }


class TestState:
    def test_every_day_has_its_real_vix(self, path: StatePath) -> None:
        np.testing.assert_allclose([implied_vix(model) for model in path.models], path.vix, rtol=1e-12)

    def test_covers_all_sessions(self, days: list[date]) -> None:
        assert (days[0], days[-1], len(days)) == (date(2014, 1, 3), date(2018, 12, 31), 1257)

    def test_is_not_a_function_of_vix_alone(self, path: StatePath) -> None:
        for name in ("long_run_variance", "correlation", "volatility_of_variance"):
            values = np.array([getattr(model, name) for model in path.models])
            explained = np.corrcoef(values, path.vix)[0, 1] ** 2
            assert explained < 0.6, name

    def test_rates_rise_over_the_years(self, path: StatePath) -> None:
        assert path.rate(0, 0.25) < 0.004
        assert 0.02 < path.rate(len(path.dates) - 1, 0.25) < 0.03
        assert path.rate(0, 1.0) > path.rate(0, 0.1)


class TestListing:
    def test_good_friday(self) -> None:
        assert [good_friday(year) for year in (2014, 2016, 2019)] == [
            date(2014, 4, 18), date(2016, 3, 25), date(2019, 4, 19),
        ]  # fmt: skip

    def test_quote_time_follows_new_york(self) -> None:
        assert quote_time(date(2014, 1, 3)) == datetime(2014, 1, 3, 20, 45, tzinfo=UTC)
        assert quote_time(date(2014, 7, 3)) == datetime(2014, 7, 3, 19, 45, tzinfo=UTC)

    def test_am_and_pm_settlement(self) -> None:
        monthly, weekly = Expiry(date(2014, 1, 17), "SPX"), Expiry(date(2014, 1, 10), "SPXW")
        assert monthly.settles == datetime(2014, 1, 17, 14, 30, tzinfo=UTC)
        assert weekly.tau_years(date(2014, 1, 3)) == pytest.approx((7 + 0.25 / 24) / 365)

    def test_known_expiries(self, days: list[date]) -> None:
        listed = ListingCalendar(days).listed(date(2014, 3, 24))
        assert Expiry(date(2014, 4, 17), "SPX") in listed  # the third Friday is Good Friday
        assert Expiry(date(2014, 3, 31), "SPXW") in listed  # quarter end, a Monday
        assert Expiry(date(2015, 3, 20), "SPX") in listed  # a year out
        assert all(expiry.day > date(2014, 3, 24) for expiry in listed)

    def test_an_expiry_stays_listed_until_it_expires(self, days: list[date]) -> None:
        listing = ListingCalendar(days)
        seen: set[Expiry] = set()
        for day in days:
            listed = set(listing.listed(day))
            assert len(listed) >= 10
            assert {expiry for expiry in seen if expiry.day > day} <= listed
            seen |= listed

    def test_consecutive_days_share_most_strikes(self, path: StatePath, days: list[date]) -> None:
        listing, book = ListingCalendar(days), StrikeBook()
        previous: dict[Expiry, set[int]] = {}
        shares = []
        for session, day in enumerate(days[:250]):
            current = {
                expiry: set(
                    book.quoted(
                        expiry, session, spot=float(path.spot[session]),
                        volatility=float(path.listing_volatility[session]), tau_years=expiry.tau_years(day),
                    ).tolist()
                )
                for expiry in listing.listed(day)
            }  # fmt: skip
            shares += [len(current[e] & previous[e]) / len(previous[e]) for e in current if e in previous]
            previous = current
        assert np.mean(shares) > 0.93


class TestCleanQuotes:
    def test_ticks(self) -> None:
        price = np.array([0.0, 0.04, 0.05, 2.97, 2.99, 3.0, 3.04, 3.1, 10.0])
        np.testing.assert_allclose(tick_floor(price), [0, 0, 0.05, 2.95, 2.95, 3.0, 3.0, 3.1, 10.0])
        np.testing.assert_allclose(tick_ceiling(price), [0, 0.05, 0.05, 3.0, 3.0, 3.0, 3.1, 3.1, 10.0])

    def test_two_sided_on_the_tick_grid_around_the_fair_price(self, chain: FairChain) -> None:
        clean = clean_quotes(chain, SEED)
        assert np.all((clean.bid >= 0) & (clean.bid < clean.ask))
        for side in (clean.bid, clean.ask):
            hundredths = np.round(side * 100).astype(int)
            np.testing.assert_allclose(side * 100, hundredths, atol=1e-6)
            assert np.all(hundredths % np.where(hundredths < 300, 5, 10) == 0)
        middle, half = 0.5 * (clean.bid + clean.ask), 0.5 * (clean.ask - clean.bid)
        assert np.all(np.abs(middle - chain.price) <= half + 0.1)
        assert np.any(clean.bid == 0.0)
        assert np.all(clean.bid_size[clean.bid == 0.0] == 0)

    def test_noise_is_smaller_than_the_spread(self, chain: FairChain) -> None:
        clean = clean_quotes(chain, SEED)
        quoted = clean.bid > 0
        error = (0.5 * (clean.bid + clean.ask) - chain.price)[quoted]
        assert np.std(error / (clean.ask - clean.bid)[quoted]) < 0.15

    def test_spreads_grow_with_tenor_near_the_money(self, chain: FairChain) -> None:
        clean = clean_quotes(chain, SEED)
        near = np.abs(chain.strike / chain.forward - 1) < 0.02
        short, long = near & (chain.tau_years < 0.1), near & (chain.tau_years > 0.4)
        spread = clean.ask - clean.bid
        assert np.median(spread[long]) > 1.5 * np.median(spread[short])


class TestFiles:
    def test_names_schema_and_order(self, small: tuple[Path, SampleMarket], quotes: pl.DataFrame) -> None:
        assert set(hashes(small[0])) == {"README.md", "underlying.csv", "quotes/2015.parquet"}
        assert quotes.columns[:-1] == SCHEMA.names
        assert quotes["quote_time"].dtype == pl.Datetime("us", "UTC")
        assert set(quotes["cp"]) == {"C", "P"}
        assert set(quotes["root"]) == {"SPX", "SPXW"}
        assert quotes["quote_time"].is_sorted()

    def test_underlying_is_the_real_close(self, small: tuple[Path, SampleMarket], quotes: pl.DataFrame) -> None:
        with (small[0] / "underlying.csv").open(encoding="utf-8", newline="") as stream:
            rows = {row["date"]: row for row in csv.DictReader(stream)}
        assert rows["2015-08-24"]["close"] == "1893.21"
        assert rows["2015-08-24"]["vix"] == "40.74"
        assert rows["1999-01-04"]["vix"] == ""
        assert len(rows) == 5031
        for day, price in quotes.select("day", "underlying_price").unique().iter_rows():
            assert price == float(rows[str(day)]["close"])

    def test_regular_days_have_enough_of_everything(self, quotes: pl.DataFrame) -> None:
        live = quotes.filter(pl.col("expiration") > pl.col("day"))
        per_expiry = live.group_by("day", "root", "expiration").agg(
            strikes=pl.col("strike").n_unique(), rights=pl.col("cp").n_unique()
        )
        assert per_expiry["strikes"].min() >= 20  # type: ignore[operator]
        assert (per_expiry["rights"] == 2).all()
        assert per_expiry.group_by("day").len()["len"].min() >= 10  # type: ignore[operator]

    def test_same_bytes_twice(self, small: tuple[Path, SampleMarket], tmp_path: Path) -> None:
        make_sample_market(tmp_path, first_day=FIRST, last_day=LAST, seed=SEED)
        assert hashes(tmp_path) == hashes(small[0])

    def test_another_seed_changes_quotes_but_not_what_is_real(
        self, small: tuple[Path, SampleMarket], tmp_path: Path
    ) -> None:
        make_sample_market(tmp_path, first_day=FIRST, last_day=LAST, seed=SEED + 1)
        one, other = hashes(small[0]), hashes(tmp_path)
        assert one["underlying.csv"] == other["underlying.csv"]
        assert one["quotes/2015.parquet"] != other["quotes/2015.parquet"]

    def test_refuses_a_range_without_sessions(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="no session"):
            make_sample_market(tmp_path, first_day=date(2013, 1, 1), last_day=date(2013, 2, 1))

    def test_card_says_what_is_real_and_what_is_not(self, small: tuple[Path, SampleMarket]) -> None:
        text = " ".join((small[0] / "README.md").read_text(encoding="utf-8").split())
        assert "No claim of model quality rests on this data." in text
        assert "Every option quote is simulated." in text
        assert f"{sum(small[1].quotes_by_year.values()):,} quotes" in text


class TestDamage:
    def test_counts_are_what_the_rows_show(self, chain: FairChain) -> None:
        damaged, counts = make_quotes(chain, SEED)
        rows = len(chain.price) - counts["gap"] - counts["expiry_gap"] + counts["duplicate"] + counts["expired"]
        assert len(damaged.source) == rows
        assert np.count_nonzero(damaged.bid > damaged.ask) == counts["crossed"]
        assert np.count_nonzero(damaged.bid < 0) == counts["negative"]
        assert np.count_nonzero(np.isnan(damaged.bid) | np.isnan(damaged.ask)) == counts["not_a_number"]
        assert np.count_nonzero(damaged.expired_days) == counts["expired"]
        assert len(np.unique(damaged.source)) == rows - counts["duplicate"] - counts["expired"]

    def test_stale_quotes_are_those_of_the_session_before(self, chain: FairChain) -> None:
        clean = clean_quotes(chain, SEED)
        damaged, counts = make_quotes(chain, SEED)
        price = {
            key: (bid, ask)
            for *key_parts, bid, ask in zip(
                chain.day, chain.expiry, chain.strike, chain.is_call, clean.bid, clean.ask, strict=True
            )
            for key in [tuple(key_parts)]
        }
        stale = 0
        for row, bid, ask in zip(damaged.source, damaged.bid, damaged.ask, strict=True):
            day, *contract = chain.day[row], chain.expiry[row], chain.strike[row], chain.is_call[row]
            if (bid, ask) != (clean.bid[row], clean.ask[row]) and 0 <= bid <= ask:
                assert (bid, ask) == price[(day - 1, *contract)]
                stale += 1
        assert stale == counts["stale"] > 0

    def test_a_few_quotes_are_missing_every_day(self, chain: FairChain) -> None:
        damaged, _ = make_quotes(chain, SEED)
        for day in np.unique(chain.day):
            present = np.unique(damaged.source[chain.day[damaged.source] == day])
            assert len(present) < np.count_nonzero(chain.day == day)

    def test_duplicates_are_exact_rows(self, quotes: pl.DataFrame, small: tuple[Path, SampleMarket]) -> None:
        assert quotes.height - quotes.unique().height == small[1].damaged["duplicate"] > 0


@pytest.mark.slow
def test_full_set(tmp_path: Path) -> None:
    """Counts, sizes and damage of the whole set; about twenty seconds."""
    result = make_sample_market(tmp_path)
    assert list(result.quotes_by_year) == [2014, 2015, 2016, 2017, 2018]
    assert result.sessions == 1257
    assert result.expiries_per_session[0] >= 10
    assert result.strikes_per_expiry[0] >= 20
    assert sum(result.files.values()) <= 12_000_000
    assert max(result.files.values()) <= 4_000_000
    assert set(result.damaged) == set(DAMAGE)
    assert all(count > 0 for count in result.damaged.values())
    in_files = sum(count for kind, count in result.damaged.items() if "gap" not in kind)
    assert in_files < 0.01 * sum(result.quotes_by_year.values())
    per_day = pl.concat(
        pl.read_parquet(file).filter(pl.col("expiration") > pl.col("quote_time").dt.date())
        for file in sorted(tmp_path.glob("quotes/*.parquet"))
    ).group_by("quote_time").agg(expiries=pl.struct("root", "expiration").n_unique())  # fmt: skip
    assert per_day.height == 1257
    assert per_day["expiries"].min() >= 10  # type: ignore[operator]
