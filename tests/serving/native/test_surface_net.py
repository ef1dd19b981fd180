"""The native surface net: the torch net's answer in every precision and instruction set, and the engine around it."""

from __future__ import annotations

import dataclasses
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.numpy import save
from torch import Tensor

from models.surface_vae import Known, SurfaceVAE, SurfaceVAEConfig
from serving import native
from serving.bundle import Bundle, write_bundle
from serving.errors import EngineError
from serving.manifest import Member, MemberFile
from serving.surface_score import SurfaceAnswer, SurfaceInput
from tests.serving.native.error_bound import UNIT, error_bound
from tests.tiny_bundle import HASH

reason = native.why_unavailable()
pytestmark = pytest.mark.skipif(reason is not None, reason=str(reason))

Floats = NDArray[np.float32]
ISAS = native.core().isas() if reason is None else ["portable"]
PRECISIONS = ("fp32", "bf16", "int8")
every_isa = pytest.mark.parametrize("isa", ISAS)
every_precision = pytest.mark.parametrize("precision", PRECISIONS)
SMALL = SurfaceVAEConfig(cells=12, moves=3, regimes=3, latent=4, width=16, dropout=0.0, shapes=2)
ODD = SurfaceVAEConfig(cells=33, moves=1, regimes=5, latent=3, width=19, dropout=0.0, shapes=7)
ONE = SurfaceVAEConfig(cells=1, moves=1, regimes=1, latent=1, width=1, dropout=0.0, shapes=1)
NAMES = [field.name for field in dataclasses.fields(SurfaceAnswer)]


def fill(net: SurfaceVAE, rng: np.random.Generator) -> None:
    """Weights, and units like a market's; all of them float32 numbers."""
    for name, tensor in net.state_dict().items():
        shape = tuple(tensor.shape)
        if name.startswith("unit_") or name.startswith("shape_"):
            values = rng.uniform(0.05, 0.2, shape) if name != "shape_weight" else rng.normal(0, 1, shape)
        else:
            values = rng.normal(0.0, 0.25, shape)
        tensor.copy_(torch.from_numpy(values.astype(np.float32)))


@cache
def net(config: SurfaceVAEConfig, seed: int = 0) -> SurfaceVAE:
    """float64, evaluation mode."""
    made = SurfaceVAE(config).eval()
    fill(made, np.random.default_rng(seed))
    return made.double()


def tensors(made: SurfaceVAE) -> dict[str, Floats]:
    return {name: np.ascontiguousarray(value.numpy(), np.float32) for name, value in made.state_dict().items()}


def sizes(config: SurfaceVAEConfig) -> dict[str, float]:
    return {name: float(size) for name, size in dataclasses.asdict(config).items()}


def surfaces(config: SurfaceVAEConfig, count: int, seed: int = 0, share: float = 0.6) -> SurfaceInput:
    """About `share` of the cells known; every third was never seen before."""
    rng, grid = np.random.default_rng(seed), (count, config.cells)
    mask = (rng.random(grid) < share).astype(np.float32)
    last_mask = (rng.random(grid) < 0.8).astype(np.float32)
    last = rng.uniform(0.1, 0.4, grid)
    last[::3], last_mask[::3] = 0.0, 0.0
    parts = (mask * rng.uniform(0.1, 0.4, grid), mask, last, last_mask, rng.normal(0.1, 0.2, (count, config.moves)))
    return SurfaceInput(*(np.ascontiguousarray(part, np.float32) for part in parts))


def answer_of(
    config: SurfaceVAEConfig, weights: dict[str, Floats], known: SurfaceInput, precision: str = "fp32", isa: str = ""
) -> SurfaceAnswer:
    made = native.core().SurfaceNet(sizes(config), "weights.safetensors", weights, precision, isa or ISAS[-1])
    count = len(known.surface)
    shapes = {"latent": (count, config.latent), "surprise": (count,), "regime": (count, config.regimes)}
    out = SurfaceAnswer(*(np.full(shapes.get(name, (count, config.cells)), np.nan, np.float32) for name in NAMES))
    made.answer(**vars(known), **vars(out))
    return out


def torch_known(known: SurfaceInput, row: slice) -> Known:
    return Known(**{name: torch.from_numpy(value[row].astype(np.float64)) for name, value in vars(known).items()})


def through(made: SurfaceVAE, one: Known, name: str) -> Tensor:
    """An answer, with the regime head's slope to the completed surface, which the net hides from training."""
    with mock.patch.object(Tensor, "detach", lambda tensor: tensor):
        answer: Tensor = getattr(made(one), name)
    return answer


