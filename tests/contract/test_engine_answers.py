"""What engines compute: the golden vectors, a NumPy reference, and each other's answers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from serving.engine import PRECISIONS, golden_parity, open_engine
from serving.errors import EngineError
from tests.small_nets import (
    NATIVE,
    SEMANTICS,
    F,
    K,
    T,
    context_of,
    reference_context,
    reference_head,
    semantics,
    small_bundle,
    steps_of,
    weights_of,
)
from tests.tiny_family import FAMILIES, TOLERANCE, contracts_of, family_bundle

__all__ = ["semantics"]  # fixtures

# A hundredth of the context's range of -1..1; the head turns that into at most a tenth of a volatility point.
REDUCED = {"context": 2e-2, "iv": 1e-3}


@NATIVE
@pytest.mark.parametrize("members", [1, 3])
@pytest.mark.parametrize("family", list(FAMILIES))
@pytest.mark.parametrize("precision", PRECISIONS["native"])
def test_native_golden_vectors(tmp_path: Path, semantics: str, family: str, members: int, precision: str) -> None:
    bundle = family_bundle(tmp_path / "bundle", family, semantics=semantics, members=members)
    for parity in golden_parity(bundle, open_engine(bundle, "native", precision=precision)):
        allowed = TOLERANCE if precision == "fp32" else REDUCED[parity.name]
        assert parity.max_abs_difference <= allowed, parity


@NATIVE
@pytest.mark.parametrize("family", list(FAMILIES))
def test_native_answers_as_onnx_runtime_does(tmp_path: Path, semantics: str, family: str) -> None:
    """After every number of steps, also before the window is full."""
    bundle = family_bundle(tmp_path / "bundle", family, semantics=semantics, members=2)
    native, other = open_engine(bundle, "native"), open_engine(bundle, "ort")
    contracts, iv = contracts_of(70), np.zeros((2, 70), np.float32)
    for x in steps_of(4 * T):
        contexts = [context_of(one, x) for one in (native, other)]
        assert np.abs(contexts[0] - contexts[1]).max() < TOLERANCE
        for one, context, out in zip((native, other), contexts, iv, strict=True):
            one.head(context, contracts, out)
            one.advance(x)
        assert np.abs(iv[0] - iv[1]).max() < TOLERANCE


@NATIVE
def test_native_refuses_nets_it_doesnt_know(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"engine 'native' has no net 'small'.* it has pricing_lstm"):
        open_engine(small_bundle(tmp_path / "bundle"), "native")


@pytest.mark.parametrize("members", [1, 3])
@pytest.mark.parametrize("seed", range(3))
def test_parity_with_the_reference_on_random_sequences(tmp_path: Path, semantics: str, members: int, seed: int) -> None:
    """evaluate after any number of advances: the zero-padded last T steps, or the state carried over all of them."""
    engine = open_engine(small_bundle(tmp_path / "bundle", semantics=semantics, members=members))
    weights = [weights_of(index) for index in range(members)]
    steps = steps_of(3 * T, seed)
    contracts = np.random.default_rng(seed).normal(0.3, 0.05, (50, K)).astype(np.float32)
    iv = np.zeros(50, np.float32)
    for count in range(1, len(steps) + 1):
        context = context_of(engine, steps[count - 1])
        if semantics == "window":
            padded = np.concatenate([np.zeros((T, F)), steps[:count]])[-T:]
            expected = [reference_context(one, padded, T) for one in weights]
        elif count < T:  # the attention still sees zeros of steps that never were
            engine.advance(steps[count - 1])
            continue
        else:
            expected = [reference_context(one, steps[:count], T) for one in weights]
        assert np.abs(context - np.concatenate(expected)).max() < 2e-6
        engine.head(context, contracts, iv)
        heads = [reference_head(one, part, contracts) for one, part in zip(weights, expected, strict=True)]
        assert np.abs(iv - np.mean(heads, axis=0)).max() < 2e-6
        engine.advance(steps[count - 1])


def test_both_semantics_agree_after_one_window(tmp_path: Path) -> None:
    steps = steps_of(T)
    contexts = []
    for name in SEMANTICS:
        engine = open_engine(small_bundle(tmp_path / name, semantics=name))
        for x in steps[:-1]:
            engine.advance(x)
        contexts.append(context_of(engine, steps[-1]))
    assert np.abs(contexts[0] - contexts[1]).max() < 1e-6


def test_golden_vectors_are_recomputed(tmp_path: Path, semantics: str) -> None:
    good = small_bundle(tmp_path / "good", semantics=semantics, members=2)
    parities = golden_parity(good, open_engine(good))
    assert [one.name for one in parities] == ["context", "iv"]
    assert all(one.holds and one.max_abs_difference < 2e-6 for one in parities)
    null = golden_parity(good, open_engine(good, "null"))
    assert not any(one.holds for one in null)
