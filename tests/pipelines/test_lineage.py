"""Lineage tells contents from places and a clean checkout from a changed one."""

from __future__ import annotations

import hashlib
import json
import subprocess
from pathlib import Path

import pytest

from pipelines import lineage as origin
from pipelines.config import config_hash, load_config
from pipelines.lineage import commit_tags, features_hash, file_hash, lineage
from tests.pipelines import market
from tests.pipelines.conftest import TinyRun


def test_hash_is_of_contents_and_order(tmp_path: Path) -> None:
    for name, content in (("a", "1"), ("b", "2"), ("c", "1"), ("d", "12"), ("e", "")):
        (tmp_path / name).write_text(content)
    a, b, c, d, e = (tmp_path / name for name in "abcde")
    assert file_hash(a, b) == file_hash(c, b) != file_hash(b, a)
    assert file_hash(d, e) != file_hash(a, b), "where one file ends matters"
    assert file_hash(a) == hashlib.sha256(hashlib.sha256(b"1").digest()).hexdigest()


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
