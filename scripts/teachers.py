"""How far each teacher is from a base: success of every style of the scripted expert, undisturbed and with half of its
steps disturbed, and how unlikely its actions are under the base, in nats an action, on the states that it shows. The
base's own actions are at its entropy; that is the least which any teacher of so many kinds of actions can have.

    python scripts/teachers.py --policy tiny --json teachers.json
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from vla_razor.config import compose, scenes
from vla_razor.policies import Observations, Policy
from vla_razor.policies.load import load_model
from vla_razor.policies.openvla.policy import PrismaticPolicy
from vla_razor.policies.scripted import SKILLS, ScriptedExpert
from vla_razor.rollouts.environments import VectorEnv, make_vector_env
from vla_razor.rollouts.rollout import Episode, rollout
from vla_razor.rollouts.starts import random_starts
from vla_razor.statistics import mean_with_interval, wilson
from vla_razor.tables import shown

NOISE = 0.5
STATES = 600
"""At most, of a teacher."""


def unlikely(policy: PrismaticPolicy, episodes: list[Episode], generator: torch.Generator) -> dict[str, float]:
    """The mean over states of minus the base's log-probability of what was done there, with its 95% interval; the
    states of an episode count as one group.
    """
    states = [(episode, t) for episode in episodes for t in range(episode.length)]
    kept = torch.randperm(len(states), generator=generator)[:STATES].tolist()
    by_episode: dict[int, list[float]] = {}
    for batch in (kept[begin : begin + 64] for begin in range(0, len(kept), 64)):
        chosen = [states[index] for index in batch]
        actions = np.stack([(e.actions if e.labels is None else e.labels)[t] for e, t in chosen])
        tokens = policy.model.tokenize(actions, policy.unnorm_key)
        views = policy.views(Observations.joined([episode.observations[t : t + 1] for episode, t in chosen]))
        with torch.no_grad():
            said = policy.distribution(views, policy.prompt_ids([e.instruction for e, _ in chosen]), tokens)
        own = said.log_prob(tokens).sum(1)
        for (episode, _), value in zip(chosen, own.tolist(), strict=True):
            by_episode.setdefault(id(episode), []).append(-value)
    return mean_with_interval(list(by_episode.values()))._asdict()


def teachers(policy: PrismaticPolicy, verbs: set[str]) -> Iterator[tuple[str, Policy, Policy]]:
    """A name, who acts undisturbed, and who acts disturbed; the base first."""
    yield "the base itself", policy, policy
    for style, skills in SKILLS["panda"].items():
        if verbs & set(skills.by_verb):
            yield style, ScriptedExpert(style=style), ScriptedExpert(NOISE, style=style)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policy", default="tiny")
    parser.add_argument("--episodes", type=int, default=96, help="of each scene and teacher")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="file to write the numbers to")
    arguments = parser.parse_args()
    policy = PrismaticPolicy(load_model(arguments.policy))
    generator = torch.Generator().manual_seed(arguments.seed)
    table = Table("task", "teacher", "success", f"{NOISE:.0%} of steps disturbed", "nats an action [95%]")
    rows: list[dict[str, Any]] = []
    for scene in scenes(compose("eval", ["env=all"]).env):
        starts = random_starts(scene.tasks, arguments.episodes // len(scene.tasks), arguments.seed)
        with closing(make_vector_env(scene, 48, 2, "cpu")) as envs:
            for name, calm, disturbed in teachers(policy, {task.partition("_")[0] for task in scene.tasks}):
                rows.append(row(policy, envs, starts, scene, name, calm, disturbed, generator))
                found = rows[-1]
                nats = "{difference:.1f} [{low:.1f}, {high:.1f}]".format(**found["nats"])
                table.add_row(scene.name, name, shown(found["calm"], " "), shown(found["disturbed"], " "), nats)
    Console().print(table)
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n")


def row(
    policy: PrismaticPolicy,
    envs: VectorEnv,
    starts: list[Any],
    scene: Any,
    name: str,
    calm: Policy,
    disturbed: Policy,
    generator: torch.Generator,
) -> dict[str, Any]:
    """What is known of one teacher."""
    several = [calm] if disturbed is calm else [calm, disturbed]
    played = [rollout(envs, one, starts, hold=scene.hold, seed=0)[0] for one in several]
    rates = [wilson(sum(episode.success_at_end for episode in own), len(own)) for own in played]
    won = [episode for episode in played[-1] if episode.success_at_end]
    return {
        "scene": scene.name,
        "teacher": name,
        "calm": rates[0],
        "disturbed": rates[-1],
        "nats": unlikely(policy, won, generator),
    }


if __name__ == "__main__":
    main()
