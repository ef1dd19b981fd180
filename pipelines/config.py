"""The configuration: Hydra composes `conf/`, the dataclasses below close and check it.

In: overrides as on a command line (`trainer.epochs=3`, `model=pricing_lstm`). Out: a frozen `Config` (or `Operation`),
or one `ConfigError` that lists every problem with its key and value. An unknown key is an error. `config_hash` names
a run.

Invariants: what a stage reads is in the dataclass; nothing reads conf/ files past this module.
"""

from __future__ import annotations

import dataclasses
import datetime
import difflib
import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar, get_args

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
    field_validator,
)
from pydantic.dataclasses import dataclass

from pipelines.channel.settings import SigningConfig
from pipelines.tensorrt.target import Profile, Target
from serving.errors import ConfigError

CONF = Path(__file__).resolve().parents[1] / "conf"
CLOSED = ConfigDict(extra="forbid", allow_inf_nan=False)
# Where files lie, what is told, and what is asked of a version afterwards: they decide no result.
PLACES = ("out", "storage", "registry", "hardware", "logging", "gate")


def _written_as_date(value: Any) -> Any:
    """A number isn't a date, though pydantic would count its seconds from 1970."""
    if value is None or isinstance(value, str | datetime.date):
        return value
    raise ValueError("dates are written YYYY-MM-DD")


def _without_nulls(value: Any) -> Any:
    """`data.constants.currency=null` takes a choice's default away, so that a column can take its place."""
    return {key: item for key, item in value.items() if item is not None} if isinstance(value, dict) else value


def _number_in_digits(value: Any) -> Any:
    """An operation may get its number as text (`version=${oc.env:VERSION}`); only digits are taken for one."""
    return int(value) if isinstance(value, str) and re.fullmatch("[1-9][0-9]{0,8}", value) else value


def _number_as_text(value: Any) -> Any:
    """Hydra takes a version or a hash that happens to be all digits for a number."""
    return str(value) if type(value) is int else value


def _listed_with_commas(value: Any) -> Any:
    """A list that came as text, from make: its parts, without those that are empty."""
    return tuple(part for part in value.split(",") if part) if isinstance(value, str) else value


def _said(value: str) -> str:
    if not value.strip():
        raise ValueError("is empty; say it or leave it out")
    return value


# Strict: true isn't 1, "3" isn't 3.
Count = Annotated[int, Field(ge=1, strict=True)]
Whole = Annotated[int, Field(ge=0, strict=True)]
Number = Annotated[float, Field(strict=True)]
NotNegative = Annotated[float, Field(ge=0, strict=True)]
Share = Annotated[float, Field(ge=0, lt=1, strict=True)]
Positive = Annotated[float, Field(gt=0, strict=True)]
Date = Annotated[datetime.date, BeforeValidator(_written_as_date)]
VersionNumber = Annotated[Count, BeforeValidator(_number_in_digits)]
Said = Annotated[str, AfterValidator(_said)]
Task = Literal["pricing", "surface"]  # what a family of nets is trained for: pipelines/tasks/
TASKS: tuple[Task, ...] = get_args(Task)


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
    columns: Annotated[dict[str, str], BeforeValidator(_without_nulls)]
    constants: Annotated[dict[str, str], BeforeValidator(_without_nulls)]
    settlement_by_root: Annotated[dict[str, Literal["am", "pm"]], BeforeValidator(_without_nulls)]


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
class PricingLSTMSettings:
    """models/pricing_lstm.py; sizes."""

    task: ClassVar[Task] = "pricing"
    name: Literal["pricing_lstm"]
    hidden: Count
    layers: Count
    context: Count
    head_width: Count
    dropout: Share


@dataclass(frozen=True, config=CLOSED)
class PricingTransformerSettings:
    """models/pricing_transformer.py; sizes. `band`: steps a layer looks at, the present one included."""

    task: ClassVar[Task] = "pricing"
    name: Literal["pricing_transformer"]
    width: Count
    heads: Count
    layers: Count
    band: Annotated[int, Field(ge=2, strict=True)]
    context: Count
    head_width: Count
    dropout: Share

    @field_validator("heads")
    @classmethod
    def _divides_the_width(cls, value: int, info: ValidationInfo) -> int:
        width = info.data.get("width")
        if width is not None and width % value:
            raise ValueError(f"must divide model.width={width}")
        return value


