"""What makes one version another: configuration, data, features, measured errors, files, gates.

In: the ledger, both bundles' manifests, both latest gate reports; MLflow isn't asked. Out: `Diff`, and its text of
plain lines. Invariants: nothing is written; what wasn't recorded at registration is said to be so, not taken for equal;
what is cut short still shows where it differs.

Run: python -m pipelines.diff model=M a=VERSION b=VERSION
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from pipelines.config import Operation
from pipelines.plain_text import HASH_SHOWN, table
from pipelines.register import flatten
from pipelines.stored import stored_gate_report, stored_manifest
from serving.blobstore import BlobStore, open_store
from serving.canonical import is_sha256
from serving.errors import ConfigError, StoreError
from serving.ledger import Ledger, Version
from serving.manifest import Manifest

SHOWN = 60  # characters of a value
ABSENT = "-"
METRICS = "metrics"
UNITS = {METRICS: "iv_*: vol points; price_*: money per unit of the underlying; inside_spread: share of the rows"}
FIGURE_DIGITS = 6  # significant, of measured figures; configuration is shown to its last digit


@dataclass(frozen=True)
class Change:
    """A key whose values differ; of numbers `b` less `a`, and that in per cent of `a`."""

    key: str
    a: Any
    b: Any
    change: float | None = None
    percent: float | None = None


@dataclass(frozen=True)
class Part:
    """One kind of difference; `equal` counts the keys both have alike, `remark` says what couldn't be compared."""

    title: str
    changes: tuple[Change, ...]
    equal: int
    remark: str = ""


@dataclass(frozen=True)
class Diff:
    """Two versions of a model side by side."""

    model: str
    a: int
    b: int
    bundle_a: str
    bundle_b: str
    parts: tuple[Part, ...]

    @property
    def message(self) -> str:
        """Everything as lines of text."""
        same = "the same bundle" if self.bundle_a == self.bundle_b else "bundles"
        lines = [f"{self.model}: a = version {self.a}, b = version {self.b}; {same} {self.bundle_a[:HASH_SHOWN]}, "
                 f"{self.bundle_b[:HASH_SHOWN]}"]  # fmt: skip
        for part in self.parts:
            count = len(part.changes)
            lines += [
                "",
                f"{part.title}: {count} differ, {part.equal} alike" + (f"; {part.remark}" if part.remark else ""),
                *([f"  {UNITS[part.title]}"] if count and part.title in UNITS else []),
            ]
            if count:
                measured = any(change.change is not None for change in part.changes)
                headings = ("", "a", "b", "change", "%") if measured else ("", "a", "b")
                rows = [_cells(change)[: len(headings)] for change in part.changes]
                lines += [f"  {line}" for line in table(headings, rows)]
        return "\n".join(lines)

    def part(self, title: str) -> Part:
        """The part of that title."""
        return next(part for part in self.parts if part.title == title)


def diff(model: str, a: int, b: int, store: BlobStore) -> Diff:
    """Compare two registered versions; LedgerError if one isn't, BundleError if the store's manifests are damaged."""
    state = Ledger(store, model).state()
    first, second = state.known(a), state.known(b)
    manifests = stored_manifest(store, first.bundle), stored_manifest(store, second.bundle)
    parts = (
        _recorded("configuration", first, second, "config"),
        _origin(first, second),
        _recorded("dates", first, second, "dates"),
        _metrics(first, second),
        _part("features", *(dict(manifest.feature_spec) for manifest in manifests)),
        _part("net", *({"model_config": dict(manifest.model_config), "semantics": manifest.semantics,
                        "members": len(manifest.members), "tolerances": dict(manifest.tolerances)}
                       for manifest in manifests)),
        _part("files (bytes)", *(_files(manifest) for manifest in manifests)),
        _gates(store, first, second),
    )  # fmt: skip
    return Diff(model, a, b, first.bundle, second.bundle, parts)


def _recorded(title: str, a: Version, b: Version, name: str) -> Part:
    """A mapping of the registered events' details."""
    values = [version.registered.details.get(name) for version in (a, b)]
    lacking = [str(version.version) for version, value in zip((a, b), values, strict=True) if not value]
    if len(lacking) == 2:
        return Part(title, (), 0, "not recorded of either")
    return _part(title, *(value or {} for value in values), remark=_unrecorded(lacking))


def _origin(a: Version, b: Version) -> Part:
    """Hashes, revisions and seeds of the lineage, and the exam's hash."""
    part = _recorded("origin", a, b, "lineage")
    exams = _part("exam", *({"exam": version.registered.details.get("exam")} for version in (a, b)))
    return replace(part, changes=part.changes + exams.changes, equal=part.equal + exams.equal)


def _unrecorded(lacking: list[str]) -> str:
    return f"not recorded of version {lacking[0]}" if lacking else ""


def _metrics(a: Version, b: Version) -> Part:
    """Errors on the test dates with their change; of one test set, or it is said that they can't be compared."""
    metrics = [version.registered.details.get("metrics") or {} for version in (a, b)]
    sets = [one.get("test_set") for one in metrics]
    remark = "" if sets[0] == sets[1] else "the test sets differ, so the change isn't one of the model alone"
    return _part(METRICS, *({"test": one.get("test")} for one in metrics), remark=remark, numbers=True)


