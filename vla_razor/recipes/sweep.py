"""`vla-razor sweep`: many fine-tunings of one base, each measured at several checkpoints (RL's Razor, Section 3,
Appendix B). The paper trained hundreds of models a method to find the frontier; `vla-razor report` reads the table.

What the runs differ in is given in the grammar of Hydra's multirun: `method=sft,rl learning_rate=1e-4,3e-4 seed=0,1,2`.
A key that one verb alone has, or that differs between verbs, is given with it: `rl.iterations=12,24` (`axes.py`). What
makes a method another one (`kl_coefficient`, `lora_rank`, ...) stands behind its name in the table where it is not as
the verb has it.

Methods: `sft` on demonstrations by `collect.policy`, the scripted expert or another; `sft_far` on those of a teacher
that acts unlike the base, as `far` says; `sft_own` on the base's own successes from the same grid (rejection sampling:
what it fits is the base given success, the policy among those that succeed that is nearest to it; the paper's Section
5.2); `sft_replay`, sft with demonstrations of the prior tasks, by the same policy, in every batch; `rl`; `distill`, the
expert's actions at the states that the policy visits.

`interpolated=[0.5]` measures, beside each run, the policy half of the way from the base to its last one (WiSE-FT).

Every run is a process of its own below `out`, on this machine, on Ray or on Slurm. One that fails is a row of the table
with its reason; an interrupted sweep goes on with those that have not ended.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from rich.console import Console

from vla_razor.errors import UserError
from vla_razor.files import atomic_write
from vla_razor.recipes import axes, comparison, interpolate, launchers, results
from vla_razor.recipes.comparison import Outcome, Training
from vla_razor.recipes.methods import METHODS, collected, folders_of, verb_of
from vla_razor.recipes.stages import stage
from vla_razor.runs import Run, read_config
from vla_razor.study.table import FILM

EVALUATION_SEED = 0
VARIANTS = ("kl_coefficient", "spillover_coefficient", "lora_rank", "replay_share", "staleness", "guidance")
VARIANTS += ("loss", "baseline", "normalizer", "prefix_jitter")
"""Settings that make a method another one in the table."""


def run(config: DictConfig, run: Run) -> None:
    """Evaluate the base, collect demonstrations, launch the runs that have not ended, and write the table."""
    run.restore()
    out, console = run.path.resolve(), Console()
    trainings = plan(config, out)
    for kind in ("new", "prior"):
        _evaluate(console, config, out / f"base_{kind}", kind, [config.policy])
    for folder, seed in sorted({(folder, t.seed) for t in trainings for folder in _collections(out, t).values()}):
        changes = collected(config, folder.name.partition("_")[0])
        stage(console, config, folder, "collect", seed=seed, **changes)
    failures = launchers.carry_out(
        config, out, trainings, partial(_is_done, config), partial(_write, config, out, trainings)
    )
    outcomes = _write(config, out, trainings, failures)
    columns = comparison.columns_of(outcomes)
    table = comparison.table(columns)
    console.print(table)
    atomic_write(out / "table.txt", comparison.as_text(table).encode())
    results.film(out / FILM, columns, lambda one: out / f"{one.run}_new", config.env.tasks[0], config.videos)
    console.print(f"rows in {out / 'results.parquet'}; read them with: vla-razor report {run.path}", highlight=False)
    failed = {training.folder.name: reason for training, reason in failures.items()}
    found = comparison.summary(columns, comparison.states_of(trainings))
    run.finish({"runs": len(trainings), "failed": failed, **found, "predictors": results.predictors(out)})


def plan(config: DictConfig, out: Path) -> list[Training]:
    """The runs: every combination of the axes' values that a method knows, each once.

    Raises UserError where no method knows an axis, a value is refused by its rule, a checkpoint would not be measured,
    or there are no prior tasks.
    """
    if config.prior is None:
        raise UserError(
            f"a sweep needs prior tasks, or there is nothing to forget: prior has none beside env={config.env.name}."
        )
    trainings = axes.plan(config, out, {method: verb_of(method) for method in METHODS}, variants=VARIANTS)
    for training in trainings:
        settings = {**config[verb_of(training.method)], **training.changes}
        if config.checkpoints > 1 or not settings["probe_every"]:  # the last step is measured where any is
            axes.check_measured(settings, training.method)
    return trainings


def job(out: Path, number: int) -> None:
    """One run: train, then evaluate its checkpoints; goes on where an interrupted one stopped."""
    config, console = read_config(out / "config.yaml"), Console()
    training = plan(config, out)[number]
    data = {key: str(folder) for key, folder in _collections(out, training).items()}
    changes = {**data, **training.changes, "seed": training.seed}
    stage(console, config, training.folder, verb_of(training.method), **changes)
    trained = read_config(training.folder / "config.yaml")
    for one, share in [(training, None), *zip(between(config, training), config.interpolated, strict=True)]:
        if share is not None:
            interpolate.measured(config, training.checkpoints(1)[0], one.folder, share, trained)
        comparison.measure_weights(config.policy, one, config.checkpoints)
        for kind in ("new", "prior"):
            policies = [str(path) for path in one.checkpoints(config.checkpoints)]
            _evaluate(console, config, _evaluation(one, kind), kind, policies)


def between(config: DictConfig, training: Training) -> list[Training]:
    """The policies on the line from the base to a run's last one, for the table each a run of its own."""
    ends = [f"share{100 * share:g}" for share in config.interpolated]
    return [
        replace(
            training,
            folder=training.folder.with_name(f"{training.folder.name}_{end}"),
            setting=f"{training.setting}_{end}",
            variant=f"{training.variant} share={share}".lstrip(),
        )
        for end, share in zip(ends, config.interpolated, strict=True)
    ]


def _evaluate(console: Console, config: DictConfig, folder: Path, kind: str, policies: Sequence[str]) -> None:
    """Of policies, from the starts that all of the sweep share."""
    first, *others = policies
    settings: dict[str, Any] = {"policy": first, "against": ",".join(others) or None, "seed": EVALUATION_SEED}
    settings |= {"episodes": config[f"{kind}_episodes"]}
    settings |= {"env": config.prior} if kind == "prior" else {"videos": config.videos}
    stage(console, config, folder, "eval", **settings)


def _write(
    config: DictConfig, out: Path, trainings: Sequence[Training], failures: Mapping[Training, str]
) -> list[Outcome]:
    """results.parquet, of what has ended so far."""
    done = [one for t in trainings if _is_done(config, t) for one in (t, *between(config, t))]
    for training in done:  # a sweep of before there were these columns gets them when it is resumed
        comparison.measure_weights(config.policy, training, config.checkpoints)
    if not done:
        return []
    new, prior = ([out / f"base_{kind}", *(_evaluation(t, kind) for t in done)] for kind in ("new", "prior"))
    outcomes = comparison.read(config.policy, new, prior, done, config.checkpoints)
    results.write_rows(out, outcomes, failures)
    return outcomes


def _collections(out: Path, training: Training) -> dict[str, Path]:
    return folders_of(out, training, f"_seed{training.seed}")


def _evaluation(training: Training, kind: str) -> Path:
    return training.folder.with_name(f"{training.folder.name}_{kind}")


def _is_done(config: DictConfig, training: Training) -> bool:
    folders = [_evaluation(t, kind) for t in (training, *between(config, training)) for kind in ("new", "prior")]
    return all((folder / "summary.json").is_file() for folder in folders)
