"""Stage `ingest`: a vendor's files into the canonical quote table, and a quarantine of every row that is no quote.

Purpose: one table everything else reads. Data in: files or folders (of S3, GCS, Azure too: pipelines/remote_data.py)
and a `Layout`. Data out, in `out_dir`:
`quotes.parquet` (serving/schema.py, sorted by identity, row groups within one UTC date), `quarantine.parquet`
(file, row, reason, detail, raw row as JSON text) and `counts.json`. Invariants: quotes in = kept +
quarantined, counted apart and checked. Memory is bounded whatever the input's size. Outputs are written
beside their places and moved there when all is done: a failing run leaves the former ones as they were. A
schema problem fails before any row is read, a damaged file before anything is replaced.

Reasons, judged in this order; a row gets the first that holds:

    malformed_row                  wrong number of fields, unbalanced quotes, not UTF-8 (pipelines/readers.py)
    missing_value                  nothing where a quote needs something (bid and ask: no_price)
    bad_timestamp                  ts can't be read as a time
    bad_expiry                     expiry can't be read as a date or time
    bad_number                     text or infinity in a numeric column
    bad_right                      right is none of C, P, call, put
    bad_value                      style, settlement, currency or price_unit is none of the allowed values
    unknown_root                   the layout knows no settlement for this root
    strike_not_positive            strike <= 0
    underlying_price_not_positive  underlying_price <= 0
    forward_not_positive           the venue's forward <= 0
    expired                        expiry at or before ts
    no_price                       bid or ask absent or NaN (0 is a price: nobody bids, or offers)
    negative_price                 bid or ask < 0
    negative_quantity              a size, the volume or the open interest < 0
    crossed                        bid > ask
    currency                       not the currency of most quotes of this underlying (pipelines/quote_table.py)
    underlying_price_conflict      not the underlying price of most quotes of this (ts, underlying)
    duplicate                      an earlier row has the same identity and the same values
    duplicate_conflict             an earlier row has the same identity and other values

Run: python -m pipelines.ingest [key=value ...]
"""

from __future__ import annotations

import json
import logging
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipelines import layouts, quote_table, readers
from pipelines.layouts.base import ROW_COLUMN, Layout
from pipelines.quarantine import Late, Locations, Quarantine, as_json
from pipelines.quote_rows import ROW_REASONS, RowReader, type_problems
from pipelines.remote_data import local
from serving.disk import sync_file
from serving.errors import ConfigError, DataError

if TYPE_CHECKING:
    from pipelines.config import Config

REASONS = ("malformed_row", *ROW_REASONS, *quote_table.TABLE_REASONS)
WARN_SHARE = 0.1  # of quotes in quarantine that deserve a warning
QUOTES, QUARANTINE, COUNTS = "quotes.parquet", "quarantine.parquet", "counts.json"

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class IngestResult:
    """What was read and written. `snapshots` counts distinct (ts, underlying); `first` and `last` are UTC."""

    quotes_in: int
    kept: int
    quarantined: int
    reasons: dict[str, int]
    snapshots: int
    first: datetime
    last: datetime
    quotes_path: Path
    quarantine_path: Path


def ingest(
    paths: str | Path | Sequence[str | Path],
    layout: Layout,
    out_dir: str | Path,
    *,
    progress: bool | None = None,
    ignore: Sequence[str | Path] = (),
) -> IngestResult:
    """Read, validate and write. `progress`: bars on stderr, None shows them on a terminal only. `ignore`: files in
    the input folders that are no quotes, such as the underlying's history."""
    out_dir = Path(out_dir)
    sources = readers.open_sources(
        paths, layout.needed_columns, lambda columns: type_problems(layout, columns), ignore,
        clean_name=layout.clean_name, extra_suffixes=layout.extra_suffixes,
    )  # fmt: skip
    inside = [source.path for source in sources if source.path.resolve().parent == out_dir.resolve()]
    if inside:
        raise ConfigError([f"input {path} lies in the output folder {out_dir}; choose another" for path in inside])
    with _workshop(out_dir) as workshop, _progress(progress) as report:
        run = _Run(sources, layout, workshop, report)
        result, counts = run.execute()
        (workshop / COUNTS).write_text(json.dumps(counts, indent=2) + "\n", encoding="utf-8")
        for name in (QUARANTINE, QUOTES, COUNTS):
            sync_file(workshop / name)
        for name in (QUARANTINE, QUOTES, COUNTS):
            (workshop / name).replace(out_dir / name)
    return replace(result, quotes_path=out_dir / QUOTES, quarantine_path=out_dir / QUARANTINE)


