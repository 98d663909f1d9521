"""What the evaluations of a study found, side by side: the policies of a robot, or language models.

In both domains a policy has, for every task, what it earned from each start (or for each question), in an order that
all policies share. A domain's `Scale` sums these numbers up; everything else is the same for both.
"""

import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
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
from vla_razor.progress import progress
from vla_razor.statistics import (
    PRIMARY,
    READINGS,
    Difference,
    cluster_means,
    clustered,
    mean_with_interval,
    paired_difference,
    pooled_rate,
)
from vla_razor.study.measures import MEASURES
from vla_razor.study.table import short_names
from vla_razor.tables import in_words, shown
from vla_razor.verbs.study.axes import Training, step_of

SIDE_BY_SIDE = 3
"""Up to this many columns, a rate and its interval stand on one line."""
WIDTH = 200
"""Least width of a table as text, in characters."""
Earned = Mapping[str, Mapping[str, np.ndarray]]
"""Reading -> task -> what was earned from each start: 1, 0 or NaN (lost) by a robot, a share in [0, 1] by a model."""
Kinds = Mapping[str, Earned]
"""What a policy earned on the `new` tasks and on the `prior` ones."""


class Scale(NamedTuple):
    """How a domain sums up what was earned. `rate` turns several tasks, each [copies, starts], into one rate with its
    interval, and `difference` compares two policies; `shown` and `in_words` print them. `family` names the table row
    that prior tasks share.

    `readings` are the definitions of success, the headlined one first, each with the words that tell it from that one.
    `moved` are the measures in summary.json and at the end of the table; the first one is drawn.
    """

    readings: Mapping[str, str]
    rate: Callable[[Sequence[np.ndarray]], Any]
    difference: Callable[[Sequence[np.ndarray], Sequence[np.ndarray]], Difference]
    shown: Callable[[Any, str], str]
    in_words: Callable[[Difference], str]
    family: Callable[[str], str]
    moved: Sequence[str]
    title: str

    @property
    def headlined(self) -> str:
        return next(iter(self.readings))


SUCCESS = Scale(
    readings={PRIMARY: "", READINGS[1]: "at the end"},
    rate=lambda tasks: pooled_rate(map(clustered, tasks)),
    difference=lambda after, before: paired_difference(np.concatenate(after, axis=1), np.concatenate(before, axis=1)),
    shown=shown,
    in_words=in_words,
    family=lambda task: f"{task.partition('_')[0]} (prior)",
    moved=("forward_kl_per_action", "sharpening", "displacement", "forward_kl_per_token"),
    title="Success once in an episode, and at the end [95%, clustered by start]; forward KL in nats",
)
"""For episodes, which succeed or fail."""


def _mean(tasks: Sequence[np.ndarray]) -> dict[str, float]:
    found = mean_with_interval([cluster_means(table) for table in tasks])
    examples = sum(table.shape[1] for table in tasks)
    return {"rate": found.difference, "low": found.low, "high": found.high, "examples": examples}


ANSWERS = Scale(
    readings={"right": ""},
    rate=_mean,
    # Paired, because a model and its base answer the same questions.
    difference=lambda after, before: mean_with_interval(
        [cluster_means(one) - cluster_means(other) for one, other in zip(after, before, strict=True)]
    ),
    shown=lambda rate, gap: f"{rate['rate']:.1%}{gap}[{100 * rate['low']:.1f}, {100 * rate['high']:.1f}]",
    in_words=lambda found: f"{found.difference:+.1%} [{100 * found.low:+.1f}, {100 * found.high:+.1f}]",
    family=str,
    moved=("forward_kl_per_completion", "forward_kl_per_token"),
    title="Right answers, and change from the base on the same examples [95%]; forward KL in nats",
)
"""For questions, each answered once by every model and worth a share of 1; tasks weigh the same. Seeds are averaged
within an example, because answers to one question are not independent.
"""
SCALES: Mapping[str, Scale] = {"robot": SUCCESS, "language": ANSWERS}


