"""The bench's host: a bundle of LSTM_A's shape on ticks, released, signed and pulled by the real parts, usable."""

from __future__ import annotations

import math
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import host_release
from benchmarks.host_bundle import LSTM_A, MODEL, STEP_NS, HostFiles, features, fitted_spec, make_host, padded
from serving.cli import main
from serving.engine import PRECISIONS
from serving.errors import DataError, EngineError, run_command
from serving.golden import GOLDEN, golden_answers
from serving.host import tick_features as ticks
from serving.host.assembly import assembled
from serving.host.config import read_config
from serving.host.contracts import listed_chain, read_contracts
from serving.host.limits import read_limits
from serving.host.loop import HotLoop
from serving.host.records import QUOTE, RECORD, Kind, new_records
from serving.host.reference.loop import ReferenceLoop
from serving.installed import open_installed
from serving.warm import open_verified_engine
from tests.serving.native.built import built_core
from tests.tiny_registry import tracking_uri

PRICE = 61_500.0


def recorded(seconds: int, per_second: int = 15) -> np.ndarray[Any, Any]:
    """Quotes and trades around a price that walks."""
    random = np.random.default_rng(3)
    count = seconds * per_second
    records = new_records(count).view(RECORD)
    records["event_ns"] = np.sort(random.integers(0, seconds * STEP_NS, count)) + 1_700_000_000 * STEP_NS
    records["sequence"] = np.arange(1, count + 1)
    records["kind"] = np.where(random.random(count) < 0.3, Kind.TRADE, Kind.QUOTE)
    mid = PRICE + np.round(random.normal(0, 1.0, count).cumsum(), 1)
    quotes = records.view(QUOTE)
    trades = records["kind"] == Kind.TRADE
    quotes["flags"] = np.where(trades, random.integers(1, 3, count), 3)
    quotes["bid"], quotes["ask"] = np.where(trades, mid, mid - 0.1), mid + 0.1  # a trade's price lies where a bid does
    quotes["bid_size"], quotes["ask_size"] = random.uniform(0.1, 5.0, (2, count))
    return records


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> HostFiles:
    """Made once: exporting and opening MLflow take seconds."""
    built_core()
    folder = tmp_path_factory.mktemp("host")
    tracking_uri(folder)  # an empty MLflow that this process may have made before
    return make_host(folder, recorded(70), "int8")


def command(*options: str) -> int:
    return run_command(main, options)


def of(host: HostFiles) -> tuple[str, ...]:
    return ("--model", MODEL, "--from", str(host.released.pulled))


@pytest.mark.slow
@pytest.mark.parametrize("precision", PRECISIONS["native"])
def test_the_pulled_release_answers_in_every_precision(host: HostFiles, precision: str) -> None:
    """Held to what its pack recorded, in LSTM_A's shape, stateful; volatilities near those last seen."""
    with ExitStack() as stack:
        installed = open_installed(host.released.pulled, MODEL, "champion", stack)
        bundle = installed.load()
        packs = installed.load_packs(bundle)
    assert bundle.sha256 == host.bundle.sha256
    warm = open_verified_engine(bundle, packs, "native", precision, probe=False)
    info = warm.engine.info()
    assert (info.window_steps, info.step_features, info.contract_features, info.context_size) == (50, 100, 16, 16)
    assert info.semantics == "stateful"
    golden = bundle.arrays(GOLDEN)
    found = golden_answers(golden, warm.engine)
    relative = found["iv"] / golden["contracts"][:, 0]
    assert (np.abs(np.log(relative)) < 0.5).all()
    assert found["iv"].std() > 0
    assert np.ptp(found["context"], axis=0).max() > 0.01  # the net isn't dead: windows differ in their contexts


