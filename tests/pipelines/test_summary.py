"""The summary shows every registered version with its errors and the commands that come next, ready to be typed."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from pipelines import command, summary
from pipelines.config import load_config
from serving import cli
from serving.blobstore import open_store
from serving.errors import DataError
from serving.ledger import Ledger
from tests.pipelines import market


def registered(
    out: Path, model: str, version: int, error: float, *, baseline: str = "sticky_strike", evaluated: bool = True
) -> None:
    """The two files the summary reads of one model."""
    (out / "register" / model).mkdir(parents=True)
    (out / "register" / model / "version.json").write_text(json.dumps({"model": model, "version": version}))
    if evaluated:
        (out / "evaluate" / model).mkdir(parents=True)
        metrics = {"test": {"model": {"iv_rmse": error}}, "best_baseline": {"name": baseline, "iv_rmse": 0.5}}
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


@pytest.fixture
def three(tmp_path: Path) -> Path:
    """Registered: two pricing models and a surface model."""
    registered(tmp_path / "out", "surface_vae", 2, 0.285, baseline="shifted_last")
    registered(tmp_path / "out", "pricing_transformer", 12, 0.4)
    registered(tmp_path / "out", "pricing_lstm", 3, 0.3334)
    store(tmp_path / "sto re", pricing_lstm=3, pricing_transformer=12, surface_vae=2)
    return tmp_path


def printed(folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    assert command.stage(summary.__doc__, summary.run, arguments(folder)) == 0
    return capsys.readouterr().out


def row(text: str, model: str) -> list[str]:
    """The cells of a model's row of the table."""
    line = next(line for line in text.splitlines() if line.startswith(f"│ {model} "))
    return [cell.strip() for cell in line.strip("│").split("│")]


def test_table_holds_each_models_error_and_its_own_best_baseline(
    three: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = printed(three, capsys)
    assert row(out, "pricing_lstm") == ["pricing_lstm", "3", "0.333", "sticky_strike", "0.500"]
    assert row(out, "pricing_transformer") == ["pricing_transformer", "12", "0.400", "sticky_strike", "0.500"]
    assert row(out, "surface_vae") == ["surface_vae", "2", "0.285", "shifted_last", "0.500"]
    assert "surface_vae: of hidden quotes" in out
    assert "The user's own quotes." in out
    assert f"report of pricing_lstm 3: {three}/out/evaluate/pricing_lstm/report.html" in out


def test_next_commands_promote_and_use_one_model_of_each_task(three: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown = printed(three, capsys).split("next:\n")[1].splitlines()
    pull = f"--store '{three}/sto re' --root keys/development/public/channel/1.root.json --to host --development"
    assert [line.strip() for line in shown] == [
        ".venv/bin/python -m pipelines.promote model=pricing_lstm version=3 approve_by=$(whoami)",
        f".venv/bin/strikeforge-host pull --model pricing_lstm {pull}",
        ".venv/bin/strikeforge-host price --from host --model pricing_lstm --demo --out prices.csv",
        ".venv/bin/python -m pipelines.promote model=surface_vae version=2 approve_by=$(whoami)",
        f".venv/bin/strikeforge-host pull --model surface_vae {pull}",
        ".venv/bin/strikeforge-host inspect --from host --model surface_vae --demo",
    ]


def test_next_commands_are_ones_the_host_understands(three: Path) -> None:
    for line in summary.next_commands(summary.collect(three / "out"), "a folder; rm -rf /", Path("a root")):
        words = shlex.split(line)
        if words[0].endswith("strikeforge-host"):
            given = cli._parser(words[1:]).parse_args(words[1:])
            if given.command == "pull":
                assert (given.store, given.root) == ("a folder; rm -rf /", Path("a root"))


def test_the_comparison_is_named_where_there_is_one(three: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "side by side" not in printed(three, capsys)
    page = three / "out" / "compare" / "report.html"
    page.parent.mkdir()
    page.write_text("")
    assert f"all families side by side: {page}\n" in printed(three, capsys)


def test_without_a_surface_model_nothing_is_said_of_hidden_quotes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    registered(tmp_path / "out", "pricing_lstm", 3, 0.3334)
    store(tmp_path / "sto re", pricing_lstm=3)
    out = printed(tmp_path, capsys)
    assert "hidden" not in out
    assert "inspect" not in out


def test_lines_are_in_the_order_of_the_families(three: Path) -> None:
    lines = summary.collect(three / "out")
    assert [(line.model, line.task, line.version, line.error, line.baseline_error) for line in lines] == [
        ("pricing_lstm", "pricing", 3, 0.3334, 0.5), ("pricing_transformer", "pricing", 12, 0.4, 0.5),
        ("surface_vae", "surface", 2, 0.285, 0.5),
    ]  # fmt: skip


def test_an_unknown_family_is_told(tmp_path: Path) -> None:
    registered(tmp_path, "pricing_gru", 1, 0.1)
    with pytest.raises(DataError, match=r"'pricing_gru' is no family; there are pricing_lstm, .*: move it away"):
        summary.collect(tmp_path)


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
