"""The exam of a version: its held-out dates as questions that released bytes can answer, and the market's answers.

In: what `evaluate` knows (pipelines/exam_questions.py writes it down). Out: `exams/<sha256>.npz` of a store, and back.
Gates put the same exam to candidate and champion (pipelines/exam_answers.py), so no recorded figure has to be believed.

Shapes: D snapshots in order of time, N scored rows in order of their snapshots, M market steps, Q quotes. Arrays:
    about            bytes of canonical JSON: format, task, spec (what the inputs mean), each baseline's forward
    date             int32 [D], days since 1970-01-01 (UTC); train_dates, validation_dates: what the model has seen
    row-<column>     [N], see ROWS: tau years; bid, ask, forwards in money (European equivalents); volatilities
                     fractions; right +1 call, -1 put; `answer` is what the trained net said when it was evaluated
    baseline-<name>  float32 [N], volatility
    input-<name>     of a pricing model: steps [M, F] and contracts [N, K] float32, NOT scaled (every bundle has its own
                     scaler); step_end, step_count int32 [D]: a snapshot's history is steps[end - count : end].
                     Of a surface model: quote_<column> [Q] (QUOTES), last, last_mask [D, G], move [D, 3], blend [2]
Invariants: no pickle, no object arrays, at most MAX_EXAM_BYTES; what is read is checked for shape, order and finite
numbers; equal content gives equal bytes. An exam holds quotes: where these are licensed, so is the store.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from serving.blobstore import BlobStore
from serving.canonical import canonical_json, parse_canonical, sha256_hex
from serving.errors import BlobMissingError, BundleError, DataError, StoreError
from serving.npz import parse_npz

EXAM_FORMAT = 1
MAX_EXAM_BYTES = 512 << 20
HISTORY_STEPS = 128  # market steps kept before every snapshot, so that a champion with a longer window can answer
ROWS = (
    "snapshot", "root", "strike", "tau", "right", "bid", "ask", "forward", "discount", "forward_carried",
    "forward_model", "discount_model", "iv_market", "answer",
)  # fmt: skip
QUOTES = ("snapshot", "smile", "tau", "moneyness", "volatility", "last", "hidden")
INPUTS = {
    "pricing": {"steps": ("M", "F"), "contracts": ("N", "K"), "step_end": ("D",), "step_count": ("D",)},
    "surface": {
        **{f"quote_{name}": ("Q",) for name in QUOTES},
        **{"last": ("D", "G"), "last_mask": ("D", "G"), "move": ("D", "V"), "blend": ("W",)},
    },
}
WHOLE = ("date", "train_dates", "validation_dates", "row-snapshot", "row-root", "input-step_end", "input-step_count",
         "input-quote_snapshot", "input-quote_smile")  # fmt: skip
POSITIVE = ("strike", "tau", "forward", "discount", "forward_carried", "forward_model", "discount_model", "iv_market")

Arrays = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class Exam:
    """See the module; `rows`, `baselines` and `inputs` are by column name."""

    task: str
    spec: Mapping[str, Any]
    baseline_forwards: Mapping[str, str]
    date: npt.NDArray[np.int32]
    train_dates: npt.NDArray[np.int32]
    validation_dates: npt.NDArray[np.int32]
    rows: Arrays
    baselines: Arrays
    inputs: Arrays

    def __len__(self) -> int:
        return len(self.rows["snapshot"])

    def row_range(self, place: int) -> slice:
        """Rows of one snapshot."""
        first, end = np.searchsorted(self.rows["snapshot"], [place, place + 1])
        return slice(int(first), int(end))

    def seen(self) -> dict[str, list[str]]:
        """The dates of the model's training and validation, as a `registered` event holds them (ISO)."""
        return {"train": iso(self.train_dates), "validation": iso(self.validation_dates)}

    def to_bytes(self) -> bytes:
        """The npz."""
        about = {"format": EXAM_FORMAT, "task": self.task, "spec": dict(self.spec),
                 "baseline_forwards": dict(self.baseline_forwards)}  # fmt: skip
        arrays: dict[str, Any] = {
            "about": np.frombuffer(canonical_json(about), np.uint8),
            "date": self.date, "train_dates": self.train_dates, "validation_dates": self.validation_dates,
            **{f"row-{name}": values for name, values in self.rows.items()},
            **{f"baseline-{name}": values for name, values in self.baselines.items()},
            **{f"input-{name}": values for name, values in self.inputs.items()},
        }  # fmt: skip
        buffer = io.BytesIO()
        ordered = {name: np.ascontiguousarray(arrays[name]) for name in sorted(arrays)}
        np.savez_compressed(buffer, allow_pickle=False, **ordered)
        return buffer.getvalue()


def iso(days: npt.NDArray[np.int32]) -> list[str]:
    """Days since 1970-01-01 as YYYY-MM-DD."""
    return [str(day) for day in days.astype("datetime64[D]")]


