"""Known worlds: scores against what they must be, the state inferred from anchors, a short path to the results."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from benchmarks import known_worlds
from benchmarks.known_scores import GREEKS, exact_greeks, host_values, scores
from benchmarks.known_worlds import HESTON, Case, infer_variance, model_volatility, rows_of, run_path
from benchmarks.simulated_market import MarketDay, Quoting, black_scholes_days, chain, heston_days
from pipelines.bates import BatesParameters
from serving.last_seen import Anchor
from serving.surface import ExpiryKey

FLAT = BatesParameters(
    variance=0.04, mean_reversion_per_year=1.0, long_run_variance=0.04, volatility_of_variance=0.0, correlation=0.0
)
NOW = np.datetime64("2018-03-07T20:00:00", "ns")


def a_day(parameters: BatesParameters) -> MarketDay:
    return MarketDay(NOW, 3000.0, parameters, 0.02, 0.01)


def scored_table(day: MarketDay) -> pl.DataFrame:
    """Out-of-the-money contracts of a day, priced by a host that knows forward and discount."""
    table = chain(day, quoting=Quoting(tick=0.0)).with_columns(
        pl.col("ts", "expiry").dt.replace_time_zone("UTC"),
        sign=pl.when(pl.col("right") == "C").then(1.0).otherwise(-1.0),
        forward_model=pl.col("exact_forward"), discount_model=pl.col("exact_discount"),
        iv_market=pl.col("exact_volatility"),
    )  # fmt: skip
    outside = pl.col("sign") * (pl.col("strike") - pl.col("exact_forward")) > 0
    return table.filter(outside & (pl.col("exact_price") > 0.2) & (pl.col("tau") > 5 / 365))


@pytest.mark.parametrize("parameters", [FLAT, HESTON], ids=["black_scholes", "heston"])
def test_the_truth_scores_nothing(parameters: BatesParameters) -> None:
    day = a_day(parameters)
    table = scored_table(day).with_columns(iv_truth=pl.col("exact_volatility"))
    found = scores(table, [day])
    assert found["truth", "price_mape"] < 1e-6
    assert found["truth", "iv_rmse"] == found["truth", "iv_rmse_exact"] == found["truth", "distance"] == 0.0
    for greek in GREEKS:
        assert found["truth", f"{greek}_error_p99"] < 0.02, greek  # percent: what central differences are good for
    assert ("truth", "distance_ratio") not in found, "nothing to divide by"


def test_a_volatility_one_point_too_high_scores_one_point_and_its_vega() -> None:
    day = a_day(FLAT)
    table = scored_table(day).with_columns(iv_high=pl.col("exact_volatility") + 0.01)
    found = scores(table, [day])
    assert found["high", "iv_rmse"] == pytest.approx(1.0)
    vega = host_values(table, table["exact_volatility"].to_numpy())["vega"]
    first_order = 100.0 * float(np.mean(vega * 0.01 / table["exact_price"].to_numpy()))
    assert found["high", "price_mape"] == pytest.approx(first_order, rel=0.15)
    assert found["high", "price_mape"] > first_order, "prices are convex in volatility outside the money"


def test_distances_are_taken_from_what_rounding_leaves() -> None:
    day = a_day(FLAT)
    table = scored_table(day).with_columns(iv_market=pl.col("exact_volatility") + 0.001)
    found = scores(table.with_columns(iv_truth=pl.col("exact_volatility"), iv_off=pl.lit(0.203)), [day])
    assert found["attainable", "iv_rmse"] == pytest.approx(0.1)
    assert found["truth", "distance"] == pytest.approx(0.0, abs=1e-12)
    assert found["off", "iv_rmse"] == pytest.approx(0.2)
    assert found["off", "distance"] == pytest.approx(0.1)
    assert found["off", "distance_ratio"] == pytest.approx(2.0)


def test_negligible_greeks_are_left_out_by_day_and_expiry() -> None:
    table = scored_table(a_day(FLAT))
    greeks, live = exact_greeks(table, [a_day(FLAT)])
    for name in GREEKS:
        size = pl.DataFrame({"expiry": table["expiry"], "size": np.abs(greeks[name]), "live": live[name]})
        for _, smile in size.group_by("expiry"):
            largest = smile["size"].max()
            assert smile.filter(pl.col("size") == largest)["live"].all()
            assert (smile["live"] == (smile["size"] >= 0.01 * largest)).all()


def test_a_stale_forward_is_seen_in_prices_and_delta() -> None:
    day = a_day(FLAT)
    table = scored_table(day).with_columns(iv_truth=pl.col("exact_volatility"))
    stale = scores(table.with_columns(forward_model=pl.col("forward_model") * 1.0001), [day])
    assert stale["truth", "iv_rmse_exact"] == 0.0
    assert stale["truth", "price_mape"] > 0.05
    assert stale["truth", "delta_error"] > 0.01


def anchors_of(day: MarketDay, error: float = 0.0) -> list[Anchor]:
    """At-the-money volatilities of three tenors, off by `error`."""
    found = []
    for days in (9, 44, 100):
        tau = days / 365.0
        strike = day.forward(tau)
        volatility = float(model_volatility(day, tau, np.array([strike]))[0]) + error
        key = ExpiryKey("SIM", day.ts + np.timedelta64(days, "D"))
        found.append(Anchor(key, strike, tau, 0.0, volatility, volatility, 0.0))
    return found


@pytest.mark.parametrize("variance", [0.002, 0.03, 0.4])
def test_the_variance_is_found_again_from_the_anchors(variance: float) -> None:
    truth = a_day(replace(HESTON, variance=variance))
    found = infer_variance(a_day(HESTON), anchors_of(truth))
    assert math.sqrt(found.parameters.variance) == pytest.approx(math.sqrt(variance), abs=1e-4)
    assert replace(found.parameters, variance=HESTON.variance) == HESTON, "nothing else moves"


def test_a_constant_volatility_is_the_mean_of_the_anchors() -> None:
    anchors = [replace(anchor, volatility=0.2 + miss) for anchor, miss in zip(
        anchors_of(a_day(FLAT)), (0.001, -0.002, 0.004), strict=True)]  # fmt: skip
    found = infer_variance(a_day(FLAT), anchors).parameters
    assert math.sqrt(found.variance) == pytest.approx(0.201, abs=1e-6)
    assert found.long_run_variance == found.variance


def test_rows_are_means_over_paths_with_their_spread() -> None:
    rows = rows_of("heston", [{("model", "iv_rmse"): 1.0, ("model", "trust"): 0.5},
                              {("model", "iv_rmse"): 3.0, ("model", "trust"): 0.5}])  # fmt: skip
    assert rows[0] == {"case": "heston", "subject": "model", "metric": "iv_rmse", "unit": "vol points", "value": 2.0,
                       "spread": pytest.approx(math.sqrt(2.0)), "paths": 2}  # fmt: skip
    assert (rows[1]["value"], rows[1]["spread"], rows[1]["unit"]) == (0.5, 0.0, "share")


@pytest.mark.slow
def test_one_short_path_goes_from_simulation_to_the_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(known_worlds, "TEST_DAYS", 6)
    monkeypatch.setattr(known_worlds, "NETS", ("pricing_lstm",))
    flat = Case(lambda chance: black_scholes_days(24, volatility=0.2, generator=chance), Quoting(tick=0.0))
    stirred = Case(lambda chance: heston_days(24, HESTON, generator=chance), Quoting())
    monkeypatch.setattr(known_worlds, "CASES", {"black_scholes": flat, "heston": stirred})
    monkeypatch.setattr(known_worlds, "run_path", lambda *given: run_path(*given, nets=("pricing_lstm",)))
    command = ["--paths", "1", "--cases", "black_scholes", "heston", "--work", str(tmp_path)]
    assert known_worlds.main(command) == 0
    written = (tmp_path / "results" / "known_worlds.jsonl").read_text()
    lines = [json.loads(line) for line in written.splitlines()]
    value = {(row["case"], row["subject"], row["metric"]): row["value"] for row in lines}
    assert {row["case"] for row in lines} == {"black_scholes", "heston"}
    assert value["black_scholes", "attainable", "iv_rmse"] < 1e-6
    assert value["black_scholes", "exact_volatility", "price_mape"] < 0.1
    assert value["black_scholes", "pricing_lstm", "price_mape"] < 0.2
    attainable, inferred, anchored = (
        value["heston", name, "iv_rmse"] for name in ("attainable", "state_from_anchors", "anchored_sticky_strike")
    )
    assert attainable <= inferred * 1.001
    assert inferred < 0.5 * anchored, "the anchors tell the state of a world with one factor"
    assert value["heston", "sticky_strike", "iv_rmse"] > anchored

    def never(*given: object) -> dict[tuple[str, str], float]:
        raise AssertionError(f"a finished path is run again: {given}")

    monkeypatch.setattr(known_worlds, "run_path", never)
    assert known_worlds.main(command) == 0
    assert (tmp_path / "results" / "known_worlds.jsonl").read_text() == written
    with pytest.raises(AssertionError, match="run again"):
        known_worlds.main([*command, "--paths", "2"])
