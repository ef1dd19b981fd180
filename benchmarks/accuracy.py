"""Accuracy on real chains: every case, model and seed fitted, scored against every baseline, in one resumable run.

In: the folder of market data. Out: benchmarks/results/accuracy.{jsonl,md}; a run that was asked for a part (--only,
--models, --seeds, --override) writes them to WORK/results instead, unless --results says where. What is fitted is kept
in WORK piece by piece, by configuration, code and data: the same command again goes on after a kill at any time and
loses the running fits only; a changed recipe recomputes, an unchanged one doesn't.

Run: python -m benchmarks.accuracy [--only 'spx_2019/*'] [--workers 2]

Exit codes: 0 done; 2 an option or override is wrong; 3 the market data aren't there or can't be read; 1 anything else
that is the caller's to mend, as another run in the same work folder. Cases whose data are too few end nothing: the
stage's own message stands in the table.
"""

from __future__ import annotations

import argparse
import dataclasses
import fcntl
import fnmatch
import logging
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks import accuracy_cells as cells
from benchmarks import results
from benchmarks.accuracy_cases import BASELINES, CASES, EXPERIMENT, MARKETS, SETUPS, Case
from benchmarks.accuracy_workers import all_of, as_done, worker_pool
from pipelines.config import FAMILIES, Config, load_config
from pipelines.lineage import ROOT, features_hash
from serving.errors import ConfigError, DataError, StrikeforgeError, run_command

log = logging.getLogger("strikeforge.accuracy")

PRICING = tuple(name for name, family in FAMILIES.items() if family.task == "pricing")
SEEDS = (7, 8, 9, 10, 11)
DECIDED_HERE = ("experiment", "model", "seed", "out", "data.path", "hardware", "hardware.threads")


@dataclasses.dataclass(frozen=True)
class Options:
    """What was asked for; `results` is the folder of the two files."""

    cases: tuple[Case, ...]
    models: tuple[str, ...]
    seeds: tuple[int, ...]
    overrides: tuple[str, ...]
    workers: int
    data: Path
    work: Path
    results: Path


def parse(arguments: Sequence[str]) -> Options:
    """The command line; raises ConfigError with every problem."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.accuracy", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--only", nargs="+", default=["*"], metavar="CASE", help="cases, or patterns such as 'spx_2019/*'"
    )
    parser.add_argument("--models", default=",".join(PRICING), help="families, with commas between")
    parser.add_argument("--seeds", default=",".join(map(str, SEEDS)), help="whole numbers, with commas between")
    parser.add_argument("--override", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="for every fit")
    parser.add_argument("--workers", type=int, default=2, help="processes, of one thread each")
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data", help="folder of the market data")
    parser.add_argument("--work", type=Path, default=ROOT / "out" / "accuracy", help="folder of the finished pieces")
    parser.add_argument("--results", type=Path, help="folder of the two files")
    said = parser.parse_args(arguments)
    problems: list[str] = []
    chosen = _chosen(said.only, problems)
    models = tuple(dict.fromkeys(said.models.split(",")))
    problems += [f"--models: no pricing family {name!r}; there are {', '.join(PRICING)}"
                 for name in models if name not in PRICING]  # fmt: skip
    words = said.seeds.split(",")
    problems += [f"--seeds: {word!r} is no whole number" for word in words if not (word.isascii() and word.isdigit())]
    if said.workers < 1:
        problems.append(f"--workers: must be 1 or more (value {said.workers})")
    for override in said.override:
        key = override.lstrip("+").split("=")[0]
        if key in DECIDED_HERE:
            problems.append(f"--override {override}: {key} is decided by the benchmark; see --models, --seeds, --data")
    if problems:
        raise ConfigError(problems)
    seeds = tuple(dict.fromkeys(map(int, words)))
    whole = (chosen, models, seeds, said.override) == (tuple(CASES.values()), PRICING, SEEDS, [])
    place = said.results or (results.FOLDER if whole else said.work / "results")
    return Options(chosen, models, seeds, tuple(said.override), said.workers, said.data, said.work, place)


def _chosen(patterns: Sequence[str], problems: list[str]) -> tuple[Case, ...]:
    unmatched = [one for one in patterns if not fnmatch.filter(CASES, one)]
    problems += [f"--only: no case {one!r}; there are {', '.join(CASES)}" for one in unmatched]
    return tuple(case for name, case in CASES.items() if any(fnmatch.fnmatchcase(name, one) for one in patterns))


def run(options: Options) -> tuple[Path, Path]:
    """Compute what is missing, write both files, return their paths."""
    from benchmarks.accuracy_page import page
    from benchmarks.accuracy_table import Computed, result_rows, score_cases

    setups = list(dict.fromkeys(
        name for case in options.cases for name in (*case.setups, *([case.rows_of] if case.rows_of else []))
    ))  # fmt: skip
    paths = _market_paths(options, setups)
    with _alone(options.work):
        cells.sweep_up(options.work)
        configurations = {
            (name, model): _configuration(options, name, model, paths) for name in setups for model in options.models
        }
        with worker_pool(options.workers) as pool:
            folders = _prepare(pool, options, setups, configurations)
            refusals = {name: refusal for name, folder in folders.items() if (refusal := cells.refusal_of(folder))}
            wanted = _cells(options, configurations, {n: f for n, f in folders.items() if n not in refusals})
            refusals |= _fit(pool, options, wanted)
    computed = Computed({(cell.setup, cell.subject, cell.seed): cell.path for cell in wanted}, refusals)
    scored = score_cases(options.cases, options.models, options.seeds, computed)
    note = page(options.cases, options.models, options.seeds, scored, options.overrides)
    rows = result_rows(scored, len(options.seeds))
    return results.write_results("accuracy", rows, note=note, folder=options.results)


def _market_paths(options: Options, setups: Sequence[str]) -> dict[str, Path]:
    """Where each market's quotes lie; DataError names all that aren't there."""
    markets = [MARKETS[name] for name in dict.fromkeys(SETUPS[setup].market for setup in setups)]
    missing = [str(options.data / one.path) for one in markets if one.path and not (options.data / one.path).exists()]
    if missing:
        raise DataError(f"market data not found: {', '.join(missing)}; give their folder with --data DIR, or leave the "
                        "cases that need them out with --only (deribit_made_up/* needs none)")  # fmt: skip
    return {one.name: options.data / one.path if one.path else cells.make_up_coins(options.work / "made_up")
            for one in markets}  # fmt: skip


def _configuration(options: Options, setup: str, model: str, paths: dict[str, Path]) -> Config:
    """Of a model on a setup; the seed and the folder are put in later."""
    market = MARKETS[SETUPS[setup].market]
    return load_config([
        EXPERIMENT, *market.overrides, f"data.path='{paths[market.name].resolve()}'", *SETUPS[setup].overrides,
        f"model={model}", *options.overrides, "hardware=cpu", "hardware.threads=1",
    ])  # fmt: skip


def _prepare(
    pool: ProcessPoolExecutor, options: Options, setups: Sequence[str], configurations: dict[tuple[str, str], Config]
) -> dict[str, Path]:
    """Ingest each market and make each setup's features, where they aren't there; the setups' folders."""
    of_setup = {name: configurations[name, options.models[0]] for name in setups}
    markets: dict[str, Path] = {}
    jobs: dict[str, tuple[Any, ...]] = {}
    for name, cfg in of_setup.items():
        market = SETUPS[name].market
        if market not in markets:
            markets[market] = cells.market_folder(market, cfg, options.work)
            jobs[f"ingest {market}"] = (cells.make_market, cfg, markets[market])
    all_of(pool, jobs)
    folders = {
        name: cells.setup_folder(name, cfg, markets[SETUPS[name].market], options.work)
        for name, cfg in of_setup.items()
    }
    all_of(pool, {
        f"features {name}": (cells.make_setup, cfg, markets[SETUPS[name].market], folders[name])
        for name, cfg in of_setup.items()
    })  # fmt: skip
    return folders


