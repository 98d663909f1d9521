"""`vla-razor eval`: how often a policy succeeds, from uniformly random starts (RL's Razor, Section 3.1 and Appendix
B.2).

Each task is tried from `episodes` starts (paper: 100) that the seed alone decides, so that policies evaluated with the
same seed meet the same starts. Every rate has its Wilson 95% interval. With `against` a second policy plays from the
same starts, and the differences have a paired interval. The policy samples at its own temperature; `greedy=true` takes
the likeliest tokens instead and is reported under its own name.

Where it departs from the paper: episodes do not stop at success, so that success at the end and success at any time are
told apart.

The run folder gets `episodes.jsonl`, one line per episode, and `videos/`, with `videos` films per task and policy.
"""

import json
import re
from collections.abc import Mapping
from itertools import product
from pathlib import Path

from omegaconf import DictConfig
from rich.console import Console

from vla_razor import ranks
from vla_razor.config import compose, scenes
from vla_razor.errors import RunFailed, UserError
from vla_razor.files import atomic_write
from vla_razor.policies import Policy
from vla_razor.policies.opening import open_policy
from vla_razor.progress import progress
from vla_razor.rollouts.evaluation import Results, compared, evaluate, records, summarized
from vla_razor.rollouts.rollout import Episode
from vla_razor.runs import Run, read_config, run_of
from vla_razor.statistics import READINGS
from vla_razor.tables import by_task, report
from vla_razor.videos import write_film

FPS = 5
"""About real time: the tasks are controlled at 3 to 5 Hz."""
MOST_IN_TABLE = 2


def run(config: DictConfig, run: Run) -> None:
    """Evaluate `config.policy`, and those of `config.against` if given, on every task of `config.env`.

    A task is new if a run taught it to one of the policies. Where no run taught them anything, every task is new except
    the default prior tasks of a training. All other tasks are prior. One or two policies are shown in a table; more are
    in summary.json alone.
    """
    run.restore()
    policies = open_policies(config)
    tasks = [task for scene in scenes(config.env) for task in scene.tasks]
    settings = {key: config[key] for key in ("episodes", "seed", "num_envs", "num_workers", "device")}
    played: dict[str, Results] = {name: {} for name in policies}
    total = len(policies) * len(tasks) * config.episodes
    with progress("evaluation", -(-total // ranks.world())) as advance:

        def note(name: str, episode: Episode) -> None:
            played[name].setdefault(episode.start.task, []).append(episode)
            advance()

        try:
            results = evaluate(policies, scenes(config.env), **settings, filmed=config.videos, progress=note)
        except RunFailed as error:  # a policy's server has gone, and the like
            write_records(run.path / "episodes.jsonl", played)
            count = sum(len(episodes) for result in played.values() for episodes in result.values())
            kept = f"Episodes that were played until then: {count}, kept in {run.path / 'episodes.jsonl'}"
            raise RunFailed(
                f"{str(error).rstrip('.')}. {kept}; vla-razor resume {run.path} plays all of them."
            ) from error
    names, new = list(results), new_tasks(config)
    entries = {name: summarized(result, new_tasks=new) for name, result in results.items()}
    comparison = compared(results[names[0]], results[names[1]], new) if len(names) == 2 else None
    if ranks.first():
        write_records(run.path / "episodes.jsonl", results)
    for name, task in product(results, tasks) if ranks.first() else ():
        kept = [episode for episode in results[name].get(task, ()) if len(episode.images)]  # those that were filmed
        for number, episode in enumerate(kept):
            write_film(film_path(run.path, name, task, number), list(episode.images), FPS)
    scalars = {
        f"{name}/{task}/{reading}": summary[reading]["rate"]
        for name, entry in entries.items()
        for task, summary in by_task(entry).items()
        for reading in READINGS
    }
    run.log(0, **scalars)
    run.finish({"policies": entries} | ({"comparison": comparison} if comparison else {}))
    if len(names) <= MOST_IN_TABLE:
        report(Console(), run.path, entries, comparison)


def specs_of(config: DictConfig) -> list[str]:
    """What `policy` and `against` name."""
    return [config.policy, *(config.against.split(",") if config.against else [])]


def new_tasks(config: DictConfig) -> list[str]:
    """The tasks that count as new; see `run`."""
    learned = []
    for spec in specs_of(config):
        folder = run_of(spec)  # None for a checkpoint that no run has made
        settings = read_config(folder / "config.yaml") if folder else {}
        learned += [task for scene in scenes(settings["env"]) for task in scene.tasks] if "env" in settings else []
    if learned:
        return learned
    spared = {task for scene in scenes(compose("rl").prior) for task in scene.tasks}
    return [task for scene in scenes(config.env) for task in scene.tasks if task not in spared]


def open_policies(config: DictConfig) -> dict[str, Policy]:
    """The policies by the names they are reported under. Raises UserError where one is given twice."""
    specs = specs_of(config)
    for spec in specs:
        if specs.count(spec) > 1:
            raise UserError(f"policy and against both name {spec}: give different policies.")
    return {f"{spec} (greedy)" if config.greedy else spec: open_policy(spec, config) for spec in specs}


def write_records(path: Path, results: Mapping[str, Results]) -> None:
    """Write one JSON object per line: the policy, and what became of an episode."""
    rows = [{"policy": name, **record} for name, result in results.items() for record in records(result)]
    atomic_write(path, b"".join(json.dumps(row).encode() + b"\n" for row in rows))


def film_path(folder: Path, policy: str, task: str, number: int) -> Path:
    """Where the film of a policy's episode is kept within a run folder."""
    name = re.sub(r"[^\w.-]+", "_", policy).strip("_")  # the name of a policy may be a path
    return folder / "videos" / f"{name}-{task}-{number}.mp4"
