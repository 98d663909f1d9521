"""A scripted expert for the simulated tasks: it reads the privileged state afresh at every step and remembers nothing.

Because it has no phases, it recovers from any disturbance; demonstrations with injected noise therefore show
recoveries, which a cloned policy needs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vla_razor.errors import UserError
from vla_razor.policies import Decisions, Observations, Policy, scripted_google, scripted_panda

UNSEEN = 0.05
"""Radians."""
Skill = Callable[[dict[str, Any]], np.ndarray]


@dataclass(frozen=True)
class Skills:
    """What an expert does with a robot: from `info` to an action [7], by the instruction's verb; `translation` bounds a
    control step's, in metres.
    """

    by_verb: Mapping[str, Skill]
    rest: Skill
    translation: float

    def decide(self, instruction: str, info: dict[str, Any]) -> np.ndarray:
        """The action [7] for one environment. Raises UserError for an instruction it does not know."""
        verb = instruction.partition(" ")[0]
        if verb not in self.by_verb:
            known = f"in this style it knows how to {', '.join(self.by_verb)}"
            raise UserError(
                f"the scripted expert cannot follow {instruction!r}: {known}. Give another style= or policy=."
            )
        return self.rest(info) if info["success"] and verb != "pick" else self.by_verb[verb](info)


SKILLS = {
    robot: {style: Skills(by_verb, skills.rest, skills.TRANSLATION) for style, by_verb in skills.STYLES.items()}
    for robot, skills in (("panda", scripted_panda), ("google_robot", scripted_google))
}
"""By robot and style."""


class ScriptedExpert:
    """Solves pick-can and the drawer tasks from `infos` (`tcp_pose`, `target_pose`, `gripper_position`, `is_grasped`).

    With probability `noise` a step's translation is disturbed by a normal draw of `noise_scale` metres: that is what
    is executed, while `clean_actions` holds what the expert wanted, the label of a demonstration. Of several ways to
    solve a task, `style` says which. Raises ValueError for a robot it has no skills for, UserError for a style that
    this robot's expert does not have.
    """

    def __init__(
        self, noise: float = 0.0, noise_scale: float = 0.025, robot: str = "panda", style: str = "direct"
    ) -> None:
        if robot not in SKILLS:
            raise ValueError(f"the scripted expert knows {', '.join(SKILLS)}; not {robot!r}")
        if style not in SKILLS[robot]:
            raise UserError(f"style={style}: with robot={robot} the scripted expert has {', '.join(SKILLS[robot])}.")
        self.noise = noise
        self.noise_scale = noise_scale
        self.name = "scripted" if style == "direct" else f"scripted {style}"
        self.skills = SKILLS[robot][style]
        self.clean_actions = np.zeros((0, 7), np.float32)

    def act(
        self,
        observations: Observations,
        generators: Sequence[np.random.Generator],
        memories: Sequence[Any] | None = None,
    ) -> Decisions:
        """Decides for each environment; actions [B, 1, 7] in environment units, no tokens."""
        self.clean_actions = self.wanted(observations.instructions, observations.infos)
        return Decisions(self._disturbed(generators)[:, None], labels=self.clean_actions)

    def wanted(self, instructions: list[str], infos: list[dict[str, Any]]) -> np.ndarray:
        """What it would do in each environment, undisturbed: actions [B, 7] in environment units."""
        pairs = zip(instructions, infos, strict=True)
        return np.stack([self.skills.decide(*pair) for pair in pairs]).astype(np.float32)

    def _disturbed(self, generators: Sequence[np.random.Generator]) -> np.ndarray:
        bound, actions = self.skills.translation, self.clean_actions.copy()
        for action, generator in zip(actions, generators, strict=True):
            hit, shift = generator.random() < self.noise, generator.normal(0, self.noise_scale, 3)
            action[:3] = np.clip(action[:3] + hit * shift, -bound, bound)
        return actions


class Corrected:
    """A policy that acts while the expert says, at every state, what it would have done: the decisions' `labels`. With
    probability `guidance` a step is the expert's; tokens and log-probabilities are the policy's all the same.

    Turns of less than `UNSEEN` about an axis are left out of them. The expert undoes the smallest tilt, which its own
    demonstrations hardly have and a sampling policy always has, but which no image shows: told to undo them, a policy
    can only learn to turn at random, and tilts more.
    """

    def __init__(self, policy: Policy, expert: ScriptedExpert, guidance: float = 0.0) -> None:
        self.policy, self.expert, self.guidance, self.name = policy, expert, guidance, policy.name
        self.cameras = getattr(policy, "cameras", 1)

    def act(
        self,
        observations: Observations,
        generators: Sequence[np.random.Generator],
        memories: Sequence[Any] | None = None,
    ) -> Decisions:
        """Decides for each environment. Raises UserError for a policy that decides several control steps at once: what
        the expert would do in the later ones depends on where the earlier ones lead.
        """
        decisions = self.policy.act(observations, generators, memories)
        if decisions.actions.shape[1] != 1:
            steps = decisions.actions.shape[1]
            raise UserError(
                f"{self.name} decides {steps} control steps at once, and the expert answers one at a time: "
                "distill takes a policy that decides one. SFT on demonstrations takes any."
            )
        wanted = self.expert.wanted(observations.instructions, observations.infos)
        guided = np.array([[generator.random() < self.guidance] for generator in generators])
        labels = wanted.copy()
        labels[:, 3:6] *= np.abs(wanted[:, 3:6]) >= UNSEEN
        return decisions._replace(actions=np.where(guided, wanted, decisions.actions[:, 0])[:, None], labels=labels)
