"""The distribution of a policy that chooses tokens: what losses, divergences and penalties are worked out from."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vla_razor.core import divergence, losses


@dataclass(frozen=True)
class Categorical:
    """A categorical distribution for each of the A tokens of B decisions.

    `logits` [B, A, V] are tempered: their softmax is what the policy samples from. `support` are the ids of the V
    columns. `hidden` [B, A, H] are the policy's activations where it predicts each token, if it tells them.
    """

    logits: Float[Tensor, "B A V"]
    support: range
    hidden: Float[Tensor, "B A H"] | None = None

    @cached_property
    def log_probs(self) -> Float[Tensor, "B A V"]:
        """Of every id, in nats."""
        return torch.log_softmax(self.logits, -1)

    def log_prob(self, tokens: Int[Tensor, "B A"]) -> Float[Tensor, "B A"]:
        """Of the tokens, in nats."""
        return self.log_probs.gather(-1, self.columns(tokens)[..., None])[..., 0]

    def cross_entropy(self, tokens: Int[Tensor, "B A"]) -> Float[Tensor, ""]:
        """-log pi(token) in nats, a mean over all tokens."""
        return losses.cross_entropy(self.logits, self.columns(tokens))

    def kl(self, other: Categorical) -> Float[Tensor, "B A"]:
        """KL(this || other) in nats, summed over the whole support in closed form; differentiable in both.

        Raises ValueError where the supports differ.
        """
        if self.support != other.support:
            raise ValueError(f"distributions over {self.support} and over {other.support} have no divergence")
        return divergence.forward_kl(self.log_probs, other.log_probs)

    def entropy(self) -> Float[Tensor, "B A"]:
        """In nats."""
        probabilities = self.log_probs.exp()
        return -torch.xlogy(probabilities, probabilities).sum(-1)

    def likeliest(self) -> Int[Tensor, "B A"]:
        """The token of the highest probability everywhere."""
        return self.logits.argmax(-1) + self.support.start

    def columns(self, tokens: Int[Tensor, "B A"]) -> Int[Tensor, "B A"]:
        """The columns of tokens."""
        return tokens.to(self.logits.device) - self.support.start