@dataclass(frozen=True, config=CLOSED)
class SurfaceVAESettings:
    """models/surface_vae.py; sizes, what is hidden in training (a mean share), and the weights of the loss's terms."""

    task: ClassVar[Task] = "surface"
    name: Literal["surface_vae"]
    latent: Count
    width: Count
    dropout: Share
    hidden_share: Share
    kl_weight: NotNegative
    regime_weight: NotNegative
    labelled_share: Annotated[float, Field(gt=0, le=1, strict=True)]  # of the training dates' labels that are used


ModelConfig = Annotated[
    PricingLSTMSettings | PricingTransformerSettings | SurfaceVAESettings, Field(discriminator="name")
]
FAMILIES: dict[str, type[Any]] = {
    "pricing_lstm": PricingLSTMSettings, "pricing_transformer": PricingTransformerSettings,
    "surface_vae": SurfaceVAESettings,
}  # fmt: skip


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
    of: Annotated[Said, BeforeValidator(_number_as_text)] | None
    root: Said | None
    reason: Said | None
    by: Said | None
    approve_by: Said | None
    packs: Annotated[tuple[Said, ...], BeforeValidator(_listed_with_commas)]
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
    trials: Annotated[Count, BeforeValidator(_number_in_digits)]
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


T = TypeVar("T")


def load_config(overrides: Sequence[str], *, beside: Path | None = None) -> Config:
    """The configuration of a run; raises ConfigError with every problem found.

    `beside` is a second folder like conf/, for an experiment that isn't in conf/ (yet).
    """
    return load(Config, "config", overrides, beside)


def load_operation(overrides: Sequence[str]) -> Operation:
    """The configuration of an operation; raises ConfigError with every problem found."""
    return load(Operation, "operation", overrides)


def load_sweep(overrides: Sequence[str]) -> SweepConfig:
    """The sweep itself, from the overrides of `sweep` and `sweep.*`; raises ConfigError with every problem found."""
    return load(SweepRoot, "sweep", overrides).sweep


def load_compile(overrides: Sequence[str]) -> CompileConfig:
    """The configuration of `pipelines.compile`; raises ConfigError with every problem found."""
    return load(CompileConfig, "compile", overrides)


def load(kind: type[T], name: str, overrides: Sequence[str], beside: Path | None = None) -> T:
    """`conf/<name>.yaml` with overrides, as a closed dataclass; raises ConfigError with every problem found."""
    problems: list[str] = []
    accepted = [text for text in (_check_override(override, problems, beside) for override in overrides) if text]
    if beside is not None:
        accepted.append(f"hydra.searchpath=[file://{beside}]")
    try:
        with initialize_config_dir(str(CONF), version_base="1.3", job_name="strikeforge"):
            composed = compose(name, overrides=accepted)
        for key in sorted(OmegaConf.missing_keys(composed)):
            problems.append(f"{key}: must be given, as {key}=VALUE")
            OmegaConf.update(composed, key, None)
        missing = {problem.split(":")[0] for problem in problems if "must be given" in problem}
        content: Any = OmegaConf.to_container(composed, resolve=True)
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError([*problems, " ".join(str(error).split())]) from error
    try:
        config = TypeAdapter(kind).validate_python(content)
    except ValidationError as error:
        problems += [_describe(kind, item) for item in error.errors() if _key(item) not in missing]
        raise ConfigError([*problems, *_gate_problems(content)]) from error
    problems += _gate_problems(content)
    if problems:
        raise ConfigError(problems)
    return config


def _gate_problems(content: Any) -> list[str]:
    """What is wrong with the choice of gates; each gate closes its own section."""
    from pipelines.gate_choice import gate_problems

    choice = content.get("gate")
    return gate_problems(choice) if isinstance(choice, dict) else []


