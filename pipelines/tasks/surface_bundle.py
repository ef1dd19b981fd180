"""What a surface bundle carries so that a host can check itself: golden surfaces, a demo, the reference of the score.

In: the trained net, the features and the quotes they came from. Out: `Contents`; and, of a written bundle, how far its
engine is from the net. Invariant: the reference's scores are those of validation dates, of which the net saw nothing
but when to stop (of training dates where there are too few); what it says of quotes alone comes from training dates.
"""

from __future__ import annotations

from collections import deque
from pathlib import Path

import numpy as np
import torch

from models.surface_vae import Known, SurfaceVAE
from pipelines.completion import draw_hidden
from pipelines.dataset import FeatureStore
from pipelines.snapshots import read_snapshots
from pipelines.surface_days import SurfaceDays
from pipelines.tasks.contents import Arrays, Contents
from pipelines.tasks.surface import regime_names
from pipelines.trained import Trained
from serving.bundle import Bundle
from serving.demo import pack_demo
from serving.engine import open_surface_engine
from serving.errors import TooFewSnapshotsError
from serving.features import Path as UnderlyingPath
from serving.surface import Quotes
from serving.surface_grid import CELLS, Grid, grid_spec
from serving.surface_reference import FEWEST_REFERENCES, Evidence, Reference
from serving.surface_score import SurfaceAnswer, SurfaceInput, SurfaceNet, statistics
from serving.tables import Market

GOLDEN_SURFACES = 8
TOLERANCE = 1e-4  # of every output, against PyTorch in float32; relative where a value is above 1
FEWEST_VALIDATION = 30  # snapshots; with fewer the training dates are the reference, and no verdict is given


def torch_net(net: SurfaceVAE) -> SurfaceNet:
    """The net as hosts see it: NumPy in, NumPy out."""

    @torch.no_grad()
    def answer(known: SurfaceInput) -> SurfaceAnswer:
        fields = SurfaceInput.__dataclass_fields__
        tensors = Known(*(torch.from_numpy(np.array(getattr(known, name), dtype=np.float32)) for name in fields))
        return SurfaceAnswer(*(part.numpy() for part in net(tensors)))

    return answer


def surface_input(store: FeatureStore, place: int) -> SurfaceInput:
    """One snapshot of the store, with all that is known of it."""
    surface, mask, last, last_mask = store.grids[place]
    return SurfaceInput.of(Grid(surface, mask), Grid(last, last_mask), store.moves[place])


def reference(net: SurfaceVAE, store: FeatureStore, days: SurfaceDays) -> Reference:
    """Of the anomaly score; raises TooFewSnapshotsError with fewer than FEWEST_REFERENCES surfaces."""
    training, validation = store.places("train"), store.places("validation")
    held_out = len(validation) >= FEWEST_VALIDATION
    places = validation if held_out else training
    if min(len(places), len(training)) < FEWEST_REFERENCES:
        raise TooFewSnapshotsError(f"the anomaly score needs {FEWEST_REFERENCES} training dates, have {len(training)}")
    answer = torch_net(net)
    found = [Evidence(statistics(answer, surface_input(store, int(place)))[0], days.changes(int(place)))
             for place in places]  # fmt: skip
    return Reference.fit(found, [days.changes(int(place)) for place in training], held_out=held_out)


def contents(trained: Trained, store: FeatureStore, quotes_path: Path, history: str | None) -> Contents:
    """Everything of a bundle but the net."""
    net = trained.net
    assert isinstance(net, SurfaceVAE)
    held_against = reference(net, store, SurfaceDays.read(store, quotes_path))
    return Contents(
        golden=golden_arrays(net, store), demo=demo_arrays(net, store, quotes_path),
        reference=dict(held_against.to_arrays()), tolerances={"surface": TOLERANCE},
        feature_spec=grid_spec() | {"regimes": regime_names(store)},
    )  # fmt: skip


def golden_arrays(net: SurfaceVAE, store: FeatureStore) -> Arrays:
    """The last test surfaces, latest first, every other one with half of its cells hidden, and the net's answers."""
    places = store.places("test")[::-1][:GOLDEN_SURFACES]
    hidden = np.stack([draw_hidden(CELLS, 0.5 * (count % 2), int(place)) for count, place in enumerate(places)])
    whole = [
        surface_input(store, int(place)).hiding(row[np.newaxis]) for place, row in zip(places, hidden, strict=True)
    ]
    fields = SurfaceInput.__dataclass_fields__
    known = SurfaceInput(*(np.concatenate([getattr(one, name) for one in whole]) for name in fields))
    answer = torch_net(net)(known)
    outputs = {f"{name}-0": getattr(answer, name) for name in SurfaceAnswer.__dataclass_fields__}
    return {name: getattr(known, name) for name in fields} | outputs


def demo_arrays(net: SurfaceVAE, store: FeatureStore, quotes_path: Path) -> Arrays:
    """The last two snapshots of the test, and the completed grid to be found."""
    place = int(store.places("test")[-1])
    underlying, ts = store.snapshots["underlying"][place], store.snapshots["ts"].to_numpy()[place]
    kept = set(store.snapshots.filter(store.snapshots["underlying"] == underlying)["ts"].to_numpy().tolist())
    chain: deque[Quotes] = deque(maxlen=2)
    for name, quotes in read_snapshots(quotes_path):
        if name == underlying and quotes.ts <= ts and quotes.ts.item() in kept:  # training passed over the others
            chain.append(quotes)
    before, now = chain
    path = UnderlyingPath(np.array([before.ts, now.ts]), np.array([before.spot, now.spot]))
    answer = torch_net(net)(surface_input(store, place))
    return pack_demo(Market(underlying, [before], path, now), answer.completed[0])


def largest_difference(bundle: Bundle, net: SurfaceVAE, store: FeatureStore) -> float:
    """Largest absolute difference of completed volatility over the test surfaces, by the engine and by the net."""
    engine, own = open_surface_engine(bundle), torch_net(net)
    worst = 0.0
    for place in store.places("test"):
        known = surface_input(store, int(place))
        worst = max(worst, float(np.max(np.abs(engine.answer(known).completed - own(known).completed))))
    return worst
