"""What the accuracy benchmark runs and what it reports: markets, setups and cases, as data.

In: nothing. Out: `MARKETS` (quotes and how they are laid out), `SETUPS` (a market with its dates and anchors: what one
features stage computes) and `CASES` (rows of the result: one setup, or several with their rows together).
Invariants: every setup is the experiment file `spx_2019` with overrides on top; test dates of the folds don't overlap,
and a fold trains on dates before its own test only (an embargo date between: conf/split/short.yaml); the sets of
anchors hold one another, so rows scored with the largest are scored with all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

EXPERIMENT = "experiment=spx_2019"
BASELINES = "baselines"  # the subject that is no net: all of them together

Anchors = tuple[tuple[int, float], ...]  # tenor in days, moneyness ln(K/F)/sqrt(tau)

AT_THE_MONEY: Anchors = ((14, 0.0), (45, 0.0), (120, 0.0))
FIVE: Anchors = (*AT_THE_MONEY, (45, -0.25), (45, 0.1))
TEN: Anchors = (*FIVE, (14, -0.25), (14, 0.1), (120, -0.25), (120, 0.1), (240, 0.0))
THIRTY: Anchors = tuple(
    (tenor, moneyness) for tenor in (14, 28, 45, 80, 120, 240) for moneyness in (-0.4, -0.25, -0.1, 0.0, 0.1)
)
FOLDS = {
    "may_a": ("split.test_from=2019-05-16", "split.test_to=2019-05-23"),
    "may_b": ("split.test_from=2019-05-24", "split.test_to=2019-05-31"),
    "june": ("split.test_from=2019-06-03", "split.test_to=2019-06-28"),
}


@dataclass(frozen=True)
class Market:
    """Quotes: `path` below the folder of market data, or None for the made-up coins; `overrides` say the layout."""

    name: str
    title: str
    path: str | None
    overrides: tuple[str, ...]


@dataclass(frozen=True)
class Setup:
    """A market with dates and anchors; `overrides` come after the market's."""

    name: str
    market: str
    overrides: tuple[str, ...]


@dataclass(frozen=True)
class Case:
    """What is reported under one name: rows of `setups` together, only those that `rows_of` scores too, if it's given.

    `table` is the table of the page that the case is a column of, `column` its head.
    """

    name: str
    setups: tuple[str, ...]
    table: str
    column: str
    rows_of: str | None = None


def anchors_override(anchors: Sequence[tuple[float, float]]) -> str:
    """As typed on a command line."""
    listed = ",".join(f"{{tenor_days:{tenor},moneyness:{moneyness}}}" for tenor, moneyness in anchors)
    return f"data.anchors=[{listed}]"


MARKETS = {
    market.name: market
    for market in (
        Market("spx_2019", "SPX and SPXW, daily", "spx_options_2019", ("data=cboe_snapshot",)),
        Market("spy_2021", "SPY, 20 contracts a day", "spy_options_2021", ("data=historicaloptiondata",)),
        Market("equities_hourly", "AAPL, GOOG, TWX, FOXA, NWSA, hourly", "equity_options_hourly_2014",
               ("data=lean_hourly",)),
        Market("deribit_made_up", "BTC and ETH in Deribit's layout, made up (tests/pipelines/coins.py)", None,
               ("data=deribit",)),
    )
}  # fmt: skip
COIN_DAYS = 45  # of the made-up market

_SPX = [
    Setup(f"spx_2019{kind}/{fold}", "spx_2019", (*dates, *anchors))
    for kind, anchors in (("", (anchors_override(AT_THE_MONEY),)), ("_no_anchors", ("data.anchors=[]",)))
    for fold, dates in FOLDS.items()
]
_CURVE = [
    Setup(f"spx_2019_anchors_{len(anchors):02d}/june", "spx_2019", (*FOLDS["june"], anchors_override(anchors)))
    for anchors in (FIVE, TEN, THIRTY)
]
_OTHERS = [
    Setup("spy_2021/autumn", "spy_2021", ("split.test_from=2021-09-01",)),
    Setup("aapl_2014/alone", "equities_hourly", ("data.underlyings=[AAPL]", "split.test_from=2014-06-09")),
    Setup("goog_2015/alone", "equities_hourly", ("data.underlyings=[GOOG]", "split.test_from=2015-12-24")),
    Setup("five_equities/goog_2015", "equities_hourly", ("split.test_from=2015-12-23",)),
    Setup("deribit_made_up/april", "deribit_made_up", ("split.test_from=2024-04-04",)),
]
SETUPS = {setup.name: setup for setup in (*_SPX, *_CURVE, *_OTHERS)}

MAIN, NO_ANCHORS, CURVE, OTHERS = "three anchors", "no anchors", "more anchors", "other markets"


def _folds(kind: str, table: str) -> list[Case]:
    """A case per fold, then all of their rows together."""
    names = tuple(f"spx_2019{kind}/{fold}" for fold in FOLDS)
    single = [Case(name, (name,), table, fold) for name, fold in zip(names, FOLDS, strict=True)]
    return [*single, Case(f"spx_2019{kind}/walk_forward", names, table, "all folds")]


_LARGEST = f"spx_2019_anchors_{len(THIRTY)}/june"
_COUNTED = {0: "spx_2019_no_anchors/june", 3: "spx_2019/june"} | {
    len(anchors): f"spx_2019_anchors_{len(anchors):02d}/june" for anchors in (FIVE, TEN, THIRTY)
}
CASES = {
    case.name: case
    for case in (
        *_folds("", MAIN),
        *_folds("_no_anchors", NO_ANCHORS),
        *(Case(f"spx_2019_curve/{count:02d}_anchors", (name,), CURVE, str(count), rows_of=_LARGEST)
          for count, name in _COUNTED.items()),
        *(Case(setup.name, (setup.name,), OTHERS, setup.name) for setup in _OTHERS),
    )
}  # fmt: skip
