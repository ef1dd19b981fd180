"""Where a result came from: hashes of files and the state of the working tree.

In: paths. Out: hex digests and a dict of tags. Invariant: a hash depends on contents and order of the files, not on
where they lie.
"""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path
from typing import Any

from pipelines.config import Config, config_hash

ROOT = Path(__file__).resolve().parents[1]


def file_hash(*paths: Path) -> str:
    """SHA-256 (hex) over the contents of the files, in the order given."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


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


def lineage(cfg: Config, description: dict[str, Any]) -> dict[str, str]:
    """Hashes and revision that lead back to everything this result came from."""
    quotes = cfg.folder / "ingest" / "quotes.parquet"
    return {
        "config_sha256": config_hash(cfg), "trained_config_sha256": description["config_sha256"],
        "quotes_sha256": file_hash(quotes) if quotes.exists() else "absent",
        "features_sha256": description["features_sha256"], "seed": str(cfg.seed), "training_run": description["run_id"],
        **commit_tags(),
    }  # fmt: skip
