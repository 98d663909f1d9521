"""An optimizer and its schedule: one guarded update after the other.

Everything random is seeded by the run's seed and the step, so that a trainer's state is its weights, its optimizer and
its counters, and a run that was killed and resumed ends as one that was not.
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
    """What one optimizer step did; `grad_norm` is taken before clipping."""

    loss: float
    grad_norm: float
    learning_rate: float
    clipped_fraction: float


class Learns(Protocol):
    """What a trainer needs to know of a policy."""

    def parameter_groups(self, config: DictConfig) -> list[dict[str, Any]]: ...


class Trainer:
    """A policy's optimizer and schedule, `total_steps` long; with `state`, taken up where `state_dict` was called.

    `skipped` counts the steps in which nothing was moved. `spent` says that the training has ended early, because its
    forgetting budget is. With `config.staleness` K, `past` holds what learns as it was each of the last K times that it
    was remembered, the oldest first.
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
        """One step along the gradient of the sum of `shares`, one micro-batch's part of the loss each, over all ranks.

        Raises `NotFinite`, before any weight has changed, where the loss or its gradient is not finite.
        """
        parameters = self.parameters
        for parameter in parameters:
            parameter.grad = torch.zeros_like(parameter)
        loss = 0.0
        for share in shares:
            share.backward()
            loss += float(share.detach())
        # Here alone the gradient is complete: the shares of all ranks add up as those of one do.
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
        """A step for which there is nothing to learn from. Nothing moves: AdamW's momentum would, with no gradient."""
        self.skipped += 1
        return self._taken(0.0, 0.0)

    def remember(self) -> None:
        """Keeps what learns as it is now, where the policy that plays is to be stale."""
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
        """What learns."""
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    @contextmanager
    def stale(self) -> Iterator[None]:
        """Inside, the policy is as the oldest that is remembered, if any."""
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
        """What, beside the weights, the next steps depend on."""
        counters = {name: getattr(self, name) for name in ("step", "clipped", "skipped", "peaks", "spent")}
        past = {"past": list(self.past)} if self.past.maxlen else {}
        return {"optimizer": self.optimizer.state_dict(), **counters, **past}


@torch.no_grad()
def assign(parameters: Sequence[nn.Parameter], values: Sequence[Tensor]) -> None:
    """Copies values into parameters, in place, to wherever these are."""
    for parameter, value in zip(parameters, values, strict=True):
        parameter.copy_(value)


def is_due(step: int, every: int, last: int) -> bool:
    """Whether what is done every so many steps (0: never), and at the last one, is done after `step`."""
    return every > 0 and (step % every == 0 or step == last)


def generator(seed: int, purpose: str, *keys: int) -> torch.Generator:
    """A CPU generator of its own for every (seed, purpose, keys)."""
    return torch.Generator().manual_seed(episode_seed(purpose, seed, *keys))


def own_generator(seed: int, purpose: str, *keys: int) -> torch.Generator:
    """As `generator`, but another one on every rank, for what is drawn about its own part of a batch alone."""
    return generator(seed, purpose if ranks.first() else f"{purpose} of rank {ranks.rank()}", *keys)
