"""What surface_vae is fed and taught: draws by (seed, epoch, place) alone, labels by share, units of training dates.

And whether faults put into surfaces are told apart: not at all without a fault, always with a huge one.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from models.surface_vae import SurfaceVAE, SurfaceVAEConfig
from pipelines import surface_faults
from pipelines.dataset import FeatureStore
from pipelines.fit import fit
from pipelines.surface_faults import detect, scaled_tenor, shifted_wing, swapped_expiries
from pipelines.tasks.surface import SurfaceTask, regime_names
from pipelines.tasks.surface_bundle import reference, surface_input, torch_net
from serving.errors import TooFewSnapshotsError
from serving.surface_grid import CELLS, MONEYNESS, MOVE_FEATURES, SHAPE, TENORS_DAYS
from tests.pipelines.conftest import TinyRun


@pytest.fixture
def store(tiny_run: TinyRun) -> FeatureStore:
    return FeatureStore.open(tiny_run.out / "features")


def task_on(tiny_run: TinyRun, store: FeatureStore, *more: str) -> SurfaceTask:
    return SurfaceTask(tiny_run.of("surface_vae", *more), store)


def small_net(task: SurfaceTask) -> SurfaceVAE:
    torch.manual_seed(0)
    net = SurfaceVAE(SurfaceVAEConfig(**task.sizes())).eval()
    task.prepare(net)
    return net


def seen_by_place(task: SurfaceTask, epoch: int, places: np.ndarray | None = None) -> dict[int, np.ndarray]:
    """Cells the net sees of each training surface in an epoch, by place."""
    batches = task.training_batches()
    if places is not None:
        batches.places = places
    batches.set_epoch(epoch)
    moves = {task.store.moves[place].tobytes(): int(place) for place in task.store.places("train")}
    return {moves[move.numpy().tobytes()]: mask.numpy()
            for batch in batches for move, mask in zip(batch.known.move, batch.known.mask, strict=True)}  # fmt: skip


def same(first: dict[int, np.ndarray], second: dict[int, np.ndarray]) -> bool:
    return all(np.array_equal(mask, second[place]) for place, mask in first.items() if place in second)


# --- what is hidden


def test_what_is_hidden_depends_on_seed_epoch_and_place_alone(tiny_run: TinyRun, store: FeatureStore) -> None:
    task, places = task_on(tiny_run, store), store.places("train")
    first = seen_by_place(task, 5)
    assert sorted(first) == sorted(places.tolist())
    seen_by_place(task, 4)  # what was drawn before doesn't matter
    assert same(first, seen_by_place(task, 5))
    some = seen_by_place(task, 5, places[[7, 2]])  # nor which other snapshots there are
    assert len(some) == 2
    assert same(first, some)
    assert same(first, seen_by_place(task_on(tiny_run, store, "trainer.snapshots_per_batch=1"), 5))
    assert not same(first, seen_by_place(task, 6))
    assert not same(first, seen_by_place(task_on(tiny_run, store, "seed=8"), 5))


def test_nothing_is_seen_that_is_not_known_and_hidden_cells_are_zero(tiny_run: TinyRun, store: FeatureStore) -> None:
    hidden = 0
    for batch in task_on(tiny_run, store).training_batches():
        assert (batch.known.mask <= batch.mask).all()
        assert (batch.known.surface[batch.known.mask == 0] == 0).all()
        seen = batch.known.mask > 0
        assert torch.equal(batch.known.surface[seen], batch.target[seen])
        hidden += int((batch.mask - batch.known.mask).sum())
    assert hidden > 0


def test_the_share_hidden_is_the_one_asked_for(tiny_run: TinyRun, store: FeatureStore) -> None:
    """Single cells, a mean share of `hidden_share`, and whole lines on top."""
    for share in (0.0, 0.4):
        task = task_on(tiny_run, store, f"model.hidden_share={share}")
        drawn = [mask for epoch in range(30) for mask in seen_by_place(task, epoch).values()]
        known = np.stack([task.store.grids[place, 1] for place in seen_by_place(task, 0)])
        found = 1 - sum(mask.sum() for mask in drawn) / (30 * known.sum())
        assert share < found < share + 0.12


def test_validation_is_always_the_same_and_the_error_is_of_hidden_cells(tiny_run: TinyRun, store: FeatureStore) -> None:
    task = task_on(tiny_run, store)
    first, second = (list(task.validation_batches()) for _ in range(2))
    assert sum(len(batch.label) for batch in first) == len(store.places("validation"))
    for batch, again in zip(first, second, strict=True):
        assert torch.equal(batch.known.mask, again.known.mask)
    net, batch = small_net(task), first[0]
    hidden = (batch.mask - batch.known.mask) > 0
    errors = task.errors(net, batch)
    with torch.no_grad():
        wanted = 100 * (net(batch.known).completed - batch.target)[hidden]
    torch.testing.assert_close(errors.detach(), wanted)
    untouched = batch._replace(target=torch.where(hidden, batch.target, batch.target + 1))
    torch.testing.assert_close(task.errors(net, untouched), errors)


# --- labels


def labelled(store: FeatureStore, names: list[str | None]) -> FeatureStore:
    return dataclasses.replace(store, snapshots=store.snapshots.with_columns(pl.Series("regime", names, pl.String)))


@pytest.mark.parametrize("share", [0.01, 0.3, 0.5, 1.0])
def test_the_labelled_share_holds_with_one_of_each_regime(tiny_run: TinyRun, store: FeatureStore, share: float) -> None:
    count = len(store.snapshots)
    names: list[str | None] = ["calm" if place % 3 else None for place in range(count)]
    training = store.places("train")
    names[int(training[4])] = "stressed"
    made = labelled(store, names)
    task = task_on(tiny_run, made, f"model.labelled_share={share}")
    kept = task.labels[training]
    available = sum(names[int(place)] is not None for place in training)
    assert (kept >= 0).sum() == max(round(share * available), 2)
    assert set(kept[kept >= 0]) == {0, 1}
    assert task.regimes == ["calm", "stressed"]
    assert task.labelled_share == pytest.approx((kept >= 0).mean())
    for place in np.flatnonzero(task.labels >= 0):
        assert task.regimes[task.labels[place]] == names[place]
    again = task_on(tiny_run, made, f"model.labelled_share={share}")
    np.testing.assert_array_equal(again.labels, task.labels)


def test_labels_of_other_dates_are_kept_and_unknown_names_are_none(tiny_run: TinyRun, store: FeatureStore) -> None:
    names: list[str | None] = ["calm"] * len(store.snapshots)
    test = store.places("test")
    names[int(test[0])] = "never trained on"
    task = task_on(tiny_run, labelled(store, names), "model.labelled_share=0.1")
    assert task.labels[test[0]] == -1
    assert (task.labels[test[1:]] == 0).all()


def test_without_any_label_there_is_one_nameless_regime(tiny_run: TinyRun, store: FeatureStore, tmp_path: Path) -> None:
    made = labelled(store, [None] * len(store.snapshots))
    task = task_on(tiny_run, made)
    assert task.sizes()["regimes"] == 1
    assert regime_names(made) == []
    assert (task.labels == -1).all()
    fitted = fit(tiny_run.of("surface_vae", "trainer.epochs=1"), made, tmp_path)
    assert fitted.history["train_loss"].is_finite().all()


# --- units


def test_units_come_from_training_dates_alone(tiny_run: TinyRun, store: FeatureStore) -> None:
    names = ("unit_level", "unit_level_deviation", "unit_change_deviation", "unit_move", "unit_move_deviation")
    before = small_net(task_on(tiny_run, store)).state_dict()
    for split, same_units in (("test", True), ("validation", True), ("train", False)):
        grids, moves = np.array(store.grids), np.array(store.moves)
        places = store.places(split)
        grids[places, 0] += 0.1 * grids[places, 1]
        moves[places] += 0.1
        other = dataclasses.replace(store, grids=grids, moves=moves)
        after = small_net(task_on(tiny_run, other)).state_dict()
        assert all(torch.equal(before[name], after[name]) for name in names) == same_units, split


def test_units_are_means_and_deviations_of_known_cells(tiny_run: TinyRun, store: FeatureStore) -> None:
    places = store.places("train")
    surface, mask, last, last_mask = (np.array(store.grids[places, part], dtype=float) for part in range(4))
    net = small_net(task_on(tiny_run, store))
    cell = int(np.argmax(mask.sum(0)))
    known = mask[:, cell] > 0
    both = known & (last_mask[:, cell] > 0)
    assert float(net.unit_level[cell]) == pytest.approx(surface[known, cell].mean(), rel=1e-5)
    deviation = np.sqrt(np.mean((surface - last)[both, cell] ** 2))
    assert float(net.unit_change_deviation[cell]) == pytest.approx(max(deviation, 0.002), rel=1e-4)
    moves = np.array(store.moves[places], dtype=float)
    np.testing.assert_allclose(net.unit_move.numpy(), moves.mean(0), rtol=1e-5, atol=1e-8)
    never = np.flatnonzero(mask.sum(0) == 0)
    assert never.size
    assert torch.isfinite(net.unit_level).all()
    assert (net.unit_level > 0).all()


def test_sizes_are_those_of_the_grid_and_the_labels(tiny_run: TinyRun, store: FeatureStore) -> None:
    sizes = task_on(tiny_run, store).sizes()
    assert (sizes["cells"], sizes["moves"], sizes["regimes"]) == (
        CELLS,
        len(MOVE_FEATURES),
        max(len(regime_names(store)), 1),
    )
    assert (sizes["latent"], sizes["width"]) == (2, 16)


# --- the anomaly score's reference and the faults


def test_the_reference_needs_some_dates(tiny_run: TinyRun, store: FeatureStore) -> None:
    net = small_net(task_on(tiny_run, store))
    assert len(reference(net, store).scores) == len(store.places("train"))  # three validation dates are too few
    few = pl.when(pl.int_range(pl.len()) > 3).then(pl.lit("unused")).otherwise(pl.col("split"))
    with pytest.raises(TooFewSnapshotsError, match="needs 5 training dates"):
        reference(net, dataclasses.replace(store, snapshots=store.snapshots.with_columns(split=few)))


def areas(store: FeatureStore, tiny_run: TinyRun, monkeypatch: pytest.MonkeyPatch, fault: object) -> dict[str, float]:
    """Area under the curve of the net's score by fault, `fault` among them."""
    monkeypatch.setattr(surface_faults, "FAULTS", {"this": fault})
    net = small_net(task_on(tiny_run, store))
    found = detect(store, torch_net(net), reference(net, store))
    assert found.places.tolist() == store.places("test").tolist()
    assert len(found.clean) == len(found.percentile) == len(found.places)
    return dict(zip(found.table["fault"], found.table["AUC of the net's score"], strict=True))


