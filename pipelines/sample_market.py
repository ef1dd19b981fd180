"""Make the sample market: real S&P 500 bars and VIX, and option quotes implied from them.

Data in: the `arch` wheel (no download). Data out, in `out_dir`: `underlying.csv` (real),
`quotes/<year>.parquet` (simulated from a Bates model whose variance state reproduces each day's real VIX),
`README.md` (the data card).
Invariants: the same bytes at every run with the same seed in one environment; no file above
`FILE_LIMIT_BYTES`; every quote's underlying price is that day's real close. No claim about a model's
quality may rest on these quotes.
Run: python -m pipelines.sample_market --out data --card docs/data-card-sample.md
"""

from __future__ import annotations

import argparse
import csv
import logging
import math
from collections.abc import Sequence
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipelines.bates import forward_prices, log_contract_variance
from pipelines.sample_card import SampleMarket, render_card
from pipelines.sample_chain import Expiry, ListingCalendar, StrikeBook, quote_time
from pipelines.sample_quotes import FairChain, Quotes, make_quotes
from pipelines.sample_state import (
    RealMarket,
    StatePath,
    autoregression,
    build_state_path,
    generator,
    load_real_market,
)

log = logging.getLogger(__name__)

SEED = 20140103
FIRST_DAY, LAST_DAY = date(2014, 1, 3), date(2018, 12, 31)
FILE_LIMIT_BYTES = 4_000_000
EXPIRY_CLOCK_DEVIATION = 0.008  # relative, of each expiry's time to expiry
EXPIRY_CLOCK_HALF_LIFE_SESSIONS = 8.0

SCHEMA = pa.schema([
    ("quote_time", pa.timestamp("us", tz="UTC")), ("root", pa.string()), ("expiration", pa.date32()),
    ("strike", pa.float64()), ("cp", pa.string()), ("bid", pa.float64()), ("ask", pa.float64()),
    ("bid_size", pa.int32()), ("ask_size", pa.int32()), ("underlying_price", pa.float64()),
    ("volume", pa.int32()), ("open_interest", pa.int32()),
])  # fmt: skip


def make_sample_market(
    out_dir: Path, *, first_day: date = FIRST_DAY, last_day: date = LAST_DAY, seed: int = SEED
) -> SampleMarket:
    """Write the sample market of the sessions between two days, both included."""
    market = load_real_market()
    path = build_state_path(market, seed)
    days: list[date] = list(path.dates.astype(datetime))
    sessions = [index for index, day in enumerate(days) if first_day <= day <= last_day]
    if not sessions:
        raise ValueError(f"no session with a real VIX between {first_day} and {last_day}")
    chain, expiries = price_chain(path, days, sessions, seed)
    quotes, damaged = make_quotes(chain, seed)

    (out_dir / "quotes").mkdir(parents=True, exist_ok=True)
    years = np.array([day.year for day in days])[chain.day[quotes.source]]
    quotes_by_year: dict[int, int] = {}
    names = ["underlying.csv"]
    write_underlying(market, out_dir / names[0])
    for year in sorted(set(years.tolist())):
        part = quotes.take(years == year)
        names.append(f"quotes/{year}.parquet")
        write_quotes(chain, part, path, days, expiries, out_dir / names[-1])
        quotes_by_year[year] = len(part.source)
    files = {name: (out_dir / name).stat().st_size for name in names}
    too_large = {name: size for name, size in files.items() if size > FILE_LIMIT_BYTES}
    if too_large:
        raise ValueError(f"files above {FILE_LIMIT_BYTES} bytes: {too_large}")
    strikes, expiry_counts = _counts(chain)
    result = SampleMarket(
        seed=seed,
        first_day=days[sessions[0]],
        last_day=days[sessions[-1]],
        files=files,
        sessions=len(sessions),
        quotes_by_year=quotes_by_year,
        expiries_per_session=expiry_counts,
        strikes_per_expiry=strikes,
        damaged=damaged,
        expiry_clock_deviation=EXPIRY_CLOCK_DEVIATION,
    )
    (out_dir / "README.md").write_text(render_card(result), encoding="utf-8")
    return result


def price_chain(
    path: StatePath, days: Sequence[date], sessions: Sequence[int], seed: int
) -> tuple[FairChain, list[Expiry]]:
    """Fair prices of every listed contract on the given sessions, and the expiries they number."""
    listing, book = ListingCalendar(days), StrikeBook()
    listed = {session: listing.listed(days[session]) for session in sessions}
    expiries = sorted({expiry for chosen in listed.values() for expiry in chosen})
    number = {expiry: index for index, expiry in enumerate(expiries)}
    clocks = {expiry: expiry_clock(expiry, len(days), seed) for expiry in expiries}
    columns: dict[str, list[NDArray[Any]]] = {name: [] for name in FairChain.__annotations__}
    for session in sessions:
        spot, model = float(path.spot[session]), path.models[session]
        for expiry in listed[session]:
            tau = expiry.tau_years(days[session])
            clock_tau = tau * float(clocks[expiry][session])
            strikes = book.quoted(
                expiry, session, spot=spot, volatility=float(path.listing_volatility[session]), tau_years=tau
            )
            forward = spot * math.exp(path.carry(session, tau) * tau)
            discount = math.exp(-path.rate(session, tau) * tau)
            prices = forward_prices(model, forward, strikes, clock_tau)
            size = 2 * len(strikes)
            row = {
                "day": np.full(size, session),
                "expiry": np.full(size, number[expiry]),
                "strike": np.repeat(strikes, 2),
                "is_call": np.tile([True, False], len(strikes)),
                "tau_years": np.full(size, tau),
                "forward": np.full(size, forward),
                "total_variance": np.full(size, log_contract_variance(model, clock_tau) * clock_tau),
                "discount": np.full(size, discount),
                "price": discount * np.column_stack((prices.call, prices.put)).ravel(),
            }
            for name, values in row.items():
                columns[name].append(values)
    return FairChain(**{name: np.concatenate(values) for name, values in columns.items()}), expiries


