"""make bench-host: what it judges by, and that a session that differs, or a stage that never ran, fails it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import host
from benchmarks.host_session import Bench, Session
from serving.errors import HostError
from serving.host.board import Histogram
from serving.host.records import ORDER, Kind, Records, new_records
from tests.serving.host.worlds import QUOTER, UNLIMITED, engine_of, limits_of, spec_of, stream

CALM = limits_of(**UNLIMITED | {"position_quantity": 1000.0})
HOPS = ("queue", "evaluate", host.WHOLE)


def hop(*latencies_ns: int) -> Histogram:
    from serving.host.board import layout
    from serving.host.status import slot_of

    counts = np.zeros(layout()["histogram_fields"]["counts"][2], np.uint64)
    for one in latencies_ns:
        counts[slot_of(one)] += np.uint64(1)
    return Histogram(len(latencies_ns), sum(latencies_ns), max(latencies_ns, default=0), counts)


def session(**changed: Any) -> Session:
    hops = {name: hop(1000, 2000, 3000) for name in HOPS}
    nothing = new_records(0, Kind.ORDER).view(ORDER)
    whole = {"orders": nothing, "fills": nothing, "signals": nothing, "board": {"hops": hops}, "said": ""} | changed
    return Session(**whole)


IDLE = {name: {"p50": 1.0, "p99": 2.5, "p99.9": 2.5} for name in HOPS}
FED = {"p50": 2.0, "p99": 2.75, "p99.9": 2.75}


def test_an_excess_is_ours_less_the_idle_loops() -> None:
    rows = host.session_rows([session()] * 3, [IDLE] * 3, [FED] * 3)
    found = {(row["case"], row["metric"]): row["value"] for row in rows}
    assert found[host.WHOLE, "p50"] == pytest.approx(2.0, rel=2e-3)
    assert found[host.WHOLE, "p99_excess"] == pytest.approx(found[host.WHOLE, "p99"] - 2.5)
    assert found[host.WHOLE, "p99_excess_fed"] == pytest.approx(found[host.WHOLE, "p99"] - 2.75)
    assert found["idle_loop", "p99"] == 2.5
    assert found["idle_loop_fed", "p99"] == 2.75


def test_a_stage_that_never_ran_fails_the_bench() -> None:
    hops = {name: hop(1000) for name in HOPS} | {"evaluate": hop()}
    with pytest.raises(HostError, match="'evaluate' was never timed"):
        host.session_rows([session(board={"hops": hops})], [IDLE], [FED])


def test_verdicts_say_what_was_not_reached() -> None:
    rows = [{"case": host.WHOLE, "subject": "strikeforge", "metric": "p50", "value": 7.0},
            {"case": "ring", "subject": "strikeforge", "metric": "throughput", "value": 30.0}]  # fmt: skip
    slow, ring = host.verdicts(rows)
    assert "**not reached**" in slow
    assert "not reached" not in ring


@pytest.fixture
def replayed(monkeypatch: pytest.MonkeyPatch) -> tuple[Bench, Session]:
    """A bench whose reference is the slow loop on a drawn market, and a session that it agrees with."""
    from serving.host.reference.loop import ReferenceLoop
    from tests.serving.host.chains import table

    records = stream(3, 400, garbage=0.0, controls=0.0)

    def reference(_bench: Bench, _engine: object, *, without: tuple[str, ...] = ()) -> ReferenceLoop:
        return ReferenceLoop(engine_of(), spec_of(), table(), CALM, QUOTER, without=without)

    class Host:
        class bundle:  # noqa: N801
            directory = Path()

    class Ticks:
        def __init__(self, records: Records) -> None:
            self.records = records

    monkeypatch.setattr(host, "reference", reference)
    monkeypatch.setattr(host, "load_bundle", lambda _: None)
    monkeypatch.setattr(host, "open_engine", lambda *_: None)
    bench = Bench(Host(), None, Ticks(records), "fp32")  # type: ignore[arg-type]
    left = reference(bench, None).process(records)
    return bench, session(**{name: left[left["kind"] == kind] for name, kind in host.KINDS.items()})


@pytest.mark.parametrize("kind", ["orders", "fills"])
def test_a_session_that_differs_in_one_byte_fails_the_bench(replayed: tuple[Bench, Session], kind: str) -> None:
    bench, good = replayed
    bad = getattr(good, kind).copy()
    assert len(bad)
    bad["values"][-1, 1] += 1e-9
    with pytest.raises(HostError, match=f"session 2: {kind} differ.* record {len(bad) - 1}"):
        host.checked(bench, [good, replace(good, **{kind: bad})])


def test_a_stage_whose_absence_nobody_would_notice_fails_the_bench(
    replayed: tuple[Bench, Session], monkeypatch: pytest.MonkeyPatch
) -> None:
    bench, good = replayed
    monkeypatch.setattr(host, "STAGES", ("book", "valuation"))
    assert "equal to the slow reference's" in host.checked(bench, [good])[0]
    whole = host.reference
    monkeypatch.setattr(host, "reference", lambda bench, engine, without=(): whole(bench, engine))
    with pytest.raises(HostError, match="without 'book'"):
        host.checked(bench, [good])
