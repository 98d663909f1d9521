"""`vla-razor eval`: how often a policy succeeds, from uniformly random starts (RL's Razor, Sections 3.1 and Appendix
B.2).

Each task is tried from `episodes` starts (paper: 100) that the seed alone decides, so that policies evaluated with
the same seed meet the same ones. Every rate comes with its Wilson 95% interval; with `against` a second policy plays
the same starts, and the differences come with a paired interval. The policy samples at its own temperature;
`greedy=true` takes the likeliest tokens instead and is reported under its own name.

Where it departs from the paper: episodes do not stop at success, so that success at the end and success at any time are
told apart.

The run folder gets `episodes.jsonl`, a line an episode, and `videos/`, `videos` films a task and policy.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from rich.console import Console

from vla_razor import ranks
from vla_razor.config import compose, scenes
from vla_razor.errors import UserError
from vla_razor.files import atomic_write
from vla_razor.policies import Policy
from vla_razor.policies.opening import open_policy
from vla_razor.progress import progress
from vla_razor.rollouts.evaluation import Results, compared, evaluate, records, summarized
from vla_razor.runs import Run, read_config, run_of
from vla_razor.statistics import READINGS
from vla_razor.tables import by_task, report
from vla_razor.videos import write_film

FPS = 5
"""About real time: the tasks are controlled at 3 to 5 Hz."""
MOST_IN_TABLE = 2


def run(config: DictConfig, run: Run) -> None:
    """Evaluate `config.policy`, and those of `config.against` if given, on every task of `config.env`.

    A task counts as new where a run taught it to one of the policies and, where no run taught them anything, unless it
    is one of those that a training has as prior ones by default; all others are prior. One or two policies are shown in
    a table, more are in summary.json alone.
    """
    run.restore()
    policies = open_policies(config)
    tasks = [task for scene in scenes(config.env) for task in scene.tasks]
    settings = {key: config[key] for key in ("episodes", "seed", "num_envs", "num_workers", "device")}
    total = len(policies) * len(tasks) * config.episodes
    with progress("evaluation", -(-total // ranks.world())) as advance:
        results = evaluate(policies, scenes(config.env), **settings, filmed=config.videos, progress=lambda _: advance())
    names = list(results)
    new = new_tasks(config)
    entries = {name: summarized(result, new_tasks=new) for name, result in results.items()}
    comparison = compared(results[names[0]], results[names[1]], new) if len(names) == 2 else None
    if ranks.first():
        write_records(run.path / "episodes.jsonl", results)
        write_films(run.path, results)
    run.log(0, **scalars(entries))
    run.finish({"policies": entries} | ({"comparison": comparison} if comparison else {}))
    if len(names) <= MOST_IN_TABLE:
        report(Console(), run.path, entries, comparison)


def new_tasks(config: DictConfig) -> list[str]:
    """The tasks that are filed as new, see `run`."""
    learned = [task for spec in _specs(config) for task in _learned(Path(spec))]
    if learned:
        return learned
    spared = {task for scene in scenes(compose("rl").prior) for task in scene.tasks}
    return [task for scene in scenes(config.env) for task in scene.tasks if task not in spared]


def _learned(policy: Path) -> list[str]:
    """What the run taught of which this is the folder, or a checkpoint; nothing where there is no run."""
    folder = run_of(policy)
    if folder is None:
        return []
    settings = read_config(folder / "config.yaml")
    return [task for scene in scenes(settings.env) for task in scene.tasks] if "env" in settings else []


def _specs(config: DictConfig) -> list[str]:
    return [config.policy, *(config.against.split(",") if config.against else [])]


def open_policies(config: DictConfig) -> dict[str, Policy]:
    """The policies by the names they are reported under. Raises UserError where one is given twice."""
    specs = _specs(config)
    for spec in specs:
        if specs.count(spec) > 1:
            raise UserError(f"policy and against both name {spec}: give different policies.")
    return {f"{spec} (greedy)" if config.greedy else spec: open_policy(spec, config) for spec in specs}


def write_records(path: Path, results: Mapping[str, Results]) -> None:
    """One JSON object a line: the policy, and what became of an episode."""
    rows = [{"policy": name, **record} for name, result in results.items() for record in records(result)]
    atomic_write(path, b"".join(json.dumps(row).encode() + b"\n" for row in rows))


def film_path(folder: Path, policy: str, task: str, number: int) -> Path:
    """Where the film of a policy's episode is kept below a run folder."""
    return folder / "videos" / f"{_file_name(policy)}-{task}-{number}.mp4"


def write_films(folder: Path, results: Mapping[str, Results]) -> None:
    """What the camera saw in the episodes whose images were kept: videos/<policy>-<task>-<number>.mp4."""
    for name, result in results.items():
        for task, episodes in result.items():
            for number, episode in enumerate(episode for episode in episodes if len(episode.images)):
                write_film(film_path(folder, name, task, number), list(episode.images), FPS)


def scalars(entries: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """The rates, flat, for metrics.jsonl."""
    return {
        f"{name}/{task}/{reading}": summary[reading]["rate"]
        for name, entry in entries.items()
        for task, summary in by_task(entry).items()
        for reading in READINGS
    }


def _file_name(policy: str) -> str:
    return re.sub(r"[^\w.-]+", "_", policy).strip("_")
