"""Distillation: imitate the scripted expert at the states that the policy itself visits (on-policy distillation; DAgger
of Ross, Gordon and Bagnell, 2011, without keeping the states of earlier iterations).

An iteration plays episodes as REINFORCE does: `per_point` of the policy from every point of a grid, each until its
success. It learns from them as SFT does: `updates` optimizer steps on batches of the visited states, with the
cross-entropy of the action that the expert, who reads the privileged state, would have taken there. SFT on
demonstrations and REINFORCE differ in two things: where the states come from, and what is learned at them. Distillation
changes only the first of these from SFT. The default settings make as many updates as twelve epochs of SFT on a hundred
demonstrations of the can.

At first the expert takes a share of the steps itself, `guidance`, which falls to zero in the last iteration (DAgger's
mixed policy). Left alone, a base that mostly fails would show little but lost positions, and learning there undoes what
it can do. So only in the last iteration is `success` that of the policy alone.

The paper has no such run on robots; its Section 5 distils a teacher's answers on ParityMNIST's own inputs.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Int
from omegaconf import DictConfig
from torch import Tensor

from vla_razor.config import robot_of
from vla_razor.policies import Observations
from vla_razor.policies.scripted import Corrected, ScriptedExpert
from vla_razor.policies.trainable import Trainable
from vla_razor.rollouts.demonstrations import Demonstrations
from vla_razor.rollouts.environments import VectorEnv
from vla_razor.rollouts.rollout import Episode, Timing
from vla_razor.runs import Run
from vla_razor.training.algorithms import reinforce, supervised
from vla_razor.training.base import Base
from vla_razor.training.penalties import Penalties
from vla_razor.training.penalties.kl import ForwardKL
from vla_razor.training.trainer import Trainer, generator


class Distillation:
    """A round is an iteration: its episodes, and the updates on the states that were visited in them."""

    title, watched = "distillation", ("success", "loss")
    envs: VectorEnv | None = None

    def __init__(self, config: DictConfig, policy: Trainable, base: Base) -> None:
        self.config, self.policy = config, policy
        self.rounds, self.updates = config.iterations, config.updates
        self.expert = ScriptedExpert(robot=robot_of(config.env))
        self.penalties = Penalties.of(config, policy, base, ForwardKL, measured=False)

    def prepare(self, stack: ExitStack) -> None:
        """Make the environments."""
        self.envs = reinforce.environments(self.config, self.policy, stack)

    def gather(self, number: int) -> tuple[list[Episode], Timing, float]:
        """An iteration's episodes with the expert's actions, and the expert's share of the steps."""
        assert self.envs is not None
        guidance = guidance_at(self.config, number)
        corrected = Corrected(self.policy, self.expert, guidance)
        return *reinforce.gather(self.envs, corrected, self.config, number), guidance

    def learn(
        self, trainer: Trainer, gathered: tuple[list[Episode], Timing, float], *, measured: bool
    ) -> Iterator[dict[str, float]]:
        """The updates; the last one also logs how the episodes went."""
        episodes, timing, guidance = gathered
        visited = states_of(episodes)
        tokens = self.policy.tokenize(visited.actions, visited.episode)
        kept = [episode for episode in episodes if not episode.lost]
        here = torch.tensor([not kept[number].elsewhere for number in visited.episode.tolist()])
        last = trainer.step + self.updates
        for rows in batches(self.config, trainer.step // self.updates, len(tokens)):
            learnt = visited, tokens, rows, self.penalties
            scalars = supervised.learn(self.policy, trainer, self.config, *learnt, here=here)
            if trainer.step == last:
                scalars |= reinforce.played(episodes, timing) | {"guidance": guidance}
            yield scalars

    def closing_words(self, run: Run, trainer: Trainer) -> None:
        """The expert always teaches something."""


def guidance_at(config: DictConfig, iteration: int) -> float:
    """The expert's share of the steps of an iteration (from 0); it is 0 in the last one."""
    return config.guidance * (1 - iteration / (config.iterations - 1)) if config.iterations > 1 else 0.0


def states_of(episodes: Sequence[Episode]) -> Demonstrations:
    """Every state that was visited in episodes which were not lost, with the expert's action there. Images that other
    ranks have seen are black.
    """
    kept = [episode for episode in episodes if not episode.lost]
    visited = Observations.joined([episode.observations for episode in kept])
    if any(episode.elsewhere for episode in kept):
        here = np.repeat([not episode.elsewhere for episode in kept], [episode.length for episode in kept])
        images = dict(visited.images)
        for camera, seen in visited.images.items():
            images[camera] = np.zeros((len(here), *seen.shape[1:]), np.uint8)  # unwritten, it takes no memory
            images[camera][here] = seen
        visited = replace(visited, images=images)
    return Demonstrations(
        observations=visited,
        actions=np.concatenate([reinforce.sampled(episode.labels) for episode in kept]),
        episode=np.repeat(np.arange(len(kept)), [episode.length for episode in kept]),
    )


def batches(config: DictConfig, iteration: int, count: int) -> Iterator[Int[Tensor, " B"]]:
    """`config.updates` batches of `count` states; each state is drawn once before any is drawn again."""
    draws = generator(config.seed, "visited states", iteration)
    passes = -(-config.updates * config.batch_size // count)
    order = torch.cat([torch.randperm(count, generator=draws) for _ in range(passes)])
    yield from order[: config.updates * config.batch_size].split(config.batch_size)
