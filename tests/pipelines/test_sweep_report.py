"""The page of a sweep: one file, every trial in it, nothing claimed that wasn't computed."""

from __future__ import annotations

import base64
import html
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from pipelines import sweep_report
from pipelines.sweep import Plan, planned
from pipelines.sweep_plots import CAPTIONS, all_figures
from pipelines.sweep_report import SweepReport, importances, render, write_report
from pipelines.sweep_study import Rules, Study

SPACE = (
    "sweep.space={model: {hidden: {low: 2, high: 64, log: true}, dropout: {low: 0.0, high: 0.4}}, "
    "trainer: {learning_rate: {low: 0.001, high: 0.1, log: true}, "
    "precision: {choices: [32-true, bf16-mixed]}}, data: {anchors: {choices: [[], [{tenor_days: 14}]]}}}"
)


def made(
    folder: Path, *, count: int = 14, failed: bool = True, flat: bool = False, sampler: str = "tpe"
) -> tuple[Study, Plan]:
    """A study whose error depends on the learning rate alone; every fifth trial fails, every fourth is given up."""
    settings = ["sweep.pruner.name=none", "sweep.trials=14", f"sweep.sampler.name={sampler}"]
    plan = planned(["sweep=pricing_lstm", SPACE, *settings])
    rules = Rules(plan.space, plan.sweep.sampler, plan.sweep.pruner, 3)
    with Study.open(folder, "made-up", rules, {"config": {"seed": 7}}) as study:
        for number in range(count):
            trial = study.next(count)
            assert trial is not None
            rate = trial.params["trainer.learning_rate"]
            value = 1.0 if flat else 0.3 + abs(math.log10(rate) + 2)
            trial.report(1, value + 1)
            if failed and number % 5 == 4:
                trial.finish(failure="DataError: <script>alert(1)</script>")
                continue
            trial.report(2, 1e6 if number == 7 else value + 0.1)
            trial.pruned = number % 4 == 3
            trial.finish(value)
        return study, plan


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, SweepReport]:
    study, plan = made(tmp_path_factory.mktemp("study"))
    experiment = "# @package _global_\n# python -m pipelines.run experiment=x out=DIR\nseed: 7\n"
    report = SweepReport.of(study, plan, experiment)
    return render(report), report


def test_every_trial_is_in_the_table_in_full(page: tuple[str, SweepReport]) -> None:
    text, report = page
    body = text[text.index('<table class="trials">') :]
    rows = re.findall(r"<tr.*?</tr>", body, re.S)[1:]
    assert len(rows) == len(report.table.rows) == 14
    numbers = [int(re.search(r'<th scope="row" class="number">(\d+)</th>', row)[1]) for row in rows]  # type: ignore[index]
    assert sorted(numbers) == list(range(14))
    best = report.table.best
    assert best is not None
    assert numbers[0] == best.number
    assert 'class="best"' in rows[0]
    assert sum('class="best"' in row for row in rows) == 1
    for number, row in zip(numbers, rows, strict=True):
        told = report.table.rows[number]
        assert told.state.lower() in row
        if told.value is not None:
            assert f'<data value="{told.value}">' in row
        for value in told.params.values():
            assert f'<data value="{html.escape(str(value)).replace("&quot;", "&#34;")}">' in row
    complete = [float(value) for value in re.findall(r'complete</td>\s*<td class="number"><data value="([^"]+)"', body)]
    assert complete == sorted(complete)


def test_messages_are_escaped_and_shown(page: tuple[str, SweepReport]) -> None:
    assert "DataError: &lt;script&gt;alert(1)&lt;/script&gt;" in page[0]


