"""The model card of a version: what it is, what it may be used for, what it was made of, how well it does.

In: a run's configuration and what its stages left under OUT (`gather`). Out: Markdown (`render`), written by the
register stage, and a line for MLflow (`headline`).
Invariants: every number is read from a file of the run; equal files give equal bytes (no times, no places); text that
people wrote is escaped. The version's number isn't known yet: the card names the bundle.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.config import Config, config_hash, without_places
from serving.bundle import Bundle, load_bundle
from serving.errors import DataError
from serving.last_seen import LARGEST_VOLATILITY, MONEYNESS_LIMIT, SMALLEST_PRICE, TAU_RANGE
from serving.surface import DAYS_PER_YEAR

if TYPE_CHECKING:
    from pipelines.comparison import Training

CARD = "MODEL_CARD.md"
DVC_OUT = Path("artifacts")  # where dvc.yaml's stages write


@dataclass(frozen=True, kw_only=True)
class CardInputs:
    """What a card is made from; the mappings are the files' contents."""

    cfg: Config
    bundle: Bundle
    metrics: Mapping[str, Any]  # evaluate/MODEL/metrics.json
    parity: Mapping[str, Any]  # export/MODEL/parity.json
    counts: Mapping[str, Any]  # ingest/counts.json
    features: Mapping[str, Any]  # features/summary.json
    quotes: Mapping[str, str]  # distinct values of some columns of ingest/quotes.parquet
    lineage: Mapping[str, str]
    training: Training


def gather(cfg: Config, lineage: Mapping[str, str]) -> CardInputs:
    """Read everything of a run; DataError names what isn't there and which stage makes it."""
    import polars as pl

    from pipelines.comparison import read_training

    name, out = cfg.model.name, cfg.folder
    made_by = {
        out / "evaluate" / name / "metrics.json": "evaluate", out / "export" / name / "parity.json": "export",
        out / "ingest" / "counts.json": "ingest", out / "ingest" / "quotes.parquet": "ingest",
        out / "features" / "summary.json": "features",
    }  # fmt: skip
    lacking = [f"{path} (python -m pipelines.{stage})" for path, stage in made_by.items() if not path.exists()]
    if lacking:
        raise DataError(f"a model card needs {', '.join(lacking)}: run the stages with the same out= and model={name}")
    metrics, parity, counts, _, features = made_by
    quotes = pl.scan_parquet(out / "ingest" / "quotes.parquet")
    columns = ("underlying", "root", "style", "settlement", "currency")
    return CardInputs(
        cfg=cfg, bundle=load_bundle(out / "export" / name / "bundle", model=name), lineage=dict(lineage),
        training=read_training(out / "train" / name), metrics=_json(metrics), parity=_json(parity),
        counts=_json(counts), features=_json(features),
        quotes={column: ", ".join(str(value) for value in quotes.select(pl.col(column).unique().sort())
                                  .collect()[column].to_list()) for column in columns},
    )  # fmt: skip


def _json(path: Path) -> Any:
    return json.loads(path.read_text())


def headline(bundle_sha256: str, metrics: object) -> str:
    """A line for the registry: the bundle, and what of its errors is known."""
    text = f"Bundle {bundle_sha256}."
    test = metrics.get("test") if isinstance(metrics, Mapping) else None
    own = test.get("model") if isinstance(test, Mapping) else None
    best = metrics.get("best_baseline") if isinstance(metrics, Mapping) else None
    if isinstance(own, Mapping) and "iv_rmse" in own:
        text += f" IV RMSE on the test dates {own['iv_rmse']:.4g} vol points"
        if isinstance(best, Mapping) and {"name", "iv_rmse"} <= best.keys():
            text += f"; best baseline {best['name']}, {best['iv_rmse']:.4g}"
        text += "."
    return f"{text} Artifact of the run: {CARD}."


