"""A space is checked before any trial: every fault named with key and value, all at once; what it draws composes."""

from __future__ import annotations

from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from pipelines.config import CONF, load_config, load_sweep
from pipelines.sweep import planned
from pipelines.sweep_space import as_override, check_composed, read_space
from serving.errors import ConfigError

SWEEPS = sorted(path.stem for path in (CONF / "sweep").glob("*.yaml"))
FILES = ["data=generic", "data.path=q.csv", "split.test_from=2024-01-29"]


def faults(tree: dict[str, Any]) -> list[str]:
    """What is said about a space that must be refused."""
    problems: list[str] = []
    read_space(tree, problems)
    assert problems
    return problems


def refused(*overrides: str) -> list[str]:
    """What is said about a sweep that must be refused."""
    with pytest.raises(ConfigError) as caught:
        planned(["sweep=pricing_lstm", *overrides])
    return caught.value.problems


@pytest.mark.parametrize("name", SWEEPS)
def test_every_sweep_of_conf_can_be_started(name: str) -> None:
    plan = planned([f"sweep={name}"])
    assert plan.first.model.name == name
    assert plan.sweep.study == name
    assert len(plan.space.keys) >= 5


def test_kinds_of_distributions() -> None:
    problems: list[str] = []
    space = read_space(
        {
            "model": {"hidden": {"low": 2, "high": 64, "log": True}, "layers": {"low": 1, "high": 5, "step": 2}},
            "trainer.learning_rate": {"low": 1e-4, "high": 1, "log": True},
            "trainer": {"price_share": {"low": 0, "high": 0.5, "step": 0.1}, "choices": ["default", "short"]},
            "data.anchors": {"choices": [[], [{"tenor_days": 14}], None]},
            "model.dropout": None,
            "model.context": {"low": 4, "high": 8, "choices": None, "step": None},
        },
        problems,
    )
    assert not problems
    assert dict(space.distributions) == {
        "model.hidden": IntDistribution(2, 64, log=True),
        "model.layers": IntDistribution(1, 5, step=2),
        "trainer.learning_rate": FloatDistribution(1e-4, 1.0, log=True),
        "trainer.price_share": FloatDistribution(0.0, 0.5, step=0.1),
        "trainer": CategoricalDistribution(["default", "short"]),
        "data.anchors": CategoricalDistribution(["[]", '[{"tenor_days": 14}]', None]),
        "model.context": IntDistribution(4, 8),
    }
    assert space.values({"data.anchors": "[]", "model.hidden": 3}) == {"data.anchors": [], "model.hidden": 3}
    assert space.lies_in("data")
    assert not space.lies_in("split", "features")


def test_a_list_a_group_and_a_number_reach_the_configuration() -> None:
    problems: list[str] = []
    tree = {"data.anchors": {"choices": [[{"tenor_days": 21, "moneyness": -0.1}]]}, "trainer": {"choices": ["short"]},
            "trainer.clip_norm": {"low": 0.5, "high": 2.0}}  # fmt: skip
    space = read_space(tree, problems)
    cfg = check_composed(space, ["split.validation_dates=4"], problems)
    assert not problems
    assert cfg is not None
    assert [(anchor.tenor_days, anchor.moneyness) for anchor in cfg.data.anchors] == [(21, -0.1)]
    assert cfg.trainer.epochs == load_config(["trainer=short"]).trainer.epochs
    assert cfg.trainer.clip_norm == 0.5


FAULTS: dict[str, tuple[Any, str]] = {
    "no distribution": (5, "no distribution"),
    "empty choices": ({"choices": []}, "at least one value"),
    "choices no list": ({"choices": 3}, "at least one value is needed (value 3)"),
    "a choice twice": ({"choices": [1, True]}, "True is there twice"),
    "both kinds": ({"choices": [1], "low": 2}, "low: null takes them away"),
    "no bound": ({"low": 2}, "high: must be given"),
    "text bound": ({"low": "a", "high": 2}, "low: a finite number is needed (value 'a')"),
    "boolean bound": ({"low": True, "high": 2}, "low: a finite number is needed (value True)"),
    "infinite bound": ({"low": 1.0, "high": float("inf")}, "high: a finite number is needed (value inf)"),
    "turned round": ({"low": 3, "high": 2}, "values 3 and 2"),
    "log of nothing": ({"low": 0, "high": 2, "log": True}, "must be above 0 where log is true (value 0)"),
    "log of what": ({"low": 1, "high": 2, "log": "yes"}, "log: true or false is needed (value 'yes')"),
    "log with step": ({"low": 1, "high": 5, "log": True, "step": 2}, "goes not with log"),
    "step of nothing": ({"low": 1, "high": 5, "step": 0}, "above 0 is needed (value 0)"),
    "half a step": ({"low": 1, "high": 5, "step": 0.5}, "a whole number above 0 is needed (value 0.5)"),
    "step past the end": ({"low": 1, "high": 4, "step": 2}, "isn't whole steps away from 1"),
    "unknown word": ({"low": 1, "hihg": 4}, "sweep.space.model.hidden.hihg: no distribution"),
}


