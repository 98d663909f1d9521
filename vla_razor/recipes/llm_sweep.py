"""`vla-razor llm sweep`: many fine-tunings of language models, each measured at one or several checkpoints (RL's Razor,
Section 3, Appendix B.1, and with several models Appendix C.2). `vla-razor report` reads the table.

What the runs differ in is given in the grammar of Hydra's multirun (`axes.py`):
`method=sft,grpo model=A,B,C learning_rate=1e-5,3e-5 seed=0,1`; a key that one method alone has with its verb, as in
`llm_grpo.group_size=8,64`. Forward KL and the divergences beside it are measured wherever a run saves.

Every run is a process of its own below `out`, on this machine, on Ray or on Slurm. One that fails is a row of the table
with its reason; an interrupted sweep goes on with those that have not ended.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from vla_razor.errors import UserError
from vla_razor.files import atomic_write
from vla_razor.llm.models import open_model
from vla_razor.llm.representations import weights_of
from vla_razor.recipes import LLM_TRAINING, axes, comparison, launchers, llm_eval, results
from vla_razor.recipes.axes import Training, step_of
from vla_razor.recipes.comparison import as_text
from vla_razor.recipes.llm_demo import Column, answers_in, change, in_words
from vla_razor.recipes.stages import stage
from vla_razor.runs import Run, read_config
from vla_razor.statistics import Difference, cluster_means
from vla_razor.study.table import short_names

VERBS = {method: f"llm_{method}" for method in LLM_TRAINING}
VARIANTS = ("kl_coefficient", "lora_rank")
"""Settings that make a method another one in the table."""
MEASURES = ("forward_kl", "reverse_kl", "total_variation", "l2_distance")
"""Columns of the results table, called the same in metrics.jsonl."""
WEIGHTS = tuple(f"weight_{name}" for name in ("l1", "l2", "spectral", "rank", "sparsity"))
"""Further columns, null where they were not measured."""
LARGEST = 1024
"""Rows or columns beyond which a matrix is not decomposed: spectral norm and rank are null then."""


class Outcome(NamedTuple):
    """A model as it was evaluated: a base (`training` is None), or a checkpoint of a run (`last`: the one at its end).

    `drift` is the row of metrics.jsonl at this step, in nats a token; all zero for a base.
    """

    model: str
    training: Training | None
    step: int
    last: bool
    answers: Mapping[str, np.ndarray]
    drift: Mapping[str, float]


def run(config: DictConfig, run: Run) -> None:
    """Evaluate the bases, launch the runs that have not ended, and write the table."""
    run.restore()
    out, console = run.path.resolve(), Console()
    trainings = plan(config, out)
    names, skipped = llm_eval.available(config.llm_eval, config.data_dir)
    if not names:
        raise UserError(f"no prior task can be run here, and there is nothing to forget: {skipped}")
    for model, folder in _bases(config, trainings, out).items():
        stage(console, config, folder, "llm_eval", model=model)
    failures = launchers.carry_out(
        config, out, trainings, partial(_is_done, config), partial(_write, config, out, trainings)
    )
    outcomes = _write(config, out, trainings, failures)
    failed = {training.folder.name: reason for training, reason in failures.items()}
    settings = present(console, config, outcomes, out)
    for name, reason in skipped.items():
        console.print(f"{name} was not run: {reason}", highlight=False)
    console.print(f"rows in {out / 'results.parquet'}; read them with: vla-razor report {run.path}", highlight=False)
    entry = {"runs": len(trainings), "failed": failed, "settings": settings, "skipped": skipped}
    run.finish(entry | {"predictors": results.predictors(out)})


def plan(config: DictConfig, out: Path) -> list[Training]:
    """The runs: every combination of the axes' values that a method knows, each once.

    Raises UserError where no method knows an axis, or a value is refused by its rule.
    """
    return axes.plan(config, out, VERBS, shared=("model",), variants=VARIANTS)


def job(out: Path, number: int) -> None:
    """One run: train, then evaluate its checkpoints; goes on where an interrupted one stopped."""
    config, console = read_config(out / "config.yaml"), Console()
    training = plan(config, out)[number]
    verb = VERBS[training.method]
    changes = {**training.changes, "seed": training.seed}
    saves = changes.get("save_every", config[verb].save_every)
    stage(console, config, training.folder, verb, **changes, probe_every=saves)
    comparison.measure_weights(
        _model(config, training),
        training,
        config.checkpoints,
        lambda spec: weights_of(open_model(spec)),
        largest=LARGEST,
    )
    for checkpoint in training.checkpoints(config.checkpoints):
        folder = _evaluation(training, checkpoint)
        stage(console, config, folder, "llm_eval", model=str(checkpoint))


def present(console: Console, config: DictConfig, outcomes: Sequence[Outcome], out: Path) -> dict[str, Any]:
    """Prints what each setting learned and forgot at the end of its runs, keeps it in table.txt, and returns it for
    summary.json.
    """
    bases = {outcome.model: _column("base", [outcome]) for outcome in outcomes if outcome.training is None}
    names = short_names(bases)
    title = f"Right answers, change from the base on the same examples [95%], and forward KL on {config.task}"
    table = Table("", "model", "changes", f"{config.task} (new task)", "prior tasks", "nats a token", title=title)
    for model, base in bases.items():
        rates = [f"{_rate(base, tasks):.1%}" for tasks in _kinds(config, base).values()]
        table.add_row("base", names[model], "", *rates, "0", end_section=model == list(bases)[-1])
    last: dict[Training, list[Outcome]] = {}
    for outcome in outcomes:
        if outcome.training is not None and outcome.last:
            known = next((one for one in last if one.setting == outcome.training.setting), outcome.training)
            last.setdefault(known, []).append(outcome)
    entries = {}
    for training, members in last.items():
        entry = _entry(config, training, _column(training.setting, members), bases[members[0].model])
        words = [
            f"{entry[kind]['rate']:.1%} {in_words(Difference(**entry[kind]['change']))}" for kind in ("new", "prior")
        ]
        changes = ", ".join(f"{key} {value}" for key, value in training.changes.items() if key != "model")
        table.add_row(training.setting, names[members[0].model], changes, *words, f"{entry['forward_kl']:.3g}")
        entries[training.setting] = entry | {"model": members[0].model, "seeds": len(members)}
    console.print(table)
    atomic_write(out / "table.txt", as_text(table).encode())
    return entries


def _entry(config: DictConfig, training: Training, column: Column, base: Column) -> dict[str, Any]:
    """A setting's, means over its seeds."""
    rates = {
        kind: {"rate": _rate(column, tasks), "change": change(column, base, tasks)._asdict()}
        for kind, tasks in _kinds(config, base).items()
    }
    return {"learning_rate": training.learning_rate, **rates, **column.moved}


