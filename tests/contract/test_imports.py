"""A host's process stays light: what a fresh interpreter has imported after each use of `serving`.

The virtual environment of a developer holds torch, MLflow, Hydra and pandas, so importing one of them by mistake shows.
"""

from __future__ import annotations

import json
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import serving
from tests import forged
from tests.serving.market_files import write_market
from tests.serving.test_cli import MODEL, demo_store
from tests.serving.test_pricing import small_market
from tests.serving.test_pull_cli import sealed_demo

HEAVY = (
    "torch", "mlflow", "hydra", "omegaconf", "pandas", "polars", "pytorch_lightning", "lightning", "pydantic", "scipy",
    "onnx", "sklearn", "matplotlib", "models", "pipelines",
)  # fmt: skip
OPTIONAL = ("onnxruntime", "pyarrow")  # only once they are needed
TELL = """
import json, sys, time
start = time.perf_counter()
{code}
elapsed_ms = 1000 * (time.perf_counter() - start)
names = sorted({{name.partition(".")[0] for name in sys.modules}})
sys.stderr.write("\\n" + json.dumps({{"modules": names, "elapsed_ms": elapsed_ms}}))
"""


def modules_after(code: str) -> tuple[set[str], float]:
    """Top-level modules in a fresh process that ran `code`, and the milliseconds it took."""
    command = [sys.executable, "-c", TELL.format(code=code)]
    root = Path(serving.__file__).parent.parent
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, cwd=root)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stderr.rpartition("\n")[2])
    return set(told["modules"]), float(told["elapsed_ms"])


def all_of_serving() -> list[str]:
    found = pkgutil.walk_packages(serving.__path__, "serving.")
    return sorted(module.name for module in found)


def run_main(*arguments: object) -> str:
    listed = [str(one) for one in arguments]
    return f"from serving.cli import main\nassert main({listed!r}) == 0"


def test_importing_all_of_serving_stays_light(capsys: pytest.CaptureFixture[str]) -> None:
    names = all_of_serving()
    assert {"serving.cli", "serving.native", "serving.engine", "serving.engines.ort", "serving.engines.null"} <= set(
        names
    )
    modules, elapsed_ms = modules_after("\n".join(f"import {name}" for name in names))
    assert not modules & {*HEAVY, *OPTIONAL}
    _, numpy_ms = modules_after("import numpy")
    with capsys.disabled():
        told = f"import of all {len(names)} serving modules: {elapsed_ms:.0f} ms (numpy alone {numpy_ms:.0f} ms)"
        sys.stdout.write(f"\n{told}\n")


def test_info_imports_no_inference_library() -> None:
    modules, _ = modules_after(run_main("info"))
    assert not modules & {*HEAVY, *OPTIONAL}


def test_null_engine_needs_nothing(tmp_path: Path) -> None:
    store = demo_store(tmp_path)
    (folder,) = (store / "bundles").iterdir()
    code = (
        "from pathlib import Path\nfrom serving.bundle import load_bundle\nfrom serving.engine import open_engine\n"
        f"open_engine(load_bundle(Path({str(folder)!r})), 'null')"
    )
    modules, _ = modules_after(code)
    assert not modules & {*HEAVY, *OPTIONAL}


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_pricing_imports_only_its_engine_and_the_table_library_asked_for(tmp_path: Path, suffix: str) -> None:
    store = demo_store(tmp_path)
    chain, path, now = write_market(tmp_path, small_market(6, anchors=False), suffix)
    modules, _ = modules_after(
        run_main("price", "--engine", "ort", "--model", MODEL, "--store", store, "--development", "--chain", chain,
                 "--path", path, "--now", now, "--out", tmp_path / f"out{suffix}")
    )  # fmt: skip
    assert (tmp_path / f"out{suffix}").exists()
    assert not modules & set(HEAVY)
    assert modules & set(OPTIONAL) == ({"onnxruntime"} if suffix == ".csv" else {"onnxruntime", "pyarrow"})


def test_pulling_imports_the_trust_library_pricing_what_was_pulled_doesnt(tmp_path: Path) -> None:
    files = sealed_demo(tmp_path, 1)
    store = forged.write_store(tmp_path / "store", files)
    (tmp_path / "root.json").write_bytes(files["channel/1.root.json"])
    to, model = tmp_path / "host", ("--model", forged.MODEL)
    modules, _ = modules_after(run_main("pull", *model, "--store", store, "--root", tmp_path / "root.json", "--to", to))
    assert "tuf" in modules
    assert not modules & {*HEAVY, *OPTIONAL}
    modules, _ = modules_after(
        run_main("price", "--engine", "ort", *model, "--from", to, "--demo", "--out", tmp_path / "out.csv")
    )
    assert modules & set(OPTIONAL) == {"onnxruntime"}
    assert not modules & {*HEAVY, "tuf", "securesystemslib", "cryptography"}
