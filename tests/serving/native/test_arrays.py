"""What the extension refuses: the same words as every other back end, and arrays it can't read in place."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from serving.engine import check_array
from serving.errors import EngineError
from tests.serving.native.built import built_core
from tests.serving.native.test_lstm import encoder_of, net_of

CORE = built_core()
F, D = 8, 5


@pytest.fixture(scope="module")
def encoder() -> Any:
    return encoder_of(net_of(F, 20, 1, 4), "window")


def read_only(size: int) -> np.ndarray:
    array = np.zeros(size, np.float32)
    array.flags.writeable = False
    return array


@pytest.mark.parametrize(
    "x",
    [
        np.zeros(F + 1, np.float32), np.zeros((1, F), np.float32), np.zeros(F), np.zeros(F, np.int32), [0.0] * F, None,
        np.zeros(F, ">f4")[::1], np.float32(0), np.zeros(0, np.float32),
    ],
)  # fmt: skip
def test_the_words_are_those_of_every_back_end(encoder: Any, x: Any) -> None:
    with pytest.raises(EngineError) as everywhere:
        check_array("x", x, (F,))
    for call in (lambda: encoder.evaluate(x, np.zeros(D, np.float32)), lambda: encoder.advance(x)):
        with pytest.raises(EngineError) as here:
            call()
        assert str(here.value) == str(everywhere.value)


@pytest.mark.parametrize("out", [np.zeros(D + 1, np.float32), np.zeros(D), read_only(D), "context"])
def test_outputs_too(encoder: Any, out: Any) -> None:
    with pytest.raises(EngineError) as everywhere:
        check_array("context", out, (D,), written=True)
    with pytest.raises(EngineError) as here:
        encoder.evaluate(np.zeros(F, np.float32), out)
    assert str(here.value) == str(everywhere.value)


@pytest.mark.parametrize("x", [np.zeros(2 * F, np.float32)[::2], np.zeros(F, np.float32)[::-1],
                               np.zeros(4 * F + 1, np.uint8)[1:].view(np.float32)])  # fmt: skip
def test_arrays_that_cant_be_read_in_place_are_refused(encoder: Any, x: Any) -> None:
    with pytest.raises(EngineError, match=r"tensor 'x': expected a C-contiguous, aligned array .*ascontiguousarray"):
        encoder.evaluate(x, np.zeros(D, np.float32))


def test_keywords_and_subclasses_work(encoder: Any) -> None:
    x, out = np.ones(F, np.float32), np.zeros(D, np.float32)
    encoder.evaluate(x=x.view(np.memmap), out=out)
    assert out.any()


def test_wrong_numbers_of_arguments_are_pythons_own_error(encoder: Any) -> None:
    with pytest.raises(TypeError):
        encoder.evaluate(np.zeros(F, np.float32))
