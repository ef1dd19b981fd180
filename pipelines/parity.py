"""A bundle's golden vectors recomputed by the engines a host would use.

Data in: a verified bundle. Data out: the largest absolute difference per golden array and way of computing it: the
`window` file, and the `step` file run over the window from zero state, each with the head behind it; or a surface
net's outputs.
Invariant: a bundle that can't be computed is an error, and a value that isn't finite an infinite difference.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from serving.bundle import Bundle
from serving.engine import Parity, golden_parity, open_engine, open_surface_engine, surface_parity
from serving.errors import BundleError

SEMANTICS_OF_ROLE = {"window": "window", "step": "stateful"}


@dataclass(frozen=True)
class ParityCheck:
    """One comparison; `excess` above 1 is a failure."""

    name: str
    difference: float
    tolerance: float

    @classmethod
    def of(cls, parity: Parity, role: str = "") -> ParityCheck:
        """An engine's comparison, named after the role that computed it."""
        difference = parity.max_abs_difference if math.isfinite(parity.max_abs_difference) else math.inf
        return cls(f"{parity.name} ({role})" if role else parity.name, difference, parity.tolerance)

    @property
    def excess(self) -> float:
        """Difference in units of what is allowed."""
        if self.difference <= self.tolerance:
            return self.difference / self.tolerance if self.tolerance else 0.0
        return math.inf if not self.tolerance else self.difference / self.tolerance


def ways_of(bundle: Bundle) -> dict[str, str]:
    """Roles that all members have a file for, with the semantics each computes."""
    members = bundle.manifest.members
    return {
        role: semantics
        for role, semantics in SEMANTICS_OF_ROLE.items()
        if all(role in member.files for member in members)
    }


def recompute(bundle: Bundle, backend: str = "ort") -> list[ParityCheck]:
    """All comparisons; BundleError or EngineError if there is nothing to compare or it can't be computed."""
    manifest = bundle.manifest
    if manifest.task == "surface":
        return [ParityCheck.of(one) for one in surface_parity(bundle, open_surface_engine(bundle, backend))]
    checks = []
    for role, semantics in ways_of(bundle).items():
        judged = replace(bundle, manifest=replace(manifest, semantics=semantics))
        checks += [ParityCheck.of(one, role) for one in golden_parity(judged, open_engine(judged, backend))]
    if not checks:
        raise BundleError("no way of computing is common to all members: each needs a window or a step file")
    return checks
