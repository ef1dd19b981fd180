"""What each part of the pricing recipe is worth: fits without it, on the walk-forward folds.

In: the folder of market data; the features that the accuracy benchmark keeps in its work folder (made where missing).
Out: benchmarks/results/ablations.{jsonl,md}: per ablation and fold the errors over seeds, `all folds` pooled.
An ablation is overrides of the configuration, or columns of the features put to one value for all rows (their mean over
the training dates: a scaled 0), or the prior put back to what anchored sticky strike says.
Invariants: the whole recipe is among the subjects; every subject is fitted as the train stage fits, on the same rows; a
finished fit is kept in the work folder by what made it, so that the same command goes on after a kill.

Run: python -m benchmarks.ablations [--family pricing_lstm] [--seeds 7,8,9] [--work DIR] [--data DIR]
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from benchmarks import accuracy_cells as cells
from benchmarks.accuracy_cases import EXPERIMENT, FOLDS, MARKETS, SETUPS
from benchmarks.accuracy_keys import code, key_of, libraries, own_code
from benchmarks.results import write_results
from pipelines.config import Config, config_hash, load_config
from pipelines.dataset import FeatureStore
from pipelines.lineage import ROOT, features_hash
from pipelines.progress import progress
from pipelines.tasks.pricing import PRIOR, predict
from pipelines.tasks.pricing_evaluation import price, test_rows
from pipelines.trust import fit_trusted
from serving.features import CONTRACT_FEATURES, STEP_FEATURES

Change = Callable[[FeatureStore], FeatureStore]
WHOLE = "the whole recipe"
BENCH = "ablations"


@dataclasses.dataclass(frozen=True)
class Ablation:
    """What is different: overrides of the configuration, and of the features."""

    overrides: tuple[str, ...] = ()
    change: Change | None = None


def without_columns(*names: str) -> Change:
    """Contract features at their training mean."""
    places = [CONTRACT_FEATURES.index(name) for name in names]

    def change(store: FeatureStore) -> FeatureStore:
        contracts = np.array(store.contracts)
        contracts[:, places] = 0.0
        return dataclasses.replace(store, contracts=contracts)

    return change


def without_context(store: FeatureStore) -> FeatureStore:
    """Every market step at its training mean: the encoder has nothing to tell dates apart by."""
    return dataclasses.replace(store, steps=np.zeros((len(store.steps), len(STEP_FEATURES)), np.float32))


def quoted_prior(store: FeatureStore) -> FeatureStore:
    """The prior as anchored sticky strike has it: the last smile as quoted."""
    contracts = np.array(store.contracts)
    contracts[:, PRIOR] = np.maximum((store.rows["last_volatility"] + store.rows["shift"]).to_numpy(), 0.01)
    return dataclasses.replace(store, contracts=contracts)


ABLATIONS: Mapping[str, Ablation] = {
    WHOLE: Ablation(),
    "no other laws": Ablation(change=without_columns("moneyness_law", "scaled_law")),
    "no sticky moneyness": Ablation(change=without_columns("moneyness_law")),
    "no scaled smile": Ablation(change=without_columns("scaled_law")),
    "last smile not smoothed": Ablation(change=quoted_prior),
    "no return": Ablation(change=without_columns(*(name for name in CONTRACT_FEATURES if name.startswith("return")))),
    "no forward deviation": Ablation(change=without_columns("deviation", "deviation_slope")),
    "no business or elapsed time": Ablation(change=without_columns("business_share", "elapsed_share")),
    "no market sequence": Ablation(change=without_context),
    "no loss in money": Ablation(("trainer.price_share=0.0",)),
    "all dates weigh the same": Ablation(("trainer.day_weight_power=0.0",)),
    "head of 64": Ablation(("model.head_width=64",)),
    "twice the epochs": Ablation(("trainer.epochs=50",)),
    "corrections trusted in full": Ablation(("trainer.trust_share=0.0",)),
}  # fmt: skip


def main(arguments: Sequence[str]) -> int:
    """Fit what is missing, score, write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ablations", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--family", default="pricing_lstm")
    parser.add_argument("--seeds", default="7,8,9")
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--work", type=Path, default=ROOT / "out" / "accuracy")
    said = parser.parse_args(arguments)
    seeds = [int(word) for word in said.seeds.split(",")]
    folders = _features(said.data, said.work)
    wanted = [(name, fold, seed) for name in ABLATIONS for fold in FOLDS for seed in seeds]
    found = {
        (name, fold, seed): _fitted(ABLATIONS[name], fold, said, seed, folders[fold])
        for name, fold, seed in progress(wanted, "ablations: fits")
    }
    rows = [
        {"case": f"spx_2019/{fold}", "subject": name, "family": said.family, "metric": metric, "unit": unit, **value}
        for name in ABLATIONS
        for fold in (*FOLDS, "all folds")
        for metric, unit, value in _scores(found, folders, name, list(FOLDS) if fold == "all folds" else [fold], seeds)
    ]
    for path in write_results(BENCH, rows, note=_note(rows, said.family, seeds)):
        sys.stdout.write(f"{path}\n")
    return 0


