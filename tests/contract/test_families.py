"""Every family of nets goes the whole way on the tiny market: quotes to report, to bundle, to a host that uses it.

Slow: a whole run for each family. The host's commands are the ones a person types, on a store with a ledger.
"""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from models import FAMILIES
from pipelines import export, run
from pipelines.config import Config, load_config
from pipelines.dataset import FeatureStore
from pipelines.tasks import task_name
from pipelines.tasks.surface import regime_names
from pipelines.tasks.surface_bundle import surface_input, torch_net
from pipelines.tasks.surface_evaluation import HIDDEN_SHARES
from pipelines.trained import load_trained
from serving.bundle import Bundle, load_bundle, store_bundle
from serving.cli import main
from serving.demo import unpack_demo
from serving.engine import open_surface_engine, unavailable_engines
from serving.errors import DataError, EngineError, run_command
from serving.folder_store import FolderStore
from serving.ledger import Ledger
from serving.surface_grid import CELLS
from serving.surface_host import inspect_chain
from tests.pipelines import market

pytestmark = pytest.mark.slow
only_surfaces = pytest.mark.parametrize("made", ["surface_vae"], indirect=True)
COMPLETED_BY = {"model", "interpolation", "grid_interpolation", "svi", "sticky_strike", "shifted_last"}


@dataclass(frozen=True)
class Made:
    """A finished run and its bundle, released in a store."""

    family: str
    cfg: Config
    bundle: Bundle
    store: Path

    def host(self, *arguments: object) -> int:
        """Exit code of `strikeforge-host`."""
        command, *rest = arguments
        told = [
            command,
            "--engine",
            "ort",
            "--model",
            self.family,
            "--channel",
            "champion",
            "--store",
            self.store,
            "--development",
            *rest,
        ]
        return run_command(main, [str(one) for one in told])


@pytest.fixture(scope="module", params=sorted(FAMILIES))
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """ingest, features, train, evaluate, export; then what register and promote leave in a store."""
    family = request.param
    folder = tmp_path_factory.mktemp(family)
    quotes = market.write(market.market(), folder / "quotes.parquet")
    cfg = load_config(market.overrides(folder, quotes, "trainer.epochs=2", family=family))
    run.run(cfg)
    exported = export.run(cfg)
    bundle = load_bundle(exported.bundle, expected_sha256=exported.sha256, model=family)
    store_bundle(FolderStore(folder / "store"), bundle)
    ledger = Ledger(FolderStore(folder / "store"), family)
    state = ledger.state()
    for kind, details in (("registered", {}), ("gated", {"passed": True}), ("promoted", {})):
        state = ledger.append(state, kind, version=1, bundle=bundle.sha256, by="test", details=details)
    return Made(family, cfg, bundle, folder / "store")


def test_a_run_leaves_its_report_and_metrics(made: Made) -> None:
    metrics = json.loads((made.cfg.folder / "metrics.json").read_text())
    assert metrics["model"] == made.family
    assert np.isfinite(metrics["test"]["model"]["iv_rmse"])
    assert metrics["best_baseline"]["name"] in metrics["test"]
    page = (made.cfg.folder / "report.html").read_text()
    assert made.family in page
    assert list((made.cfg.folder / "evaluate" / made.family / "figures").glob("*.png"))
    if task_name(made.family) == "surface":
        assert set(metrics["test"]) == COMPLETED_BY
        completion = pl.DataFrame(metrics["measures"]["completion"])
        assert set(completion["hidden"]) == {f"{100 * share:.0f} %" for share in HIDDEN_SHARES}
        assert set(completion["predictor"]) == COMPLETED_BY | {"net alone"}
        assert all(0 <= row["AUC of the score"] <= 1 for row in metrics["measures"]["faults"])


