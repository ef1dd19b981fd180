"""Lineage tells contents from places and a clean checkout from a changed one."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from pipelines import lineage as origin
from pipelines.config import config_hash, load_config
from pipelines.lineage import (
    builder_tags,
    commit_tags,
    dvc_tags,
    features_hash,
    file_hash,
    lineage,
    raw_data_hash,
    registered_lineage,
)
from tests.pipelines import market
from tests.pipelines.conftest import TinyRun


def test_hash_is_of_contents_and_order(tmp_path: Path) -> None:
    for name, content in (("a", "1"), ("b", "2"), ("c", "1"), ("d", "12"), ("e", "")):
        (tmp_path / name).write_text(content)
    a, b, c, d, e = (tmp_path / name for name in "abcde")
    assert file_hash(a, b) == file_hash(c, b) != file_hash(b, a)
    assert file_hash(d, e) != file_hash(a, b), "where one file ends matters"
    assert file_hash(a) == hashlib.sha256(b"1").hexdigest()  # what sha256sum prints


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with one commit, taken for ours."""
    monkeypatch.setattr(origin, "ROOT", tmp_path)
    for name in ("dvc.lock", "a.txt"):
        (tmp_path / name).write_text("first")
    who = ["-c", "user.name=T", "-c", "user.email=t@example.com"]
    for words in (["init", "-q"], ["add", "."], [*who, "commit", "-q", "-m", "first"]):
        subprocess.run(["git", *words], cwd=tmp_path, check=True, capture_output=True)
    return tmp_path


def test_a_clean_checkout(checkout: Path) -> None:
    tags = commit_tags()
    assert tags["git_clean"] == "true"
    assert len(tags["git_commit"]) == 40


def test_nothing_but_dvc_lock_may_differ(checkout: Path) -> None:
    (checkout / "dvc.lock").write_text("second")
    assert commit_tags()["git_clean"] == "true"
    (checkout / "a.txt").write_text("second")
    assert commit_tags()["git_clean"] == "false"


def test_a_new_file_is_a_change(checkout: Path) -> None:
    (checkout / "new.txt").write_text("x")
    assert commit_tags()["git_clean"] == "false"


