"""Which gates are asked: found by name, closed configuration, switched off only out loud."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf
from pydantic import TypeAdapter

from pipelines import gates
from pipelines.config import CONF, load_config, load_operation
from pipelines.gate_choice import ChosenGate, _difference, gate_modules, load_gates
from pipelines.gate_context import GateContext, GateOutcome
from serving.errors import BundleError, ConfigError, StoreError
from tests.pipelines.gates.world import World

PROMISED = {
    "accuracy",
    "arbitrage",
    "greeks",
    "parity",
    "precision",
    "size",
    "lineage",
    "clean",
    "feature_spec",
    "latency",
    "approval",
}


def operation(*overrides: str) -> dict[str, Any]:
    return load_operation(["model=pricing_lstm", *overrides]).gate


def test_the_promised_gates_are_there() -> None:
    assert set(gate_modules()) == PROMISED


def test_every_gate_is_a_module_of_the_promised_form() -> None:
    for name, module in gate_modules().items():
        assert name == module.NAME
        assert module.__doc__ is not None
        settings = module.Settings()  # every field has a default
        assert dataclasses.is_dataclass(settings)
        assert "enabled" not in {field.name for field in dataclasses.fields(settings)}
        with pytest.raises((TypeError, ValueError)):
            module.Settings(no_such_setting=1)


def test_the_configuration_spells_every_gate_and_every_default() -> None:
    """conf/gate/default.yaml is what the code does without it, so both can be read."""
    written: Any = OmegaConf.to_container(OmegaConf.load(CONF / "gate/default.yaml"))
    assert set(written) == set(gate_modules())
    for name, section in written.items():
        defaults = TypeAdapter(gate_modules()[name].Settings).dump_python(gate_modules()[name].Settings(), mode="json")
        assert section == {"enabled": True, **defaults}, name


def test_development_switches_off_what_a_working_tree_cant_pass_and_nothing_else() -> None:
    default, development = operation(), operation("gate=development")
    differing = {name for name in default if default[name] != development[name]}
    assert differing == {"clean", "approval", "lineage"}
    lenient = set(default["lineage"]["required"]) - set(development["lineage"]["required"])
    assert lenient == {"dvc_clean", "dvc_lock_sha256"}
    asked = load_gates(development, task="pricing")
    off = {gate.name for gate in asked if isinstance(gate, ChosenGate) and gate.not_asked}
    assert off == {"clean", "approval"}
    assert {gate.name for gate in asked if isinstance(gate, ChosenGate)} == PROMISED  # all are in the report


def test_a_gate_switched_off_says_so(tmp_path: Path) -> None:
    world = World(tmp_path)
    context = world.context(world.register(world.bundle()), approve_by=None)
    (gate,) = (one for one in load_gates({"approval": {"enabled": False}}, task="pricing") if one.name == "approval")  # type: ignore[attr-defined]
    outcome = gate(context)
    assert (outcome.passed, outcome.asked) == (True, False)
    assert outcome.message == "SWITCHED OFF: gate.approval.enabled is false in the configuration of this promotion"


def test_a_gate_that_was_loosened_says_so_beside_what_it_found(tmp_path: Path) -> None:
    """Whether it passes or not; a gate as it comes says nothing of its settings."""
    world = World(tmp_path)
    context = world.context(world.register(world.bundle()))

    def size(**settings: Any) -> GateOutcome:
        chosen = load_gates({"size": settings}, task="pricing")
        return next(one for one in chosen if isinstance(one, ChosenGate) and one.name == "size")(context)

    assert "asked with" not in size().message
    assert "asked with" not in size(max_bytes=64 << 20).message
    assert size(max_bytes=1 << 40).message.endswith(
        "; asked with gate.size.max_bytes=1099511627776, the default is 67108864"
    )
    refused = size(max_parameters=1)
    assert not refused.passed
    assert refused.message.endswith("; asked with gate.size.max_parameters=1, the default is 10000000")


@pytest.mark.parametrize(
    ("value", "said"),
    [(["b"], ": the default without a"), (["a", "b", "c"], ": the default and also c"),
     (["c"], ": the default without a, b, and also c"), (["b", "a"], ' in another order: ["b", "a"]')],
)  # fmt: skip
def test_of_a_list_what_is_more_or_less_is_said(value: list[str], said: str) -> None:
    assert _difference(value, ["a", "b"]) == said


def test_gates_without_a_section_are_asked() -> None:
    names = [gate.name for gate in load_gates({"size": {}}, task="pricing") if isinstance(gate, ChosenGate)]
    assert names[0] == "size"
    assert set(names) == PROMISED


def test_every_problem_is_named_with_its_key_and_value() -> None:
    with pytest.raises(ConfigError) as caught:
        load_operation([
            "model=pricing_lstm", "gate.acuracy.ratio=1", "gate.accuracy.ratoi=2", "gate.accuracy.ratio=nan",
            "gate.clean.enabled=3", "gate.clean.git=true", "gate.size=3", "gate.accuracy.without_champion=maybe",
            "gate.latency.calls=0", "gate.parity.required=[]", "gate.approval.other_than_by=yess", "versoin=3",
        ])  # fmt: skip
    text = str(caught.value)
    for expected in (
        "gate.acuracy: there is no such gate (value {'ratio': 1}); did you mean accuracy?",
        "gate.accuracy.ratoi: unknown key (value 2); did you mean ratio?",
        "gate.accuracy.ratio: input should be a finite number (value nan)",
        "gate.clean.enabled: must be true or false (value 3)",
        "gate.clean.git: unknown key (value True); known here: enabled",
        "gate.size: must be a section of keys (value 3)",
        "gate.accuracy.without_champion: input should be 'refused' or 'allowed' (value 'maybe')",
        "gate.latency.calls: input should be greater than or equal to 1 (value 0)",
        "gate.parity.required: tuple should have at least 1 item",
        "gate.approval.other_than_by: input should be a valid boolean (value 'yess')",
        "versoin: unknown key (value 3); did you mean version?",
    ):
        assert expected in text
    assert text.startswith("11 problems")


def test_a_run_refuses_wrong_gates_too() -> None:
    with pytest.raises(ConfigError, match=r"gate\.accuracy_ratio: there is no such gate \(value 1\)"):
        load_config(["gate.accuracy_ratio=1"])


NEW_GATE = '''
"""A question of somebody else's."""
from pydantic.dataclasses import dataclass
from pipelines.config import CLOSED
from pipelines.gate_context import GateContext, GateOutcome

