"""The protocol of a penalty, and what it is given."""

from typing import NamedTuple, Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vla_razor.core.categorical import Categorical


class States(NamedTuple):
    """The decisions of a micro-batch. `said` is the policy's distribution along `tokens`, if it has been computed
    already.
    """

    views: Float[Tensor, "B ..."]
    prompts: list[list[int]]
    tokens: Int[Tensor, "B A"]
    said: Categorical | None = None


class Penalty(Protocol):
    """Something that is paid for. Its mean is logged in metrics.jsonl under `name`."""

    @property
    def name(self) -> str: ...

    def cost(self, states: States, generator: torch.Generator) -> Float[Tensor, " B"]:
        """The cost of each decision, differentiable in the trainable parameters. Random draws use the generator."""
        ...