def test_without_git_it_is_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unknown = {"git_commit": "unknown", "git_clean": "unknown"}
    monkeypatch.setattr(origin, "ROOT", tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert commit_tags() == unknown
    monkeypatch.setenv("PATH", str(tmp_path))  # no git at all
    assert commit_tags() == unknown


def test_lineage_of_a_run(tiny_run: TinyRun, tmp_path: Path) -> None:
    description = json.loads((tiny_run.out / "train/pricing_lstm/model.json").read_text())
    found = lineage(tiny_run.cfg, description)
    assert found["config_sha256"] == found["trained_config_sha256"] == config_hash(tiny_run.cfg)
    assert found["features_sha256"] == features_hash(tiny_run.out / "features")
    assert found["quotes_sha256"] == file_hash(tiny_run.out / "ingest/quotes.parquet")
    assert found["seed"] == "7"
    assert found["training_run"]
    elsewhere = load_config(market.overrides(tmp_path, tiny_run.quotes))
    assert lineage(elsewhere, description)["quotes_sha256"] == "absent"


def test_what_a_version_is_registered_with(tiny_run: TinyRun) -> None:
    description = json.loads((tiny_run.out / "train/pricing_lstm/model.json").read_text())
    found = registered_lineage(tiny_run.cfg, description)
    assert found.items() >= lineage(tiny_run.cfg, description).items()
    assert found["raw_data_sha256"] == file_hash(tiny_run.quotes)
    pinned = Path(origin.__file__).parents[1] / "constraints.txt"
    assert found["constraints_sha256"] == hashlib.sha256(pinned.read_bytes()).hexdigest()
    assert (found["dvc_clean"], found["dvc_lock_sha256"]) == ("unknown", "absent"), "it ran outside DVC"
    assert found["builder"]
    assert str(tiny_run.out) not in json.dumps(found)


def test_raw_data_is_what_ingest_read_and_the_history(tiny_run: TinyRun, tmp_path: Path) -> None:
    history = tmp_path / "history.csv"
    history.write_text("date,close\n2024-01-02,400\n")
    longer = load_config([*tiny_run.overrides, f"data.history={history}"])
    assert raw_data_hash(longer) == file_hash(tiny_run.quotes, history)
    history.unlink()
    assert raw_data_hash(longer) == "absent"
    assert raw_data_hash(load_config(market.overrides(tmp_path, tiny_run.quotes))) == "absent", "nothing was ingested"


def test_a_builder_is_the_workflow_or_anybodys_machine() -> None:
    assert builder_tags({"USER": "ann", "HOSTNAME": "desk"}) == {"builder": "urn:strikeforge:builder:local"}
    ci = {
        "GITHUB_ACTIONS": "true", "GITHUB_SERVER_URL": "https://host", "GITHUB_REPOSITORY": "o/r", "GITHUB_RUN_ID": "5",
        "GITHUB_RUN_ATTEMPT": "2", "GITHUB_ACTOR": "ann", "GITHUB_WORKFLOW": "retrain",
        "GITHUB_WORKFLOW_REF": "o/r/.github/workflows/retrain.yml@refs/heads/main",
    }  # fmt: skip
    assert builder_tags(ci) == {
        "builder": "https://host/o/r/.github/workflows/retrain.yml@refs/heads/main",
        "builder_run": "https://host/o/r/actions/runs/5/attempts/2",
        "source": "git+https://host/o/r",
    }
    del ci["GITHUB_WORKFLOW_REF"]
    assert builder_tags(ci)["builder"] == "https://host/o/r/retrain"


COPY = "python -c \"import shutil; shutil.copy('{0}', '{1}')\""
ASK = """
import json, sys
from pathlib import Path
from pipelines import lineage
from pipelines.config import load_config
lineage.ROOT = Path.cwd()
print(json.dumps(lineage.dvc_tags(load_config(["model=pricing_lstm", "out=artifacts"]))))
"""


@pytest.fixture
def dvc_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with stages of our names that copy files, run once; its last stage asks for the tags itself."""
    stages = {}
    before = "data.txt"
    for stage in ("ingest", "features", "train", "evaluate", "export"):
        out = f"artifacts/{stage}.txt"
        stages[f"{stage}@pricing_lstm" if stage in origin.MODEL_STAGES else stage] = {
            "cmd": COPY.format(before, out), "deps": [before], "outs": [out],
        }  # fmt: skip
        before = out
    foreach = {
        name.partition("@")[0]: {"foreach": ["pricing_lstm"], "do": stage} if "@" in name else stage
        for name, stage in stages.items()
    }
    ask = {"cmd": f"{sys.executable} ask.py > artifacts/tags.json", "deps": [before], "outs": ["artifacts/tags.json"]}
    OmegaConf.save({"stages": {**foreach, "register": ask}}, tmp_path / "dvc.yaml")
    (tmp_path / "data.txt").write_text("quotes")
    (tmp_path / "ask.py").write_text(ASK)
    (tmp_path / "artifacts").mkdir()
    monkeypatch.setenv("PYTHONPATH", str(Path(origin.__file__).parents[1]))
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{Path(shutil.which('git') or '/usr/bin/git').parent}")
    monkeypatch.setattr(origin, "ROOT", tmp_path)
    monkeypatch.chdir(tmp_path)
    dvc(tmp_path, "init", "--no-scm", "-q")
    dvc(tmp_path, "repro", "-q")
    return tmp_path


def dvc(folder: Path, *words: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "dvc", *words], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_dvc_is_clean_where_the_workspace_is_what_dvc_lock_says(dvc_project: Path) -> None:
    """Asked inside a running `dvc repro`, as the register stage does, and afterwards; then after changes."""
    cfg = load_config(["model=pricing_lstm", "out=artifacts"])
    inside = json.loads((dvc_project / "artifacts/tags.json").read_text())
    assert inside["dvc_clean"] == "true"
    assert len(inside["dvc_lock_sha256"]) == 64
    assert dvc_tags(cfg) == inside, "the last stage's own entry in dvc.lock changes nothing"
    output = dvc_project / "artifacts/train.txt"
    output.write_text("other weights")
    assert dvc_tags(cfg) == {**inside, "dvc_clean": "false"}
    output.write_text("quotes")
    assert dvc_tags(cfg) == inside
    (dvc_project / "data.txt").write_text("newer quotes")
    assert dvc_tags(cfg)["dvc_clean"] == "false"
    dvc(dvc_project, "repro", "-q", "export@pricing_lstm")
    again = dvc_tags(cfg)
    assert again["dvc_clean"] == "true"
    assert again["dvc_lock_sha256"] != inside["dvc_lock_sha256"]


def test_stages_that_never_ran_are_not_clean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(origin, "ROOT", tmp_path)
    monkeypatch.chdir(tmp_path)
    cfg = load_config(["out=artifacts"])
    assert dvc_tags(cfg) == {"dvc_clean": "unknown", "dvc_lock_sha256": "absent"}
    OmegaConf.save({"schema": "2.0", "stages": {"ingest": {"cmd": "true"}}}, tmp_path / "dvc.lock")
    assert dvc_tags(cfg) == {"dvc_clean": "false", "dvc_lock_sha256": "absent"}


def test_where_dvc_cannot_be_asked_it_is_unknown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(origin, "ROOT", tmp_path)
    monkeypatch.chdir(tmp_path)
    names = ["ingest", "features", *(f"{stage}@pricing_lstm" for stage in origin.MODEL_STAGES)]
    OmegaConf.save({"schema": "2.0", "stages": {name: {"cmd": "true"} for name in names}}, tmp_path / "dvc.lock")
    found = dvc_tags(load_config(["model=pricing_lstm", "out=artifacts"]))
    assert found["dvc_clean"] == "unknown"
    assert "dvc status failed" in caplog.text
