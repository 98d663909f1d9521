"""Recorded states, at which a policy is measured where it cannot act.

Forward KL at them is defined as on the probe set (`probe_set.py`), with these states in place of those that the base
visits: the base draws its own actions at each, and is compared with the tuned policy along them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from omegaconf import DictConfig

from vla_razor.config import robot_of
from vla_razor.errors import UserError
from vla_razor.policies.openvla.conventions import SPOKEN_FOR
from vla_razor.policies.openvla.policy import PrismaticPolicy
from vla_razor.policies.trainable import Trainable
from vla_razor.recordings import HELD_OUT, describes, is_recorded
from vla_razor.rollouts import demonstrations, probe_set
from vla_razor.rollouts.demonstrations import Demonstrations
from vla_razor.rollouts.probe_set import ProbeSet
from vla_razor.rollouts.starts import episode_seed


@dataclass(frozen=True)
class States:
    """Whole episodes, and the rows of those of their `N` control steps at which is measured."""

    data: Demonstrations
    rows: Int[np.ndarray, " K"]

    @property
    def time(self) -> Int[np.ndarray, " N"]:
        """The time of each control step in its episode, from 0."""
        _, first = np.unique(self.data.episode, return_index=True)
        return np.arange(len(self.data.episode)) - first[self.data.episode]


def drawn(folder: str | Path, env: Mapping[str, Any], policy: Trainable, count: int, seed: int = 0) -> States:
    """`count` of the states in a store, drawn by the seed, or all if there are fewer. The store must be of the suite
    `env`. Raises UserError as `demonstrations.load` does.
    """
    data = demonstrations.load(folder, env, policy)
    order = np.random.default_rng(episode_seed("recorded states", seed)).permutation(len(data.actions))
    return States(data, np.sort(order[:count]))


def held_out(config: DictConfig, policy: Trainable) -> States:
    """The states at which a training on `config.demos` is measured: of the held-out episodes, if there are any."""
    apart = Path(config.demos) / HELD_OUT
    return drawn(apart if describes(apart) else config.demos, config.env, policy, config.probe_states)


def probe_of(
    base: Trainable, states: States, task: str, other_instructions: Sequence[str] = (), seed: int = 0
) -> ProbeSet:
    """The probe set of a base at recorded states. It needs no simulator, and is made anew each time."""
    found = probe_set.of_observations(base, states.data.observations[states.rows], seed)
    found = replace(found, time=torch.from_numpy(states.time[states.rows]), origin=replace(found.origin, task=task))
    if other_instructions:
        found.elsewhere = probe_set.under(base, found, other_instructions)
    return found


def check(policy: Trainable, config: DictConfig) -> None:
    """Raises UserError where a policy has no action statistics of the recorded suite, but another robot's alone."""
    if not is_recorded(config.env) or config.unnorm_key is not None or not isinstance(policy, PrismaticPolicy):
        return
    robot, has = robot_of(config.env), policy.model.config.norm_stats
    if policy.unnorm_key not in (robot, f"{robot}_no_noops", *SPOKEN_FOR.get(robot, ())):
        raise UserError(
            f"policy={config.policy}: it has no action statistics of {robot}, but of {', '.join(sorted(has))}. A copy "
            f"of it that has them: vla-razor stats DIR policy={config.policy}; or choose some that fit as unnorm_key."
        )


def check_actions(policy: Trainable, data: Demonstrations, where: str | Path) -> None:
    """Raises UserError where the policy cannot express the demonstrated actions: because they have another length, or
    because its statistics have no width in a dimension that moves.
    """
    if isinstance(policy, PrismaticPolicy):
        known, found = policy.num_tokens // policy.chunk, data.actions.shape[1]
        if known != found:
            raise UserError(
                f"{where}: its actions have {found} numbers, the statistics {policy.unnorm_key} {known}. Statistics of "
                f"these: vla-razor stats {where} policy=POLICY."
            )
        scale = policy.model.config.action_scale(policy.unnorm_key)
        stuck = scale.mask & (scale.high <= scale.low) & (np.ptp(data.actions, axis=0) > 0)
        if stuck.any() and describes(where):
            index = int(np.argmax(stuck))
            raise UserError(
                f"{where}: the statistics {policy.unnorm_key} have no width in dimension {index} (q01 = q99 = "
                f"{scale.low[index]:g}), in which the demonstrations move, so that no token could say it. vla-razor "
                "stats with mask=[...,false,...] leaves it as it is."
            )