@cache
def expected(config: SurfaceVAEConfig, precision: str, count: int) -> list[dict[str, tuple[Any, Any]]]:
    """Of each surface, each answer and its bound."""
    made, known = net(config), surfaces(config, count)
    matrices = {name: precision for name, _ in made.named_modules() if name.startswith(("encoder", "decoder"))}
    out = []
    for row in range(count):
        one = torch_known(known, slice(row, row + 1))
        found = {}
        for name in NAMES:
            values = getattr(made(one), name).detach().numpy().ravel()
            bound = error_bound(made, lambda one=one, name=name: through(made, one, name), matrices)  # type: ignore[misc]
            # exp, units and the sums of the regime head on the way out, relative to the value
            found[name] = (values, bound + 64.0 * UNIT * np.abs(values))
        out.append(found)
    return out


# --- parity with the torch net


@every_isa
@every_precision
@pytest.mark.parametrize("config", [SMALL, ODD, ONE], ids=["small", "odd", "one"])
def test_answers_are_the_torch_nets_within_what_rounding_allows(
    config: SurfaceVAEConfig, precision: str, isa: str
) -> None:
    count = 5
    found = answer_of(config, tensors(net(config)), surfaces(config, count), precision, isa)
    for row, wanted in enumerate(expected(config, precision, count)):
        for name, (values, bound) in wanted.items():
            difference = np.abs(getattr(found, name)[row].ravel() - values)
            assert np.all(difference <= bound), f"{name} of surface {row}: {difference.max()} > {bound.min()}"


@every_isa
def test_many_surfaces_at_once_are_each_alone(isa: str) -> None:
    known, weights = surfaces(SMALL, 9), tensors(net(SMALL))
    together = answer_of(SMALL, weights, known, isa=isa)
    for row in range(9):
        one = SurfaceInput(**{name: value[row : row + 1] for name, value in vars(known).items()})
        alone = answer_of(SMALL, weights, one, isa=isa)
        for name in NAMES:
            assert np.array_equal(getattr(alone, name)[0], getattr(together, name)[row]), name


def test_no_surface_at_all_is_no_answer_at_all() -> None:
    assert answer_of(SMALL, tensors(net(SMALL)), surfaces(SMALL, 0)).regime.shape == (0, SMALL.regimes)


# --- limits and identities


@every_isa
@every_precision
def test_untrained_it_is_the_last_surface_and_every_regime_is_as_likely(precision: str, isa: str) -> None:
    weights, known = tensors(net(SMALL)), surfaces(SMALL, 6)
    for layer in ("decoder.5", "regime"):
        for part in ("weight", "bias"):
            weights[f"{layer}.{part}"] = np.zeros_like(weights[f"{layer}.{part}"])
    found = answer_of(SMALL, weights, known, precision, isa)
    seen = known.last_mask.any(1)
    assert np.array_equal(found.completed[seen], known.last[seen])
    assert np.array_equal(found.completed[~seen], np.tile(weights["unit_level"], ((~seen).sum(), 1)))
    assert np.array_equal(found.deviation, np.tile(weights["unit_change_deviation"], (6, 1)))
    assert np.array_equal(found.regime, np.full((6, SMALL.regimes), np.float32(1 / SMALL.regimes)))


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), scale=st.sampled_from([1.0, 30.0]), share=st.sampled_from([0.0, 0.3, 1.0]),
       precision=st.sampled_from(PRECISIONS))  # fmt: skip
def test_volatilities_lie_within_a_factor_e_of_the_last_and_probabilities_add_up(
    seed: int, scale: float, share: float, precision: str
) -> None:
    weights = {name: value if name.startswith(("unit", "shape")) else np.float32(scale) * value
               for name, value in tensors(net(SMALL, seed % 5)).items()}  # fmt: skip
    known = surfaces(SMALL, 4, seed, share)
    found = answer_of(SMALL, weights, known, precision)
    base = np.where(known.last_mask.any(1, keepdims=True), known.last, weights["unit_level"])
    e = np.float32(np.e)
    assert np.all(found.completed <= base * e * (1 + 8 * UNIT))
    assert np.all(found.completed >= base / e * (1 - 8 * UNIT))
    assert np.all(found.deviation > 0.0)
    assert np.all(np.isfinite(found.latent))
    assert np.all(found.regime >= 0.0)
    assert np.all(np.abs(found.regime.astype(np.float64).sum(1) - 1.0) <= SMALL.regimes * UNIT)
    assert np.all(found.surprise >= 0.0)  # a Kullback-Leibler divergence, averaged


def test_hidden_cells_say_nothing() -> None:
    known = surfaces(SMALL, 4)
    other = dataclasses.replace(known, surface=np.where(known.mask > 0, known.surface, np.float32(7.0)))
    one, two = (answer_of(SMALL, tensors(net(SMALL)), given_) for given_ in (known, other))
    assert all(np.array_equal(getattr(one, name), getattr(two, name)) for name in NAMES)


