"""The field goes through every anchor, is linear in the gaps, and with one anchor per tenor is the term structure of
docs/conventions.md."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.anchor_field import AnchorField
from serving.normal import Array

Anchored = tuple[float, float, float]  # days, moneyness, gap
WIDE = np.linspace(-3.0, 3.0, 61)


def anchors(largest: int = 8) -> st.SearchStrategy[list[Anchored]]:
    """Some at the same tenor, some at the same moneyness too, either sign of everything."""
    days = st.sampled_from([3.0, 7.0, 14.0, 14.0, 30.0, 45.0, 120.0, 360.0, 700.0])
    moneyness = st.one_of(st.sampled_from([-0.3, 0.0, 0.2]), st.integers(-60, 60).map(lambda cent: cent / 100.0))
    return st.lists(st.tuples(days, moneyness, st.floats(-0.2, 0.2)), max_size=largest)


def through(points: list[Anchored], scale: float = 1.0) -> AnchorField:
    columns = np.array(points, dtype=np.float64).reshape(-1, 3).T
    return AnchorField.through(columns[0] / 365.0, columns[1], scale * columns[2])


def line(x: float, nodes: list[tuple[float, float]]) -> float:
    """Linear between nodes, flat outside."""
    if x <= nodes[0][0]:
        return nodes[0][1]
    for (a, low), (b, high) in pairwise(nodes):
        if a <= x < b:
            return low + (high - low) * (x - a) / (b - a)
    return nodes[-1][1]


def slow_field(points: list[Anchored], days: float, moneyness: float) -> float:
    """The docstring, sentence by sentence, one number at a time."""
    smiles: dict[float, dict[float, list[float]]] = {}
    for day, x, gap in points:
        smiles.setdefault(day, {}).setdefault(x, []).append(gap * math.sqrt(day / 365.0))
    if not smiles:
        return 0.0
    nodes = {day: sorted((x, sum(gaps) / len(gaps)) for x, gaps in smile.items()) for day, smile in smiles.items()}
    several = sorted(day for day, smile in nodes.items() if len(smile) > 1)

    def profile(day: float, x: float) -> float:
        if not several:
            return 0.0
        own = [(math.log(one), line(x, nodes[one]) - line(0.0, nodes[one])) for one in several]
        return line(math.log(day), own)

    level = []
    for day, smile in sorted(nodes.items()):
        left = [value - profile(day, x) for x, value in smile]
        level.append((math.log(day), sum(left) / len(left)))
    return (line(math.log(days), level) + profile(days, moneyness)) / math.sqrt(days / 365.0)


@settings(deadline=None, max_examples=200)
@given(anchors(), st.one_of(st.sampled_from([3.0, 14.0, 45.0, 700.0]), st.floats(1.0, 1000.0)), st.floats(-2.0, 2.0))
def test_equals_the_slow_field(points: list[Anchored], days: float, moneyness: float) -> None:
    found = through(points).at(days / 365.0, np.array([moneyness]))
    assert found == pytest.approx([slow_field(points, days, moneyness)], abs=1e-10)


@settings(deadline=None, max_examples=200)
@given(anchors())
def test_goes_through_every_anchor(points: list[Anchored]) -> None:
    """Those of one tenor and moneyness by their mean."""
    field = through(points)
    for days, x, _ in points:
        same = [gap for day, other, gap in points if (day, other) == (days, x)]
        assert field.at(days / 365.0, np.array([x])) == pytest.approx([np.mean(same)], abs=1e-12)


@settings(deadline=None, max_examples=100)
@given(anchors(), st.floats(-3.0, 3.0), st.floats(-3.0, 3.0), st.integers(0, 2**31), st.floats(1.0, 1000.0))
def test_linear_in_the_gaps(points: list[Anchored], first: float, second: float, seed: int, days: float) -> None:
    others = np.random.default_rng(seed).uniform(-0.2, 0.2, len(points))
    other = [(day, x, float(gap)) for (day, x, _), gap in zip(points, others, strict=True)]
    both = [(day, x, first * gap + second * more) for (day, x, gap), more in zip(points, others.tolist(), strict=True)]
    tau = days / 365.0
    apart = first * through(points).at(tau, WIDE) + second * through(other).at(tau, WIDE)
    assert through(both).at(tau, WIDE) == pytest.approx(apart, abs=1e-10)


@settings(deadline=None, max_examples=100)
@given(
    st.lists(
        st.tuples(st.integers(2, 700), st.floats(-0.6, 0.6), st.floats(-0.2, 0.2)),
        min_size=1, max_size=5, unique_by=lambda point: point[0],
    ),
    st.floats(1.0, 1000.0),
)  # fmt: skip
def test_with_one_anchor_per_tenor_it_is_the_term_structure_at_every_moneyness(
    points: list[Anchored], days: float
) -> None:
    """sqrt(tau) shift linear in ln(tau) between the anchors', flat outside."""
    nodes = sorted((math.log(day), math.sqrt(day / 365.0) * gap) for day, _, gap in points)
    wanted = line(math.log(days), nodes) / math.sqrt(days / 365.0)
    found = through(points).at(days / 365.0, WIDE)
    assert found == pytest.approx(np.full(WIDE.size, wanted), abs=1e-11)
    assert np.ptp(found) == 0.0


