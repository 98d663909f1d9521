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
from rich.table import Table

from vla_razor.config import compose, robot_of, scenes
from vla_razor.errors import UserError
from vla_razor.files import atomic_write
from vla_razor.policies import Policy
from vla_razor.policies.load import load_model
from vla_razor.policies.members import factory_of, made_by
from vla_razor.policies.openvla.checkpoint import NoCheckpoint
from vla_razor.policies.openvla.policy import OpenVLAPolicy
from vla_razor.policies.openvla.prismatic import PrismaticVLA
from vla_razor.policies.rt1 import RT1Policy, is_saved_model
from vla_razor.progress import progress
from vla_razor.rollouts.evaluation import Results, compared, evaluate, records, summarized
from vla_razor.runs import Run, read_config, run_of
from vla_razor.statistics import READINGS, Difference, Rate
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
    with progress("evaluation", len(policies) * len(tasks) * config.episodes) as advance:
        results = evaluate(policies, scenes(config.env), **settings, filmed=config.videos, progress=lambda _: advance())
    names = list(results)
    new = new_tasks(config)
    entries = {name: summarized(result, new_tasks=new) for name, result in results.items()}
    comparison = compared(results[names[0]], results[names[1]], new) if len(names) == 2 else None
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


def open_policy(spec: str, config: DictConfig) -> Policy:
    """A member of the group `vla_razor.policies` or what `module:factory` makes, RT-1 where `spec` is a SavedModel's
    folder, or a model at the configured temperature, greedy if asked for.
    """
    robot = robot_of(config.env)
    if factory := factory_of(spec):
        return made_by(factory, spec, robot=robot, device=config.device)
    if is_saved_model(spec):
        return _open_rt1(spec, config)
    try:
        model = _open_checkpoint(spec, config)
    except NoCheckpoint as error:
        if robot != "google_robot":
            raise
        raise UserError(f"{error} RT-1's SavedModel would hold saved_model.pb, which is not here either.") from error
    return OpenVLAPolicy(model, config.unnorm_key, config.get("greedy", False), robot)


def _open_rt1(spec: str, config: DictConfig) -> RT1Policy:
    if robot_of(config.env) != "google_robot":
        raise UserError(f"policy={spec}: RT-1 acts on the Google robot alone; add robot=google_robot.")
    return RT1Policy(spec, config.embeddings)


def open_model(spec: str, config: DictConfig, **dtypes: Any) -> PrismaticVLA:
    """The model that `spec` names, at `config.temperature` and with `config.prompt` unless they are null. Its
    parameters are in `config.dtype`, or as `dtypes` tell `load_model`. Raises UserError for a policy that only acts.
    """
    if factory_of(spec):
        raise UserError(
            f"policy={spec}: it acts, but has no distribution that could be trained or compared: "
            f"{config.verb} takes a checkpoint. eval and collect take it."
        )
    return _open_checkpoint(spec, config, **dtypes)


def _open_checkpoint(spec: str, config: DictConfig, **dtypes: Any) -> PrismaticVLA:
    model = load_model(spec, device=config.device, oft=config.oft, **(dtypes or {"dtype": config.dtype}))
    if config.temperature is not None:
        model.config.temperature = config.temperature
    if config.prompt is not None:
        model.config.prompt = config.prompt
    return model


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
        for task, summary in _by_task(entry).items()
        for reading in READINGS
    }


def report(
    console: Console, folder: Path, entries: Mapping[str, Mapping[str, Any]], comparison: Mapping[str, Any] | None
) -> None:
    """Two lines for each task and for all prior tasks, success once in an episode and at the end; with two policies,
    the paired differences.
    """
    table = Table("", title=f"Success once in an episode, and at the end [Wilson 95%] in {folder}")
    for name in entries:
        table.add_column(_short(name), justify="right")
    if comparison:
        table.add_column("difference\n(paired 95%)", justify="right")
    for task in _by_task(next(iter(entries.values()))):
        for reading, label in zip(READINGS, (task, "  at the end"), strict=True):
            cells = [shown(_by_task(entry)[task][reading]) for entry in entries.values()]
            table.add_row(label, *cells, *([_difference(comparison, task, reading)] if comparison else []))
    console.print(table)


def shown(rate: Rate, gap: str = "  ") -> str:
    """A rate as it is printed, with its counts: 57 of 91  63% [54, 71]."""
    interval = f"[{100 * rate['low']:.0f}, {100 * rate['high']:.0f}]"
    return f"{rate['successes']} of {rate['episodes']}{gap}{rate['rate']:.0%} {interval}"


def in_words(found: Difference) -> str:
    """A difference as it is printed: +10% [-5, +30]."""
    return f"{found.difference:+.0%} [{100 * found.low:+.0f}, {100 * found.high:+.0f}]"


def _by_task(entry: Mapping[str, Any]) -> dict[str, Any]:
    prior = {"all prior tasks": entry["prior_mean"]} if len(entry["prior_tasks"]) > 1 else {}
    return {**entry["new_task"], **entry["prior_tasks"], **prior}


def _difference(comparison: Mapping[str, Any], task: str, reading: str) -> str:
    pair = comparison["tasks"].get(task, comparison["prior_mean"])
    if not pair["episodes"]:
        return "every pair was lost"
    return in_words(Difference(**pair[reading]))


def _short(name: str, length: int = 20) -> str:
    """The end of a long name says more than its beginning."""
    return name if len(name) <= length else f"…{name[1 - length :]}"


def _file_name(policy: str) -> str:
    return re.sub(r"[^\w.-]+", "_", policy).strip("_")
