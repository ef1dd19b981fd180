"""The market step of the tick loop: its columns, how they are scaled, and the rows of recorded ticks for training.

In: records of one underlying (serving/host/records.py), in the order in which a host would read them. Out: `tick_rows`
-> the closed steps' rows [S, 40] and, asked for, the open row after every event; `TickSpec`, what a bundle says of its
inputs (kind "tick", JSON in the manifest). What each column is, exactly: docs/host-features.md.

Invariants: one implementation, the native one (serving/native/market), for training and hosts, so a row computed
here is the row a host would have had; every number is finite; a row holds nothing later than its event.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from serving import native
from serving.errors import DataError
from serving.features import Scaler
from serving.normal import Array

KIND = "tick"
VERSION = 1  # of what the columns mean: raised when a column of the same name is computed otherwise
RECORD_BYTES = 56
HORIZONS = (1, 8, 64)  # steps, the open one included
MOMENTUM_HORIZONS = (1, 4, 8, 16, 64)

STEP_FEATURES: tuple[str, ...] = (
    "imbalance_1", "imbalance_3", "imbalance_5", "imbalance_10",
    "micro_price_distance", "spread", "spread_against_mean", "depth_against_mean",
    *(f"vwap_distance_{n}" for n in HORIZONS),
    *(f"order_flow_imbalance_{n}" for n in HORIZONS),
    *(f"trade_imbalance_{n}" for n in HORIZONS),
    *(f"realised_volatility_{n}" for n in HORIZONS),
    *(f"momentum_{n}" for n in MOMENTUM_HORIZONS), "trend_64",
    "profile_skew", "point_of_control_distance", "point_of_control_share",
    "volume_spike", "volume_share_8",
    *(f"trade_intensity_{n}" for n in HORIZONS),
    *(f"quote_intensity_{n}" for n in HORIZONS),
    "elapsed_share", "trade_age", "skipped_steps",
)  # fmt: skip

# docs/host-rules.md, "Contracts". The head reads the UNSCALED ones as they are.
CONTRACT_FEATURES: tuple[str, ...] = (
    "prior_volatility", "sqrt_tau", "anchored", "moneyness", "moneyness_squared", "return", "return_moneyness", "right",
)  # fmt: skip
UNSCALED = ("prior_volatility", "sqrt_tau", "anchored")


@dataclass(frozen=True)
class TickRows:
    """Rows of recorded ticks, unscaled; S steps were closed, E events happened (none are kept unless asked for)."""

    closed: Array  # [S, 40]
    closed_start_ns: npt.NDArray[np.int64]  # [S], event time at which the step began
    closed_mid: Array  # [S], the last usable mid when it closed
    closed_by: npt.NDArray[np.int64]  # [S], place of the record whose event closed it
    open: Array  # [E, 40], after the event
    open_mid: Array  # [E], NaN where the book wasn't usable after the event
    open_record: npt.NDArray[np.int64]  # [E], place of the event's (last) record
    refused_books: int  # pictures and quotes that the book refused
    refused_numbers: int  # trades and books with impossible numbers, left out of the features


def words_of(records: npt.NDArray[Any]) -> npt.NDArray[np.uint64]:
    """The records [n] as the native core reads them, uint64 [n, 7], in place."""
    if records.ndim != 1 or records.dtype.itemsize != RECORD_BYTES or not records.flags.c_contiguous:
        raise DataError(
            f"records: expected a contiguous array [n] of {RECORD_BYTES} bytes each (serving.host.records.RECORD), "
            f"found shape {records.shape} of {records.dtype.itemsize} bytes"
        )
    return records.view(np.uint64).reshape(-1, RECORD_BYTES // 8)


def tick_rows(records: npt.NDArray[Any], step_ns: int, *, open_rows: bool = False) -> TickRows:
    """Replay `records` and keep every closed step's row; with `open_rows`, also the open row after each event."""
    if step_ns <= 0:
        raise DataError(f"step_ns: expected more than 0 nanoseconds, found {step_ns}")
    return TickRows(**native.core().tick_rows(words_of(records), step_ns, open_rows))


def fit_scaler(
    rows: Array, names: tuple[str, ...] = STEP_FEATURES, unscaled: tuple[str, ...] = (), clip: float = 5.0
) -> Scaler:
    """Column means and standard deviations of `rows` [S, F], which are the training's; a constant column gets 1.

    The columns are shares, returns and spreads of very different size, so "constant" is relative to the column.
    """
    if rows.ndim != 2 or rows.shape[1] != len(names) or len(rows) < 2:
        raise DataError(f"the scaler's rows have shape {rows.shape}; expected at least two of {len(names)} columns")
    broken = ~np.isfinite(rows).all(axis=0)
    if broken.any():
        raise DataError(f"the scaler's rows aren't finite in {', '.join(np.array(names)[broken])}")
    mean, deviation = rows.mean(axis=0), rows.std(axis=0)
    deviation = np.where(deviation <= 1e-12 * np.abs(rows).max(axis=0), 1.0, deviation)
    kept = tuple(place for place, name in enumerate(names) if name in unscaled)
    return Scaler(tuple(mean.tolist()), tuple(deviation.tolist()), clip, kept)


