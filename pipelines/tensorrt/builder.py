"""The builder (serving/engines/trt_builder.py) behind all that is refused before it is asked.

In: ONNX bytes, a target, the profile of a file with a free dimension. Out: the engine. Invariant: nothing is built for
a target or from a file that pipelines/tensorrt/refusals.py refuses.
"""

from __future__ import annotations

from pipelines.tensorrt.refusals import check_network, check_target
from pipelines.tensorrt.target import Profile, Target
from serving.engines.trt_builder import Built, Rows, build_engine
from serving.errors import EngineError


def build(raw: bytes, name: str, target: Target, profile: Profile | None) -> Built:
    """The engine of the ONNX file `name`; EngineError naming what stands against it."""
    check_target(target)
    if target.sm is None:
        raise EngineError(f"{name}: {target.name}: the host's SM must be found first")
    check_network(raw, name)
    rows = None if profile is None else Rows(profile.min, profile.opt, profile.max)
    return build_engine(raw, name, target.kind, target.sm, rows)
