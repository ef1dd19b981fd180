"""The schemas of what is not a run: operations on the registry, sweeps, the compiler.

In: conf/operation.yaml, conf/sweep.yaml and conf/compile.yaml as composed plain values. Out: `Operation`, `SweepRoot`,
`CompileConfig`: frozen, closed.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field
from pydantic.dataclasses import dataclass

from pipelines.channel.settings import SigningConfig
from pipelines.config.families import ModelConfig
from pipelines.config.run import GateConfig, RegistryConfig, StorageConfig
from pipelines.config.values import (
    CLOSED,
    Count,
    Said,
    VersionNumber,
    Whole,
    listed_with_commas,
    number_as_text,
    number_in_digits,
)
from pipelines.tensorrt.target import Target


@dataclass(frozen=True, config=CLOSED)
class Operation:
    """One act on the registry: promote, roll back, retire, reconcile, status."""

    model: ModelConfig
    storage: StorageConfig
    registry: RegistryConfig
    gate: GateConfig
    signing: SigningConfig
    version: VersionNumber | None
    to: VersionNumber | None
    instead_of: VersionNumber | None
    a: VersionNumber | None
    b: VersionNumber | None
    of: Annotated[Said, BeforeValidator(number_as_text)] | None
    root: Said | None
    reason: Said | None
    by: Said | None
    approve_by: Said | None
    packs: Annotated[tuple[Said, ...], BeforeValidator(listed_with_commas)]
    renew: bool
    json: bool
    dry_run: bool


@dataclass(frozen=True, config=CLOSED)
class SamplerConfig:
    """How a sweep draws parameters; the first `startup_trials` of `tpe` are random."""

    name: Literal["tpe", "random"]
    seed: Whole
    startup_trials: Whole


@dataclass(frozen=True, config=CLOSED)
class PrunerConfig:
    """When a sweep gives a trial up: not before `warmup_epochs`, nor (median) before `startup_trials` are complete."""

    name: Literal["median", "hyperband", "none"]
    startup_trials: Whole
    warmup_epochs: Whole
    reduction_factor: Annotated[int, Field(ge=2, strict=True)]  # hyperband


@dataclass(frozen=True, config=CLOSED)
class SweepConfig:
    """A sweep: `space` is a tree of keys with a distribution each (pipelines/sweep_space.py)."""

    study: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")]
    trials: Annotated[Count, BeforeValidator(number_in_digits)]
    overrides: tuple[str, ...]
    sampler: SamplerConfig
    pruner: PrunerConfig
    space: dict[str, Any]
    write_experiment: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")] | None


@dataclass(frozen=True, config=CLOSED)
class SweepRoot:
    """conf/sweep.yaml."""

    sweep: SweepConfig


@dataclass(frozen=True, config=CLOSED)
class CompileConfig:
    """conf/compile.yaml: which nets, for which GPU; `bundle` is a folder and comes before model and version."""

    model: ModelConfig
    storage: StorageConfig
    target: Target
    version: VersionNumber | None
    bundle: Said | None
    out: Annotated[str, Field(min_length=1)]
    bundles: Said
    cache: Said | None
