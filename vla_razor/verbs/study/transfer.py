"""What the sequences of a study found: the matrix of success, and what follows from it.

Intervals are clustered by start and differences paired by it, as everywhere; they hold for the policies at hand. Where
there are several seeds, `over_seeds` says how a measure varies with them.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from rich.table import Table

from vla_razor import plots
from vla_razor.core import continual
from vla_razor.files import atomic_write
from vla_razor.statistics import Difference, mean_over_runs
from vla_razor.study import figures, law
from vla_razor.study.measures import FORWARD_KL, MEASURES
from vla_razor.verbs.study import results
from vla_razor.verbs.study.axes import Training, step_of
from vla_razor.verbs.study.comparison import Earned, Scale, as_text

if TYPE_CHECKING:
    from vla_razor.verbs.study.sequence import Tasks

STEP, BASE = "previous", "base"
"""What a stage's policy is compared with: the policy before the stage, and the first base."""
KINDS = {
    BASE: "Of the prior tasks since the base, against forward KL from the base",
    STEP: "Of all that was known before a stage, against forward KL from the policy before it",
}


class Recovery(NamedTuple):
    """How a task that was lost was learned again: `reached` says whether its former success was, `step` and `episodes`
    at which checkpoint, or at the last one.
    """

    step: int
    episodes: int
    reached: bool


class Member(NamedTuple):
    """A sequence of one seed that has ended, or all its stages have.

    `earned` is what its policies earned on all tasks, the base's first; `moved` the divergences of each stage's policy
    from the first base and from the policy before; `curves` what checkpoints on the way earned on the stage's task.
    """

    tasks: Sequence[str]
    prior: Sequence[str]
    scale: Scale
    training: Training
    earned: Sequence[Earned]
    moved: Sequence[Mapping[str, Mapping[str, float]]]
    curves: Sequence[Sequence[Earned]]
    again: Mapping[str, Recovery]

    def mean(self, stage: int, task: str, reading: str) -> float:
        """Success on a task after a stage, 0 being the base."""
        return float(np.nanmean(self.earned[stage][reading][task]))

    def matrix(self, reading: str) -> np.ndarray:
        """Success after each stage on each task [T, T]."""
        stages = range(1, len(self.tasks) + 1)
        return np.array([[self.mean(stage, task, reading) for task in self.tasks] for stage in stages])

    def way(self, reading: str) -> np.ndarray:
        """Mean success on each stage's task before the stage, at the checkpoints on the way, and after it [T]."""
        found = []
        for number, (task, curve) in enumerate(zip(self.tasks, self.curves, strict=True), 1):
            between = [float(np.nanmean(earned[reading][task])) for earned in curve]
            found.append(np.mean([self.mean(number - 1, task, reading), *between, self.mean(number, task, reading)]))
        return np.array(found)


class Point(NamedTuple):
    """A stage in the plot of forgetting against forward KL."""

    method: str
    run: str
    forgotten: float
    measures: Mapping[str, float]


def read(tasks: "Tasks", training: Training) -> Member:
    """What the folders of a sequence say."""
    earned, moved, curves = tasks.earned(tasks.out / "base"), [], []
    for number, task in enumerate(tasks.tasks, 1):
        name = f"{number}_{task}"
        at = {key: training.folder / f"{name}_{key}" for key in ("eval", "kl", "kl_step", "curve")}
        earned += tasks.earned(at["eval"])
        since = tasks.moved(at["kl"])
        moved.append({BASE: since, STEP: tasks.moved(at["kl_step"]) if number > 1 else since})
        curves.append(tasks.earned(at["curve"]))
    member = Member(tasks.tasks, tasks.prior, tasks.scale, training, earned, moved, curves, {})
    again = {task: _recovery(tasks, member, task) for task in tasks.tasks if _relearned(training.folder, task)}
    return member._replace(again=again)


def _relearned(folder: Path, task: str) -> bool:
    return any((folder / f"again_{task}_eval{end}" / "summary.json").is_file() for end in ("", "_0"))


def _recovery(tasks: "Tasks", member: Member, task: str) -> Recovery:
    folder, reading = member.training.folder / f"again_{task}", tasks.scale.headlined
    level = member.mean(tasks.tasks.index(task) + 1, task, reading)
    rates = [float(np.nanmean(one[reading][task])) for one in tasks.earned(folder.with_name(f"{folder.name}_eval"))]
    steps = sorted(map(step_of, (folder / "checkpoints").iterdir()))
    reached = next((step for step, rate in zip(steps, rates, strict=True) if rate >= level), None)
    step = steps[-1] if reached is None else reached
    return Recovery(step, tasks.episodes(folder, step), reached is not None)