@only_surfaces
def test_predictions_of_surfaces_are_hidden_test_quotes(made: Made) -> None:
    predictions = pl.read_parquet(made.cfg.folder / "predictions.parquet")
    store = FeatureStore.open(made.cfg.folder / "features")
    test = store.rows.filter(pl.col("split") == "test")
    assert 0.3 * len(test) < len(predictions) < 0.7 * len(test)
    key = ["root", "strike", "tau", "iv_market"]
    assert predictions.join(test, on=key, how="anti").is_empty()
    for name in COMPLETED_BY:
        assert predictions[f"iv_{name}"].is_finite().all()


def test_parity_with_training_is_recorded(made: Made) -> None:
    parity = json.loads((made.cfg.folder / "export" / made.family / "parity.json").read_text())
    assert parity["max_abs_iv_difference"] <= parity["tolerance"]
    assert parity["golden"]
    assert all(check["difference"] <= check["tolerance"] for check in parity["golden"])
    weights = {name for name in made.bundle.manifest.files if name.endswith(".safetensors")}
    assert weights == {"member-0/weights.safetensors"}


def test_a_host_uses_the_bundle(made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.csv"
    if task_name(made.family) == "surface":
        assert made.host("inspect", "--demo", "--out", out) == 0
        told = capsys.readouterr().out
        assert f"{CELLS} cells as expected" in told
        assert "anomaly score" in told
    else:
        assert made.host("price", "--demo", "--out", out) == 0
        assert "volatilities as expected" in capsys.readouterr().out
        assert made.host("inspect") == 0
        told = capsys.readouterr().out
    assert "BROKEN" not in told
    assert "golden" in told
    with out.open() as file:
        assert len(list(csv.DictReader(file))) > 20


@only_surfaces
@pytest.mark.skipif(unavailable_engines()["native"] is not None, reason=str(unavailable_engines()["native"]))
def test_a_surface_is_judged_natively_unless_said_and_in_fp32_alone(
    made: Made, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["inspect", "--model", made.family, "--store", str(made.store), "--development", "--demo"]
    assert run_command(main, asked) == 0
    told = capsys.readouterr().out
    assert "engine native " in told
    assert f"{CELLS} cells as expected" in told
    assert run_command(main, [*asked, "--precision", "bf16"]) == 8
    assert "surfaces are completed and judged in fp32, 'bf16' was asked for" in capsys.readouterr().err


def test_a_host_refuses_the_other_tasks_command_by_name(
    made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if task_name(made.family) == "surface":
        code, word = made.host("price", "--demo", "--out", tmp_path / "out.csv"), "prices nothing"
    else:
        code, word = made.host("inspect", "--demo"), "judges no surface"
    assert code in (DataError.exit_code, EngineError.exit_code)
    assert word in capsys.readouterr().err
    assert not (tmp_path / "out.csv").exists()


@only_surfaces
def test_a_surface_is_judged_as_in_training(made: Made) -> None:
    """From the demo's quotes alone the host reaches the grid, the completion and the regimes of the feature store."""
    store = FeatureStore.open(made.cfg.folder / "features")
    trained = load_trained(made.cfg.folder / "train" / made.family, made.cfg.folder / "features")
    demo, expected = unpack_demo(made.bundle.arrays("demo.npz"), "demo.npz")
    found = inspect_chain(made.bundle, open_surface_engine(made.bundle), [*demo.chain, demo.now])
    place = int(store.places("test")[-1])
    with torch.no_grad():
        wanted = torch_net(trained.net)(surface_input(store, place))
    np.testing.assert_array_equal(found.grid.mask, store.grids[place, 1])
    np.testing.assert_allclose(found.grid.volatility, store.grids[place, 0], atol=1e-6)
    np.testing.assert_allclose(found.completed, wanted.completed[0], atol=1e-5)
    np.testing.assert_allclose(found.completed, expected, atol=1e-5)
    if regime_names(store):
        np.testing.assert_allclose(list(found.regimes.values()), wanted.regime[0], atol=1e-4)
    else:
        assert found.regimes == {}, "the tiny market has too few different volatilities to label"
    assert found.score is not None