def test_no_fault_is_not_found_and_a_huge_one_always(
    tiny_run: TinyRun, store: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert areas(store, tiny_run, monkeypatch, lambda surface, mask: (surface, mask))["this"] == 0.5

    def huge(surface: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return surface + np.float32(0.5) * mask, mask

    assert areas(store, tiny_run, monkeypatch, huge)["this"] == 1.0


def test_stale_surfaces_are_tried_where_the_underlying_moved(
    tiny_run: TinyRun, store: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = areas(store, tiny_run, monkeypatch, lambda surface, mask: (surface, mask))
    assert surface_faults.STALE in found
    still = dataclasses.replace(store, moves=np.zeros_like(store.moves))
    assert surface_faults.STALE not in areas(still, tiny_run, monkeypatch, lambda surface, mask: (surface, mask))


def test_faults_change_known_cells_as_they_say() -> None:
    generator = np.random.default_rng(0)
    surface = generator.uniform(0.1, 0.3, CELLS).astype(np.float32)
    mask = (generator.random(CELLS) < 0.7).astype(np.float32)
    surface *= mask
    table, known = surface.reshape(SHAPE), mask.reshape(SHAPE)
    low = np.array(MONEYNESS) <= -0.2
    wing, wing_mask = (part.reshape(SHAPE) for part in shifted_wing(surface, mask))
    np.testing.assert_allclose(wing, table + 0.02 * known * low, atol=1e-7)
    np.testing.assert_array_equal(wing_mask, known)
    scaled, _ = (part.reshape(SHAPE) for part in scaled_tenor(surface, mask))
    at = TENORS_DAYS.index(60.0)
    np.testing.assert_allclose(scaled[at], 1.05 * table[at], rtol=1e-6)
    np.testing.assert_array_equal(np.delete(scaled, at, 0), np.delete(table, at, 0))
    swapped, swapped_mask = (part.reshape(SHAPE) for part in swapped_expiries(surface, mask))
    first, second = TENORS_DAYS.index(30.0), TENORS_DAYS.index(120.0)
    for one, other in ((first, second), (second, first)):
        np.testing.assert_array_equal(swapped[one], table[other])
        np.testing.assert_array_equal(swapped_mask[one], known[other])
    np.testing.assert_array_equal(np.delete(swapped, [first, second], 0), np.delete(table, [first, second], 0))
    np.testing.assert_array_equal(shifted_wing(surface, mask)[0][mask == 0], 0)


def test_a_nets_answer_is_the_same_for_hosts(tiny_run: TinyRun, store: FeatureStore) -> None:
    task = task_on(tiny_run, store)
    net, place = small_net(task), int(store.places("test")[0])
    given = surface_input(store, place)
    with torch.no_grad():
        batch = next(iter(task.validation_batches()))
        wanted = net(batch.known)
    whole = torch_net(net)(dataclasses.replace(given))
    assert whole.completed.shape == (1, CELLS)
    assert wanted.completed.shape[1] == CELLS
    np.testing.assert_array_equal(given.surface[0], store.grids[place, 0])
    np.testing.assert_array_equal(given.last[0], store.grids[place, 2])
