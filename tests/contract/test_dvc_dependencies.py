"""dvc.yaml names every module of ours that can change what a stage writes: else `dvc repro` keeps stale results.

The import closure of each stage's file (imports inside functions too, and the modules a task is found by) must lie in
its `deps`. Left out: what only talks (terminal, logs, errors), reads the configuration (its files are params), fetches
(its bytes are checked) or records.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

ROOT = Path(__file__).resolve().parents[2]
TALK = {
    *(f"pipelines/{name}.py" for name in ("__init__", "command", "health", "lineage", "loggers", "progress")),
    *(f"serving/{name}.py" for name in ("__init__", "blobstore", "canonical", "errors", "events", "ledger")),
    "pipelines/config/__init__.py", "pipelines/registry.py", "pipelines/remote_data.py",
    "serving/problems.py", "serving/table_files.py",
}  # fmt: skip
FOUND_BY_NAME = {  # imported by importlib
    "ingest": ["pipelines/layouts/generic.py"],
    "evaluate": ["pipelines/tasks/pricing_evaluation.py", "pipelines/tasks/surface_evaluation.py"],
    "export": ["pipelines/tasks/pricing_bundle.py", "pipelines/tasks/surface_bundle.py", "serving/engines/ort.py"],
}
BLACK76_SOURCES = {  # the C++ behind serving/black76.py, which gives the numbers where the native core is built
    "serving/native/CMakeLists.txt", "serving/native/__init__.py", "serving/native/base",
    "serving/native/bindings/bind_options.cpp", "serving/native/options",
}  # fmt: skip
STAGES: Any = OmegaConf.to_container(OmegaConf.load(ROOT / "dvc.yaml"), resolve=False)["stages"]  # type: ignore


def file_of(module: str) -> str | None:
    path = module.replace(".", "/")
    for name in (f"{path}/__init__.py", f"{path}.py"):
        if (ROOT / name).exists():
            return name
    return None


def imported(file: str) -> set[str]:
    """Files of ours that a file imports, not for its types alone."""
    tree = ast.parse((ROOT / file).read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            node.body = []
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    ours = (name for name in names if name.split(".")[0] in ("pipelines", "serving", "models"))
    return {found for found in map(file_of, ours) if found is not None}


def closure(stage: str) -> set[str]:
    seen: set[str] = set()
    to_do = [f"pipelines/{stage}.py", *FOUND_BY_NAME.get(stage, [])]
    while to_do:
        file = to_do.pop()
        if file not in seen and file not in TALK:
            seen.add(file)
            to_do += imported(file)
    return seen


@pytest.mark.parametrize("stage", sorted(STAGES))
def test_a_stage_depends_on_what_it_runs(stage: str) -> None:
    described = STAGES[stage]
    named = tuple((described.get("do") or described)["deps"])
    missing = [
        file for file in sorted(closure(stage)) if not any(file == one or file.startswith(f"{one}/") for one in named)
    ]
    assert missing == [], f"add to dvc.yaml, stage {stage}"


@pytest.mark.parametrize("stage", sorted(STAGES))
def test_a_stage_that_values_options_depends_on_what_the_native_core_makes_of_them(stage: str) -> None:
    described = STAGES[stage]
    if "serving/black76.py" in closure(stage):
        assert set((described.get("do") or described)["deps"]) >= BLACK76_SOURCES


def test_the_native_sources_named_are_all_that_black76_is_built_of() -> None:
    """What options' C++ includes of ours lies in the folders named."""
    folder = ROOT / "serving/native"
    included = re.compile(r'#include "([a-z0-9_]+)/')
    sources = [*(folder / "options").iterdir(), *(folder / "base").iterdir(), folder / "bindings/bind_options.cpp"]
    parts = {part for path in sources if path.suffix in (".cpp", ".hpp") for part in included.findall(path.read_text())}
    assert parts <= {"options", "base", "bindings"}
    assert all((ROOT / name).exists() for name in BLACK76_SOURCES)
