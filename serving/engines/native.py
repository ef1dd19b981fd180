"""The native C++ core on one CPU thread, without any inference library.

Data in: a verified bundle of the family pricing_lstm or pricing_transformer: per member `weights.safetensors`, and the
sizes of the manifest's model_config. Data out: as in serving/engine.py. `precision` is that of weights and of the
vectors they are multiplied with: fp32, bf16, or int8 (a scale for each row of weights; one for each vector, found as it
comes); sums and all else are fp32. Under int8 an LSTM takes the market's step itself in 16 bits and a transformer in
fp32, so that one large feature doesn't take the others' bits; between layers, values 100 times the others would: what a
net loses is for the gates of its precision to say, on data as it comes. `isa` limits the instruction set, "" is the
best this CPU has (or STRIKEFORGE_ISA).

NaN in a committed step stays for as long as the net remembers it: in `window` semantics until the step leaves the
window, in `stateful` semantics of an LSTM until `reset`. Numbers below 1.2e-38 count as zero while a net runs: they
would make a tick late. Calls keep the interpreter's lock; arrays given to one call must not overlap.

Invariants: every tensor of the file is used, each with the shape that the sizes ask for, all values finite. Arrays must
also be C-contiguous. `evaluate`, `advance` and `head` are the extension's own methods: a call runs no Python code and
allocates nothing (tests/serving/native/test_allocations.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy.typing as npt

from serving import native
from serving.bundle import Bundle
from serving.engine import EngineInfo, Floats
from serving.errors import EngineError
from serving.layout import layout_of, member_file
from serving.repricing import Fused
from serving.safetensors import parse_safetensors

WEIGHTS = "weights"
FAMILIES = ("pricing_lstm", "pricing_transformer")


def why_unavailable() -> str | None:
    """Why this engine can't be opened here, or None."""
    return native.why_unavailable()


def why_not(bundle: Bundle) -> str | None:
    """Why this engine doesn't run such a bundle anywhere, or None."""
    if bundle.manifest.model in FAMILIES:
        return None
    return f"has no net {bundle.manifest.model!r} (bundle {bundle.sha256}); it has {', '.join(FAMILIES)}"


def open_engine(bundle: Bundle, precision: str = "fp32", isa: str = "") -> NativeEngine:
    """The bundle's members, packed for this CPU."""
    return NativeEngine(bundle, precision, isa)


def numbers_of(model_config: Mapping[str, Any]) -> dict[str, float]:
    """The numbers among a net's sizes; the core names the one it lacks."""
    numbers = {key: value for key, value in model_config.items() if type(value) in (int, float)}
    try:
        return {key: float(value) for key, value in numbers.items()}
    except OverflowError as error:
        raise EngineError(f"manifest.json: model_config: {error}: {numbers!r:.200}") from error


class NativeEngine:
    """All members of a bundle in the native core; see `serving.engine.Engine`."""

    reset: Callable[[], None]
    evaluate: Callable[[Floats, Floats], None]
    advance: Callable[[Floats], None]
    head: Callable[[Floats, Floats, Floats], None]

    def __init__(self, bundle: Bundle, precision: str, isa: str) -> None:
        core, manifest = native.core(), bundle.manifest
        reason = why_not(bundle)
        if reason is not None:
            raise EngineError(f"engine 'native' {reason}")
        files = [member_file(member, WEIGHTS, index) for index, member in enumerate(manifest.members)]
        members = [(file.name, parse_safetensors(bundle.read(file.name), file.name)) for file in files]
        sizes = numbers_of(manifest.model_config)
        self._native, self.isa = core, isa
        self.core = core.Engine(manifest.model, sizes, members, precision, manifest.semantics, isa)
        runs = core.choose_isa(isa)
        layout = layout_of(manifest)
        self._info = EngineInfo(
            "native", f"strikeforge native, {runs}, {precision}, 1 thread", manifest.model, bundle.sha256,
            manifest.semantics, len(members), layout.window_steps, layout.step_features, layout.contract_features,
            sum(layout.context_sizes), precision,
        )  # fmt: skip
        for name in ("window_steps", "step_features", "contract_features", "context_size"):
            if getattr(self.core, name) != getattr(self._info, name):
                raise EngineError(
                    f"manifest.json: its tensors say {name} = {getattr(self._info, name)}, its model_config "
                    f"{getattr(self.core, name)}"
                )
        self.reset, self.evaluate = self.core.reset, self.core.evaluate
        self.advance, self.head = self.core.advance, self.core.head

    def info(self) -> EngineInfo:
        return self._info

    def fuse(self, *arrays: npt.NDArray[Any]) -> Fused:
        """A chain repriced in one call; see `serving.repricing.FusesRepricing`."""
        fused: Fused = self._native.Repricing(self.core, self.isa, *arrays)
        return fused