@pytest.mark.slow
def test_inspect_tells_what_it_reads_and_price_refuses_it(
    host: HostFiles, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("inspect", *of(host), "--engine", "native", "--precision", "int8") == 0
    out = capsys.readouterr().out
    assert "window of 50 steps of 1000 ms, 1 member(s); reads ticks: strikeforge-host run answers with it" in out
    assert "40 step features in 100 columns: imbalance_1" in out
    assert "native_bf16" in out
    assert command("price", *of(host), "--demo", "--out", str(tmp_path / "out.csv")) == 5
    assert "of pricing_lstm reads ticks (feature_spec kind 'tick')" in capsys.readouterr().err
    assert command("inspect", *of(host), "--demo") == 3
    assert "use strikeforge-host run" in capsys.readouterr().err


@pytest.mark.slow
def test_the_files_around_it_are_usable(host: HostFiles) -> None:
    limits = read_limits(host.limits)
    chain = read_contracts(host.chain, PRICE)
    made = listed_chain(chain.reference_spot, quoted=8)
    assert 400 <= len(chain) <= 1000
    assert chain.quoted == made.quoted == 8
    assert np.abs(chain.strike[:8] / PRICE - 1).max() < 0.03
    assert limits.tick_money == pytest.approx(0.1)
    config = read_config(host.config)
    assert config.model.folder == host.released.pulled
    assert (config.model.precision, config.model.development, config.feed.kind) == ("int8", True, "external")
    assert (config.chain.file, config.risk.limits, config.directory) == (host.chain, host.limits, host.directory)
    assert config.chain.quoted == 8


def test_scalers_are_fitted_on_the_records() -> None:
    rows = ticks.tick_rows(recorded(70), STEP_NS)
    chain = listed_chain(PRICE, quoted=8)
    spec = fitted_spec(rows.closed, rows.closed_mid, chain, STEP_NS)
    assert spec.window == LSTM_A["window"]
    scaled = (rows.closed - np.array(spec.step_scaler.mean)) / np.array(spec.step_scaler.deviation)
    assert np.allclose(scaled.mean(axis=0), 0, atol=1e-6)
    moving = rows.closed.std(axis=0) > 1e-12 * np.abs(rows.closed).max(axis=0)
    assert np.allclose(scaled.std(axis=0)[moving], 1)
    assert moving.sum() > 30
    assert fitted_spec(rows.closed, rows.closed_mid, chain, STEP_NS) == spec
    table = padded(features(chain, PRICE), spec)
    assert table.shape == (len(chain), 16)
    assert not table[:, 8:].any()
    assert (table[:, 0] == chain.last_volatility.astype(np.float32)).all()  # unscaled: what the head corrects


def test_a_contract_s_features_by_hand() -> None:
    chain = listed_chain(PRICE, quoted=8)
    spot, place = 60_900.0, 1
    root = math.sqrt(chain.tau_years[place])
    m, move = math.log(chain.strike[place] / (chain.carry[place] * spot)) / root, math.log(spot / PRICE) / root
    by_hand = [chain.last_volatility[place], root, 1.0, m, m * m, move, move * m, -1.0]
    assert features(chain, spot)[place] == pytest.approx(by_hand, rel=1e-12)


def test_too_few_records_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="a bundle needs 54: give more"):
        make_host(tmp_path, recorded(20))


def test_a_precision_that_answers_otherwise_gets_no_pack(monkeypatch: pytest.MonkeyPatch) -> None:
    """Off by a vol point, or refused by the engine: measured, told, not admitted."""

    def answers(bundle: object, name: str) -> np.ndarray[Any, Any]:
        if name == "bf16":
            raise EngineError("no bf16 here")
        return np.full(500, 0.5 + (0.01 if name == "int8" else 0.0))

    monkeypatch.setattr(host_release, "_volatilities", answers)
    context: Any = type("Context", (), {"bundle": lambda self: None})()
    outcome = host_release.precision(context)
    assert outcome.figures["admitted"] == []
    assert outcome.figures["precisions"]["int8"]["ratio"] > 1.5
    assert outcome.figures["precisions"]["bf16"] == {"refused": "no bf16 here"}


@pytest.mark.slow
def test_the_loop_s_orders_on_it_equal_the_reference_s(host: HostFiles) -> None:
    """Bit for bit, in int8, and not vacuously: orders leave and fill, most events requote."""
    config, records = read_config(host.config), recorded(70)
    with ExitStack() as stack:
        parts = assembled(config, stack)
        made_of = (parts.engine, parts.spec, parts.contracts, parts.limits, config.strategy)
        left = HotLoop(*made_of).process(records)
        slow = ReferenceLoop(*made_of).process(records)
    kinds = left["kind"].tolist()
    assert kinds.count(Kind.ORDER) > len(records) / 2
    assert kinds.count(Kind.FILL) > 10
    assert left["kind"].tolist() == slow["kind"].tolist()
    for name in ("event_ns", "sequence", "instrument", "flags"):
        assert left[name].tolist() == slow[name].tolist()
    assert (without_clock(left) == without_clock(slow)).all()


def without_clock(records: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """What isn't measured with: of an order all but its last two fields, of others all but the last."""
    words = np.ascontiguousarray(records).view(np.uint64).reshape(-1, 7).copy()
    words[:, 6] = 0
    words[records["kind"] == Kind.ORDER, 5] = 0
    return words
