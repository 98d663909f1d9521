"""A penalty on changing what was not asked for: KL(base || policy) at the same images under the instructions of other
tasks, along the base's own actions there, in nats per action (docs/study.md). The other tasks themselves are not
needed.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from omegaconf import DictConfig
from torch import Tensor

from vla_razor.errors import UserError
from vla_razor.policies.trainable import Trainable
from vla_razor.training.base import Base
from vla_razor.training.penalties.kl import ForwardKL
from vla_razor.training.penalties.penalty import States


class Spillover:
    """For each decision one of `config.other_instructions` is drawn, which is not its own."""

    name = "forward_kl_elsewhere"

    def __init__(self, policy: Trainable, base: Base, config: DictConfig) -> None:
        self.base, self.divergence = base, ForwardKL(policy, base)
        self.known = policy.prompt_ids(list(config.other_instructions))

    def cost(self, states: States, generator: torch.Generator) -> Float[Tensor, " B"]:
        """The sum over each action's tokens. Raises UserError where no other instruction is known."""
        others = self._others(states.prompts, generator)
        with self.base.policy() as before, torch.no_grad():
            tokens = before.sample(states.views, others, generator)
        return self.divergence.cost(States(states.views, others, tokens), generator)

    def _others(self, prompts: Sequence[list[int]], generator: torch.Generator) -> list[list[int]]:
        choices = [[one for one in self.known if one != prompt] for prompt in prompts]
        if not all(choices):
            raise UserError("spillover_coefficient needs other_instructions: those of other tasks.")
        return [others[int(torch.randint(len(others), (), generator=generator))] for others in choices]
