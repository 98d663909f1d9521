"""Penalties on the divergence from the base, at the states that a training learns from, in nats per action.

They are not the forward KL that is logged, which is measured on the probe set: at states that the base itself visits,
along the base's own tokens.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from vla_razor.core import losses
from vla_razor.core.categorical import Categorical
from vla_razor.policies.trainable import Trainable
from vla_razor.training.base import Base
from vla_razor.training.penalties.penalty import States


@dataclass
class ForwardKL:
    """KL(base || policy) along tokens that a demonstrator or an expert has chosen. SFT has no states and tokens of the
    base itself: they would need a simulator.
    """

    policy: Trainable
    base: Base
    name = "forward_kl_of_batch"

    def cost(self, states: States, generator: torch.Generator) -> Float[Tensor, " B"]:
        """The sum over each action's tokens."""
        before = of_base(self.base, states)
        return before.kl(_said(self.policy, states)).sum(-1)


@dataclass
class ReverseKL:
    """KL(policy || base) along tokens that the policy itself has sampled. The gradient takes into account that an
    action's tokens are sampled one after the other (`losses.on_policy_divergence`), but not that earlier actions lead
    to later states.
    """

    policy: Trainable
    base: Base
    name = "reverse_kl_per_action"

    def cost(self, states: States, generator: torch.Generator) -> Float[Tensor, " B"]:
        """The sum over each action's tokens."""
        before, said = of_base(self.base, states), _said(self.policy, states)
        return losses.on_policy_divergence(said.kl(before), said.log_prob(states.tokens))


@torch.no_grad()
def of_base(base: Base, states: States) -> Categorical:
    """The base's distribution along the same tokens."""
    with base.policy() as before:
        return before.distribution(states.views, states.prompts, states.tokens)


def _said(policy: Trainable, states: States) -> Categorical:
    return states.said or policy.distribution(states.views, states.prompts, states.tokens)
