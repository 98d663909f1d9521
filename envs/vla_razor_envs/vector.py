"""Many environments at once behind `gymnasium.vector.VectorEnv`: worker processes on a CPU, one batch on a GPU."""

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from gymnasium import Space
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from . import ActionRefused
from .records import Setup

Observations = dict[str, np.ndarray]
Start = tuple[int | None, dict[str, Any]]  # seed and reset options of one episode
Tick = tuple[Observations, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]


def check_action(setup: Setup | None, box: Any, action: Any, active: Any = True) -> np.ndarray:
    """The action [7], or the actions [N, 7] of all slots, clipped to the box. Raises ActionRefused, which names the
    slot and what is wrong. Actions of slots that are not `active` (bool [N]) may be anything.
    """
    action = np.array(action, np.float32)
    if action.shape != box.shape:
        expected = f"{box.shape}, seven finite numbers for each environment"
        raise ActionRefused(f"action is an array of shape {action.shape}; expected {expected}")
    if ((box.low <= action) & (action <= box.high)).all():
        return action
    clipped = np.clip(action, box.low, box.high)
    finite, inside = np.isfinite(action).all(-1), (clipped == action).all(-1)
    wrong = active & ~(finite & (inside | getattr(setup, "clips_actions", False)))
    for index in map(tuple, np.argwhere(wrong)):  # () for a single action
        where = f"action of slot {index[0]}" if index else "action"
        within = f"numbers within {box.low[index]} and {box.high[index]}: metres, radians and the gripper"
        expected = within if finite[index] else "seven finite numbers"
        raise ActionRefused(f"{where} is {action[index]!r}; expected {expected}")
    return clipped


class SlotVectorEnv(VectorEnv[Observations, np.ndarray, np.ndarray]):
    """`num_envs` slots that start and end their episodes independently of each other.

    `reset` and `step` are Gymnasium's, with three additions. `options["reset_mask"]` (bool [N]) and `options["starts"]`
    (one dictionary of reset options per slot) choose which slots are reset, and to what. Slots whose `active` is false
    are not stepped. `infos["lost"]` (bool [N]) marks slots whose simulation died and was built anew; they must be
    reset, and their episode is lost, not failed. `tick` resets some slots while others take a step, in one round trip;
    `send` and `receive` are its halves, for a caller that has something to do meanwhile.

    Observations and infos have a leading slot axis and are copies. `setup` is the environments' setup record. `groups`
    lists the slots that are best sent together. There is more than one group where the policy can decide for one while
    another is simulated.
    """

    metadata: dict[str, Any] = {"autoreset_mode": AutoresetMode.DISABLED}  # noqa: RUF012

    def __init__(self, num_envs: int, observation_space: Space, action_space: Space, setup: Any):
        self.num_envs, self.setup = num_envs, setup
        self.groups = [list(range(num_envs))]
        self.active = np.ones(num_envs, bool)
        self.single_observation_space, self.single_action_space = observation_space, action_space
        self.observation_space = batch_space(observation_space, num_envs)
        self.action_space = batch_space(action_space, num_envs)

    def tick(self, actions: np.ndarray, active: np.ndarray, starts: Mapping[int, Start]) -> Tick:
        """Steps the `active` slots (bool [N]) with their `actions` [N, 7], and resets the slots of `starts`."""
        self.send(actions, active, starts)
        return self.receive()

    def send(
        self, actions: np.ndarray, active: np.ndarray, starts: Mapping[int, Start], unseen: Collection[int] = ()
    ) -> None:
        """Begins a tick. It must leave alone the slots of ticks that have not been received yet. Nobody will look at
        the observations of the slots in `unseen`: where that saves time they are not rendered, and an older one is
        returned.
        """
        raise NotImplementedError

    def receive(self) -> Tick:
        """Ends the earliest tick that was sent. What it returns for the slots of later ticks means nothing."""
        raise NotImplementedError

    def reset(
        self, *, seed: int | list[int] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observations, dict[str, Any]]:
        """Resets the slots of `options["reset_mask"]` (default: all). An integer `seed` gives slot i the seed + i."""
        options = dict(options or {})
        mask = np.asarray(options.pop("reset_mask", np.ones(self.num_envs, bool)), bool)
        starts = options.pop("starts", [{}] * self.num_envs)
        seeds = [None] * self.num_envs if seed is None else seed
        if isinstance(seeds, int):
            seeds = [seeds + slot for slot in range(self.num_envs)]
        if not mask.shape == (len(starts),) == (len(seeds),) == (self.num_envs,):
            raise ValueError(f"reset_mask, starts and seeds need one entry for each of the {self.num_envs} slots")
        chosen = {int(slot): (seeds[slot], {**options, **starts[slot]}) for slot in np.flatnonzero(mask)}
        still = np.zeros(self.action_space.shape or (), np.float32)
        observations, _, _, _, infos = self.tick(still, np.zeros(self.num_envs, bool), chosen)
        return observations, infos

    def step(self, actions: np.ndarray) -> Tick:
        """Steps the slots that are `active`; the others keep their observation, with a reward of 0."""
        return self.tick(actions, self.active, {})
