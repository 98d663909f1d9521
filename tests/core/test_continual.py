"""Measures of a sequence of tasks: values worked out by hand, and what must hold for every matrix."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from vla_razor.core import continual

MATRIX = np.array([[0.8, 0.1, 0.0], [0.6, 0.9, 0.2], [0.5, 0.3, 0.7]])
BASE = np.array([0.4, 0.2, 0.1])
RATES = st.floats(0, 1)
MATRICES = st.integers(2, 6).flatmap(lambda tasks: arrays(float, (tasks, tasks), elements=RATES))


def test_values_by_hand() -> None:
    assert continual.average(MATRIX) == pytest.approx((0.5 + 0.3 + 0.7) / 3)
    # The first task is followed by two stages, the second by one.
    assert continual.negative_backward_transfer(MATRIX) == pytest.approx((0.8 - (0.6 + 0.5) / 2 + 0.9 - 0.3) / 2)
    assert continual.backward_transfer(MATRIX) == pytest.approx(((0.5 - 0.8) + (0.3 - 0.9)) / 2)
    assert continual.forward_transfer(MATRIX, BASE) == pytest.approx(((0.1 - 0.2) + (0.2 - 0.1)) / 2)
    way = [(0.4 + 0.8) / 2, (0.1 + 0.9) / 2, (0.2 + 0.7) / 2]
    assert continual.learning(way) == pytest.approx((0.6 + 0.5 + 0.45) / 3)
    areas = [(0.6 + 0.6 + 0.5) / 3, (0.5 + 0.3) / 2, 0.45 / 1]
    assert continual.area_under_curve(MATRIX, way) == pytest.approx(sum(areas) / 3)


@given(MATRICES)
def test_with_two_tasks_or_one_loss_the_two_ways_to_count_it_agree(matrix: np.ndarray) -> None:
    lost = continual.negative_backward_transfer(matrix[-2:, -2:])
    assert lost == pytest.approx(-continual.backward_transfer(matrix[-2:, -2:]))
    lasting = np.where(np.tri(len(matrix), dtype=bool), matrix[-1], matrix)  # what is lost is lost at once
    np.fill_diagonal(lasting, matrix.diagonal())
    assert continual.negative_backward_transfer(lasting) == pytest.approx(-continual.backward_transfer(lasting))


@given(MATRICES, RATES)
def test_a_sequence_that_loses_nothing(matrix: np.ndarray, base: float) -> None:
    kept = np.where(np.tri(len(matrix), dtype=bool), matrix.diagonal(), matrix)
    assert continual.negative_backward_transfer(kept) == pytest.approx(0)
    assert continual.backward_transfer(kept) == pytest.approx(0)
    assert continual.average(kept) == pytest.approx(matrix.diagonal().mean())
    flat = np.full(len(matrix), base)
    assert continual.area_under_curve(np.full_like(matrix, base), flat) == pytest.approx(base)
    assert continual.forward_transfer(np.full_like(matrix, base), flat) == pytest.approx(0)


@given(MATRICES)
def test_ranges_and_leading_axes(matrix: np.ndarray) -> None:
    both = np.stack([matrix, matrix[::-1]])
    for measure in (continual.average, continual.negative_backward_transfer, continual.backward_transfer):
        assert measure(both) == pytest.approx([measure(one) for one in both])
        assert abs(measure(matrix)) <= 1 + 1e-12
    assert continual.forward_transfer(both, both[:, 0]).shape == (2,)
    assert continual.area_under_curve(both, both[:, 0]).shape == (2,)


@pytest.mark.parametrize("shape", [(1, 1), (2, 3), (3,)])
def test_what_is_no_sequence_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="at least 2 tasks"):
        continual.backward_transfer(np.zeros(shape))
