"""Where a result came from: hashes of files, the state of the working tree, who built it.

In: paths, the configuration, a training's description. Out: hex digests and dicts of tags. Invariants: a hash depends
on contents and order of the files, not on where they lie; what can't be known is `unknown` (or `absent`, of a file),
never guessed; no path, user or host is among the tags. pipelines/lineage_of.py follows them both ways.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from pipelines.config import Config, config_hash
from pipelines.remote_data import local
from serving.canonical import canonical_json, sha256_hex

ROOT = Path(__file__).resolve().parents[1]
DVC_OUT = "artifacts"  # where dvc.yaml's stages write
COMMON_STAGES, MODEL_STAGES = ("ingest", "features"), ("train", "evaluate", "export")  # what a version rests on
LOCAL_BUILDER = "urn:strikeforge:builder:local"

log = logging.getLogger("strikeforge.lineage")


def file_hash(*paths: Path) -> str:
    """SHA-256 (hex) of a file as `sha256sum` says it; of several, over their SHA-256s in the order given."""
    digests = []
    for path in paths:
        with path.open("rb") as file:
            digests.append(hashlib.file_digest(file, "sha256").digest())
    return digests[0].hex() if len(digests) == 1 else hashlib.sha256(b"".join(digests)).hexdigest()


def features_hash(features: Path) -> str:
    """SHA-256 (hex) of what training reads of `OUT/features/`."""
    names = ("rows.parquet", "contracts.npy", "steps.npy", "grids.npy", "moves.npy", "snapshots.parquet")
    return file_hash(*(features / name for name in names))


def _git(*words: str) -> str | None:
    try:
        result = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False)
    except OSError:  # no git on this machine
        return None
    return result.stdout.rstrip() if result.returncode == 0 else None  # a status line may begin with a space


def commit_tags() -> dict[str, str]:
    """`git_commit` and `git_clean`, `unknown` outside a checkout. Clean: nothing but dvc.lock differs from it."""
    commit = _git("rev-parse", "HEAD")
    if commit is None:
        return {"git_commit": "unknown", "git_clean": "unknown"}
    changed = [line[3:] for line in (_git("status", "--porcelain") or "").splitlines()]
    clean = not [path for path in changed if path != "dvc.lock"]
    return {"git_commit": commit, "git_clean": str(clean).lower()}


def dvc_tags(cfg: Config) -> dict[str, str]:
    """`dvc_clean` and `dvc_lock_sha256` of the stages a version of this model rests on.

    Clean: of those stages every output in the workspace is the one dvc.lock names, made from the dependencies and
    parameters it names (`dvc status`). The hash (canonical JSON) is of their entries alone: dvc.lock as committed later
    still holds them, while its other entries change with every stage. Outside DVC's folder `unknown` and `absent`.
    """
    outside = {"dvc_clean": "unknown", "dvc_lock_sha256": "absent"}
    lock = ROOT / "dvc.lock"
    if cfg.folder.resolve() != (ROOT / DVC_OUT).resolve() or not lock.exists():
        return outside
    wanted = [*COMMON_STAGES, *(f"{stage}@{cfg.model.name}" for stage in MODEL_STAGES)]
    content: Any = OmegaConf.to_container(OmegaConf.load(lock), resolve=False)
    entries = {name: content["stages"][name] for name in wanted if name in content["stages"]}
    if len(entries) < len(wanted):
        return {**outside, "dvc_clean": "false"}
    return {"dvc_clean": _dvc_clean(wanted), "dvc_lock_sha256": sha256_hex(canonical_json(entries))}


def _dvc_clean(stages: list[str]) -> str:
    command = [sys.executable, "-m", "dvc", "status", "--json", *stages]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        log.warning("dvc status failed, so dvc_clean is unknown: %s", result.stderr.strip())
        return "unknown"
    changed = json.loads(result.stdout)
    if changed:
        log.warning("dvc_clean is false, changed since the stages ran: %s", json.dumps(changed))
    return str(not changed).lower()


def builder_tags(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """`builder`, and in CI `builder_run` and `source`: URLs of the workflow, its run, the repository at its commit."""
    if environment.get("GITHUB_ACTIONS") != "true":
        return {"builder": LOCAL_BUILDER}
    server, repository = environment["GITHUB_SERVER_URL"], environment["GITHUB_REPOSITORY"]
    workflow = environment.get("GITHUB_WORKFLOW_REF") or f"{repository}/{environment['GITHUB_WORKFLOW']}"
    attempt = environment.get("GITHUB_RUN_ATTEMPT", "1")
    return {
        "builder": f"{server}/{workflow}",
        "builder_run": f"{server}/{repository}/actions/runs/{environment['GITHUB_RUN_ID']}/attempts/{attempt}",
        "source": f"git+{server}/{repository}",
    }


def raw_data_hash(cfg: Config) -> str:
    """SHA-256 (hex) of the files ingest read (by name) and of the underlying's history; `absent` if one isn't there."""
    counts = cfg.folder / "ingest" / "counts.json"
    if not counts.exists():
        return "absent"
    paths = [Path(name) for name in sorted(json.loads(counts.read_text())["files"])]
    paths += [local(cfg.data.history)] if cfg.data.history else []
    return file_hash(*paths) if all(path.is_file() for path in paths) else "absent"


def lineage(cfg: Config, description: dict[str, Any]) -> dict[str, str]:
    """Hashes and revision that lead back to everything this result came from."""
    quotes = cfg.folder / "ingest" / "quotes.parquet"
    return {
        "config_sha256": config_hash(cfg), "trained_config_sha256": description["config_sha256"],
        "quotes_sha256": file_hash(quotes) if quotes.exists() else "absent",
        "features_sha256": description["features_sha256"], "seed": str(cfg.seed), "training_run": description["run_id"],
        **commit_tags(),
    }  # fmt: skip


def registered_lineage(cfg: Config, description: dict[str, Any]) -> dict[str, str]:
    """What a version is registered with: `lineage`, and the state of DVC, the pinned packages, raw data, builder."""
    pinned = ROOT / "constraints.txt"
    return {
        **lineage(cfg, description),
        **dvc_tags(cfg),
        "constraints_sha256": hashlib.sha256(pinned.read_bytes()).hexdigest() if pinned.exists() else "absent",
        "raw_data_sha256": raw_data_hash(cfg),
        **builder_tags(),
    }
