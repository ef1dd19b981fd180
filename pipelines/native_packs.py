"""The engine packs a promotion releases: of the native engine per admitted precision, and those compiled before.

Data in: a bundle that passed its gates, the gate report, folders of packs that the compile stage made (maybe on another
machine). Data out: packs in the store, `{target: sha256}` for the promoted event.
A native pack `native_<precision>` holds the golden answers of that precision, so that a host can hold itself to them
(serving/warm.py), and repeats from the gate report its parity, its latency and on which CPU. fp32 is admitted by the
parity gate, the others by the precision gate; what wasn't admitted has no pack.
Invariants: packs follow from the bundle, the report and the engine's answers, so promoting again with the same report
makes the same packs; they are stored before the event that names them; a compiled pack of another bundle, damaged, or
for a target that is there already, is refused by name. A renewal keeps the compiled packs of the release it renews.
"""

from __future__ import annotations

import io
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.gate_context import GateOutcome
from serving.blobstore import BlobStore
from serving.bundle import Bundle
from serving.engine import FP32, open_engine
from serving.engine_pack import MAX_PACKS, EnginePack, PackParity, fetch_pack, load_pack, store_pack, write_pack
from serving.errors import ConfigError, EngineError
from serving.golden import GOLDEN, golden_answers
from serving.machine import library_version
from serving.warm import BUDGET_US, PACK_GOLDEN, RUNTIME

NATIVE = "native"
LIBRARY = "strikeforge"


def native_target(precision: str) -> str:
    """The target of the native engine's pack of a precision."""
    return f"{NATIVE}_{precision}"


