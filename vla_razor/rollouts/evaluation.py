"""Evaluation: all policies play from the same uniformly random starts, and each episode runs to its horizon.

Because episodes do not stop at success, both readings are meaningful: `success_once` (after any step; the headlined
one) and `success_at_end` (after the last step).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from functools import partial
from typing import Any

import numpy as np
import torch

from vla_razor import ranks
from vla_razor.policies import Policy
from vla_razor.rollouts.environments import cameras_for, make_vector_env
from vla_razor.rollouts.rollout import Episode, rollout
from vla_razor.rollouts.starts import Start, episode_seed, random_starts
from vla_razor.statistics import READINGS, paired_difference, policy_summary, success_summary

Results = dict[str, list[Episode]]
"""Episodes by task, in the order of their starts."""


def evaluate(
    policies: Mapping[str, Policy],
    scenes: Iterable[Mapping[str, Any]],
    *,
    episodes: int,
    seed: int = 0,
    num_envs: int = 48,
    num_workers: int = 2,
    device: str | torch.device = "auto",
    filmed: int = 0,
    progress: Callable[[str, Episode], None] | None = None,
) -> dict[str, Results]:
    """Run each policy for `episodes` episodes of every task of the scenes (environment configs with an id).

    All policies meet the same starts and random numbers, which `seed` alone decides. Images are kept for the first
    `filmed` episodes of a task and dropped from the others. Several ranks share the episodes, and each has all of the
    results; `progress` is called with a policy's name and each of its own episodes as it ends.
    """
    results: dict[str, Results] = {name: {} for name in policies}
    for scene in scenes:
        starts = random_starts(scene["tasks"], episodes, seed, scene.get("starts"))
        keep = {(start.task, start.seed) for index, start in enumerate(starts) if index % episodes < filmed}

        def watched(start: Start, keep: set[tuple[str, int]] = keep) -> bool:
            return (start.task, start.seed) in keep

        def note(name: str, episode: Episode, watched: Callable[[Start], bool] = watched) -> None:
            if not watched(episode.start):
                episode.observations = episode.observations.without_images()
            if progress:
                progress(name, episode)

        cameras = cameras_for(scene, *policies.values())
        with closing(make_vector_env(scene, num_envs, num_workers, device, cameras)) as envs:
            for name, policy in policies.items():
                noise = episode_seed("evaluation", seed)
                settings: dict[str, Any] = {"hold": None, "seed": noise, "watched": watched}
                played, _ = rollout(envs, policy, ranks.share(starts), **settings, progress=partial(note, name))
                for episode in ranks.gathered(played):
                    results[name].setdefault(episode.start.task, []).append(episode)
    return results


def evaluate_policy(policy: Policy, scenes: Iterable[Mapping[str, Any]], **settings: Any) -> Results:
    """`evaluate` for one policy; takes the same settings."""
    return evaluate({policy.name: policy}, scenes, **settings)[policy.name]


def summarized(
    results: Results, forward_kl: Mapping[str, Any] | None = None, *, new_tasks: Sequence[str]
) -> dict[str, Any]:
    """A policy's entry in summary.json; every task but the `new_tasks` counts as prior."""
    summaries = {task: success_summary(episodes) for task, episodes in results.items()}
    new = {task: summary for task, summary in summaries.items() if task in new_tasks}
    prior = {task: summary for task, summary in summaries.items() if task not in new_tasks}
    return policy_summary(new, prior, forward_kl)


def compared(a: Results, b: Results, new_tasks: Sequence[str]) -> dict[str, Any]:
    """Paired differences a - b in both readings of success, by task and over all prior tasks together.

    A start counts if neither policy's episode was lost.
    """
    tasks = {task: _paired(a[task], b[task]) for task in a}
    prior = [task for task in a if task not in new_tasks]
    together = _paired([e for t in prior for e in a[t]], [e for t in prior for e in b[t]]) if prior else None
    return {"tasks": tasks, "prior_mean": together}


def records(results: Results) -> list[dict[str, Any]]:
    """One line per episode, for JSON."""
    return [
        {
            "task": task,
            "start": {"seed": episode.start.seed, **episode.start.options},
            **{reading: getattr(episode, reading) for reading in READINGS},
            "first_success": int(np.argmax(episode.success)) + 1 if episode.success_once else None,
            "steps": episode.length,
            "lost": episode.lost,
        }
        for task, episodes in results.items()
        for episode in episodes
    ]


def _paired(a: Sequence[Episode], b: Sequence[Episode]) -> dict[str, Any]:
    pairs = [(x, y) for x, y in zip(a, b, strict=True) if not (x.lost or y.lost)]
    if not pairs:
        return {"episodes": 0}
    found: dict[str, Any] = {"episodes": len(pairs)}
    for reading in READINGS:
        one, other = ([getattr(episode, reading) for episode in side] for side in zip(*pairs, strict=True))
        found[reading] = paired_difference(one, other)._asdict()
    return found
