"""`strikeforge-host` from a store to a file, as a person would run it, and everything it must refuse.

`demo_store` makes a store with one promoted bundle that carries a demo.
"""

from __future__ import annotations

import csv
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from serving.bundle import Bundle, store_bundle
from serving.cli import main
from serving.demo import pack_demo
from serving.engine import open_engine
from serving.engines import ort
from serving.errors import run_command
from serving.features import CONTRACT_FEATURES
from serving.folder_store import FolderStore
from serving.ledger import Ledger
from serving.tables import CHAIN_COLUMNS, Market
from tests.serving.market_files import edited, write_market
from tests.serving.test_pricing import priced_by, small_market
from tests.small_nets import small_bundle
from tests.tiny_bundle import npz_bytes

MODEL, ROOT = "small", Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("where", "code", "told"), [("> /dev/full", 1, "error: stdout: No space left on device"), ("| true", 0, "")]
)
def test_who_does_not_take_what_is_said(where: str, code: int, told: str) -> None:
    """A full disk is told in a line, a reader that stopped isn't told at all."""
    shell = f"set -o pipefail; '{sys.executable}' -c 'from serving.cli import entry; entry()' info {where}"
    done = subprocess.run(["bash", "-c", shell], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr[: len(told) or None]) == (code, told)
    assert len(done.stderr.splitlines()) <= 1


def demo_bundle(folder: Path, market: Market, *, off_by: float = 0.0, semantics: str = "window") -> Bundle:
    """A bundle with the market as its demo, its expected volatilities wrong by `off_by`."""
    plain = small_bundle(folder / "plain", members=2, semantics=semantics)
    expected = priced_by(open_engine(plain), market).volatility.astype(np.float32) + np.float32(off_by)
    arrays = pack_demo(market, expected)
    return small_bundle(folder / "demo", members=2, semantics=semantics, extra={"demo.npz": npz_bytes(**arrays)})


def demo_store(folder: Path, *, anchors: bool = True, off_by: float = 0.0, semantics: str = "window") -> Path:
    """A store whose champion prices its own demo."""
    bundle = demo_bundle(folder / "made", small_market(6, anchors=anchors), off_by=off_by, semantics=semantics)
    store = FolderStore(folder / "store")
    store_bundle(store, bundle)
    ledger = Ledger(store, MODEL)
    state = ledger.state()
    for kind, details in (("registered", {}), ("gated", {"passed": True}), ("promoted", {})):
        state = ledger.append(state, kind, version=1, bundle=bundle.sha256, by="test", details=details)
    return folder / "store"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return demo_store(tmp_path_factory.mktemp("cli"))


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return demo_store(tmp_path / "own")


def price(store: Path, *rest: object) -> int:
    return run(("price", "--model", MODEL, "--channel", "champion", "--store", store, "--development", *rest))


def run(arguments: tuple[object, ...]) -> int:
    return run_command(main, on_ort(*arguments))


def on_ort(*arguments: object) -> list[str]:
    """A command line; the nets of tests are made for ONNX Runtime, native isn't everywhere and refuses most of them."""
    listed = [str(one) for one in arguments]
    return [listed[0], "--engine", "ort", *listed[1:]] if listed[0] in ("price", "inspect") else listed


def bundle_folder(store: Path) -> Path:
    (folder,) = (store / "bundles").iterdir()
    return folder