@dataclass(frozen=True)
class Outcome:
    """A policy as it was evaluated: a base, or a checkpoint of a training run (`last`: the final one).

    `policy` is the name under which it was evaluated. `drift` is the row of metrics.jsonl at this step, with the
    measures on the probe set in nats and, where `measure_weights` has run, the changes of the weights; empty for a
    base. The other fields are those of its `Training`.
    """

    domain: str
    policy: str
    model: str
    method: str
    setting: str
    run: str
    seed: int
    step: int
    last: bool
    learning_rate: float | None
    earned: Kinds
    drift: Mapping[str, float]
    changes: Mapping[str, Any]

    @classmethod
    def of_base(
        cls, domain: str, policy: str, earned: Kinds, seed: int, *, run: str = "base", model: str = ""
    ) -> "Outcome":
        """A base, before any training."""
        facts = {"method": "base", "setting": "base", "step": 0, "last": True, "learning_rate": None}
        return cls(domain, policy, model, run=run, seed=seed, earned=earned, drift={}, changes={}, **facts)

    @property
    def scale(self) -> Scale:
        return SCALES[self.domain]

    def tasks(self, kind: str) -> list[str]:
        """Names of the `new` or the `prior` tasks."""
        return list(next(iter(self.earned[kind].values())))

    @cached_property
    def new_rate(self) -> Any:
        return self.scale.rate(tables([self], "new", self.scale.headlined))

    @cached_property
    def prior_rate(self) -> Any:
        return self.scale.rate(tables([self], "prior", self.scale.headlined))


class Column(NamedTuple):
    """A setting in the table: the last policies of its runs, one per seed, and the base that they are compared with."""

    name: str
    members: Sequence[Outcome]
    base: Outcome

    @property
    def scale(self) -> Scale:
        return self.base.scale

    def tasks(self, kind: str) -> dict[str, dict[str, Any]]:
        """By task and reading, the rate over all seeds, clustered by start; `kind` is new or prior."""
        return {
            task: {reading: self.rate(kind, reading, [task]) for reading in self.scale.readings}
            for task in self.base.tasks(kind)
        }

    def rate(self, kind: str, reading: str, tasks: Sequence[str] | None = None) -> Any:
        """The rate over some tasks together, or over all."""
        return self.scale.rate(tables(self.members, kind, reading, tasks))

    def changes(self, kind: str) -> dict[str, Difference]:
        """By reading, how much more is earned than by the base from the same starts, over all seeds and tasks."""
        return {reading: change(self.members, [self.base], kind, reading) for reading in self.scale.readings}

    def drift(self, name: str) -> float:
        """The mean over seeds of a measure on the probe set; 0 for the base."""
        return float(np.mean([member.drift[name] if member.drift else 0.0 for member in self.members]))

    def entry(self, probed: Mapping[str, int]) -> dict[str, Any]:
        """The policy's entry in summary.json; `probed` is the size of the probe set."""
        moved = {name.removeprefix("forward_kl_"): self.drift(name) for name in self.scale.moved}
        prior = self.tasks("prior")
        return {
            "primary": self.scale.headlined,
            "new_task": self.tasks("new"),
            "prior_tasks": prior,
            "prior_mean": {reading: self.rate("prior", reading) for reading in self.scale.readings} if prior else None,
            "forward_kl": {**moved, **probed},
        }


def tables(members: Sequence[Outcome], kind: str, reading: str, tasks: Sequence[str] | None = None) -> list[np.ndarray]:
    """For each task, what several policies earned [policies, starts]."""
    asked = members[0].tasks(kind) if tasks is None else tasks
    return [np.stack([member.earned[kind][reading][task] for member in members]) for task in asked]


def change(tuned: Sequence[Outcome], others: Sequence[Outcome], kind: str, reading: str | None = None) -> Difference:
    """How much more `tuned` earns than `others`, such as the base, from the same starts of all new or prior tasks. Each
    side is the policies of one or more seeds. The reading is the headlined one unless given.
    """
    scale = tuned[0].scale
    after, before = (tables(side, kind, reading or scale.headlined) for side in (tuned, others))
    return scale.difference(after, before)


