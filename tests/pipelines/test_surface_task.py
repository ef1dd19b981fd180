"""What surface_vae is fed and taught: draws by (seed, epoch, place) alone, labels by share, units of training dates."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from models.surface_vae import SurfaceVAE, SurfaceVAEConfig
from pipelines.bates import BatesParameters, forward_prices
from pipelines.dataset import FeatureStore
from pipelines.fit import fit
from pipelines.tasks.surface import MIDDLE_TENOR_DAYS, SHAPES, SurfaceTask, regime_names, shape_weight
from pipelines.tasks.surface_bundle import surface_input, torch_net
from serving import black76
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
    names = ("unit_level", "unit_level_deviation", "unit_change_deviation", "unit_move", "unit_move_deviation",
             "shape_mean", "shape_deviation")  # fmt: skip
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


def test_shape_numbers_are_the_coefficients_of_a_surface_of_that_shape() -> None:
    """Level, skew, curvature at the middle tenor, and their slopes in ln(tau)."""
    wanted = np.array([0.04, -0.05, 0.03, 0.002, 0.01, -0.004])
    x, later = np.tile(MONEYNESS, SHAPE[0]), np.repeat(np.log(np.array(TENORS_DAYS) / MIDDLE_TENOR_DAYS), SHAPE[1])
    variance = wanted[:3] @ [x**0, x, x**2] + later * (wanted[3:] @ [x**0, x, x**2])
    assert len(SHAPES) == 6
    np.testing.assert_allclose(shape_weight() @ variance, wanted, atol=1e-14)


def test_the_skew_of_variance_under_heston_depends_little_on_a_large_variance_of_the_day() -> None:
    """Why shapes are of variance: twice the day's variance moves its skew much less than volatility's."""
    skews = []
    for variance in (0.08, 0.16):
        cells = []
        for tenor in TENORS_DAYS:
            tau = tenor / 365.0
            model = BatesParameters(variance=variance, mean_reversion_per_year=4.0, long_run_variance=0.04,
                                    volatility_of_variance=0.5, correlation=-0.7)  # fmt: skip
            strike = np.exp(np.array(MONEYNESS) * np.sqrt(tau))
            right = np.where(strike >= 1.0, 1.0, -1.0)
            both = forward_prices(model, 1.0, strike, tau)
            price = np.where(right > 0, both.call, both.put)
            cells.append(black76.implied_volatility(price, 1.0, strike, tau, 1.0, right)[0])
        volatility = np.concatenate(cells)
        skew = shape_weight()[SHAPES.index("skew")]
        skews.append((skew @ volatility**2, skew @ volatility))
    of_variance, of_volatility = (abs(np.log(first / second)) for first, second in zip(*skews, strict=True))
    assert of_volatility > 3.0 * of_variance


def test_sizes_are_those_of_the_grid_and_the_labels(tiny_run: TinyRun, store: FeatureStore) -> None:
    sizes = task_on(tiny_run, store).sizes()
    assert (sizes["cells"], sizes["moves"], sizes["regimes"]) == (
        CELLS,
        len(MOVE_FEATURES),
        max(len(regime_names(store)), 1),
    )
    assert (sizes["latent"], sizes["width"]) == (2, 16)


# --- hosts


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
