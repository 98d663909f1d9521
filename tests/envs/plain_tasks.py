"""Environments of the kind that Gymnasium users have: they know nothing of instructions, and end at success."""

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import register


class Slide(gymnasium.Env[dict[str, Any], np.ndarray]):
    """A mark is to be moved to the left or right end of a line of 20 places by the first of three numbers. It ends with
    a reward of 1 there, and after 12 steps.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 5}  # noqa: RUF012
    observation_space: Any = spaces.Dict(
        state=spaces.Dict(place=spaces.Box(0, 19, (1,), np.float32)), camera=spaces.Box(0, 255, (6, 20, 3), np.uint8)
    )
    action_space = spaces.Box(-1, 1, (3,), np.float64)

    def __init__(self, stride: float = 5.0, render_mode: str | None = None) -> None:
        self.stride, self.render_mode, self.drawn = stride, render_mode, 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[dict, dict]:
        super().reset(seed=seed)
        self.goal = {"left": 0.0, "right": 19.0}[(options or {}).get("end", "left")]
        self.place, self.steps = float(self.np_random.uniform(8, 12)), 0
        return self.seen(), {}

    def step(self, action: np.ndarray) -> tuple[dict, float, bool, bool, dict]:
        assert action.dtype == np.float64
        self.place, self.steps = float(np.clip(self.place + self.stride * action[0], 0, 19)), self.steps + 1
        there = self.place == self.goal
        return self.seen(), float(there), there, self.steps == 12, {"is_there": there, "drawn": self.drawn}

    def render(self) -> np.ndarray:
        self.drawn += 1
        return self.picture()

    def picture(self) -> np.ndarray:
        image = np.zeros((6, 20, 3), np.uint8)
        image[:3, round(self.place)] = 255
        return image

    def seen(self) -> dict[str, Any]:
        return {"state": {"place": np.array([self.place], np.float32)}, "camera": self.picture()}


class Hop(Slide):
    """One that has a step of its own for when nobody looks."""

    unseen = 0

    def step_unseen(self, action: np.ndarray) -> tuple[None, float, bool, bool, dict]:
        self.unseen += 1
        return None, *self.step(action)[1:]  # pyright: ignore[reportReturnType]


class Told(Slide):
    """One that asks to be told which cameras are looked at."""

    def __init__(self, cameras: list[str] | None = None, **settings: Any) -> None:
        super().__init__(**settings)
        self.told = cameras


register("Plain/Told-v0", entry_point="plain_tasks:Told", kwargs={"cameras": None})
register("Plain/Slide-v0", entry_point="plain_tasks:Slide")
register("Plain/Hop-v0", entry_point="plain_tasks:Hop")