class _Tags(HTMLParser):
    """Checks nesting and collects tags and addresses."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: set[str] = set()
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)
        self.addresses += [str(value) for name, value in attributes if name in ("src", "href", "action")]
        if tag not in ("meta", "img", "br", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_needs_nothing_else(page: tuple[str, SweepReport]) -> None:
    tags = _Tags()
    tags.feed(page[0])
    assert tags.open == []
    assert not tags.seen & {"script", "link", "iframe", "object", "form"}
    assert all(address.startswith("data:image/png;base64,") for address in tags.addresses)
    assert "url(" not in page[0]
    assert "@import" not in page[0]
    assert "prefers-color-scheme: dark" in page[0]
    assert "@media print" in page[0]


def test_every_figure_is_there_as_a_picture(page: tuple[str, SweepReport]) -> None:
    pictures = re.findall(r'src="data:image/png;base64,([^"]+)" alt="([^"]+)"', page[0])
    assert [alt.split(":")[0].replace(" ", "_") for _, alt in pictures] == list(CAPTIONS)
    for content, _ in pictures:
        assert base64.b64decode(content).startswith(b"\x89PNG")


def test_the_same_study_gives_the_same_page(page: tuple[str, SweepReport], tmp_path: Path) -> None:
    write_report(tmp_path / "deep/report.html", page[1])
    assert (tmp_path / "deep/report.html").read_text() == page[0]
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["report.html"]


def test_importance_finds_the_one_key_that_matters(tmp_path: Path) -> None:
    study, plan = made(tmp_path, count=60, failed=False, sampler="random")
    report = SweepReport.of(study, plan, "")
    importance = report.table.importance
    assert set(importance) == set(report.table.keys)
    assert sum(importance.values()) == pytest.approx(1.0)
    assert max(importance, key=lambda key: importance[key]) == "trainer.learning_rate"
    assert importance["trainer.learning_rate"] > 0.5
    share = round(100 * importance["trainer.learning_rate"])
    assert f"trainer.learning_rate matters most: it explains {share} % of what the keys explain" in render(report)


def test_an_importance_from_few_trials_is_called_a_guess(page: tuple[str, SweepReport]) -> None:
    complete = sum(row.state == "COMPLETE" for row in page[1].table.rows)
    assert f"a rough guess from {complete} complete trials for 5 keys." in page[0]


def test_what_the_verdict_says_is_so(page: tuple[str, SweepReport]) -> None:
    table = page[1].table
    complete = [row.value for row in table.rows if row.state == "COMPLETE" and row.value is not None]
    best = table.best
    assert best is not None
    assert best.value == min(complete)
    assert f"The best of 14 trials is trial {best.number}: validation IV RMSE {best.value:.4f} vol points" in page[0]
    assert "the test dates were not looked at" in page[0]
    states = [row.state for row in table.rows]
    for name, state in (("complete", "COMPLETE"), ("pruned", "PRUNED"), ("failed", "FAIL")):
        assert f"<dt>{name}</dt><dd>{states.count(state)}</dd>" in page[0]


def test_no_importance_is_said_with_its_reason(tmp_path: Path) -> None:
    study, plan = made(tmp_path / "few", count=3, failed=False)
    assert importances(study.optuna) == ({}, "3 complete trials are too few, 4 are needed")
    text = render(SweepReport.of(study, plan, ""))
    assert "No importance: 3 complete trials are too few, 4 are needed." in text
    assert "matters most" not in text
    flat, plan = made(tmp_path / "flat", count=9, failed=False, flat=True)
    assert importances(flat.optuna) == ({}, "every complete trial has the same value")
    text = render(SweepReport.of(flat, plan, ""))
    assert "6 other complete trials have the same value; the first counts" in text
    assert "Importance is missing: every complete trial has the same value." in text


def test_an_empty_study_has_a_page_too(tmp_path: Path) -> None:
    study, plan = made(tmp_path, count=0)
    report = SweepReport.of(study, plan, "")
    assert all_figures(report.table) == {}
    assert "No trial is complete, so there is nothing to choose." in render(report)


def test_an_interrupted_trial_is_told(tmp_path: Path) -> None:
    study, plan = made(tmp_path, count=2)
    rules = study.rules
    with Study.open(tmp_path, "made-up", rules, {"config": {"seed": 7}}) as again:
        trial = again.next(3)
        assert trial is not None
        trial.report(1, 2.0)
        text = render(SweepReport.of(again, plan, ""))
    assert "<dt>interrupted, not gone on with yet</dt><dd>1</dd>" in text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.04, "0.0 s"), (119.9, "119.9 s"), (121, "2 min 1 s"), (7200, "2 h 0 min")]
)
def test_durations(seconds: float, text: str) -> None:
    assert sweep_report._duration(seconds) == text
