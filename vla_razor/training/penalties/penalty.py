"""What a penalty is, and what it is asked about."""

from typing import Any, NamedTuple, Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vla_razor.core.categorical import Categorical


class States(NamedTuple):
    """The decisions of a micro-batch. `views` are what the policy makes of its observations (`Trainable.views`), `said`
    is its distribution along `tokens`, where that is known already.
    """

    views: Any
    prompts: list[list[int]]
    tokens: Int[Tensor, "B A"]
    said: Categorical | None = None


class Penalty(Protocol):
    """Something that is paid for, called `name` in metrics.jsonl, where its mean is logged."""

    @property
    def name(self) -> str: ...

    def cost(self, states: States, generator: torch.Generator) -> Float[Tensor, " B"]:
        """Of each decision, differentiable in what learns. What is random about it is drawn from the generator."""
        ...
