"""The loop decides by the records alone: twice the same, in pieces, through rings, whatever else goes on around it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from serving import native
from serving.engine import open_engine
from serving.errors import ConfigError, EngineError, HostError
from serving.host.config_types import FixedWidth
from serving.host.contracts import ContractTable
from serving.host.loop import ControlCode, HotLoop, SignalCode, loop_isa, tick_spec_of
from serving.host.records import ORDER, RECORD, SIGNAL, Kind, Records
from serving.host.reference.compare import without_times
from serving.host.tick_features import TickSpec, tick_rows
from tests.serving.host import worlds
from tests.serving.host.chains import table
from tests.serving.host.live import Live
from tests.serving.host.worlds import (
    HAS_ASK,
    HAS_BID,
    QUOTER,
    START_NS,
    STEP_NS,
    engine_of,
    limits_of,
    record,
    records_of,
    spec_of,
    stream,
)

EVENTS = 1500


def loop_of(strategy: FixedWidth | None = QUOTER, **changed: Any) -> HotLoop:
    settings: dict[str, Any] = {"engine": engine_of(), "limits": limits_of()} | changed
    return HotLoop(settings.pop("engine"), spec_of(), table(), settings.pop("limits"), strategy, **settings)


def of_kind(records: Records, kind: Kind) -> Records:
    return records[records["kind"] == kind]


@pytest.mark.parametrize("seed", range(3))
def test_the_same_records_give_the_same_bytes(seed: int) -> None:
    records = stream(seed, EVENTS)
    once, again = loop_of().process(records), loop_of().process(records)
    assert once.tobytes() == again.tobytes()
    assert {Kind.ORDER, Kind.FILL, Kind.SIGNAL} <= set(once["kind"].tolist())


@pytest.mark.parametrize("seed", range(3))
def test_in_pieces_as_in_one(seed: int) -> None:
    records = stream(seed, EVENTS)
    loop, rng = loop_of(fair_values_every_ns=STEP_NS), np.random.default_rng(seed)
    cuts = np.sort(rng.integers(0, len(records), 40))
    pieces = [loop.process(piece) for piece in np.split(records, cuts)]
    assert np.concatenate(pieces).tobytes() == loop_of(fair_values_every_ns=STEP_NS).process(records).tobytes()


@pytest.mark.parametrize("semantics", ["window", "stateful"])
@pytest.mark.parametrize("sleep", [False, True])
def test_rings_give_what_memory_gives(tmp_path: Path, semantics: str, sleep: bool) -> None:
    """All but the two monotonic times; the order ring numbers what it holds, as memory does."""
    records = stream(5, EVENTS)
    expected = without_times(loop_of(engine=engine_of("pricing_lstm", semantics)).process(records))
    live = Live(tmp_path, engine=engine_of("pricing_lstm", semantics))
    with live.running(sleep=sleep, idle_exit_s=0.2):
        live.write(records)
    assert live.ends == ["idle"]
    assert live.read_all() == len(records)
    for name, kind in (("orders", Kind.ORDER), ("fills", Kind.FILL), ("signals", Kind.SIGNAL)):
        assert live.left(name).tobytes() == of_kind(expected, kind).tobytes(), name


def test_the_sweep_never_changes_what_leaves() -> None:
    records = stream(6, EVENTS)
    swept, plain = loop_of(fair_values_every_ns=STEP_NS), loop_of(fair_values_every_ns=STEP_NS)
    left = swept.process(records, sweep=True)
    assert left.tobytes() == plain.process(records).tobytes()
    assert swept.board.number("sweeps") > 10
    assert plain.board.number("sweeps") == 0


def test_the_null_strategy_values_everything_and_sends_nothing() -> None:
    loop = loop_of(None)
    left = loop.process(stream(7, EVENTS, garbage=0.0, controls=0.0))
    assert set(left["kind"].tolist()) <= {Kind.SIGNAL}
    assert loop.board.number("orders") == loop.board.number("cancels") == 0
    assert np.isfinite(loop.board.array("fair")).all()


def test_another_librarys_arithmetic_doesnt_leak_in() -> None:
    """Fair values below 2e-308 come out the same on a thread that flushes them, which keeps its own setting."""
    torch = pytest.importorskip("torch")
    records = records_of([two_sided(START_NS, 99.99, 100.01)])

    def told(strike: Any) -> Records:
        one = np.ones(len(strike))
        contracts = ContractTable(strike, 0.02 * one, one, one, one, 0.4 * one, len(strike), 100.0)
        return HotLoop(engine_of(), spec_of(), contracts, limits_of(), fair_values_every_ns=1).process(records)

    # So far out all contracts have one volatility, the features being clipped; 37 to 39 standard deviations off.
    volatility = told(np.array([500.0, 900.0])).view(SIGNAL)["value"][:, 2]
    assert volatility[0] == volatility[1]
    far = 100.0 * np.exp(np.linspace(37, 39, 60) * volatility[0] * 0.02**0.5)
    expected = told(far)
    fair = expected.view(SIGNAL)["value"][:, 0]
    assert ((fair > 0) & (fair < np.finfo(float).tiny)).any()
    if not torch.set_flush_denormal(True):
        pytest.skip("this CPU has no such setting")
    try:
        found = told(far)
        assert float(torch.tensor([1e-308], dtype=torch.float64) / 4) == 0.0
    finally:
        torch.set_flush_denormal(False)
    assert found.tobytes() == expected.tobytes()


def two_sided(event_ns: int, bid: float, ask: float) -> bytes:
    return record(event_ns, Kind.QUOTE, HAS_BID | HAS_ASK, (bid, 2.0, ask, 3.0))


def test_what_is_told_is_what_the_engine_says() -> None:
    """Steps that close are committed with the row they closed with: the same engine, fed from Python, agrees."""
    rng = np.random.default_rng(9)
    times = START_NS + np.cumsum(rng.integers(5_000_000, 60_000_000, 400))
    mids = 100 + np.cumsum(rng.normal(0, 0.02, 400)).round(2)
    records = records_of([two_sided(int(t), m - 0.01, m + 0.01) for t, m in zip(times, mids, strict=True)])
    loop = loop_of(None, fair_values_every_ns=1)
    told = loop.process(records).view(SIGNAL)
    rows, engine, spec = tick_rows(records, STEP_NS, open_rows=True), engine_of(), spec_of()
    assert loop.board.number("advances") == len(rows.closed) > 50
    context, x = np.zeros(engine.info().context_size, np.float32), np.zeros(spec.padded_columns, np.float32)
    volatilities = told["value"][:, 2].reshape(len(records), -1)
    closing = dict(zip(rows.closed_by.tolist(), rows.closed, strict=True))
    contracts = table()
    for event, row in enumerate(rows.open):
        if event in closing:
            x[: len(row)] = spec.step_scaler(closing[event])
            engine.advance(x)
        x[: len(row)] = spec.step_scaler(row)
        engine.evaluate(x, context)
        spot = rows.open_mid[event]
        expected = head_of(engine, spec, contracts, context, spot)
        assert np.array_equal(volatilities[event].astype(np.float32), expected)


def head_of(engine: Any, spec: TickSpec, contracts: ContractTable, context: Any, spot: float) -> Any:
    """Volatilities of the quoted contracts; NumPy's logarithm, so equal where rounding to float forgives an ulp."""
    first = slice(0, contracts.quoted)
    root, forward = np.sqrt(contracts.tau_years[first]), contracts.carry[first] * spot
    m = np.clip(np.log(contracts.strike[first] / forward) / root, -1, 1)
    move = np.log(spot / contracts.reference_spot) / root
    last, right = contracts.last_volatility[first], contracts.right[first]
    known = np.stack([last, root, np.ones_like(root), m, m * m, move, move * m, right], axis=1)
    rows = np.zeros((contracts.quoted, spec.padded_contract_columns), np.float32)
    rows[:, : known.shape[1]] = spec.contract_scaler(known)
    out = np.zeros(contracts.quoted, np.float32)
    engine.head(context, rows, out)
    return out


