"""Does the anomaly score see what is wrong with a surface? Known faults put into real smiles of the test dates.

In: a `FeatureStore` and its `SurfaceDays`, a net, its `Reference`. Out: scores of the clean test surfaces; per fault
the area under the ROC curve against them, for the score, for the net's share of it and for a plain one (how far the
grid lies from the last one), and how many of the faults get the host's verdict.

Faults are put where hosts get them, into the smiles of expiries; grid, net and statistics follow from there. A stale
snapshot is tried on dates on which the underlying moved, in three kinds: the *quotes* of the snapshot before with
today's time and underlying (prices and with them forwards are the old ones); the old *volatilities at the strikes*, or
those *at the moneyness*, with today's forwards.
Invariants: what a fault doesn't name stays as it is; a stale surface is compared with clean ones of the same dates.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import polars as pl
from scipy import stats

from pipelines.dataset import FeatureStore
from pipelines.surface_days import SurfaceDays
from serving.last_seen import TAU_RANGE, LastSeen, LastSmile
from serving.normal import Array
from serving.surface import DAYS_PER_YEAR, tau_years
from serving.surface_changes import changes
from serving.surface_host import UNUSUAL, surface_input
from serving.surface_reference import NET_STATISTICS, Evidence, Reference
from serving.surface_score import SurfaceNet, score, statistics

WING = -0.2  # moneyness: the wing is what lies below
WING_SHIFT = 0.02  # volatility
SWAPPED_DAYS = (30.0, 120.0)
SCALED_DAYS, SCALE = 60.0, 1.05
MOVED = 0.005  # |log return| of a date on which a stale surface shows

Fault = Callable[[LastSeen, LastSeen], LastSeen]  # (now, last seen) -> now, wrong


@dataclass(frozen=True)
class Detection:
    """`clean` scores by test snapshot in order of time, and their percentiles; `table`: by fault the surfaces, areas
    under the curve, and the shares of the wrong and of the clean ones above UNUSUAL of the reference dates."""

    places: npt.NDArray[np.intp]
    clean: Array
    percentile: Array
    table: pl.DataFrame


def moneyness(smile: LastSmile) -> Array:
    """ln(K/F)/sqrt(tau) of its strikes."""
    return np.asarray(np.log(smile.strike / smile.forward) / np.sqrt(smile.tau))


def shifted_wing(now: LastSeen, _: LastSeen) -> LastSeen:
    """The low strikes of every expiry, WING_SHIFT too high."""
    smiles = {key: replace(smile, volatility=smile.volatility + WING_SHIFT * (moneyness(smile) <= WING))
              for key, smile in now.smiles.items()}  # fmt: skip
    return replace(now, smiles=smiles)


def swapped_expiries(now: LastSeen, last: LastSeen) -> LastSeen:
    """Two expiries with each other's volatilities, at equal moneyness: those nearest SWAPPED_DAYS (of a single one
    nothing changes)."""
    first, second = (_nearest(now, last, days) for days in SWAPPED_DAYS)
    swapped = {one.key: replace(one, volatility=np.interp(moneyness(one), moneyness(other), other.volatility))
               for one, other in ((first, second), (second, first))}  # fmt: skip
    return replace(now, smiles=now.smiles | swapped)


def scaled_tenor(now: LastSeen, last: LastSeen) -> LastSeen:
    """The volatilities of the expiry nearest SCALED_DAYS, SCALE times too high."""
    smile = _nearest(now, last, SCALED_DAYS)
    return replace(now, smiles=now.smiles | {smile.key: replace(smile, volatility=SCALE * smile.volatility)})


def stale_quotes(now: LastSeen, last: LastSeen) -> LastSeen:
    """The last snapshot's prices: the old forwards, and volatilities whose total variance is the old one."""
    return _stale(now, last, lambda smile, tau, _: replace(
        smile, tau=tau, volatility=smile.volatility * np.sqrt(smile.tau / tau)))  # fmt: skip


def stale_at_strike(now: LastSeen, last: LastSeen) -> LastSeen:
    """The last snapshot's volatilities at its strikes, with carried forwards."""
    return _stale(now, last, lambda smile, tau, forward: replace(smile, tau=tau, forward=forward))


def stale_at_moneyness(now: LastSeen, last: LastSeen) -> LastSeen:
    """The last snapshot's volatilities at its moneyness, with carried forwards."""
    return _stale(now, last, lambda smile, tau, forward: replace(
        smile, tau=tau, forward=forward, strike=forward * np.exp(moneyness(smile) * np.sqrt(tau))))  # fmt: skip