def parse_exam(raw: bytes, name: str) -> Exam:
    """The exam of these bytes; DataError naming the array that can't be used."""
    if len(raw) > MAX_EXAM_BYTES:
        raise DataError(f"{name}: {len(raw)} bytes, at most {MAX_EXAM_BYTES} are read")
    try:
        arrays = parse_npz(raw, name)
        about = parse_canonical(bytes(arrays["about"]))
        task, spec, forwards = about["task"], about["spec"], about["baseline_forwards"]
        wanted = ["date", "train_dates", "validation_dates", *(f"row-{column}" for column in ROWS),
                  *(f"baseline-{one}" for one in forwards), *(f"input-{one}" for one in INPUTS[task])]  # fmt: skip
    except BundleError as error:
        raise DataError(str(error)) from error
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{name}: isn't an exam: {error!r}") from error
    if about.get("format") != EXAM_FORMAT:
        raise DataError(f"{name}: format {about.get('format')!r}; this code reads {EXAM_FORMAT}: evaluate again")
    if differing := sorted(set(wanted) ^ (arrays.keys() - {"about"})):
        raise DataError(f"{name}: arrays {', '.join(differing)} are missing or unknown")
    exam = Exam(
        task, spec, forwards, arrays["date"], arrays["train_dates"], arrays["validation_dates"],
        {column: arrays[f"row-{column}"] for column in ROWS},
        {baseline: arrays[f"baseline-{baseline}"] for baseline in forwards},
        {one: arrays[f"input-{one}"] for one in INPUTS[task]},
    )  # fmt: skip
    for problem in (*_shape_problems(exam, arrays), *_value_problems(exam, arrays)):
        raise DataError(f"{name}: {problem}")
    return exam


def _shape_problems(exam: Exam, arrays: Arrays) -> list[str]:
    problems = [f"{one} isn't whole numbers ({arrays[one].dtype})" for one in WHOLE
                if one in arrays and arrays[one].dtype.kind not in "iu"]  # fmt: skip
    sizes = {"D": len(exam.date), "N": len(exam)}
    shapes = {f"input-{one}": shape for one, shape in INPUTS[exam.task].items()}
    shapes |= {one: ("N",) for one in arrays if one.startswith(("row-", "baseline-"))}
    for one, letters in shapes.items():
        found = arrays[one].shape
        fits = len(found) == len(letters)
        if not fits or any(sizes.setdefault(*pair) != pair[1] for pair in zip(letters, found, strict=True)):
            problems.append(f"array {one} has shape {found}, expected {letters} with {sizes}")
    if not len(exam) or not len(exam.date):
        problems.append("has no rows")
    return problems


def _value_problems(exam: Exam, arrays: Arrays) -> list[str]:
    bad = [one for one, values in arrays.items() if not np.isfinite(values).all()]
    bad += [f"row-{one}" for one in POSITIVE if not (exam.rows[one] > 0).all()]
    problems = [f"array {one} holds unusable values" for one in bad]
    for one in ("row-snapshot", *(["input-quote_snapshot"] if exam.task == "surface" else [])):
        places = arrays[one]
        if (np.diff(places) < 0).any() or places[0] < 0 or places[-1] >= len(exam.date):
            problems.append(f"array {one} isn't ascending within the {len(exam.date)} snapshots")
    if (np.diff(exam.date) < 0).any():
        problems.append("dates aren't ascending")
    if exam.task == "pricing":
        end, count = exam.inputs["step_end"], exam.inputs["step_count"]
        if (count < 1).any() or (end - count < 0).any() or (end > len(exam.inputs["steps"])).any():
            problems.append("step_end and step_count lead outside the steps")
    return problems


def exam_key(sha256: str) -> str:
    """Where an exam lies in a store."""
    return f"exams/{sha256}.npz"


def load_exam(path: Path) -> Exam:
    """The exam of a file; DataError if it isn't there or can't be used."""
    if not path.exists():
        raise DataError(f"{path} isn't there: run python -m pipelines.evaluate with the same out= and model=")
    return parse_exam(path.read_bytes(), str(path))


def store_exam(store: BlobStore, path: Path) -> str:
    """Copy an exam that can be read into a store and return its sha256; may be run again."""
    raw = path.read_bytes()
    parse_exam(raw, str(path))
    sha256 = sha256_hex(raw)
    key = exam_key(sha256)
    if not store.put_if_absent(key, raw) and store.get(key, max_bytes=MAX_EXAM_BYTES) != raw:
        raise StoreError(f"{key}: the store holds other bytes; find out who changed it, then delete it")
    return sha256


def read_exam(store: BlobStore, sha256: str) -> Exam:
    """The exam of that hash; DataError if it is missing, isn't the one that was stored, or can't be used."""
    key = exam_key(sha256)
    try:
        raw = store.get(key, max_bytes=MAX_EXAM_BYTES)
    except BlobMissingError as error:
        raise DataError(f"{key}: isn't in the store, though the ledger names it") from error
    if (found := sha256_hex(raw)) != sha256:
        raise DataError(f"{key}: sha256 is {found}; the store was tampered with")
    return parse_exam(raw, key)
