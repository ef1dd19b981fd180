"""What the accuracy benchmark computes, piece by piece, each finished piece in its place once and for all.

In: a configuration, and the pieces it stands on. Out, below the work folder:
  markets/NAME-KEY/ingest/      the ingest stage's output
  setups/NAME-KEY/features/     the features stage's output; or `refused.json`, the stage's error of too few data
  cells/SETUP/SUBJECT-seedS-KEY.parquet
                                SUBJECT's predictions (benchmarks/accuracy_predictions.py)
Invariants: a piece is there whole or not at all (made aside, renamed); its KEY says which data, configuration, code and
libraries made it; the stages' own functions do the work; nothing here looks at an error on test dates.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.accuracy_cases import BASELINES, COIN_DAYS
from benchmarks.accuracy_keys import code, code_hash, contents_hash, key_of, libraries
from pipelines.config import Config, config_hash, without_places
from serving.errors import TooFewSnapshotsError

REFUSED = "refused.json"
SCRATCH = ".fit-"


@dataclass(frozen=True)
class Cell:
    """One subject (a family, or BASELINES) with one seed on one setup; `cfg` is its whole configuration."""

    setup: str
    subject: str
    seed: int
    cfg: Config
    path: Path


@dataclass(frozen=True)
class Refusal:
    """The program's own answer to too few data."""

    error: str
    exit_code: int
    message: str

    @classmethod
    def of(cls, error: TooFewSnapshotsError) -> Refusal:
        """What the error says."""
        return cls(type(error).__name__, error.exit_code, str(error))


def make_up_coins(folder: Path) -> Path:
    """Write the made-up market of inverse options, once; returns its file."""
    from tests.pipelines import coins

    path = folder / f"coins-{key_of(code_hash('tests.pipelines.coins'), COIN_DAYS)}.parquet"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        coins.market(COIN_DAYS).write_parquet(_aside(path))
        _aside(path).replace(path)
    return path


def market_folder(name: str, cfg: Config, work: Path) -> Path:
    """Where a market's ingested quotes belong, by the file's contents, the layout and the code."""
    layout = without_places(cfg)["data"]
    for later in ("anchors", "underlyings", "provenance"):
        layout.pop(later)
    made_of = (layout, contents_hash(Path(cfg.data.path)), code()["ingest"], libraries())
    return work / "markets" / f"{name}-{key_of(*made_of)}"


def make_market(cfg: Config, folder: Path) -> None:
    """Ingest, once."""
    from pipelines import ingest

    if folder.exists():
        return
    aside = _fresh(folder)
    ingest.run(_into(cfg, aside))
    _settle(aside, folder)


def setup_folder(name: str, cfg: Config, market: Path, work: Path) -> Path:
    """Where a setup's features belong, by its market, dates, anchors and the code."""
    sections = {section: without_places(cfg)[section] for section in ("data", "features", "split")}
    sections["data"].pop("provenance")
    key = key_of(sections, market.name, code()["features"], libraries())
    return work / "setups" / f"{_flat(name)}-{key}"


def make_setup(cfg: Config, market: Path, folder: Path) -> None:
    """Features, once; too few data leave the stage's own error instead."""
    from pipelines import features

    if folder.exists():
        return
    aside = _fresh(folder)
    (aside / "ingest").symlink_to((market / "ingest").resolve())
    try:
        features.run(_into(cfg, aside))
    except TooFewSnapshotsError as error:
        refusal = dataclasses.asdict(Refusal.of(error))
        (aside / REFUSED).write_text(json.dumps(refusal, indent=1) + "\n", encoding="utf-8")
    _settle(aside, folder)


def refusal_of(setup: Path) -> Refusal | None:
    """Why a setup has no features; None where it has."""
    path = setup / REFUSED
    return Refusal(**json.loads(path.read_text(encoding="utf-8"))) if path.exists() else None


def cell_of(setup: str, subject: str, cfg: Config, folder: Path, features: str, work: Path) -> Cell:
    """The cell of a subject, with `cfg.seed`, on a setup's features in `folder`; `features` is their hash."""
    of_code = code()["baselines" if subject == BASELINES else "fit"]
    made_of = [features, libraries(), cfg.seed, of_code]
    if subject != BASELINES:
        made_of.append(config_hash(cfg))
    path = work / "cells" / _flat(setup) / f"{subject}-seed{cfg.seed}-{key_of(*made_of)}.parquet"
    return Cell(setup, subject, cfg.seed, _into(cfg, folder), path)


def make_cell(cell: Cell) -> float | Refusal:
    """Fit and predict, and keep what was predicted; returns the seconds it took, or that the data are too few."""
    from benchmarks.accuracy_predictions import predictions

    start = time.monotonic()
    cell.path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=SCRATCH, dir=cell.path.parent) as checkpoints:
        try:
            table = predictions(cell.subject, cell.cfg, Path(checkpoints))
        except TooFewSnapshotsError as error:
            return Refusal.of(error)
    with _aside(cell.path).open("wb") as file:
        table.write_parquet(file)
        file.flush()
        os.fsync(file.fileno())
    _aside(cell.path).replace(cell.path)
    return time.monotonic() - start


def sweep_up(work: Path) -> None:
    """Remove what a killed run left half done."""
    for place in ("markets", "setups", "cells/*"):
        for left in (work).glob(f"{place}/.*"):
            if left.is_dir():
                shutil.rmtree(left)
            else:
                left.unlink()


def _into(cfg: Config, folder: Path) -> Config:
    return dataclasses.replace(cfg, out=str(folder))


def _flat(name: str) -> str:
    return name.replace("/", "__")


def _aside(path: Path) -> Path:
    return path.with_name(f".{path.name}.new")


def _fresh(folder: Path) -> Path:
    """An empty folder beside `folder`, whatever a killed run left there."""
    aside = _aside(folder)
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    return aside


def _settle(aside: Path, folder: Path) -> None:
    """Rename to the final place; of the same name made of something else, nothing stays."""
    name = folder.name.rsplit("-", 1)[0]
    for stale in folder.parent.glob(f"{name}-*"):
        shutil.rmtree(stale)
    aside.rename(folder)
