"""The surface net in the native core: one thread, no library besides.

In: a verified surface bundle's `weights.safetensors` and the sizes of its manifest. Out: as `SurfaceEngine` in
serving/engine.py. The precision is that of the two networks' matrices; units, priors and the regime head are fp32.

Invariants: every tensor of the file is used, and every one that the net needs is there; arrays are checked by name.
"""

from __future__ import annotations

from dataclasses import fields

import numpy as np

from serving import native
from serving.bundle import Bundle
from serving.engine import check_array
from serving.engines.native import WEIGHTS, numbers_of
from serving.errors import EngineError
from serving.layout import member_file
from serving.safetensors import parse_safetensors
from serving.surface_score import SurfaceAnswer, SurfaceInput

FAMILY = "surface_vae"


def open_surface_engine(bundle: Bundle, precision: str = "fp32") -> NativeSurfaceEngine:
    """The bundle's surface net, its weights packed for this CPU."""
    return NativeSurfaceEngine(bundle, precision)


class NativeSurfaceEngine:
    """The surface net of a bundle; off every tick's path, so nothing is preallocated."""

    def __init__(self, bundle: Bundle, precision: str = "fp32") -> None:
        core = native.core()
        manifest = bundle.manifest
        if len(manifest.members) > 1:
            raise EngineError(f"bundle {bundle.sha256} has several surface nets; latents can't be averaged: give one")
        if manifest.model != FAMILY:
            raise EngineError(f"the native engine has no surface net {manifest.model!r}; it has {FAMILY}")
        file = member_file(manifest.members[0], WEIGHTS, 0)
        weights = parse_safetensors(bundle.read(file.name), file.name)
        sizes = numbers_of(manifest.model_config)
        self._net = core.SurfaceNet(sizes, file.name, weights, precision, "")
        self._cells, self._moves = int(sizes["cells"]), int(sizes["moves"])
        self.runtime = f"native {core.choose_isa()} {precision}, 1 thread"

    def answer(self, known: SurfaceInput) -> SurfaceAnswer:
        """Completed surfaces, deviations, latents, surprises, regimes."""
        count = len(known.surface)
        for field in fields(SurfaceInput):
            width = self._moves if field.name == "move" else self._cells
            check_array(field.name, getattr(known, field.name), (count, width))
        given = [np.ascontiguousarray(getattr(known, field.name)) for field in fields(SurfaceInput)]
        shapes = {"latent": (count, self._net.latent), "surprise": (count,), "regime": (count, self._net.regimes)}
        grid = (count, self._cells)
        answer = SurfaceAnswer(*(np.zeros(shapes.get(field.name, grid), np.float32) for field in fields(SurfaceAnswer)))
        self._net.answer(*given, *(getattr(answer, field.name) for field in fields(SurfaceAnswer)))
        return answer
