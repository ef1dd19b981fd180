"""A host judges and completes a chain as the trained net would, from quotes alone, and says what it can't judge.

`made` is a bundle of a small surface_vae with random weights, exported as the export stage does.
"""

from __future__ import annotations

import dataclasses
import functools
import io
from pathlib import Path

import numpy as np
import pytest
import torch

from models.surface_vae import Known, SurfaceVAE, SurfaceVAEConfig, Units
from pipelines.onnx_export import export_member
from serving.bundle import Bundle, write_bundle
from serving.engine import SurfaceEngine, open_engine, open_surface_engine
from serving.errors import BundleError, DataError, EngineError
from serving.last_seen import last_seen
from serving.manifest import Member, MemberFile
from serving.normal import Array
from serving.surface import Quotes, build_surface
from serving.surface_changes import Changes, changes
from serving.surface_grid import CELLS, MOVE_FEATURES, NOTHING, carried, fill, grid_spec, move_features, surface_grid
from serving.surface_host import UNUSUAL, Inspected, inspect_chain, surface_input
from serving.surface_reference import STATISTICS, Evidence, Reference
from serving.surface_score import Score, SurfaceAnswer, SurfaceInput, score, statistics
from tests.serving.test_surface import EXPIRIES, SPOT, STRIKES, TS, chain, expiry_of, skewed
from tests.small_nets import small_bundle
from tests.tiny_bundle import HASH

DAY = np.timedelta64(1, "D")
LISTED = [(root, expiry_of(root, days)) for root, days in EXPIRIES]
NAMES = ["calm", "normal", "stressed"]


@functools.cache
def small_net(regimes: int = 3) -> SurfaceVAE:
    torch.manual_seed(1)
    net = SurfaceVAE(SurfaceVAEConfig(CELLS, len(MOVE_FEATURES), regimes, latent=2, width=16)).eval()
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    cells, moves = torch.ones(CELLS), torch.ones(len(MOVE_FEATURES))
    net.set_units(Units(0.2 * cells, 0.05 * cells, 0.01 * cells, 0.0 * moves, 0.02 * moves))
    return net


def by_torch(net: SurfaceVAE, known: SurfaceInput) -> SurfaceAnswer:
    with torch.no_grad():
        answer = net(Known(*(torch.from_numpy(np.array(part)) for part in vars(known).values())))
    return SurfaceAnswer(*(part.numpy() for part in answer))


def at(
    day: int, *, spot: float = SPOT, rise: float = 0.0, expiries: list[tuple[str, np.datetime64]] = LISTED
) -> Quotes:
    return chain(ts=TS + day * DAY, spot=spot, expiries=expiries,
                 volatility=lambda strike, tau: skewed(strike, tau) + rise)  # fmt: skip


def random_days(count: int, seed: int = 0) -> list[tuple[SurfaceInput, Changes]]:
    """What the net is given, and how the quotes changed."""
    generator, days = np.random.default_rng(seed), []
    spot = SPOT
    before = last_seen(build_surface(at(0)))
    for day in range(1, count + 1):
        spot *= float(np.exp(0.005 * generator.standard_normal()))
        seen = last_seen(build_surface(at(day, spot=spot, rise=0.01 * generator.random())))
        days.append((surface_input(seen, before)[1], changes(seen, before)))
        before = seen
    return days


@functools.cache
def exported(net: SurfaceVAE) -> tuple[dict[str, bytes], dict[str, MemberFile]]:
    return export_member(net, "member-0")


def bundle_of(folder: Path, net: SurfaceVAE, *, reference: dict[str, Array] | None = None, **spec: object) -> Bundle:
    """As the export stage writes it; `spec` changes the feature spec."""
    days = random_days(8)
    if reference is None:
        dates = [Evidence(statistics(lambda known: by_torch(net, known), known)[0], day) for known, day in days]
        reference = Reference.fit(dates, [day for _, day in days]).to_arrays()
    first = days[0][0]
    golden = vars(first) | {f"{name}-0": part for name, part in vars(by_torch(net, first)).items()}
    onnx, roles = exported(net)
    files = dict(onnx)
    for name, arrays in (("golden.npz", golden), ("reference.npz", reference)):
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)
        files[name] = buffer.getvalue()
    return write_bundle(
        folder, model="surface_vae", model_config=dataclasses.asdict(net.config), members=[Member(roles)], files=files,
        feature_spec=grid_spec() | {"regimes": NAMES} | spec, semantics="window", tolerances={"surface": 1e-4},
        data_sha256=HASH, config_sha256=HASH,
    )  # fmt: skip


@pytest.fixture(scope="module")
def net() -> SurfaceVAE:
    return small_net()


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory, net: SurfaceVAE) -> Bundle:
    return bundle_of(tmp_path_factory.mktemp("surface") / "bundle", net)


@pytest.fixture(scope="module")
def engine(bundle: Bundle) -> SurfaceEngine:
    return open_surface_engine(bundle)


