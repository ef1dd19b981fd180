"""A promotion makes, takes along and names engine packs: before the event, once, and a rollback carries them."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest

from pipelines import promote as promote_module
from pipelines.errors import FollowUpError
from pipelines.gate_context import GateContext, GateOutcome
from pipelines.lineage_of import links
from pipelines.promote import Promotion, promote
from pipelines.reconcile import reconcile
from pipelines.rollback import rollback
from pipelines.verify import verify
from serving.bundle import Bundle, load_bundle
from serving.engine_pack import EnginePack, packed_key, write_pack
from serving.errors import BundleError, ConfigError, EngineError, LedgerError
from serving.ledger import Ledger
from tests.stand_in_native import Moves, install
from tests.tiny_bundle import tiny_bundle
from tests.tiny_registry import Desk

TRT = "trt_rtx_sm89_fp16"


@pytest.fixture
def moves(monkeypatch: pytest.MonkeyPatch) -> Moves:
    made = Moves()
    install(monkeypatch, made)
    return made


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    made = Desk(tmp_path)
    for seed in (1, 2):
        made.register(seed)
    return made


def gate(name: str, context: GateContext, **figures: Any) -> GateOutcome:
    return GateOutcome(name, True, None, 1.01, "", figures)


CHECKS = [{"name": "native: iv (window)", "difference": 1e-7, "tolerance": 1e-5},
          {"name": "ort: iv (window)", "difference": 0.0, "tolerance": 1e-5}]  # fmt: skip
GATES = [
    functools.partial(gate, "parity", admitted=["native", "ort"], checks=CHECKS),
    functools.partial(
        gate, "precision", admitted=["bf16"], precisions={"bf16": {"ratio": 1.001}, "int8": {"ratio": 2.0}}
    ),
]


def act(desk: Desk, version: int, **other: Any) -> Promotion:
    arguments: dict[str, Any] = {
        "store": desk.store,
        "registry": desk.registry,
        "channel": desk.channel,
        "gates": GATES,
    }
    return promote(model="tiny", version=version, by="ci", **(arguments | other))


def bundle_of(desk: Desk, seed: int) -> Bundle:
    return load_bundle(desk.folder / f"bundle-{seed}")


def compiled(folder: Path, bundle: Bundle, target: str = TRT) -> EnginePack:
    return write_pack(
        folder, bundle=bundle, target=target, backend="trt", precision="fp16", library="tensorrt-rtx", version="1.1",
        sm="sm89", files={"member-0/step.engine": b"an engine"},
    )  # fmt: skip


def named(desk: Desk) -> dict[str, str]:
    return dict(Ledger(desk.store, "tiny").events()[-1].details.get("packs", {}))


def test_what_was_admitted_and_what_was_compiled_is_released_together(desk: Desk, moves: Moves) -> None:
    pack = compiled(desk.folder / "pack", bundle_of(desk, 1))
    done = act(desk, 1, packs=[pack.directory])
    assert "engine packs native_bf16, native_fp32, trt_rtx_sm89_fp16" in done.message
    assert "precisions NOT released: int8" in done.message
    packs = named(desk)
    assert list(packs) == ["native_bf16", "native_fp32", TRT]
    assert packs[TRT] == pack.sha256
    found = verify("tiny", desk.store)
    assert found.breaks == ()
    assert next(layer.looked_at for layer in found.layers if layer.name == "engine packs") == 3 + 3
    (tied,) = links("tiny", pack.sha256, desk.store).found
    assert tied.named[f"engine pack {TRT} (event 4)"] == pack.sha256
    assert desk.store.get(packed_key(pack.sha256, "pack.json")) == pack.read("pack.json")


def test_a_rollback_brings_the_packs_of_the_versions_own_promotion(desk: Desk, moves: Moves) -> None:
    act(desk, 1, packs=[compiled(desk.folder / "pack", bundle_of(desk, 1)).directory])
    first = named(desk)
    act(desk, 2)
    assert list(named(desk)) == ["native_bf16", "native_fp32"]
    rollback(model="tiny", reason="bad", store=desk.store, registry=desk.registry, channel=desk.channel, by="ann")
    assert named(desk) == first
    assert verify("tiny", desk.store).breaks == ()


def test_without_the_native_engine_nothing_is_named_and_the_event_is_as_it_always_was(desk: Desk) -> None:
    gates = [functools.partial(gate, "parity", admitted=["ort"], checks=CHECKS)]
    act(desk, 1, gates=gates)
    assert "packs" not in Ledger(desk.store, "tiny").events()[-1].details
    assert desk.store.list("packs/") == []


def test_packs_are_in_the_store_before_the_event_and_made_once(
    desk: Desk, moves: Moves, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between the packs and the event: nothing is decided, and the same promotion names the same packs."""

    def die(*_: object, **__: object) -> str:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(promote_module, "store_provenance", die)
        with pytest.raises(KeyboardInterrupt):
            act(desk, 1)
    assert desk.state().champion is None
    before = set(desk.store.list("packs/"))
    assert len(before) == 4
    act(desk, 1)
    assert set(desk.store.list("packs/")) == before
    assert {key.split("/")[1] for key in before} == set(named(desk).values())


