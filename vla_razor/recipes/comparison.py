"""What the stages of a demo or a sweep found, read from their run folders: the policies, side by side in a table."""

import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table

from vla_razor.core import weight_change
from vla_razor.core.weight_change import Weights
from vla_razor.files import read_lines, write_json
from vla_razor.policies.load import stored_weights
from vla_razor.progress import progress
from vla_razor.statistics import (
    PRIMARY,
    READINGS,
    Difference,
    Rate,
    Success,
    clustered,
    paired_difference,
    policy_summary,
    pooled,
)
from vla_razor.tables import in_words, shown

SIDE_BY_SIDE = 3
"""Columns of the table up to which a count stands beside its rate, and not above it."""
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

    `policy` is the name it was evaluated under. `new` and `prior` hold success by task; `hits`, by reading of success
    and by task, 1 or 0 for every start (NaN where the episode was lost) in the order that all policies share. `drift`
    is the row of metrics.jsonl at this step, with the measures on the probe set in nats, and the changes of the weights
    where `measure_weights` has been asked for them; all zero for the base.
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
    hits: Mapping[str, Mapping[str, np.ndarray]]
    drift: Mapping[str, float]

    @cached_property
    def new_rate(self) -> Rate:
        return pooled(self.new.values())[PRIMARY]

    @cached_property
    def prior_rate(self) -> Rate:
        return pooled(self.prior.values())[PRIMARY]


class Column(NamedTuple):
    """A setting in the table: the policies at the end of its runs, one a seed, and the base they are compared with."""

    name: str
    members: Sequence[Outcome]
    base: Outcome

    def tasks(self, kind: str) -> dict[str, Success]:
        """Success by task (`kind` is new or prior), over all seeds, clustered by start."""

        def rate(task: str, reading: str) -> Rate:
            return clustered([member.hits[reading][task] for member in self.members])

        return {
            task: Success(success_once=rate(task, "success_once"), success_at_end=rate(task, "success_at_end"))
            for task in getattr(self.base, kind)
        }

    def changes(self, kind: str) -> dict[str, Difference]:
        """By reading, success minus the base's on the same starts, over all seeds and tasks."""
        return {reading: change(self.members, [self.base], kind, reading) for reading in READINGS}

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
    """The base `policy`, once, then the checkpoints of the finished runs, as evaluated in the run folders `new` and
    `prior`. Those know a checkpoint by where it was then: all may have been moved since, together. A policy that
    several folders evaluated, from the same starts, is that of the first.
    """
    own = [training for training in trainings if training.finished]
    found = [{name: p for folder in reversed(folders) for name, p in _read(folder).items()} for folders in (new, prior)]
    evaluated_as = {Path(name).parts[-3:]: name for name in found[0] if name != policy}  # run, checkpoints, step

    def outcome(name: str, drift: Mapping[str, float], **facts: Any) -> Outcome:
        known = name if name == policy else evaluated_as[Path(name).parts[-3:]]
        (of_new, new_hits), (of_prior, prior_hits) = (by_policy[known] for by_policy in found)
        hits = {reading: new_hits[reading] | prior_hits[reading] for reading in READINGS}
        return Outcome(policy=name, new=of_new, prior=of_prior, hits=hits, drift=drift, **facts)

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


def change(tuned: Sequence[Outcome], others: Sequence[Outcome], kind: str, reading: str = PRIMARY) -> Difference:
    """Success of `tuned`, the policies of several seeds or one, minus that of others, such as the base, on the same
    starts of all new or prior tasks, clustered by start.
    """
    after, before = (
        np.concatenate([np.stack([o.hits[reading][task] for o in side]) for task in getattr(side[0], kind)], axis=1)
        for side in (tuned, others)
    )
    return paired_difference(after, before)


def columns_of(outcomes: Sequence[Outcome]) -> list[Column]:
    """The base, then every setting, each with the last policies of its runs."""
    base, last = next(o for o in outcomes if o.method == "base"), dict[str, list[Outcome]]()
    for outcome in outcomes:
        if outcome.last:
            last.setdefault(outcome.setting, []).append(outcome)
    return [Column(name, members, base) for name, members in last.items()]


class Matched(NamedTuple):
    """The base, and every setting where it first reaches the success on the new task that all of them reach, the least
    of the settings' best.
    """

    best: Mapping[str, float]
    columns: Sequence[Column]

    @property
    def level(self) -> float:
        return min(self.best.values())

    @property
    def title(self) -> str:
        return f"Where each first reaches {self.level:.0%} on the new task, which all reach"

    def summary(self, states: int) -> dict[str, Any]:
        """What summary.json says of it: also each setting's best, the steps, and how much more of the prior tasks each
        has kept than each other, on the same starts.
        """
        _, *tuned = self.columns
        kept = {
            one.name: {
                other.name: change(one.members, other.members, "prior")._asdict() for other in tuned if other is not one
            }
            for one in tuned
        }
        steps = {column.name: [member.step for member in column.members] for column in tuned}
        found = {"level": self.level, "best": self.best, "steps": steps, "prior_kept_more": kept}
        return {**found, **summary(self.columns, states)}


