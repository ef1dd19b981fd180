"""The best trial as a file of conf/experiment/: group choices and values, and the command that uses it.

In: the overrides of a trial (sweep, command line, parameters). Out: the file's text, without places and input files.
Invariant: the text composes to the trial's configuration; it is composed and compared before anybody sees it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from pipelines.config import CONF, PLACES, config_hash, load_config
from pipelines.sweep_space import as_override
from serving.errors import ConfigError

MADE_BY = "# made by pipelines.sweep"
LEFT_OUT = (*PLACES, "data.path", "data.history")  # what the command that uses the file says

UNTELLABLE = "the overrides can't be told in an experiment file; give whole values instead of parts of lists"


@dataclass(frozen=True)
class Origin:
    """Which trial it was."""

    study: str
    trial: int
    value: float  # vol points


def experiment_text(name: str, overrides: Sequence[str], swept: Sequence[str], origin: Origin | None) -> str:
    """The file `name`.yaml; raises ConfigError where these overrides can't be told in a file.

    Of the places only those among the keys `swept` are in the file.
    """
    choices, values, places = _taken_apart(overrides, swept)
    command = " ".join([f"# python -m pipelines.run experiment={name}", *places, "out=DIR"])
    lines = ["# @package _global_", command]
    if origin:
        lines.append(f"{MADE_BY}: study {origin.study}, trial {origin.trial}, validation IV RMSE "
                     f"{origin.value:.4f} vol points")  # fmt: skip
    body: dict[str, Any] = {"defaults": [{f"override /{group}": choice} for group, choice in choices.items()]}
    text = "\n".join(lines) + "\n" + str(OmegaConf.to_yaml(OmegaConf.create(body | values)))
    _check(text, overrides, swept)
    return text


def write_experiment(name: str, text: str) -> Path:
    """Put it into conf/experiment/; raises ConfigError where a file of that name isn't a sweep's."""
    check_name(name)
    path = CONF / "experiment" / f"{name}.yaml"
    aside = path.with_name(f".{path.name}.new")
    aside.write_text(text, encoding="utf-8")
    aside.replace(path)
    return path


def check_name(name: str) -> None:
    """Raises ConfigError where conf/experiment/ has a file of that name that no sweep made."""
    path = CONF / "experiment" / f"{name}.yaml"
    if path.exists() and MADE_BY not in path.read_text(encoding="utf-8"):
        raise ConfigError([f"sweep.write_experiment: {path} is there and wasn't made by a sweep; choose another name "
                           f"(value {name!r})"])  # fmt: skip


def _taken_apart(overrides: Sequence[str], swept: Sequence[str]) -> tuple[dict[str, str], dict[str, Any], list[str]]:
    """Group choices, a tree of values, and `key=FILE` for input files that the command needs."""
    choices: dict[str, str] = {}
    values: dict[str, Any] = {}
    files: list[str] = []
    parser = OverridesParser.create()
    parsed = [parser.parse_override(text.lstrip("+")) for text in overrides]
    pairs = [(one.key_or_group, one.value()) for one in parsed]
    for key, value in sorted(pairs, key=lambda pair: pair[0] != "experiment"):
        if key == "experiment":
            if value is not None:
                _begin_with(str(value), choices, values)
        elif (CONF / key).is_dir():
            if key not in LEFT_OUT or key in swept:
                choices[key] = str(value)
        elif _is_place(key) and key not in swept and value is not None:
            if key.startswith("data.") and f"{key}=FILE" not in files:
                files.append(f"{key}=FILE")
        else:
            _put(values, key.split("."), value)
    return choices, values, files


def _is_place(key: str) -> bool:
    return any(key == place or key.startswith(f"{place}.") for place in LEFT_OUT)


def _begin_with(name: str, choices: dict[str, str], values: dict[str, Any]) -> None:
    """The experiment the overrides build on, whose content is taken over."""
    content: Any = OmegaConf.to_container(OmegaConf.load(CONF / "experiment" / f"{name}.yaml"))
    for entry in content.pop("defaults", []):
        listed = entry if isinstance(entry, dict) else {str(entry): None}
        for group, choice in listed.items():
            if not group.startswith("override /") or choice is None:
                if group != "_self_":
                    raise ConfigError([f"experiment={name}: its defaults hold {group!r}, which can't be told in "
                                       "another experiment; give its keys themselves"])  # fmt: skip
                continue
            choices[group.removeprefix("override /")] = choice
    for key, value in content.items():
        _put(values, [key], value)


def _put(tree: dict[str, Any], path: Sequence[str], value: Any) -> None:
    """Set a value as Hydra does: mappings are merged, all else is replaced."""
    *above, last = path
    for name in above:
        if not isinstance(tree.get(name), dict):
            tree[name] = {}
        tree = tree[name]
    if isinstance(value, Mapping) and isinstance(tree.get(last), dict):
        for name, item in value.items():
            _put(tree[last], [name], item)
    else:
        tree[last] = dict(value) if isinstance(value, Mapping) else value


def _check(text: str, overrides: Sequence[str], swept: Sequence[str]) -> None:
    """Compose the text beside conf/ with the trial's places, and compare with the trial."""
    parser = OverridesParser.create()
    places = []
    for one in (parser.parse_override(text.lstrip("+")) for text in overrides):
        key = one.key_or_group
        if _is_place(key) and key not in swept:
            places.append(f"{key}={one.value()}" if (CONF / key).is_dir() else as_override(key, one.value()))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "experiment" / "of_this_sweep.yaml"
        path.parent.mkdir()
        path.write_text(text, encoding="utf-8")
        try:
            told = load_config(["experiment=of_this_sweep", *places], beside=Path(folder))
        except ConfigError as error:
            raise ConfigError([f"{UNTELLABLE} ({'; '.join(error.problems)})"]) from error
    wanted = load_config(overrides)
    if config_hash(told) != config_hash(wanted) or told.hardware != wanted.hardware:
        raise ConfigError([f"{UNTELLABLE} (composed from it, the configuration differs from the trial's)"])