def lost(member: Member) -> list[str]:
    """The tasks of which the last policy has lost something since their stage, beyond chance."""
    tasks, scale = member.tasks, member.scale
    return [
        task
        for number, task in enumerate(tasks[:-1], 1)
        if scale.difference(
            _tables([member], number, [task], scale.headlined), _tables([member], -1, [task], scale.headlined)
        ).low
        > 0
    ]


def summary(tasks: "Tasks", members: Sequence[Member]) -> dict[str, Any]:
    """The entry of a setting in summary.json, of its seeds together: first by the headlined reading of success, then by
    the others.
    """
    first, *others = tasks.scale.readings
    found = {"primary": first, **_measures(members, first), "forward_kl": _drift(members)}
    found["recovery"] = _recoveries(members) if tasks.config.recover else None
    return found | {reading: _measures(members, reading) for reading in others}


def _measures(members: Sequence[Member], reading: str) -> dict[str, Any]:
    one = members[0]
    tasks, prior, scale = one.tasks, one.prior, one.scale
    stages = range(1, len(tasks) + 1)

    def rate(stage: int, names: Sequence[str]) -> Any:
        return scale.rate(_tables(members if stage else members[:1], stage, names, reading))  # the base plays once

    def since(later: Mapping[str, Sequence[int]], earlier: Mapping[str, int]) -> dict[str, float]:
        """By task, the stages of which success is averaged, minus the stage with which they are compared."""
        after = _padded([_over(members, stages, task, reading) for task, stages in later.items()])
        before = _padded([_over(members, [stage], task, reading) for task, stage in earlier.items()])
        return scale.difference(after, before)._asdict()

    learned = {task: number for number, task in enumerate(tasks[:-1], 1)}
    last = len(tasks)
    found: dict[str, Any] = {
        "tasks": list(tasks),
        "base": [rate(0, [task]) for task in tasks],
        "matrix": [[rate(stage, [task]) for task in tasks] for stage in stages],
        "average": rate(last, tasks),
        "nbt": _negated(since({task: range(n + 1, last + 1) for task, n in learned.items()}, learned)),
        "bwt": since({task: [last] for task in learned}, learned),
        "forward_transfer": since({task: [n] for n, task in enumerate(tasks) if n}, dict.fromkeys(tasks[1:], 0)),
    }
    matrices = np.stack([member.matrix(reading) for member in members])
    way = np.stack([member.way(reading) for member in members])
    base = np.array([one.mean(0, task, reading) for task in tasks])
    by_seed = {
        "average": continual.average(matrices),
        "nbt": continual.negative_backward_transfer(matrices),
        "bwt": continual.backward_transfer(matrices),
        "forward_transfer": continual.forward_transfer(matrices, base),
        "libero_fwt": continual.learning(way),
        "libero_auc": continual.area_under_curve(matrices, way),
    }
    if prior:
        change = since({task: [last] for task in prior}, dict.fromkeys(prior, 0))
        found["zero_shot"] = {"tasks": list(prior), "base": rate(0, prior), "change": change}
        found["zero_shot"]["stages"] = [rate(stage, prior) for stage in stages]
        before = np.mean([one.mean(0, task, reading) for task in prior])
        after = [np.mean([member.mean(-1, task, reading) for task in prior]) for member in members]
        by_seed["zero_shot_change"] = np.array(after) - before
    found |= {name: float(by_seed[name].mean()) for name in ("libero_fwt", "libero_auc")}
    found["over_seeds"] = {
        name: {"values": own.tolist(), **mean_over_runs(own)._asdict()} for name, own in by_seed.items()
    }
    return found


def _tables(members: Sequence[Member], stage: int, tasks: Sequence[str], reading: str) -> list[np.ndarray]:
    """For each task, what the policies of a stage earned [seeds, starts]."""
    return [np.stack([member.earned[stage][reading][task] for member in members]) for task in tasks]


def _over(members: Sequence[Member], stages: Sequence[int], task: str, reading: str) -> np.ndarray:
    """What the policies of some stages earned on a task [stages x seeds, starts]; the base played once."""
    copies = [table for stage in stages for table in _tables(members if stage else members[:1], stage, [task], reading)]
    return np.concatenate(copies)


