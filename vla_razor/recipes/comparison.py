"""What the stages of a demo found, side by side, read from their run folders: the policies, and the table.

Success is read as `success_once`, which is what REINFORCE is rewarded for; the table shows `success_at_end` of the new
task beside it.
"""

import io
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table

from vla_razor.core import weight_change
from vla_razor.core.weight_change import Weights
from vla_razor.files import write_json
from vla_razor.policies.load import stored_weights
from vla_razor.progress import progress
from vla_razor.recipes.evaluate import shown as shown_rate
from vla_razor.statistics import Difference, Rate, Success, paired_difference, policy_summary, pooled

READING = "success_once"
KL_NAMES = {"per_token": "forward_kl", "per_action": "forward_kl_per_action"}
"""Names of summary.json that are called differently in metrics.jsonl."""


@dataclass(frozen=True, eq=False)
class Training:
    """A training run: its folder, its setting (one for all seeds), method, seed, learning rate, what it changes of the
    method's settings, and those of the changes that make it another method in the table, as text."""

    folder: Path
    setting: str
    method: str
    seed: int
    learning_rate: float
    changes: Mapping[str, Any]
    variant: str = ""

    @property
    def label(self) -> str:
        """The method as the table names it."""
        return f"{self.method} {self.variant}".rstrip()

    @property
    def finished(self) -> bool:
        return (self.folder / "summary.json").is_file()

    def checkpoints(self, count: int) -> list[Path]:
        """`count` of the saved checkpoints (or as many as there are), evenly spaced, the last one among them."""
        found = sorted((self.folder / "checkpoints").glob("step_*"), key=step_of)
        wanted = {round(index) for index in np.linspace(len(found), 0, count, endpoint=False)}
        return [path for index, path in enumerate(found, 1) if index in wanted]

    def rows(self) -> list[dict[str, Any]]:
        """The rows of metrics.jsonl."""
        return read_lines(self.folder / "metrics.jsonl")


@dataclass(frozen=True)
class Outcome:
    """A policy as it was evaluated: the base, or a checkpoint of a training run (`last`: the one at its end).

    `policy` is the name it was evaluated under. `new` and `prior` hold success by task; `hits`, by task, 1 or 0 for
    every start (NaN where the episode was lost) in the order that all policies share. `drift` is the row of
    metrics.jsonl at this step, with the measures on the probe set in nats, and the changes of the weights where
    `measure_weights` has been asked for them; all zero for the base.
    """

    policy: str
    method: str
    setting: str
    run: str
    seed: int
    step: int
    last: bool
    learning_rate: float | None
    new: Mapping[str, Success]
    prior: Mapping[str, Success]
    hits: Mapping[str, np.ndarray]
    drift: Mapping[str, float]

    @cached_property
    def new_rate(self) -> Rate:
        return pooled(self.new.values())[READING]

    @cached_property
    def prior_rate(self) -> Rate:
        return pooled(self.prior.values())[READING]


class Column(NamedTuple):
    """A setting in the table: the policies at the end of its runs, one a seed, and the bases they are compared with."""

    name: str
    members: Sequence[Outcome]
    bases: Sequence[Outcome]

    def tasks(self, kind: str) -> dict[str, Success]:
        """Success by task (`kind` is new or prior), pooled over seeds."""
        return {task: pooled([getattr(o, kind)[task] for o in self.members]) for task in getattr(self.members[0], kind)}

    def change(self, kind: str) -> Difference:
        """Success minus the base's on the same starts, pooled over seeds and tasks, with its paired interval."""
        return change(self.members, self.bases, kind)

    def drift(self, name: str) -> float:
        """The mean over seeds of a measure on the probe set."""
        return float(np.mean([member.drift[name] for member in self.members]))

    def entry(self, states: int) -> dict[str, Any]:
        """The policy's entry in summary.json."""
        names = ("per_token", "per_action", "sharpening", "displacement")
        forward_kl = {name: self.drift(KL_NAMES.get(name, name)) for name in names}
        return policy_summary(self.tasks("new"), self.tasks("prior"), {**forward_kl, "states": states})


def measure_weights(
    base: str,
    training: Training,
    count: int,
    weights_of: Callable[[str | Path], Weights] = stored_weights,
    **settings: float,
) -> None:
    """How far the weights of each of `count` checkpoints have moved from the base's, kept in weight_changes/ of the
    run; what is there already is left alone. `settings` are those of `weight_change.summary`.
    """
    waiting = [path for path in training.checkpoints(count) if not _weight_file(training, path).is_file()]
    if not waiting:
        return
    before = weights_of(base)
    with progress("weights", len(waiting) * len(before)) as advance:
        for checkpoint in waiting:
            changes = weight_change.summary(before, weights_of(checkpoint), done=advance, **settings)
            write_json(_weight_file(training, checkpoint), {f"weight_{k}": value for k, value in changes.items()})


def weight_changes(training: Training, checkpoint: Path) -> dict[str, Any]:
    """What `measure_weights` found of a checkpoint; empty where it has not been asked."""
    path = _weight_file(training, checkpoint)
    return json.loads(path.read_text()) if path.is_file() else {}


def _weight_file(training: Training, checkpoint: Path) -> Path:
    return training.folder / "weight_changes" / f"{checkpoint.name}.json"


