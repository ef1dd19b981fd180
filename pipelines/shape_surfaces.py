"""The surfaces of the test snapshots on the dense grid of pipelines/shape.py: the market's, the baselines', the net's.

In: a `FeatureStore`, the quotes it was made of, volatility functions. Out: a table with one row per predictor (columns:
`shape.shares`). A predictor answers contracts that nobody quotes: the market's mids and the last smile are linear in
strike between quotes (docs/conventions.md), the net is asked at every node with the features a host would compute.

Nodes: each scored expiry, from its lowest scored strike of t to its highest, in k = ln(K/F); the same k for every
predictor, at its own forwards (the market's of t, otherwise as the anchors put them right). Calendars: nodes of the
shorter expiry that lie within the longer one's strikes too.

Invariant: the market alone sees t; predictors see what `contract_table` does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import torch

from models.pricing import PricingNet
from pipelines import shape
from pipelines.dataset import FeatureStore
from pipelines.metrics import MARKET, MODEL
from pipelines.snapshots import read_snapshots
from serving.errors import DataError
from serving.features import Contracts, ContractTable, contract_table
from serving.last_seen import Anchor, LastSeen, find_anchors, last_seen, scored_range
from serving.laws import LawsOfMotion
from serving.normal import Array
from serving.quotes import ExpiryKey, Quotes
from serving.surface import Surface, build_surface

MARKET_QUOTES = 2  # scored strikes an expiry needs: a line


@dataclass(frozen=True)
class ShapeSnapshot:
    """One test snapshot: the surface of t, what was seen before, the anchors, its place in the store."""

    place: int
    quotes: Quotes
    surface: Surface
    last: LastSeen
    anchors: list[Anchor]
    scored: dict[ExpiryKey, tuple[Array, Array]]  # strikes and volatilities of t in the scored range, ascending


Predictor = Callable[[ShapeSnapshot, ContractTable], Array]  # volatility [N] of the table's contracts


def shape_table(
    store: FeatureStore,
    quotes_path: Path,
    predictors: Mapping[str, Predictor],
    *,
    step: float = shape.STEP,
    most: int | None = None,
) -> pl.DataFrame:
    """Figures of the market's mids and of each predictor, pooled over the test snapshots: `predictor` and `shares`.

    `most` takes so many test snapshots, evenly spread, where there are more.
    """
    names = [MARKET, *predictors]
    strikes: dict[str, list[shape.ButterflyCounts]] = {name: [] for name in names}
    tenors: dict[str, list[shape.CalendarCounts]] = {name: [] for name in names}
    for snapshot in snapshots(store, quotes_path, most):
        for name in names:
            found = _counts(snapshot, predictors.get(name), step)
            strikes[name].append(found[0])
            tenors[name].append(found[1])
    return pl.DataFrame([{"predictor": name, **shape.shares(strikes[name], tenors[name])} for name in names])


def standard_predictors(store: FeatureStore, net: PricingNet) -> dict[str, Predictor]:
    """The net, and the two baselines it is made of: the last smile, and that moved by the anchors."""
    return {
        MODEL: net_predictor(store, net),
        "anchored_sticky_strike": lambda _snapshot, table: table.last_volatility + table.shift,
        "sticky_strike": lambda _snapshot, table: table.last_volatility,
    }


def net_predictor(store: FeatureStore, net: PricingNet) -> Predictor:
    """The net at any contract, as pipelines/tasks/pricing.predict feeds it."""

    @torch.no_grad()
    def volatility(snapshot: ShapeSnapshot, table: ContractTable) -> Array:
        window = torch.from_numpy(store.window(snapshot.place)).unsqueeze(0)
        scaled = torch.from_numpy(store.spec.contract_scaler(table.features))
        out: Array = net(window, scaled, torch.zeros(len(scaled), dtype=torch.long)).double().numpy()
        return out

    return volatility


def snapshots(store: FeatureStore, quotes_path: Path, most: int | None = None) -> Iterator[ShapeSnapshot]:
    """The scored test snapshots, in order of time, remade from the quotes the features were made of.

    Raises DataError where the quotes don't hold them all.
    """
    places = store.places("test")
    if most is not None and len(places) > most:
        places = places[np.linspace(0, len(places) - 1, most).round().astype(np.intp)]
    wanted = {
        (store.snapshots["underlying"][int(place)], _nanoseconds(store.snapshots["ts"].to_numpy()[place])): int(place)
        for place in places
    }
    kept = {
        (name, _nanoseconds(ts))
        for name, ts in zip(store.snapshots["underlying"], store.snapshots["ts"].to_numpy(), strict=True)
    }
    before: dict[str, Quotes] = {}
    found = 0
    for underlying, quotes in read_snapshots(quotes_path):
        name = (underlying, _nanoseconds(quotes.ts))
        if name not in kept:  # the features stage passed over it
            continue
        if name in wanted:
            surface, last = build_surface(quotes), last_seen(build_surface(before[underlying]))
            anchors = find_anchors(quotes, last, store.spec.anchors)
            found += 1
            yield ShapeSnapshot(wanted[name], quotes, surface, last, anchors, _scored(surface, last))
        before[underlying] = quotes
    if found != len(wanted):
        raise DataError(f"{quotes_path} holds {found} of the {len(wanted)} test snapshots: run python -m "
                        "pipelines.features with the same out= again")  # fmt: skip


def _nanoseconds(ts: np.datetime64) -> int:
    return int(ts.astype("datetime64[ns]").astype(np.int64))


def _scored(surface: Surface, last: LastSeen) -> dict[ExpiryKey, tuple[Array, Array]]:
    out = {}
    for key in sorted(surface.smiles, key=lambda key: (key.expiry, key.root)):
        smile = surface.smiles[key]
        rows = scored_range(smile, surface.spot)
        if key in last.smiles and last.smiles[key].in_range and rows.sum() >= MARKET_QUOTES:
            out[key] = (smile.strike[rows], smile.volatility[rows])
    return out


def _counts(
    snapshot: ShapeSnapshot, predictor: Predictor | None, step: float
) -> tuple[shape.ButterflyCounts, shape.CalendarCounts]:
    """Of one predictor; None is the market."""
    smiles, keys = snapshot.surface.smiles, list(snapshot.scored)
    tau = [smiles[key].tau for key in keys]
    ends = [np.log(snapshot.scored[key][0][[0, -1]] / smiles[key].forward) for key in keys]
    pairs = shape.neighbours(tau)
    own = [shape.grid(float(end[0]), float(end[1]), t, step) for end, t in zip(ends, tau, strict=True)]
    common = [own[a][(own[a] >= ends[b][0]) & (own[a] <= ends[b][1])] for a, b in pairs]
    asked = [*zip(range(len(keys)), own, strict=True)]
    for (a, b), k in zip(pairs, common, strict=True):
        asked += [(a, k), (b, k)]
    sampled = _sample(snapshot, predictor, [(keys[place], k) for place, k in asked])
    first, rest = sampled[: len(keys)], sampled[len(keys) :]
    strikes = sum((shape.butterfly(smile) for smile in first), shape.ButterflyCounts())
    tenors = (shape.calendar(rest[place], rest[place + 1]) for place in range(0, len(rest), 2))
    return strikes, sum(tenors, shape.CalendarCounts())


def _sample(
    snapshot: ShapeSnapshot, predictor: Predictor | None, asked: list[tuple[ExpiryKey, Array]]
) -> list[shape.SampledSmile]:
    """Volatilities at the nodes asked for; the predictor is called once, with all of them."""
    smiles = snapshot.surface.smiles
    if predictor is None:
        return [
            shape.SampledSmile(smiles[key].tau, smiles[key].forward, k,
                               np.interp(smiles[key].forward * np.exp(k), *snapshot.scored[key]))
            for key, k in asked
        ]  # fmt: skip
    laws = LawsOfMotion(snapshot.last, snapshot.anchors, snapshot.quotes.spot)
    forward = [laws.forward(key) for key, _ in asked]
    strike = np.concatenate([f * np.exp(k) for f, (_, k) in zip(forward, asked, strict=True)])
    counts = [k.size for _, k in asked]
    contracts = Contracts(
        np.repeat([key.root for key, _ in asked], counts), np.repeat([key.expiry for key, _ in asked], counts),
        strike, np.ones(strike.size),
    )  # fmt: skip
    table = contract_table(contracts, snapshot.quotes.ts, snapshot.quotes.spot, snapshot.last, snapshot.anchors)
    volatility = np.full(strike.size, np.nan)
    volatility[table.rows] = predictor(snapshot, table)
    parts = np.split(volatility, np.cumsum(counts)[:-1])
    return [
        shape.SampledSmile(smiles[key].tau, f, k, part) for (key, k), f, part in zip(asked, forward, parts, strict=True)
    ]
