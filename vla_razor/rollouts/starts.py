"""Start states of episodes: a grid over the start area of a task, or uniform random ones from a seed."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from vla_razor.errors import UserError


@dataclass(frozen=True)
class Start:
    """One episode to be: the same `task`, reset `options` (JSON) and `seed` give the same first state.

    `grid_point` is -1 off a grid.
    """

    task: str
    options: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    grid_point: int = -1


def episode_seed(*keys: int) -> int:
    """A seed below 2**31 from integers >= 0; distinct keys give independent seeds."""
    return int(np.random.SeedSequence(keys).generate_state(1)[0]) >> 1


def parse_grid(grid: str) -> tuple[int, int]:
    """The numbers of points along x and along y of a grid such as "10x10"."""
    parts = str(grid).lower().split("x")
    if len(parts) != 2 or not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise UserError(f"grid={grid}: expected points along x and along y, such as 10x10.")
    return int(parts[0]), int(parts[1])


def grid_starts(env_config: Mapping[str, Any], grid: str, per_point: int, seed: int) -> list[Start]:
    """`per_point` episodes from one and the same first state at every point of the grid, point after point.

    The points span `env_config.grid` (x, y: low and high, in metres), ends included, x outermost. Where a task has no
    such area, a point is a start drawn from the seed. Several tasks have a grid each, numbered on.
    """
    columns, rows = parse_grid(grid)
    if per_point < 1:
        raise UserError(f"per_point={per_point}: expected at least 1.")
    area = env_config["grid"]
    places = [{"object_xy": xy} for xy in _points(area, columns, rows)] if area else [{}] * (columns * rows)
    points = [(task, place) for task in env_config["tasks"] for place in places]
    return [
        Start(task, {**place, **_task_options(task)}, episode_seed(seed, point), point)
        for point, (task, place) in enumerate(points)
        for _ in range(per_point)
    ]


def random_starts(tasks: Iterable[str], episodes: int, seed: int) -> list[Start]:
    """`episodes` starts of each task, uniform over its start area, whichever other tasks are asked for."""
    return [
        Start(task, _task_options(task), episode_seed(seed, zlib.crc32(task.encode()), index))
        for task in tasks
        for index in range(episodes)
    ]


def _points(area: Mapping[str, Any], columns: int, rows: int) -> list[tuple[float, float]]:
    return [(x, y) for x in _axis("x", area["x"], columns) for y in _axis("y", area["y"], rows)]


def _axis(name: str, ends: Sequence[float], count: int) -> list[float]:
    if len(ends) != 2 or not all(isinstance(end, int | float) and math.isfinite(end) for end in ends):
        raise UserError(f"env.grid.{name}={ends}: expected two numbers, its ends in metres, as in [0.44,0.6].")
    low, high = ends
    values = np.linspace(low, high, count) if count > 1 else [(low + high) / 2]
    return [round(float(value), 6) for value in values]


def _task_options(task: str) -> dict[str, str]:
    """One drawer scene serves its six tasks: the reset names the task."""
    return {"task": task} if task.endswith("_drawer") else {}
