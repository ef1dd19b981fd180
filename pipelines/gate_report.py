"""The gate report: what a version was asked and what it answered, kept whether it passed or not.

Data in: outcomes of gates. Data out: `gate-reports/<sha256>.json`, canonical JSON named by its hash, which the `gated`
and `promoted` events and the signed channel name; and `<same sha256>.html`, rendered from the JSON alone.
Invariants: no time, user or place in it but the approver's name; figures are rounded to DIGITS significant ones; what
JSON can't hold (NaN, infinity) is null. Measured figures (latencies) differ from run to run, so reports are compared
by `same_verdict`: the same gates with the same settings, answered the same, about the same bundle and champion, with
the same approver, the same engines and precisions admitted; of a gate that says no also the same reason, whatever the
numbers in it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipelines.gate_context import GateOutcome
from serving.blobstore import BlobStore
from serving.canonical import canonical_json, is_sha256, parse_canonical, sha256_hex
from serving.errors import BlobMissingError, StoreError
from serving.ledger import State, Version
from serving.release import MAX_REPORT_BYTES, report_key

REPORT_FORMAT = 2
DIGITS = 6  # significant, of every figure: what lies beyond differs between processors
NUMBER = re.compile(r"(?<![\w.-])[-+]?\d+(\.\d+)?(e[-+]?\d+)?(?!\w)", re.ASCII)  # standing alone, not in a hash or name


@dataclass(frozen=True)
class Gated:
    """The outcomes of a run of the gates, and the report that stands: an earlier one if it says the same."""

    outcomes: tuple[GateOutcome, ...]
    report: bytes

    @property
    def sha256(self) -> str:
        """The report's name."""
        return sha256_hex(self.report)

    @property
    def not_asked(self) -> tuple[str, ...]:
        """Gates that were switched off or aren't for such a model."""
        return tuple(outcome.name for outcome in self.outcomes if not outcome.asked)


def html_key(sha256: str) -> str:
    """Where the page of a report lies in a store."""
    return f"gate-reports/{sha256}.html"


def gate_report(state: State, version: int, outcomes: Sequence[GateOutcome], *, approve_by: str | None = None) -> bytes:
    """Canonical JSON of the verdict; equal outcomes give equal bytes."""
    champion = state.champion
    return canonical_json(
        {
            "format": REPORT_FORMAT,
            "model": state.model,
            "version": version,
            "bundle": state.versions[version].bundle,
            "champion": {"version": champion.version, "bundle": champion.bundle} if champion else None,
            "approve_by": approve_by,
            "passed": all(outcome.passed for outcome in outcomes),
            "outcomes": [_outcome(outcome) for outcome in outcomes],
        }
    )


def _outcome(outcome: GateOutcome) -> dict[str, Any]:
    return {
        "name": outcome.name,
        "asked": outcome.asked,
        "passed": outcome.passed,
        "value": plain(outcome.value),
        "threshold": plain(outcome.threshold),
        "message": outcome.message,
        "settings": plain(outcome.settings),
        "figures": plain(outcome.figures),
    }


def plain(value: Any) -> Any:
    """JSON values, floats rounded to DIGITS significant digits, null for those that aren't finite."""
    if isinstance(value, Mapping):
        return {str(name): plain(inner) for name, inner in value.items()}
    if isinstance(value, str) or value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, Sequence):
        return [plain(inner) for inner in value]
    number = float(value)
    return float(f"{number:.{DIGITS}g}") if math.isfinite(number) else None


def same_verdict(one: bytes, other: bytes) -> bool:
    """Whether two reports ask and answer the same, and refuse for the same reasons, whatever the figures behind it."""
    return _verdict(parse_canonical(one)) == _verdict(parse_canonical(other))


def _verdict(report: Mapping[str, Any]) -> dict[str, Any]:
    kept = ("name", "asked", "passed", "settings")
    outcomes = [
        {name: outcome.get(name) for name in kept}
        | {"admitted": outcome["figures"].get("admitted")}
        | ({} if outcome["passed"] else {"reason": NUMBER.sub("#", outcome["message"])})
        for outcome in report["outcomes"]
    ]
    return {**report, "outcomes": outcomes}


def earlier_report(store: BlobStore, known: Version) -> bytes | None:
    """The report of the version's latest gates, if it is there, undamaged and of this format."""
    sha256 = known.gated.details.get("report") if known.gated is not None else None
    if not is_sha256(sha256):
        return None
    try:
        raw = store.get(report_key(str(sha256)), max_bytes=MAX_REPORT_BYTES)
    except BlobMissingError:
        return None
    try:
        report = parse_canonical(raw)
    except ValueError:  # damaged: the report is made anew, and storing it says so
        return None
    usable = sha256_hex(raw) == sha256 and isinstance(report, dict) and report.get("format") == REPORT_FORMAT
    return raw if usable else None


def store_report(store: BlobStore, gated: Gated) -> str:
    """Write report and page where they aren't yet, and return the report's sha256."""
    key = report_key(gated.sha256)
    if not store.put_if_absent(key, gated.report) and store.get(key, max_bytes=MAX_REPORT_BYTES) != gated.report:
        raise StoreError(f"{key}: the store holds other bytes; find out who changed it, then delete it")
    store.put_if_absent(html_key(gated.sha256), render(gated.report).encode("utf-8"))
    return gated.sha256


def render(report: bytes) -> str:
    """The page of a report's bytes, from them alone."""
    from pipelines.gate_page import page_of

    return page_of(parse_canonical(report), sha256_hex(report))
