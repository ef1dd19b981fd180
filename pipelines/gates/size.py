"""Size: the bundle a host has to fetch, and the parameters it has to read on every step, stay within bounds.

In: the manifest's sizes; the weights files (safetensors) of its members. `value` is the larger share of what is
allowed. Bytes are those of all files and the manifest.
"""

from __future__ import annotations

from pydantic.dataclasses import dataclass

from pipelines.config import CLOSED, Count
from pipelines.gate_context import GateContext, GateOutcome
from serving.bundle import Bundle
from serving.errors import BundleError

NAME = "size"


@dataclass(frozen=True, config=CLOSED)
class Settings:
    """The largest nets of the published benchmarks fit (LSTM 3 x 256: 1.4 million parameters, 5.4 MB)."""

    max_bytes: Count = 64 << 20
    max_parameters: Count = 10_000_000


def check(context: GateContext, settings: Settings) -> GateOutcome:
    """See the module."""
    bundle = context.bundle()
    size = len(bundle.manifest.to_bytes()) + sum(entry.size for entry in bundle.manifest.files.values())
    parameters = count_parameters(bundle)
    found = {"bytes": (size, settings.max_bytes), "parameters": (parameters, settings.max_parameters)}
    passed = all(count <= most for count, most in found.values())
    message = "; ".join(
        f"{count:,} {what} {'<=' if count <= most else '>'} {most:,}"
        for what, (count, most) in found.items()
        if passed or count > most
    )
    value = max(count / most for count, most in found.values())
    return GateOutcome(NAME, passed, value, 1.0, message, {"bytes": size, "parameters": parameters})


def count_parameters(bundle: Bundle) -> int:
    """Numbers in the weights files of all members; BundleError where a member has none."""
    from safetensors import SafetensorError
    from safetensors.numpy import load

    total = 0
    for index, member in enumerate(bundle.manifest.members):
        file = member.files.get("weights")
        if file is None:
            raise BundleError(f"member {index} of the bundle has no weights file, so its parameters can't be counted")
        try:
            total += sum(tensor.size for tensor in load(bundle.read(file.name)).values())
        except SafetensorError as error:
            raise BundleError(f"{file.name}: isn't a readable safetensors file: {error}") from error
    return total
