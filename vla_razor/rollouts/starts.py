"""Start states of episodes: a grid over the start area of a task, or uniform draws from the area or from the states
that an environment has stored. Also seeds, and the random numbers of an episode, which belong to it alone.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from vla_razor.errors import UserError


@dataclass(frozen=True)
class Start:
    """The start of an episode: the same `task`, reset `options` (JSON) and `seed` give the same first state.

    `grid_point` is -1 off a grid. `repeat` distinguishes episodes from the same first state; each has random numbers of
    its own.
    """

    task: str
    options: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    grid_point: int = -1
    repeat: int = 0


def episode_seed(*keys: int | str) -> int:
    """A seed below 2**31 from whole numbers and words. Different keys give independent seeds, even if one has only a
    zero more. A word for the purpose keeps two purposes apart.
    """
    return int.from_bytes(_digest(*keys)[:4], "little") >> 1


class Noise:
    """The random numbers of one episode. Those of a control step depend on `seed`, the start and the step alone, not on
    which other numbers were drawn, by whom, or in which order.

    They come from Philox (Salmon et al., 2011), which computes them from a key, here the episode's, and a counter. The
    highest word of the counter is the step.
    """

    def __init__(self, seed: int, start: Start) -> None:
        digest = _digest(seed, start.task, dict(start.options), start.seed, start.repeat)
        self.key = int.from_bytes(digest[:16], "little")
        self._philox = np.random.Philox(key=self.key)
        self._beginning = self._philox.state
        self._generator = np.random.Generator(self._philox)

    def at(self, step: int) -> np.random.Generator:
        """The generator at the first number of a control step (from 0). It is valid until the next call."""
        self._beginning["state"]["counter"][-1] = step
        self._philox.state = self._beginning
        return self._generator


def parse_grid(grid: str) -> tuple[int, int]:
    """The numbers of points along x and along y of a grid such as "10x10"."""
    parts = str(grid).lower().split("x")
    if len(parts) != 2 or not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise UserError(f"grid={grid}: expected points along x and along y, such as 10x10.")
    return int(parts[0]), int(parts[1])


def points_of(settings: Mapping[str, Any]) -> int:
    """The number of start positions in an iteration of REINFORCE, from its settings `grid` and `points`."""
    return settings["points"] if settings["grid"] == "random" else math.prod(parse_grid(settings["grid"]))


def grid_starts(env_config: Mapping[str, Any], grid: str, per_point: int, seed: int) -> list[Start]:
    """`per_point` episodes from the same first state at every point of the grid, point after point.

    The points span `env_config.grid` (x, y: low and high, in metres), ends included, x outermost. In a task without
    such an area a point is a start drawn by the seed, as in `random_starts`, from the stored ones (`env_config.starts`)
    if there are any. Each of several tasks has its own grid; the numbers of points go on.
    """
    columns, rows = parse_grid(grid)
    if per_point < 1:
        raise UserError(f"per_point={per_point}: expected at least 1.")
    area, stored = env_config["grid"], env_config.get("starts")

    def places(task: str) -> list[dict[str, Any]]:
        if area:
            return [{"object_xy": xy} for xy in _points(area, columns, rows)]
        return _drawn(stored, task, seed, columns * rows)

    points = [(task, place) for task in env_config["tasks"] for place in places(task)]
    return [
        Start(
            task,
            {**place, **_task_options(env_config["tasks"], task)},
            episode_seed("grid", seed, point),
            point,
            repeat,
        )
        for point, (task, place) in enumerate(points)
        for repeat in range(per_point)
    ]


def random_points(
    tasks: Iterable[str], points: int, per_point: int, seed: int, stored: Mapping[str, int] | None = None
) -> list[Start]:
    """`per_point` episodes from the same first state at each of `points` starts of every task, drawn by the seed as in
    `random_starts`.
    """
    drawn = random_starts(tasks, points, seed, stored)
    return [
        replace(start, grid_point=point, repeat=repeat)
        for point, start in enumerate(drawn)
        for repeat in range(per_point)
    ]


def random_starts(
    tasks: Iterable[str], episodes: int, seed: int, stored: Mapping[str, int] | None = None
) -> list[Start]:
    """`episodes` starts of each task, uniform over its start area, independent of the other tasks. A mapping of `tasks`
    holds the reset options of each.

    `stored` is a reset option, and how many stored states it numbers, from 0. The starts are then these states, in an
    order that the seed decides; each is played once before any is played again.

    >>> [start.task for start in random_starts(["pick_can", "open_top_drawer"], 2, seed=0)]
    ['pick_can', 'pick_can', 'open_top_drawer', 'open_top_drawer']
    """
    return [
        Start(task, {**_task_options(tasks, task), **place}, episode_seed("random", seed, task, index))
        for task in tasks
        for index, place in enumerate(_drawn(stored, task, seed, episodes))
    ]


def _drawn(stored: Mapping[str, int] | None, task: str, seed: int, count: int) -> list[dict[str, Any]]:
    """The reset options of `count` starts of a task; empty where the seed alone decides a start."""
    if not stored:
        return [{}] * count
    ((option, states),) = stored.items()
    order = np.random.default_rng(episode_seed("stored", seed, task)).permutation(states).tolist()
    return [{option: order[index % states]} for index in range(count)]


def _digest(*keys: Any) -> bytes:
    """SHA-256 of the keys as JSON, which is different for different keys."""
    return hashlib.sha256(json.dumps(keys, sort_keys=True, default=lambda array: array.tolist()).encode()).digest()


def _points(area: Mapping[str, Any], columns: int, rows: int) -> list[tuple[float, float]]:
    return [(x, y) for x in _axis("x", area["x"], columns) for y in _axis("y", area["y"], rows)]


def _axis(name: str, ends: Sequence[float], count: int) -> list[float]:
    if len(ends) != 2 or not all(isinstance(end, int | float) and math.isfinite(end) for end in ends):
        raise UserError(f"env.grid.{name}={ends}: expected two numbers, its ends in metres, as in [0.44,0.6].")
    low, high = ends
    values = np.linspace(low, high, count) if count > 1 else [(low + high) / 2]
    return [round(float(value), 6) for value in values]


def _task_options(tasks: Iterable[str], task: str) -> dict[str, Any]:
    """The reset options of a task. One drawer scene serves six tasks, so that the reset names the task."""
    if isinstance(tasks, Mapping):
        return dict(tasks[task])
    return {"task": task} if task.endswith("_drawer") else {}
