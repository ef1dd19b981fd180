"""What happens around a running loop: its thread, its feed, its release's expiry, what operators ask, when it ends.

In: the loop and what it was made of. Out: `Ended`, why and how the loop ended. Invariants: the loop's thread runs
native code alone, and nothing here is waited for by it; whatever ends a run ends it through `stop`, which cancels all
that works; a feed that dies ends the run, because a loop without records doesn't even know that time passes.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from serving import native
from serving.errors import HostError
from serving.events import TIME_FORMAT
from serving.host.config_types import HostConfig
from serving.host.control import Command
from serving.host.feed_process import FeedProcess, said
from serving.host.host_log import HostLog
from serving.host.limits import changed_limits, read_numbered_limits
from serving.host.loop import ControlCode, HotLoop
from serving.host.placement import place_loop
from serving.host.ring import RingReader
from serving.host.status import STATES, read_status

TICK_S = 0.2  # between two looks at the board, the feed and the clock
START_S = 10.0
HALTED = STATES.index("halted")
FUTURE_NS = 60_000_000_000  # what lines refuse as well (serving/native/feed/receiver.cpp)
EVERYTHING_READ_S = 10.0  # after a replay ended: so long without a record and the rest is called lost


@dataclass(frozen=True)
class Ended:
    """Why a run ended; `error` where it shouldn't have."""

    why: str
    error: str | None = None


