"""What a pricing bundle carries so that a host can check itself: golden vectors, demo inputs, reference histograms.

In: the trained net, the features and the quotes they came from. Out: `Contents`: arrays for `golden.npz`, `demo.npz`
and `reference.npz` (names: serving/golden.py, serving/demo.py), the feature spec, tolerances; and, of a written bundle,
how far its engine is from the net.
Invariant: the demo's expected volatilities come from the window and features of *training*; a host that computes its
own from the demo's quotes must reach them.
"""

from __future__ import annotations

from collections import deque
from pathlib import Path

import numpy as np
import torch

from models.pricing import PricingNet
from pipelines.dataset import FeatureStore
from pipelines.remote_data import local
from pipelines.snapshots import read_history, read_snapshots
from pipelines.tasks.contents import Arrays, Contents
from pipelines.tasks.pricing import predict
from pipelines.trained import Trained
from serving import features as shared
from serving.bundle import Bundle
from serving.demo import pack_demo
from serving.engine import open_engine
from serving.last_seen import find_anchors, last_seen
from serving.pricing import distinct_contracts
from serving.surface import Quotes, build_surface
from serving.tables import Market

WINDOWS, CONTRACTS = 4, 512
EDGES = np.linspace(-3.0, 3.0, 49)
IV_TOLERANCE = 1e-5  # absolute, against PyTorch in float32
CONTEXT_TOLERANCE = 1e-5


def contents(trained: Trained, store: FeatureStore, quotes_path: Path, history: str | None) -> Contents:
    """Everything of a bundle but the net."""
    net = trained.net
    assert isinstance(net, PricingNet)
    return Contents(
        golden=golden_arrays(net, store), demo=demo_arrays(net, store, quotes_path, history),
        reference=reference_arrays(store), feature_spec=store.spec.to_json(),
        tolerances={"iv": IV_TOLERANCE, "context": CONTEXT_TOLERANCE},
    )  # fmt: skip


def largest_difference(bundle: Bundle, net: PricingNet, store: FeatureStore) -> float:
    """Largest absolute difference of volatility over the test rows, as a host computes it and as the net does."""
    engine = open_engine(bundle, "ort")
    context = np.zeros(engine.info().context_size, np.float32)
    out = np.full(len(store.rows), np.nan, np.float32)
    for place in store.places("test"):
        window, span = store.window(int(place)), store.row_range(int(place))
        engine.reset()
        for step in window[:-1]:
            engine.advance(step)
        engine.evaluate(window[-1], context)
        engine.head(context, np.ascontiguousarray(store.contracts[span]), out[span])
    found = out[(store.rows["split"] == "test").to_numpy()].astype(np.float64)
    return float(np.max(np.abs(found - predict(net, store, "test"))))


@torch.no_grad()
def golden_arrays(net: PricingNet, store: FeatureStore) -> Arrays:
    """The last test windows (latest first), contracts of the latest, and the net's answers."""
    places = store.places("test")[::-1][:WINDOWS]
    window = np.stack([store.window(int(place)) for place in places])
    span = store.row_range(int(places[0]))
    rows = np.unique(np.linspace(span.start, span.stop - 1, min(CONTRACTS, span.stop - span.start)).astype(int))
    contracts = np.array(store.contracts[rows])
    context = net.encode(torch.from_numpy(window))
    volatility = net.head(context[:1].expand(len(contracts), -1), torch.from_numpy(contracts)).numpy()
    return {
        "window": window,
        "contracts": contracts,
        "context-0": context.numpy(),
        "iv-0": volatility,
        "iv": volatility,
    }


def reference_arrays(store: FeatureStore) -> Arrays:
    """Histograms of the scaled features over the training dates, for drift: counts [features, bins] and edges."""
    training_rows = (store.rows["split"] == "train").to_numpy()
    training_steps = (store.snapshots["split"] == "train").to_numpy()
    out: Arrays = {"edges": EDGES}
    for name, values in (("contracts", store.contracts[training_rows]), ("steps", store.steps[training_steps])):
        out[name] = np.stack([np.histogram(column, EDGES)[0] for column in values.T]).astype(np.int64)
    return out


@torch.no_grad()
def demo_arrays(net: PricingNet, store: FeatureStore, quotes_path: Path, history: str | None) -> Arrays:
    """Chain as last seen, path, anchors' quotes of the last test snapshot, and the volatilities to be found."""
    place = int(store.places("test")[-1])
    underlying, ts = store.snapshots["underlying"][place], store.snapshots["ts"].to_numpy()[place]
    kept = set(store.snapshots.filter(store.snapshots["underlying"] == underlying)["ts"].to_numpy().tolist())
    chain: deque[Quotes] = deque(maxlen=store.spec.window)
    now: Quotes | None = None
    for name, quotes in read_snapshots(quotes_path):
        if name == underlying and quotes.ts < ts and quotes.ts.item() in kept:  # training passed over the others
            chain.append(quotes)
        elif name == underlying and quotes.ts == ts:
            now = quotes
            break
    assert now is not None, "the features were made from these quotes"
    last = last_seen(build_surface(chain[-1]))
    anchors = find_anchors(now, last, store.spec.anchors)
    at_anchor = {(anchor.key.root, anchor.key.expiry, anchor.strike) for anchor in anchors}
    keys = zip(now.root, now.expiry, now.strike, strict=True)
    quoted = now.take(np.array([(str(root), expiry, strike) in at_anchor for root, expiry, strike in keys], dtype=bool))
    contracts = distinct_contracts(chain[-1], quoted)
    table = shared.contract_table(contracts, now.ts, now.spot, last, anchors)
    window = torch.from_numpy(store.window(place)).unsqueeze(0)
    scaled = torch.from_numpy(store.spec.contract_scaler(table.features))
    expected = np.full(len(contracts.strike), np.nan, np.float32)
    expected[table.rows] = net(window, scaled, torch.zeros(len(scaled), dtype=torch.long)).numpy()
    return pack_demo(Market(underlying, list(chain), _path(store, underlying, ts, history), quoted), expected)


def _path(store: FeatureStore, underlying: str, ts: np.datetime64, history: str | None) -> shared.Path:
    """The underlying's prices before `ts`, as training saw them."""
    mine = store.snapshots.filter(store.snapshots["underlying"] == underlying).sort("ts")
    times, prices = mine["ts"].to_numpy(), mine["spot"].to_numpy()
    if history is not None:
        day = times[0].astype("datetime64[D]")
        before = read_history(local(history), times[0] - day)
        keep = before["ts"].to_numpy() < day.astype("datetime64[ns]")
        times = np.r_[before["ts"].to_numpy()[keep], times]
        prices = np.r_[before["price"].to_numpy()[keep], prices]
    keep = times < ts
    reach = store.spec.window + 256  # what the first step of the window looked back on, and more
    return shared.Path(times[keep][-reach:], prices[keep][-reach:])
