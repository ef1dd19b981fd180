"""The questions a version must pass before it becomes champion. A new gate is one file here.

A gate is a module with

    Settings                          a pydantic dataclass (config=CLOSED), every field with a default and a unit
    check(context, settings)          GateOutcome; raises nothing but BundleError, EngineError, DataError (a failure)
    TASKS = ("pricing",)              only where the question makes no sense for other models

found by its name (pipelines/gate_choice.py) and switched and tuned in conf/gate/*.yaml under that name.
Invariants: a gate writes nothing; missing or unusable figures are a failure with a message, never a pass. `integrity`
isn't among the files: it can't be switched off (pipelines/gate_run.py).
"""

from __future__ import annotations

from pipelines.gate_choice import load_gates
from pipelines.gate_context import MODEL_PREDICTOR, Gate, GateContext, GateOutcome
from pipelines.gate_run import integrity, run_gates

__all__ = ["MODEL_PREDICTOR", "Gate", "GateContext", "GateOutcome", "integrity", "load_gates", "run_gates"]