NAME = "tuesday"

@dataclass(frozen=True, config=CLOSED)
class Settings:
    day: str = "tuesday"

def check(context: GateContext, settings: Settings) -> GateOutcome:
    return GateOutcome(NAME, settings.day == "tuesday", None, None, f"it is {settings.day}")
'''


@pytest.fixture
def one_file_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The package with a file more, as somebody who adds a gate leaves it."""
    (tmp_path / "tuesday.py").write_text(NEW_GATE)
    monkeypatch.setattr(gates, "__path__", [*gates.__path__, str(tmp_path)])
    gate_modules.cache_clear()
    yield
    gate_modules.cache_clear()


@pytest.mark.usefixtures("one_file_more")
def test_a_new_gate_is_one_file(tmp_path: Path) -> None:
    world = World(tmp_path)
    context = world.context(world.register(world.bundle()))
    asked = load_gates(operation("gate.tuesday.day=friday"), task="pricing")
    (added,) = (gate for gate in asked if isinstance(gate, ChosenGate) and gate.name == "tuesday")
    outcome = added(context)
    told = 'it is friday; asked with gate.tuesday.day="friday", the default is "tuesday"'
    assert (outcome.passed, outcome.message, outcome.settings) == (False, told, {"day": "friday"})
    assert "tuesday" in [gate.name for gate in load_gates({}, task="surface") if isinstance(gate, ChosenGate)]
    with pytest.raises(ConfigError, match=r"gate\.tuesday\.dey: unknown key \(value 1\); did you mean day\?"):
        operation("gate.tuesday.dey=1")


def test_what_a_gate_cant_look_at_fails_it_and_a_store_that_is_away_decides_nothing(tmp_path: Path) -> None:
    world = World(tmp_path)
    context = world.context(world.register(world.bundle()))

    def raising(error: Exception) -> ChosenGate:
        def check(context: GateContext, settings: object) -> GateOutcome:
            raise error

        return ChosenGate("size", check, gate_modules()["size"].Settings())

    outcome = raising(BundleError("golden.npz: isn't there"))(context)
    assert (outcome.passed, outcome.message) == (False, "golden.npz: isn't there")
    with pytest.raises(StoreError, match="no answer"):
        raising(StoreError("no answer"))(context)
