"""A tiny deterministic option market, written as vendors write theirs, and the overrides of a run on it.

Black-76 prices of a moving smile with a little noise per contract, so that neither the prior nor a fitted baseline is
perfect: 24 snapshots, 4 expiries, 12 strikes, calls and puts. Whatever a test wants damaged it changes in the table.
"""

from __future__ import annotations

import datetime
from pathlib import Path

import numpy as np
import polars as pl

from pipelines.config import Config, load_config
from serving import black76
from tests.tiny_registry import tracking_uri

START = datetime.date(2024, 1, 2)
EXPIRIES = tuple(datetime.date(2024, month, day) for month, day in ((2, 16), (3, 15), (4, 19), (6, 21)))
SNAPSHOTS = 24
TEST_FROM = "2024-01-29"  # 19 snapshots before it, 5 from it on
RATE, DIVIDEND = 0.03, 0.01
SMALL_LOOP = ("trainer.epochs=4", "trainer.rows_per_snapshot=24", "hardware=cpu", "hardware.threads=1")
SMALL_SIZES = {
    "pricing_lstm": ("model.hidden=8", "model.context=4", "model.head_width=8"),
    "pricing_transformer": ("model.width=8", "model.heads=2", "model.band=3", "model.context=4", "model.head_width=8"),
    "surface_vae": ("model.latent=2", "model.width=16"),
}
SMALL_NET = (*SMALL_SIZES["pricing_lstm"], *SMALL_LOOP)


def days(count: int = SNAPSHOTS) -> list[datetime.date]:
    """Weekdays from START on."""
    first = np.datetime64(START)
    return [day.astype(object) for day in np.busday_offset(first, np.arange(count), roll="forward")]


def market(
    snapshots: int = SNAPSHOTS,
    *,
    seed: int = 5,
    underlying: str = "AB",
    spot: float = 400.0,
    times: tuple[str, ...] = ("15:45",),
    noise: float = 0.002,
) -> pl.DataFrame:
    """Quotes with canonical names: ts (ISO, UTC), underlying, root, expiry, strike, right, bid, ask, underlying_price.

    `times` gives several snapshots a day; `snapshots` counts days.
    """
    generator = np.random.default_rng(seed)
    strikes = np.round(spot * np.linspace(0.88, 1.12, 12))
    level, frames = 0.2, []
    for day in days(snapshots):
        for time in times:
            move = 0.012 * generator.standard_normal()
            spot *= float(np.exp(move))
            level = float(np.clip(level - 0.8 * move + 0.004 * generator.standard_normal(), 0.12, 0.4))
            price = round(spot, 2)
            for expiry in EXPIRIES:
                frames.append(_chain(day, time, expiry, price, level, strikes, noise, generator, underlying))
    return pl.concat(frames)


def _chain(
    day: datetime.date, time: str, expiry: datetime.date, spot: float, level: float, strikes: np.ndarray,
    noise: float, generator: np.random.Generator, underlying: str,
) -> pl.DataFrame:  # fmt: skip
    tau = (expiry - day).days / 365.0
    forward, discount = spot * np.exp((RATE - DIVIDEND) * tau), float(np.exp(-RATE * tau))
    x = np.log(strikes / forward) / np.sqrt(tau)
    volatility = level + 0.01 * np.sqrt(tau) - 0.08 * x + 0.05 * x**2 + noise * generator.standard_normal(len(strikes))
    both = []
    for right, sign in (("C", 1.0), ("P", -1.0)):
        fair = black76.price(np.full_like(strikes, forward), strikes, np.full_like(strikes, tau), volatility,
                             np.full_like(strikes, discount), np.full_like(strikes, sign))  # fmt: skip
        half = 0.004 * fair + 0.01
        both.append(pl.DataFrame({
            "ts": f"{day}T{time}:00Z", "underlying": underlying, "root": underlying, "expiry": str(expiry),
            "strike": strikes, "right": right, "bid": np.maximum(fair - half, 0.0), "ask": fair + half,
            "underlying_price": spot,
        }))  # fmt: skip
    return pl.concat(both)


def as_cboe(table: pl.DataFrame) -> pl.DataFrame:
    """The same in the layout `cboe_snapshot`: a date instead of a time, SPXW for the root."""
    return table.select(
        quote_date=pl.col("ts").str.slice(0, 10).str.to_date(), root=pl.lit("SPXW"),
        expiration=pl.col("expiry").str.to_date(), strike="strike", cp="right", bid="bid", ask="ask",
        underlying_last="underlying_price", volume=pl.lit(1), open_interest=pl.lit(2),
    )  # fmt: skip


def write(table: pl.DataFrame, path: Path) -> Path:
    """As CSV or Parquet, by the suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        table.write_parquet(path)
    else:
        table.write_csv(path)
    return path


def places(folder: Path) -> list[str]:
    """Overrides that keep everything a run writes in `folder`."""
    return [f"registry.tracking_uri={tracking_uri(folder)}", f"storage.url={folder}/store", f"out={folder}/out"]


def overrides(folder: Path, quotes: Path, *more: str, family: str = "pricing_lstm") -> list[str]:
    """A whole run of a small net on `quotes` (generic layout), everything in `folder`; `more` wins."""
    return [
        "data=generic", f"data.path={quotes}", "split=short", f"split.test_from={TEST_FROM}",
        "split.validation_dates=3", "features.window=5", "features.smallest_rows=5",
        f"model={family}", *SMALL_SIZES[family], *SMALL_LOOP, *places(folder), *more,
    ]  # fmt: skip


def featured(folder: Path, table: pl.DataFrame, *more: str) -> Config:
    """Ingest and features of a table, in `folder`; the configuration of the run."""
    from pipelines import features, ingest

    cfg = load_config(overrides(folder, write(table, folder / "quotes.parquet"), *more))
    ingest.run(cfg)
    features.run(cfg)
    return cfg
