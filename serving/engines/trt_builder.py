"""One ONNX file to one engine: what TensorRT-RTX (ahead of time, no GPU) and full TensorRT (on the GPU's host) share.

Data in: ONNX bytes with the precision in them, the library, the SM, rows of the optimisation profile. Data out: the
serialised engine. Used by `pipelines.compile` and by a host that is configured to build for itself.
Both libraries have the same Python surface; what differs is here: RTX takes a compute capability, full TensorRT builds
for the GPU it finds.

Invariants: every message the library logs as an error fails the build and is told (some setters only log), but for one
line that every machine without a driver gets. Networks are strongly typed: the ONNX decides each precision.
"""

from __future__ import annotations

import importlib
import re
from dataclasses import dataclass
from typing import Any

from serving.errors import EngineError

RTX, FULL = "tensorrt_rtx", "tensorrt"
MODULES = {RTX: "tensorrt_rtx_bindings", FULL: "tensorrt"}
REMEDIES = {
    RTX: "pip install 'strikeforge[trt-rtx]'",
    FULL: "pip install 'strikeforge[gpu]' or 'strikeforge[trt11]' on the GPU's host",
}
NO_DRIVER = re.compile(r"catchCudaError.*\b35\b", re.DOTALL)  # "driver version is insufficient": there is none


@dataclass(frozen=True)
class Rows:
    """Sizes of a free dimension: the least, the one to be best at, the most."""

    min: int
    opt: int
    max: int


@dataclass(frozen=True)
class Built:
    """An engine and what the library warned of."""

    engine: bytes
    version: str
    warnings: tuple[str, ...]


def import_library(kind: str) -> Any:
    """The module; EngineError, with the remedy, where it isn't installed."""
    try:
        return importlib.import_module(MODULES[kind])
    except ImportError as error:
        raise EngineError(f"{MODULES[kind]} can't be imported ({error}): {REMEDIES[kind]}") from error


def build_engine(raw: bytes, name: str, kind: str, sm: int, rows: Rows | None) -> Built:
    """The engine of the ONNX file `name`; EngineError with everything the library said against it.

    `rows` is given where the file has free dimensions, and only there.
    """
    trt = import_library(kind)
    heard = collecting_logger(trt)
    where = f"for SM{sm} by {MODULES[kind]} {trt.__version__}"
    builder = trt.Builder(heard)
    network = builder.create_network(_network_flags(trt))
    parser = trt.OnnxParser(network, heard)
    if not parser.parse(raw):
        raise EngineError(f"{name}: can't be parsed {where}: {_said([*_parser_errors(parser), *heard.errors])}")
    config = builder.create_builder_config()
    if kind == RTX:
        config.num_compute_capabilities = 1
        capability = getattr(trt.ComputeCapability, f"SM{sm}", None)
        if capability is None or not config.set_compute_capability(capability, 0):
            raise EngineError(
                f"{name}: SM{sm} isn't a target of {MODULES[kind]} {trt.__version__}: {_said(heard.errors)}"
            )
    _add_profile(builder, config, network, name, rows)
    plan = builder.build_serialized_network(network, config)
    if plan is None or heard.errors:
        raise EngineError(f"{name}: can't be built {where}: {_said(heard.errors)}")
    return Built(bytes(plan), str(trt.__version__), tuple(heard.warnings))


def _network_flags(trt: Any) -> int:
    """Strongly typed; a TensorRT that knows nothing else has no flag for it."""
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 0 if flag is None else 1 << int(flag)


def _add_profile(builder: Any, config: Any, network: Any, name: str, rows: Rows | None) -> None:
    inputs = [network.get_input(index) for index in range(network.num_inputs)]
    free = {tensor.name: tuple(tensor.shape) for tensor in inputs if -1 in tuple(tensor.shape)}
    if free and rows is None:
        raise EngineError(f"{name}: tensors {sorted(free)} have a free dimension and there is no profile: give rows")
    if rows is None:
        return
    if not free:
        raise EngineError(f"{name}: a profile is given, but no input has a free dimension: leave rows out")
    if not 1 <= rows.min <= rows.opt <= rows.max:
        raise EngineError(f"{name}: rows min {rows.min}, opt {rows.opt}, max {rows.max}: give 1 <= min <= opt <= max")
    profile = builder.create_optimization_profile()
    for tensor, shape in free.items():
        sizes = [tuple(count if size == -1 else size for size in shape) for count in (rows.min, rows.opt, rows.max)]
        profile.set_shape(tensor, *sizes)
    if config.add_optimization_profile(profile) < 0:
        raise EngineError(f"{name}: the profile of {sorted(free)} isn't taken: {rows}")


def _parser_errors(parser: Any) -> list[str]:
    errors = [parser.get_error(index) for index in range(parser.num_errors)]
    return [f"operator {error.node_operator() or '?'} (node {error.node_name()!r}): {error.desc()}" for error in errors]


def _said(errors: list[str]) -> str:
    return "; ".join(dict.fromkeys(" ".join(error.split()) for error in errors)) or "it says nothing"


def collecting_logger(trt: Any) -> Any:
    """A logger that keeps `errors` and `warnings`."""

    class Heard(trt.ILogger):  # type: ignore[misc]
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

    return Heard()