@pytest.mark.parametrize("case", FAULTS)
def test_a_fault_of_a_distribution_is_named(case: str) -> None:
    words, told = FAULTS[case]
    found = faults({"model": {"hidden": words}})
    assert all(problem.startswith("sweep.space.model.hidden") for problem in found)
    assert any(told in problem for problem in found)


@pytest.mark.parametrize("key", ["out", "storage.url", "registry", "trainer.resume", "experiment"])
def test_what_is_the_same_for_all_trials_is_not_swept(key: str) -> None:
    assert f"sweep.space.{key}: can't be swept" in faults({key: {"choices": ["a"]}})[0]


def test_an_empty_space_is_refused() -> None:
    assert faults({}) == faults({"model": {"hidden": None}})
    assert "holds no key" in faults({})[0]
    assert "no distribution" in faults({"low": 1, "high": 2})[0]


def test_every_problem_comes_at_once() -> None:
    found = refused(
        "sweep.space.model.hiden={low: 1, high: 3}", "sweep.space.model.dropout={low: 0.0, high: 1.0}",
        "sweep.space.trainer.epochs={low: 1.0, high: 3.0}", "sweep.space.trainer.patience={low: 9, high: 2}",
        "sweep.space.trainer.precision={choices: ['32-true', double]}", "split.validation_dates=0", "seed=-1",
        "sweep.space.gate={choices: [default, severe]}", "sweep.space.out={choices: [a, b]}", "trainer.resume=false",
        "trainer.weight_decay=0.1", "sweep.write_experiment=spx_2019",
    )  # fmt: skip
    for expected in (
        "model.hiden: unknown key",
        "model.dropout: input should be less than 1 (value 1.0)",
        "trainer.epochs: input should be a valid integer (value 1.0)",
        "trainer.epochs: input should be a valid integer (value 3.0)",
        "sweep.space.trainer.patience: low lies not below high (values 9 and 2)",
        "trainer.precision: input should be '",
        "seed: input should be greater than or equal to 0 (value -1)",
        "gate=severe: no such choice",
        "sweep.space.out: can't be swept",
        "trainer.weight_decay: is swept and also set for all trials",
        "sweep.write_experiment: ",
    ):
        assert sum(expected in problem for problem in found) == 1, (expected, found)
    assert len(found) == 11


def test_a_sweep_needs_validation_dates_and_checkpoints() -> None:
    found = refused("split.validation_dates=0", "trainer.resume=false")
    assert [problem.split(":")[0] for problem in found] == ["split.validation_dates", "trainer.resume"]
    assert refused("sweep.space.split.validation_dates={low: 0, high: 3}")[0].startswith("split.validation_dates")


def test_faults_of_the_sweep_itself_come_with_those_of_the_rest() -> None:
    found = refused("sweep.trials=0", "sweep.pruner.name=nice", "sweep.study='a/b'", "sweep.colour=red", "sede=1")
    assert {problem.split(":")[0] for problem in found} == {
        "sweep.trials", "sweep.pruner.name", "sweep.study", "sweep.colour", "sede"
    }  # fmt: skip
    with pytest.raises(ConfigError, match="sweep=pricing_lstn: no such choice"):
        planned(["sweep=pricing_lstn"])
    with pytest.raises(ConfigError, match="specify 'sweep'"):
        planned([])


def test_the_command_line_wins_over_the_sweeps_own_overrides() -> None:
    plan = planned(["sweep=pricing_lstm", "model=pricing_lstm", "trainer=short", "trainer=default", *FILES,
                    "sweep.overrides=['seed=3','trainer.epochs=5']", "seed=4"])  # fmt: skip
    assert (plan.first.seed, plan.first.trainer.epochs) == (4, 5)
    assert load_sweep(["sweep=pricing_lstm"]).write_experiment is None


def test_a_distribution_of_the_command_line_takes_the_place_of_the_files() -> None:
    base = ["sweep=pricing_lstm", "sweep.space.model.hidden={low: 8, high: 16}", "sweep.space.model.dropout.high=0.2",
            "sweep.space.trainer.weight_decay=null"]  # fmt: skip
    space = planned(base).space
    assert space.distributions["model.hidden"] == IntDistribution(8, 16)
    assert space.distributions["model.dropout"] == FloatDistribution(0.0, 0.2)
    assert "trainer.weight_decay" not in space.keys
    assert "trainer.learning_rate" in space.keys
    assert planned(["sweep=pricing_lstm", "sweep.space={seed: {low: 1, high: 3}}"]).space.keys == ("seed",)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**9), 10**9) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="ascii", min_codepoint=32)),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.from_regex(r"[a-z]{1,5}", fullmatch=True), inner, max_size=3),
    max_leaves=5,
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(VALUES)
def test_a_value_written_as_an_override_is_read_as_itself(value: Any) -> None:
    override = OverridesParser.create().parse_override(as_override("some.key", value))
    assert override.key_or_group == "some.key"
    assert override.value() == value
    assert type(override.value()) is type(value)


def test_a_value_without_words_is_refused() -> None:
    with pytest.raises(ConfigError, match="can't be written"):
        as_override("some.key", {"a b:": 1})
