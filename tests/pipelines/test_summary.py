"""The summary shows every registered version with its errors and the commands that come next, ready to be typed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipelines import command, summary
from pipelines.config import load_config
from serving.blobstore import open_store
from serving.errors import DataError
from serving.ledger import Ledger
from tests.pipelines import market


def registered(out: Path, model: str, version: int, error: float, *, evaluated: bool = True) -> None:
    """The two files the summary reads of one model."""
    (out / "register" / model).mkdir(parents=True)
    (out / "register" / model / "version.json").write_text(json.dumps({"model": model, "version": version}))
    if evaluated:
        (out / "evaluate" / model).mkdir(parents=True)
        metrics = {"test": {"model": {"iv_rmse": error}}, "best_baseline": {"name": "sticky_strike", "iv_rmse": 0.5}}
        (out / "evaluate" / model / "metrics.json").write_text(json.dumps(metrics))


def store(folder: Path, **versions: int) -> None:
    """A ledger per model in which that version is registered."""
    for model, version in versions.items():
        ledger = Ledger(open_store(str(folder)), model)
        ledger.append(ledger.state(), "registered", version=version, bundle="a" * 64, by="test", details={})


def arguments(folder: Path) -> list[str]:
    return [
        "data=generic",
        "data.path=x",
        f"split.test_from={market.TEST_FROM}",
        f"out={folder}/out",
        f"storage.url={folder}/sto re",
    ]


def test_table_and_next_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    registered(tmp_path / "out", "pricing_lstm", 3, 0.3334)
    registered(tmp_path / "out", "other", 12, 0.4)
    store(tmp_path / "sto re", pricing_lstm=3, other=12)
    assert command.stage(summary.__doc__, summary.run, arguments(tmp_path)) == 0
    out = capsys.readouterr().out
    for word in ("pricing_lstm", "0.333", "other", "0.400", "sticky_strike", "0.500", "The user's own quotes."):
        assert word in out
    assert f"report of pricing_lstm 3: {tmp_path}/out/evaluate/pricing_lstm/report.html" in out
    assert ".venv/bin/python -m pipelines.promote model=other version=12\n" in out
    assert f"--model other --channel champion --store '{tmp_path}/sto re' --demo --out prices.csv\n" in out


def test_lines_are_in_order_of_name(tmp_path: Path) -> None:
    registered(tmp_path, "b", 1, 0.1)
    registered(tmp_path, "a", 2, 0.2)
    lines = summary.collect(tmp_path)
    assert [(line.model, line.version, line.error, line.baseline_error) for line in lines] == [
        ("a", 2, 0.2, 0.5), ("b", 1, 0.1, 0.5),
    ]  # fmt: skip


def test_a_store_that_is_gone_is_told(tmp_path: Path) -> None:
    registered(tmp_path / "out", "pricing_lstm", 3, 0.3)
    with pytest.raises(DataError, match=r"doesn't hold pricing_lstm version 3.*dvc repro -f -s register@pricing_lstm"):
        summary.run(load_config(arguments(tmp_path)))


def test_nothing_registered_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no registered version: run make repro first"):
        summary.run(load_config(arguments(tmp_path)))
    registered(tmp_path / "out", "pricing_lstm", 3, 0.3, evaluated=False)
    with pytest.raises(DataError, match=r"metrics.json isn't there: run make repro first"):
        summary.run(load_config(arguments(tmp_path)))
