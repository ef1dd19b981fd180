"""Planted defects: a gate without one of its checks or breakers is caught, by that check's cases and by the streams.

Each defect is a change of the text of risk.cpp or risk_checks.hpp, compiled with tests/serving/host/risk_shim.cpp.
"""

from __future__ import annotations

import random
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.serving.host.risk_cases import CASES
from tests.serving.host.risk_gates import REFUSALS, SOURCES, Desk, compiled_gate, limits_with
from tests.serving.host.risk_oracle import drive

STREAMS = 250  # enough for the rarest reason several times over (test_risk_streams.py counts them)

# The checks after `malformed` read the contract: without it they need at least that there is one.
READABLE = "{Reason::malformed, [](const RiskGate&, const Question& asked) { return !asked.contract; }},"

# What else keeps orders from leaving, or brings them back: the line, and what a careless hand would leave of it.
BREAKERS = {
    "kill_switch": ("if (kill_ && kill_->load(std::memory_order_acquire)) halt", "if (false) halt"),
    "loss": ("if (!(profit_ > -limits_.loss_money)) return", "if (false) return"),
    "drawdown": ("if (!(best_profit_ - profit_ < limits_.drawdown_money)) reduce(Reason::drawdown);", ""),
    "best_profit": ("best_profit_ = std::max(best_profit_, profit_);", ""),
    "market_move": ("    watch_move(market);\n", ""),
    "previous_reference": ("!moved(reference_) && !moved(previous_)", "!moved(reference_)"),
    "end_of_pause": ("&& market.event_ns >= pause_end_ns_", ""),
    "withdrawal": ("    withdraw(market, contracts);\n", ""),
    "lasting_reasons": ("if (lasts(why) > lasts(why_)) why_ = why;", "why_ = why;"),
    "reject_burst": ("if (!(static_cast<double>(in_a_row_) < limits_.reject_burst_count))", "if (false)"),
    "halt_cancels": ("    why_ = why;\n    cancel_all(market, contracts);", "    why_ = why;"),
    "halted_stays": ("if (state_ == State::halted) return;\n    state_ = State::reducing;", "state_ = State::reducing;"),  # noqa: E501
    "replacement_cancels": ("if (asked.replaces() && asked.contract) cancel", "if (false) cancel"),
    "acceptance_resets": ("    in_a_row_ = 0;\n    send(", "    send("),
    "resume_forgets": ("    best_profit_ = profit_;\n", ""),
    "what_works": ("working += order->price * order->quantity;", ";"),
    "what_fills_too": ("if (change > 0 ? moved > 0 : moved < 0) pending += moved;", ""),
    "the_replaced_too": ("if (!order->id || order == asked.working) continue;", "if (!order->id) continue;"),
    "the_replaced": ("if (order->id && order != asked.working)", "if (order->id)"),
    "last_fair_value": ("return is_known(contracts[place].fair) ? contracts[place].fair : fair_[place];", "return 0;"),
}  # fmt: skip


def row_of(reason: str) -> str:
    return f"        {{Reason::{reason}, {reason}}},\n"


def without(line: str, instead: str = "") -> Callable[[str], str]:
    """A change of the one place where `line` stands; and rows may be missing."""
    texts = [(SOURCES / "host" / name).read_text() for name in ("risk.cpp", "risk_checks.hpp")]
    assert sum(text.count(line) for text in texts) == 1, f"not once: {line!r}"

    def change(text: str) -> str:
        return text.replace(line, instead).replace("static_assert(complete());", "")

    return change


def is_caught_by_streams(core: Any) -> bool:
    for seed in range(STREAMS):
        try:
            drive(core, random.Random(seed).choice, steps=200)
        except AssertionError:
            return True
    return False


def is_caught_by_cases(core: Any, reason: str) -> bool:
    for case in CASES:
        if case.reason == reason:
            try:
                assert case.beyond(Desk(core, limits_with(**case.limits))) == reason
            except AssertionError:
                return True
    return False


def test_the_gate_compiled_here_is_sound(tmp_path: Path) -> None:
    """What the defects are planted into passes itself."""
    core = compiled_gate(lambda text: text + "\n", tmp_path)
    assert not any(is_caught_by_cases(core, reason) for reason in REFUSALS)
    assert not is_caught_by_streams(core)


@pytest.mark.slow
@pytest.mark.parametrize("reason", REFUSALS)
def test_a_missing_check_is_caught(reason: str, tmp_path: Path) -> None:
    core = compiled_gate(without(row_of(reason), READABLE if reason == "malformed" else ""), tmp_path)
    assert is_caught_by_cases(core, reason)
    assert is_caught_by_streams(core)


@pytest.mark.slow
@pytest.mark.parametrize("breaker", BREAKERS)
def test_a_missing_breaker_is_caught(breaker: str, tmp_path: Path) -> None:
    assert is_caught_by_streams(compiled_gate(without(*BREAKERS[breaker]), tmp_path))


@pytest.mark.slow
def test_a_missing_row_does_not_compile(tmp_path: Path) -> None:
    row = row_of("notional")
    with pytest.raises(subprocess.CalledProcessError) as refused:
        compiled_gate(lambda text: text.replace(row, ""), tmp_path)
    assert "complete()" in refused.value.stderr