@settings(deadline=None, max_examples=100)
@given(anchors(), st.randoms(use_true_random=False), st.floats(1.0, 1000.0))
def test_the_order_of_anchors_does_not_matter(points: list[Anchored], random: object, days: float) -> None:
    shuffled = list(points)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    found, again = (through(some).at(days / 365.0, WIDE) for some in (points, shuffled))
    assert found == pytest.approx(again, abs=1e-13)


@settings(deadline=None, max_examples=100)
@given(anchors(), st.floats(0.01, 5000.0))
def test_finite_everywhere_and_no_further_than_the_anchors_spread(points: list[Anchored], days: float) -> None:
    """Nothing is extrapolated, so sqrt(tau) gap stays within five times the largest of the anchors': a profile is a
    difference (2), a level an anchor less a profile (3)."""
    largest = max((abs(gap) * math.sqrt(day / 365.0) for day, _, gap in points), default=0.0)
    far = np.array([-1e300, -50.0, *WIDE, 50.0, 1e300])
    found = through(points).at(days / 365.0, far) * math.sqrt(days / 365.0)
    assert np.isfinite(found).all()
    assert np.abs(found).max() <= 5.0 * largest + 1e-12


def test_without_anchors_there_is_no_gap() -> None:
    assert AnchorField.through(*np.zeros((3, 0))).at(0.1, WIDE).tolist() == [0.0] * WIDE.size
    assert through([(14.0, 0.0, 0.01)]).at(0.1, np.zeros(0)).shape == (0,)


def test_a_skew_moves_between_the_tenors_that_know_it() -> None:
    """Two expiries with three anchors each, one between with one: the profile half way in ln(tau), through the one."""
    first = [(10.0, -0.3, 0.03), (10.0, 0.0, 0.01), (10.0, 0.2, 0.02)]
    last = [(160.0, -0.3, 0.00), (160.0, 0.0, 0.01), (160.0, 0.2, -0.02)]
    field = through([*first, *last, (40.0, 0.1, 0.05)])
    root: Array = np.sqrt(np.array([10.0, 40.0, 160.0]) / 365.0)
    short, long = 0.02 * root[0], -0.01 * root[2]  # at -0.3, over the money
    middle = field.at(40.0 / 365.0, np.array([-0.3, 0.0, 0.1, 0.2, 0.9])) * root[1]
    assert middle[0] - middle[1] == pytest.approx(0.5 * (short + long), rel=1e-12)
    assert middle[2] == pytest.approx(0.05 * root[1], rel=1e-12)
    assert middle[3] - middle[1] == pytest.approx(0.5 * (0.01 * root[0] - 0.03 * root[2]), rel=1e-12)
    assert middle[4] == middle[3]


def test_two_roots_at_one_tenor_both_count() -> None:
    """Of one moneyness: the mean, as of any two; a hair apart: between their gaps everywhere, nothing explodes."""
    same = through([(21.0, 0.01, 0.010), (21.0, 0.01, 0.014)])
    assert same.at(21.0 / 365.0, WIDE) == pytest.approx(np.full(WIDE.size, 0.012), rel=1e-12)
    apart = through([(21.0, 0.01, 0.010), (21.0, 0.01 + 1e-12, 0.014)]).at(21.0 / 365.0, WIDE)
    assert apart.min() >= 0.010 - 1e-12
    assert apart.max() <= 0.014 + 1e-12