def read(
    policy: str, new: Sequence[Path], prior: Sequence[Path], trainings: Sequence[Training], checkpoints: int
) -> list[Outcome]:
    """The outcomes of one seed: the base `policy`, then the checkpoints of its finished runs, as evaluated in the run
    folders `new` and `prior`. Those know a checkpoint by where it was then: all may have been moved since, together.
    """
    own = [training for training in trainings if training.finished]
    by_task = [{name: p for folder in folders for name, p in successes(folder).items()} for folders in (new, prior)]
    hits = _hits([row for folder in (*new, *prior) for row in read_lines(folder / "episodes.jsonl")])
    evaluated_as = {Path(name).parts[-3:]: name for name in hits if name != policy}  # run, checkpoints, step

    def outcome(name: str, drift: Mapping[str, float], **facts: Any) -> Outcome:
        known = name if name == policy else evaluated_as[Path(name).parts[-3:]]
        evaluated = {"new": by_task[0][known], "prior": by_task[1][known], "hits": hits[known]}
        return Outcome(policy=name, drift=drift, **evaluated, **facts)

    base = {"method": "base", "setting": "base", "run": "base", "seed": trainings[0].seed, "learning_rate": None}
    outcomes = [outcome(policy, dict.fromkeys(own[0].rows()[-1], 0.0), step=0, last=True, **base)]
    for training in own:
        facts = {name: getattr(training, name) for name in ("setting", "seed", "learning_rate")}
        facts |= {"method": training.label, "run": training.folder.name}
        rows, paths = {row["step"]: row for row in training.rows()}, training.checkpoints(checkpoints)
        for path in paths:
            step, last = step_of(path), path == paths[-1]
            drift = rows[step] | weight_changes(training, path)
            outcomes.append(outcome(str(path), drift, step=step, last=last, **facts))
    return outcomes


def change(tuned: Sequence[Outcome], bases: Sequence[Outcome], kind: str) -> Difference:
    """Success of `tuned` minus that of their `bases` on the same starts of the new or prior tasks, pooled."""
    pairs = [(o.hits[task], base.hits[task]) for o, base in zip(tuned, bases, strict=True) for task in getattr(o, kind)]
    after, before = (np.concatenate(side) for side in zip(*pairs, strict=True))
    kept = ~(np.isnan(after) | np.isnan(before))
    return paired_difference(after[kept] > 0, before[kept] > 0)


def columns_of(outcomes: Sequence[Outcome]) -> list[Column]:
    """The base, then every setting, each with the last policies of its runs."""
    bases = {outcome.seed: outcome for outcome in outcomes if outcome.method == "base"}
    last: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        if outcome.last:
            last.setdefault(outcome.setting, []).append(outcome)
    return [Column(name, members, [bases[member.seed] for member in members]) for name, members in last.items()]


def table(columns: Sequence[Column]) -> Table:
    """Success with Wilson 95% intervals, changes from the base with paired 95% intervals, forward KL with its parts."""
    shown = Table("", title="Success once in an episode [95%], and forward KL from the base on the new task")
    for column in columns:
        shown.add_column(column.name, justify="right")
    base, *tuned = columns

    def rates(label: str, kind: str, prefix: str = "", reading: str = READING) -> None:
        chosen = [[s for task, s in column.tasks(kind).items() if task.startswith(prefix)] for column in columns]
        shown.add_row(label, *(shown_rate(pooled(successes)[reading]) for successes in chosen))

    for task in base.tasks("new"):
        rates(task, "new", task)
        rates("  at the end", "new", task, "success_at_end")
    shown.add_row("  change", "", *(_change(column.change("new")) for column in tuned), end_section=True)
    for family in dict.fromkeys(task.partition("_")[0] for task in base.tasks("prior")):
        rates(f"{family} (prior)", "prior", family)
    rates("all prior tasks", "prior")
    shown.add_row("  change", "", *(_change(column.change("prior")) for column in tuned), end_section=True)
    names = {"forward_kl_per_action": "forward KL, nats an action"}
    for name in ("forward_kl_per_action", "sharpening", "displacement"):
        shown.add_row(names.get(name, f"  {name}"), *(f"{column.drift(name):.2f}" for column in columns))
    return shown


def as_text(shown: Table) -> str:
    """The table as plain text, wide enough for all its columns."""
    console = Console(record=True, width=200, file=io.StringIO())
    console.print(shown)
    return console.export_text()


def step_of(checkpoint: Path) -> int:
    """The step in a checkpoint's name."""
    return int(checkpoint.name.removeprefix("step_"))


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a file with one JSON object a line."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def successes(folder: Path) -> dict[str, dict[str, Success]]:
    """Policy -> task -> success, as an evaluation has it."""
    policies = json.loads((folder / "summary.json").read_text())["policies"]
    return {name: {**entry["new_task"], **entry["prior_tasks"]} for name, entry in policies.items()}


def _hits(rows: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, np.ndarray]]:
    """Policy -> task -> 1, 0 or NaN (lost) for each start, in the order of the rows."""
    found: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        value = float("nan") if row["lost"] else float(row[READING])
        found.setdefault(row["policy"], {}).setdefault(row["task"], []).append(value)
    return {policy: {task: np.array(hits) for task, hits in tasks.items()} for policy, tasks in found.items()}


def _change(change: Difference) -> str:
    return f"{change.difference:+.0%} [{100 * change.low:+.0f}, {100 * change.high:+.0f}]"
