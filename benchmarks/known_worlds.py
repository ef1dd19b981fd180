"""How near the nets come to the truth where the truth is known: Black-Scholes, Heston and Bates worlds.

In: nothing but the cases below. Each path of a case is simulated (benchmarks/simulated_market.py), written as quotes
and run through the project's stages: ingest, features, training with its share of trust, prediction. Out:
`benchmarks/results/known_worlds.jsonl` and `.md`; each value is the mean over a case's paths, `spread` their standard
deviation.

Metrics, over the scored quotes of the test dates:
  price_mape          mean |price / exact price - 1|, percent; the price is the host's, with `forward_model` and
                      `discount_model` of the features stage
  iv_rmse             against the volatility of the quoted mids, vol points; what the evaluation of real chains knows
  iv_rmse_exact       against the volatility of the exact prices
  distance            iv_rmse less that of `attainable`
  distance_ratio      iv_rmse over that of `attainable`
  delta_error, ...    mean |Greek / exact Greek - 1|, percent, where the exact one is at least a hundredth of the
                      largest of its day and expiry; `_p99`: its 99th percentile. Exact: central differences of the
                      exact price in Black-Scholes worlds, else Black-76's at the exact volatility, forward and
                      discount, since that is what the host's Greeks mean (docs/conventions.md)
  trust               share of the correction that the net's head believes
Subjects: the nets; the baselines; `attainable`: the exact price given the true state, which misses the mids by
rounding alone; `exact_volatility`: prices of the exact volatility with the host's forward and discount;
`state_from_anchors`: the true model, its variance inferred from the anchors' quotes of t: what a predictor could know,
and so how much of a distance is left to learn.

A path that is finished is kept below the work folder and found again while code, configuration and libraries are the
same.

Run: python -m benchmarks.known_worlds [--cases heston bates] [--paths 3] [--work DIR] [--results DIR]
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
from scipy.optimize import minimize_scalar

from benchmarks.accuracy_keys import code_hash, key_of, libraries
from benchmarks.known_scores import scores, smiles
from benchmarks.results import FOLDER, write_results
from benchmarks.simulated_market import (
    MarketDay,
    Quoting,
    Setting,
    bates_days,
    black_scholes_days,
    exact_prices,
    heston_days,
    is_flat,
    write_quotes,
)
from pipelines.bates import BatesParameters
from pipelines.config import Config, config_hash, load_config
from pipelines.lineage import ROOT
from serving import black76
from serving.last_seen import Anchor, AnchorTarget, LastSeen, find_anchors, last_seen
from serving.surface import build_surface

Array = npt.NDArray[np.float64]

log = logging.getLogger("strikeforge.known_worlds")

PATHS, DAYS, TEST_DAYS = 3, 90, 25
DAY_ZERO = np.datetime64("2018-01-01")  # stands in for the first test date where only the rest of a key counts
NETS = ("pricing_lstm", "pricing_transformer")
BASELINES = ("sticky_strike", "anchored_sticky_strike", "regression_anchored", "lightgbm_anchored")
LARGEST_VARIANCE = 4.0  # per year, when the variance is inferred

# Made up, of the size of published fits to S&P 500 options.
HESTON = BatesParameters(
    variance=0.03, mean_reversion_per_year=4.0, long_run_variance=0.035, volatility_of_variance=0.6, correlation=-0.7
)
BATES = replace(HESTON, jump_intensity_per_year=1.0, jump_mean_log=-0.05, jump_deviation_log=0.05)
VOLATILITY = 0.16


@dataclass(frozen=True)
class Case:
    """A world: how its days come about, and how its quotes are made of prices."""

    days: Callable[[np.random.Generator], list[MarketDay]]
    quoting: Quoting


CASES: Mapping[str, Case] = {
    "black_scholes": Case(lambda chance: black_scholes_days(DAYS, volatility=VOLATILITY, generator=chance), Quoting()),
    "black_scholes_unrounded": Case(
        lambda chance: black_scholes_days(DAYS, volatility=VOLATILITY, generator=chance), Quoting(tick=0.0)
    ),
    "black_scholes_carry_5": Case(
        lambda chance: black_scholes_days(
            DAYS, volatility=VOLATILITY, generator=chance, setting=Setting(rate=0.05, carry=0.05)
        ),
        Quoting(),
    ),
    "heston": Case(lambda chance: heston_days(DAYS, HESTON, generator=chance), Quoting()),
    "bates": Case(lambda chance: bates_days(DAYS, BATES, generator=chance), Quoting()),
}


def run_path(case: Case, seed: int, folder: Path, nets: Sequence[str] = NETS) -> dict[tuple[str, str], float]:
    """One path through all stages, in `folder`; a value per (subject, metric)."""
    from models.pricing import PricingNet
    from pipelines import features, ingest
    from pipelines.baselines import predict_all
    from pipelines.dataset import FeatureStore
    from pipelines.tasks.pricing import predict
    from pipelines.tasks.pricing_evaluation import test_rows
    from pipelines.trust import fit_trusted

    chance = np.random.default_rng(seed)
    days = case.days(chance)
    truth = write_quotes(days, folder / "quotes.parquet", quoting=case.quoting, generator=chance)
    configs = {name: _config(folder, name, seed, days[-TEST_DAYS].ts) for name in nets}
    anyone = next(iter(configs.values()))
    ingest.run(anyone)
    features.run(anyone)
    store = FeatureStore.open(folder / "features")
    baselines = predict_all(store, seed=seed, threads=1)
    predictions = {name: baselines[name] for name in BASELINES}
    trusts: dict[tuple[str, str], float] = {}
    for name, cfg in configs.items():
        net = fit_trusted(cfg, store, folder / "checkpoints" / name).net
        assert isinstance(net, PricingNet)
        predictions[name], trusts[name, "trust"] = predict(net, store, "test"), float(net.head.trust)
    table = _with_truth(test_rows(store), truth)
    anchors = found_anchors(folder / "ingest" / "quotes.parquet", anyone)
    predictions["state_from_anchors"] = _state_from_anchors(table, {day.ts: day for day in days}, anchors)
    predictions["exact_volatility"] = table["exact_volatility"].to_numpy()
    table = table.with_columns(pl.Series(f"iv_{name}", volatility) for name, volatility in predictions.items())
    return trusts | scores(table, days)


def _config(folder: Path, net: str, seed: int, test_from: np.datetime64) -> Config:
    return load_config([
        "data=generic", f"data.path={folder / 'quotes.parquet'}", "split=short", "trainer=short", f"model={net}",
        f"split.test_from={test_from.astype('datetime64[D]')}", f"out={folder}", f"seed={seed}",
        "hardware.threads=1", "hardware.accelerator=cpu", "trainer.resume=false",
    ])  # fmt: skip


def _with_truth(rows: pl.DataFrame, truth: pl.DataFrame) -> pl.DataFrame:
    """Scored rows beside the exact figures of the same quotes."""
    identity = ["ts", "underlying", "root", "expiry", "strike", "right"]
    exact = truth.select(
        *(pl.col(name).dt.replace_time_zone("UTC") if name in ("ts", "expiry") else name for name in identity),
        "underlying_price", "exact_price", "exact_forward", "exact_discount", "exact_volatility",
    )  # fmt: skip
    joined = rows.rename({"right_sign": "sign"}).join(exact, on=identity, how="left", validate="1:1")
    assert not joined["exact_price"].null_count(), "every scored quote is one that was written"
    return joined


def found_anchors(quotes: Path, cfg: Config) -> dict[np.datetime64, list[Anchor]]:
    """The anchors of each snapshot but the first, as the features stage finds them."""
    from pipelines.snapshots import read_snapshots

    targets = tuple(AnchorTarget(anchor.tenor_days, anchor.moneyness) for anchor in cfg.data.anchors)
    found: dict[np.datetime64, list[Anchor]] = {}
    last: LastSeen | None = None
    for _, snapshot in read_snapshots(quotes):
        if last is not None:
            found[snapshot.ts] = find_anchors(snapshot, last, targets)
        last = last_seen(build_surface(snapshot))
    return found


def _state_from_anchors(
    table: pl.DataFrame, days: Mapping[np.datetime64, MarketDay], anchors: Mapping[np.datetime64, list[Anchor]]
) -> Array:
    """Volatilities of the true model with the variance that fits the anchors' of t best."""
    out = np.empty(len(table))
    states: dict[np.datetime64, MarketDay] = {}
    for ts, rows, tau, strike, _ in smiles(table):
        if ts not in states:
            states[ts] = infer_variance(days[ts], anchors[ts])
        out[rows] = model_volatility(states[ts], tau, strike)
    return out