def expiry_clock(expiry: Expiry, sessions: int, seed: int) -> NDArray[Any]:
    """The expiry's own factor on its tenor, one per session: a small common shift of its volatilities."""
    chance = generator(seed, f"clock/{expiry.root}/{expiry.day.isoformat()}")
    noise = autoregression(chance.standard_normal(sessions), EXPIRY_CLOCK_HALF_LIFE_SESSIONS)
    return np.asarray(1.0 + EXPIRY_CLOCK_DEVIATION * np.clip(noise, -3.0, 3.0))


def write_underlying(market: RealMarket, file: Path) -> None:
    """Real daily bars; an empty VIX where the source has none."""
    with file.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["date", "open", "high", "low", "close", "vix"])
        for day, *bar, vix in zip(
            market.dates, market.open, market.high, market.low, market.close, market.vix, strict=True
        ):
            writer.writerow([str(day), *(f"{value:.2f}" for value in bar), f"{vix:.2f}" if np.isfinite(vix) else ""])


def write_quotes(
    chain: FairChain,
    quotes: Quotes,
    path: StatePath,
    days: Sequence[date],
    expiries: Sequence[Expiry],
    file: Path,
) -> None:
    """One year of quotes as Parquet, with fixed writer options so that equal quotes give equal bytes."""
    source = quotes.source
    day = chain.day[source]
    ordinal = np.array([d.toordinal() for d in days]) - date(1970, 1, 1).toordinal()
    expiration = np.array([e.day.toordinal() for e in expiries]) - date(1970, 1, 1).toordinal()
    microseconds = np.zeros(len(days), dtype=np.int64)
    for session in np.unique(day):
        microseconds[session] = int(quote_time(days[session]).timestamp()) * 1_000_000
    roots = pa.array([expiry.root for expiry in expiries])
    expired = quotes.expired_days > 0
    table = pa.table(
        [
            pa.array(microseconds[day]).cast(SCHEMA.field("quote_time").type),
            roots.take(pa.array(chain.expiry[source])),
            pa.array(
                np.where(expired, ordinal[day] - quotes.expired_days, expiration[chain.expiry[source]]).astype(np.int32)
            ).cast(pa.date32()),
            pa.array(chain.strike[source].astype(np.float64)),
            pa.array(["P", "C"]).take(pa.array(chain.is_call[source].astype(np.int8))),
            pa.array(quotes.bid),
            pa.array(quotes.ask),
            pa.array(quotes.bid_size.astype(np.int32)),
            pa.array(quotes.ask_size.astype(np.int32)),
            pa.array(path.spot[day]),
            pa.array(quotes.volume.astype(np.int32)),
            pa.array(quotes.open_interest.astype(np.int32)),
        ],
        schema=SCHEMA,
    )
    pq.write_table(
        table, file, compression="zstd", compression_level=9, use_dictionary=True, version="2.6",
        data_page_version="2.0", row_group_size=1_000_000, dictionary_pagesize_limit=2_000_000,
    )  # fmt: skip


def _counts(chain: FairChain) -> tuple[tuple[int, float, int], tuple[int, float, int]]:
    """Fewest, mean and most strikes per expiry, and expiries per session, as listed."""
    pairs, rows = np.unique(chain.day * 100_000 + chain.expiry, return_counts=True)
    expiries = np.unique(pairs // 100_000, return_counts=True)[1]
    strikes = rows // 2

    def summary(values: NDArray[Any]) -> tuple[int, float, int]:
        return int(values.min()), round(float(values.mean()), 1), int(values.max())

    return summary(strikes), summary(expiries)


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; exit code 0 when the set was written."""
    parser = argparse.ArgumentParser(description="Make the sample market (real index and VIX, implied option quotes).")
    parser.add_argument("--out", type=Path, default=Path("data"), help="directory to write (default: data)")
    parser.add_argument("--card", type=Path, default=None, help="also write the data card here")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    started = datetime.now()
    result = make_sample_market(options.out)
    if options.card is not None:
        options.card.parent.mkdir(parents=True, exist_ok=True)
        options.card.write_text((options.out / "README.md").read_text(encoding="utf-8"), encoding="utf-8")
    log.info(
        "%d sessions, %d quotes, %d bytes in %s", result.sessions, sum(result.quotes_by_year.values()),
        sum(result.files.values()), timedelta(seconds=(datetime.now() - started).seconds),
    )  # fmt: skip
    log.info("damaged rows: %s", result.damaged)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