def measure_weights(
    base: str, training: Training, count: int, weights_of: Callable[[str | Path], Weights], **settings: float
) -> None:
    """Measure how far the weights of `count` checkpoints have moved from the base's, and keep it in the run's
    weight_changes/. Checkpoints that have been measured are left alone. `settings` are those of
    `weight_change.summary`.
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
    """What `measure_weights` found for a checkpoint; empty where it has not run."""
    path = _weight_file(training, checkpoint)
    return json.loads(path.read_text()) if path.is_file() else {}


def _weight_file(training: Training, checkpoint: Path) -> Path:
    return training.folder / "weight_changes" / f"{checkpoint.name}.json"


def outcomes_of(
    domain: str, training: Training, checkpoints: int, earned: Callable[[Path], Kinds]
) -> Iterator[Outcome]:
    """The checkpoints of a finished run, with what each has earned."""
    rows, paths = {row["step"]: row for row in training.rows()}, training.checkpoints(checkpoints)
    for path in paths:
        yield Outcome(
            domain=domain,
            policy=str(path),
            model=training.model,
            method=training.label,
            setting=training.setting,
            run=training.folder.name,
            seed=training.seed,
            step=step_of(path),
            last=path == paths[-1],
            learning_rate=training.learning_rate,
            earned=earned(path),
            drift=rows[step_of(path)] | weight_changes(training, path),
            changes=training.changes,
        )


def columns_of(outcomes: Sequence[Outcome]) -> list[Column]:
    """Every base, then every setting with the last policies of its runs."""
    bases = {outcome.model: outcome for outcome in outcomes if outcome.method == "base"}
    last: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        if outcome.last and outcome.method != "base":
            last.setdefault(outcome.setting, []).append(outcome)
    return _bases(bases) + [Column(name, members, bases[members[0].model]) for name, members in last.items()]


def _bases(bases: Mapping[str, Outcome]) -> list[Column]:
    names = short_names(bases)
    return [Column(f"base {names[model]}" if len(bases) > 1 else "base", [base], base) for model, base in bases.items()]


class Matched(NamedTuple):
    """The bases, and every setting at the checkpoint where it first reaches `level`: the success on the new task that
    all settings reach, the least of their best.
    """

    best: Mapping[str, float]
    columns: Sequence[Column]

    @property
    def level(self) -> float:
        return min(self.best.values())

    @property
    def title(self) -> str:
        return f"Where each first reaches {self.level:.0%} on the new task, which all reach"

    def summary(self, probed: Mapping[str, int]) -> dict[str, Any]:
        """The entry in summary.json: the columns, each setting's best success and its steps, and how much more of the
        prior tasks each has kept than every other setting of the same model, on the same starts.
        """
        tuned = [column for column in self.columns if column.members[0].method != "base"]
        kept = {
            one.name: {
                other.name: change(one.members, other.members, "prior")._asdict()
                for other in tuned
                if other is not one and other.base is one.base
            }
            for one in tuned
        }
        steps = {column.name: [member.step for member in column.members] for column in tuned}
        found = {"level": self.level, "best": self.best, "steps": steps, "prior_kept_more": kept}
        return {**found, **summary(self.columns, probed)}


def matched(outcomes: Sequence[Outcome]) -> Matched:
    """Each setting where it first reaches the success on the new task (headlined reading, over all seeds) that all
    settings reach: the least of their best. The runs of a setting are compared checkpoint by checkpoint, in the order
    of saving.
    """
    bases = {outcome.model: outcome for outcome in outcomes if outcome.method == "base"}
    runs: dict[str, dict[str, list[Outcome]]] = {}
    for outcome in sorted(outcomes, key=lambda outcome: outcome.step):
        if outcome.method != "base":
            runs.setdefault(outcome.setting, {}).setdefault(outcome.run, []).append(outcome)
    stages = {
        # Not strict: a run may have ended early, at its budget; later checkpoints of the other seeds are then left out.
        name: [Column(name, own, bases[own[0].model]) for own in zip(*by_run.values(), strict=False)]
        for name, by_run in runs.items()
    }
    rates = {name: [one.rate("new", one.scale.headlined)["rate"] for one in own] for name, own in stages.items()}
    best = {name: max(own) for name, own in rates.items()}
    level = min(best.values())
    first = [next(one for one, rate in zip(stages[name], rates[name], strict=True) if rate >= level) for name in stages]
    return Matched(best, [*_bases(bases), *first])


def summary(columns: Sequence[Column], probed: Mapping[str, int]) -> dict[str, Any]:
    """The entries of summary.json: the policies, and by kind of task and reading how much more each earned than its
    base.
    """
    return {
        "policies": {column.name: column.entry(probed) for column in columns},
        "changes": {
            column.name: {
                kind: {reading: found._asdict() for reading, found in column.changes(kind).items()}
                for kind in column.base.earned
                if column.base.tasks(kind)
            }
            for column in columns
            if column.members[0].method != "base"
        },
    }


def table(columns: Sequence[Column], heading: str = "") -> Table:
    """The table: what each setting changes; its rates with intervals, the headlined reading first; changes from the
    base with paired intervals; and how far it moved.
    """
    base, scale = columns[0].base, columns[0].scale
    found = Table("", title=f"{heading}\n{scale.title}" if heading else scale.title)
    for column in columns:
        found.add_column(column.name, justify="right")
    if any(column.members[0].changes for column in columns):
        cells = []
        for column in columns:
            changed = {key: str(value) for key, value in column.members[0].changes.items()}
            cells.append("\n".join(f"{key}={short_names([value])[value]}" for key, value in changed.items()))
        found.add_row("", *cells, end_section=True)
    gap = "  " if len(columns) <= SIDE_BY_SIDE else "\n"
    for kind in base.earned:
        for label, tasks in _rows(base, kind).items():
            for reading, below in scale.readings.items():
                cells = (scale.shown(column.rate(kind, reading, tasks), gap) for column in columns)
                found.add_row(f"  {below}" if below else label, *cells)
        for reading, below in scale.readings.items() if base.tasks(kind) else ():
            cells = ["" if o.members[0] is o.base else scale.in_words(o.changes(kind)[reading]) for o in columns]
            found.add_row(f"  change {below}".rstrip(), *cells)
        found.add_section()
    for name in scale.moved:
        label, unit = MEASURES[name]
        # The other measures are parts of forward KL, and are indented.
        label = f"{label} {unit.removeprefix('nats ')}" if name.startswith("forward_kl") else f"  {label}"
        found.add_row(label, *(f"{column.drift(name):.3g}" for column in columns))
    return found


def _rows(base: Outcome, kind: str) -> dict[str, list[str]]:
    """The tasks in each row of the table, by the row's label."""
    if kind == "new":
        return {task: [task] for task in base.tasks(kind)}
    families: dict[str, list[str]] = {}
    for task in base.tasks(kind):
        families.setdefault(base.scale.family(task), []).append(task)
    return families | ({"all prior tasks": base.tasks(kind)} if families else {})


def as_text(found: Table) -> str:
    """The table as plain text, wide enough for all its columns."""
    console = Console(record=True, width=max(WIDTH, 20 * len(found.columns)), file=io.StringIO())
    console.print(found)
    return console.export_text()


def hits_in(folder: Path) -> dict[str, dict[str, dict[str, np.ndarray]]]:
    """For each policy, reading and task, 1, 0 or NaN (lost) for each start of an evaluation, in the order of the
    starts.
    """
    found: dict[str, dict[str, dict[str, list[float]]]] = {}
    for row in read_lines(folder / "episodes.jsonl"):
        for reading in READINGS:
            value = float("nan") if row["lost"] else float(row[reading])  # kept as NaN, so that starts stay paired
            of_policy = found.setdefault(row["policy"], {}).setdefault(reading, {})
            of_policy.setdefault(row["task"], []).append(value)
    return {
        policy: {reading: {task: np.array(hits) for task, hits in tasks.items()} for reading, tasks in readings.items()}
        for policy, readings in found.items()
    }
