"""Small stores to begin with, made once and put wherever they are needed.

In: nothing. Out: keys and bytes of a store with a ledger, bundles, gate reports and statements. Invariant: what is
seeded went through the product's own functions once; seeding copies bytes.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.chaos_stand_ins import StillChannel, memory_registry
from pipelines.promote import promote
from serving.blobstore import BlobStore, open_store
from serving.bundle import store_bundle
from serving.ledger import Ledger
from tests.tiny_bundle import tiny_bundle
from tests.tiny_registry import LINEAGE, metrics

THREADS = 4
Blobs = Mapping[str, bytes]


def blobs_of(store: BlobStore) -> Blobs:
    """Everything in a store."""
    keys = store.list()
    with ThreadPoolExecutor(THREADS) as pool:
        return dict(zip(keys, pool.map(store.get, keys), strict=True))


def seed(store: BlobStore, blobs: Blobs) -> None:
    """Put them all into an empty store."""
    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(store.put, blobs.keys(), blobs.values()))


def racing_ground(model: str, versions: int) -> Blobs:
    """A ledger with this many registered versions, of which 1 and 2 were promoted."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        store = open_store(folder / "store")
        ledger = Ledger(store, model)
        for number in range(1, versions + 1):
            bundle = tiny_bundle(folder / f"bundle-{number}", seed=number, model=model)
            store_bundle(store, bundle)
            details = {"metrics": metrics(0.01), "parity": {"iv": 1e-7}, "lineage": LINEAGE}
            ledger.append(
                ledger.state(), "registered", version=number, bundle=bundle.sha256, by="trainer", details=details
            )
        for number in (1, 2):
            promote(
                model=model, version=number, store=store, registry=memory_registry(ledger), channel=StillChannel(),
                gates=(), by="operator", approve_by="risk",
            )  # fmt: skip
        return blobs_of(store)