def infer_variance(day: MarketDay, anchors: Sequence[Anchor]) -> MarketDay:
    """The day with the variance state (a constant volatility: the variance) that fits the anchors' volatilities best.

    Least squares in volatility; the true variance has no part in it.
    """
    flat = is_flat(day.parameters)
    wanted = np.array([anchor.volatility for anchor in anchors])

    def with_variance(variance: float) -> MarketDay:
        long_run = variance if flat else day.parameters.long_run_variance
        return replace(day, parameters=replace(day.parameters, variance=variance, long_run_variance=long_run))

    def misfit(root: float) -> float:
        state = with_variance(root**2)
        fitted = [model_volatility(state, one.tau, np.array([one.strike]))[0] for one in anchors]
        return 1e4 * float(np.sum((np.array(fitted) - wanted) ** 2))

    found = minimize_scalar(misfit, bounds=(1e-3, math.sqrt(LARGEST_VARIANCE)), method="bounded",
                            options={"xatol": 1e-7})  # fmt: skip
    return with_variance(float(found.x) ** 2)


def model_volatility(day: MarketDay, tau: float, strike: Array) -> Array:
    """Black-76 volatility of the exact out-of-the-money price; 0 where that is too small to hold one."""
    forward, discount = day.forward(tau), day.discount(tau)
    right = np.where(strike >= forward, 1.0, -1.0)
    price = exact_prices(day, tau, strike, right)
    volatility, _ = black76.implied_volatility(price, forward, strike, tau, discount, right)
    return np.where(np.isfinite(volatility), volatility, 0.0)


