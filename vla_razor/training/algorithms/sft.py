"""SFT: fine-tune on demonstrations (RL's Razor, Sections 3 and 5.1, Appendix B.2).

Cross-entropy on the action tokens, under the policy's own temperature (for OpenVLA over the 256 action ids), so that
SFT, REINFORCE and KL speak of one distribution. AdamW without weight decay, gradient clipped at 1, constant learning
rate after 10 steps of warm-up, one epoch: the paper's. `loss=openvla` is the reference's loss instead, over the whole
vocabulary and with the end token.

Where it departs from the paper: the normalisation gains have a learning rate of their own and the vision stacks stay as
they are, so that SFT and REINFORCE train the same parameters in the same way. There is no penalty on KL(base || policy)
at the demonstrated states unless `kl_coefficient` asks for one, none on it at the same images under the instructions of
other tasks (what the policy would do there if it were asked to; none of these tasks is needed) unless
`spillover_coefficient` does, and no replay unless `replay` does: demonstrations of the prior tasks, which take
`replay_share` of every batch. An epoch is then still one of the new task's. With a `replay_coefficient` they are a
penalty instead, as in the other algorithms; at 0 nothing is replayed.
"""

from collections.abc import Iterator
from contextlib import ExitStack

import torch
from jaxtyping import Float, Int
from omegaconf import DictConfig
from torch import Tensor

from vla_razor import ranks
from vla_razor.errors import UserError
from vla_razor.policies.trainable import Trainable
from vla_razor.progress import progress
from vla_razor.rollouts import demonstrations, recorded
from vla_razor.rollouts.demonstrations import Demonstrations
from vla_razor.runs import Run
from vla_razor.training.algorithms import supervised
from vla_razor.training.base import Base
from vla_razor.training.penalties import Penalties
from vla_razor.training.penalties.kl import ForwardKL
from vla_razor.training.penalties.replay import replayed
from vla_razor.training.trainer import Trainer, generator

MOST_FEATURES = 2**30
"""Largest size of kept features in bytes: 50,000 states of the embedded policy, 500 of OpenVLA-7B."""


class SFT:
    """A round is one update, on the next batch of a shuffled epoch."""

    title, watched, updates, envs = "SFT", ("loss",), 1, None

    def __init__(self, config: DictConfig, policy: Trainable, base: Base) -> None:
        self.config, self.policy = config, policy
        self.data = demonstrations.load(config.demos, config.env, policy)
        recorded.check_actions(policy, self.data, config.demos)
        self.count = len(self.data.actions)
        if replayed_per_batch(config):
            self.data = self.data.followed_by(replayed(config, policy))
        self.tokens = policy.tokenize(self.data.actions, self.data.episode)
        self.rounds = config.epochs * -(-self.count // (config.batch_size - replayed_per_batch(config)))
        self.penalties = Penalties.of(config, policy, base, ForwardKL, measured=False)

    def prepare(self, stack: ExitStack) -> None:
        """Compute the features of every image, if each need be looked at only once."""
        self.features = features(self.policy, self.config, self.data)

    def gather(self, number: int) -> Int[Tensor, " B"]:
        """The rows of the next batch."""
        return batch(self.config, number, self.count, len(self.tokens))

    def learn(self, trainer: Trainer, gathered: Int[Tensor, " B"], *, measured: bool) -> Iterator[dict[str, float]]:
        """One update."""
        yield supervised.learn(
            self.policy, trainer, self.config, self.data, self.tokens, gathered, self.penalties, self.features
        )

    def closing_words(self, run: Run, trainer: Trainer) -> None:
        """Demonstrations always teach something."""


def check(config: DictConfig) -> None:
    """Raises UserError where there are no demonstrations, or a batch is too small for a replay."""
    if config.demos is None:
        collect = f"vla-razor collect --env {config.env.name} --out DIR"
        raise UserError(f"sft needs demonstrations: demos=DIR. Make them with: {collect}")
    replayed_per_batch(config)


def features(policy: Trainable, config: DictConfig, data: Demonstrations) -> Float[Tensor, "N ..."] | None:
    """The policy's `features` of every demonstrated observation. None where the policy has none, where images are
    augmented, or where they would take more than `MOST_FEATURES`.
    """
    size, each = config.micro_batch_size, policy.feature_bytes
    if not each or config.augmentation or len(data.observations) * each > MOST_FEATURES:
        return None
    seen = data.observations[ranks.span(len(data.observations))]
    parts, found = range(0, len(seen), size), []
    with progress("features", len(parts)) as advance:
        for start in parts:
            found.append(policy.features(seen[start : start + size]))
            advance()
    return ranks.concatenated(torch.cat(found))


def batch(config: DictConfig, step: int, count: int, total: int) -> Int[Tensor, " B"]:
    """The control steps of update `step` (from 0): the next ones of a shuffled epoch over the first `count`, and
    replayed ones drawn from those between `count` and `total`.
    """
    replayed = replayed_per_batch(config)
    new = config.batch_size - replayed
    epoch, index = divmod(step, -(-count // new))
    order = torch.randperm(count, generator=generator(config.seed, "epoch", epoch))
    draws = generator(config.seed, "replay", step)
    again = torch.randint(count, total, (replayed,), generator=draws) if replayed else order[:0]
    return torch.cat([order[index * new : (index + 1) * new], again])


def replayed_per_batch(config: DictConfig) -> int:
    """The replayed states in a batch. Raises UserError where a batch is too small to hold both kinds."""
    if config.replay is None or config.replay_coefficient is not None:
        return 0
    replayed = round(config.replay_share * config.batch_size)
    if not 0 < replayed < config.batch_size:
        raise UserError(f"replay_share={config.replay_share} of batch_size={config.batch_size} is none of it, or all.")
    return replayed