def _stale(now: LastSeen, last: LastSeen, renew: Callable[[LastSmile, float, float], LastSmile]) -> LastSeen:
    """The smiles last seen that still lie in the scored range of tenors; `renew(smile, tau now, carried forward)`."""
    left = {key: (smile, tau_years(now.ts, key.expiry)) for key, smile in last.smiles.items()}
    return replace(now, smiles={key: renew(smile, tau, last.carried_forward(key, now.spot))
                                for key, (smile, tau) in left.items() if tau > TAU_RANGE[0]})  # fmt: skip


def _nearest(now: LastSeen, last: LastSeen, days: float) -> LastSmile:
    """The expiry nearest a tenor among those in the scored range now and before."""
    both = [smile for key, smile in now.smiles.items()
            if smile.in_range and key in last.smiles and last.smiles[key].in_range]  # fmt: skip
    return min(both, key=lambda smile: abs(np.log(smile.tau * DAYS_PER_YEAR / days)))


FAULTS: Mapping[str, Fault] = {
    f"wing shifted by {100 * WING_SHIFT:g} vol points": shifted_wing,
    f"expiries swapped ({SWAPPED_DAYS[0]:g} and {SWAPPED_DAYS[1]:g} days)": swapped_expiries,
    f"tenor scaled by {SCALE:g} ({SCALED_DAYS:g} days)": scaled_tenor,
}
AFTER_A_MOVE = f", |return| > {100 * MOVED:g} %"
STALE: Mapping[str, Fault] = {
    f"stale quotes{AFTER_A_MOVE}": stale_quotes,
    f"stale volatilities at the strikes{AFTER_A_MOVE}": stale_at_strike,
    f"stale volatilities at the moneyness{AFTER_A_MOVE}": stale_at_moneyness,
}


@dataclass(frozen=True)
class _Judged:
    score: float
    percentile: float
    by_net: float  # the largest of the net's statistics, or NaN where it isn't judged
    distance: float  # root mean square of the grid's change since last seen, volatility
    flagged: bool | None  # None: the reference gives no verdict


def detect(store: FeatureStore, days: SurfaceDays, net: SurfaceNet, reference: Reference) -> Detection:
    """Scores and areas under the curve on the test dates."""
    places = store.places("test")
    clean = [_judge(*days.pair(int(place)), net, reference) for place in places]
    rows = [_row(name, [_wrong(days, int(place), fault, net, reference) for place in places], clean)
            for name, fault in FAULTS.items()]  # fmt: skip
    moved = [count for count, place in enumerate(places) if abs(days.move(int(place))) > MOVED]
    if moved:
        same = [clean[count] for count in moved]  # days on which the underlying moves score higher, stale or not
        for name, fault in STALE.items():
            rows.append(_row(name, [_wrong(days, int(places[count]), fault, net, reference) for count in moved], same))
    return Detection(places, np.array([one.score for one in clean]), np.array([one.percentile for one in clean]),
                     pl.DataFrame(rows))  # fmt: skip


def _wrong(days: SurfaceDays, place: int, fault: Fault, net: SurfaceNet, reference: Reference) -> _Judged:
    now, last = days.pair(place)
    return _judge(fault(now, last), last, net, reference)


def _judge(now: LastSeen, last: LastSeen, net: SurfaceNet, reference: Reference) -> _Judged:
    _, known = surface_input(now, last)
    found = Evidence(statistics(net, known)[0], changes(now, last))
    judged = score(found, reference)
    both = (known.mask * known.last_mask).astype(np.float64)
    distance = float(np.sqrt((both * (known.surface - known.last) ** 2).sum() / max(float(both.sum()), 1.0)))
    by_net = [abs(judged.by_statistic[name]) for name in NET_STATISTICS if name in judged.by_statistic]
    flagged = judged.percentile > UNUSUAL if judged.calibrated else None
    return _Judged(judged.value, judged.percentile, max(by_net, default=np.nan), distance, flagged)


def _row(name: str, wrong: list[_Judged], clean: list[_Judged]) -> dict[str, object]:
    areas = (_area([getattr(one, part) for one in wrong], [getattr(one, part) for one in clean])
             for part in ("score", "by_net", "distance"))  # fmt: skip
    titles = ("AUC of the score", "AUC of the net's statistics alone", "AUC of the distance from the last surface")
    return {"fault": name, "surfaces": len(wrong), **dict(zip(titles, areas, strict=True)),
            "share flagged": _share(wrong), "share flagged of clean ones": _share(clean)}  # fmt: skip


def _share(judged: list[_Judged]) -> float | None:
    """That gets the verdict; None where none is given."""
    verdicts = [one.flagged for one in judged if one.flagged is not None]
    return float(np.mean(verdicts)) if verdicts else None


def _area(wrong: list[float], clean: list[float]) -> float | None:
    """Probability that a wrong surface scores above a clean one, ties counted half (Mann-Whitney); None where scores
    are missing."""
    if np.isnan([*wrong, *clean]).any():
        return None
    return float(stats.mannwhitneyu(wrong, clean).statistic) / (len(wrong) * len(clean))
