"""Every part of every family as ONNX: ONNX Runtime answers as torch does, for any number of rows, and the bytes say
nothing of the machine.

`exported` is a net with random weights and its files; float32 throughout, so answers agree to its rounding.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

import models
from models import FAMILIES, Net, build
from models.parts import Part
from models.pricing import PricingNet, zero_states
from models.pricing_transformer import PricingTransformer
from models.surface_vae import SurfaceVAE, Units
from pipelines.onnx_export import OPSET, export_member
from serving.bundle import write_bundle
from serving.engine import open_engine
from serving.errors import EngineError
from serving.manifest import Member, MemberFile
from tests.tiny_bundle import HASH

F, K, T, CELLS, MOVES = 6, 7, 5, 12, 3
PRICING = {"step_features": F, "contract_features": K, "window": T, "context": 4, "head_width": 8}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "lstm": ("pricing_lstm", PRICING | {"hidden": 8, "layers": 1}),
    "lstm-2-layers": ("pricing_lstm", PRICING | {"hidden": 8, "layers": 2}),
    "transformer": ("pricing_transformer", PRICING | {"width": 8, "heads": 2, "layers": 2, "band": 3}),
    "transformer-wide-band": ("pricing_transformer", PRICING | {"width": 8, "heads": 2, "layers": 1, "band": T + 3}),
    "surface": ("surface_vae", {"cells": CELLS, "moves": MOVES, "regimes": 3, "latent": 2, "width": 16}),
    "surface-one-regime": ("surface_vae", {"cells": CELLS, "moves": MOVES, "regimes": 1, "latent": 2, "width": 16}),
}
PRICING_VARIANTS = [name for name, (family, _) in VARIANTS.items() if family.startswith("pricing")]
PARTS = [(name, role) for name, (family, _) in VARIANTS.items()
         for role in (("window", "step", "head") if family.startswith("pricing") else ("surface",))]  # fmt: skip
ATOL = 2e-6
Exported = tuple[Net, dict[str, bytes], dict[str, MemberFile]]


def net(name: str) -> Net:
    family, sizes = VARIANTS[name]
    torch.manual_seed(3)
    made = build(family, sizes).eval()
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    if isinstance(made, SurfaceVAE):
        level = torch.linspace(0.1, 0.4, CELLS)
        made.set_units(Units(level, 0.2 * level, 0.05 * level, torch.zeros(MOVES), torch.full((MOVES,), 0.02)))
    return made


@functools.cache
def exported(name: str) -> Exported:
    made = net(name)
    return made, *export_member(made, "member-0")


def session(content: bytes) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])


def inputs_of(part: Part, rows: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Sensible random inputs: priors of volatilities, masks of 0 and 1, counters within their range."""
    generator = np.random.default_rng(seed)
    feeds = {}
    for tensor, shape in part.inputs:
        values = generator.standard_normal([rows if size is None else size for size in shape])
        if tensor == "contracts":
            values[:, 0], values[:, 2] = 0.05 + 0.4 * generator.random(rows), generator.integers(0, 2, rows)
        if tensor in ("surface", "last"):
            values = generator.uniform(0.1, 0.4, values.shape)
        if tensor in ("mask", "last_mask"):
            values = generator.integers(0, 2, values.shape) * (generator.random((rows, 1)) < 0.8)
        if tensor == "move":
            values *= 0.02
        if tensor == "seen":
            values[:] = 1.0
        feeds[tensor] = values.astype(np.float32)
    return feeds


def part_of(made: Net, role: str) -> Part:
    (part,) = (part for part in made.parts() if part.role == role)
    return part


