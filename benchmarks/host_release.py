"""A bundle made the champion of a folder store and pulled, by the real parts: ledger, MLflow, gates, signing, `pull`.

In: a bundle whose net nobody trained (benchmarks/host_bundle.py). Out: `Released`: a store signed with development keys
and the folder that `strikeforge-host pull` filled. Two gates stand for the usual ones, which ask for a market's quotes:
`parity` is the real comparison of both engines with the golden vectors; `precision` is the real ratio of errors, of the
golden volatilities against a market that is fp32's answers with seeded noise. So bf16 and int8 get the engine packs
that a host holds itself to, and no accuracy is claimed.
"""

from __future__ import annotations

import contextlib
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.chaos_places import signing
from pipelines.channel.publish import open_channel
from pipelines.gate_context import GateContext, GateOutcome
from pipelines.parity import recompute
from pipelines.promote import promote
from pipelines.register import register
from pipelines.registry import open_registry
from serving.bundle import Bundle
from serving.cli import main as host_command
from serving.engine import FP32, PRECISIONS, open_engine
from serving.errors import EngineError
from serving.folder_store import FolderStore
from serving.golden import GOLDEN, golden_answers

WHO = "bench"
ENGINES = ("ort", "native")
NOISE = 0.005  # of the gate's market: half a vol point
SEED = 7
SLACK = 0.01  # as conf/gate/default.yaml
FIRST_ROOT = "channel/1.root.json"


@dataclass(frozen=True)
class Released:
    """`store` with its channel, `root` to trust, `pulled`: what --from takes."""

    store: Path
    root: Path
    pulled: Path


def release(bundle: Bundle, folder: Path) -> Released:
    """Register, promote, sign, pull; everything lies below `folder`."""
    model, store = bundle.manifest.model, FolderStore(folder / "store")
    registry = open_registry(f"sqlite:///{folder}/mlflow.db")
    done = register(
        model=model, bundle_dir=bundle.directory, metrics={}, parity={}, lineage={"builder": "urn:strikeforge:bench"},
        registry=registry, store=store, by=WHO,
    )  # fmt: skip
    promote(
        model=model, version=done.version, store=store, registry=registry,
        channel=open_channel(signing(folder / "keys"), store), gates=(parity, precision), by=WHO, reason="bench",
    )  # fmt: skip
    released = Released(folder / "store", folder / "root.json", folder / "pulled")
    released.root.write_bytes(store.get(FIRST_ROOT))
    with contextlib.redirect_stdout(sys.stderr):
        code = host_command([
            "pull", "--model", model, "--store", str(released.store), "--root", str(released.root),
            "--to", str(released.pulled), "--development",
        ])  # fmt: skip
    assert code == 0, "what was signed just now is taken"
    return released


def parity(context: GateContext) -> GateOutcome:
    """Both engines answer as the net did when it was exported."""
    bundle = context.bundle()
    checks = [(backend, one) for backend in ENGINES for one in recompute(bundle, backend)]
    worst = max(one.excess for _, one in checks)
    listed = [{"name": f"{backend}: {one.name}", "difference": one.difference, "tolerance": one.tolerance}
              for backend, one in checks]  # fmt: skip
    figures = {"checks": listed, "admitted": list(ENGINES) if worst <= 1.0 else []}
    return GateOutcome("parity", worst <= 1.0, worst, 1.0, f"at worst {worst:.3g} of what is allowed", figures)


def precision(context: GateContext) -> GateOutcome:
    """Which reduced precisions cost at most `SLACK` of the error against the noisy market."""
    bundle = context.bundle()
    exact = _volatilities(bundle, FP32)
    market = exact + NOISE * np.random.default_rng(SEED).standard_normal(len(exact))
    base = float(np.sqrt(np.mean((exact - market) ** 2)))
    ratios: dict[str, float] = {}
    refused: dict[str, str] = {}
    for name in PRECISIONS["native"][1:]:
        try:
            error = float(np.sqrt(np.mean((_volatilities(bundle, name) - market) ** 2)))
        except EngineError as refusal:
            refused[name] = str(refusal)
        else:
            ratios[name] = error / base
    admitted = [name for name, ratio in ratios.items() if ratio <= 1 + SLACK]
    measured: dict[str, dict[str, Any]] = {name: {"ratio": ratio} for name, ratio in ratios.items()}
    figures = {"admitted": admitted, "precisions": measured | {name: {"refused": why} for name, why in refused.items()}}
    told = "; ".join([*(f"{name} {ratio:.6g} times fp32's error" for name, ratio in ratios.items()), *refused.values()])
    return GateOutcome("precision", True, None, 1 + SLACK, told, figures)


def _volatilities(bundle: Bundle, name: str) -> np.ndarray[Any, Any]:
    answers = golden_answers(bundle.arrays(GOLDEN), open_engine(bundle, "native", precision=name))
    return answers["iv"].astype(np.float64)