def admitted_precisions(outcomes: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The precisions that the native engine may run in, by the report's outcomes."""
    parity, precision = (_figures(outcomes, name).get("admitted") or [] for name in ("parity", "precision"))
    return [FP32, *precision] if NATIVE in parity else []


def make_native_packs(bundle: Bundle, report: Mapping[str, Any], folder: Path) -> list[EnginePack]:
    """One pack per admitted precision, in `folder`; EngineError if the engine that was gated can't be opened now."""
    outcomes = {one["name"]: one for one in report["outcomes"]}
    if bundle.manifest.task != "pricing":
        return []
    return [_native_pack(bundle, outcomes, precision, folder) for precision in admitted_precisions(outcomes)]


def _native_pack(bundle: Bundle, outcomes: Mapping[str, Mapping[str, Any]], precision: str, folder: Path) -> EnginePack:
    try:
        engine = open_engine(bundle, NATIVE, precision=precision)
    except EngineError as error:
        raise EngineError(
            f"engine pack {native_target(precision)}: the gates admitted it, but it can't be made here: {error}; "
            "promote on a machine that has the native engine, or gate again where it isn't"
        ) from error
    runtime = engine.info().runtime
    golden = golden_answers(bundle.arrays(GOLDEN), engine)
    buffer = io.BytesIO()
    np.savez(buffer, context=golden["context"], iv=golden["iv"])
    latency, cpu = _latency(outcomes, precision)
    return write_pack(
        folder / native_target(precision), bundle=bundle, target=native_target(precision), backend=NATIVE,
        precision=precision, library=LIBRARY, version=library_version(), executed=True,
        configuration={RUNTIME: runtime, "semantics": bundle.manifest.semantics},
        files={PACK_GOLDEN: buffer.getvalue()}, parity=_parity(outcomes, precision), latency=latency,
        notes=[f"gated on {cpu}"] if cpu else [],
    )  # fmt: skip


def _figures(outcomes: Mapping[str, Mapping[str, Any]], name: str) -> Mapping[str, Any]:
    figures = outcomes.get(name, {}).get("figures")
    return figures if isinstance(figures, Mapping) else {}


def _parity(outcomes: Mapping[str, Mapping[str, Any]], precision: str) -> list[PackParity]:
    """fp32: every comparison of the parity gate; else the RMSE ratio of the precision gate against what it allowed."""
    if precision == FP32:
        prefix = f"{NATIVE}: "
        checks = [one for one in _figures(outcomes, "parity").get("checks", ()) if one["name"].startswith(prefix)]
        return [PackParity(one["name"].removeprefix(prefix), one["difference"], one["tolerance"]) for one in checks]
    found, limit = _figures(outcomes, "precision")["precisions"][precision], outcomes["precision"]["threshold"]
    return [PackParity("IV RMSE over fp32's", found["ratio"], limit)]


def _latency(outcomes: Mapping[str, Mapping[str, Any]], precision: str) -> tuple[dict[str, float] | None, str]:
    """Figures in microseconds and the CPU they were measured on; None where nothing was timed."""
    figures = _figures(outcomes, "latency")
    measured = figures.get("engines", {}).get(f"{NATIVE} {precision}")
    if measured is None:
        return None, ""
    told = {name: max(0.0, value) for name, value in measured.items() if isinstance(value, int | float)}
    settings = outcomes["latency"]["settings"]
    null_p99 = told.get("step_null_p99_us", 0.0)
    budget = settings["step_p99_excess_us"] + null_p99
    return told | {BUDGET_US: budget}, str(figures.get("cpu", ""))


def compiled_packs(bundle: Bundle, folders: Sequence[Path]) -> list[EnginePack]:
    """Packs that were compiled before, verified to be of this bundle; ConfigError naming a folder there isn't."""
    absent = [f"packs: there is no folder {folder}; compile first" for folder in folders if not folder.is_dir()]
    if absent:
        raise ConfigError(absent)
    return [load_pack(folder, bundle=bundle) for folder in folders]


def kept_packs(
    store: BlobStore, bundle: Bundle, released: Mapping[str, str], anew: Sequence[EnginePack], folder: Path
) -> dict[str, str]:
    """The compiled packs that a renewal keeps: of the release it renews, whose targets aren't among those `anew`.

    Those of the native engine are made anew by every promotion. BundleError for one the store lacks or holds otherwise.
    """
    mine = {pack.manifest.target for pack in anew}
    kept = {}
    for target, sha256 in released.items():
        if target in mine:
            continue
        pack = fetch_pack(store, sha256, folder, bundle=bundle, target=target)
        if pack.manifest.backend != NATIVE:
            kept[target] = sha256
    return kept


def by_target(packs: Sequence[EnginePack]) -> dict[str, EnginePack]:
    """Packs by target; ConfigError where two are for the same."""
    found: dict[str, EnginePack] = {}
    for pack in packs:
        target = pack.manifest.target
        if target in found:
            raise ConfigError([f"packs: two are for target {target}: {found[target].sha256} and {pack.sha256}"])
        found[target] = pack
    if len(found) > MAX_PACKS:
        raise ConfigError([f"packs: {len(found)} targets, at most {MAX_PACKS} are released together"])
    return found


def store_packs(
    store: BlobStore, bundle: Bundle, report: Mapping[str, Any], compiled: Sequence[EnginePack],
    kept: Mapping[str, str],
) -> dict[str, str]:  # fmt: skip
    """Make the native packs, bring all packs into the store, and name them and the `kept` ones, which are there.

    `compiled` are verified already.
    """
    with tempfile.TemporaryDirectory(prefix="packs-") as folder:
        packs = by_target([*make_native_packs(bundle, report, Path(folder)), *compiled])
        if len(kept.keys() | packs.keys()) > MAX_PACKS:
            raise ConfigError(
                [f"packs: {len(kept.keys() | packs.keys())} targets with those kept, at most {MAX_PACKS}"]
            )
        named = {**kept, **{target: store_pack(store, pack) for target, pack in packs.items()}}
        return dict(sorted(named.items()))


def not_admitted(outcomes: Sequence[GateOutcome]) -> list[str]:
    """Reduced precisions that were measured and aren't released, for the promotion's message."""
    figures = next((one.figures for one in outcomes if one.name == "precision"), {})
    return [name for name in figures.get("precisions", {}) if name not in figures.get("admitted", ())]
