"""An environment that breaks on command: no real one crashes, hangs or refuses when a test needs it to."""

import os
import signal
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import register

from vla_razor_envs import RenderingUnavailable


class Untransportable(Exception):
    """Its constructor wants two arguments, so that unpickling it fails."""

    def __init__(self, first: str, second: str) -> None:
        super().__init__(first + second)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class Fragile(gymnasium.Env[dict[str, np.ndarray], np.ndarray]):
    """Counts: the image is filled with seed + steps, and an episode lasts `horizon` steps.

    The reset option `at_reset` or `at_step` names what goes wrong then: refuse, untransportable, die, hang, blow up
    (what it feels is not a number). With `unless` a path, it goes wrong only while that file does not exist, which it
    makes.
    """

    observation_space: Any = spaces.Dict(
        image=spaces.Box(0, 255, (4, 6, 3), np.uint8), proprioception=spaces.Box(-np.inf, np.inf, (2,), np.float32)
    )
    action_space = spaces.Box(-1, 1, (7,), np.float32)

    setup = SimpleNamespace(control_hz=5, clips_actions=False, camera=SimpleNamespace(name="workspace_camera"))

    def __init__(self, construction: str = "", horizon: int = 3) -> None:
        self.horizon = horizon
        self.break_if(construction)

    def break_if(self, how: str) -> None:
        if how == "refuse":
            raise ValueError("this start does not exist; expected another")
        if how == "no vulkan":
            raise RenderingUnavailable("no usable Vulkan device")
        if how == "untransportable":
            raise Untransportable("cannot ", "travel")
        if how == "die":
            die()
        if how == "hang":
            time.sleep(1000)
        if how == "blow up":
            self.count = np.nan

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[dict, dict]:
        self.options = options or {}
        self.count, self.steps, self.drawn = seed or 0, 0, 0
        self.maybe_break("at_reset")
        return self.observed(), self.described()

    def step(self, action: np.ndarray) -> tuple[dict, float, bool, bool, dict]:
        self.maybe_break("at_step")
        self.count += 1
        self.steps += 1
        success = bool(action[6] > 0)
        return self.observed(), float(success), success, self.steps == self.horizon, self.described(success)

    def step_unseen(self, action: np.ndarray) -> tuple[None, float, bool, bool, dict]:
        drawn = self.drawn
        _, reward, terminated, truncated, info = self.step(action)
        self.drawn = info["drawn"] = drawn
        return None, reward, terminated, truncated, info

    def maybe_break(self, when: str) -> None:
        marker = self.options.get("unless")
        if when not in self.options or (marker and Path(marker).exists()):
            return
        if marker:
            Path(marker).touch()
        self.break_if(self.options[when])

    def observed(self) -> dict[str, np.ndarray]:
        self.drawn += 1
        return {
            "image": np.full((4, 6, 3), self.count % 251, np.uint8),
            "proprioception": np.array([self.count, self.steps], np.float32),
        }

    def described(self, success: bool = False) -> dict[str, Any]:
        environment = {name: os.environ.get(name, "") for name in ("LP_NUM_THREADS", "OMP_WAIT_POLICY")}
        return {
            "instruction": f"count from {self.count - self.steps}",
            "success": success,
            "pose": np.arange(7.0),
            "drawn": self.drawn,
            "object_xy": np.array(self.options.get("object_xy", (0, 0)), float),
            "environment": environment,
        }


register("Fragile-v0", entry_point="fragile:Fragile", order_enforce=False, disable_env_checker=True)
