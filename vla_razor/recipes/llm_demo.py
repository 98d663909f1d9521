"""`vla-razor llm demo`: a language model fine-tuned on a new task by SFT and by GRPO; what each learned, what each
forgot, and how far each moved (RL's Razor, Section 3 and Figure 3, at the size of a laptop).

Every stage is an ordinary run folder below `out`, so that an interrupted demo goes on with the stage it was in, and all
that is shown is read from the finished stages: a cold start, where the model does not know the task's form; the base,
evaluated; and for every seed the two trainings, each with its evaluation.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from vla_razor.errors import UserError, nearest
from vla_razor.files import atomic_write
from vla_razor.recipes.comparison import as_text
from vla_razor.recipes.stages import stage
from vla_razor.runs import Run
from vla_razor.statistics import Difference, cluster_means, mean_with_interval

METHODS = {"llm_sft": "SFT", "llm_grpo": "GRPO"}


class Column(NamedTuple):
    """A model in the table: what each example of each task earned, [examples], and how far it moved; means over seeds
    where it is tuned.
    """

    name: str
    answers: Mapping[str, np.ndarray]
    moved: Mapping[str, float]


def run(config: DictConfig, run: Run) -> None:
    """Go through the stages, then show what they found."""
    run.restore()
    out, console = run.path.resolve(), Console()
    base = config.model if config.cold_start is None else str(out / "cold_start")
    if config.cold_start is not None:
        stage(console, config, out / "cold_start", "llm_sft", **_cold_start(config))
    stage(console, config, out / "base", "llm_eval", model=base)
    for seed in config.seeds:
        for verb in METHODS:
            folder = _folder(out, config, verb, seed)
            stage(console, config, folder, verb, model=base, seed=seed)
            stage(console, config, folder.with_name(f"{folder.name}_eval"), "llm_eval", model=str(folder), seed=seed)
    before = Column("base", answers_in(out / "base"), {"forward_kl": 0.0, "per_completion": 0.0})
    tuned = [
        _column(name, [_folder(out, config, verb, seed) for seed in config.seeds]) for verb, name in METHODS.items()
    ]
    run.finish(present(console, config, before, tuned, out))


def present(console: Console, config: DictConfig, base: Column, tuned: Sequence[Column], out: Path) -> dict[str, Any]:
    """Prints the table, keeps it in table.txt, and returns the content of summary.json."""
    title = f"{config.model}: right answers, change from the base [95%], and forward KL on {config.task}"
    table = Table("", *(column.name for column in (base, *tuned)), title=title)
    prior = [task for task in base.answers if task != config.task]

    def row(label: str, tasks: Sequence[str], *, end: bool = False) -> None:
        rates = [f"{np.mean([column.answers[task].mean() for task in tasks]):.1%}" for column in (base, *tuned)]
        changes = ["", *(in_words(change(column, base, tasks)) for column in tuned)]
        table.add_row(
            label, *(f"{rate} {text}".rstrip() for rate, text in zip(rates, changes, strict=True)), end_section=end
        )

    row(f"{config.task} (new task)", [config.task], end=True)
    for task in prior:
        row(task, [task])
    if prior:
        row("mean of the prior tasks", prior, end=True)
    for label, name in (
        ("forward KL, nats a token", "forward_kl"),
        ("forward KL, nats a completion", "per_completion"),
    ):
        table.add_row(label, *(f"{column.moved[name]:.3g}" for column in (base, *tuned)))
    console.print(table)
    atomic_write(out / "table.txt", as_text(table).encode())
    return {
        "models": {
            column.name: {
                "new_task": {config.task: float(column.answers[config.task].mean())},
                "prior_tasks": {task: float(column.answers[task].mean()) for task in prior},
                "forward_kl": dict(column.moved),
            }
            for column in (base, *tuned)
        },
        "changes": {
            column.name: {
                kind: change(column, base, tasks)._asdict()
                for kind, tasks in (("new", [config.task]), ("prior", prior))
                if tasks
            }
            for column in tuned
        },
    }


def change(column: Column, base: Column, tasks: Sequence[str]) -> Difference:
    """Of what an example earns, from the base's on the same examples; tasks weigh the same."""
    return mean_with_interval([column.answers[task] - base.answers[task] for task in tasks])


def _cold_start(config: DictConfig) -> dict[str, Any]:
    """The changes to SFT's settings. Raises UserError for one that SFT does not have."""
    for key in config.cold_start:
        if key not in config.llm_sft:
            raise UserError(f"cold_start: unknown key {key!r}. {nearest(key, map(str, config.llm_sft))}")
    return {**config.cold_start, "probe_every": 0, "eval_prompts": 0}


def _column(name: str, folders: Sequence[Path]) -> Column:
    answers = [answers_in(folder.with_name(f"{folder.name}_eval")) for folder in folders]
    moved = [json.loads((folder / "summary.json").read_text())["forward_kl"] for folder in folders]
    return Column(
        name,
        {task: cluster_means([one[task] for one in answers]) for task in answers[0]},
        {key: float(np.mean([one[key] for one in moved])) for key in moved[0]},
    )


def answers_in(folder: Path) -> dict[str, np.ndarray]:
    """What an evaluation found: by task, the new one first, what each example earned."""
    return {task: np.array(values) for task, values in json.loads((folder / "answers.json").read_text()).items()}


def _folder(out: Path, config: DictConfig, verb: str, seed: int) -> Path:
    return out / (verb.removeprefix("llm_") + (f"_seed{seed}" if len(config.seeds) > 1 else ""))


def in_words(found: Difference) -> str:
    """For a table."""
    return f"({found.difference:+.1%} [{100 * found.low:+.1f}, {100 * found.high:+.1f}])"