@dataclass(frozen=True)
class TickSpec:
    """What a bundle needs to compute its inputs from ticks.

    The net reads `padded_columns` numbers a step and `padded_contract_columns` a contract; those beyond the named ones
    are zeros.
    """

    step_ns: int
    window: int  # steps the net reads, T
    padded_columns: int  # F
    padded_contract_columns: int  # K
    step_scaler: Scaler
    contract_scaler: Scaler
    step_features: tuple[str, ...] = STEP_FEATURES
    contract_features: tuple[str, ...] = CONTRACT_FEATURES
    version: int = VERSION
    kind: str = KIND

    def __post_init__(self) -> None:
        problems = _problems(self)
        if problems:
            raise DataError("\n".join(["the tick features can't be computed:", *(f"  - {line}" for line in problems)]))

    def to_json(self) -> dict[str, Any]:
        """Plain dict of numbers, strings and lists."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> TickSpec:
        """Read back `to_json`; refuses a spec whose features this code doesn't compute, naming every problem."""
        expected = set(cls.__dataclass_fields__)
        if not isinstance(data, dict) or set(data) != expected:
            found = set(data) if isinstance(data, dict) else {type(data).__name__}
            parts = [f"without {name}" for name in sorted(expected - found)]
            parts += [f"with unknown {name}" for name in sorted(map(str, found - expected))]
            raise DataError(f"tick feature spec {', '.join(parts)}; the bundle was made by another version")
        try:
            return cls(
                step_ns=_whole(data["step_ns"]),
                window=_whole(data["window"]),
                padded_columns=_whole(data["padded_columns"]),
                padded_contract_columns=_whole(data["padded_contract_columns"]),
                step_scaler=_scaler(data["step_scaler"]),
                contract_scaler=_scaler(data["contract_scaler"]),
                step_features=tuple(map(str, data["step_features"])),
                contract_features=tuple(map(str, data["contract_features"])),
                version=_whole(data["version"]),
                kind=str(data["kind"]),
            )
        except DataError:
            raise
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"tick feature spec can't be read ({error!r}); the bundle was made otherwise") from error

    def scale(self, rows: Array) -> tuple[npt.NDArray[np.float32], Array]:
        """Rows [S, 40] as the net takes them [S, F], and the share of each row's columns that reach the clip [S]."""
        x = np.empty((len(rows), self.padded_columns), np.float32)
        clipped_share = np.empty(len(rows))
        self.native_scaler().scale(np.ascontiguousarray(rows, np.float64), x, clipped_share)
        return x, clipped_share

    def native_scaler(self) -> Any:
        """The core's scaler of steps, made from this spec."""
        scaler = self.step_scaler
        return native.core().StepScaler(
            np.array(scaler.mean), np.array(scaler.deviation), self.padded_columns, scaler.clip
        )


def _whole(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"expected a whole number, found {value!r}")
    return value


def _scaler(data: dict[str, Any]) -> Scaler:
    mean, deviation = (tuple(map(float, data[name])) for name in ("mean", "deviation"))
    return Scaler(mean, deviation, float(data["clip"]), tuple(map(_whole, data["unscaled"])))


def _problems(spec: TickSpec) -> list[str]:
    problems = []
    if spec.kind != KIND:
        problems.append(f"kind: expected {KIND!r}, found {spec.kind!r}")
    if spec.version != VERSION:
        problems.append(
            f"version: this code computes {VERSION}, the spec has {spec.version}: install the matching version"
        )
    for name, value in (("step_ns", spec.step_ns), ("window", spec.window)):
        if value <= 0:
            problems.append(f"{name}: expected more than 0, found {value}")
    for name, ours, theirs in (
        ("step_features", STEP_FEATURES, spec.step_features),
        ("contract_features", CONTRACT_FEATURES, spec.contract_features),
    ):
        if ours != theirs:
            differing = sorted(set(ours) ^ set(theirs)) or ["their order"]
            problems.append(f"{name}: differs from this code's in {', '.join(differing)}: install the matching version")
    for name, padded, known in (
        ("padded_columns", spec.padded_columns, len(STEP_FEATURES)),
        ("padded_contract_columns", spec.padded_contract_columns, len(CONTRACT_FEATURES)),
    ):
        if padded < known:
            problems.append(f"{name}: expected at least the {known} known columns, found {padded}")
    problems += _scaler_problems("step_scaler", spec.step_scaler, STEP_FEATURES, ())
    return problems + _scaler_problems("contract_scaler", spec.contract_scaler, CONTRACT_FEATURES, UNSCALED)


def _scaler_problems(name: str, scaler: Scaler, columns: tuple[str, ...], unscaled: tuple[str, ...]) -> list[str]:
    problems = []
    for part, numbers in (("mean", scaler.mean), ("deviation", scaler.deviation)):
        if len(numbers) != len(columns):
            problems.append(f"{name}.{part}: expected {len(columns)} numbers, found {len(numbers)}")
    problems += [
        f"{name}.mean of {column}: expected a number, found {value}"
        for column, value in zip(columns, scaler.mean, strict=False)
        if not np.isfinite(value)
    ]
    problems += [
        f"{name}.deviation of {column}: expected a number above 0, found {value}"
        for column, value in zip(columns, scaler.deviation, strict=False)
        if not (np.isfinite(value) and value > 0)
    ]
    if not (np.isfinite(scaler.clip) and scaler.clip > 0):
        problems.append(f"{name}.clip: expected a number above 0, found {scaler.clip}")
    kept = tuple(columns.index(column) for column in unscaled)
    if scaler.unscaled != kept:
        problems.append(f"{name}.unscaled: expected {list(kept)}, found {list(scaler.unscaled)}")
    return problems
