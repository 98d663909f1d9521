"""How well a policy predicts demonstrations that it has not learned from. This evaluates a recorded suite, in which
nobody can act.
"""

from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from vla_razor.policies.trainable import Trainable
from vla_razor.rollouts import recorded
from vla_razor.rollouts.recorded import States
from vla_razor.rollouts.starts import Noise, Start
from vla_razor.statistics import clustered_mean
from vla_razor.training.base import Base

MEASURES = {
    "negative_log_likelihood": "nats an action",
    "token_accuracy": "likeliest token is the demonstrated one",
    "action_error": "mean absolute error",
}


def recorded_ends(config: DictConfig, policy: Trainable, base: Base) -> dict[str, Any]:
    """Each of `MEASURES` for the base, the tuned policy and their difference at the same states, with its 95% interval,
    clustered by episode; also the action error of each dimension.

    The error is that of actions sampled by the policy, at the first control step of a decision, in the units of the
    demonstrations. An action's likelihood is that of all tokens of a decision.
    """
    states = recorded.held_out(config, policy)
    with base.policy() as before:  # this may be the tuned policy itself, with its adapter switched off
        found = {"base": _measured(before, states)}
    found["tuned"] = _measured(policy, states)
    episodes = states.data.episode[states.rows]
    sides = found | {"difference": {name: found["tuned"][name] - found["base"][name] for name in found["base"]}}
    told: dict[str, Any] = {"states": len(states.rows), "episodes": len(np.unique(episodes))}
    for side, values in sides.items():
        summary = {name: _interval(values[name], episodes) for name in MEASURES}
        told[side] = summary | {"action_error_by_dimension": values["errors"].mean(0).tolist()}
    return told


def show_ends(console: Console, found: dict[str, Any]) -> None:
    """Print one line per measure."""
    title = f"At {found['states']} held-out states of {found['episodes']} episodes [95%, clustered by episode]"
    table = Table("", "base", "tuned", "difference", title=title)
    for name, meaning in MEASURES.items():
        cells = [found[side][name] for side in ("base", "tuned", "difference")]
        row = [f"{cell['mean']:.4g} [{cell['low']:.4g}, {cell['high']:.4g}]" for cell in cells]
        table.add_row(f"{name.replace('_', ' ')}\n({meaning})", *row)
    console.print(table)


@torch.no_grad()
def _measured(policy: Trainable, states: States, batch_size: int = 64) -> dict[str, Float[np.ndarray, "K ..."]]:
    data, rows = states.data, states.rows
    tokens = policy.tokenize(data.actions, data.episode)[torch.from_numpy(rows)]
    likelihoods, hits, errors = [], [], []
    for start in range(0, len(rows), batch_size):
        part = rows[start : start + batch_size]
        seen = data.observations[part]
        targets = tokens[start : start + batch_size].to(policy.device)
        said = policy.distribution(policy.views(seen), policy.prompt_ids(seen.instructions), targets)
        likelihoods.append(said.log_prob(targets).double().sum(1).cpu().numpy())
        hits.append((said.likeliest() == targets).double().mean(1).cpu().numpy())
        noises = [Noise(0, Start("recorded", seed=row)).at(0) for row in part.tolist()]
        decided = policy.act(seen, noises).actions[:, 0]
        errors.append(np.abs(decided - data.actions[part]))
    by_dimension = np.concatenate(errors)
    return {
        "negative_log_likelihood": -np.concatenate(likelihoods),
        "token_accuracy": np.concatenate(hits),
        "action_error": by_dimension.mean(1),
        "errors": by_dimension,
    }


def _interval(values: Float[np.ndarray, " K"], episodes: np.ndarray) -> dict[str, float]:
    mean, low, high = clustered_mean(values, episodes)
    return {"mean": mean, "low": low, "high": high}