def test_a_chain_is_judged_as_the_trained_net_would(bundle: Bundle, engine: SurfaceEngine, net: SurfaceVAE) -> None:
    """Grids, moves, statistics and score made here once more, from the two surfaces and torch."""
    before, now = at(0), at(1, spot=SPOT * 0.99, rise=0.01)
    found = inspect_chain(bundle, engine, [before, now])
    seen, last = (last_seen(build_surface(quotes)) for quotes in (now, before))
    grid, back = surface_grid(seen), carried(last, seen.ts, seen.spot)
    move = move_features(last, seen.ts, seen.spot)
    known = SurfaceInput(*(np.asarray(part, np.float32).reshape(1, -1)
                           for part in (grid.volatility, grid.mask, fill(back), back.mask, move)))  # fmt: skip
    wanted = by_torch(net, known)
    np.testing.assert_allclose(found.completed, wanted.completed[0], atol=1e-6)
    np.testing.assert_allclose(found.deviation, wanted.deviation[0], rtol=1e-4)
    assert list(found.regimes) == NAMES
    np.testing.assert_allclose(list(found.regimes.values()), wanted.regime[0], atol=1e-6)
    np.testing.assert_array_equal(found.grid.volatility, grid.volatility)
    reference = Reference.from_arrays(bundle.arrays("reference.npz"), "reference.npz")
    of_net = statistics(lambda known: by_torch(net, known), known)[0]
    judged = score(Evidence(of_net, changes(seen, last)), reference)
    assert found.score is not None
    assert found.score.value == pytest.approx(judged.value, rel=1e-3, abs=1e-3)
    assert set(found.score.by_statistic) == set(STATISTICS)
    assert found.quotes is now


def test_one_snapshot_is_completed_but_not_judged(bundle: Bundle, engine: SurfaceEngine, net: SurfaceVAE) -> None:
    found = inspect_chain(bundle, engine, [at(0)])
    assert found.score is None
    assert found.last is None
    assert not found.unusual
    seen = last_seen(build_surface(at(0)))
    grid, known = surface_input(seen, None)
    assert not known.last.any()
    assert not known.last_mask.any()
    assert not known.move.any()
    np.testing.assert_array_equal(known.surface[0], grid.volatility.astype(np.float32))
    np.testing.assert_allclose(found.completed, by_torch(net, known).completed[0], atol=1e-6)
    assert NOTHING.known == 0


def unusable(day: int) -> Quotes:
    """Nobody bids."""
    quotes = at(day)
    return dataclasses.replace(quotes, bid=np.zeros(len(quotes)))


def test_a_snapshot_without_a_usable_smile_is_refused_by_its_time(bundle: Bundle, engine: SurfaceEngine) -> None:
    for chain_of in ([at(0), unusable(1)], [unusable(0)]):
        with pytest.raises(DataError, match=f"snapshot of {str(chain_of[-1].ts)[:10]}.* has no usable smile"):
            inspect_chain(bundle, engine, chain_of)


def test_times_that_dont_ascend_and_no_snapshot_are_refused(bundle: Bundle, engine: SurfaceEngine) -> None:
    for chain_of, message in (([at(1), at(0)], "ascend"), ([at(0), at(0)], "ascend"), ([], "has no snapshot")):
        with pytest.raises(DataError, match=message):
            inspect_chain(bundle, engine, chain_of)


def test_what_was_last_seen_is_the_last_usable_snapshot(bundle: Bundle, engine: SurfaceEngine) -> None:
    first, now = at(0), at(2, spot=SPOT * 1.01)
    passed_over = inspect_chain(bundle, engine, [first, unusable(1), now])
    alone = inspect_chain(bundle, engine, [first, now])
    assert passed_over.last is not None
    assert passed_over.last.ts == first.ts
    np.testing.assert_array_equal(passed_over.completed, alone.completed)
    assert passed_over.score == alone.score
    assert inspect_chain(bundle, engine, [unusable(1), now]).score is None


def test_a_surface_of_other_shares_was_not_seen(bundle: Bundle, engine: SurfaceEngine) -> None:
    """After a split of two for one; a fall by half in which the strikes stay is no split."""
    halved = chain(ts=TS + DAY, spot=SPOT / 2, expiries=LISTED, strikes=STRIKES / 2)
    found = inspect_chain(bundle, engine, [at(0), halved])
    assert found.last is None
    assert found.score is None
    np.testing.assert_array_equal(found.completed, inspect_chain(bundle, engine, [halved]).completed)
    crash = chain(ts=TS + DAY, spot=SPOT * 0.85, expiries=LISTED)
    assert inspect_chain(bundle, engine, [at(0), crash]).last is not None


def test_earlier_snapshots_dont_matter(bundle: Bundle, engine: SurfaceEngine) -> None:
    short = inspect_chain(bundle, engine, [at(1), at(2)])
    long = inspect_chain(bundle, engine, [at(0, rise=0.1), at(1), at(2)])
    np.testing.assert_array_equal(short.completed, long.completed)
    assert short.score == long.score


