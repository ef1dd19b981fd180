"""Real chains: what bf16 and int8 cost the default pricing_lstm on SPX, June 2019, in the native engine.

Promise: IV RMSE on the June rows, in every way of computing, at most 1 % above fp32's, so that the precision gate
admits both and a promotion releases them.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from pipelines import export
from pipelines import run as whole_run
from pipelines.config import load_config
from pipelines.exam import load_exam
from pipelines.gates.precision import Settings, answers_of, compared
from serving.bundle import load_bundle
from serving.engine import unavailable_engines

SPX = Path(__file__).parents[2].parent / "shared/data/spx_options_2019"

pytestmark = [
    pytest.mark.real_data,
    pytest.mark.slow,
    pytest.mark.skipif(not SPX.exists(), reason="../shared/data/spx_options_2019 isn't there"),
    pytest.mark.skipif(
        unavailable_engines()["native"] is not None, reason=f"engine native: {unavailable_engines()['native']}"
    ),
]


def test_reduced_precisions_cost_at_most_one_percent(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cfg = load_config([
        "experiment=spx_2019", f"data.path={SPX}", "split.test_from=2019-06-03", f"out={tmp_path / 'out'}",
        f"registry.tracking_uri=sqlite:///{tmp_path / 'mlflow.db'}",
    ])  # fmt: skip
    whole_run.run(cfg)
    bundle = load_bundle(export.run(cfg).bundle)
    exam = load_exam(cfg.folder / "evaluate" / cfg.model.name / "exam.npz")
    settings = Settings()
    reference = answers_of(exam, bundle, settings.engine, "fp32")
    found = {one: compared(exam, reference, answers_of(exam, bundle, settings.engine, one)) for one in ("bf16", "int8")}
    with capsys.disabled():
        sys.stdout.write("".join(f"\n{name}: {figures}" for name, figures in found.items()) + "\n")
    assert len(exam) > 10_000
    for name, figures in found.items():
        assert figures["ratio"] <= 1.0 + settings.precision_slack, (name, figures)
        assert figures["largest_distance"] > 0.0, f"{name} answers bit for bit as fp32: it isn't what ran"
