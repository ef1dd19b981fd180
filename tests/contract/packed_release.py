"""A company's release with engine packs, and a host that pulls it: real signatures, a stand-in for the native core."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from pipelines.provenance import store_provenance
from serving.bundle import Bundle, store_bundle
from serving.canonical import canonical_json, sha256_hex
from serving.engine import open_engine
from serving.engine_pack import EnginePack, store_pack, write_pack
from serving.folder_store import FolderStore
from serving.golden import GOLDEN, golden_answers
from serving.ledger import Ledger
from serving.machine import library_version
from serving.pull import Pulled, pull
from serving.warm import BUDGET_US, RUNTIME
from tests import small_nets
from tests.pipelines.channel.desk import EXPIRES, Company
from tests.stand_in_native import Moves, install
from tests.tiny_bundle import npz_bytes

MODEL = "a"  # one that tests/pipelines/channel/desk.py lets in
TRT = "trt_rtx_sm89_fp16"


def small_bundle(folder: Path, **other: Any) -> Bundle:
    return small_nets.small_bundle(folder, model=MODEL, **other)


@pytest.fixture
def moves(monkeypatch: pytest.MonkeyPatch) -> Moves:
    made = Moves(shift={"bf16": 1e-4, "int8": -1e-4})
    install(monkeypatch, made)
    return made


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    return FolderStore(tmp_path / "store")


def native_pack(folder: Path, bundle: Bundle, precision: str, **other: Any) -> EnginePack:
    """As pipelines/native_packs.py makes it, with the stand-in's answers."""
    engine = open_engine(bundle, "native", precision=precision)
    golden = golden_answers(bundle.arrays(GOLDEN), engine)
    arguments: dict[str, Any] = {
        "target": f"native_{precision}", "backend": "native", "precision": precision, "library": "strikeforge",
        "version": library_version(), "executed": True, "latency": {"step_p50_us": 5.0, BUDGET_US: 1e6},
        "configuration": {RUNTIME: engine.info().runtime}, "files": {"golden.npz": npz_bytes(**golden)},
    }  # fmt: skip
    return write_pack(folder / f"native_{precision}", bundle=bundle, **(arguments | other))


def trt_pack(folder: Path, bundle: Bundle) -> EnginePack:
    return write_pack(
        folder / TRT, bundle=bundle, target=TRT, backend="trt", precision="fp16", library="tensorrt-rtx", version="1.1",
        sm="sm89", files={"member-0/step.engine": b"engine of " + bundle.sha256.encode()},
    )  # fmt: skip


def packs_of(folder: Path, bundle: Bundle) -> list[EnginePack]:
    return [*(native_pack(folder, bundle, one) for one in ("fp32", "bf16")), trt_pack(folder, bundle)]


def promote(
    store: FolderStore, bundle: Bundle, packs: Sequence[EnginePack], named: dict[str, str] | None = None
) -> None:
    """What a promotion writes; `named` replaces what the event says of the packs."""
    store_bundle(store, bundle)
    for pack in packs:
        store_pack(store, pack)
    raw = canonical_json({"passed": True, "bundle": bundle.sha256})
    report = sha256_hex(raw)
    store.put_if_absent(f"gate-reports/{report}.json", raw)
    ledger = Ledger(store, MODEL)
    state = ledger.state()
    version = len(state.versions) + 1
    state = ledger.append(state, "registered", version=version, bundle=bundle.sha256, by="test")
    verdict = {"passed": True, "report": report}
    state = ledger.append(state, "gated", version=version, bundle=bundle.sha256, by="test", details=verdict)
    provenance = store_provenance(store, state, version, gate_report=report)
    said = named if named is not None else {pack.manifest.target: pack.sha256 for pack in packs}
    details = {
        "gate_report": report,
        "provenance": provenance,
        "expires_at": EXPIRES,
        **({"packs": said} if said else {}),
    }
    ledger.append(state, "promoted", version=version, bundle=bundle.sha256, by="test", details=details)


class Trading:
    """A host that was given root 1."""

    def __init__(self, folder: Path, store: FolderStore) -> None:
        folder.mkdir()
        self.folder, self.store, self.root = folder / "releases", store, folder / "root.json"
        self.root.write_bytes(store.get("channel/1.root.json"))

    def pull(self, *targets: str, **options: Any) -> Pulled:
        asked = {"targets": targets} if targets else {}
        return pull(self.store, self.root, directory=self.folder, model=MODEL, **asked, **options)


@pytest.fixture
def released(tmp_path: Path, store: FolderStore, moves: Moves) -> tuple[Company, Trading, Bundle, list[EnginePack]]:
    bundle = small_bundle(tmp_path / "bundle")
    packs = packs_of(tmp_path / "packs", bundle)
    promote(store, bundle, packs)
    company = Company(tmp_path, store)
    company.channel().follow(MODEL)
    return company, Trading(tmp_path / "host", store), bundle, packs


Released = tuple[Company, Trading, Bundle, list[EnginePack]]