def test_surfaces_that_are_no_numbers_are_no_numbers_after_it() -> None:
    known = surfaces(SMALL, 2)
    known.move[1, 0] = np.nan
    found = answer_of(SMALL, tensors(net(SMALL)), known)
    for name in NAMES:
        assert np.isfinite(getattr(found, name)[0]).all(), name
        assert np.isnan(getattr(found, name)[1]).all(), name


# --- the engine


def bundle_of(directory: Path, config: SurfaceVAEConfig = SMALL, **changed: Any) -> Bundle:
    """A surface bundle whose ONNX file nobody reads."""
    weights = {name: value for name, value in (tensors(net(config)) | changed.pop("tensors", {})).items()
               if value is not None}  # fmt: skip
    member = Member({"surface": MemberFile("surface.onnx"), "weights": MemberFile("weights.safetensors")})
    arguments: dict[str, Any] = {
        "model": "surface_vae", "model_config": dataclasses.asdict(config), "members": [member],
        "files": {"surface.onnx": b"nothing", "weights.safetensors": save(weights)},
        "feature_spec": {}, "semantics": "window", "tolerances": {"surface": 1e-4},
        "data_sha256": HASH, "config_sha256": HASH,
    }  # fmt: skip
    return write_bundle(directory, **(arguments | changed))


def open_engine(bundle: Bundle, precision: str = "fp32") -> Any:
    from serving.engines.native_surface import open_surface_engine

    return open_surface_engine(bundle, precision)


@every_precision
def test_the_engine_answers_from_the_bundles_weights(tmp_path: Path, precision: str) -> None:
    known = surfaces(SMALL, 3)
    engine = open_engine(bundle_of(tmp_path / "bundle"), precision)
    found, direct = engine.answer(known), answer_of(SMALL, tensors(net(SMALL)), known, precision)
    assert all(np.array_equal(getattr(found, name), getattr(direct, name)) for name in NAMES)
    assert engine.runtime == f"native {ISAS[-1]} {precision}, 1 thread"


def test_inputs_in_any_order_of_memory_are_read(tmp_path: Path) -> None:
    engine, known = open_engine(bundle_of(tmp_path / "bundle")), surfaces(SMALL, 3)
    turned = SurfaceInput(**{name: np.asfortranarray(value) for name, value in vars(known).items()})
    assert np.array_equal(engine.answer(known).completed, engine.answer(turned).completed)


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(SurfaceInput)])
def test_wrong_arrays_are_refused_by_name(tmp_path: Path, name: str) -> None:
    engine, known = open_engine(bundle_of(tmp_path / "bundle")), surfaces(SMALL, 3)
    for wrong in (getattr(known, name)[:, :0], getattr(known, name).astype(np.float64)):
        with pytest.raises(EngineError, match=f"tensor '{name}': expected float32"):
            engine.answer(dataclasses.replace(known, **{name: wrong}))


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"tensors": {"pull.weight": None}}, ["weights.safetensors", "lacks", "pull.weight", "(4, 3)"]),
        ({"tensors": {"center": np.zeros((3, 5), np.float32)}}, ["weights.safetensors", "center", "(3, 4)", "(3, 5)"]),
        ({"tensors": {"extra": np.zeros(2, np.float32)}}, ["weights.safetensors", "extra", "no layer"]),
        ({"model_config": {"cells": 12}}, ["model_config", "moves"]),
        ({"model": "surface_spline"}, ["surface_spline", "surface_vae"]),
        ({"members": [Member({"surface": MemberFile("surface.onnx")})], "files": {"surface.onnx": b"nothing"}},
         ["member 0", "weights"]),
    ],
)  # fmt: skip
def test_bundles_that_dont_fit_are_refused_by_name(tmp_path: Path, changed: dict[str, Any], words: list[str]) -> None:
    bundle = bundle_of(tmp_path / "bundle", **changed)
    with pytest.raises(EngineError) as refused:
        open_engine(bundle)
    for word in words:
        assert word in str(refused.value)


def test_several_nets_and_unknown_precisions_are_refused(tmp_path: Path) -> None:
    member = Member({"surface": MemberFile("surface.onnx"), "weights": MemberFile("weights.safetensors")})
    with pytest.raises(EngineError, match="several surface nets"):
        open_engine(bundle_of(tmp_path / "two", members=[member, member]))
    with pytest.raises(EngineError, match="no precision 'fp16'; there are fp32, bf16, int8"):
        open_engine(bundle_of(tmp_path / "one"), "fp16")


def test_an_unknown_instruction_set_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STRIKEFORGE_ISA", "mmx")
    with pytest.raises(EngineError, match="no instruction set 'mmx'; there are portable"):
        open_engine(bundle_of(tmp_path / "one"))
