"""A study that is killed anywhere, as often as one likes, ends as one that never was: nothing lost, nothing added.

The training is replaced by a made-up curve, so that every single write to the database can be tried as the last one.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState

from pipelines.config import PrunerConfig, SamplerConfig
from pipelines.sweep_space import Space
from pipelines.sweep_study import DEFINITION, FINISHED, KEY, MESSAGE, SECONDS, STARTS, Rules, RunningTrial, Study
from serving.errors import ConfigError, StrikeforgeError

EPOCHS = 6
BUDGET = 9
SPACE = Space(
    {"rate": FloatDistribution(1e-3, 1.0, log=True), "width": IntDistribution(1, 8),
     "kind": CategoricalDistribution(["a", None, "[1]"])},
    {"kind": {"[1]": [1]}},
)  # fmt: skip
DEFINITION_HERE = {"space": SPACE.plain(), "config": {"trainer": {"epochs": EPOCHS}}}
PRUNERS = {
    "median": PrunerConfig("median", 2, 1, 3), "hyperband": PrunerConfig("hyperband", 0, 1, 4),
    "none": PrunerConfig("none", 0, 0, 3),
}  # fmt: skip
WRITES = ("create_new_trial", "set_trial_intermediate_value", "set_trial_user_attr", "set_trial_system_attr",
          "set_trial_state_values", "create_new_study", "set_study_user_attr")  # fmt: skip


class KilledError(BaseException):
    """Stands for the end of the process."""


def rules(pruner: str = "median", sampler: str = "tpe", seed: int = 3) -> Rules:
    return Rules(SPACE, SamplerConfig(sampler, seed, 3), PRUNERS[pruner], EPOCHS)


def curve(params: dict[str, Any], epoch: int) -> float:
    """A made-up validation error."""
    level = abs(math.log10(params["rate"]) + 1.5) + 0.1 * params["width"] + (params["kind"] is None)
    return level + math.exp(-epoch) * (1 + params["width"])


def work(trial: RunningTrial, checkpoint: Path) -> None:
    """What pipelines.sweep does with a trial: epochs, each with its report and then its checkpoint, and the end."""
    if trial.params["width"] == 8:
        trial.finish(failure="ConfigError: too wide")
        return
    begun = int(checkpoint.read_text()) if checkpoint.exists() else 0
    for epoch in range(begun + 1, EPOCHS + 1):
        if trial.pruned or trial.report(epoch, curve(trial.params, epoch)):
            break
        checkpoint.write_text(str(epoch))
    trial.finish(min(curve(trial.params, epoch) for epoch in range(1, EPOCHS + 1)))
    checkpoint.unlink(missing_ok=True)


def search(folder: Path, budget: int = BUDGET, how: Rules | None = None) -> list[tuple[Any, ...]]:
    """Work on a study until its budget is used."""
    with Study.open(folder, "made-up", how or rules(), DEFINITION_HERE) as study:
        while (trial := study.next(budget)) is not None:
            work(trial, folder / f"checkpoint-{trial.number}")
        return told(study.trials())


def told(trials: list[FrozenTrial]) -> list[tuple[Any, ...]]:
    """Everything about trials but times and starts."""
    return [
        (trial.number, trial.state.name, trial.value, trial.params, trial.intermediate_values,
         trial.user_attrs.get(MESSAGE), {n: v for n, v in trial.system_attrs.items() if n.startswith("completed")})
        for trial in trials
    ]  # fmt: skip


@contextmanager
def killed_at(monkeypatch: pytest.MonkeyPatch, places: Iterator[int]) -> Iterator[list[int]]:
    """The process ends right after its n-th write, for the next n of `places`; yields the count since then."""
    count, end = [0], [next(places)]
    with monkeypatch.context() as patch:
        for name in WRITES:
            whole: Callable[..., Any] = getattr(RDBStorage, name)

            def write(self: RDBStorage, *args: Any, whole: Callable[..., Any] = whole, **options: Any) -> Any:
                result = whole(self, *args, **options)
                count[0] += 1
                if count[0] == end[0]:
                    count[0], end[0] = 0, next(places)
                    raise KilledError
                return result

            patch.setattr(RDBStorage, name, write)
        yield count


@pytest.fixture(scope="module", params=PRUNERS)
def uninterrupted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Any, int]:
    """A pruner, the trials of a study that nobody killed, and how many writes that took."""
    with pytest.MonkeyPatch.context() as patch, killed_at(patch, itertools.repeat(10**9)) as count:
        trials = search(tmp_path_factory.mktemp("whole"), how=rules(request.param))
        return request.param, trials, count[0]


def test_the_uninterrupted_study_is_worth_the_comparison(uninterrupted: tuple[str, Any, int]) -> None:
    pruner, trials, writes = uninterrupted
    assert [trial[0] for trial in trials] == list(range(BUDGET))
    states = {trial[1] for trial in trials}
    assert "COMPLETE" in states
    assert ("PRUNED" in states) == (pruner != "none")
    assert len({str(trial[3]) for trial in trials}) == BUDGET
    assert writes > 5 * BUDGET
    if pruner == "hyperband":
        assert any(trial[6] for trial in trials)


@pytest.mark.slow
def test_killed_once_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uninterrupted: tuple[str, Any, int]
) -> None:
    """After a dozen writes all over the study."""
    pruner, whole, writes = uninterrupted
    for place in range(1, writes, writes // 12):
        folder = tmp_path / str(place)
        with killed_at(monkeypatch, iter([place, 10**9])), pytest.raises(KilledError):
            search(folder, how=rules(pruner))
        assert len(running(folder)) <= 1
        assert search(folder, how=rules(pruner)) == whole, f"killed at write {place}"


@pytest.mark.slow
@pytest.mark.parametrize("every", [5, 11])
def test_killed_again_and_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uninterrupted: tuple[str, Any, int], every: int
) -> None:
    pruner, whole, writes = uninterrupted
    killed = 0
    with killed_at(monkeypatch, itertools.repeat(every)):
        while True:
            try:
                trials = search(tmp_path, how=rules(pruner))
                break
            except KilledError:
                killed += 1
            assert killed <= 2 * writes, "it gets nowhere"
    assert killed >= writes // every
    assert trials == whole


def running(folder: Path) -> list[FrozenTrial]:
    if not (folder / "study.db").exists():
        return []
    with Study.open(folder, "made-up", rules(), DEFINITION_HERE) as study:
        return study.trials(TrialState.RUNNING)


def test_a_larger_budget_goes_on_and_a_used_one_does_nothing(tmp_path: Path) -> None:
    whole = search(tmp_path / "whole", 9)
    assert search(tmp_path / "parts", 4) == whole[:4]
    database = (tmp_path / "parts/study.db").read_bytes()
    for budget in (1, 4):
        assert search(tmp_path / "parts", budget) == whole[:4]
    assert (tmp_path / "parts/study.db").read_bytes() == database
    assert search(tmp_path / "parts", 9) == whole


def test_a_reported_epoch_is_kept_and_not_doubled(tmp_path: Path) -> None:
    with Study.open(tmp_path, "made-up", rules(), DEFINITION_HERE) as study:
        trial = study.next(1)
        assert trial is not None
        assert not trial.gone_on_with
        trial.report(1, 5.0)
        trial.report(2, 4.0)
    with Study.open(tmp_path, "made-up", rules(), DEFINITION_HERE) as study:
        again = study.next(1)
        assert again is not None
        assert (again.number, again.params, again.gone_on_with, again.reported) == (0, trial.params, True, 2)
        again.report(2, 99.0)
        again.report(3, 3.0)
        finished = again.finish(3.0)
        assert finished.intermediate_values == {1: 5.0, 2: 4.0, 3: 3.0}
        assert finished.user_attrs[STARTS] == 2
        assert finished.user_attrs[SECONDS] >= 0
        assert study.next(1) is None


def test_a_verdict_that_was_not_written_is_come_to_again(tmp_path: Path) -> None:
    """Killed between the last report and the state: the trial is given up without another epoch."""
    with Study.open(tmp_path, "made-up", rules(), DEFINITION_HERE) as study:
        for _ in range(2):
            trial = study.next(9)
            assert trial is not None
            for epoch in range(1, EPOCHS + 1):
                trial.report(epoch, 1.0)
            trial.finish(1.0)
        trial = study.next(9)
        assert trial is not None
        assert trial.report(1, 2.0)
    with Study.open(tmp_path, "made-up", rules(), DEFINITION_HERE) as study:
        again = study.next(9)
        assert again is not None
        assert again.pruned
        assert (again.finish().state, again.number) == (TrialState.PRUNED, 2)


def test_values_that_are_no_numbers_survive(tmp_path: Path) -> None:
    with Study.open(tmp_path, "made-up", rules("none"), DEFINITION_HERE) as study:
        trial = study.next(1)
        assert trial is not None
        trial.report(1, math.inf)
        trial.report(2, math.nan)
    with Study.open(tmp_path, "made-up", rules("none"), DEFINITION_HERE) as study:
        again = study.next(1)
        assert again is not None
        values = again.finish(1.5).intermediate_values
    assert values[1] == math.inf
    assert math.isnan(values[2])


def test_the_seed_decides_and_nothing_else(tmp_path: Path) -> None:
    first, second = (search(tmp_path / name, 5) for name in "ab")
    assert first == second
    assert search(tmp_path / "c", 5, rules(seed=4)) != first
    random, again = (search(tmp_path / name, 5, rules(sampler="random")) for name in "de")
    assert random == again


def test_another_process_draws_the_same(tmp_path: Path) -> None:
    """Text is hashed differently in every process; that must not matter."""
    here = search(tmp_path / "here", 7)
    code = (
        "import sys, json, pathlib\nfrom tests.pipelines.test_sweep_study import search\n"
        f"print(json.dumps(search(pathlib.Path({str(tmp_path / 'there')!r}), 7)))"
    )
    for hash_seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        command = [sys.executable, "-c", code.replace("there", f"there{hash_seed}")]
        done = subprocess.run(command, check=False, text=True, capture_output=True, env=environment,
                              cwd=Path(__file__).parents[2])  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout) == json.loads(json.dumps(here))


def test_a_second_sweep_of_the_study_is_refused(tmp_path: Path) -> None:
    with (
        Study.open(tmp_path, "made-up", rules(), DEFINITION_HERE),
        pytest.raises(StrikeforgeError, match=f"process {os.getpid()}"),
        Study.open(tmp_path, "made-up", rules(), DEFINITION_HERE),
    ):
        raise AssertionError("two at once")
    with Study.open(tmp_path, "made-up", rules(), DEFINITION_HERE) as study:
        assert study.trials() == []


def test_another_definition_is_refused_by_name(tmp_path: Path) -> None:
    search(tmp_path, 1)
    other = json.loads(json.dumps(DEFINITION_HERE))
    other["space"]["rate"]["high"] = 2.0
    del other["space"]["kind"]
    other["config"]["trainer"]["patience"] = 3
    with pytest.raises(ConfigError) as caught, Study.open(tmp_path, "made-up", rules(), other):
        raise AssertionError("opened")
    assert [problem.split(": ")[0] for problem in caught.value.problems] == [
        "config.trainer.patience", "space.kind.choices", "space.rate.high"
    ]  # fmt: skip
    assert "was made with 1.0, now it is 2.0; set it back or name another study" in str(caught.value)


def test_half_a_database_is_made_anew(tmp_path: Path) -> None:
    """A kill while it was being made leaves a file aside, which nobody reads."""
    (tmp_path / ".study.db.new").write_bytes(b"SQLite format 3\0 and no more")
    (tmp_path / ".study.db.new-journal").write_bytes(b"x")
    assert len(search(tmp_path, 2)) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "study.db"]


def test_each_study_has_a_name_of_its_own(tmp_path: Path) -> None:
    keys = []
    for name in "ab":
        with Study.open(tmp_path / name, "made-up", rules(), DEFINITION_HERE) as study:
            keys.append(study.key)
            assert study.optuna.user_attrs.keys() == {DEFINITION, KEY}
            assert study.best() is None
    assert keys[0] != keys[1]


def test_the_best_is_the_first_of_the_least(tmp_path: Path) -> None:
    with Study.open(tmp_path, "made-up", rules("none"), DEFINITION_HERE) as study:
        for value in (3.0, 1.0, 1.0, 2.0):
            trial = study.next(9)
            assert trial is not None
            trial.finish(value)
        trial = study.next(9)
        assert trial is not None
        trial.finish(failure="no")
        best = study.best()
        assert best is not None
        assert (best.number, best.value) == (1, 1.0)
        assert len(study.trials(*FINISHED)) == 5
