"""The configuration is a closed door: every file composes, every wrong key or value is named, all at once, and the
frozen result has a hash that moves with whatever decides the outcome and with nothing else."""

from __future__ import annotations

import dataclasses
import datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from pipelines import config
from pipelines.config import CONF, Config, Operation, as_json, config_hash, load_compile, load_config, load_operation
from serving.errors import ConfigError

PLAIN = ["data=generic", "data.path=quotes.csv", "split=short", "split.test_from=2019-06-03"]
FILES = sorted(CONF.rglob("*.yaml"))
CHOICES = [(path.parent.name, path.stem) for path in FILES if path.parent not in (CONF, CONF / "sweep")]
FREE_FORM = ("columns", "constants", "settlement_by_root")


def problems(*overrides: str) -> list[str]:
    """What is said about overrides that must be refused."""
    with pytest.raises(ConfigError) as caught:
        load_config([*PLAIN, *overrides])
    assert str(caught.value).startswith(f"{len(caught.value.problems)} problem")
    return caught.value.problems


def keys(kind: Any = Config, prefix: str = "") -> list[str]:
    """Every key of the schema, dotted; contents of free-form mappings left out."""
    found = []
    for field in dataclasses.fields(kind):
        types = config.TYPES | {"model": config.FAMILIES["pricing_lstm"], "anchors": None}
        inner = types.get(field.name)
        found.append(prefix + field.name)
        found += keys(inner, f"{prefix}{field.name}.") if inner else []
    return found


@pytest.mark.parametrize(("group", "choice"), CHOICES)
def test_every_choice_composes(group: str, choice: str) -> None:
    if group == "signing":
        load_operation([f"signing={choice}"])
        return
    if group == "target":
        assert load_compile([f"target={choice}"]).target.name == choice
        return
    given_where_missing = [] if choice == "spx_2019" else PLAIN
    load_config([*given_where_missing, f"{group}={choice}", "data.path=quotes.csv", "split.test_from=2019-06-03"])


def test_defaults_compose_without_overrides() -> None:
    cfg = load_config([])
    assert cfg.folder == Path("artifacts")
    assert cfg.model.name == "pricing_lstm"
    assert isinstance(load_operation(["version=3", "reason=bad"]), Operation)


def test_experiment_gives_way_to_the_command_line() -> None:
    cfg = load_config(["experiment=spx_2019", "data.path=f", "split.test_from=2019-06-03", "split.embargo=2"])
    assert (cfg.data.layout, cfg.split.validation_dates, cfg.split.embargo) == ("cboe_snapshot", 0, 2)
    assert cfg.split.test_from == datetime.date(2019, 6, 3)
    assert load_config([*PLAIN, "experiment=null"]) == load_config(PLAIN)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(CONF)))
def test_file_begins_with_the_command_that_uses_it(path: Path) -> None:
    lines = path.read_text().splitlines()
    if lines[0].startswith("# @package"):
        lines = lines[1:]
    assert lines[0].startswith("# python -m pipelines."), lines[0]
    module = lines[0].split()[3].removeprefix("pipelines.").replace(".", "/")
    assert (CONF.parent / "pipelines" / f"{module}.py").exists()
    if path.parent != CONF:
        assert f"{path.parent.name}={path.stem}" in lines[0]


@pytest.mark.parametrize(("group", "choice"), [pair for pair in CHOICES if pair[0] not in ("experiment", "gate")])
def test_file_and_schema_hold_the_same_keys(group: str, choice: str) -> None:
    written = set(OmegaConf.load(CONF / group / f"{choice}.yaml"))
    if "defaults" in written:  # builds on the group's default
        written = (written - {"defaults"}) | set(OmegaConf.load(CONF / group / "default.yaml"))
    schema = config.FAMILIES[choice] if group == "model" else config.TYPES[group]
    assert written == {field.name for field in dataclasses.fields(schema)}


def test_every_problem_is_listed_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        load_config([
            "data=generic", "split=short", "model=pricing_lstn", "trainer.epoch=3", "trainer.patience=0",
            "trainer.learning_rate=fast", "seed=-1", "model.dropout=1", "gate.accuracy.ratio=nan", "nonsense", "~out",
            "trainer.clip_norm=1,2", "trainer.precision=64", "data.anchors=[{tenor_day:3}]", "modle=x",
        ])  # fmt: skip
    text = str(caught.value)
    for expected in (
        "model=pricing_lstn: no such choice; there are pricing_lstm, pricing_transformer, surface_vae; "
        "did you mean pricing_lstm?",
        "trainer.epoch: unknown key (value 3); did you mean epochs?",
        "trainer.patience: input should be greater than or equal to 1 (value 0)",
        "trainer.learning_rate: input should be a valid number (value 'fast')",
        "seed: input should be greater than or equal to 0 (value -1)",
        "model.dropout: input should be less than 1 (value 1)",
        "gate.accuracy.ratio: input should be a finite number (value nan)",
        "'nonsense': isn't an override; write key=value",
        "'~out': keys can't be removed",
        "'trainer.clip_norm=1,2': one run takes one value",
        "trainer.precision: input should be 'auto', '32-true', 'bf16-mixed' or '16-mixed' (value 64)",
        "data.anchors.0.tenor_day: unknown key (value 3); did you mean tenor_days?",
        "data.anchors.0.tenor_days: missing",
        "modle: unknown key (value 'x'); did you mean model?",
        "data.path: must be given, as data.path=VALUE",
        "split.test_from: must be given, as split.test_from=VALUE",
    ):
        assert expected in text
    assert len(caught.value.problems) == 16


