"""Clean: what made the version is committed, in git and in DVC.

In: `git_clean` and `dvc_clean` of the recorded lineage, as they were at registration. Clean means that nothing but
dvc.lock differed from the recorded commit, and that the stages' outputs were those dvc.lock names. `unknown` isn't
clean. `value` is the number of problems.
"""

from __future__ import annotations

from collections.abc import Mapping

from pydantic.dataclasses import dataclass

from pipelines.config import CLOSED
from pipelines.gate_context import GateContext, GateOutcome

NAME = "clean"
REMEDY = {
    "git_clean": "commit (or ignore) what differs, train and register again",
    "dvc_clean": "run dvc repro through registration, and commit dvc.lock",
}


@dataclass(frozen=True, config=CLOSED)
class Settings:
    """Nothing to tune; conf/gate/development.yaml switches the gate off."""


def check(context: GateContext, settings: Settings) -> GateOutcome:
    """See the module."""
    lineage = context.details.get("lineage")
    known = lineage if isinstance(lineage, Mapping) else {}
    problems = [f"{key} is {known.get(key)!r}: {remedy}" for key, remedy in REMEDY.items() if known.get(key) != "true"]
    message = "; ".join(problems) or "git and DVC were clean at registration"
    return GateOutcome(NAME, not problems, float(len(problems)), 0.0, message)