def _padded(tables: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The tables with as many rows as the longest has, the others filled up with what counts as lost."""
    most = max(map(len, tables))
    return [np.pad(table, ((0, most - len(table)), (0, 0)), constant_values=np.nan) for table in tables]


def _negated(found: Mapping[str, float]) -> dict[str, float]:
    return Difference(0.0 - found["difference"], 0.0 - found["high"], 0.0 - found["low"])._asdict()  # never -0.0


def _drift(members: Sequence[Member]) -> list[dict[str, Any]]:
    """For each stage, the means over seeds of its divergences."""
    found = []
    for stage, task in enumerate(members[0].tasks):
        own: dict[str, Any] = {"task": task}
        for kind in (STEP, BASE):
            names = members[0].moved[stage][kind]
            own[kind] = {
                name: float(np.mean([member.moved[stage][kind][name] for member in members])) for name in names
            }
        found.append(own)
    return found


def _recoveries(members: Sequence[Member]) -> dict[str, list[dict[str, Any] | None]]:
    """By task, for each seed, how it was learned again; null where nothing had been lost."""
    return {
        task: [found._asdict() if (found := member.again.get(task)) else None for member in members]
        for task in members[0].tasks[:-1]
    }


def points(members: Sequence[Member]) -> dict[str, list[Point]]:
    """Every stage of every sequence, against the base and against the policy before, where something could be lost."""
    found: dict[str, list[Point]] = {kind: [] for kind in KINDS}
    for member in members:
        reading = member.scale.headlined
        for stage, moved in enumerate(member.moved, 1):
            known = {BASE: (list(member.prior), 0), STEP: ([*member.prior, *member.tasks[: stage - 1]], stage - 1)}
            for kind, (tasks, since) in known.items():
                if tasks:
                    fell = [member.mean(since, task, reading) - member.mean(stage, task, reading) for task in tasks]
                    facts = (member.training.label, member.training.folder.name, float(np.mean(fell)))
                    found[kind].append(Point(*facts, moved[kind]))
    return {kind: own for kind, own in found.items() if own}


def write(tasks: "Tasks", trainings: Sequence[Training], failures: Mapping[Training, str]) -> None:
    """Write results.parquet from the sequences that have ended so far: a row for each stage, which is its `step`.

    `new` is success over all tasks of the sequence, `prior` over those that it never learns; the measures are those
    against the first base, at the states of the stage's task. Without prior tasks there is no table.
    """
    done = [read(tasks, training) for training in trainings if training.finished]
    if not done or not tasks.prior:
        return
    reading = tasks.scale.headlined
    # The base has not moved, though this is not measured.
    still: dict[str, float | None] = {name: None if "entropy" in name else 0.0 for name in done[0].moved[0][BASE]}
    facts = {"method": "base", "seed": trainings[0].seed, "run": "base", "step": 0, "learning_rate": None}
    rows = [{**_row(tasks, done[0], 0, reading), **facts, **still}]
    for member in done:
        for stage, moved in enumerate(member.moved, 1):
            own, measured = member.training, {name: moved[BASE].get(name) for name in still}
            facts = {"method": own.label, "seed": own.seed, "run": own.folder.name, "step": stage}
            rows.append(
                {**_row(tasks, member, stage, reading), **facts, "learning_rate": own.learning_rate, **measured}
            )
    failed = [
        {
            "domain": tasks.domain,
            "method": one.label,
            "model": tasks.base,
            "seed": one.seed,
            "run": one.folder.name,
            "learning_rate": one.learning_rate,
            "status": "failed",
            "reason": reason,
        }
        for one, reason in failures.items()
    ]
    results.write_table(tasks.out, rows, failed, [0.0] * len(rows))


def _row(tasks: "Tasks", member: Member, stage: int, reading: str) -> dict[str, Any]:
    rates = {task: member.mean(stage, task, reading) for task in (*member.tasks, *member.prior)}
    return {
        "domain": tasks.domain,
        "model": tasks.base,
        "new": float(np.mean([rates[task] for task in member.tasks])),
        "prior": float(np.mean([rates[task] for task in member.prior])),
        **{f"prior_{task}": rates[task] for task in member.prior},
        "status": "done",
        "reason": None,
    }


def present(tasks: "Tasks", trainings: Sequence[Training], failures: Mapping[Training, str]) -> dict[str, Any]:
    """Print the tables, draw the figures, and return the content of summary.json."""
    console, folder = tasks.console, tasks.out / "plots"
    done = [read(tasks, training) for training in trainings if training.finished]
    settings: dict[str, list[Member]] = {}
    for member in done:
        settings.setdefault(member.training.setting, []).append(member)
    entries = {name: {"method": own[0].training.label, **summary(tasks, own)} for name, own in settings.items()}
    tables = [*(matrix_table(name, entry) for name, entry in entries.items())]
    tables.append(measures_table(tasks.scale, entries))
    for table in tables:
        console.print(table)
    for training, reason in failures.items():
        console.print(f"{training.folder.name} failed: {reason}", highlight=False)
    atomic_write(tasks.out / "table.txt", "\n".join(map(as_text, tables)).encode())
    figures.sequences(folder / "sequences", entries)
    laws = {}
    for kind, own in points(done).items():
        figures.forgetting(folder / f"forgetting_since_{kind}", own, plots.colours_of(own))
        laws[kind] = law.predictors(own, [FORWARD_KL])
    for kind, found in laws.items():
        if FORWARD_KL in found:
            tau = f"Kendall's tau {found[FORWARD_KL]['kendall_tau']:.2f}"
            console.print(f"{KINDS[kind]}: R2 {law.in_words(found[FORWARD_KL])}, {tau}", highlight=False)
    console.print(f"figures in {folder}; all of it on one page: vla-razor report {tasks.out}", highlight=False)
    failed = {training.folder.name: reason for training, reason in failures.items()}
    # The entry of the only setting stands at the top, too.
    only = next(iter(entries.values())) if len(entries) == 1 else {}
    return {**only, "sequences": len(trainings), "failed": failed, "settings": entries, "predictors": laws}


def matrix_rows(entry: Mapping[str, Any]) -> tuple[list[str], list[tuple[str, list[Any]]]]:
    """A setting's matrix: the names of its columns, and for each stage, the base first, its name and its rates."""
    names = ["the base", *(f"{number}. {task}" for number, task in enumerate(entry["tasks"], 1))]
    columns, rates = list(entry["tasks"]), [list(row) for row in (entry["base"], *entry["matrix"])]
    if zero_shot := entry.get("zero_shot"):
        columns.append("prior tasks")
        for row, other in zip(rates, [zero_shot["base"], *zero_shot["stages"]], strict=True):
            row.append(other)
    return columns, list(zip(names, rates, strict=True))


def matrix_table(name: str, entry: Mapping[str, Any]) -> Table:
    """A setting's matrix."""
    table = Table("after", title=f"{name}: success on each task [95%, clustered by start]")
    columns, rows = matrix_rows(entry)
    for column in columns:
        table.add_column(column, justify="right")
    for row, rates in rows:
        table.add_row(row, *map(brief, rates))
    return table


def measures_table(scale: Scale, entries: Mapping[str, Mapping[str, Any]]) -> Table:
    """What follows from the matrices, a column for each setting."""
    table = Table("", title="After the last stage [95%, clustered by start]")
    for name in entries:
        table.add_column(name, justify="right")
    for label, cells in measure_rows(scale, entries):
        table.add_row(label, *cells)
    return table


def measure_rows(scale: Scale, entries: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, list[str]]]:
    """The measures in words, by label, for each of the settings."""
    several = any(len(entry["over_seeds"]["nbt"]["values"]) > 1 for entry in entries.values())
    differences = {"nbt": "lost later (NBT)", "bwt": "backward transfer (BWT)", "forward_transfer": "forward transfer"}
    rows: list[tuple[str, list[str]]] = [("average success", [brief(entry["average"]) for entry in entries.values()])]
    for key, label in differences.items():
        rows.append((label, [scale.in_words(Difference(**entry[key])) for entry in entries.values()]))
    if all("zero_shot" in entry for entry in entries.values()):
        changes = [Difference(**entry["zero_shot"]["change"]) for entry in entries.values()]
        rows.append(("change of the prior tasks", list(map(scale.in_words, changes))))
    for key, label in (("libero_fwt", "LIBERO's FWT"), ("libero_auc", "LIBERO's AUC")):
        rows.append((label, [f"{entry[key]:.0%}" for entry in entries.values()]))
    for key, label in (("average", "average success"), ("nbt", "NBT")) if several else ():
        means = [entry["over_seeds"][key] for entry in entries.values()]
        rows.append((f"{label} over seeds [95%]", [brief({**own, "rate": own["mean"]}) for own in means]))
    if any(entry["recovery"] for entry in entries.values()):
        rows.append(("episodes to recover a task", [recovered(entry["recovery"]) for entry in entries.values()]))
    name = scale.moved[0]
    for kind, label in ((BASE, "from the base"), (STEP, "from the policy before")):
        cells = [" ".join(f"{stage[kind][name]:.3g}" for stage in entry["forward_kl"]) for entry in entries.values()]
        rows.append((f"{MEASURES[name]} {label}, stage by stage", cells))
    return rows


def recovered(found: Mapping[str, Sequence[Mapping[str, Any] | None]] | None) -> str:
    """The mean number of episodes after which a lost task was back where it had been, and of how many."""
    again = [one for own in (found or {}).values() for one in own if one]
    reached = [one["episodes"] for one in again if one["reached"]]
    if not again:
        return "nothing was lost"
    mean = f"{np.mean(reached):.0f}, " if reached else ""
    return f"{mean}{len(reached)} of {len(again)} were"


def brief(rate: Mapping[str, Any]) -> str:
    """A rate with its interval, in percent."""
    return f"{rate['rate']:.0%} [{100 * rate['low']:.0f}, {100 * rate['high']:.0f}]"
