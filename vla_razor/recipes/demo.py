"""`vla-razor demo`: the main job. One base policy, fine-tuned on a new task by SFT and by REINFORCE; what each learned,
what each forgot, and how far each moved (RL's Razor, Section 3 and Figure 3, at the size of a laptop).

With `far`, SFT also learns from a second teacher, one that solves the task by other movements than the base, as the
paper's demonstrator does. Every stage is an ordinary run folder below `out`, so that an interrupted demo goes on with
the stage it was in, and all that is shown is read from the finished stages:

    demos, far        demonstrations of the new task over a grid of start positions, by either teacher
    sft, sft_far, rl  the base, fine-tuned on these demonstrations and by REINFORCE
    new, prior        the base and checkpoints of every run on the new task and on the prior ones, from the same starts

With several `checkpoints` forgetting is also compared at equal success on the new task: where each method first
reaches the level that all of them reach.

The base plays these starts once, beside the policies of the first seed. With several seeds or settings
(`experiment=laptop`) the folders are numbered: sft_2_seed1. A run whose loss is not finite is a row of the results with
its reason, not the end of the demo.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from vla_razor.errors import RunFailed, UserError, nearest
from vla_razor.files import atomic_write
from vla_razor.recipes import axes, comparison, results
from vla_razor.recipes.comparison import Outcome, Training
from vla_razor.recipes.methods import collected, collections_of, folders_of, verb_of
from vla_razor.recipes.stages import stage
from vla_razor.rollouts.starts import points_of
from vla_razor.runs import Run
from vla_razor.study.table import FILM
from vla_razor.training.trainer import NotFinite

EVALUATION_SEED = 0


def run(config: DictConfig, run: Run) -> None:
    """Go through the stages, then show what they found."""
    run.restore()
    out, console = run.path.resolve(), Console()
    trainings = plan(config, out)
    failures: dict[Training, str] = {}
    for seed in config.seeds:
        new, prior = (out / f"{name}{_suffix(config, seed)}" for name in ("new", "prior"))
        own = [training for training in trainings if training.seed == seed]
        # REINFORCE first: the probe set, which all need, is then made in environments that are open anyway.
        for training in sorted(own, key=lambda training: training.method):
            data = folders_of(out, training, _suffix(config, seed))
            for name, folder in zip(collections_of(training.method).values(), data.values(), strict=True):
                stage(console, config, folder, "collect", seed=seed, **collected(config, name))
            changes = {**{key: str(folder) for key, folder in data.items()}, **training.changes}
            try:
                stage(console, config, training.folder, verb_of(training.method), seed=seed, **changes)
            except NotFinite as failure:
                failures[training] = str(failure)
            if training.finished:
                comparison.measure_weights(config.policy, training, config.checkpoints)
        evaluated = [path for training in own if training.finished for path in training.checkpoints(config.checkpoints)]
        if not evaluated:
            raise RunFailed(f"No run of seed {seed} came to its end: {'; '.join(failures.values())}")
        both = evaluation(config, seed, evaluated)
        stage(console, config, new, "eval", episodes=config.new_episodes, videos=config.videos, **both)
        stage(console, config, prior, "eval", env=config.prior, episodes=config.prior_episodes, **both)
    new, prior = ([out / f"{kind}{_suffix(config, seed)}" for seed in config.seeds] for kind in ("new", "prior"))
    outcomes = comparison.read(config.policy, new, prior, trainings, config.checkpoints)
    run.finish(present(console, config, out, outcomes, trainings, failures))


def evaluation(config: DictConfig, seed: int, checkpoints: Sequence[Path]) -> dict[str, Any]:
    """Who is evaluated with a seed's runs, and from which starts. These are the same for every seed, and so would the
    base's episodes be: it plays them once, with the first.
    """
    first, *others = [*([config.policy] if seed == config.seeds[0] else []), *map(str, checkpoints)]
    return {"policy": first, "against": ",".join(others) or None, "seed": EVALUATION_SEED}


def present(
    console: Console,
    config: DictConfig,
    out: Path,
    outcomes: Sequence[Outcome],
    trainings: Sequence[Training],
    failures: Mapping[Training, str],
) -> dict[str, Any]:
    """Prints the tables, writes the results, and returns the content of summary.json."""
    columns, states = comparison.columns_of(outcomes), comparison.states_of(trainings)
    tables, further = [comparison.table(columns, "At their ends")], {}
    if config.checkpoints > 1:  # with one, where a method first reaches a level is its end
        matched = comparison.matched(outcomes)
        tables.insert(0, comparison.table(matched.columns, matched.title))
        further = {"matched": matched.summary(states)}
    for table in tables:
        console.print(table)
    for training, reason in failures.items():
        console.print(f"{training.folder.name} failed: {reason}", highlight=False)
    atomic_write(out / "table.txt", "\n".join(map(comparison.as_text, tables)).encode())
    results.write_rows(out, outcomes, failures)
    results.draw(out / "plots", outcomes, columns, trainings, _episodes(config.rl))
    new = out / f"new{_suffix(config, config.seeds[0])}"
    results.film(out / FILM, columns, lambda _: new, config.env.tasks[0], config.videos)
    console.print(f"figures in {out / 'plots'}, film in {out / 'videos'}, rows in results.parquet", highlight=False)
    return {**comparison.summary(columns, states), **further, "predictors": results.predictors(out)}


def plan(config: DictConfig, out: Path) -> list[Training]:
    """The training runs of every seed, SFT's first. Raises UserError where a setting does not fit a demo."""
    if config.prior is None:
        raise UserError("prior=null: a demo needs prior tasks, or there is nothing to forget.")
    trainings = []
    for seed in config.seeds:
        for method in ("sft", *(["sft_far"] if config.far else []), "rl"):
            verb = verb_of(method)
            several: Any = OmegaConf.to_container(config[f"{verb}_runs"])
            for number, changes in enumerate(several, 1):
                _check(config[verb], verb, changes)
                setting = f"{method}_{number}" if len(several) > 1 else method
                rate = changes.get("learning_rate", config[verb].learning_rate)
                folder = out / (setting + _suffix(config, seed))
                trainings.append(Training(folder, setting, method, seed, rate, changes))
    return trainings


def _check(section: DictConfig, method: str, changes: Mapping[str, Any]) -> None:
    settings = {str(key): value for key, value in section.items()}
    for key in changes:
        if key not in settings:
            raise UserError(f"{method}_runs: unknown key {key!r}. {nearest(key, settings)}")
    axes.check_measured({**settings, **changes}, method)


def _episodes(config: DictConfig) -> int:
    """How many REINFORCE runs an iteration."""
    return points_of(config) * config.per_point


def _suffix(config: DictConfig, seed: int) -> str:
    return f"_seed{seed}" if len(config.seeds) > 1 else ""
