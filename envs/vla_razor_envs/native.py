"""The vector face on a GPU: one ManiSkill simulation of the whole batch."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .single import build, check_size, check_start, find_setup, find_spaces, known_robot
from .vector import SlotVectorEnv, Start, Tick, check_action


class NativeVectorEnv(SlotVectorEnv):
    """Every slot is a scene of one simulation; the arguments are those of `SingleEnv`.

    The simulation steps all scenes together: an idle slot is stepped too, and must be reset before it is used again. On
    `device="cpu"` ManiSkill allows one slot, which the tests compare with `SingleEnv`; with more, on a GPU, this class
    has not been run yet.
    """

    def __init__(
        self,
        family: str,
        robots: tuple[str, ...],
        num_envs: int,
        robot: str | None = None,
        image_size: tuple[int, int] = (64, 64),
        task: str | None = None,
        orientation: str | None = None,
        station: str | None = None,
        overlay: bool | None = None,
        variant: str | None = None,
        cameras: Sequence[str] | None = None,
        device: str = "cuda",
    ) -> None:
        self.family = family
        setup = find_setup(family, known_robot(robots, robot), overlay, variant, cameras)
        given = {"task": task, "orientation": orientation, "station": station}
        self.default_start = check_start(family, setup, {k: v for k, v in given.items() if v is not None})
        size = check_size(image_size)
        self.task = build(family, setup, size, task, device, num_envs)
        super().__init__(num_envs, *find_spaces(setup, size), setup)

    def send(
        self, actions: np.ndarray, active: np.ndarray, starts: Mapping[int, Start], unseen: Collection[int] = ()
    ) -> None:
        """Simulates at once: all slots are one group, stepped and rendered together."""
        actions = check_action(self.setup, self.action_space, actions, active)
        rewards, terminated, truncated = np.zeros(self.num_envs, np.float32), *np.zeros((2, self.num_envs), bool)
        observation, info = {}, {}
        if active.any():
            taken = torch.from_numpy(np.where(active[:, None], actions, np.float32(0)))
            observation, *outcome, info = self.task.step(taken.to(self.task.device))
            rewards, terminated, truncated = (np.where(active, _copy(part), 0) for part in outcome)
            terminated, truncated = terminated.astype(bool), truncated.astype(bool)
        if starts:
            slots = torch.tensor(sorted(starts), device=self.task.device)
            chosen = [self._checked(*starts[slot]) for slot in sorted(starts)]
            observation, info = self.task.reset(options={"env_idx": slots, "starts": chosen})
        seen = {key: _copy(value) for key, value in observation.items()}
        self._result = seen, rewards, terminated, truncated, self._described(info)

    def receive(self) -> Tick:
        return self._result

    def close_extras(self, **kwargs: Any) -> None:
        self.task.close()

    def _checked(self, seed: int | None, options: dict[str, Any]) -> dict[str, Any]:
        drawn = int(self.np_random.integers(2**31)) if seed is None else seed
        return {**self.default_start, **check_start(self.family, self.setup, options), "seed": drawn}

    def _described(self, info: Mapping[str, Any]) -> dict[str, Any]:
        facts = {key: _copy(value) for key, value in info.items() if isinstance(value, Tensor | np.ndarray)}
        lost = np.zeros(self.num_envs, bool)
        return {"instruction": np.array(self.task.instructions(), object), **facts, "lost": lost}


def _copy(values: Tensor | np.ndarray) -> np.ndarray:
    """A copy on the CPU: of the task's arrays, which are tensors on a GPU."""
    return np.array(values.cpu() if isinstance(values, Tensor) else values)