def test_heartbeats_close_steps_and_keep_values() -> None:
    quotes = records_of([two_sided(START_NS, 99.99, 100.01), record(START_NS + 3 * STEP_NS, Kind.HEARTBEAT)])
    loop = loop_of()
    loop.process(quotes[:1])
    before = loop.board.array("fair")
    loop.process(quotes[1:])
    assert loop.board.number("advances") == 1
    assert np.array_equal(loop.board.array("fair"), before)
    assert loop.board.number("event_ns") == START_NS + 3 * STEP_NS


def test_orders_are_numbered_and_carry_their_event() -> None:
    left = of_kind(loop_of().process(stream(10, EVENTS)), Kind.ORDER).view(ORDER)
    assert left["sequence"].tolist() == list(range(1, len(left) + 1))
    assert (np.diff(left["event_ns"]) >= 0).all()
    assert set(left["instrument"].tolist()) <= set(range(1, table().quoted + 1))


def test_holes_in_the_sequence_are_counted() -> None:
    records = stream(11, 200, garbage=0.0, controls=0.0)
    loop = loop_of()
    loop.process(np.delete(records, [10, 11, 50]))
    assert loop.board.number("gaps") == 3


def test_a_spec_that_doesnt_fit_the_engine_is_refused() -> None:
    data = spec_of().to_json() | {"padded_columns": 64, "window": 7}
    other = TickSpec.from_json(data)
    with pytest.raises(HostError, match=r"\(F\): the engine has 48, the spec says 64; .*\(T\): the engine has 6"):
        HotLoop(engine_of(), other, table(), limits_of())