class Supervisor:
    """Of one run."""

    def __init__(self, config: HostConfig, loop: HotLoop, log: HostLog, expires_at: str | None) -> None:
        self._config, self._loop, self._log = config, loop, log
        self._expires = None if expires_at is None else datetime.strptime(expires_at, TIME_FORMAT).replace(tzinfo=UTC)
        self._thread = threading.Thread(target=self._run, name="loop")
        self._done = threading.Event()
        self._failure: BaseException | None = None
        self._stopped_by = ""
        self._seen: tuple[float, float] = (0, 0)  # state and why, as numbers: ACTIVE, none

    def commands(self) -> Mapping[str, Command]:
        """What the control socket may ask."""
        return {
            "kill": self._asking(ControlCode.KILL),
            "reduce": self._asking(ControlCode.REDUCE),
            "resume": self._asking(ControlCode.RESUME),
            "anomaly_score": self._asking(ControlCode.ANOMALY_SCORE, value=True),
            "limits_reload": Command(self._reload_limits),
            "status": Command(self._tell, quiet=True),
            "stop": Command(self._stop_asked),
        }

    def start(self) -> None:
        """Start the loop's thread; it reads from now on, or HostError says why it doesn't."""
        self._thread.start()
        deadline = time.monotonic() + START_S
        while not self._loop.board.number("running"):
            if self._done.wait(0.001):
                break
            if time.monotonic() > deadline:
                self.close()
                raise HostError(f"the loop's thread didn't begin within {START_S:g} s; is its core free?")
        self._raise_failure()

    def watch(self, feed: FeedProcess | None, ticks: RingReader) -> Ended:
        """Until the loop has ended. `ticks` stands where the loop began, so what is behind it is what the loop reads.

        It was opened before: the native core counts allocations from the loop's start on.
        """
        ended: Ended | None = None
        expired = silent = False
        idle_s, silence_s = self._config.loop.idle_exit_s, self._config.feed.silence_s
        records, changed = -1, time.monotonic()
        number = self._loop.board.number  # not the whole board each time: its histograms would fill the caches
        while not self._done.wait(TICK_S):
            self._tell_state()
            now = time.monotonic()
            if number("records") != records:
                records, changed, silent = int(number("records")), now, False
            if silence_s is not None and not silent and records > 0 and now - changed >= silence_s:
                silent = True  # event time stands still, so nothing that the loop itself decides would cancel them
                self._log.say("the feed is silent: all working orders are cancelled", {"silence_s": silence_s})
                self._loop.ask(ControlCode.CANCEL_ALL)
            self._halt_off_the_clock()
            if self._expires is not None and not expired and datetime.now(UTC) >= self._expires:
                expired = True
                self._log.say("the model's release has expired: every new order is refused from now on")
                self._loop.ask(ControlCode.MODEL_EXPIRED, 1.0)
            if ended is not None:
                continue
            code = feed.ended() if feed is not None else None
            if code is not None and (code != 0 or self._config.feed.kind != "replay"):
                ended = Ended(
                    "the feed ended", f"the feed {said(code)}; the loop was stopped, what worked was cancelled"
                )
                self.stop(ended.error or "")
            elif code == 0:
                unread = ticks.behind - records - int(number("lost"))
                if unread <= 0 or now - changed > EVERYTHING_READ_S:
                    late = f"{unread:,} records of the replay were never read" if unread > 0 else None
                    ended = Ended("the replay ended", late)
                    self.stop(ended.why)
            elif idle_s is not None and now - changed >= idle_s:
                ended = Ended(f"no record came for {idle_s:g} s")
                self.stop(ended.why)
        self._thread.join()
        self._tell_state()
        self._raise_failure()
        return ended or Ended(self._stopped_by or "a signal asked for it")

    def _halt_off_the_clock(self) -> None:
        """Event time against the wall clock's; a resume doesn't help while it stays off.

        It never goes back. Where one record took it far ahead it stands there: steps don't close, the book never grows
        old. Far behind (`lag_s`, only where asked for: a replay's and a late start's times are old) a line is late as a
        whole, or the ring is: what the gate compares with event time looks fresh.
        """
        event_ns, lag_s = int(self._loop.board.number("event_ns")), self._config.feed.lag_s
        if self._seen[0] == HALTED or event_ns <= 0:  # 0: there was no event yet
            return
        ahead_ns = event_ns - time.time_ns()
        if ahead_ns > FUTURE_NS:
            told = {"event_ahead_s": ahead_ns // 1_000_000_000, "remedy": "mend what writes the tick ring, start again"}
            self._log.say("event time is in the future, and stands: killed", told)
        elif lag_s is not None and -ahead_ns > lag_s * 1e9:
            self._log.say("event time is too far behind: killed", {"event_behind_s": -ahead_ns / 1e9, "lag_s": lag_s})
        else:
            return
        self._loop.ask(ControlCode.KILL)

    def stop(self, why: str) -> None:
        """Ask the loop to end; everything that works is cancelled."""
        self._stopped_by = self._stopped_by or why
        self._loop.stop()

    def close(self) -> None:
        """Whatever happened, the loop's thread has ended: nothing that it uses is taken away before."""
        self.stop("the run failed")
        self._thread.join()

    def _run(self) -> None:
        try:
            place_loop(self._config.loop)
            self._loop.run(sleep=self._config.loop.poll == "sleep", halt_folder=self._config.directory)
        except BaseException as error:  # noqa: BLE001  told by the thread that waits for this one
            self._failure = error
        finally:
            self._done.set()

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _tell_state(self) -> None:
        board = self._loop.board
        now = (board.number("state"), board.number("why"))
        if now != (board.number("state"), board.number("why")):
            return  # the loop told another meanwhile, and these two may not belong together; the next look sees both
        if now != self._seen:
            self._seen = now
            core = native.core()
            words = {"state": core.state_name(now[0]).lower(), "why": core.reason_name(now[1])}
            self._log.say("state", words | {"profit": board.number("profit")})

    def _asking(self, code: ControlCode, *, value: bool = False) -> Command:
        def act(given: float) -> Mapping[str, Any]:
            if code == ControlCode.RESUME and self._loop.board.number("halt_file"):
                raise HostError(f"{self._config.halt_file} is there: remove it, then resume")
            self._loop.ask(code, given)
            return {"told": code.name.lower()}

        return Command(act, value=value)

    def _reload_limits(self, _: float) -> Mapping[str, Any]:
        risk = self._config.risk
        before = self._loop.limits
        limits, serial = read_numbered_limits(
            risk.limits, risk.public_key, usable=lambda limits: changed_limits(before, limits)
        )
        self._loop.set_limits(limits, serial)
        changed = {name: f"{old} -> {new}" for name, (old, new) in changed_limits(before, limits).items()}
        return {"serial": serial, "changed": changed}

    def _tell(self, _: float) -> Mapping[str, Any]:
        status = read_status(self._loop.board)
        told: dict[str, Any] = {"state": status.state, "why": status.why, "halt_file": status.halt_file}
        return told | {"profit": status.gauges["profit"]} | dict(status.counters)

    def _stop_asked(self, _: float) -> Mapping[str, Any]:
        self.stop("the control socket asked for it")
        return {"told": "stop"}
