"""What a sequence of tasks leaves, in the measures that continual learning reports.

`matrix` [..., T, T] is success after each of T stages: `matrix[i, j]` on task j after stage i, both from 0, stage j
being the one that learns task j. `base` [..., T] is success before the first stage. Leading axes, such as seeds, are
kept. All measures are in [0, 1] or, where they are differences, in [-1, 1].

Lopez-Paz and Ranzato: "Gradient Episodic Memory for Continual Learning", 2017, arXiv 1706.08840, Section 3. LIBERO: Liu
et al., "LIBERO: Benchmarking Knowledge Transfer for Lifelong Robot Learning", 2023, arXiv 2306.03310, Section 5.
"""

import numpy as np
from numpy.typing import ArrayLike


def average(matrix: ArrayLike) -> np.ndarray:
    """Mean success over all tasks after the last stage (Lopez-Paz and Ranzato's ACC)."""
    return np.asarray(matrix, float)[..., -1, :].mean(-1)


def negative_backward_transfer(matrix: ArrayLike) -> np.ndarray:
    """LIBERO's NBT: how much lower success on a task is after the later stages than after its own. The mean over the
    later stages, then over all tasks but the last, after which nothing is learned. Above 0 something was forgotten.

    Raises ValueError for fewer than two tasks.
    """
    found, tasks = _square(matrix)
    lost = [found[..., j, j] - found[..., j + 1 :, j].mean(-1) for j in range(tasks - 1)]
    return np.mean(lost, axis=0)


def backward_transfer(matrix: ArrayLike) -> np.ndarray:
    """Lopez-Paz and Ranzato's BWT: success after the last stage minus that after a task's own, the mean over all tasks
    but the last. Below 0 something was forgotten.

    Raises ValueError for fewer than two tasks.
    """
    found, tasks = _square(matrix)
    return np.mean([found[..., -1, j] - found[..., j, j] for j in range(tasks - 1)], axis=0)


def forward_transfer(matrix: ArrayLike, base: ArrayLike) -> np.ndarray:
    """Lopez-Paz and Ranzato's FWT: success on a task just before its stage minus the base's, the mean over all tasks
    but the first. They compare with a network of random weights; what learns here begins with a base.

    Raises ValueError for fewer than two tasks.
    """
    found, tasks = _square(matrix)
    before = np.asarray(base, float)
    return np.mean([found[..., j - 1, j] - before[..., j] for j in range(1, tasks)], axis=0)


def learning(way: ArrayLike) -> np.ndarray:
    """LIBERO's FWT, which rewards fast learning. `way` [..., T] is mean success on task j over stage j: at points that
    are evenly spaced from before its first update to its end. The mean over tasks.
    """
    return np.asarray(way, float).mean(-1)


def area_under_curve(matrix: ArrayLike, way: ArrayLike) -> np.ndarray:
    """LIBERO's AUC: for each task the mean of success while it was learned (`way`, as in `learning`) and after each
    later stage, then the mean over tasks.
    """
    found, tasks = _square(matrix, least=1)
    learned = np.asarray(way, float)
    areas = [(learned[..., j] + found[..., j + 1 :, j].sum(-1)) / (tasks - j) for j in range(tasks)]
    return np.mean(areas, axis=0)


def _square(matrix: ArrayLike, least: int = 2) -> tuple[np.ndarray, int]:
    found = np.asarray(matrix, float)
    if found.ndim < 2 or found.shape[-1] != found.shape[-2] or found.shape[-1] < least:
        raise ValueError(f"expected success [..., T, T] of at least {least} tasks, got {found.shape}")
    return found, found.shape[-1]