def torch_answer(part: Part, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    with torch.no_grad():
        answer = part.module(*(torch.from_numpy(feeds[tensor]) for tensor, _ in part.inputs))
    answers = answer if isinstance(answer, tuple) else (answer,)
    return {tensor: value.numpy() for (tensor, _), value in zip(part.outputs, answers, strict=True)}


def test_every_family_is_exported_here() -> None:
    assert {family for family, _ in VARIANTS.values()} == set(FAMILIES)


@pytest.mark.parametrize(("name", "role"), PARTS)
@pytest.mark.parametrize("rows", [1, 2, 1000])
def test_onnx_runtime_answers_as_torch_does(name: str, role: str, rows: int) -> None:
    made, files, _ = exported(name)
    part = part_of(made, role)
    runs = session(files[f"member-0/{role}.onnx"])
    for seed in range(3):
        feeds = inputs_of(part, rows, seed)
        wanted = torch_answer(part, feeds)
        found = dict(zip(wanted, runs.run(list(wanted), feeds), strict=True))
        for tensor, shape in part.outputs:
            assert found[tensor].shape == tuple(rows if size is None else size for size in shape)
            np.testing.assert_allclose(found[tensor], wanted[tensor], rtol=2e-5, atol=ATOL, err_msg=tensor)


@pytest.mark.parametrize("name", VARIANTS)
def test_the_manifest_says_what_the_files_hold(name: str) -> None:
    made, files, roles = exported(name)
    assert list(roles) == [part.role for part in made.parts()]
    assert {file.name for file in roles.values()} == set(files)
    for part in made.parts():
        file, runs = roles[part.role], session(files[f"member-0/{part.role}.onnx"])
        sides = ((file.inputs, runs.get_inputs(), part.inputs), (file.outputs, runs.get_outputs(), part.outputs))
        for specs, nodes, tensors in sides:
            assert [(spec.name, spec.shape) for spec in specs] == list(tensors)
            assert {spec.dtype for spec in specs} == {"float32"}
            shapes = {node.name: tuple(size if isinstance(size, int) else None for size in node.shape)
                      for node in nodes}  # fmt: skip
            assert shapes == dict(tensors)


@pytest.mark.parametrize("name", ["lstm", "transformer", "surface"])
def test_bytes_are_the_same_every_time_and_name_nothing_of_the_machine(name: str) -> None:
    made, files, _ = exported(name)
    again, _ = export_member(made, "member-0")
    assert again == files
    here = (str(Path(models.__file__).parents[1]), "site-packages", ".py", "Traceback", 'File "', "stack_trace")
    for file, content in files.items():
        assert not [word for word in here if word.encode() in content], file
        proto = onnx.load_from_string(content)
        onnx.checker.check_model(proto)
        assert {entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx")} == {OPSET}
        assert not proto.metadata_props
        assert not any(node.metadata_props or node.doc_string for node in proto.graph.node)


@pytest.mark.parametrize("name", PRICING_VARIANTS)
def test_stepping_equals_the_window_in_onnx_runtime(name: str) -> None:
    made, files, _ = exported(name)
    assert isinstance(made, PricingNet)
    whole, step = session(files["member-0/window.onnx"]), session(files["member-0/step.onnx"])
    names = [tensor for tensor, _ in part_of(made, "step").inputs[1:]]
    generator = np.random.default_rng(1)
    for _ in range(5):
        window = generator.standard_normal((1, T, F)).astype(np.float32)
        states = [state.numpy() for state in zero_states(made)]
        for x in window[0]:
            context, *new = step.run(None, {"x": x[np.newaxis], **dict(zip(names, states, strict=True))})
            states = [np.concatenate([old[len(now) :], now]) for old, now in zip(states, new, strict=True)]
        (wanted,) = whole.run(None, {"window": window})
        np.testing.assert_allclose(context, wanted, atol=ATOL)


@pytest.mark.parametrize("name", PRICING_VARIANTS)
def test_a_host_that_carries_the_state_is_where_torch_is(name: str, tmp_path: Path) -> None:
    """The stateful engine over many steps gives torch's contexts; the transformer's are those of its whole past."""
    made, files, roles = exported(name)
    assert isinstance(made, PricingNet)
    bundle = write_bundle(
        tmp_path / "bundle", model=VARIANTS[name][0], model_config=VARIANTS[name][1], members=[Member(roles)],
        files=dict(files), feature_spec={"window": T}, semantics="stateful", tolerances={"iv": 1e-5},
        data_sha256=HASH, config_sha256=HASH,
    )  # fmt: skip
    engine = open_engine(bundle)
    context = np.zeros(engine.info().context_size, np.float32)
    steps = np.random.default_rng(2).standard_normal((40, F)).astype(np.float32)
    for _ in range(2):  # and again after a reset
        states = zero_states(made)
        for place, x in enumerate(steps):
            engine.evaluate(steps[-1 - place], context)  # commits nothing
            engine.evaluate(x, context)
            with torch.no_grad():
                wanted, *new = made.step(torch.from_numpy(x[np.newaxis]), *states)
                past = made.encode(torch.from_numpy(steps[np.newaxis, : place + 1]))
            states = [torch.cat([old[len(now) :], now]) for old, now in zip(states, new, strict=True)]
            np.testing.assert_allclose(context, wanted[0].numpy(), atol=5e-6)
            if isinstance(made, PricingTransformer):
                np.testing.assert_allclose(context, past[0].numpy(), atol=5e-6)
            engine.advance(x)
        engine.reset()


def test_untrained_nets_are_their_prior_in_onnx_runtime_too() -> None:
    torch.manual_seed(0)
    pricing = build(*VARIANTS["transformer"]).eval()
    files, _ = export_member(pricing, "m")
    feeds = inputs_of(part_of(pricing, "head"), 50)
    (found,) = session(files["m/head.onnx"]).run(["iv"], feeds)
    np.testing.assert_array_equal(found, feeds["contracts"][:, 0])


def test_a_frozen_dimension_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The exporter freezes what it can't follow, and says nothing."""
    monkeypatch.setattr(torch.export, "Dim", lambda *arguments, **options: None)
    with pytest.raises(EngineError, match=r"m/surface.onnx: exported tensor '\w+' has shape \[7, 12\], wanted \[None"):
        export_member(net("surface"), "m")
