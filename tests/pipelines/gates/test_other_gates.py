"""Size, lineage, clean, feature spec, latency, approval: pass on what is good, fail on what was planted, say which."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from pipelines.gate_context import GateContext
from pipelines.gates import latency
from pipelines.gates.size import count_parameters
from serving.bundle import store_bundle
from serving.features import Scaler
from serving.last_seen import AnchorTarget
from serving.surface_grid import grid_spec
from tests.pipelines.gates.world import LINEAGE, LOOSE_LATENCY, World, ask
from tests.small_nets import SPEC, F, small_bundle
from tests.tiny_surface import REGIMES

# Size.


def test_size_counts_bytes_and_parameters(world: World) -> None:
    bundle = world.bundle()
    outcome = ask("size", world.context(world.register(bundle)))
    assert outcome.passed
    on_disk = sum(path.stat().st_size for path in bundle.directory.rglob("*") if path.is_file())
    assert outcome.figures == {"bytes": on_disk, "parameters": count_parameters(bundle)}
    assert not ask("size", world.context(1), max_bytes=on_disk - 1).passed
    assert ask("size", world.context(1), max_bytes=on_disk, max_parameters=count_parameters(bundle)).passed
    outcome = ask("size", world.context(1), max_parameters=count_parameters(bundle) - 1)
    assert not outcome.passed
    assert f"{count_parameters(bundle)} parameters > " in outcome.message
    assert "bytes" not in outcome.message


def test_parameters_that_cant_be_counted_are_refused(world: World) -> None:
    outcome = ask("size", world.context(world.register(world.bundle(weights_file=False))))
    assert not outcome.passed
    assert "member 0 of the bundle has no weights file" in outcome.message


# Lineage and clean.


@pytest.mark.parametrize("key", sorted(LINEAGE))
@pytest.mark.parametrize("value", [None, "", "unknown", "absent", "Unknown ", 7])
def test_every_key_of_the_lineage_must_be_known(world: World, key: str, value: Any) -> None:
    lineage = {name: one for name, one in LINEAGE.items() if name != key} | ({} if value is None else {key: value})
    outcome = ask("lineage", world.context(world.register(world.bundle()), details={"lineage": lineage}))
    assert not outcome.passed
    assert f"{key} isn't known (found " in outcome.message
    assert outcome.value == 1


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"features_sha256": "3" * 63}, "features_sha256 isn't a sha256"),
        ({"git_commit": "HEAD"}, "git_commit isn't a commit: 'HEAD'"),
        ({"quotes_sha256": "9" * 64}, "but the bundle says " + "ab" * 32),
        ({"trained_config_sha256": "9" * 64}, "but the bundle says " + "cd" * 32),
    ],
)
def test_lineage_that_cant_be_is_refused(world: World, change: dict[str, str], says: str) -> None:
    context = world.context(world.register(world.bundle()))
    assert ask("lineage", context).passed
    outcome = ask("lineage", dataclasses.replace(context, details={"lineage": LINEAGE | change}))
    assert not outcome.passed
    assert says in outcome.message


@pytest.mark.parametrize("gate", ["lineage", "clean"])
@pytest.mark.parametrize("lineage", [None, [], "clean"])
def test_without_lineage_nothing_is_clean(world: World, gate: str, lineage: Any) -> None:
    context = world.context(world.register(world.bundle()), details={"lineage": lineage})
    assert not ask(gate, context).passed


@pytest.mark.parametrize("key", ["git_clean", "dvc_clean"])
@pytest.mark.parametrize("value", ["false", "unknown", "True", True, None])
def test_only_what_is_recorded_as_clean_is(world: World, key: str, value: Any) -> None:
    context = world.context(world.register(world.bundle()))
    assert ask("clean", context).passed
    outcome = ask("clean", dataclasses.replace(context, details={"lineage": LINEAGE | {key: value}}))
    assert not outcome.passed
    assert outcome.message.startswith(f"{key} is {value!r}: ")


# Feature spec.


def test_hosts_must_be_able_to_compute_the_inputs(world: World, tmp_path: Path) -> None:
    assert ask("feature_spec", world.context(world.register(world.bundle()))).passed
    spec = {**SPEC.to_json(), "version": 99}
    strange = small_bundle(tmp_path / "strange", feature_spec=spec)
    outcome = ask("feature_spec", world.context(1, bundle_sha256=store_bundle(world.store, strange)))
    assert not outcome.passed
    assert "feature spec has version 99, this code computes" in outcome.message


def test_what_hosts_feed_the_champion_doesnt_change_unless_allowed(world: World) -> None:
    world.champion(world.register(world.bundle(1)))
    other = world.bundle(0, spec=dataclasses.replace(SPEC, anchors=(AnchorTarget(30.0),)))
    context = world.context(register_plain(world, other))
    outcome = ask("feature_spec", context)
    assert not outcome.passed
    assert "differs from champion 1's in anchors: " in outcome.message
    assert "gate.feature_spec.allow_change=true" in outcome.message
    allowed = ask("feature_spec", context, allow_change=True)
    assert allowed.passed
    assert "allowed by gate.feature_spec.allow_change" in allowed.message


def register_plain(world: World, bundle: Any) -> int:
    """A version of which nothing but the bundle counts."""
    sha256 = store_bundle(world.store, bundle)
    state = world.state()
    version = len(state.versions) + 1
    world.ledger.append(state, "registered", version=version, bundle=sha256, by="trainer", details={})
    return version


def test_other_scalers_are_no_change(world: World) -> None:
    world.champion(world.register(world.bundle(1)))
    other = dataclasses.replace(SPEC, step_scaler=Scaler((0.1,) * F, (2.0,) * F))
    assert ask("feature_spec", world.context(register_plain(world, world.bundle(0, spec=other)))).passed


def test_a_surface_bundle_of_another_grid_or_other_regimes_is_refused(surfaces: World) -> None:
    surfaces.champion(surfaces.register(surfaces.bundle(1)))
    assert ask("feature_spec", surfaces.context(register_plain(surfaces, surfaces.bundle(2)))).passed
    moved = {**grid_spec(), "tenors_days": [1.0], "regimes": list(REGIMES)}
    other = grid_spec() | {"regimes": ["one"]}
    for spec, says in (
        (moved, "differs from this code's in tenors_days"),
        (other, "champion 1's in regimes: ['calm', 'stressed'] -> ['one']"),
    ):
        bundle = surfaces.bundle(3)
        changed = dataclasses.replace(bundle, manifest=dataclasses.replace(bundle.manifest, feature_spec=spec))
        context = surfaces.context(2)
        outcome = ask("feature_spec", SwappedBundle.of(context, changed))
        assert not outcome.passed
        assert says in outcome.message


@dataclasses.dataclass(frozen=True)
class SwappedBundle(GateContext):
    """A context whose store gives another bundle."""

    swapped: Any = None

    @classmethod
    def of(cls, context: GateContext, bundle: Any) -> SwappedBundle:
        fields = {field.name: getattr(context, field.name) for field in dataclasses.fields(context)}
        return cls(**fields, swapped=bundle)

    def bundle(self) -> Any:
        return self.swapped


# Latency.


def test_latency_is_held_against_each_budget(world: World) -> None:
    context = world.context(world.register(world.bundle()))
    outcome = ask("latency", context, **LOOSE_LATENCY)
    assert outcome.passed, outcome.message
    for part in ("step", "chain"):
        assert outcome.figures[f"{part}_p50_us"] > outcome.figures[f"{part}_null_p50_us"] > 0  # it does some work
    assert "onnxruntime" in outcome.message
    for budget in ("step_p50_us", "chain_p50_us"):
        outcome = ask("latency", context, **(LOOSE_LATENCY | {budget: 1e-6}))
        assert not outcome.passed
        assert f"{budget.removesuffix('_us').replace('_', ' ')} " in outcome.message
        assert "> 1e-06" in outcome.message


@pytest.mark.parametrize(("usual_us", "expected_calls"), [(50.0, 5000), (150.0, 500)])
def test_p50_and_excess_by_a_clock_that_is_known(
    monkeypatch: pytest.MonkeyPatch, usual_us: float, expected_calls: int
) -> None:
    """Every fiftieth call of ours takes 400 us longer, every fiftieth of the null engine's 100 us; slow steps are timed
    a tenth as often."""
    now_ns, counts = [0], {"ours": 0, "theirs": 0}

    def taking(who: str, us: float, now_and_then_us: float) -> tuple[latency.Call, latency.Call]:
        def act() -> None:
            counts[who] += 1
            now_ns[0] += round(1000 * (us + now_and_then_us * (counts[who] % 50 == 0)))

        return lambda: None, act

    monkeypatch.setattr("pipelines.gates.latency.time.perf_counter_ns", lambda: now_ns[0])
    settings = latency.Settings(calls=5000, repeats=5)
    found = latency.timed([taking("ours", usual_us, 400.0)], [taking("theirs", 1.0, 100.0)], settings)
    assert found == {"p50_us": usual_us, "p99_excess_us": pytest.approx(usual_us + 400.0 - 101.0), "null_p50_us": 1.0,
                     "null_p99_us": 101.0}  # fmt: skip
    assert counts["ours"] == counts["theirs"] == latency.WARM_UP + expected_calls


def test_an_engine_there_is_not_fails(world: World) -> None:
    outcome = ask("latency", world.context(world.register(world.bundle())), engines=["abacus"])
    assert not outcome.passed
    assert "there is no engine 'abacus'" in outcome.message


def test_surfaces_arent_timed_and_that_is_said(surfaces: World) -> None:
    outcome = ask("latency", surfaces.context(surfaces.register(surfaces.bundle())))
    assert (outcome.passed, outcome.asked) == (True, False)
    assert "asked of pricing models only; this is a surface model" in outcome.message


# Approval.


@pytest.mark.parametrize(
    ("by", "approve_by", "other", "passed"),
    [("ci", "Ann", False, True), ("Ann", "Ann", False, True), ("Ann", "Ann", True, False), ("Ann", "ann ", True, False),
     ("ci", "Ann", True, True), ("ci", None, False, False), ("ci", "  ", False, False)],
)  # fmt: skip
def test_somebody_answers_by_name(world: World, by: str, approve_by: str | None, other: bool, passed: bool) -> None:
    context = world.context(world.register(world.bundle()), by=by, approve_by=approve_by)
    outcome = ask("approval", context, other_than_by=other)
    assert outcome.passed == passed
    assert ("approved by Ann" in outcome.message) == passed
    assert passed or "approve_by=" in outcome.message
