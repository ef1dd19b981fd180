"""Reading conf/: Hydra composes the files with the overrides, the schemas close and check the result.

In: overrides as on a command line. Out: a frozen dataclass of pipelines/config/, or one `ConfigError` that lists every
problem with its key and value. Invariant: what conf/ tells a run or a command comes through
`load`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import TypeAdapter, ValidationError

from pipelines.config.commands import CompileConfig, Operation, SweepConfig, SweepRoot
from pipelines.config.problems import closest, describe, key_of
from pipelines.config.run import Config
from serving.errors import ConfigError

CONF = Path(__file__).resolve().parents[2] / "conf"
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
        problems += [describe(kind, item) for item in error.errors() if key_of(item) not in missing]
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
                f"{key}={choice}: no such choice; there are {', '.join(known)}{closest(str(choice), known)}"
            )
            return None
        return text.lstrip("+")
    return "++" + text.lstrip("+")