def _configuration(fold: str, family: str, data: Path, *overrides: str) -> Config:
    market, setup = MARKETS["spx_2019"], SETUPS[f"spx_2019/{fold}"]
    path = (data / str(market.path)).resolve()
    return load_config([EXPERIMENT, *market.overrides, f"data.path='{path}'", *setup.overrides, f"model={family}",
                        *overrides, "hardware=cpu", "hardware.threads=1"])  # fmt: skip


def _features(data: Path, work: Path) -> dict[str, Path]:
    """The folds' features, those of the accuracy benchmark."""
    out = {}
    for fold in FOLDS:
        cfg = _configuration(fold, "pricing_lstm", data)
        market = cells.market_folder("spx_2019", cfg, work)
        cells.make_market(cfg, market)
        out[fold] = cells.setup_folder(f"spx_2019/{fold}", cfg, market, work)
        cells.make_setup(cfg, market, out[fold])
    return out


def _fitted(ablation: Ablation, fold: str, said: argparse.Namespace, seed: int, folder: Path) -> pl.DataFrame:
    """`iv` and `price` of the test rows, from the work folder or fitted now."""
    cfg = _configuration(fold, said.family, said.data, *ablation.overrides, f"seed={seed}")
    name = next(name for name, one in ABLATIONS.items() if one is ablation)
    of_change = name if ablation.change else ""
    made_of = (features_hash(folder / "features"), config_hash(cfg), seed, of_change)
    key = key_of(*made_of, code()["fit"], own_code("benchmarks.ablations"), libraries())
    path: Path = said.work / BENCH / f"{fold}-seed{seed}-{key}.parquet"
    if not path.exists():
        store = FeatureStore.open(folder / "features")
        changed = ablation.change(store) if ablation.change else store
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as checkpoints:
            net: Any = fit_trusted(cfg, changed, Path(checkpoints)).net
        volatility = predict(net, changed, "test")
        prices = price(test_rows(store), volatility, "forward_model")
        aside = path.with_name(f".{path.name}")
        pl.DataFrame({"iv": volatility, "price": prices}).write_parquet(aside)
        aside.replace(path)
    return pl.read_parquet(path)


def _scores(
    found: Mapping[tuple[str, str, int], pl.DataFrame], folders: Mapping[str, Path], name: str, folds: list[str],
    seeds: list[int],
) -> list[tuple[str, str, dict[str, float]]]:  # fmt: skip
    """Metric, unit, mean and spread over seeds; ratios are against anchored sticky strike on the same rows."""
    truth = pl.concat([test_rows(FeatureStore.open(folders[fold] / "features")) for fold in folds])
    market, mid = truth["iv_market"].to_numpy(), 0.5 * (truth["bid"] + truth["ask"]).to_numpy()
    anchored = (truth["last_volatility"] + truth["shift"]).to_numpy()
    anchored_price = price(truth, anchored, "forward_carried")
    figures = []
    for seed in seeds:
        one = pl.concat([found[name, fold, seed] for fold in folds])
        iv, quoted = one["iv"].to_numpy(), one["price"].to_numpy()
        inside = (quoted >= truth["bid"].to_numpy()) & (quoted <= truth["ask"].to_numpy())
        figures.append([_root(iv - market) * 100, _root(iv - market) / _root(anchored - market),
                        _root(quoted - mid) / _root(anchored_price - mid), 100 * inside.mean()])  # fmt: skip
    mean, spread = np.mean(figures, axis=0), np.std(figures, axis=0)
    kinds = (("iv_rmse", "vol points"), ("iv_ratio_to_anchored", "ratio"), ("price_ratio_to_anchored", "ratio"),
             ("inside_spread", "%"))  # fmt: skip
    return [(metric, unit, {"value": float(mean[place]), "std_over_seeds": float(spread[place])})
            for place, (metric, unit) in enumerate(kinds)]  # fmt: skip


def _root(errors: np.ndarray) -> float:
    return float(np.sqrt(np.mean(errors**2)))


def _note(rows: Sequence[Mapping[str, Any]], family: str, seeds: Sequence[int]) -> str:
    """The table to read."""
    places = (*FOLDS, "all folds")
    lines = ["| recipe | " + " | ".join(places) + " |", "|---" * (1 + len(places)) + "|"]
    for name in ABLATIONS:
        line = [name]
        for fold in places:
            of = {row["metric"]: row for row in rows if (row["subject"], row["case"]) == (name, f"spx_2019/{fold}")}
            ratio, spread = (of["iv_ratio_to_anchored"][field] for field in ("value", "std_over_seeds"))
            money, inside = (of[metric]["value"] for metric in ("price_ratio_to_anchored", "inside_spread"))
            line.append(f"{ratio:.3f} ± {spread:.3f}, {money:.3f}, {inside:.1f} %")
        lines.append("| " + " | ".join(line) + " |")
    legend = ("IV RMSE over anchored sticky strike's (mean and standard deviation over seeds), price RMSE over its, "
              "share inside the spread")  # fmt: skip
    return f"`{family}`, seeds {', '.join(map(str, seeds))}. Cells: {legend}.\n\n" + "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
