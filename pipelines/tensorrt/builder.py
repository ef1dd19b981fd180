"""One ONNX file to one engine, with TensorRT-RTX (ahead of time, no GPU) or full TensorRT (on the GPU's own host).

In: ONNX bytes with the precision in them, the library, SM, rows of the profile. Out: the serialised engine.
Both libraries have the same Python surface; what differs is here: RTX takes a compute capability, full TensorRT builds
for the GPU it finds.

Invariants: every message the library logs as an error fails the build and is told (some setters only log); but for one
line that a machine without a driver always gets. Networks are strongly typed: the ONNX decides each precision. Nothing
is built for a target or a file that pipelines/tensorrt/refusals.py refuses.
"""

from __future__ import annotations

import importlib
import re
from dataclasses import dataclass
from typing import Any

import onnx

from pipelines.tensorrt.refusals import check_network, check_profile, check_target, free_inputs
from pipelines.tensorrt.target import Kind, Profile, Target
from serving.errors import EngineError

MODULES: dict[Kind, str] = {"tensorrt_rtx": "tensorrt_rtx_bindings", "tensorrt": "tensorrt"}
REMEDIES: dict[Kind, str] = {
    "tensorrt_rtx": "pip install 'strikeforge[trt-rtx]'",
    "tensorrt": "pip install 'strikeforge[gpu]' or '[trt11]' on the GPU's host",
}
NO_DRIVER = re.compile(r"catchCudaError.*\b35\b|cudaError(InsufficientDriver)?\W*35", re.DOTALL)


@dataclass(frozen=True)
class Built:
    """An engine and what the library warned of."""

    engine: bytes
    version: str
    warnings: tuple[str, ...]


def library(kind: Kind) -> Any:
    """The module; EngineError, with the remedy, where it isn't installed."""
    try:
        return importlib.import_module(MODULES[kind])
    except ImportError as error:
        raise EngineError(f"{MODULES[kind]} can't be imported ({error}): {REMEDIES[kind]}") from error


def build(raw: bytes, name: str, target: Target, *, profile: Profile | None = None) -> Built:
    """The engine of the ONNX file `name`; EngineError with everything the library said against it.

    `profile` is that of a file with a free dimension; None where it has none.
    """
    check_target(target)
    model = check_network(raw, name)
    trt = library(target.kind)
    messages = _logger(trt)
    builder = trt.Builder(messages)
    network = builder.create_network(_network_flags(trt))
    parser = trt.OnnxParser(network, messages)
    if not parser.parse(raw):
        raise EngineError(_refused(name, "can't be parsed", target, trt, [*_parser_errors(parser), *messages.errors]))
    config = builder.create_builder_config()
    if target.kind == "tensorrt_rtx":
        config.num_compute_capabilities = 1
        if not config.set_compute_capability(getattr(trt.ComputeCapability, f"SM{target.sm}"), 0):
            raise EngineError(_refused(name, "target.sm isn't taken", target, trt, messages.errors))
    _add_profile(builder, config, model, name, profile)
    plan = builder.build_serialized_network(network, config)
    if plan is None or messages.errors:
        raise EngineError(_refused(name, "can't be built", target, trt, messages.errors))
    return Built(bytes(plan), str(trt.__version__), tuple(messages.warnings))


def _network_flags(trt: Any) -> int:
    """Strongly typed; TensorRT versions that know nothing else have no flag for it."""
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 0 if flag is None else 1 << int(flag)


def _add_profile(builder: Any, config: Any, model: onnx.ModelProto, name: str, profile: Profile | None) -> None:
    free = free_inputs(model)
    if free and profile is None:
        raise EngineError(f"{name}: tensors {sorted(free)} have a free dimension: give target.rows (min, opt, max)")
    if not free and profile is not None:
        raise EngineError(f"{name}: a profile is given, but no tensor has a free dimension")
    if profile is None:
        return
    check_profile(profile)
    made = builder.create_optimization_profile()
    for tensor, shape in free.items():
        sizes = [tuple(rows if size is None else size for size in shape)
                 for rows in (profile.min, profile.opt, profile.max)]  # fmt: skip
        made.set_shape(tensor, *sizes)
    if config.add_optimization_profile(made) < 0:
        raise EngineError(f"{name}: target.rows {vars(profile)} isn't taken for tensors {sorted(free)}")


def _parser_errors(parser: Any) -> list[str]:
    errors = [parser.get_error(index) for index in range(parser.num_errors)]
    return [f"operator {error.node_operator() or '?'} (node {error.node_name()!r}): {error.desc()}" for error in errors]


def _refused(name: str, what: str, target: Target, trt: Any, errors: list[str]) -> str:
    said = "; ".join(dict.fromkeys(" ".join(error.split()) for error in errors)) or "it says nothing"
    return f"{name}: {what} for {target.name} by {trt.__name__} {trt.__version__}: {said}"


def _logger(trt: Any) -> Any:
    """A logger that keeps errors and warnings."""

    class Messages(trt.ILogger):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.errors: list[str] = []
            self.warnings: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if NO_DRIVER.search(message):
                return
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                self.errors.append(message)
            elif severity == trt.ILogger.WARNING:
                self.warnings.append(message)

    return Messages()
