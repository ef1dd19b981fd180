"""The whole way of an engine: trained, registered, compiled ahead of time, promoted with its pack, pulled, served.

Slow: one training, a TensorRT-RTX build, the gates. The commands are those that people type (docs/compile.md).
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from pipelines import compile as compiling
from pipelines import export, promote, register, run
from pipelines.config import load_compile, load_config, load_operation
from serving.cli import main
from serving.engine import unavailable_engines
from serving.engine_pack import EnginePack, load_pack
from serving.errors import BundleError, run_command
from serving.warm import ALLOWED
from tests.pipelines import market
from tests.pipelines.gates.world import LOOSE_LATENCY

MODEL, TARGET = "pricing_lstm", "trt_rtx_sm89_fp16"
WITHOUT = ("accuracy", "arbitrage")  # a net of two epochs isn't good; whether it is isn't asked here

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(unavailable_engines()["native"] is not None, reason=str(unavailable_engines()["native"])),
]


@dataclasses.dataclass(frozen=True)
class Site:
    """A version that is champion, with the pack that was compiled of it."""

    folder: Path
    pack: EnginePack
    message: str

    def host(self, *arguments: object) -> int:
        """Exit code of `strikeforge-host`."""
        return run_command(main, [str(one) for one in arguments])

    def pull(self, into: Path, *targets: str) -> int:
        root = self.folder / "keys/public/channel/1.root.json"
        told = ["--store", self.folder / "store", "--root", root, "--to", into, "--development"]
        return self.host("pull", "--model", MODEL, *told, *(word for one in targets for word in ("--target", one)))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    pytest.importorskip("tensorrt_rtx_bindings", reason="pip install 'strikeforge[trt-rtx]'")
    folder = tmp_path_factory.mktemp("site")
    quotes = market.write(market.market(), folder / "quotes.parquet")
    cfg = load_config(market.overrides(folder, quotes, "trainer.epochs=2"))
    run.run(cfg)
    export.run(cfg)
    version = register.run(cfg).version
    where = [f"model={MODEL}", f"version={version}", f"storage.url={folder}/store"]
    compiled = compiling.run(load_compile([
        *where, f"target={TARGET}", f"out={folder}/packs", f"bundles={folder}/bundles", f"cache={folder}/engines",
    ]))  # fmt: skip
    done = promote.run(load_operation([
        *where, f"registry.tracking_uri={cfg.registry.tracking_uri}", f"signing.folder={folder}/keys",
        "gate=development", *(f"gate.{name}.enabled=false" for name in WITHOUT),
        *(f"gate.latency.{name}={value}" for name, value in LOOSE_LATENCY.items()),
        "gate.precision.precision_slack=0.5", f"packs=[{compiled.pack.directory}]",
    ]))  # fmt: skip
    return Site(folder, compiled.pack, done.message)


def test_a_compiled_pack_says_how_far_its_engines_may_be(site: Site) -> None:
    allowed = site.pack.manifest.configuration[ALLOWED]
    assert set(allowed) == {"context", "iv"}
    assert all(0.0 < value < 0.1 for value in allowed.values())
    assert not site.pack.manifest.executed
    assert f"with engine packs native_bf16, native_fp32, native_int8, {TARGET}" in site.message


def test_a_host_pulls_it_and_serves_natively(site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert site.pull(tmp_path / "host", "native", TARGET) == 0
    assert f"engine packs: native_bf16, native_fp32, native_int8, {TARGET}" in capsys.readouterr().out
    (installed,) = (tmp_path / "host").rglob(f"packs/{TARGET}")
    assert load_pack(installed, expected_sha256=site.pack.sha256).manifest == site.pack.manifest
    asked = ["--model", MODEL, "--from", tmp_path / "host"]
    for precision in ("fp32", "bf16", "int8"):
        out = tmp_path / f"{precision}.csv"
        assert site.host("price", *asked, "--demo", "--out", out, "--engine", "native", "--precision", precision) == 0
        told = capsys.readouterr().out
        assert f"{precision}, 1 thread" in told
        assert "volatilities as expected" in told
        assert out.stat().st_size > 0
    assert site.host("inspect", *asked, "--precision", "int8") == 0
    told = capsys.readouterr().out
    assert "held to the answers that its pack recorded with the same engine" in told
    assert f"{TARGET} {site.pack.sha256[:16]}" in told


@pytest.mark.skipif(unavailable_engines()["trt"] is None, reason="the engine trt can run here")
def test_the_engine_trt_is_refused_where_it_cant_run_and_nothing_takes_its_place(
    site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert site.pull(tmp_path / "host", "native", TARGET) == 0
    capsys.readouterr()
    out = tmp_path / "prices.csv"
    asked = ["price", "--model", MODEL, "--from", tmp_path / "host", "--demo", "--out", out]
    assert site.host(*asked, "--engine", "trt", "--precision", "fp16") == 8
    told = capsys.readouterr()
    assert told.err.startswith(f"error: engine 'trt': {unavailable_engines()['trt']}")
    assert not told.out
    assert not out.exists()


def test_a_pack_of_another_version_isnt_promoted(site: Site, tmp_path: Path) -> None:
    """The bundle's hash is in the pack: it can't be released with another one's."""
    from tests.tiny_bundle import tiny_bundle

    with pytest.raises(BundleError, match=f"engine pack '{TARGET}' is of bundle {site.pack.manifest.bundle_sha256}"):
        load_pack(site.pack.directory, bundle=tiny_bundle(tmp_path / "other"))