@pytest.mark.parametrize(
    "override",
    [
        "trainer.epochs=true", "trainer.epochs=2.0", "trainer.learning_rate=true", "seed='3'", "features.window=1",
        "split.test_from=20190603", "split.test_from=0", "split.test_from=2019-13-03", "split.test_to=2019-06-02",
        "split.test_from=2019-06-03T10:00", "trainer.resume=perhaps", "data.snapshot_time=25:45", "data.anchors=3",
        "data.settlement_by_root={AB: noon}", "data.columns={ts: 3}", "out=", "out=2019", "seed.more=1",
        "trainer={epochs: 3}", "model=null", "hardware.threads=0", "trainer.price_share=1.5", "split.embargo=-1",
        "data.anchors=[{tenor_days: 0}]", "data.anchors=[{tenor_days: 14, moneyness: near}]", "logging.wandb=true",
        "logging.health_port=70000", "logging.health_port=-1", "logging.stall_seconds=0", "logging.csv=perhaps",
    ],
)  # fmt: skip
def test_wrong_value_is_named_with_its_key(override: str) -> None:
    (problem,) = problems(override)
    key = override.split("=")[0].removesuffix(".more")
    assert problem.startswith(key)
    assert "value" in problem or "no such choice" in problem


@pytest.mark.parametrize("override", ["", "seed", "=3", "../x=1", "hydra.run.dir=x", "data@a=sample", "a.b.c=1"])
def test_what_is_no_key_is_refused(override: str) -> None:
    assert problems(override)


def test_unresolvable_interpolation_is_refused() -> None:
    assert "NOT_SET_ANYWHERE" in problems("data.path=${oc.env:NOT_SET_ANYWHERE}")[0]


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(keys()), st.integers(0, 30), st.sampled_from("aeijmqxz_"), st.booleans())
def test_a_misspelt_key_anywhere_is_an_error(key: str, place: int, letter: str, drop: bool) -> None:
    """One letter too many or too few in the last word of any key."""
    head, _, word = key.rpartition(".")
    place %= len(word)
    wrong = word[:place] + ("" if drop and len(word) > 1 else letter) + word[place + (drop and len(word) > 1) :]
    misspelt = f"{head}.{wrong}" if head else wrong
    assume(misspelt not in keys() and not wrong.startswith("_") and wrong != "to")
    assert any(misspelt.split(".")[0] in problem for problem in problems(f"{misspelt}=1"))


@settings(max_examples=10, deadline=None)
@given(st.sampled_from(["epochs", "hidden", "learning_rate", "layout", "seed"]), st.text("abcxyz", min_size=1))
def test_a_key_in_the_wrong_group_is_an_error(word: str, group: str) -> None:
    assume(f"{group}.{word}" not in keys())
    assert problems(f"{group}.{word}=1")


def test_null_takes_a_default_mapping_away() -> None:
    cfg = load_config([*PLAIN, "data.constants.currency=null", "data.columns.currency=ccy", "data.columns.root=null"])
    assert "currency" not in cfg.data.constants
    assert cfg.data.columns["currency"] == "ccy"
    assert "root" not in cfg.data.columns


def test_configuration_is_frozen() -> None:
    cfg = load_config(PLAIN)
    for owner in (cfg, cfg.trainer, cfg.data, cfg.split):
        name = dataclasses.fields(owner)[0].name
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(owner, name, None)


HASHED = (
    "seed=8", "features.window=21", "features.smallest_rows=11", "split.test_from=2019-06-04", "split.embargo=2",
    "split.test_to=2019-07-01", "split.validation_dates=6", "model.hidden=65", "model.layers=2", "model.dropout=0",
    "trainer.epochs=61", "trainer.learning_rate=0.003", "trainer.accumulate=2", "trainer.precision=32-true",
    "trainer.clip_norm=2.0", "trainer.price_share=0", "data.anchors=[]", "data.anchors=[{tenor_days: 14}]",
    "data.layout=cboe_snapshot", "data.columns.ts=time", "data.constants.currency=EUR", "data.time_zone=Asia/Tokyo",
    "data.snapshot_time='15:00'",
)  # fmt: skip


@pytest.mark.parametrize("override", HASHED)
def test_hash_moves_with_what_decides_the_result(override: str) -> None:
    assert config_hash(load_config([*PLAIN, override])) != config_hash(load_config(PLAIN))


def test_hash_stays_with_where_files_lie() -> None:
    moved = load_config([
        *PLAIN, "out=elsewhere", "data.path=other.csv", "data.history=h.csv", "storage.url=s3://bucket/x",
        "registry.tracking_uri=sqlite:///x.db", "registry.experiment=other", "hardware=cpu", "hardware.threads=3",
        "logging.mlflow=false", "logging.wandb=offline", "logging.health_port=0",
    ])  # fmt: skip
    assert config_hash(moved) == config_hash(load_config(PLAIN))
    reordered = [PLAIN[1], *PLAIN[2:], PLAIN[0]]
    assert config_hash(load_config(reordered)) == config_hash(load_config(PLAIN))
    assert len(config_hash(moved)) == 64


def test_resolved_configuration_reads_back() -> None:
    cfg = load_config(PLAIN)
    plain = as_json(cfg)
    assert plain["split"]["test_from"] == "2019-06-03"
    again = [f"trainer.{key}={value}" for key, value in plain["trainer"].items()]
    assert load_config([*PLAIN, *again]) == cfg


def test_an_operation_is_closed_too() -> None:
    with pytest.raises(ConfigError) as caught:
        load_operation(["version=0", "forse=true", "trainer.epochs=1"])
    assert {problem.split(":")[0] for problem in caught.value.problems} == {"version", "forse", "trainer"}