class _Run:
    """One ingest: pass over the input, settle date by date, pass again for the raw text of rows refused late."""

    def __init__(self, sources: list[readers.Source], layout: Layout, workshop: Path, report: _Report) -> None:
        self.sources = sources
        self.layout = layout
        self.workshop = workshop
        self.report = report
        self.rows = RowReader(layout)
        self.texts = {name: vocabulary.texts for name, vocabulary in self.rows.vocabularies.items()}
        self.quarantine = Quarantine(workshop / QUARANTINE)
        self.currency_counts: Counter[tuple[int, int]] = Counter()  # (underlying, currency), first seen first
        self.rows_of: dict[str, int] = {str(source.path): 0 for source in sources}
        self.readable = 0  # rows that got an ordinal
        self.late = Late()

    def execute(self) -> tuple[IngestResult, dict[str, Any]]:
        with self.quarantine, quote_table.Spool(self.workshop / "spool.arrow") as spool:
            for table, rows, source in self._passes("reading", self._take_malformed):
                self._take(table, rows, source, spool)
            quotes_in = sum(self.rows_of.values())
            if quotes_in == 0:
                names = ", ".join(self.rows_of)
                raise DataError(f"{names}: no quotes, nothing but a header; fetch the data again")
            self._warn_of_empty_files()
            kept, snapshots, first, last = self._settle(spool)
            self._quarantine_late()
            if kept == 0:
                raise DataError(self._nothing_kept(quotes_in))
        for source in self.sources:
            source.refuse_if_changed()
        return self._account(quotes_in, snapshots, first, last)

    def _passes(
        self, title: str, malformed: Callable[[readers.Batch], None] | None = None
    ) -> Iterator[tuple[pl.DataFrame, NDArray[np.int64], readers.Source]]:
        """Every row of every file in order, unpivoted, with its row number; the same at each pass."""
        total = sum(source.size_bytes for source in self.sources)
        done = 0
        for source in self.sources:
            for batch in readers.read_batches(source):
                if malformed is not None:
                    malformed(batch)
                table, rows = batch.table, batch.rows
                if self.layout.unpivot is not None:
                    table = self.layout.unpivot(table.with_columns(pl.Series(ROW_COLUMN, rows)))
                    rows = table[ROW_COLUMN].to_numpy()
                    table = table.drop(ROW_COLUMN)
                yield table, rows, source
                self.report(title, (done + batch.fraction_read * source.size_bytes) / max(total, 1))
            done += source.size_bytes

    def _take_malformed(self, batch: readers.Batch) -> None:
        name = str(batch.source.path)
        self.rows_of[name] += len(batch.malformed)
        for line in batch.malformed:
            raw = json.dumps({"line": line.text}, ensure_ascii=False)
            self.quarantine.add(name, line.row, "malformed_row", line.detail, raw)

    def _take(
        self, table: pl.DataFrame, rows: NDArray[np.int64], source: readers.Source, spool: quote_table.Spool
    ) -> None:
        name = str(source.path)
        quotes = self.rows.read(table)
        self.rows_of[name] += table.height
        refusals = quotes.refusals
        indices = [refusal.index for refusal in refusals]
        for refusal, raw in zip(refusals, as_json(table, indices), strict=True):
            self.quarantine.add(name, int(rows[refusal.index]), refusal.reason, refusal.detail, raw)
        ordinals = np.arange(self.readable, self.readable + table.height, dtype=np.int64)
        self.readable += table.height
        columns = quotes.columns | {"ordinal": ordinals}
        if not quotes.kept.all():
            columns = {key: values[quotes.kept] for key, values in columns.items()}
        if len(columns["ts"]):
            spool.add(columns)
            self._count_currencies(columns["underlying"], columns["currency"])

    def _count_currencies(self, underlyings: NDArray[np.int32], currencies: NDArray[np.int32]) -> None:
        pairs = underlyings.astype(np.int64) << 32 | currencies
        distinct, first, counts = np.unique(pairs, return_index=True, return_counts=True)
        for place in np.argsort(first):
            key = (int(distinct[place] >> 32), int(distinct[place] & 0xFFFFFFFF))
            self.currency_counts[key] += int(counts[place])

    def _settle(self, spool: quote_table.Spool) -> tuple[int, int, int, int]:
        """Write the table slice by slice: rows kept, snapshots, first and last ts in ns."""
        currencies: dict[int, int] = {}
        for (underlying, currency), _ in self.currency_counts.most_common():  # ties: the one seen first
            currencies.setdefault(underlying, currency)
        kept = snapshots = last = 0
        first = np.iinfo(np.int64).max
        with pq.ParquetWriter(self.workshop / QUOTES, quote_table.ARROW_SCHEMA, compression="zstd") as writer:
            total, done = sum(self.currency_counts.values()), 0
            for columns in spool.slices():
                settled = quote_table.settle(columns, self.texts, currencies, self.layout.underlying_tolerance)
                self.late.add(settled)
                done += len(columns["ts"])
                self.report("sorting", done / total)
                times = settled.columns["ts"]
                if not len(times):
                    continue
                for start in range(0, len(times), quote_table.SLICE_ROWS):
                    part = quote_table.to_arrow(settled.columns, self.texts, start, start + quote_table.SLICE_ROWS)
                    writer.write_table(part, row_group_size=quote_table.SLICE_ROWS)
                kept += len(times)
                snapshots += quote_table.snapshot_count(settled.columns)
                first, last = min(first, int(times[0])), max(last, int(times[-1]))
        return kept, snapshots, first, last

    def _quarantine_late(self) -> None:
        """Read the input again for the rows that other rows spoke against."""
        late = self.late.sealed()
        if not len(late.ordinals):
            return
        locate = Locations(late.earlier)
        start = 0
        for table, rows, source in self._passes("quarantine"):
            locate.visit(start, rows, str(source.path))
            low, high = np.searchsorted(late.ordinals, [start, start + table.height])
            indices = (late.ordinals[low:high] - start).tolist()
            raws = as_json(table, indices)
            for place, index, raw in zip(range(low, high), indices, raws, strict=True):
                reason = int(late.reasons[place])
                detail = self._late_detail(reason, late, place, locate)
                self.quarantine.add(str(source.path), int(rows[index]), quote_table.TABLE_REASONS[reason], detail, raw)
            start += table.height
        if start != self.readable:
            raise DataError(f"the input changed while it was read: {self.readable} rows, then {start}; run again")

    def _late_detail(self, reason: int, late: Late, place: int, locate: Locations) -> str:
        if reason == quote_table.CURRENCY:
            expected = self.texts["currency"][int(late.expected[place])]
            return f"most quotes of this underlying are in {expected}; ingest one currency per underlying"
        if reason == quote_table.UNDERLYING:
            vendor = self.layout.columns.get("underlying_price", "underlying_price")
            jitters = self.layout.underlying_tolerance is not None
            rule = "the median of" if jitters else "most quotes of"
            said = f"{rule} this time and underlying {'is' if jitters else 'have'}"
            return f"{vendor}: {said} {float(late.expected[place])!r}"
        row, file = locate.find(int(late.earlier[place]))
        if reason == quote_table.DUPLICATE:
            return f"the same quote as row {row} of {file}"
        return f"row {row} of {file} has the same contract and time with other values; that one is kept"

    def _warn_of_empty_files(self) -> None:
        for name, count in self.rows_of.items():
            if count == 0:
                logger.warning("%s holds a header and no quotes", name)

    def _nothing_kept(self, quotes_in: int) -> str:
        lines = [f"{', '.join(self.rows_of)}: none of {quotes_in} quotes can be kept; nothing was written:"]
        for reason, count in self.quarantine.counted(REASONS).items():
            file, row, detail = self.quarantine.examples[reason]
            lines.append(f"  - {reason}: {count}, first in {file} row {row}: {detail}")
        return "\n".join([*lines, "Mend the data or the layout's columns, constants and times."])

    def _account(self, quotes_in: int, snapshots: int, first: int, last: int) -> tuple[IngestResult, dict[str, Any]]:
        """The result, from what really stands in the files."""
        kept = pq.read_metadata(self.workshop / QUOTES).num_rows
        quarantined = pq.read_metadata(self.workshop / QUARANTINE).num_rows
        reasons = self.quarantine.counted(REASONS)
        if quotes_in != kept + quarantined or quarantined != sum(reasons.values()):
            message = f"quotes were lost: {quotes_in} in, {kept} kept, {quarantined} quarantined for {reasons}"
            raise AssertionError(message)
        result = IngestResult(
            quotes_in=quotes_in,
            kept=kept,
            quarantined=quarantined,
            reasons=reasons,
            snapshots=snapshots,
            first=_as_datetime(first),
            last=_as_datetime(last),
            quotes_path=self.workshop / QUOTES,
            quarantine_path=self.workshop / QUARANTINE,
        )
        counts = {
            "layout": self.layout.name,
            "quotes_in": quotes_in,
            "kept": kept,
            "quarantined": quarantined,
            "reasons": reasons,
            "snapshots": snapshots,
            "first": result.first.isoformat(),
            "last": result.last.isoformat(),
            "files": self.rows_of,
        }
        return result, counts


