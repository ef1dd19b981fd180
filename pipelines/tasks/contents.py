"""What of a bundle isn't the net: given by a task's `_bundle` module, written by the export stage."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

Arrays = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True, kw_only=True)
class Contents:
    """Arrays of `golden.npz`, `demo.npz`, `reference.npz`; the manifest's feature spec and tolerances."""

    golden: Arrays
    demo: Arrays
    reference: Arrays
    feature_spec: Mapping[str, Any]
    tolerances: Mapping[str, float]
