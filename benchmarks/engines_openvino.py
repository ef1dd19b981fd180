"""The OpenVINO peers: f32, bf16 (INFERENCE_PRECISION_HINT) and int8; latency hint, one stream, one thread.

Inputs and outputs are tensors over our own arrays, set once on one infer request. A stateful OpenVINO model isn't used:
it commits its state at every inference, which `evaluate` must not.

int8: FakeQuantize on the inputs of every LSTMSequence (X, H, W and R) and of every MatMul with constant weights, which
the CPU plug-in's low precision passes turn into integer kernels: activations 256 levels with ranges measured on
calibration inputs, weights 255 levels per output channel, an LSTM's per tensor. oneDNN's int8 LSTM has one scale for X
and H and one set of scales for W and R, which the plug-in doesn't check (answers are wrong where they differ, and with
a scale per channel): so X and H share one, and W and R. The constants are folded before,
else the LSTM's weights arrive through slices and its kernel stays in f32: that is what post-training quantisation by
NNCF 3.4 gives on these files (no faster than f32), so the same nodes are placed here directly. Where the int8 LSTM is
wrong all the same (several layers), the set-up that leaves LSTMs in f32 or bf16 is what remains.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import openvino
from openvino import opset13 as operators
from openvino.passes import ConstantFolding, Manager

from benchmarks.engines_cases import Floats
from benchmarks.engines_runners import Arrays, Program
from serving.manifest import MemberFile

LATENCY = {"PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": 1, "INFERENCE_NUM_THREADS": 1}
LSTM_INPUTS = (0, 1, 4, 5)  # X, H, W, R


class OpenVinoProgram:
    """A compiled model and one infer request over shared memory."""

    def __init__(self, model: Any, precision: str, asynchronous: bool, file: MemberFile, inputs: Arrays) -> None:
        if any(None in spec.shape for spec in file.inputs):
            model = model.clone()
            model.reshape({spec.name: list(inputs[spec.name].shape) for spec in file.inputs})
        compiled = openvino.Core().compile_model(model, "CPU", {**LATENCY, "INFERENCE_PRECISION_HINT": precision})
        self._request = compiled.create_infer_request()
        _zero(self._request)
        self._outputs = {spec.name: np.zeros(list(compiled.output(spec.name).shape), np.float32)
                         for spec in file.outputs}  # fmt: skip
        for name, array in (*inputs.items(), *self._outputs.items()):
            self._request.set_tensor(name, openvino.Tensor(array, shared_memory=True))
        self.run = self._start_and_wait if asynchronous else self._infer

    def _infer(self) -> None:
        self._request.infer(share_inputs=True, share_outputs=True)

    def _start_and_wait(self) -> None:
        self._request.start_async()
        self._request.wait()

    def read(self, name: str) -> Floats:
        return self._outputs[name]


def read_model(raw: bytes) -> Any:
    """The ONNX bytes as an OpenVINO model with its constants folded."""
    model = openvino.Core().read_model(raw)
    passes = Manager()
    passes.register_pass(ConstantFolding())
    passes.run_passes(model)
    return model


def int8(raw: bytes, seen: Sequence[Mapping[str, Floats]], lstms: bool = True) -> Any:
    """The model with FakeQuantize nodes; `seen` are inputs to learn the activations' ranges from."""
    model = read_model(raw)
    activations: list[_Group] = []
    weights: list[tuple[list[Any], int | None]] = []  # places that share scales; the axis summed over, None: one scale
    for node in model.get_ordered_ops():
        if node.get_type_name() == "LSTMSequence" and lstms:
            _free_start(model, node)
            x, h, w, r = (node.input(number) for number in LSTM_INPUTS)
            activations.append(_Group([x, h], [x.get_source_output(), node.output(0)]))  # its outputs come back as H
            weights.append(([w, r], None))
        elif node.get_type_name() == "MatMul" and _is_constant(node.input(1)):
            place = node.input(0)
            activations.append(_Group([place], [place.get_source_output()]))
            weights.append(([node.input(1)], 1 if node.get_attributes()["transpose_b"] else 0))
    for group, largest in zip(activations, _ranges(model, activations, seen), strict=True):
        low, high = np.float32(-largest), np.float32(largest * 127 / 128)
        for place in group.places:
            quantised = operators.fake_quantize(place.get_source_output(), low, high, low, high, 256)
            place.replace_source_output(quantised.output(0))
    for places, axis in weights:
        sources = [place.get_source_output() for place in places]
        magnitudes = [np.abs(source.get_node().get_data()).max(axis=axis, keepdims=True) for source in sources]
        scale = np.maximum(np.max([found.max(axis=axis, keepdims=True) for found in magnitudes], axis=0), 1e-12)
        scale = scale.astype(np.float32)
        for place, source in zip(places, sources, strict=True):
            place.replace_source_output(operators.fake_quantize(source, -scale, scale, -scale, scale, 255).output(0))
    model.validate_nodes_and_infer_types()
    return model


