"""The accuracy gate believes nothing but the bytes: baselines, champions, lies on record, dates seen before."""

from __future__ import annotations

import copy
import dataclasses
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.exam_answers import answer, exam_table
from pipelines.metrics import diebold_mariano, scores
from serving.errors import ConfigError
from serving.features import Scaler
from serving.last_seen import AnchorTarget
from tests.pipelines.gates.world import DATES, NOISE, World, answered, ask, details_of
from tests.small_nets import SPEC, F, K


@pytest.fixture(params=["small", "surface_vae"])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> World:
    return World(tmp_path, request.param)


@pytest.fixture
def pricing(tmp_path: Path) -> World:
    return World(tmp_path)


def test_the_first_version_is_held_against_the_baseline_alone(world: World) -> None:
    outcome = ask("accuracy", world.context(world.register(world.bundle())))
    assert outcome.passed, outcome.message
    assert "there is no champion to compare with: baselines only" in outcome.message
    assert f"{DATES} dates, none of them trained or validated on" in outcome.message
    assert outcome.value is not None
    assert outcome.figures["model"]["iv_rmse"] == pytest.approx(100 * NOISE, rel=0.2)
    assert outcome.value == pytest.approx(outcome.figures["model"]["iv_rmse"] / outcome.figures["baseline"]["iv_rmse"],
                                          rel=1e-3)  # fmt: skip
    assert len(outcome.figures["by_date"]["date"]) == DATES


def test_errors_and_significance_are_those_of_an_evaluation(pricing: World) -> None:
    bundle = pricing.bundle()
    exam = answered(pricing.questions(), bundle, bundle)
    outcome = ask("accuracy", pricing.context(pricing.register(bundle, exam=exam)))
    table = exam_table(exam, {"model": answer(bundle, exam)})
    test = diebold_mariano(table, "model", "anchored_sticky_strike")
    assert outcome.figures["model"]["iv_rmse"] == scores(table)["model"]["iv_rmse"]
    assert (outcome.figures["baseline"]["t"], outcome.figures["baseline"]["p"]) == (test.t, test.p)


def test_a_version_worse_than_the_baseline_is_refused(world: World) -> None:
    truth = world.bundle(1)
    exam = answered(world.questions(), world.bundle(0), truth, noise=1e-4)
    outcome = ask("accuracy", world.context(world.register(world.bundle(0), exam=exam)))
    assert not outcome.passed
    assert outcome.value is not None
    assert outcome.value > 1
    assert re.search(r"test IV RMSE \S+ > \S+ vol points \(1.0001 x \w+'s", outcome.message)
    assert "there is no champion" not in outcome.message  # only what is wrong is said


def test_the_baseline_and_the_ratio_are_the_users_choice(pricing: World) -> None:
    context = pricing.context(pricing.register(pricing.bundle()))
    assert not ask("accuracy", context, ratio=0.1).passed
    outcome = ask("accuracy", context, baselines={"pricing": "flat", "surface": "svi"})
    assert "the exam has no baseline flat; there are anchored_sticky_strike, model" in outcome.message
    with pytest.raises(ConfigError, match=r"gate\.accuracy\.baselines: names no baseline for surface"):
        ask("accuracy", context, baselines={"pricing": "flat"})


def test_significance_against_the_baseline_can_be_asked_for(pricing: World) -> None:
    context = pricing.context(pricing.register(pricing.bundle()))
    p = ask("accuracy", context).figures["baseline"]["p"]
    assert ask("accuracy", context, baseline_significance=p * 1.01).passed
    outcome = ask("accuracy", context, baseline_significance=p * 0.99)
    assert not outcome.passed
    assert "it must be better at" in outcome.message


# Lies and gaps on record.


@pytest.mark.parametrize(
    ("predictor", "measure", "by"),
    [("model", "iv_rmse", 0.9), ("model", "price_rmse", 1.01), ("model", "inside_spread", 0.5),
     ("anchored_sticky_strike", "iv_rmse", 1.1), ("model", "iv_rmse", math.nan), ("model", "iv_rmse", None)],
)  # fmt: skip
def test_a_record_the_bytes_dont_confirm_is_refused(
    pricing: World, predictor: str, measure: str, by: float | None
) -> None:
    bundle = pricing.bundle()
    version = pricing.register(bundle)
    details = copy.deepcopy(dict(pricing.state().versions[version].registered.details))
    test = details["metrics"]["test"]
    if by is None:
        del test[predictor][measure]
    else:
        test[predictor][measure] *= by
    outcome = ask("accuracy", pricing.context(version, details=details))
    assert not outcome.passed
    assert f"metrics.test.{predictor}.{measure}" in outcome.message
    assert ("on record, but the stored bytes answer" in outcome.message) == (by is not None and math.isfinite(by))


