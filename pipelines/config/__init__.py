"""The configuration: Hydra composes `conf/`, frozen dataclasses close and check it.

In: overrides as on a command line (`trainer.epochs=3`, `model=pricing_lstm`). Out: a frozen `Config` (or `Operation`,
`SweepConfig`, `CompileConfig`), or one `ConfigError` that lists every problem with its key and value. An unknown key
is an error. `config_hash` names a run.

    values     types of single values            families   the nets' settings
    run        the schema of a run               commands   the schemas of operations, sweeps, the compiler
    loading    composing and checking            problems   what is wrong, in words
    identity   plain values and the hash

Invariants: what a stage reads is in the dataclass; other packages import from here, not from the modules.
"""

from __future__ import annotations

from pipelines.config.commands import CompileConfig, Operation, PrunerConfig, SamplerConfig, SweepConfig
from pipelines.config.families import FAMILIES, TASKS, ModelConfig, SurfaceVAESettings, Task
from pipelines.config.identity import PLACES, as_json, config_hash, without_places
from pipelines.config.loading import CONF, load, load_compile, load_config, load_operation, load_sweep
from pipelines.config.problems import TYPES
from pipelines.config.run import Config, HardwareConfig, RegistryConfig, SplitConfig, StorageConfig, TrainerConfig
from pipelines.config.values import CLOSED, Count, NotNegative, Positive, VersionNumber

__all__ = [
    "CLOSED",
    "CONF",
    "FAMILIES",
    "PLACES",
    "TASKS",
    "TYPES",
    "CompileConfig",
    "Config",
    "Count",
    "HardwareConfig",
    "ModelConfig",
    "NotNegative",
    "Operation",
    "Positive",
    "PrunerConfig",
    "RegistryConfig",
    "SamplerConfig",
    "SplitConfig",
    "StorageConfig",
    "SurfaceVAESettings",
    "SweepConfig",
    "Task",
    "TrainerConfig",
    "VersionNumber",
    "as_json",
    "config_hash",
    "load",
    "load_compile",
    "load_config",
    "load_operation",
    "load_sweep",
    "without_places",
]
