"""The learning rate over a run."""

import pytest

from vla_razor.core import schedule


def test_the_schedules_by_hand() -> None:
    warm = [schedule.factor(step, 100, 4, "constant") for step in range(6)]
    assert warm == [0.25, 0.5, 0.75, 1, 1, 1]
    assert schedule.factor(0, 100, 0, "constant") == 1
    cosine = [schedule.factor(step, 14, 4, "cosine") for step in (3, 4, 9, 14)]
    assert cosine == pytest.approx([1, 1, 0.5, 0])