def _files(manifest: Manifest) -> dict[str, Any]:
    """Size and hash of each file; the names have dots and slashes, so they aren't flattened further."""
    return {name: f"{entry.size} {entry.sha256[:HASH_SHOWN]}" for name, entry in manifest.files.items()}


def _gates(store: BlobStore, a: Version, b: Version) -> Part:
    """Verdict and figure of each gate in the latest reports."""
    outcomes, remarks = [], []
    for version in (a, b):
        told: dict[str, Any] = {}
        if version.gated is None:
            remarks.append(f"version {version.version} hasn't been gated")
        else:
            try:
                report = stored_gate_report(store, version.gated.details.get("report"))
                told = {one["name"]: _verdict(one) for one in report["outcomes"]}
                remarks.append(f"version {version.version} {_beside(report.get('champion'))}")
            except StoreError as error:
                remarks.append(f"version {version.version}: {error}")
        outcomes.append(told)
    return _part("gates", *outcomes, remark="; ".join(remarks))


def _verdict(outcome: Mapping[str, Any]) -> str:
    if outcome.get("asked") is False:
        return "not asked"
    value, threshold = (_number(outcome.get(name)) for name in ("value", "threshold"))
    limit = f" (limit {threshold})" if value and threshold else ""
    return ("passed" if outcome["passed"] else "FAILED") + (f" {value}" if value else "") + limit


def _number(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, int | float) and not isinstance(value, bool) else ""


def _beside(champion: object) -> str:
    """Whom the gates judged a version beside: two reports with different champions aren't one comparison."""
    number = champion.get("version") if isinstance(champion, Mapping) else None
    return f"judged beside champion {number}" if number is not None else "judged without a champion"


def _part(title: str, a: Mapping[str, Any], b: Mapping[str, Any], *, remark: str = "", numbers: bool = False) -> Part:
    flat_a, flat_b = flatten(a), flatten(b)
    keys = sorted(flat_a.keys() | flat_b.keys())
    differing = [key for key in keys if (key in flat_a) != (key in flat_b) or flat_a[key] != flat_b[key]]
    changes = tuple(_change(key, flat_a.get(key, ABSENT), flat_b.get(key, ABSENT), numbers) for key in differing)
    return Part(title, changes, len(keys) - len(differing), remark)


def _change(key: str, a: Any, b: Any, numbers: bool) -> Change:
    usable = numbers and all(type(value) in (int, float) and math.isfinite(value) for value in (a, b))
    if not usable:
        return Change(key, a, b)
    return Change(key, a, b, b - a, 100 * (b - a) / abs(a) if a else None)


def _cells(change: Change) -> tuple[str, ...]:
    figures = (
        "" if change.change is None else f"{change.change:+.4g}",
        "" if change.percent is None else f"{change.percent:+.2f}",
    )
    shown = _figures(change.a, change.b) if change.change is not None else _shown(change.a, change.b)
    return (change.key, *shown, *figures)


def _figures(a: float, b: float) -> tuple[str, str]:
    """Two measured figures, to as many digits as tell them apart."""
    one, two = f"{a:.{FIGURE_DIGITS}g}", f"{b:.{FIGURE_DIGITS}g}"
    return (one, two) if one != two else (repr(a), repr(b))


def _shown(a: Any, b: Any) -> tuple[str, str]:
    """Two differing values as short texts that differ."""
    if _are_numbers(a) and _are_numbers(b) and len(a) == len(b) and len(a) > 1:
        distances = [abs(two - one) for one, two in zip(a, b, strict=True) if one != two]
        return f"{len(a)} numbers", f"{len(distances)} of them differ, by up to {max(distances):.3g}"
    one, two = _text(a), _text(b)
    if max(len(one), len(two)) <= SHOWN:
        return one, two
    alike = next((at for at, (x, y) in enumerate(zip(one, two, strict=False)) if x != y), min(len(one), len(two)))
    start = max(0, alike - SHOWN // 4)
    return _cut(one, start), _cut(two, start)


def _are_numbers(value: Any) -> bool:
    return isinstance(value, list) and all(type(one) in (int, float) and math.isfinite(one) for one in value)


def _text(value: Any) -> str:
    if isinstance(value, float) and float(short := f"{value:.6g}") == value:
        return short
    if is_sha256(value):
        return str(value)[:HASH_SHOWN]
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)


def _cut(text: str, start: int) -> str:
    cut = text[start : start + SHOWN]
    return ("..." if start else "") + cut + ("..." if start + SHOWN < len(text) else "")


def run(cfg: Operation) -> Diff:
    """Versions `a` and `b` of `model`."""
    missing = [f"{key}: must be given, as {key}=NUMBER" for key in ("a", "b") if getattr(cfg, key) is None]
    if missing:
        raise ConfigError(missing)
    assert cfg.a is not None
    assert cfg.b is not None
    return diff(cfg.model.name, cfg.a, cfg.b, open_store(cfg.storage.url))


if __name__ == "__main__":
    from pipelines.command import operation

    raise SystemExit(operation(__doc__, run))