def matched(outcomes: Sequence[Outcome]) -> Matched:
    """Settings where they first reach the success on the new task (primary reading, all seeds together) that all reach:
    the least of their best. A setting's runs are compared checkpoint by checkpoint, in the order in which each saved
    them.
    """
    base = next(outcome for outcome in outcomes if outcome.method == "base")
    runs: dict[str, dict[str, list[Outcome]]] = {}
    for outcome in sorted(outcomes, key=lambda outcome: outcome.step):
        if outcome is not base:
            runs.setdefault(outcome.setting, {}).setdefault(outcome.run, []).append(outcome)
    stages = {name: [Column(name, own, base) for own in zip(*by.values(), strict=False)] for name, by in runs.items()}
    rates = {name: [pooled(one.tasks("new").values())[PRIMARY]["rate"] for one in own] for name, own in stages.items()}
    best = {name: max(own) for name, own in rates.items()}
    level = min(best.values())
    first = [next(one for one, rate in zip(stages[name], rates[name], strict=True) if rate >= level) for name in stages]
    return Matched(best, [Column("base", [base], base), *first])


def summary(columns: Sequence[Column], states: int) -> dict[str, Any]:
    """What summary.json says of them: the policies, and how success changed from the base's, by kind of task and
    reading.
    """
    return {
        "policies": {column.name: column.entry(states) for column in columns},
        "changes": {
            column.name: {
                kind: {reading: found._asdict() for reading, found in column.changes(kind).items()}
                for kind in ("new", "prior")
            }
            for column in columns[1:]
        },
    }


def table(columns: Sequence[Column], heading: str = "") -> Table:
    """Success once in an episode and below it at the end, as successes of episodes and a rate with its interval,
    changes from the base with paired intervals, and forward KL with its parts.
    """
    title = "Success once in an episode, and at the end [95%, clustered by start]; forward KL in nats an action"
    title = f"{heading}\n{title}" if heading else title
    found = Table("", title=title)
    for column in columns:
        found.add_column(column.name, justify="right")
    base, *tuned = columns
    gap = "  " if len(columns) <= SIDE_BY_SIDE else "\n"

    def rates(label: str, kind: str, prefix: str) -> None:
        chosen = [[s for task, s in column.tasks(kind).items() if task.startswith(prefix)] for column in columns]
        for reading, name in zip(READINGS, (label, "  at the end"), strict=True):
            found.add_row(name, *(shown(pooled(successes)[reading], gap) for successes in chosen))

    def changes(kind: str) -> None:
        by_column = [column.changes(kind) for column in tuned]
        for reading, name in zip(READINGS, ("  change", "  change at the end"), strict=True):
            found.add_row(name, "", *(in_words(one[reading]) for one in by_column), end_section=reading == READINGS[-1])

    for task in base.tasks("new"):
        rates(task, "new", task)
    changes("new")
    for family in dict.fromkeys(task.partition("_")[0] for task in base.tasks("prior")):
        rates(f"{family} (prior)", "prior", family)
    rates("all prior tasks", "prior", "")
    changes("prior")
    names = {"forward_kl_per_action": "forward KL", "sharpening": "  sharpening", "displacement": "  displacement"}
    for name, label in names.items():
        found.add_row(label, *(f"{column.drift(name):.2f}" for column in columns))
    return found


def states_of(trainings: Sequence[Training]) -> int:
    """How many states forward KL was measured at."""
    finished = next(training for training in trainings if training.finished)
    return json.loads((finished.folder / "summary.json").read_text())["policies"]["tuned"]["forward_kl"]["states"]


def as_text(found: Table) -> str:
    """The table as plain text, wide enough for all its columns."""
    console = Console(record=True, width=200, file=io.StringIO())
    console.print(found)
    return console.export_text()


def step_of(checkpoint: Path) -> int:
    """The step in a checkpoint's name."""
    return int(checkpoint.name.removeprefix("step_"))


def successes(folder: Path) -> dict[str, dict[str, Success]]:
    """Policy -> task -> success, as an evaluation has it."""
    policies = json.loads((folder / "summary.json").read_text())["policies"]
    return {name: {**entry["new_task"], **entry["prior_tasks"]} for name, entry in policies.items()}


def hits_in(folder: Path) -> dict[str, dict[str, dict[str, np.ndarray]]]:
    """Policy -> reading -> task -> 1, 0 or NaN (lost) for each start of an evaluation, in the order they were played
    in.
    """
    found: dict[str, dict[str, dict[str, list[float]]]] = {}
    for row in read_lines(folder / "episodes.jsonl"):
        for reading in READINGS:
            value = float("nan") if row["lost"] else float(row[reading])
            of_policy = found.setdefault(row["policy"], {}).setdefault(reading, {})
            of_policy.setdefault(row["task"], []).append(value)
    return {
        policy: {reading: {task: np.array(hits) for task, hits in tasks.items()} for reading, tasks in readings.items()}
        for policy, readings in found.items()
    }


def _read(folder: Path) -> dict[str, tuple[dict[str, Success], dict[str, dict[str, np.ndarray]]]]:
    """What an evaluation found of each policy: success by task, and its hits."""
    hits = hits_in(folder)
    return {policy: (by_task, hits[policy]) for policy, by_task in successes(folder).items()}
