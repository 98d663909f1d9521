"""`vla-razor sweep`: many fine-tunings of one base, each measured at several checkpoints (RL's Razor, Section 3,
Appendix B). The paper trained hundreds of models a method to find the frontier; `vla-razor report` reads the table.

What the runs differ in is given in the grammar of Hydra's multirun: `method=sft,rl learning_rate=1e-4,3e-4 seed=0,1,2`.
A key that one method alone has, or that differs between methods, is given with its verb: `rl.iterations=12,24`
(`axes.py`).

Every run is a process of its own below `out`, on this machine, on Ray or on Slurm. One that fails is a row of the table
with its reason; an interrupted sweep goes on with those that have not ended.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from rich.console import Console

from vla_razor.errors import UserError
from vla_razor.files import atomic_write
from vla_razor.recipes import axes, comparison, launchers, results
from vla_razor.recipes.comparison import Outcome, Training
from vla_razor.recipes.stages import stage
from vla_razor.runs import Run, read_config

EVALUATION_SEED = 0
METHODS = ("sft", "rl")


def run(config: DictConfig, run: Run) -> None:
    """Evaluate the base, collect demonstrations, launch the runs that have not ended, and write the table."""
    run.restore()
    out, console = run.path.resolve(), Console()
    trainings = plan(config, out)
    for kind in ("new", "prior"):
        _evaluate(console, config, out / f"base_{kind}", kind, [config.policy])
    for seed in sorted({training.seed for training in trainings if training.method == "sft"}):
        stage(console, config, out / f"demos_seed{seed}", "collect", policy="scripted", seed=seed)
    failures = launchers.carry_out(config, out, trainings, _is_done, partial(_write, config, out, trainings))
    outcomes = _write(config, out, trainings, failures)
    columns = comparison.columns_of(outcomes)
    table = comparison.table(columns)
    console.print(table)
    atomic_write(out / "table.txt", comparison.as_text(table).encode())
    console.print(f"rows in {out / 'results.parquet'}; read them with: vla-razor report {run.path}", highlight=False)
    failed = {training.folder.name: reason for training, reason in failures.items()}
    run.finish({"runs": len(trainings), "failed": failed, "predictors": results.predictors(out)})


def plan(config: DictConfig, out: Path) -> list[Training]:
    """The runs: every combination of the axes' values that a method knows, each once.

    Raises UserError where no method knows an axis, a value is refused by its rule, or there are no prior tasks.
    """
    if config.prior is None:
        raise UserError("prior=null: a sweep needs prior tasks, or there is nothing to forget.")
    return axes.plan(config, out, {method: method for method in METHODS})


def job(out: Path, number: int) -> None:
    """One run: train, then evaluate its checkpoints; goes on where an interrupted one stopped."""
    config, console = read_config(out / "config.yaml"), Console()
    training = plan(config, out)[number]
    changes = dict(training.changes) | (
        {"demos": str(out / f"demos_seed{training.seed}")} if training.method == "sft" else {}
    )
    stage(console, config, training.folder, training.method, seed=training.seed, **changes)
    for kind in ("new", "prior"):
        policies = [str(path) for path in training.checkpoints(config.checkpoints)]
        _evaluate(console, config, _evaluation(training, kind), kind, policies)


def _evaluate(console: Console, config: DictConfig, folder: Path, kind: str, policies: Sequence[str]) -> None:
    """Of policies, from the starts that all of the sweep share."""
    first, *others = policies
    settings: dict[str, Any] = {"policy": first, "against": ",".join(others) or None, "seed": EVALUATION_SEED}
    settings |= {"episodes": config[f"{kind}_episodes"]} | ({"env": config.prior} if kind == "prior" else {})
    stage(console, config, folder, "eval", **settings)


def _write(
    config: DictConfig, out: Path, trainings: Sequence[Training], failures: Mapping[Training, str]
) -> list[Outcome]:
    """results.parquet, of what has ended so far."""
    done = [training for training in trainings if _is_done(training)]
    outcomes: list[Outcome] = []
    for seed in dict.fromkeys(training.seed for training in done):
        own = [training for training in done if training.seed == seed]
        new, prior = ([out / f"base_{kind}", *(_evaluation(t, kind) for t in own)] for kind in ("new", "prior"))
        outcomes += comparison.read(config.policy, new, prior, own, config.checkpoints)
    if outcomes:
        results.write_rows(out, outcomes, failures)
    return outcomes


def _evaluation(training: Training, kind: str) -> Path:
    return training.folder.with_name(f"{training.folder.name}_{kind}")


def _is_done(training: Training) -> bool:
    return all((_evaluation(training, kind) / "summary.json").is_file() for kind in ("new", "prior"))