def _check_override(text: str, problems: list[str], beside: Path | None = None) -> str | None:
    """The override as Hydra shall see it, or None with a problem noted. Forced: the schema judges keys, not Hydra."""
    try:
        override = OverridesParser.create().parse_override(text)
    except HydraException:
        problems.append(f"{text!r}: isn't an override; write key=value, and a value with special characters in "
                        "quotes: 'key=\"a (1).csv\"'")  # fmt: skip
        return None
    key = override.key_or_group
    if not key or key.split(".")[0] == "hydra":
        problems.append(f"{text!r}: no such key; Hydra's own settings aren't part of a run's configuration")
        return None
    if override.is_delete():
        problems.append(f"{text!r}: keys can't be removed; set {key}=null or a value instead")
        return None
    if override.is_sweep_override():
        problems.append(f"{text!r}: one run takes one value; a list is written {key}=[a,b]")
        return None
    if (CONF / key).is_dir():
        choice = override.value()
        if choice is None and key == "experiment":
            return None
        folders = [CONF / key, *([beside / key] if beside else [])]
        known = sorted(path.stem for folder in folders for path in folder.glob("*.yaml"))
        if str(choice) not in known:
            problems.append(
                f"{key}={choice}: no such choice; there are {', '.join(known)}{_closest(str(choice), known)}"
            )
            return None
        return text.lstrip("+")
    return "++" + text.lstrip("+")


def _place(item: Any) -> list[Any]:
    """Where in the configuration a problem is; pydantic puts the family's name after `model`, which is no key."""
    return [part for place, part in enumerate(item["loc"]) if not (place == 1 and part in FAMILIES)]


def _key(item: Any) -> str:
    return ".".join(str(part) for part in _place(item))


def _closest(word: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {close[0]}?" if close else ""


def _describe(kind: type[Any], item: Any) -> str:
    """One problem of the schema as a line: key, what is wrong, value received."""
    key = _key(item)
    if item["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        owner: Any = kind
        for part in item["loc"][:-1]:
            if isinstance(part, int):  # a place in a list: its items are of the list's type
                continue
            if part in FAMILIES:
                owner = FAMILIES[part]
                continue
            fields = (
                {field.name: field for field in dataclasses.fields(owner)} if dataclasses.is_dataclass(owner) else {}
            )
            owner = TYPES.get(fields[part].name) if part in fields else None
        known = [field.name for field in dataclasses.fields(owner)] if owner and dataclasses.is_dataclass(owner) else []
        listed = f"; known here: {', '.join(known)}" if known else ""
        return f"{key}: unknown key{_shown(key, item)}{_closest(str(item['loc'][-1]), known) or listed}"
    if item["type"] in ("missing", "missing_argument"):
        return f"{key}: missing"
    message = item["msg"].removeprefix("Value error, ")
    return f"{key}: {message[:1].lower()}{message[1:]}{_shown(key, item)}"


def _shown(key: str, item: Any) -> str:
    """The value received; not where somebody may have put a key in the place of its URI."""
    return "" if key.split(".")[0] in ("signing", "uri") else f" (value {item['input']!r})"


TYPES: dict[str, type[Any]] = {
    "data": DataConfig, "features": FeaturesConfig, "split": SplitConfig,
    "trainer": TrainerConfig, "hardware": HardwareConfig, "storage": StorageConfig, "registry": RegistryConfig,
    "logging": LoggingConfig, "signing": SigningConfig, "anchors": AnchorSpec, "sweep": SweepConfig,
    "sampler": SamplerConfig, "pruner": PrunerConfig, "target": Target, "rows": Profile,
}  # fmt: skip


def as_json(config: Config) -> dict[str, Any]:
    """The resolved configuration as plain JSON values."""
    plain: dict[str, Any] = TypeAdapter(Config).dump_python(config, mode="json")
    return plain


def without_places(config: Config) -> dict[str, Any]:
    """The resolved configuration without the places where files lie and what decides no result."""
    content = as_json(config)
    for place in PLACES:
        content.pop(place)
    for section, file in (("data", "path"), ("data", "history"), ("features", "regimes")):
        content[section].pop(file)
    return content


def config_hash(config: Config) -> str:
    """SHA-256 (hex) of what decides the result."""
    content = without_places(config)
    content["data"].pop("provenance")
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