def test_a_chain_of_one_expiry_is_judged_by_what_it_shows(bundle: Bundle, engine: SurfaceEngine) -> None:
    """It has no neighbours among the expiries, and no column of moneyness has cells enough; neither is an anomaly."""
    one = [("SPX", expiry_of("SPX", 50))]
    found = inspect_chain(bundle, engine, [at(0, expiries=one), at(1, expiries=one, rise=0.005)])
    assert found.score is not None
    assert not {"worst_moneyness", "worst_expiry_level"} & set(found.score.by_statistic)
    assert {"residual", "common_level", "roughness", "forward"} <= set(found.score.by_statistic)
    assert np.isfinite(found.completed).all()


def test_quotes_left_over_from_before_show_in_forwards_and_roughness(bundle: Bundle, engine: SurfaceEngine) -> None:
    """The same bids and asks after a fall of two per cent."""
    stale = dataclasses.replace(at(0), ts=TS + DAY, spot=SPOT * 0.98)
    fresh = inspect_chain(bundle, engine, [at(0), at(1, spot=SPOT * 0.98)])
    found = inspect_chain(bundle, engine, [at(0), stale])
    assert found.score is not None
    assert fresh.score is not None
    assert found.score.by_statistic["forward"] > fresh.score.by_statistic["forward"] + 5.0
    assert found.score.by_statistic["roughness"] < fresh.score.by_statistic["roughness"]
    assert found.score.value > fresh.score.value


def test_a_chain_that_shares_nothing_with_the_last_one_is_not_judged(tmp_path: Path, net: SurfaceVAE) -> None:
    """Where the net's statistics don't count (it was fitted on the reference's dates), the quotes alone could tell."""
    days = random_days(8)
    dates = [Evidence(np.ones(3), day) for _, day in days]
    reference = Reference.fit(dates, [day for _, day in days], held_out=False).to_arrays()
    known = bundle_of(tmp_path / "bundle", net, reference=reference)
    first, second = ([(root, expiry_of(root, days))] for root, days in (("SPX", 50), ("SPXW", 170)))
    found = inspect_chain(known, open_surface_engine(known), [at(0, expiries=first), at(1, expiries=second)])
    assert found.last is not None
    assert found.score is None
    assert not found.unusual


@pytest.mark.parametrize(("percentile", "unusual"), [(1.0, True), (UNUSUAL, False), (0.5, False)])
def test_unusual_is_above_the_share_named(
    bundle: Bundle, engine: SurfaceEngine, percentile: float, unusual: bool
) -> None:
    found: Inspected = inspect_chain(bundle, engine, [at(0), at(1)])
    assert dataclasses.replace(found, score=Score(1.0, percentile, {})).unusual == unusual


def test_a_net_without_labels_names_no_regime(tmp_path: Path) -> None:
    nameless = bundle_of(tmp_path / "bundle", small_net(regimes=1), regimes=[])
    assert inspect_chain(nameless, open_surface_engine(nameless), [at(0), at(1)]).regimes == {}


def test_bundles_of_the_other_task_are_refused(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="completes and judges surfaces; it prices nothing"):
        open_engine(bundle)
    pricing = small_bundle(tmp_path / "pricing")
    with pytest.raises(EngineError, match="prices contracts; it holds no surface net"):
        open_surface_engine(pricing)
    with pytest.raises(EngineError, match="no engine 'null' for surfaces"):
        open_surface_engine(bundle, "null")


def test_bundles_that_dont_fit_this_code_are_refused(tmp_path: Path, net: SurfaceVAE) -> None:
    chain_of = [at(0), at(1)]
    other_grid = bundle_of(tmp_path / "grid", net, version=0)
    with pytest.raises(DataError, match="differs from this code's in version"):
        inspect_chain(other_grid, open_surface_engine(other_grid), chain_of)
    no_reference = bundle_of(tmp_path / "reference", net, reference={"edges": np.zeros(3)})
    with pytest.raises(BundleError, match="holds no reference of the anomaly score"):
        inspect_chain(no_reference, open_surface_engine(no_reference), chain_of)
    no_names = bundle_of(tmp_path / "names", net, regimes="calm")
    with pytest.raises(BundleError, match=r"feature_spec.regimes must be a list of names, found 'calm'"):
        inspect_chain(no_names, open_surface_engine(no_names), chain_of)


@pytest.mark.parametrize("name", list(SurfaceInput.__dataclass_fields__))
def test_wrong_arrays_are_refused_by_name(engine: SurfaceEngine, name: str) -> None:
    known, _ = random_days(1)[0]
    for wrong in (getattr(known, name).astype(np.float64), getattr(known, name)[:, :2]):
        with pytest.raises(EngineError, match=f"tensor '{name}': expected float32"):
            engine.answer(dataclasses.replace(known, **{name: wrong}))


def test_many_surfaces_at_once_are_answered_one_by_one(engine: SurfaceEngine) -> None:
    days = [known for known, _ in random_days(5)]
    many = SurfaceInput(*(np.concatenate([getattr(day, name) for day in days])
                          for name in SurfaceInput.__dataclass_fields__))  # fmt: skip
    whole = engine.answer(many)
    for place, day in enumerate(days):
        alone = engine.answer(day)
        for name in SurfaceAnswer.__dataclass_fields__:
            np.testing.assert_allclose(getattr(whole, name)[place], getattr(alone, name)[0], rtol=1e-5, atol=1e-7)