def _kinds(config: DictConfig, column: Column) -> dict[str, list[str]]:
    return {"new": [config.task], "prior": [task for task in column.answers if task != config.task]}


def _rate(column: Column, tasks: Sequence[str]) -> float:
    return float(np.mean([column.answers[task].mean() for task in tasks]))


def _write(
    config: DictConfig, out: Path, trainings: Sequence[Training], failures: Mapping[Training, str]
) -> list[Outcome]:
    """results.parquet, of what has ended so far."""
    bases, outcomes = _bases(config, trainings, out), list[Outcome]()
    for model, folder in bases.items():
        outcomes.append(Outcome(model, None, 0, True, answers_in(folder), dict.fromkeys(MEASURES, 0.0)))
    for training in [training for training in trainings if _is_done(config, training)]:
        rows = {row["step"]: row for row in training.rows()}
        checkpoints = training.checkpoints(config.checkpoints)
        for path in checkpoints:
            found, drift = answers_in(_evaluation(training, path)), rows[step_of(path)]
            facts = (_model(config, training), training, step_of(path), path == checkpoints[-1])
            outcomes.append(Outcome(*facts, found, drift | comparison.weight_changes(training, path)))
    rows = [_row(config, outcome, bases[outcome.model].name) for outcome in outcomes]
    failed = [
        {**_facts(config, training), "status": "failed", "reason": reason, "step": None}
        for training, reason in failures.items()
    ]
    results.write_table(out, rows, failed, [outcome.drift.get("wall_seconds", 0.0) for outcome in outcomes])
    return outcomes


def _row(config: DictConfig, outcome: Outcome, base: str) -> dict[str, Any]:
    shares = {task: float(values.mean()) for task, values in outcome.answers.items()}
    new = shares.pop(config.task)
    origin = {"domain": "language", "method": "base", "model": outcome.model, "seed": config.seed, "run": base}
    facts = {**origin, "learning_rate": None} if outcome.training is None else _facts(config, outcome.training)
    return {
        **facts,
        "step": outcome.step,
        "new": new,
        "prior": float(np.mean(list(shares.values()))),
        **{f"prior_{task}": share for task, share in shares.items()},
        **{name: outcome.drift[name] for name in MEASURES},
        **{name: outcome.drift.get(name) for name in WEIGHTS},
        "status": "done",
        "reason": None,
    }


def _facts(config: DictConfig, training: Training) -> dict[str, Any]:
    return {
        "domain": "language",
        "method": training.label,
        "model": _model(config, training),
        "seed": training.seed,
        "run": training.folder.name,
        "learning_rate": training.learning_rate,
    }


def _column(name: str, outcomes: Sequence[Outcome]) -> Column:
    """Means over seeds, example by example."""
    answers = {task: cluster_means([o.answers[task] for o in outcomes]) for task in outcomes[0].answers}
    return Column(name, answers, {"forward_kl": float(np.mean([o.drift["forward_kl"] for o in outcomes]))})


def _bases(config: DictConfig, trainings: Sequence[Training], out: Path) -> dict[str, Path]:
    """The models that are fine-tuned, and where each is evaluated."""
    models = list(dict.fromkeys(_model(config, training) for training in trainings))
    return {model: out / (f"base_{number}" if len(models) > 1 else "base") for number, model in enumerate(models, 1)}


def _model(config: DictConfig, training: Training) -> str:
    return str(training.changes.get("model", config.model))


def _evaluation(training: Training, checkpoint: Path) -> Path:
    return training.folder.with_name(f"{training.folder.name}_{checkpoint.name}")


def _is_done(config: DictConfig, training: Training) -> bool:
    """Whether it has ended, and its checkpoints have been evaluated."""
    evaluations = [_evaluation(training, checkpoint) for checkpoint in training.checkpoints(config.checkpoints)]
    return training.finished and all((folder / "summary.json").is_file() for folder in evaluations)