@dataclass(frozen=True)
class _Group:
    """Inputs that share a range, and the tensors it is learnt from."""

    places: list[Any]
    tensors: list[Any]


def _free_start(model: Any, node: Any) -> None:
    """A constant initial H becomes an input (zero): folded with its FakeQuantize, it would leave the kernel in f32."""
    place = node.input(LSTM_INPUTS[1])
    if _is_constant(place):
        start = operators.parameter(list(place.get_shape()), np.float32, name=f"{node.get_friendly_name()}/start")
        model.add_parameters([start])
        place.replace_source_output(start.output(0))


def _is_constant(place: Any) -> bool:
    return bool(place.get_source_output().get_node().get_type_name() == "Constant")


def _ranges(model: Any, groups: Sequence[_Group], seen: Sequence[Mapping[str, Floats]]) -> list[float]:
    """Largest magnitude in each group over the calibration inputs."""
    results = [operators.result(found) for group in groups for found in group.tensors]
    watched = openvino.Model(results, model.get_parameters(), "watched")
    request = openvino.Core().compile_model(watched, "CPU", LATENCY).create_infer_request()
    _zero(request)
    largest = np.full(len(results), 1e-6)
    for inputs in seen:
        request.infer(dict(inputs))
        found = [np.abs(request.get_output_tensor(place).data).max() for place in range(len(results))]
        largest = np.maximum(largest, found)
    owners = np.repeat(np.arange(len(groups)), [len(group.tensors) for group in groups])
    return [float(largest[owners == number].max()) for number in range(len(groups))]


def _zero(request: Any) -> None:
    for tensor in request.input_tensors:
        tensor.data[:] = 0.0


def setups(
    raw: bytes, seen: Sequence[Mapping[str, Floats]]
) -> dict[str, dict[str, Callable[[MemberFile, Arrays], Program]]]:
    """By subject: what may be tried, by its description."""

    def program(load: Callable[[], Any], precision: str, asynchronous: bool) -> Callable[..., Program]:
        return lambda file, inputs: OpenVinoProgram(load(), precision, asynchronous, file, inputs)

    def both(load: Callable[[], Any], precision: str, what: str = "") -> dict[str, Callable[..., Program]]:
        return {
            f"infer{what}": program(load, precision, False),
            f"start_async and wait{what}": program(load, precision, True),
        }

    reduced = {
        **both(lambda: int8(raw, seen), "f32", ", the rest in f32"),
        **both(lambda: int8(raw, seen), "bf16", ", the rest in bf16"),
    }
    if any(node.op_type == "LSTM" for node in onnx.load_from_string(raw).graph.node):
        reduced |= both(lambda: int8(raw, seen, lstms=False), "f32", ", LSTMs and the rest in f32")
        reduced |= both(lambda: int8(raw, seen, lstms=False), "bf16", ", LSTMs and the rest in bf16")
    return {
        "openvino_f32": both(lambda: read_model(raw), "f32"),
        "openvino_bf16": both(lambda: read_model(raw), "bf16"),
        "openvino_int8": reduced,
    }
