"""Which provider of ONNX Runtime runs: the one asked for, or none; never a silent CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from serving.engines import ort
from serving.errors import EngineError
from tests.tiny_bundle import FEATURES, tiny_bundle
from tests.tiny_surface import surface_bundle

GPU_HERE = "CUDAExecutionProvider" in onnxruntime.get_available_providers()


def test_the_cpu_says_that_it_is_the_cpu(tmp_path: Path) -> None:
    assert "CPUExecutionProvider" in ort.open_engine(tiny_bundle(tmp_path / "bundle")).info().runtime
    assert "CPUExecutionProvider" in ort.open_surface_engine(surface_bundle(tmp_path / "surface")).runtime


@pytest.mark.skipif(GPU_HERE, reason="this onnxruntime has GPU providers")
@pytest.mark.parametrize(("provider", "name"), [("cuda", "CUDAExecution"), ("tensorrt", "TensorrtExecution")])
@pytest.mark.parametrize("task", ["pricing", "surface"])
def test_a_provider_that_this_build_has_not_is_refused(tmp_path: Path, provider: str, name: str, task: str) -> None:
    make, opened = (tiny_bundle, ort.open_engine) if task == "pricing" else (surface_bundle, ort.open_surface_engine)
    bundle = make(tmp_path / "bundle")
    with pytest.raises(EngineError, match=rf"'{provider}': this onnxruntime .* has no {name}.*strikeforge\[gpu"):
        opened(bundle, provider)


def test_an_unknown_provider_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="no provider 'abacus'; there are cpu, cuda, tensorrt"):
        ort.open_engine(tiny_bundle(tmp_path / "bundle"), "abacus")


class Session:
    """A session that runs on the CPU whatever was asked for, as ONNX Runtime does without a driver."""

    asked: list[Any] = []  # noqa: RUF012

    def __init__(self, raw: bytes, options: Any, providers: list[str]) -> None:
        self.session = REAL(raw, providers=["CPUExecutionProvider"])
        Session.asked.append((providers, options.get_session_config_entry("session.disable_cpu_ep_fallback")))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.session, name)


REAL = onnxruntime.InferenceSession


@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_a_session_that_fell_back_to_the_cpu_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, provider: str
) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: list(ort.PROVIDERS.values()))
    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    Session.asked.clear()
    with pytest.raises(EngineError, match=r"was asked for, but \['CPUExecutionProvider'\] would run"):
        ort.open_engine(tiny_bundle(tmp_path / "bundle"), provider)
    wanted = [ort.PROVIDERS[name] for name in ort.ASKED[provider]]
    assert Session.asked == [(wanted, "1")]
    assert "CPUExecutionProvider" not in wanted


def test_inputs_are_bound_anew_for_every_run_on_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime copies host memory to a GPU when it is bound, so what is written later would never arrive."""
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: list(ort.PROVIDERS.values()))
    real = REAL.get_providers
    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    monkeypatch.setattr(Session, "get_providers", lambda self: [*ort.PROVIDERS.values()][1:2] + real(self.session),
                        raising=False)  # fmt: skip
    bound: list[str] = []

    class Binding:
        def __init__(self, session: Any) -> None:
            self.inner = REAL.io_binding(session)

        def bind_ortvalue_input(self, name: str, value: Any) -> None:
            bound.append(name)
            self.inner.bind_ortvalue_input(name, value)

        def bind_ortvalue_output(self, name: str, value: Any) -> None:
            self.inner.bind_ortvalue_output(name, value)

    monkeypatch.setattr(Session, "io_binding", lambda self: Binding(self.session), raising=False)
    run = "run_with_iobinding"
    monkeypatch.setattr(Session, run, lambda self, binding: getattr(self.session, run)(binding.inner), raising=False)
    engine = ort.open_engine(tiny_bundle(tmp_path / "bundle"), "cuda")
    bound.clear()
    out = np.zeros(engine.info().context_size, np.float32)
    for _ in range(3):
        engine.evaluate(np.ones(FEATURES, np.float32), out)
    assert bound == ["window"] * 3
