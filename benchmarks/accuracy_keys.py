"""Names for results by what they were made of, so that a finished one is found again and a stale one never is.

In: values, files, modules of ours. Out: short hex keys. Invariants: a key changes with the contents of any file given
and with the code of any module that the given ones import (inside functions too); it doesn't with comments, docstrings,
layout of the code, or the place where files lie.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pipelines.lineage import ROOT, file_hash

OURS = ("pipelines", "serving", "models", "benchmarks", "tests")
# What tells, logs or composes the configuration; the configuration itself is part of the keys.
TALK = {
    "benchmarks/accuracy_keys.py", "pipelines/command.py", "pipelines/config/__init__.py", "pipelines/lineage.py",
    "pipelines/progress.py", "serving/errors.py",
}  # fmt: skip
# Reached through the lists of families and tasks; no price comes from them.
OTHER_TASK = {"models/surface_vae.py", "pipelines/tasks/surface.py"}
LIBRARIES = ("torch", "pytorch-lightning", "numpy", "polars", "scipy", "lightgbm", "pyarrow")
LENGTH = 16


def key_of(*parts: Any) -> str:
    """SHA-256 of plain values, shortened."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:LENGTH]


def contents_hash(path: Path) -> str:
    """SHA-256 over a file, or over all files of a folder in order of their names."""
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    return file_hash(*files)


def libraries() -> dict[str, str]:
    """Versions of the libraries whose arithmetic is in the figures."""
    return {name: version(name) for name in LIBRARIES}


@functools.cache
def code() -> Mapping[str, str]:
    """SHA-256 of what each kind of piece is made with; looked at once in a process."""
    arithmetic = own_code("benchmarks.accuracy_predictions")
    return {
        "ingest": code_hash("pipelines.ingest", *modules_below("pipelines.layouts")),
        "features": code_hash("pipelines.features"),
        "baselines": key_of(
            arithmetic, code_hash("pipelines.baselines"), own_code("pipelines.tasks.pricing_evaluation")
        ),
        "fit": key_of(arithmetic, code_hash("pipelines.trust", "pipelines.tasks.pricing")),
    }


def code_hash(*modules: str, root: Path = ROOT) -> str:
    """SHA-256 over the code of modules (dotted names) and of all of ours that they import."""
    seen: dict[str, str] = {}
    to_do = [_file_of(module, root) for module in modules]
    unknown = [module for module, file in zip(modules, to_do, strict=True) if file is None]
    assert not unknown, f"no such module: {unknown}"
    while to_do:
        file = to_do.pop()
        if file is None or file in seen or file in TALK | OTHER_TASK:
            continue
        tree = ast.parse((root / file).read_text(encoding="utf-8"))
        seen[file] = ast.dump(_without_docstrings(tree))
        to_do += [_file_of(name, root) for name in _imported(tree)]
    return hashlib.sha256(json.dumps(sorted(seen.items())).encode()).hexdigest()


def own_code(module: str, root: Path = ROOT) -> str:
    """SHA-256 over the code of one module alone."""
    file = _file_of(module, root)
    assert file is not None, f"no such module: {module}"
    tree = _without_docstrings(ast.parse((root / file).read_text(encoding="utf-8")))
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()


def modules_below(package: str, root: Path = ROOT) -> list[str]:
    """Dotted names of a package's modules: those that are imported by name at run time."""
    return sorted(f"{package}.{path.stem}" for path in (root / package.replace(".", "/")).glob("*.py")
                  if path.stem != "__init__")  # fmt: skip


def _file_of(module: str, root: Path) -> str | None:
    path = module.replace(".", "/")
    return next((name for name in (f"{path}/__init__.py", f"{path}.py") if (root / name).exists()), None)


def _imported(tree: ast.AST) -> Sequence[str]:
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return sorted(name for name in names if name.split(".")[0] in OURS)


def _without_docstrings(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if (
                isinstance(first, ast.Expr)
                and isinstance(first.value, ast.Constant)
                and isinstance(first.value.value, str)
            ):
                node.body = node.body[1:] or [ast.Pass()]
    return tree
