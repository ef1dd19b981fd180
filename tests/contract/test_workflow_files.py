"""What may stand in the release workflows, and what is typed into them and into make: text stays text."""

from __future__ import annotations

import re
import subprocess
from typing import Any

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipelines.config import load_operation
from serving.errors import ConfigError
from tests.contract.workflow_site import ACTIONS, FOLDER, HOSTILE, RELEASE, ROOT, VENV, run


def workflow(name: str) -> dict[Any, Any]:
    value: dict[Any, Any] = yaml.safe_load((FOLDER / f"{name}.yml").read_text(encoding="utf-8"))
    return value


def jobs(name: str) -> dict[str, Any]:
    found: dict[str, Any] = workflow(name)["jobs"]
    return found


def inputs(name: str) -> dict[str, Any]:
    found: dict[str, Any] = workflow(name)[True]["workflow_dispatch"]["inputs"]  # YAML 1.1 reads `on` as true
    return found


NAMES = sorted(path.stem for path in FOLDER.glob("*.yml"))


def test_the_release_workflows_are_there() -> None:
    assert set(RELEASE) <= set(NAMES)


def test_actionlint_passes() -> None:
    done = subprocess.run([VENV / "bin/actionlint"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", NAMES)
def test_no_expression_inside_a_script(name: str) -> None:
    """What an expression holds is pasted into a script before the shell reads it: text would become code."""
    for job in jobs(name).values():
        for step in job.get("steps", []):
            assert "${{" not in step.get("run", ""), step


@pytest.mark.parametrize("name", NAMES)
def test_every_job_is_bounded_and_may_only_read(name: str) -> None:
    assert workflow(name)["permissions"] == {"contents": "read"}
    for job_name, job in jobs(name).items():
        assert job.get("permissions", {"contents": "read"}) == {"contents": "read"}, job_name
        assert "uses" in job or 1 <= job["timeout-minutes"] <= 360, job_name


@pytest.mark.parametrize("name", NAMES)
def test_only_three_foreign_actions_by_major_version(name: str) -> None:
    for job in jobs(name).values():
        assert job.get("uses", "./.github/workflows/").startswith("./.github/workflows/")
        for step in job.get("steps", []):
            if "uses" in step:
                action, _, version = step["uses"].partition("@")
                assert action in ACTIONS
                assert re.fullmatch(r"v\d+", version)


@pytest.mark.parametrize("name", NAMES)
def test_every_make_target_they_call_is_in_the_help(name: str) -> None:
    help_text = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    called = set(re.findall(r"make (?:--silent )?([a-z-]+)", str(jobs(name))))
    assert called
    for target in called:
        assert re.search(rf"^  make {target} ", help_text, re.MULTILINE), target


def test_every_model_can_be_chosen() -> None:
    families = {path.stem for path in (ROOT / "conf/model").glob("*.yaml")}
    for name in ("retrain", "promote", "rollback"):
        assert families <= set(inputs(name)["model"]["options"]), name


def test_release_decisions_of_a_model_queue_behind_a_protected_environment() -> None:
    for name in ("promote", "rollback"):
        job = jobs(name)[name]
        assert job["environment"] == "production"
        assert job["concurrency"] == {"group": "release-${{ inputs.model }}", "cancel-in-progress": False}
        assert inputs(name)["reason"]["required"] is True
    assert workflow("promote")[True]["workflow_call"]["inputs"].keys() == inputs("promote").keys()


@settings(max_examples=40, deadline=None)
@given(st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1).filter(str.strip))
@example(HOSTILE)
@example("null")
@example("12")
def test_text_named_to_hydra_arrives_unread(text: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STRIKEFORGE_REASON", text)
        patch.setenv("STRIKEFORGE_VERSION", "3")
        told = load_operation(["reason=${oc.env:STRIKEFORGE_REASON}", "version=${oc.env:STRIKEFORGE_VERSION}"])
    assert (told.reason, told.version) == (text, 3)


def test_packs_named_to_make_arrive_as_folders(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STRIKEFORGE_PACKS", "out/a b,${oops},")
    assert load_operation(["packs=${oc.env:STRIKEFORGE_PACKS}"]).packs == ("out/a b", "${oops}")
    assert load_operation(["packs=[x,y]"]).packs == ("x", "y")


@pytest.mark.parametrize(("given", "lacks"), [(["TARGET=x"], "MODEL"), (["MODEL=x"], "TARGET")])
def test_make_compile_wants_a_model_and_a_target(given: list[str], lacks: str) -> None:
    done = run(["make", "compile", f"VENV={VENV}", "STRIKEFORGE_WITHOUT_NATIVE=1", *given], ROOT)
    assert done.returncode != 0
    assert f"STRIKEFORGE_{lacks}: must be given" in done.stderr


@pytest.mark.parametrize("number", ["", "0", "-1", "3.0", "+3", "3 ", "3\n", "٣", "1_0", "9" * 10, "${oc.env:HOME}"])
def test_only_a_number_is_a_version(monkeypatch: pytest.MonkeyPatch, number: str) -> None:
    monkeypatch.setenv("STRIKEFORGE_VERSION", number)
    with pytest.raises(ConfigError) as caught:
        load_operation(["version=${oc.env:STRIKEFORGE_VERSION}"])
    assert [problem.split(":")[0] for problem in caught.value.problems] == ["version"]
    assert "value " in str(caught.value)
