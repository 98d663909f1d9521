"""An optimizer and its schedule: one guarded update after the other.

Everything random is seeded by the run's seed and the step. A trainer's state is therefore its weights, its optimizer
and its counters, and a run that was killed and resumed ends like one that was not.
"""

import math
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol

import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from vla_razor import ranks
from vla_razor.core import schedule
from vla_razor.errors import RunFailed
from vla_razor.rollouts.starts import episode_seed


class NotFinite(RunFailed):
    """A loss or gradient that is NaN or infinite."""


class Update(NamedTuple):
    """The result of one optimizer step; `grad_norm` is taken before clipping."""

    loss: float
    grad_norm: float
    learning_rate: float
    clipped_fraction: float


class Learns(Protocol):
    """What a trainer needs to know of a policy."""

    def parameter_groups(self, config: DictConfig) -> list[dict[str, Any]]: ...


class Trainer:
    """A policy's optimizer and schedule over `total_steps` steps. With `state` it goes on where `state_dict` was
    called.

    `skipped` counts the steps in which nothing moved. `spent`: the training has ended early, at its forgetting budget.
    With `config.staleness` K, `past` holds the trainable parameters as they were the last K times that they were
    remembered, the oldest first.
    """

    def __init__(
        self, policy: Learns, config: DictConfig, total_steps: int, state: Mapping[str, Any] | None = None
    ) -> None:
        self.config, self.total_steps = config, total_steps
        self.step = self.clipped = self.skipped = 0
        self.spent = False
        self.optimizer = torch.optim.AdamW(
            policy.parameter_groups(config), betas=tuple(config.betas), eps=config.eps, weight_decay=config.weight_decay
        )
        self.peaks = [group["lr"] for group in self.optimizer.param_groups]
        self.past: deque[list[Tensor]] = deque(maxlen=config.get("staleness", 0))
        if state:
            self.optimizer.load_state_dict(state["optimizer"])
            self.step, self.clipped, self.skipped = state["step"], state["clipped"], state.get("skipped", 0)
            self.peaks, self.spent = state.get("peaks", self.peaks), state.get("spent", False)
            self.past.extend(state.get("past", []))

    def update(self, shares: Iterable[Tensor]) -> Update:
        """One step along the gradient of the sum of `shares`, each the loss of one micro-batch, over all ranks.

        Raises `NotFinite` before any weight has changed, where the loss or its gradient is not finite.
        """
        parameters = self.parameters
        for parameter in parameters:
            parameter.grad = torch.zeros_like(parameter)
        loss = 0.0
        for share in shares:
            share.backward()
            loss += float(share.detach())
        # The gradient is complete only here: the shares of all ranks add up, as those of one rank do.
        loss = ranks.add_up([gradient for p in parameters if (gradient := p.grad) is not None], loss)
        grad_norm = float(nn.utils.clip_grad_norm_(parameters, self.config.max_grad_norm))
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            raise NotFinite(
                f"Step {self.step + 1}: the loss is {loss}, its gradient's norm {grad_norm}. Nothing was updated."
            )
        for group, peak in zip(self.optimizer.param_groups, self.peaks, strict=True):
            group["lr"] = peak * self._factor
        self.optimizer.step()
        self.clipped += grad_norm > self.config.max_grad_norm
        return self._taken(loss, grad_norm)

    def skip(self) -> Update:
        """A step without anything to learn from. Nothing moves, whereas AdamW's momentum would without a gradient."""
        self.skipped += 1
        return self._taken(0.0, 0.0)

    def remember(self) -> None:
        """Keep a copy of the trainable parameters, if the policy that plays is to be stale."""
        if self.past.maxlen:
            self.past.append([parameter.detach().clone() for parameter in self.parameters])

    @property
    def _factor(self) -> float:
        return schedule.factor(self.step, self.total_steps, self.config.warmup_steps, self.config.schedule)

    def _taken(self, loss: float, grad_norm: float) -> Update:
        rate = self.peaks[0] * self._factor
        self.step += 1
        return Update(loss, grad_norm, rate, self.clipped / max(1, self.step - self.skipped))

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The trainable parameters."""
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    @contextmanager
    def stale(self) -> Iterator[None]:
        """Inside, the policy has the oldest parameters that are remembered, if there are any."""
        if not self.past:
            yield
            return
        now = [parameter.detach().clone() for parameter in self.parameters]
        try:
            assign(self.parameters, self.past[0])
            yield
        finally:
            assign(self.parameters, now)

    @property
    def done(self) -> bool:
        """Whether all steps have been taken, or the forgetting budget was spent before."""
        return self.spent or self.step >= self.total_steps

    def state_dict(self) -> dict[str, Any]:
        """Everything but the weights that the next steps depend on."""
        counters = {name: getattr(self, name) for name in ("step", "clipped", "skipped", "peaks", "spent")}
        past = {"past": list(self.past)} if self.past.maxlen else {}
        return {"optimizer": self.optimizer.state_dict(), **counters, **past}


@torch.no_grad()
def assign(parameters: Sequence[nn.Parameter], values: Sequence[Tensor]) -> None:
    """Copy values into parameters in place, on whatever device these are."""
    for parameter, value in zip(parameters, values, strict=True):
        parameter.copy_(value)


def is_due(step: int, every: int, last: int) -> bool:
    """Whether something done every `every` steps (0: never), and at the last one, is due after `step`."""
    return every > 0 and (step % every == 0 or step == last)


def generator(seed: int, purpose: str, *keys: int) -> torch.Generator:
    """A CPU generator that (seed, purpose, keys) determine, independent of all others."""
    return torch.Generator().manual_seed(episode_seed(purpose, seed, *keys))


def own_generator(seed: int, purpose: str, *keys: int) -> torch.Generator:
    """As `generator`, but a different one on every rank: for draws about this rank's part of a batch alone."""
    return generator(seed, purpose if ranks.first() else f"{purpose} of rank {ranks.rank()}", *keys)
