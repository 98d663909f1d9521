"""The policy that is trained, and its base: what it was before."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig

from vla_razor.config import scenes
from vla_razor.errors import UserError
from vla_razor.policies import Decisions, Observations
from vla_razor.policies.opening import open_trainable
from vla_razor.policies.openvla.policy import PrismaticPolicy
from vla_razor.policies.trainable import Trainable, base_of
from vla_razor.rollouts import recorded
from vla_razor.runs import Run
from vla_razor.training.trainer import generator


class Base:
    """The policy before fine-tuning: the tuned one with its adapter switched off if it has one, else a copy made on
    demand.
    """

    name = "base"

    def __init__(self, tuned: Trainable, config: DictConfig) -> None:
        self.tuned, self.config = tuned, config
        self.cameras, self.proprioception = tuned.cameras, tuned.proprioception

    @contextmanager
    def policy(self) -> Iterator[Trainable]:
        """The base, for as long as the block lasts."""
        with base_of(self.tuned, None, lambda: self._copy) as policy:
            yield policy

    @cached_property
    def _copy(self) -> Trainable:
        policy = opened(str(self.config.policy), self.config, learns=False)
        policy.module.requires_grad_(False)
        return policy

    def act(
        self,
        observations: Observations,
        generators: Sequence[np.random.Generator],
        memories: Sequence[Any] | None = None,
    ) -> Decisions:
        """As it would decide itself."""
        with self.policy() as policy:
            return policy.act(observations, generators, memories)


def open_policies(config: DictConfig, run: Run) -> tuple[Trainable, Base]:
    """The policy to train, from the run's newest checkpoint if there is one, and the base it started from."""
    if len(scenes(config.env)) != 1:
        raise UserError(
            f"env={config.env.name}: {run.config.verb} takes one scene, such as env=pick_can or env=drawer."
        )
    checkpoint = run.newest_checkpoint()
    policy = opened(str(checkpoint or config.policy), config, learns=not config.lora_rank)
    recorded.check(policy, config)
    if checkpoint is None and policy.has_adapter:
        if config.lora_rank:
            raise UserError(f"policy={config.policy} is an adapter already; train it whole with lora_rank=0.")
        policy.merge_lora()
    if checkpoint is None and config.lora_rank:
        policy.add_lora(config.lora_rank, config.lora_alpha, generator(config.seed, "lora"))
    if config.gradient_checkpointing:
        policy.recompute_activations()
    return policy, Base(policy, config)


def opened(spec: str, config: DictConfig, *, learns: bool) -> Trainable:
    """A policy whose matrix products are in `config.dtype`. Trainable parameters, adapters included, are float32: in
    bfloat16 an update below 1/256 of a weight changes nothing, and AdamW's moments do not decay. The matrices of a base
    may be stored in the dtype that products read.
    """
    products = products_of(config)
    policy = open_trainable(spec, config, dtype=torch.float32, matrices=None if learns else products)
    if isinstance(policy, PrismaticPolicy):
        policy.model.products = products
    return policy


def products_of(config: DictConfig) -> torch.dtype | None:
    """The dtype of a training's matrix products; None for float32, the dtype of everything else."""
    return torch.bfloat16 if config.dtype == "bfloat16" else None