@pytest.mark.parametrize("metrics", [None, [], {}, {"test": []}, {"test": {"model": {"iv_rmse": True}}}])
def test_metrics_of_any_shape_are_refused_with_words(pricing: World, metrics: Any) -> None:
    version = pricing.register(pricing.bundle(), metrics=metrics)
    outcome = ask("accuracy", pricing.context(version))
    assert not outcome.passed
    assert "no usable metrics.test.model.iv_rmse on record" in outcome.message


@pytest.mark.parametrize("exam", [None, "", "0" * 64, 7])
def test_without_an_exam_nothing_can_be_recomputed(pricing: World, exam: Any) -> None:
    outcome = ask("accuracy", pricing.context(pricing.register(pricing.bundle()), details={"exam": exam}))
    assert not outcome.passed
    assert re.search("registered without an exam|isn't in the store, though the ledger names it", outcome.message)


def test_an_exam_changed_in_the_store_is_refused(pricing: World) -> None:
    version = pricing.register(pricing.bundle())
    key = f"exams/{pricing.state().versions[version].registered.details['exam']}.npz"
    other = answered(pricing.questions(), pricing.bundle(1), pricing.bundle(1))
    pricing.store.put(key, other.to_bytes())
    outcome = ask("accuracy", pricing.context(version))
    assert not outcome.passed
    assert "the store was tampered with" in outcome.message


# Dates.


def test_dates_the_model_has_seen_are_no_exam(pricing: World) -> None:
    bundle = pricing.bundle()
    exam = answered(pricing.questions(), bundle, bundle)
    exam = dataclasses.replace(exam, validation_dates=exam.date[:2])
    outcome = ask("accuracy", pricing.context(pricing.register(bundle, exam=exam)))
    assert not outcome.passed
    assert f"2 of the exam's {DATES} dates were trained or validated on" in outcome.message


@pytest.mark.parametrize(
    ("dates", "says"),
    [(None, "no usable dates"), ({"train": []}, "no usable dates"),
     ({"train": [], "validation": []}, "no training date"),
     ({"train": ["2022-02-30"], "validation": []}, "no usable dates"),
     ({"train": ["2000-01-03"], "validation": []}, "aren't those of the exam")],
)  # fmt: skip
def test_dates_on_record_that_cant_be_or_arent_the_exams_are_refused(pricing: World, dates: Any, says: str) -> None:
    version = pricing.register(pricing.bundle(), dates=dates)
    outcome = ask("accuracy", pricing.context(version))
    assert not outcome.passed
    assert says in outcome.message


def test_too_few_dates_are_told(pricing: World) -> None:
    bundle = pricing.bundle()
    version = pricing.register(bundle, exam=answered(pricing.questions(9), bundle, bundle))
    outcome = ask("accuracy", pricing.context(version))
    assert not outcome.passed
    assert "9 dates are too few to judge by, at least 10 are needed" in outcome.message
    assert ask("accuracy", pricing.context(version), min_dates=9).passed


# The champion.


def test_a_better_and_a_worse_version_meet_the_champion(world: World) -> None:
    """The market moves from what net 0 says to what net 1 says: net 1 follows net 0, and net 0 can't come back."""
    world.champion(world.register(world.bundle(0)))
    better = ask("accuracy", world.context(world.register(world.bundle(1))))
    assert better.passed, better.message
    assert re.search(
        rf"on the {DATES} dates that neither has seen champion 1 has an IV RMSE of \S+ vol", better.message
    )
    assert better.figures["champion"]["t"] > 0
    worse = ask("accuracy", world.context(world.register(world.bundle(2), truth=world.bundle(0))), ratio=1e6)
    assert not worse.passed
    assert re.search(r"IV RMSE of \S+ vol points, this version \S+ > \S+ \(2 % above the champion's\)", worse.message)


def test_an_equal_version_isnt_worse(pricing: World) -> None:
    first = pricing.bundle(0)
    pricing.champion(pricing.register(first))
    again = pricing.bundle(0, weights_file=False)  # the same net in another bundle
    outcome = ask("accuracy", pricing.context(pricing.register(again)))
    assert outcome.passed, outcome.message
    assert "no Diebold-Mariano test against champion 1: the daily differences don't vary" in outcome.message


