"""An exported bundle says what training says, to 1e-5 in volatility, or it isn't written; tampering is seen."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from models import pricing
from models.pricing import PricingNet
from pipelines import export, train
from pipelines.config import Config, load_config
from pipelines.dataset import FeatureStore
from pipelines.tasks.pricing import predict
from pipelines.tasks.pricing_bundle import largest_difference
from pipelines.trained import load_trained
from serving.bundle import Bundle, load_bundle
from serving.demo import unpack_demo
from serving.engine import open_engine
from serving.errors import BundleError, DataError, EngineError
from serving.pricing import OK, feature_spec, price_chain
from tests.pipelines import market
from tests.pipelines.conftest import TinyRun


def beside(tiny_run: TinyRun, folder: Path) -> Config:
    """The tiny run's configuration in another folder, its stages linked there."""
    (folder / "out").mkdir(parents=True)
    for stage in ("ingest", "features", "train"):
        (folder / "out" / stage).symlink_to(tiny_run.out / stage)
    return load_config([*tiny_run.overrides, f"out={folder}/out"])


@pytest.fixture(scope="module")
def exported(tiny_run: TinyRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the export stage."""
    cfg = beside(tiny_run, tmp_path_factory.mktemp("export"))
    result = export.run(cfg)
    assert result.bundle == cfg.folder / "export/pricing_lstm/bundle"
    return result.bundle.parent


@pytest.fixture
def bundle(exported: Path) -> Bundle:
    return load_bundle(exported / "bundle", model="pricing_lstm")


def test_bundle_holds_what_a_host_needs(bundle: Bundle, tiny_run: TinyRun) -> None:
    assert set(bundle.manifest.files) == {
        "member-0/window.onnx", "member-0/step.onnx", "member-0/head.onnx", "member-0/weights.safetensors",
        "golden.npz", "demo.npz", "reference.npz",
    }  # fmt: skip
    store = FeatureStore.open(tiny_run.out / "features")
    assert feature_spec(bundle) == store.spec
    assert bundle.manifest.semantics == "window"
    weights = (tiny_run.out / "train/pricing_lstm/weights.safetensors").read_bytes()
    assert bundle.read("member-0/weights.safetensors") == weights
    reference = bundle.arrays("reference.npz")
    training = int((store.rows["split"] == "train").sum())
    assert (reference["contracts"].sum(axis=1) == training).all()
    assert reference["edges"].shape == (reference["steps"].shape[1] + 1,)


def test_bundle_is_the_same_wherever_it_is_made(bundle: Bundle, tiny_run: TinyRun, tmp_path: Path) -> None:
    """Nothing of the machine goes in (the exporter would note source paths), so equal training gives an equal name."""
    again = export.run(beside(tiny_run, tmp_path))
    assert again.sha256 == bundle.sha256
    folders = (str(Path(export.__file__).parents[1]), str(tiny_run.out))
    for name in bundle.manifest.files:
        content = bundle.read(name)
        assert not any(folder.encode() in content for folder in (*folders, "site-packages")), name


def test_parity_is_recorded_and_small(exported: Path) -> None:
    parity = json.loads((exported / "parity.json").read_text())
    assert parity["tolerance"] == 1e-5
    assert parity["max_abs_iv_difference"] <= 1e-5
    assert parity["golden"]
    assert all(check["difference"] <= check["tolerance"] for check in parity["golden"])


def test_engine_answers_as_training_does(bundle: Bundle, tiny_run: TinyRun) -> None:
    store = FeatureStore.open(tiny_run.out / "features")
    trained = load_trained(tiny_run.out / "train/pricing_lstm", tiny_run.out / "features")
    assert isinstance(trained.net, PricingNet)
    assert largest_difference(bundle, trained.net, store) <= 1e-5
    with torch.no_grad():
        trained.net.head.trust.fill_(1.0)
        trained.net.head.linear.bias += 1.0  # another net: one unit, so 0.01 of volatility wherever anchors quote
    assert largest_difference(bundle, trained.net, store) > 0.005


def check_demo(bundle: Bundle, folder: Path) -> int:
    """The host, from the demo's quotes alone, reaches training's volatilities; number of scored rows compared."""
    store = FeatureStore.open(folder / "features")
    trained = load_trained(folder / "train/pricing_lstm", folder / "features")
    demo, expected = unpack_demo(bundle.arrays("demo.npz"), "demo.npz")
    priced = price_chain(open_engine(bundle, "ort"), feature_spec(bundle), demo.chain, demo.path, demo.now)
    np.testing.assert_allclose(priced.volatility, expected, atol=1e-5)
    test = store.rows.filter(pl.col("split") == "test").with_columns(iv=pl.Series(predict(trained.net, store, "test")))
    host = pl.DataFrame({
        "root": priced.root, "expiry": priced.expiry.astype("datetime64[ns]"), "strike": priced.strike,
        "right_sign": priced.right, "host": priced.volatility, "status": priced.status, "price": priced.price,
    })  # fmt: skip
    both = test.filter(pl.col("ts") == test["ts"].max()).join(host, on=["root", "expiry", "strike", "right_sign"])
    np.testing.assert_allclose(both["host"].to_numpy(), both["iv"].to_numpy(), atol=1e-5)
    assert set(both["status"]) == {OK}
    return len(both)


def test_demo_is_priced_by_the_host_as_by_training(bundle: Bundle, tiny_run: TinyRun) -> None:
    rows = FeatureStore.open(tiny_run.out / "features").rows
    assert check_demo(bundle, tiny_run.out) == len(rows.filter(pl.col("ts") == rows["ts"].max()))


@pytest.mark.slow
def test_demo_leaves_out_what_training_passed_over(tmp_path: Path) -> None:
    """The snapshot before the last one is useless; two layers, several snapshots a day, and a history, too."""
    table = market.market(times=("15:00", "18:00"))
    useless = table["ts"].unique().sort()[-2]
    table = table.with_columns(bid=pl.when(pl.col("ts") == useless).then(0.0).otherwise(pl.col("bid")))
    closes = pl.DataFrame({"date": ["2023-12-28", "2023-12-29"], "close": [401.0, 399.0]})
    closes.write_csv(tmp_path / "history.csv")
    cfg = market.featured(tmp_path, table, f"data.history={tmp_path}/history.csv", "model.layers=2", "trainer.epochs=1")
    train.run(cfg)
    result = export.run(cfg)
    assert check_demo(load_bundle(result.bundle), cfg.folder) > 20


def refused(cfg: Config) -> str:
    """What export says when it writes no bundle."""
    with pytest.raises(EngineError) as caught:
        export.run(cfg)
    assert not (cfg.folder / "export/pricing_lstm/bundle").exists()
    return str(caught.value)


@pytest.mark.parametrize("bias", [0.01, float("nan")])
def test_wrong_parity_is_refused(
    tmp_path: Path, tiny_run: TinyRun, monkeypatch: pytest.MonkeyPatch, bias: float
) -> None:
    whole = pricing._Head.forward

    def wrong(self: Any, context: torch.Tensor, contracts: torch.Tensor) -> torch.Tensor:
        return whole(self, context, contracts) + bias

    monkeypatch.setattr(pricing._Head, "forward", wrong)
    cfg = beside(tiny_run, tmp_path)
    message = refused(cfg)
    assert "ONNX Runtime differs from PyTorch" in message
    assert "iv" in message
    assert (cfg.folder / "export/pricing_lstm/parity.json").exists()


def test_a_frozen_axis_is_refused(tmp_path: Path, tiny_run: TinyRun, monkeypatch: pytest.MonkeyPatch) -> None:
    """The exporter freezes what it can't follow, and says nothing."""
    monkeypatch.setattr(torch.export, "Dim", lambda *arguments, **options: None)
    message = refused(beside(tiny_run, tmp_path))
    assert "member-0/head.onnx" in message
    assert "wanted [None, " in message


@pytest.mark.parametrize("name", ["member-0/weights.safetensors", "member-0/head.onnx", "demo.npz", "manifest.json"])
def test_tampering_is_refused(exported: Path, name: str) -> None:
    expected = load_bundle(exported / "bundle").sha256
    path = exported / "bundle" / name
    content = path.read_bytes()
    wrong = content.replace(b"pricing_lstm", b"pricing_lstn", 1) if name == "manifest.json" else b""
    mode = path.stat().st_mode
    path.chmod(0o600)
    try:
        path.write_bytes(wrong or content[:-1] + bytes([content[-1] ^ 1]))
        with pytest.raises(BundleError):
            load_bundle(exported / "bundle", expected_sha256=expected)
    finally:
        path.write_bytes(content)
        path.chmod(mode)
    load_bundle(exported / "bundle", expected_sha256=expected)


def test_missing_training_is_told(tmp_path: Path, tiny_run: TinyRun) -> None:
    cfg = market.featured(tmp_path, market.market())
    with pytest.raises(DataError, match=r"run python -m pipelines\.train"):
        export.run(cfg)
