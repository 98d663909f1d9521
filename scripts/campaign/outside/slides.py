"""A suite and a policy from outside, as a user would bring them: small enough to be played a thousand times.

What the file `spoil` in the working directory says befalls the first environment that has taken so many steps, once:
`nan 7` (what it feels is not a number), `hang 7`; `nan 1 always` does not end.
"""

import time
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium.envs.registration import register
from plain_tasks import Slide  # pyright: ignore[reportMissingImports]  (of the tests)

from vla_razor.policies import Decisions, Observations

SPOIL = Path("spoil")


class Spoilt(Slide):
    """`Slide`, as long as nothing befalls it."""

    taken = 0

    def step(self, action: np.ndarray) -> tuple[dict, float, bool, bool, dict]:
        observation, *rest = super().step(action)
        self.taken += 1
        try:
            kind, at, *always = SPOIL.read_text().split()
        except FileNotFoundError:
            return observation, *rest
        if self.taken >= int(at):
            if not always:
                SPOIL.unlink(missing_ok=True)
            if kind == "hang":
                time.sleep(1000)
            observation["state"]["place"] *= np.nan
        return observation, *rest


class Leftward:
    """Goes left, more or less."""

    name = "leftward"

    def act(self, observations: Observations, generators: Any, memories: Any = None) -> Decisions:
        return Decisions(np.stack([g.uniform(-1, 0.5, (1, 3)) for g in generators]).astype(np.float32))


register("Slides/Spoilt-v0", entry_point="slides:Spoilt")
