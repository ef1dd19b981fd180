"""From an exported bundle to a registered version: blob store, MLflow, ledger, in this order.

Data in: a bundle directory, metrics, parity figures, lineage, the resolved configuration, the exam gates will ask
(pipelines/exam.py) and the dates the model has seen. Data out: the version number; files under `bundles/<sha256>/`
and `exams/`, one MLflow run and version, one `registered` event with all the others in its details. The stage writes a
model card (pipelines/model_card.py), which goes with the run.
Invariants: a bundle has one version, however often it is registered; the ledger's event comes last, so a
crash anywhere leaves nothing that counts, and running again completes it.

Run: python -m pipelines.register [key=value ...]
"""

from __future__ import annotations

import getpass
import json
import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipelines.config import Config, without_places
from pipelines.exam import load_exam, store_exam
from pipelines.lineage import registered_lineage
from pipelines.model_card import CARD, gather, headline, render
from pipelines.registry import BUNDLE_TAG, Registry, RegistryError, open_registry
from serving.blobstore import BlobStore, open_store
from serving.bundle import Bundle, fetch_bundle, load_bundle, store_bundle
from serving.errors import DataError, LedgerError
from serving.ledger import GENESIS, Ledger, LedgerRaceError, State

RACE_ATTEMPTS = 20


@dataclass(frozen=True)
class Registered:
    model: str
    version: int
    run_id: str
    bundle_sha256: str


def register(
    *,
    model: str,
    bundle_dir: Path,
    metrics: Mapping[str, Any],
    parity: Mapping[str, Any],
    lineage: Mapping[str, str],
    registry: Registry,
    store: BlobStore,
    config: Mapping[str, Any] | None = None,
    exam: Path | None = None,
    dates: Mapping[str, Any] | None = None,
    report_paths: Sequence[Path] = (),
    by: str,
) -> Registered:
    """Register a bundle, or find the version it already is.

    `config` is the resolved configuration without places; of the `exam` the event holds the sha256.
    """
    bundle = load_bundle(bundle_dir, model=model)
    ledger = Ledger(store, model)
    state = ledger.state()
    if (known := _registered(state, bundle.sha256)) is not None:
        return known
    details: dict[str, Any] = {"metrics": dict(metrics), "parity": dict(parity), "lineage": dict(lineage)}
    details |= {name: dict(value) for name, value in (("config", config), ("dates", dates)) if value is not None}
    # Refuse what the ledger couldn't hold before store and MLflow have seen it.
    first_free = max(state.versions, default=0) + 1
    checked = {**details, "run_id": "0" * 32, "exam": GENESIS}
    ledger.prepare(state, "registered", version=first_free, bundle=bundle.sha256, by=by, details=checked)

    if exam is not None:
        details["exam"] = store_exam(store, exam)
    store_bundle(store, bundle)
    restore_versions(state, store, registry)  # so that MLflow doesn't give a number the ledger has used
    version = registry.find_version_by_bundle(model, bundle.sha256)
    if version is None:
        version, run_id = _record(registry, bundle, details, report_paths)
    else:
        run_id = registry.run_of_version(model, version)
    return _append(ledger, state, registry, Registered(model, version, run_id, bundle.sha256), by, details)


def restore_versions(state: State, store: BlobStore, registry: Registry) -> tuple[int, ...]:
    """Make again the ledger's versions that an emptied MLflow lacks; returns their numbers.

    RegistryError if MLflow has one of the ledger's numbers for another bundle.
    """
    there = registry.versions(state.model)
    restored = []
    for number in sorted(state.versions):
        bundle_sha256 = state.versions[number].bundle
        if number in there:
            found = there[number].get(BUNDLE_TAG)
            if found != bundle_sha256:
                raise RegistryError(
                    f"{state.model} version {number}: MLflow has bundle {found}, the ledger {bundle_sha256}; "
                    "this MLflow doesn't belong to this store: use the right one, or an empty one"
                )
        elif number > max(there, default=0):
            with tempfile.TemporaryDirectory() as folder:
                bundle = fetch_bundle(store, bundle_sha256, Path(folder))
                _record(registry, bundle, state.versions[number].registered.details, (), version=number)
            restored.append(number)
        elif not state.versions[number].retired:
            raise RegistryError(
                f"{state.model} version {number}: was deleted in MLflow, whose numbers only grow, so it can't be made "
                "again there; rebuild into an empty MLflow"
            )
    return tuple(restored)