def test_more_than_64_quoted_are_refused() -> None:
    whole = table()
    columns = (whole.strike, whole.tau_years, whole.carry, whole.discount, whole.right, whole.last_volatility)
    with pytest.raises(ConfigError, match="quoted: must be 1 to 64, found 65"):
        ContractTable(*columns, 65, 100.0)


def bundle_that_says(feature_spec: dict[str, Any]) -> Any:
    """What `tick_spec_of` looks at."""
    return SimpleNamespace(sha256="ab" * 32, manifest=SimpleNamespace(feature_spec=feature_spec))


def test_a_bundle_that_doesnt_read_ticks_is_refused() -> None:
    with pytest.raises(HostError, match="of kind 'snapshot', the loop needs 'tick'"):
        tick_spec_of(bundle_that_says({"window": 5, "anchors": []}))
    assert tick_spec_of(bundle_that_says(spec_of().to_json())) == spec_of()


def test_process_and_run_are_for_their_own_loops(tmp_path: Path) -> None:
    with pytest.raises(HostError, match="no rings"):
        loop_of().run()
    live = Live(tmp_path)
    with pytest.raises(HostError, match="has rings"):
        live.loop.process(np.zeros(1, RECORD))


def test_signal_codes_are_the_cores() -> None:
    core = native.core()
    for ours, theirs in ((SignalCode, core.SIGNAL_CODES), (ControlCode, core.CONTROL_CODES)):
        assert {code.name: int(code) for code in ours} == theirs


def test_the_loops_engine_leaves_amx_asleep() -> None:
    """What the loop's engine runs is what this CPU has, but for AMX; other engines aren't told what to run."""
    core = native.core()
    best, chosen = core.choose_isa(), core.choose_isa(loop_isa())
    assert chosen == ("bf16" if best == "amx" else best)
    with pytest.raises(EngineError, match="picks its instruction sets itself"):
        open_engine(worlds._bundle("pricing_lstm", "window"), "null", isa="avx2")
    opened = open_engine(worlds._bundle("pricing_lstm", "window"), "native", isa="portable")
    assert "portable" in opened.info().runtime
