"""The probe set: what a base policy sees and does on the new task, kept so that any policy's drift is one forward pass.

Forward KL is E_{x ~ task} E_{y ~ base} sum_t KL(base(. | x, y_<t) || tuned(. | x, y_<t)). The states x are those the base
visits on the new task's grid of start positions, up to its first success; y are the base's own action tokens; the inner KL
is summed exactly over the 256 action ids, renormalised, which is what both policies sample from. Nothing of it needs the
simulator again.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32, Int64, UInt8
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from vla_razor.core import divergence
from vla_razor.errors import RunFailed, UserError
from vla_razor.files import atomic_folder, full_disk_reported, write_json
from vla_razor.policies.openvla import OpenVLA
from vla_razor.policies.openvla.policy import OpenVLAPolicy
from vla_razor.rollouts.rollout import Episode, VectorEnv, make_vector_env, rollout
from vla_razor.rollouts.starts import grid_starts

SCHEMA = 1
GRID = "10x10"
"""Start positions of the base's episodes, one each (the grid of the paper's Appendix B.2)."""


@dataclass(frozen=True)
class Origin:
    """What a probe set was made from: two with the same origin are the same."""

    base: str
    """Fingerprint of the base policy."""
    task: str
    environment: str
    """Gymnasium id and keyword arguments, as JSON."""
    temperature: float
    seed: int
    states: int
    """How many states were asked for; fewer are kept where the base visited fewer."""

    @property
    def key(self) -> str:
        """Names the cache folder."""
        return hashlib.sha256(json.dumps([SCHEMA, GRID, asdict(self)]).encode()).hexdigest()[:20]


@dataclass
class ProbeSet:
    """`N` states with the base's `A` tokens (vocabulary ids) and log-probabilities over the action ids (nats) at each.

    `time` counts control steps from an episode's start. `input_ids` are the prompts.
    """

    images: UInt8[np.ndarray, "N H W 3"]
    input_ids: list[list[int]]
    tokens: Int64[Tensor, "N A"]
    base_log_probs: Float32[Tensor, "N A 256"]
    time: Int64[Tensor, " N"]
    origin: Origin

    def __len__(self) -> int:
        return len(self.images)


def obtain(
    base: OpenVLA,
    env_config: Mapping[str, Any],
    *,
    states: int,
    seed: int = 0,
    unnorm_key: str | None = None,
    num_envs: int = 24,
    num_workers: int = 2,
    envs: VectorEnv | None = None,
    progress: Callable[[Episode], None] | None = None,
) -> ProbeSet:
    """The probe set of `base` on `env_config`'s task: from the cache, or collected and kept there.

    Environments are made only where something must be collected and none are given as `envs`.
    """
    origin = origin_of(base, env_config, states, seed)
    folder = cache_folder() / origin.key
    if (folder / "probe.json").is_file():
        return load(folder)
    with closing(envs or make_vector_env(env_config, num_envs, num_workers, base.device)) if envs is None else _Open(
        envs
    ) as vector_env:
        probe = collect(base, vector_env, env_config, origin, unnorm_key=unnorm_key, progress=progress)
    save_to(probe, folder)
    return probe