NOTE = (
    f"{DAYS} days a path, the last {TEST_DAYS} of them test dates; three anchors. What the metrics and subjects are: "
    "benchmarks/known_worlds.py. Bars: Black-Scholes worlds, price MAPE <= 0.1 %, Greeks within 1 %."
)
UNITS = {"price_mape": "%", "iv_rmse": "vol points", "iv_rmse_exact": "vol points", "distance": "vol points",
         "distance_ratio": "ratio", "trust": "share"}  # fmt: skip


def rows_of(case: str, paths: Sequence[Mapping[tuple[str, str], float]]) -> list[dict[str, Any]]:
    """Result rows of one case: mean over its paths, standard deviation beside it."""
    out = []
    for subject, metric in paths[0]:
        values = np.array([path[subject, metric] for path in paths if (subject, metric) in path])
        spread = float(values.std(ddof=1)) if values.size > 1 else 0.0
        out.append({"case": case, "subject": subject, "metric": metric, "unit": UNITS.get(metric, "%"),
                    "value": float(values.mean()), "spread": spread, "paths": len(values)})  # fmt: skip
    return out


def finished_path(name: str, seed: int, code: str, work: Path) -> dict[tuple[str, str], float]:
    """`run_path`, or what it gave before with the same code, configuration and libraries."""
    with tempfile.TemporaryDirectory() as folder:
        configurations = [config_hash(_config(Path(folder), net, seed, DAY_ZERO)) for net in NETS]
        file = work / f"{name}-{seed}-{key_of(configurations, code, libraries())}.json"
        if not file.exists():
            begin = time.perf_counter()
            found = run_path(CASES[name], seed, Path(folder))
            log.info("%s, path %d: %.0f s", name, seed, time.perf_counter() - begin)
            aside = file.with_suffix(".new")
            aside.write_text(json.dumps([[*key, value] for key, value in found.items()]))
            aside.replace(file)
    return {(subject, metric): value for subject, metric, value in json.loads(file.read_text())}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the cases, write the results, say where they are."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stderr)
    parser = argparse.ArgumentParser(prog="python -m benchmarks.known_worlds")
    parser.add_argument("--paths", type=int, default=PATHS, help="paths of each case")
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--work", type=Path, default=ROOT / "out" / "known_worlds", help="folder of finished paths")
    parser.add_argument("--results", type=Path, help="folder of the results; without it a part goes below --work")
    chosen = parser.parse_args(arguments)
    if chosen.paths < 1:
        parser.error(f"--paths {chosen.paths}: at least one")
    chosen.work.mkdir(parents=True, exist_ok=True)
    code = code_hash("benchmarks.known_worlds", "pipelines.layouts.generic")
    seeds = range(1, chosen.paths + 1)
    rows: list[dict[str, Any]] = []
    for name in chosen.cases:
        rows += rows_of(name, [finished_path(name, seed, code, chosen.work) for seed in seeds])
    whole = chosen.paths >= PATHS and set(chosen.cases) == set(CASES)
    folder = chosen.results or (FOLDER if whole else chosen.work / "results")
    written = write_results("known_worlds", rows, note=NOTE, folder=folder)
    sys.stdout.write("".join(f"{path}\n" for path in written))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
