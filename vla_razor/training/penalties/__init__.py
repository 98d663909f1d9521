"""What a training pays for beside its own objective: the ways to forget less, one file each, for all algorithms.

`kl_coefficient`, `spillover_coefficient` and `replay_coefficient` choose those in this folder, and
`penalties={package.module:Class: 0.1}` adds one from anywhere. A class is instantiated once per training, with those of
`policy`, `base` and `config` that are its parameters.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from omegaconf import DictConfig
from torch import Tensor

from vla_razor import ranks
from vla_razor.errors import UserError
from vla_razor.policies.members import called, named
from vla_razor.policies.trainable import Trainable
from vla_razor.training.base import Base
from vla_razor.training.penalties.penalty import Penalty, States
from vla_razor.training.penalties.replay import Replay
from vla_razor.training.penalties.spillover import Spillover


@dataclass
class Penalties:
    """The penalties of a training, each with its coefficient."""

    terms: Sequence[tuple[float, Penalty]]
    _costs: dict[str, list[Tensor]] = field(default_factory=dict)

    @classmethod
    def of(cls, config: DictConfig, policy: Trainable, base: Base, kl: type[Any], *, measured: bool) -> "Penalties":
        """The penalties that a configuration asks for, with `kl` for `kl_coefficient`. If the KL is to be `measured` it
        is included at a coefficient of 0 too.

        Raises UserError where a class cannot be found or made.
        """
        terms: list[tuple[float, Penalty]] = []
        if config.kl_coefficient or measured:
            terms.append((config.kl_coefficient, kl(policy, base)))
        if config.spillover_coefficient:
            terms.append((config.spillover_coefficient, Spillover(policy, base, config)))
        if config.replay_coefficient:
            terms.append((config.replay_coefficient, Replay(policy, config)))
        others: Mapping[Any, float] = config.penalties
        for spec, coefficient in others.items():
            terms.append((coefficient, _made(str(spec), {"policy": policy, "base": base, "config": config})))
        return cls(terms)

    @property
    def paid_for(self) -> bool:
        """Whether any of them counts in the loss."""
        return any(coefficient for coefficient, _ in self.terms)

    def costs(
        self, states: States, generator: torch.Generator, *, measured: bool = False
    ) -> Iterator[tuple[float, Float[Tensor, " B"]]]:
        """Coefficients and costs, one at a time, because each may hold the activations of a forward pass. With
        `measured`, also those with a coefficient of 0.
        """
        for coefficient, penalty in self.terms:
            if coefficient or measured:
                cost = penalty.cost(states, generator)
                self._costs.setdefault(penalty.name, []).append(cost.detach())
                yield coefficient, cost

    def means(self) -> dict[str, float]:
        """By name, the mean cost of each penalty since the last call, over all ranks."""
        told = ranks.everyones({name: torch.cat(parts).cpu() for name, parts in self._costs.items()})
        names = dict.fromkeys(name for costs in told for name in costs)
        means = {name: float(torch.cat([costs[name] for costs in told if name in costs]).mean()) for name in names}
        self._costs.clear()
        return means


def _made(spec: str, offered: dict[str, Any]) -> Penalty:
    factory = named(spec, "penalties")
    if factory is None:
        raise UserError(f"penalties: {spec} is not of the form package.module:Class.")
    penalty = called(factory, offered, f"penalties: {spec} cannot be made")
    if not callable(getattr(penalty, "cost", None)) or not isinstance(getattr(penalty, "name", None), str):
        raise UserError(f"penalties: {spec} gives {type(penalty).__name__}; expected a name and a method cost.")
    return penalty
