"""Start states of episodes: a grid over the start area of a task, or uniform random ones from a seed, be it of the area
or of the states that an environment has stored. Seeds, and the random numbers of an episode, which belong to it alone.
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
    """One episode to be: the same `task`, reset `options` (JSON) and `seed` give the same first state.

    `grid_point` is -1 off a grid. `repeat` tells the episodes from one and the same first state apart: each has random
    numbers of its own.
    """

    task: str
    options: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    grid_point: int = -1
    repeat: int = 0


def episode_seed(*keys: int | str) -> int:
    """A seed below 2**31 from whole numbers and words. Other keys give an independent seed, be it the same ones and a
    zero more; a word for the purpose keeps two purposes apart.
    """
    return int.from_bytes(_digest(*keys)[:4], "little") >> 1


class Noise:
    """The random numbers of one episode: those of a control step follow from `seed`, the start and the step alone, not
    from what else was drawn, by whom, or in which order.

    They come from Philox (Salmon et al., 2011), which computes them from a key, here the episode's, and a counter. The
    counter's highest word is the step.
    """

    def __init__(self, seed: int, start: Start) -> None:
        digest = _digest(seed, start.task, dict(start.options), start.seed, start.repeat)
        self.key = int.from_bytes(digest[:16], "little")
        self._philox = np.random.Philox(key=self.key)
        self._beginning = self._philox.state
        self._generator = np.random.Generator(self._philox)

    def at(self, step: int) -> np.random.Generator:
        """The generator, set to the first number of a control step (from 0); good until it is set to another."""
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
    """How many start positions an iteration of REINFORCE has, by its settings `grid` and `points`."""
    return settings["points"] if settings["grid"] == "random" else math.prod(parse_grid(settings["grid"]))


def grid_starts(env_config: Mapping[str, Any], grid: str, per_point: int, seed: int) -> list[Start]:
    """`per_point` episodes from one and the same first state at every point of the grid, point after point.

    The points span `env_config.grid` (x, y: low and high, in metres), ends included, x outermost. Where a task has no
    such area, a point is a start drawn from the seed, as `random_starts` draws it where there are stored ones
    (`env_config.starts`). Several tasks have a grid each, numbered on.
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
    """`per_point` episodes from one and the same first state at each of `points` starts of every task, drawn from the
    seed as `random_starts` draws them.
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
    """`episodes` starts of each task, uniform over its start area, whichever other tasks are asked for. A mapping of
    `tasks` holds the reset options of each.

    `stored` is a reset option and how many stored states it numbers, from 0: these are the starts then, in an order
    that the seed decides, each once before one is played again.

    >>> [start.task for start in random_starts(["pick_can", "open_top_drawer"], 2, seed=0)]
    ['pick_can', 'pick_can', 'open_top_drawer', 'open_top_drawer']
    """
    return [
        Start(task, {**_task_options(tasks, task), **place}, episode_seed("random", seed, task, index))
        for task in tasks
        for index, place in enumerate(_drawn(stored, task, seed, episodes))
    ]


def _drawn(stored: Mapping[str, int] | None, task: str, seed: int, count: int) -> list[dict[str, Any]]:
    """The reset options of `count` starts of a task; none where its start follows from the seed alone."""
    if not stored:
        return [{}] * count
    ((option, states),) = stored.items()
    order = np.random.default_rng(episode_seed("stored", seed, task)).permutation(states).tolist()
    return [{option: order[index % states]} for index in range(count)]


def _digest(*keys: Any) -> bytes:
    """SHA-256 of the keys as JSON, which no other keys have."""
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
    """The reset options of a task. One drawer scene serves its six tasks: the reset names the task."""
    if isinstance(tasks, Mapping):
        return dict(tasks[task])
    return {"task": task} if task.endswith("_drawer") else {}