def _as_datetime(nanoseconds: int) -> datetime:
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=nanoseconds // 1000)


@contextmanager
def _workshop(out_dir: Path) -> Iterator[Path]:
    """A hidden folder in `out_dir` that goes away; so does `out_dir` if it was made for nothing."""
    existed = out_dir.exists()
    out_dir.mkdir(parents=True, exist_ok=True)
    workshop = Path(tempfile.mkdtemp(prefix=".ingest-", dir=out_dir))
    try:
        yield workshop
    finally:
        shutil.rmtree(workshop, ignore_errors=True)
        if not existed and not any(out_dir.iterdir()):
            out_dir.rmdir()


_Report = Callable[[str, float], None]


@contextmanager
def _progress(wanted: bool | None) -> Iterator[_Report]:
    """A function that takes a title and the fraction done."""
    if not (sys.stderr.isatty() if wanted is None else wanted):
        yield lambda title, fraction: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with ExitStack() as stack:
        bars = stack.enter_context(Progress(console=Console(stderr=True)))
        tasks: dict[str, Any] = {}

        def report(title: str, fraction: float) -> None:
            if title not in tasks:
                tasks[title] = bars.add_task(title, total=1.0)
            bars.update(tasks[title], completed=fraction)

        yield report


def run(cfg: Config) -> IngestResult:
    """Ingest `cfg.data` into `OUT/ingest/`; options left empty in the configuration are the layout's own."""
    names = ("columns", "constants", "settlement_by_root", "time_zone", "snapshot_time")
    options = {name: value for name in names if (value := getattr(cfg.data, name))}
    beside = [cfg.data.history] if cfg.data.history else []  # may lie in the quotes' folder
    layout = layouts.load(cfg.data.layout, options)
    path = local(cfg.data.path, suffixes=(*readers.SUFFIXES, *layout.extra_suffixes), ignore=beside)
    done = ingest(path, layout, cfg.folder / "ingest", ignore=beside)
    if done.quarantined > WARN_SHARE * done.quotes_in:
        worst = max(done.reasons, key=lambda reason: done.reasons[reason])
        logger.warning(
            "%d of %d quotes are in quarantine, most of them for %s: look at %s",
            done.quarantined, done.quotes_in, worst, done.quarantine_path,
        )  # fmt: skip
    return done


if __name__ == "__main__":
    from pipelines.command import stage

    raise SystemExit(stage(__doc__, run))
