"""The ONNX Runtime peers: plain `run`, IOBinding over preallocated memory, and dynamic int8 with IOBinding.

All: one thread, no spinning, all graph optimisations. int8 is `quantize_dynamic` on a graph whose constants are folded
first (the exporter slices the LSTM's weights at run time; folded, the weights are constants that can be quantised):
DynamicQuantizeLSTM for LSTMs, MatMulInteger for the rest. ONNX Runtime has no static int8 LSTM and no bf16 kernels on
the CPU.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnxruntime.quantization import QuantType, quantize_dynamic

from benchmarks.engines_cases import Floats
from benchmarks.engines_runners import Arrays, Program
from serving.manifest import MemberFile

PROVIDERS = ["CPUExecutionProvider"]
onnxruntime.set_default_logger_severity(3)


def _options() -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


class PlainProgram:
    """`InferenceSession.run` on a dictionary of arrays, which returns new arrays."""

    def __init__(self, raw: bytes, file: MemberFile, inputs: Arrays) -> None:
        self._session = onnxruntime.InferenceSession(raw, _options(), providers=PROVIDERS)
        self._inputs = inputs
        self._place = {spec.name: place for place, spec in enumerate(file.outputs)}
        self._names = [spec.name for spec in file.outputs]
        self._found: list[Floats] = []

    def run(self) -> None:
        self._found = self._session.run(self._names, self._inputs)

    def read(self, name: str) -> Floats:
        return self._found[self._place[name]]


class BoundProgram:
    """Inputs and outputs bound once to arrays whose memory the session uses directly."""

    def __init__(self, raw: bytes, file: MemberFile, inputs: Arrays) -> None:
        self._session = onnxruntime.InferenceSession(raw, _options(), providers=PROVIDERS)
        self._binding = self._session.io_binding()
        rows = max((len(inputs[spec.name]) for spec in file.inputs if None in spec.shape), default=1)
        self._outputs = {spec.name: np.zeros([rows if size is None else size for size in spec.shape], np.float32)
                         for spec in file.outputs}  # fmt: skip
        value = onnxruntime.OrtValue.ortvalue_from_numpy
        for name, array in inputs.items():
            self._binding.bind_ortvalue_input(name, value(array))
        for name, array in self._outputs.items():
            self._binding.bind_ortvalue_output(name, value(array))
        self._run = self._session.run_with_iobinding

    def run(self) -> None:
        self._run(self._binding)

    def read(self, name: str) -> Floats:
        return self._outputs[name]


INT8_SETUPS = {
    "LSTM, MatMul and Gemm, a scale per tensor": (["LSTM", "MatMul", "Gemm"], False),
    "LSTM, MatMul and Gemm, a scale per channel": (["LSTM", "MatMul", "Gemm"], True),
}


def int8(raw: bytes, operators: list[str], per_channel: bool) -> bytes:
    """The model with dynamically quantised operators."""
    with tempfile.TemporaryDirectory(prefix="strikeforge-int8-") as folder:
        folded, quantised = Path(folder) / "folded.onnx", Path(folder) / "int8.onnx"
        options = _options()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(folded)
        onnxruntime.InferenceSession(raw, options, providers=PROVIDERS)
        proto = onnx.load(folded)
        del proto.graph.value_info[:]  # shapes of before the folding, which the quantiser would trip over
        onnx.save(proto, folded)
        level = logging.getLogger().level
        logging.getLogger().setLevel(logging.ERROR)  # it advises a preprocessing that was just done
        try:
            quantize_dynamic(folded, quantised, op_types_to_quantize=operators, per_channel=per_channel,
                             weight_type=QuantType.QInt8)  # fmt: skip
        finally:
            logging.getLogger().setLevel(level)
        return quantised.read_bytes()


def setups(raw: bytes) -> dict[str, dict[str, Callable[[MemberFile, Arrays], Program]]]:
    """By subject: what may be tried, by its description."""

    def quantised(operators: list[str], per_channel: bool) -> Callable[[MemberFile, Arrays], Program]:
        return lambda file, inputs: BoundProgram(int8(raw, operators, per_channel), file, inputs)

    return {
        "ort": {"run": lambda file, inputs: PlainProgram(raw, file, inputs)},
        "ort_iobinding": {"run_with_iobinding": lambda file, inputs: BoundProgram(raw, file, inputs)},
        "ort_int8": {name: quantised(*how) for name, how in INT8_SETUPS.items()},
    }
