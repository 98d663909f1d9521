"""A task as a user would write it: a plain Gymnasium environment, registered by this module, with no vector face."""

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import register

SIDE, STRIDE, HORIZON = 32, 20.0, 5


class Reach(gymnasium.Env[dict[str, np.ndarray], np.ndarray]):
    """A bright square is to be moved onto a dark one; success where they meet. Positions are in pixels."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 5}  # noqa: RUF012  (Gymnasium declares it on instances)
    observation_space: Any = spaces.Dict(
        image=spaces.Box(0, 255, (SIDE, SIDE, 3), np.uint8), proprioception=spaces.Box(0, SIDE, (2,), np.float32)
    )
    action_space = spaces.Box(-1, 1, (7,), np.float32)

    def __init__(self, size: int = 4, render_mode: str | None = None) -> None:
        self.size, self.render_mode = size, render_mode

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[dict, dict]:
        super().reset(seed=seed)
        self.place, self.goal = self.np_random.uniform(0, SIDE - self.size, (2, 2))
        self.steps = 0
        return self.seen(), self.told()

    def step(self, action: np.ndarray) -> tuple[dict, float, bool, bool, dict]:
        self.place = np.clip(self.place + STRIDE * action[:2], 0, SIDE - self.size)
        self.steps += 1
        told = self.told()
        return self.seen(), float(told["success"]), told["success"], self.steps == HORIZON, told

    def render(self) -> np.ndarray:
        return self.seen()["image"]

    def seen(self) -> dict[str, np.ndarray]:
        image = np.full((SIDE, SIDE, 3), 127, np.uint8)
        for (x, y), colour in ((self.goal, 0), (self.place, 255)):
            image[int(y) : int(y) + self.size, int(x) : int(x) + self.size] = colour
        return {"image": image, "proprioception": self.place.astype(np.float32)}

    def told(self) -> dict[str, Any]:
        return {"instruction": "reach the mark", "success": bool(np.abs(self.place - self.goal).max() < self.size / 2)}


class Mute(Reach):
    """Gives no instruction."""

    def told(self) -> dict[str, Any]:
        return {"success": False}


register("Toys/Reach-v0", entry_point="toy_tasks:Reach")
register("Toys/Mute-v0", entry_point=lambda **given: Mute(**given))
