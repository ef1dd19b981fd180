"""Exams: what goes in comes out, damage is refused by name, wrong inputs are never answered from."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.exam import HISTORY_STEPS, Exam, exam_key, load_exam, parse_exam, read_exam, store_exam
from pipelines.exam_answers import answer, require_same_inputs, scaled_contracts, scaled_window
from serving.canonical import canonical_json, sha256_hex
from serving.engine import open_engine
from serving.errors import DataError, StoreError
from serving.folder_store import FolderStore
from tests.pipelines.gates.world import World, answered, pricing_questions, surface_questions
from tests.small_nets import SPEC, F, K, T, reference_context, reference_head, weights_of
from tests.tiny_bundle import npz_bytes


@pytest.fixture(params=[pricing_questions, surface_questions])
def exam(request: pytest.FixtureRequest) -> Exam:
    made: Exam = request.param(4)
    return made


def arrays_of(exam: Exam) -> dict[str, Any]:
    with np.load(io.BytesIO(exam.to_bytes())) as archive:
        return {name: archive[name] for name in archive.files}


def test_what_goes_in_comes_out(exam: Exam) -> None:
    raw = exam.to_bytes()
    again = parse_exam(raw, "exam.npz")
    assert again.to_bytes() == raw == exam.to_bytes()  # equal content, equal bytes
    for field in dataclasses.fields(Exam):
        one, other = getattr(exam, field.name), getattr(again, field.name)
        if field.name == "spec":
            assert canonical_json(one) == canonical_json(other)
        elif field.name in ("rows", "baselines", "inputs"):
            assert one.keys() == other.keys()
            assert all(np.array_equal(one[name], other[name]) for name in one)
        else:
            assert np.array_equal(one, other) if isinstance(one, np.ndarray) else one == other
    assert again.seen()["validation"][-1] == str(np.datetime64(18_999, "D"))


def test_every_array_is_missed_by_name_and_an_unknown_one_is_named(exam: Exam) -> None:
    whole = arrays_of(exam)
    for name in whole:
        rest = {one: values for one, values in whole.items() if one != name}
        with pytest.raises(DataError, match=name if name != "about" else "isn't an exam"):
            parse_exam(npz_bytes(**rest), "exam.npz")
    with pytest.raises(DataError, match="arrays surprise are missing or unknown"):
        parse_exam(npz_bytes(**whole, surprise=np.zeros(3)), "exam.npz")


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_number_that_isnt_finite_is_named(exam: Exam, bad: float) -> None:
    for name, values in arrays_of(exam).items():
        if values.dtype.kind == "f":
            spoilt = values.copy()
            spoilt.flat[0] = bad
            with pytest.raises(DataError, match=f"array {name} holds unusable values"):
                parse_exam(npz_bytes(**(arrays_of(exam) | {name: spoilt})), "exam.npz")


@pytest.mark.parametrize(
    ("name", "change", "says"),
    [
        ("row-tau", lambda values: values[:-1], "array row-tau has shape"),
        ("row-strike", lambda values: -values, "array row-strike holds unusable"),
        ("row-iv_market", lambda values: 0 * values, "array row-iv_market holds unusable"),
        ("row-snapshot", lambda values: values[::-1], "isn't ascending within the 4 snapshots"),
        ("row-snapshot", lambda values: values + 1, "isn't ascending within the 4 snapshots"),
        ("row-snapshot", lambda values: values.astype(float), "row-snapshot isn't whole numbers"),
        ("date", lambda values: values[::-1], "dates aren't ascending"),
        ("about", lambda values: np.frombuffer(b"{}", np.uint8), "isn't an exam"),
        ("about", lambda values: np.frombuffer(b"\xff", np.uint8), "isn't an exam"),
        ("about", lambda values: np.frombuffer(canonical_json({"task": "tea", "spec": 1, "baseline_forwards": {}}),
                                               np.uint8), "isn't an exam"),
    ],
)  # fmt: skip
def test_exams_that_cant_be_are_refused_by_name(exam: Exam, name: str, change: Any, says: str) -> None:
    whole = arrays_of(exam)
    with pytest.raises(DataError, match=says):
        parse_exam(npz_bytes(**(whole | {name: change(whole[name])})), "exam.npz")


@pytest.mark.parametrize(("end", "count"), [(99, 1), (3, 4), (3, 0)])
def test_steps_that_lead_outside_are_refused(end: int, count: int) -> None:
    whole = arrays_of(pricing_questions(4))
    ends, counts = whole["input-step_end"].copy(), whole["input-step_count"].copy()
    ends[0], counts[0] = end, count
    with pytest.raises(DataError, match="step_end and step_count lead outside the steps"):
        parse_exam(npz_bytes(**(whole | {"input-step_end": ends, "input-step_count": counts})), "exam.npz")


def test_pickles_are_refused() -> None:
    buffer = io.BytesIO()
    np.savez(buffer, about=np.array([{"a": 1}], dtype=object), allow_pickle=True)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="only plain numbers are read, never objects"):
        parse_exam(buffer.getvalue(), "exam.npz")


@given(st.binary(max_size=200))
def test_any_bytes_are_refused_with_words(raw: bytes) -> None:
    with pytest.raises(DataError, match=r"exam\.npz"):
        parse_exam(raw, "exam.npz")


@given(place=st.integers(0, 10**9), by=st.integers(1, 255))
def test_a_flipped_byte_is_never_read_from_a_store(place: int, by: int) -> None:
    raw = bytearray(FLIPPED)
    raw[place % len(raw)] ^= by

    class Store:
        def get(self, key: str, *, max_bytes: int | None = None) -> bytes:
            return bytes(raw)

    store: Any = Store()
    with pytest.raises(DataError, match="the store was tampered with"):
        read_exam(store, sha256_hex(FLIPPED))


FLIPPED = pricing_questions(2).to_bytes()


def test_storing_twice_is_fine_and_other_bytes_are_not(tmp_path: Path, exam: Exam) -> None:
    store, path = FolderStore(tmp_path / "store"), tmp_path / "exam.npz"
    with pytest.raises(DataError, match=r"isn't there: run python -m pipelines\.evaluate"):
        load_exam(path)
    path.write_bytes(exam.to_bytes())
    sha256 = store_exam(store, path)
    assert store_exam(store, path) == sha256 == sha256_hex(path.read_bytes())
    assert read_exam(store, sha256).to_bytes() == exam.to_bytes() == load_exam(path).to_bytes()
    store.put(exam_key(sha256), b"other")
    with pytest.raises(StoreError, match="holds other bytes"):
        store_exam(store, path)
    path.write_bytes(b"rubbish")
    with pytest.raises(DataError, match="isn't a readable npz"):
        store_exam(store, path)


# Answers.


@pytest.mark.parametrize("semantics", ["window", "stateful"])
def test_answers_equal_the_slow_recomputation(tmp_path: Path, semantics: str) -> None:
    """The net in NumPy, date by date, on windows put together by hand: zeros before the first step."""
    bundle, exam = World(tmp_path).bundle(3), pricing_questions(6)
    steps, weights = exam.inputs["steps"].astype(np.float64), weights_of(3)
    found = answer(bundle, exam, semantics=semantics)
    for place in range(6):
        known = steps[max(0, place + 3 - min(int(exam.inputs["step_count"][place]), T)) : place + 3]
        window = np.concatenate([np.zeros((T - len(known), F)), np.clip(known, -3, 3)])
        rows = exam.row_range(place)
        contracts = np.clip(exam.inputs["contracts"][rows], -3, 3)
        expected = reference_head(weights, reference_context(weights, window, T), contracts)
        assert np.max(np.abs(found[rows] - expected)) < 2e-6


def test_windows_and_contracts_are_scaled_by_the_spec_that_asks() -> None:
    exam = pricing_questions(4)
    assert scaled_window(SPEC, exam, 0).shape == (T, F)
    assert not scaled_window(SPEC, exam, 0)[: T - 3].any()
    assert scaled_contracts(SPEC, exam, 1).shape == (24, K)
    assert np.array_equal(scaled_window(SPEC, exam, 3)[-1], np.clip(exam.inputs["steps"][5], -3, 3))


def test_the_other_tasks_exam_isnt_answered(tmp_path: Path) -> None:
    pricing, surfaces = World(tmp_path / "p"), World(tmp_path / "s", "surface_vae")
    with pytest.raises(DataError, match="is a pricing model, the exam asks a surface model"):
        answer(pricing.bundle(), surface_questions(2))
    with pytest.raises(DataError, match="is a surface model, the exam asks a pricing model"):
        answer(surfaces.bundle(), pricing_questions(2))


def test_a_longer_window_than_the_exam_keeps_isnt_answered() -> None:
    exam = pricing_questions(4)
    longer = dataclasses.replace(SPEC, window=HISTORY_STEPS + 1)
    require_same_inputs(longer, exam, "x")  # all the steps there are
    cut = {**exam.inputs, "step_count": np.full(4, HISTORY_STEPS, np.int32)}
    with pytest.raises(DataError, match=rf"differ in window \({HISTORY_STEPS + 1} steps, the exam keeps"):
        require_same_inputs(longer, dataclasses.replace(exam, inputs=cut), "x")


def test_a_surface_answer_is_read_by_its_own_blend(tmp_path: Path) -> None:
    """With all weight on the corrected last smile the net says nothing, and two nets answer the same."""
    world = World(tmp_path, "surface_vae")
    exam = world.questions()
    last_alone = dataclasses.replace(exam, inputs={**exam.inputs, "blend": np.zeros(2)})
    one, other = world.bundle(1), world.bundle(9)
    assert not np.allclose(answer(one, exam), answer(other, exam), atol=1e-4)
    assert np.array_equal(answer(one, exam, read_as=last_alone), answer(other, exam, read_as=last_alone))


def test_the_engine_that_does_nothing_fails_the_exam(tmp_path: Path) -> None:
    """The answers come from the engine that is named."""
    bundle = World(tmp_path).bundle()
    assert open_engine(bundle, "null").info().backend == "null"
    exam = answered(pricing_questions(3), bundle, bundle)
    assert not answer(bundle, exam, backend="null").any()
    assert np.allclose(answer(bundle, exam), exam.rows["answer"], atol=1e-6)
