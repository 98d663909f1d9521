"""A penalty on forgetting demonstrations of prior tasks: their cross-entropy in nats per action, at as many states as
are learned from, drawn anew at every update.

SFT without a `replay_coefficient` gives them `replay_share` of its own batches instead (`algorithms/sft.py`).
"""

import torch
from jaxtyping import Float
from omegaconf import DictConfig
from torch import Tensor

from vla_razor.errors import UserError
from vla_razor.policies.trainable import Trainable
from vla_razor.rollouts import demonstrations
from vla_razor.rollouts.demonstrations import Demonstrations
from vla_razor.training.penalties.penalty import States


class Replay:
    """The demonstrations are those in `config.replay`, of tasks of `config.prior`."""

    name = "cross_entropy_of_replay"

    def __init__(self, policy: Trainable, config: DictConfig) -> None:
        self.policy = policy
        self.data = replayed(config, policy)
        self.tokens = policy.tokenize(self.data.actions, self.data.episode)

    def cost(self, states: States, generator: torch.Generator) -> Float[Tensor, " B"]:
        """The sum over each replayed action's tokens."""
        rows = torch.randint(len(self.tokens), (len(states.tokens),), generator=generator)
        seen = self.data.observations[rows.numpy()]
        views, prompts = self.policy.views(seen), self.policy.prompt_ids(seen.instructions)
        tokens = self.tokens[rows].to(self.policy.device)
        return -self.policy.distribution(views, prompts, tokens).log_prob(tokens).sum(-1)


def replayed(config: DictConfig, policy: Trainable) -> Demonstrations:
    """The demonstrations in all folders of `config.replay`, which commas separate. Raises UserError where they are not
    of tasks of `config.prior`.
    """
    first, *others = config.replay.split(",")
    found = demonstrations.load(first, config.prior, policy)
    for folder in others:
        found = found.followed_by(demonstrations.load(folder, config.prior, policy))
    return found


def check(config: DictConfig) -> None:
    """Raises `UserError` for a replay that is asked for in part, or of no prior tasks."""
    if config.replay_coefficient and config.replay is None:
        collect = "vla-razor collect --env drawer --out DIR"
        raise UserError(
            f"replay_coefficient needs demonstrations of prior tasks: replay=DIR. Make them with: {collect}"
        )
    if config.replay is not None and config.replay_coefficient is None and config.verb != "sft":
        raise UserError(
            f"replay={config.replay}: {config.verb} pays for it, which needs replay_coefficient, as in 0.1; 0: without."
        )
    if config.replay is not None and config.prior is None:
        raise UserError("replay is of prior tasks: prior=null names none.")
