"""The schema of a run, from data to a registered version: a frozen dataclass per section of conf/config.yaml.

In: the composed sections as plain values. Out: `Config`, closed: an unknown key or an unusable value is a problem.
Invariant: what a stage reads is a field here.
"""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator
from pydantic.dataclasses import dataclass

from pipelines.config.families import ModelConfig
from pipelines.config.values import CLOSED, Count, Date, NotNegative, Number, Positive, Share, Whole, without_nulls


@dataclass(frozen=True, config=CLOSED)
class AnchorSpec:
    """An anchor: the strike nearest F exp(moneyness sqrt(tau)) in the expiry nearest `tenor_days`."""

    tenor_days: Positive
    moneyness: Number = 0.0


@dataclass(frozen=True, config=CLOSED)
class DataConfig:
    """Which quotes, in which layout."""

    layout: str
    path: Annotated[str, Field(min_length=1)]
    underlyings: tuple[Annotated[str, Field(min_length=1)], ...]  # of those in the files; empty: all
    history: str | None
    anchors: tuple[AnchorSpec, ...]
    provenance: str
    time_zone: str | None  # empty: the layout's own
    snapshot_time: Annotated[str, Field(pattern=r"^([01]\d|2[0-3]):[0-5]\d$")] | None
    columns: Annotated[dict[str, str], BeforeValidator(without_nulls)]
    constants: Annotated[dict[str, str], BeforeValidator(without_nulls)]
    settlement_by_root: Annotated[dict[str, Literal["am", "pm"]], BeforeValidator(without_nulls)]


@dataclass(frozen=True, config=CLOSED)
class FeaturesConfig:
    """Market sequence and the choice of snapshots."""

    window: Annotated[int, Field(ge=2, strict=True)]
    smallest_rows: Count
    regimes: str | None  # file of (date, regime); empty: by realised volatility


@dataclass(frozen=True, config=CLOSED)
class SplitConfig:
    """Training, validation, test: in that order in time, with an embargo between them (in dates)."""

    test_from: Date
    test_to: Date | None
    validation_dates: Whole
    embargo: Whole

    @field_validator("test_to")
    @classmethod
    def _ends_after_it_begins(cls, value: datetime.date | None, info: ValidationInfo) -> datetime.date | None:
        start = info.data.get("test_from")
        if value is not None and start is not None and value < start:
            raise ValueError(f"lies before split.test_from={start}")
        return value


@dataclass(frozen=True, config=CLOSED)
class TrainerConfig:
    """The loop."""

    epochs: Count
    snapshots_per_batch: Count
    rows_per_snapshot: Count
    accumulate: Count
    learning_rate: Positive
    weight_decay: NotNegative
    warmup_share: Share
    clip_norm: Positive
    patience: Count
    day_weight_power: Annotated[float, Field(ge=0, le=4, strict=True)]
    price_share: Annotated[float, Field(ge=0, le=1, strict=True)]
    trust_share: Share
    precision: Literal["auto", "32-true", "bf16-mixed", "16-mixed"]
    resume: bool


@dataclass(frozen=True, config=CLOSED)
class HardwareConfig:
    """Where the loop runs."""

    accelerator: Literal["auto", "cpu", "gpu"]
    threads: Count | None


@dataclass(frozen=True, config=CLOSED)
class StorageConfig:
    """Where bundles and the ledger live."""

    url: Annotated[str, Field(min_length=1)]


@dataclass(frozen=True, config=CLOSED)
class RegistryConfig:
    """MLflow."""

    tracking_uri: Annotated[str, Field(min_length=1)]
    experiment: Annotated[str, Field(min_length=1)]


@dataclass(frozen=True, config=CLOSED)
class LoggingConfig:
    """Where a training writes what it measures, and where it can be asked how it is."""

    mlflow: bool
    tensorboard: bool
    csv: bool
    wandb: Literal["off", "offline", "online"]
    wandb_project: Annotated[str, Field(min_length=1)]
    health_port: Annotated[int, Field(ge=0, le=65535, strict=True)] | None  # empty: no endpoint; 0: any free port
    health_host: Annotated[str, Field(min_length=1)]
    stall_seconds: Positive


GateConfig = dict[str, Any]  # a section per gate, closed and checked by pipelines/gate_choice.py


@dataclass(frozen=True, config=CLOSED)
class Config:
    """One run, data to registered version."""

    data: DataConfig
    features: FeaturesConfig
    split: SplitConfig
    model: ModelConfig
    trainer: TrainerConfig
    hardware: HardwareConfig
    storage: StorageConfig
    registry: RegistryConfig
    logging: LoggingConfig
    gate: GateConfig
    seed: Whole
    out: Annotated[str, Field(min_length=1)]

    @property
    def folder(self) -> Path:
        """Where this run's files go."""
        return Path(self.out)