@pytest.mark.parametrize("semantics", ["window", "stateful"])
@pytest.mark.parametrize("anchors", [True, False])
def test_demo_prices_and_checks_itself(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], semantics: str, anchors: bool
) -> None:
    store = demo_store(tmp_path, anchors=anchors, semantics=semantics)
    assert price(store, "--demo", "--out", tmp_path / "out.csv") == 0
    out = capsys.readouterr().out
    sha256 = bundle_folder(store).name
    assert f"small champion: release 1, version 1, bundle {sha256}" in out
    assert "onnxruntime" in out
    assert ("anchors: SPX" in out) is anchors
    assert re.search(r"demo: \d+ volatilities as expected, largest difference \S+, tolerance 2e-06", out)
    with (tmp_path / "out.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    market = small_market(6, anchors=anchors)
    assert len(rows) == len(market.chain[-1])
    counted = re.search(r"(\d+) contracts priced, (\d+) not: (.*)", out)
    assert counted is not None
    assert int(counted[1]) + int(counted[2]) == len(rows)
    assert int(counted[1]) == sum(bool(row["price"]) for row in rows)
    assert {row["status"] for row in rows} == {part.split()[0] for part in counted[3].split(", ")}


def test_the_table_shows_the_money_of_each_expiry(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert price(made, "--demo", "--out", tmp_path / "out.csv", "--rows", 8) == 0
    out = capsys.readouterr().out
    blocks = re.findall(r"^SPX (\S+): (\d+) days, forward (\S+), discount \S+\n((?:  .*\n)+)", out, re.MULTILINE)
    assert len(blocks) == 4
    for _, _, forward, body in blocks:
        header, *rows = body.splitlines()
        assert header.split()[:5] == ["strike", "right", "iv_last", "iv", "price"]
        assert len({len(line) for line in (header, *rows)}) == 1
        assert [row.split()[1] for row in rows] == ["C", "P"]
        assert all(abs(float(row.split()[0]) / float(forward.rstrip(",")) - 1) < 0.03 for row in rows)
    assert "% per square root of a year" in out


def test_files_give_what_the_library_gives(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    market = small_market(6)
    chain, path, now = write_market(tmp_path, market, ".csv.gz")
    out = tmp_path / "out.parquet"
    assert price(made, "--chain", chain, "--path", path, "--now", now, "--out", out) == 0
    assert "demo:" not in capsys.readouterr().out
    expected = priced_by(open_engine(small_bundle(tmp_path / "bundle", members=2)), market)
    table = pq.read_table(out)
    for name in ("tau", "forward", "discount", "volatility", "price", "delta", "gamma", "vega", "theta"):
        found = table[name].fill_null(np.nan).to_numpy()
        assert np.array_equal(found, getattr(expected, name), equal_nan=True), name
    assert table["status"].to_pylist() == expected.status.tolist()
    assert table["right"].to_pylist() == np.where(expected.right > 0, "C", "P").tolist()
    assert set(table["underlying"].to_pylist()) == {"SPX"}


def test_now_without_anchors(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    market = small_market(6)
    chain, path, now = write_market(tmp_path, market)
    now.write_text(f"{','.join(CHAIN_COLUMNS)}\n2018-03-07T21:00:00Z,SPX,,,,,,,{market.now.spot}\n")
    assert price(made, "--chain", chain, "--path", path, "--now", now, "--out", tmp_path / "out.csv") == 0
    out = capsys.readouterr().out
    assert "anchors: none" in out
    assert "note: 0 of 3 anchors quote now" in out


def test_demo_that_doesnt_agree_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = demo_store(tmp_path, off_by=1e-3)
    assert price(store, "--demo", "--out", tmp_path / "out.csv") == 8
    assert "volatilities differ by 0.001 from the expected, tolerance 2e-06" in capsys.readouterr().err


# What is refused.


def _flip(file: Path) -> None:
    raw = bytearray(file.read_bytes())
    raw[len(raw) // 2] ^= 1
    file.write_bytes(bytes(raw))


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (lambda folder: _flip(folder / "member-1" / "head.onnx"), "member-1/head.onnx"),
        (lambda folder: _flip(folder / "golden.npz"), "golden.npz"),
        (lambda folder: _flip(folder / "manifest.json"), "manifest.json"),
        (lambda folder: (folder / "member-0" / "window.onnx").unlink(), "member-0/window.onnx"),
        (lambda folder: (folder / "extra.py").write_text("boo"), "extra.py"),
    ],
)
@pytest.mark.parametrize("command", ["price", "inspect"])
def test_tampered_bundle_is_refused_by_name(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str,
    damage: Callable[[Path], object], named: str,
) -> None:  # fmt: skip
    damage(bundle_folder(store))
    rest = ("--demo", "--out", tmp_path / "out.csv") if command == "price" else ()
    assert run((command, "--model", MODEL, "--store", store, "--development", *rest)) == 5
    caught = capsys.readouterr()
    assert named in caught.err
    assert caught.out == ""
    assert not (tmp_path / "out.csv").exists()


def test_missing_bundle_ledger_model_and_store(store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    inspect = ("inspect", "--development", "--store", store)
    assert run((*inspect, "--model", MODEL, "--channel", "challenger")) == 6
    assert run((*inspect, "--model", "other")) == 6
    assert run((*inspect, "--model", "No such name!")) == 6
    assert run(("inspect", "--development", "--store", tmp_path / "nowhere", "--model", MODEL)) == 3
    event = store / "ledger" / MODEL / "00000002.json"
    event.write_bytes(event.read_bytes().replace(b"true", b"null"))
    assert run((*inspect, "--model", MODEL)) == 6
    err = capsys.readouterr().err
    assert "there is no challenger yet" in err
    assert f"ledger/{MODEL}/00000003.json: previous is" in err  # the chain shows that 2 was rewritten
    assert err.count("error: ") == 5


def test_bundle_that_isnt_there(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = bundle_folder(store)
    folder.rename(store / "elsewhere")
    assert run(("inspect", "--model", MODEL, "--store", store, "--development")) == 5
    assert folder.name in capsys.readouterr().err


def test_damaged_input_is_listed_and_nothing_is_written(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chain, path, now = write_market(tmp_path, small_market(6))
    edited(chain, lambda rows: (rows[0].update(strike=""), rows[7].update(bid="-3")))
    edited(path, lambda rows: rows[2].update(price="n/a"))
    assert price(made, "--chain", chain, "--path", path, "--now", now, "--out", tmp_path / "out.csv") == 3
    caught = capsys.readouterr()
    for text in ("row 1, column strike", "row 8, column bid: found -3.0", "row 3, column price: found 'n/a'"):
        assert text in caught.err
    assert caught.out == ""
    assert not (tmp_path / "out.csv").exists()
    chain.unlink()
    assert price(made, "--chain", chain, "--path", path, "--now", now, "--out", tmp_path / "out.csv") == 3
    assert "there is no such file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--out", "out.csv"), "--chain, --path, --now missing"),
        (("--chain", "a.csv", "--now", "b.csv", "--out", "out.csv"), "--path missing"),
        (("--demo", "--chain", "a.csv", "--out", "out.csv"), "--demo brings its own inputs"),
        (("--demo", "--out", "out.xlsx"), "must end in .csv, .csv.gz, .parquet"),
        (("--demo",), "--out"),
        (("--demo", "--out", "out.csv", "--rows", "-1"), "--rows"),
        (("--demo", "--out", "out.csv", "--channel", "beta"), "beta"),
        (("--demo", "--out", "out.csv", "--engine", "abacus"), "abacus"),
        (("--demo", "--out", "out.csv", "--precision", "fp4"), "fp4"),
        (("--demo", "--out", "out.csv", "--max-step-us", "0"), "isn't a number of microseconds above 0"),
    ],
)
def test_wrong_usage(made: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], message: str) -> None:
    with pytest.raises(SystemExit) as caught:
        price(made, *arguments)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def test_out_in_a_folder_that_isnt_there(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert price(made, "--demo", "--out", tmp_path / "none" / "out.csv") == 3
    assert "make it first" in capsys.readouterr().err


def test_bundle_without_a_demo(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = small_bundle(tmp_path / "bundle")
    store = FolderStore(tmp_path / "store")
    store_bundle(store, bundle)
    ledger = Ledger(store, MODEL)
    state = ledger.append(ledger.state(), "registered", version=1, bundle=bundle.sha256, by="test")
    ledger.append(state, "gated", version=1, bundle=bundle.sha256, by="test", details={"passed": True})
    arguments = ("--model", MODEL, "--channel", "challenger", "--store", tmp_path / "store", "--development")
    assert run(("price", *arguments, "--demo", "--out", tmp_path / "out.csv")) == 5
    assert "holds no demo; give --chain, --path and --now" in capsys.readouterr().err
    assert run(("inspect", *arguments)) == 0
    assert "small challenger: not released, version 1" in capsys.readouterr().out


# inspect and info.


def test_inspect_verifies_and_recomputes(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(("inspect", "--model", MODEL, "--store", made, "--development")) == 0
    out = capsys.readouterr().out
    for text in (
        bundle_folder(made).name, "window of 5 steps, 2 member(s)",
        f"{len(CONTRACT_FEATURES)} contract features: prior_volatility",
        "14d at moneyness 0, 45d", "member-1/head.onnx", "all 8 files have the size and sha256",
    ):  # fmt: skip
        assert text in out
    assert len(re.findall(r"golden (context|iv): largest difference \S+, tolerance 2e-06: holds", out)) == 2


def test_inspect_tells_broken_parity(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = small_bundle(tmp_path / "bundle", tolerances={"context": 1e-12, "iv": 1.0})
    store = FolderStore(tmp_path / "store")
    store_bundle(store, bundle)
    ledger = Ledger(store, MODEL)
    state = ledger.append(ledger.state(), "registered", version=1, bundle=bundle.sha256, by="test")
    ledger.append(state, "gated", version=1, bundle=bundle.sha256, by="test", details={"passed": True})
    arguments = ("--model", MODEL, "--channel", "challenger", "--store", tmp_path / "store", "--development")
    assert run(("inspect", *arguments)) == 8
    caught = capsys.readouterr()
    assert "golden context" in caught.out
    assert "BROKEN" in caught.out
    assert "golden parity is broken for context" in caught.err


def test_info_names_versions_and_reasons(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(("info",)) == 0
    out = capsys.readouterr().out
    for text in (f"numpy {np.__version__}", "cpu ", "engine ort: available", "engine null: available"):
        assert text in out
    monkeypatch.setattr(ort, "why_unavailable", lambda: "ONNX Runtime isn't installed")
    assert run(("info",)) == 0
    assert "engine ort: ONNX Runtime isn't installed" in capsys.readouterr().out
