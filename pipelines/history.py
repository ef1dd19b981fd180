"""Every decision ever taken about a model: who, when, why, what the gates said, which release it made.

In: the ledger, and the gate reports it names. Out: `History`, and its text of plain lines, or JSON with `json=true`.
Invariants: nothing is written, MLflow isn't asked; a broken chain is told with everything that can still be read, and
ends with the ledger's exit code; the verdict is the ledger's, a report that can't be read takes only its details away;
whatever people typed is shown harmless.

Run: python -m pipelines.history model=M [json=true]
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass

from pipelines.config import Operation
from pipelines.ledger_walk import walk
from pipelines.plain_text import HASH_SHOWN, printable, table
from pipelines.stored import stored_gate_report
from serving.blobstore import BlobStore, open_store
from serving.errors import LedgerError, StoreError
from serving.events import Event


@dataclass(frozen=True)
class HistoryLine:
    """One event; `release` is the number it made, `verdict` the gates', `came_from` the version a rollback left.

    `failing` and `not_asked` name gates of the report, None where it can't be read.
    """

    seq: int
    at: str
    by: str
    kind: str
    version: int
    release: int | None
    verdict: str | None
    approved_by: str | None
    gate_report: str | None
    reason: str
    bundle: str
    event_sha256: str
    came_from: int | None = None
    failing: tuple[str, ...] | None = None
    not_asked: tuple[str, ...] | None = None

    @property
    def version_shown(self) -> str:
        """The version it is about; of a rollback also the one it left."""
        return str(self.version) if self.came_from is None else f"{self.came_from} -> {self.version}"

    @property
    def gates_shown(self) -> str:
        """The verdict, and the gates that said no or weren't asked."""
        if self.verdict is None:
            return ""
        if self.failing is None or self.not_asked is None:
            return f"{self.verdict} (its report can't be read)"
        failing = f": {', '.join(self.failing)}" if self.failing else ""
        not_asked = f" (not asked: {', '.join(self.not_asked)})" if self.not_asked else ""
        return f"{self.verdict}{failing}{not_asked}"


@dataclass(frozen=True)
class History:
    """A model's events, oldest first; `problems` is empty if the chain is whole."""

    model: str
    store: str
    head: str
    lines: tuple[HistoryLine, ...]
    problems: tuple[str, ...]

    @property
    def message(self) -> str:
        """Everything as lines of text."""
        headings = ("event", "at", "what", "version", "release", "gates", "by", "reason", "sha256 of the event")
        rows = [
            (
                str(line.seq),
                line.at,
                line.kind,
                line.version_shown,
                "" if line.release is None else str(line.release),
                line.gates_shown,
                line.by + (f" (approved by {line.approved_by})" if line.approved_by else ""),
                line.reason,
                line.event_sha256[:HASH_SHOWN],
            )
            for line in self.lines
        ]
        return "\n".join([f"{self.model}: {len(rows)} events, {self.store}", *table(headings, rows), *self.verdict])

    @property
    def verdict(self) -> list[str]:
        """What is to be said of the chain."""
        if not self.problems:
            return [f"chain whole, each event names the sha256 of the one before it; head {self.head}"]
        return ["the chain is broken; the first break comes first:", *(f"  {printable(one)}" for one in self.problems)]

    @property
    def as_json(self) -> str:
        """The same for machines, on one line."""
        return json.dumps(asdict(self) | {"whole": not self.problems}, sort_keys=True, ensure_ascii=True)


def history(model: str, store: BlobStore) -> History:
    """Read the ledger to its end; LedgerError only if there is none."""
    found = walk(store, model)
    releases = {release.seq: release.number for release in found.state.releases}  # none past a break
    lines = [
        _line(store, event, sha256, releases.get(event.seq))
        for event, sha256 in zip(found.events, found.hashes, strict=True)
    ]
    head = found.hashes[-1] if found.hashes else "none"
    return History(model, repr(store), head, tuple(lines), found.problems)


def _line(store: BlobStore, event: Event, sha256: str, release: int | None) -> HistoryLine:
    verdict, failing, not_asked = None, None, None
    if event.kind == "gated":
        verdict = "passed" if event.details.get("passed") is True else "failed"
        failing, not_asked = _gates(store, event.details.get("report"))
    came_from = event.details.get("from") if event.kind == "rolled_back" else None
    report = event.details.get("report" if event.kind == "gated" else "gate_report")
    approved_by = event.details.get("approve_by")
    return HistoryLine(
        seq=event.seq, at=event.at, by=event.by, kind=event.kind, version=event.version, release=release,
        verdict=verdict, approved_by=None if approved_by is None else str(approved_by),
        gate_report=None if report is None else str(report), reason=event.reason, bundle=event.bundle,
        event_sha256=sha256, came_from=came_from if type(came_from) is int else None, failing=failing,
        not_asked=not_asked,
    )  # fmt: skip


def _gates(store: BlobStore, sha256: object) -> tuple[tuple[str, ...] | None, tuple[str, ...] | None]:
    """Names of the report's gates that said no, and of those that weren't asked."""
    try:
        outcomes = stored_gate_report(store, sha256)["outcomes"]
        failing = tuple(str(one["name"]) for one in outcomes if not one["passed"])
        return failing, tuple(str(one["name"]) for one in outcomes if one.get("asked") is False)
    except (StoreError, KeyError, TypeError):  # shown as such; pipelines.verify says what is wrong with it
        return None, None


def run(cfg: Operation) -> str:
    """All events of `model`; LedgerError, after they are shown, if the chain is broken."""
    found = history(cfg.model.name, open_store(cfg.storage.url))
    text = found.as_json if cfg.json else found.message
    if found.problems:
        sys.stdout.write(f"{text}\n")
        raise LedgerError(f"{found.model}: the chain is broken: {printable(found.problems[0])}")
    return text


if __name__ == "__main__":
    from pipelines.command import operation

    raise SystemExit(operation(__doc__, run))