def _cells(
    options: Options, configurations: dict[tuple[str, str], Config], folders: dict[str, Path]
) -> list[cells.Cell]:
    """Every cell of the chosen cases, the baselines of a setup first."""
    compared_only = {case.rows_of for case in options.cases} - {name for case in options.cases for name in case.setups}
    out = []
    for setup, folder in folders.items():
        features = features_hash(folder / "features")
        subjects = (BASELINES,) if setup in compared_only else (BASELINES, *options.models)
        for subject in subjects:
            cfg = configurations[setup, options.models[0] if subject == BASELINES else subject]
            for seed in options.seeds[:1] if setup in compared_only else options.seeds:
                seeded = dataclasses.replace(cfg, seed=seed)
                out.append(cells.cell_of(setup, subject, seeded, folder, features, options.work))
    return out


def _fit(pool: ProcessPoolExecutor, options: Options, wanted: Sequence[cells.Cell]) -> dict[str, cells.Refusal]:
    """Compute the cells that aren't there, saying how far it is and how long the rest will take.

    Returns the setups of which a fit said that the data are too few.
    """
    refusals: dict[str, cells.Refusal] = {}
    missing = [cell for cell in wanted if not cell.path.exists()]
    log.info("%d of %d cells are there, %d to compute", len(wanted) - len(missing), len(wanted), len(missing))
    fits = sum(cell.subject != BASELINES for cell in missing)
    spent: list[float] = []
    of_title = {f"{one.setup} {one.subject} seed {one.seed}": one for one in missing}
    jobs = {title: (cells.make_cell, one) for title, one in of_title.items()}
    for done, (title, seconds) in enumerate(as_done(pool, jobs), start=1):
        if isinstance(seconds, cells.Refusal):
            refusals[of_title[title].setup] = seconds
            log.warning("%d of %d: %s: %s", done, len(missing), title, seconds.message)
            continue
        if of_title[title].subject != BASELINES:
            spent.append(seconds)
        rest = (fits - len(spent)) * (sum(spent) / len(spent)) / options.workers if spent else None
        left = "" if rest is None else f"; about {rest / 60:.0f} min left"
        log.info("%d of %d: %s: %.0f s%s", done, len(missing), title, seconds, left)
    return refusals


@contextmanager
def _alone(work: Path) -> Iterator[None]:
    """The work folder for this process alone; the lock goes with the process."""
    work.mkdir(parents=True, exist_ok=True)
    with (work / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise StrikeforgeError(
                f"{work}: another run works there; wait for it, or give this one --work DIR"
            ) from error
        yield


def main(arguments: Sequence[str]) -> int:
    """Parse, run, say where the files are."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stderr)
    written = run(parse(arguments))
    sys.stdout.write("".join(f"{path}\n" for path in written))
    return 0


if __name__ == "__main__":
    raise SystemExit(run_command(main))