def test_slightly_but_significantly_worse_is_refused(pricing: World) -> None:
    """On every row the candidate errs by 1.01 times what the champion errs by: within 2 %, and no accident."""
    champion, candidate = pricing.bundle(0), pricing.bundle(0, tenth=0.1002)
    pricing.champion(pricing.register(champion))
    questions = pricing.questions()
    theirs, own = answer(champion, questions), answer(candidate, questions)
    exam = answered(questions, candidate, candidate, iv_market=theirs - 100.0 * (own - theirs))
    exam = dataclasses.replace(exam, baselines={"anchored_sticky_strike": np.full(len(exam), 0.5, np.float32)})
    outcome = ask("accuracy", pricing.context(pricing.register(candidate, exam=exam)))
    assert not outcome.passed
    assert "(2 % above the champion's)" in outcome.message
    assert "significantly worse at 0.05" in outcome.message
    assert outcome.value is not None
    assert outcome.value < 1  # within the tolerance all the same
    assert outcome.figures["champion"]["model_iv_rmse"] == pytest.approx(1.01 * outcome.figures["champion"]["iv_rmse"],
                                                                         rel=1e-3)  # fmt: skip


def test_the_champion_scales_by_its_own_scaler(pricing: World) -> None:
    """Its answers are those of its own bundle fed by its own scaler, though the exam came from another."""
    half = dataclasses.replace(
        SPEC, step_scaler=Scaler((0.0,) * F, (0.5,) * F), contract_scaler=Scaler((0.0,) * K, (0.5,) * K, 9.0, (0,))
    )
    champion = pricing.bundle(0, spec=half)
    twice = pricing.questions()
    doubled = twice.inputs["contracts"] * 2
    doubled[:, 0] = twice.inputs["contracts"][:, 0]
    twice = dataclasses.replace(
        twice, inputs={**twice.inputs, "steps": np.clip(twice.inputs["steps"] * 2, -3, 3), "contracts": doubled}
    )
    wide = dataclasses.replace(SPEC, contract_scaler=Scaler((0.0,) * K, (1.0,) * K, 9.0))
    same = pricing.bundle(0, spec=wide)
    assert np.allclose(answer(champion, pricing.questions()), answer(same, twice), rtol=0, atol=1e-7)


def test_only_dates_neither_has_seen_are_compared(pricing: World) -> None:
    champion = pricing.bundle(1)
    exam = answered(pricing.questions(), champion, champion)
    later = dataclasses.replace(exam, date=exam.date + 30, validation_dates=exam.date[:3])
    pricing.champion(pricing.register(champion, exam=later))
    candidate = pricing.context(pricing.register(pricing.bundle(0)))
    outcome = ask("accuracy", candidate)
    assert outcome.figures["champion"]["dates"] == DATES - 3
    refused = ask("accuracy", candidate, min_dates=12)
    assert not refused.passed
    assert "11 of the exam's dates lie outside the training and validation sets of both, at least 12" in refused.message


OTHER_ANCHORS = dataclasses.replace(SPEC, anchors=(AnchorTarget(30.0),))


@pytest.mark.parametrize("what", ["anchors", "no exam dates", "bundle gone"])
def test_a_champion_that_cant_answer_is_refused_unless_allowed(pricing: World, what: str) -> None:
    champion = pricing.bundle(1, spec=OTHER_ANCHORS) if what == "anchors" else pricing.bundle(1)
    details = {"dates": None} if what == "no exam dates" else {}
    exam = answered(pricing.questions(), pricing.bundle(1), pricing.bundle(1))
    recorded = details_of(exam, pricing.bundle(1))
    if what == "anchors":
        exam = dataclasses.replace(exam, spec={**exam.spec, "anchors": OTHER_ANCHORS.to_json()["anchors"]})
    pricing.champion(pricing.register(champion, exam=exam, **(recorded | details)))
    if what == "bundle gone":
        pricing.store.delete(f"bundles/{champion.sha256}/golden.npz")
    context = pricing.context(pricing.register(pricing.bundle(0)))
    says = {"anchors": "can't answer this exam: its features differ in anchors",
            "no exam dates": "version 1 has no usable dates", "bundle gone": "golden.npz"}[what]  # fmt: skip
    refused = ask("accuracy", context)
    assert not refused.passed
    assert says in refused.message
    assert "to promote all the same: gate.accuracy.without_champion=allowed" in refused.message
    allowed = ask("accuracy", context, without_champion="allowed")
    assert allowed.passed
    assert "champion 1 can't be compared" in allowed.message  # said, not hidden
    assert allowed.figures["champion"] == {"version": 1, "compared": False}