def test_compiled_packs_that_dont_fit_are_refused_before_anything_is_written(
    desk: Desk, moves: Moves, tmp_path: Path
) -> None:
    before = desk.store.list()
    other = compiled(tmp_path / "other", bundle_of(desk, 2))
    with pytest.raises(BundleError, match="is of bundle"):
        act(desk, 1, packs=[other.directory])
    with pytest.raises(ConfigError, match=r"there is no folder .*nowhere; compile first"):
        act(desk, 1, packs=[tmp_path / "nowhere"])
    twice = [compiled(tmp_path / name, tiny_bundle(tmp_path / "b", seed=1)).directory for name in ("one", "two")]
    with pytest.raises(ConfigError, match=f"two are for target {TRT}"):
        act(desk, 1, packs=twice)
    good = compiled(tmp_path / "good", bundle_of(desk, 1))
    (good.directory / "member-0/step.engine").write_bytes(b"another")
    with pytest.raises(BundleError, match=r"member-0/step\.engine"):
        act(desk, 1, packs=[good.directory])
    assert desk.store.list() == before


def test_what_was_admitted_elsewhere_isnt_released_where_it_cant_be_made(desk: Desk, moves: Moves) -> None:
    moves.refuses = {"bf16": "this CPU has no bf16"}
    with pytest.raises(EngineError, match=r"engine pack native_bf16: the gates admitted it.*this CPU has no bf16"):
        act(desk, 1)
    assert desk.state().champion is None


def test_a_dry_run_stores_no_packs(desk: Desk, moves: Moves) -> None:
    act(desk, 1, dry_run=True)
    assert desk.store.list("packs/") == []


def test_a_renewal_keeps_what_was_compiled_and_makes_the_native_packs_anew(desk: Desk, moves: Moves) -> None:
    """Else hosts that pull a GPU's target are refused by the renewed release."""
    bundle = bundle_of(desk, 1)
    act(desk, 1, packs=[compiled(desk.folder / name, bundle, name).directory for name in (TRT, "trt_rtx_sm80_fp16")])
    first = named(desk)
    moves.shift = {"bf16": 1e-4}
    newer = write_pack(
        desk.folder / "newer", bundle=bundle, target=TRT, backend="trt", precision="fp16", library="tensorrt-rtx",
        version="1.2", sm="sm89", files={"member-0/step.engine": b"a newer engine"},
    )  # fmt: skip
    done = act(desk, 1, packs=[newer.directory], renew=True, reason="quarter")
    second = named(desk)
    assert second[TRT] == newer.sha256
    assert second["trt_rtx_sm80_fp16"] == first["trt_rtx_sm80_fp16"]
    assert second["native_bf16"] != first["native_bf16"]
    assert second.keys() == first.keys()
    assert f"engine packs {', '.join(sorted(second))}" in done.message
    assert verify("tiny", desk.store).breaks == ()


def test_a_renewal_whose_kept_pack_is_gone_is_refused_before_the_gates(desk: Desk, moves: Moves) -> None:
    pack = compiled(desk.folder / "pack", bundle_of(desk, 1))
    act(desk, 1, packs=[pack.directory])
    before = desk.store.list("ledger/")
    desk.store.delete(packed_key(pack.sha256, "member-0/step.engine"))
    with pytest.raises(BundleError, match=r"member-0/step\.engine: pack .* isn't in the store"):
        act(desk, 1, renew=True, reason="quarter")
    assert desk.store.list("ledger/") == before


def test_a_released_pack_that_is_gone_is_said_by_verify_reconcile_and_rollback(desk: Desk, moves: Moves) -> None:
    pack = compiled(desk.folder / "pack", bundle_of(desk, 1))
    act(desk, 1, packs=[pack.directory])
    act(desk, 2)
    before = desk.store.list("ledger/")
    key = packed_key(pack.sha256, "member-0/step.engine")
    content = desk.store.get(key)
    desk.store.delete(key)
    assert any(key in line for line in verify("tiny", desk.store).breaks)
    back: dict[str, Any] = {
        "model": "tiny", "reason": "bad", "store": desk.store, "registry": desk.registry, "by": "ann"
    }  # fmt: skip
    with pytest.raises(LedgerError, match=rf"isn't decided, as it couldn't be released: {key}"):
        rollback(channel=desk.channel, **back)
    assert desk.store.list("ledger/") == before
    desk.store.put(key, content)
    rollback(channel=desk.channel, **back)
    for name in desk.store.list("channel/"):
        desk.store.delete(name)
    desk.store.delete(key)
    with pytest.raises(FollowUpError, match=key):
        reconcile("tiny", desk.store, desk.registry, desk.channel)
    desk.store.put(key, content)
    reconcile("tiny", desk.store, desk.registry, desk.channel)
    assert verify("tiny", desk.store).breaks == ()