def _registered(state: State, bundle_sha256: str) -> Registered | None:
    version = state.version_of_bundle(bundle_sha256)
    if version is None:
        return None
    run_id = str(state.versions[version].registered.details.get("run_id", ""))
    return Registered(state.model, version, run_id, bundle_sha256)


def _record(
    registry: Registry,
    bundle: Bundle,
    details: Mapping[str, Any],
    report_paths: Sequence[Path],
    version: int | None = None,
) -> tuple[int, str]:
    model, lineage = bundle.manifest.model, dict(details.get("lineage", {}))
    run_id = registry.log_run(
        model,
        f"register-{bundle.sha256[:12]}",
        params=flatten(bundle.manifest.model_config),
        metrics={
            name: float(value)
            for name, value in flatten({"metrics": details.get("metrics"), "parity": details.get("parity")}).items()
            if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        },
        tags={**lineage, BUNDLE_TAG: bundle.sha256},
        artifacts=report_paths,
        run_key=f"register-{bundle.sha256}",
    )
    description = headline(bundle.sha256, details.get("metrics"))
    return registry.register_version(model, run_id, bundle, lineage, version=version, description=description), run_id


def _append(
    ledger: Ledger,
    state: State,
    registry: Registry,
    wanted: Registered,
    by: str,
    details: Mapping[str, Any],
) -> Registered:
    """Others may register other bundles meanwhile; only a number or a bundle taken is a conflict."""
    for _ in range(RACE_ATTEMPTS):
        try:
            ledger.append(
                state,
                "registered",
                version=wanted.version,
                bundle=wanted.bundle_sha256,
                by=by,
                details={**details, "run_id": wanted.run_id},
            )
        except LedgerRaceError:
            state = ledger.state()
            known = _registered(state, wanted.bundle_sha256)
            if known is not None:  # the same bundle, registered at the same time by somebody else
                if known.version != wanted.version:
                    registry.delete_version(ledger.model, wanted.version)
                return known
        else:
            return wanted
    raise LedgerError(f"{ledger.model}: lost {RACE_ATTEMPTS} races for the next event; run again")


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one level, `{"a": {"b": 1}}` as `{"a/b": 1}`."""
    if not isinstance(value, Mapping):
        return {prefix: value} if prefix else {}
    flat: dict[str, Any] = {}
    for name, inner in value.items():
        flat.update(flatten(inner, f"{prefix}/{name}" if prefix else str(name)))
    return flat


def run(cfg: Config) -> Registered:
    """Register `OUT/export/MODEL/bundle` with its metrics and report.

    Writes `MODEL_CARD.md` and `version.json` into `OUT/register/MODEL/`.
    """
    name = cfg.model.name
    evaluation, export = cfg.folder / "evaluate" / name, cfg.folder / "export" / name
    for path in (evaluation / "metrics.json", export / "parity.json"):
        if not path.exists():
            raise DataError(f"{path} isn't there: run the stages before register with the same out= and model=")
    description = json.loads((cfg.folder / "train" / name / "model.json").read_text())
    origin = registered_lineage(cfg, description)
    exam = evaluation / "exam.npz"
    folder = cfg.folder / "register" / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CARD).write_text(render(gather(cfg, origin)), encoding="utf-8")
    done = register(
        model=name,
        bundle_dir=export / "bundle",
        metrics=json.loads((evaluation / "metrics.json").read_text()),
        parity=json.loads((export / "parity.json").read_text()),
        lineage=origin,
        config=without_places(cfg),
        exam=exam,
        dates=load_exam(exam).seen(),
        registry=open_registry(cfg.registry.tracking_uri),
        store=open_store(cfg.storage.url),
        report_paths=[evaluation / "report.html", evaluation / "figures", folder / CARD],
        by=getpass.getuser(),
    )
    (folder / "version.json").write_text(json.dumps(asdict(done), indent=1) + "\n")
    return done


if __name__ == "__main__":
    from pipelines.command import stage

    raise SystemExit(stage(__doc__, run))
