"""The protocol of a penalty, and what it is given."""

from typing import Any, NamedTuple, Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vla_razor.core.categorical import Categorical


class States(NamedTuple):
    """The decisions of a micro-batch. `views` are what the policy makes of its observations (`Trainable.views`). `said`
    is its distribution along `tokens`, if it has been computed already.
    """

    views: Any
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
