"""Building in a process of its own, so that a crash of the library is an error with a name.

In (of the worker, on stdin): a JSON request. Out: engines in the folder it names, one JSON line on stdout. `build_all`
is the caller's side. Invariant: nothing a worker writes is used unless it ended well and named the file.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from pipelines.lineage import ROOT
from pipelines.tensorrt.target import Profile, Target
from serving.errors import EngineError, StrikeforgeError

SECONDS = 3600  # full TensorRT times its kernels; minutes for a large net
SAID = 2000  # characters of a crashed worker's last words


@dataclass(frozen=True)
class Job:
    """One file to build; `profile` where it has a free dimension."""

    name: str
    onnx: Path
    engine: Path
    profile: Profile | None


@dataclass(frozen=True)
class Outcome:
    """What a worker says of one file."""

    version: str
    seconds: float
    warnings: tuple[str, ...]


def build_all(jobs: list[Job], target: Target) -> dict[str, Outcome]:
    """Every engine at its place, an outcome by the file's name; EngineError where one can't be built."""
    request = {
        "target": asdict(target),
        "jobs": [asdict(job) | {"onnx": str(job.onnx), "engine": str(job.engine)} for job in jobs],
    }
    try:
        done = subprocess.run(
            [sys.executable, "-m", "pipelines.tensorrt.worker"], input=json.dumps(request), cwd=ROOT, text=True,
            capture_output=True, timeout=SECONDS, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise EngineError(f"{target.name}: building took more than {SECONDS} s and was stopped") from error
    answer = _answer(done.stdout)
    if "error" in answer:
        raise EngineError(str(answer["error"]))
    if done.returncode or "built" not in answer:
        ended = f"signal {-done.returncode}" if done.returncode < 0 else f"exit code {done.returncode}"
        raise EngineError(f"{target.name}: the builder's process died ({ended}): {done.stderr.strip()[-SAID:]}")
    return {name: Outcome(one["version"], one["seconds"], tuple(one["warnings"]))
            for name, one in answer["built"].items()}  # fmt: skip


def _answer(text: str) -> Mapping[str, Any]:
    """The worker's last line; libraries may write to stdout before it."""
    try:
        value = json.loads(text.strip().splitlines()[-1]) if text.strip() else {}
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def main() -> None:
    """Build what stdin asks for."""
    import time

    from pipelines.tensorrt.builder import build

    request = json.load(sys.stdin)
    target = TypeAdapter(Target).validate_python(request["target"])
    built = {}
    try:
        for job in request["jobs"]:
            profile = None if job["profile"] is None else TypeAdapter(Profile).validate_python(job["profile"])
            start = time.perf_counter()
            made = build(Path(job["onnx"]).read_bytes(), job["name"], target, profile)
            Path(job["engine"]).write_bytes(made.engine)
            seconds = time.perf_counter() - start
            built[job["name"]] = {"version": made.version, "seconds": seconds, "warnings": made.warnings}
    except StrikeforgeError as error:
        answer: dict[str, Any] = {"error": str(error)}
    else:
        answer = {"built": built}
    sys.stdout.write("\n" + json.dumps(answer) + "\n")


if __name__ == "__main__":
    main()