def render(inputs: CardInputs) -> str:
    """The card's Markdown."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    from pipelines.report import TEMPLATES, SanityBound

    def shown(value: object) -> object:
        return value if isinstance(value, Markup) or not isinstance(value, str) else escaped(value)

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
        finalize=shown, keep_trailing_newline=True,
    )  # fmt: skip  # Markdown, not HTML: `shown` escapes
    environment.filters |= {"number": _number, "p": _p, "percent": lambda share: f"{100 * share:.2f} %"}
    cfg, spec = inputs.cfg, inputs.bundle.manifest.feature_spec
    as_trained = config_hash(cfg) == inputs.lineage["trained_config_sha256"]
    return environment.get_template("model_card.md.j2").render(
        **{name: getattr(inputs, name) for name in inputs.__dataclass_fields__},
        task=cfg.model.task, manifest=inputs.bundle.manifest, spec=spec, results=_results(inputs.metrics),
        measures=_measures(inputs.metrics), sanity=[SanityBound(**bound) for bound in inputs.metrics["sanity"]],
        settings=asdict(cfg.trainer) | {name: value for name, value in asdict(cfg.model).items() if name != "name"},
        as_trained=as_trained, by_dvc=cfg.folder == DVC_OUT, configuration=Markup(_configuration(cfg)),
        reproduce=Markup(_reproduce(inputs)),
        card_range={
            "shortest": TAU_RANGE[0] * DAYS_PER_YEAR, "longest": TAU_RANGE[1] * DAYS_PER_YEAR,
            "moneyness": MONEYNESS_LIMIT, "price": SMALLEST_PRICE, "volatility": LARGEST_VOLATILITY,
        },
    )  # fmt: skip


def escaped(text: str) -> str:
    """Text on one line in which neither Markdown nor HTML finds anything of theirs."""
    one_line = re.sub(r"\s+", " ", text)
    one_line = re.sub(r"([\\`*\[\]|])", r"\\\1", re.sub(r"&(?=[#\w]+;)", "&amp;", one_line)).replace("<", "&lt;")
    return re.sub(r"^( ?)(?=#|>|~~~|[-+] |---|===)", r"\1\\", one_line)  # what begins a block


def _number(value: float | None, pattern: str = ".3f") -> str:
    return "-" if value is None or math.isnan(value) else format(value, pattern)


def _p(value: float | None) -> str:
    from pipelines.report_tables import p_text

    return "-" if value is None or math.isnan(value) else p_text(value)


def _results(metrics: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row per predictor, the model first, then the baselines from the best: its errors, and the test against it."""
    from pipelines.metrics import MODEL, DieboldMariano
    from pipelines.plot_style import label
    from pipelines.report import FINDINGS, conclusion

    test, own = metrics["test"], metrics["test"][MODEL]
    rows = []
    for name in sorted(test, key=lambda name: (name != MODEL, test[name]["iv_rmse"])):
        row = {"name": label(name), **test[name], "t": None, "p": None, "finding": ""}
        if name in metrics["diebold_mariano"]:
            said = metrics["diebold_mariano"][name]
            t, p, mean = (math.nan if said[key] is None else said[key] for key in ("t", "p", "mean_difference"))
            test_of = DieboldMariano(t, p, mean, said["dates"], said["reason"])
            row |= {"t": t, "p": p, "finding": test_of.reason or FINDINGS[conclusion(own, test[name], test_of)]}
        rows.append(row)
    return rows


def _measures(metrics: Mapping[str, Any]) -> list[tuple[str, list[str], list[list[str]]]]:
    """What else the evaluation measured, a table each: title, headings, rows of text."""
    titles = {"shape": "Shape on a dense grid of strikes: the market's mids and the predictors (pipelines/shape.py)",
              "completion": "Completion by share of quotes hidden (IV RMSE in vol points)",
              "faults": "Faults put into surfaces: areas under the ROC curve",
              "regimes": "Regimes against their labels"}  # fmt: skip
    tables = []
    for name, title in titles.items():
        rows = (metrics.get("measures") or {}).get(name) or []
        if rows:
            cells = [
                [_number(value) if isinstance(value, float) else str(value) for value in row.values()] for row in rows
            ]
            tables.append((title, [head.replace("_", " ") for head in rows[0]], cells))
    return tables


def _configuration(cfg: Config) -> str:
    """The resolved configuration without the places where files lie, as YAML, each line indented as code."""
    from omegaconf import OmegaConf

    content = OmegaConf.to_yaml(OmegaConf.create(without_places(cfg)))
    return "".join(f"    {line}\n" for line in content.splitlines())


def _reproduce(inputs: CardInputs) -> str:
    """Commands that make this version's bundle again, each line indented as code."""
    name, commit = inputs.cfg.model.name, inputs.lineage["git_commit"]
    lines = [] if commit == "unknown" else [f"git checkout {commit}"]
    if inputs.cfg.folder == DVC_OUT:
        lines += ["make install", f"dvc repro evaluate@{name} export@{name}"]
    else:
        stages = ("ingest", "features", "train", "evaluate", "export")
        lines += [f"python -m pipelines.{stage} model={name} out=DIR [KEY=VALUE ...]" for stage in stages]
    return "".join(f"    {line}\n" for line in lines)
