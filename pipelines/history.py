"""Every decision ever taken about a model: who, when, why, what the gates said, which release it made.

In: the ledger. Out: `History`, and its text of plain lines, or JSON with `json=true`. Invariants: nothing is written,
MLflow isn't asked; a broken chain is told with everything that can still be read, and ends with the ledger's exit
code; whatever people typed is shown harmless.

Run: python -m pipelines.history model=M [json=true]
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass

from pipelines.config import Operation
from pipelines.ledger_walk import walk
from pipelines.plain_text import HASH_SHOWN, printable, table
from serving.blobstore import BlobStore, open_store
from serving.errors import LedgerError
from serving.events import Event


@dataclass(frozen=True)
class HistoryLine:
    """One event; `release` is the release number it made, `verdict` the gates', `details` names what it rests on."""

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
        headings = ("event", "at", "what", "version", "release", "gates", "by", "reason", "sha256")
        rows = [
            (
                str(line.seq),
                line.at,
                line.kind,
                str(line.version),
                "" if line.release is None else str(line.release),
                line.verdict or "",
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
        _line(event, sha256, releases.get(event.seq)) for event, sha256 in zip(found.events, found.hashes, strict=True)
    ]
    head = found.hashes[-1] if found.hashes else "none"
    return History(model, repr(store), head, tuple(lines), found.problems)


def _line(event: Event, sha256: str, release: int | None) -> HistoryLine:
    verdict = None
    if event.kind == "gated":
        verdict = "passed" if event.details.get("passed") is True else "failed"
    report = event.details.get("report" if event.kind == "gated" else "gate_report")
    approved_by = event.details.get("approve_by")
    return HistoryLine(
        seq=event.seq, at=event.at, by=event.by, kind=event.kind, version=event.version, release=release,
        verdict=verdict, approved_by=None if approved_by is None else str(approved_by),
        gate_report=None if report is None else str(report), reason=event.reason, bundle=event.bundle,
        event_sha256=sha256,
    )  # fmt: skip


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
