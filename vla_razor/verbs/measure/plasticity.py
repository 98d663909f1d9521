"""`vla-razor plasticity RUNS...`: how well a fine-tuned policy still learns another task.

RUNS are fine-tunings of one base, such as those of a sweep. The base and the last policy of each run are trained on
`env`, all in the same way and from the same starts or demonstrations. Every training is a run folder below `out`, so
that an interrupted comparison goes on. What each learned is set against the forward KL that its run had spent on the
task before, and against the entropy of its distribution at the beginning: a policy that hardly explores any more gives
REINFORCE nothing to choose from.

By REINFORCE (`method=rl`) the learning curve is the success of each iteration's episodes, on the training grid. A task
that no policy ever solves has no reward to learn from. `method=sft` learns it from the scripted expert's
demonstrations; the curve is then the success of each checkpoint, beginning with the policy before, from random starts.
The paper measures forgetting alone.

Success means success once in an episode. Success at the end is known from evaluations alone, because REINFORCE's
episodes end at their first success.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table
from scipy.stats import kendalltau

from vla_razor.errors import UserError
from vla_razor.policies.opening import open_trainable
from vla_razor.rollouts import probe_set
from vla_razor.rollouts.starts import points_of
from vla_razor.runs import Run, origin_of, read_config
from vla_razor.statistics import READINGS, Rate, clustered, pooled_rate, wilson
from vla_razor.study import figures, measures
from vla_razor.tables import shown
from vla_razor.verbs.study.comparison import hits_in, step_of
from vla_razor.verbs.study.stages import stage

SEED = 0
"""Seed of the demonstrations and of the starts of the evaluation."""
NAMES = {"rl": "REINFORCE", "sft": "SFT on demonstrations"}
WINDOWS = {"rl": (3, "iterations"), "sft": (1, "evaluation")}
"""How many points of a curve are pooled at its beginning and its end, and what a point is."""


class Learned(NamedTuple):
    """How a policy learned the second task.

    `spent` is the forward KL of its first fine-tuning in nats per action, 0 for the base, and `method` the verb of that
    fine-tuning. `curve` is the success at each of `steps`. `entropy`, at the beginning, is in nats per token. `first`,
    `last` and `all` pool the beginning, the end and the whole of the curve. `at_end` are these three rates for success
    at the end, where it was evaluated.
    """

    name: str
    method: str
    seed: int
    spent: float
    entropy: float
    steps: list[int]
    curve: list[float]
    first: Rate
    last: Rate
    all: Rate
    at_end: tuple[Rate, Rate, Rate] | None = None


class History(NamedTuple):
    """A policy before the second training: what to load, the verb that made it (`base` for the base), and the forward
    KL in nats per action that its fine-tuning spent.
    """

    policy: str
    method: str
    spent: float


def run(config: DictConfig, run: Run) -> None:
    """Train the base and every run's policy on `config.env`, then show how each learned."""
    run.restore()
    out, console = run.path.resolve(), Console()
    trainings = [
        (name, history, seed)
        for name, history in histories(config.runs, config.env.name).items()
        for seed in config.seeds
    ]
    learned = []
    for name, history, seed in trainings:
        folder = out / f"{name}_seed{seed}"
        if config.method == "rl":
            stage(console, config, folder, "rl", policy=history.policy, seed=seed)
            learned.append(read(folder, name, history))
        else:
            learned.append(imitate(console, config, folder, name, history, seed))
    console.print(table(config, learned))
    figures.plasticity(out / "plots" / "plasticity", learned, config.env.name)
    console.print(f"figures in {out / 'plots'}", highlight=False)
    run.finish({"learned": [one._asdict() for one in learned], "kendall_tau": correlation(learned)})


def histories(runs: Sequence[str], task: str) -> dict[str, History]:
    """The base of all runs and their last policies, by name.

    Raises UserError where there is no run; where a run has not finished, never measured forward KL, or has learned
    already the `task` (an env's name) that is to be learned now; where two have the same name; and where their bases
    differ.
    """
    if not runs:
        raise UserError("plasticity is of fine-tunings that there are: vla-razor plasticity DIR... --env TASK")
    for folder in map(Path, runs):
        verb = read_config(folder / "config.yaml").verb if (folder / "config.yaml").is_file() else None
        if verb not in ("sft", "rl", "distill", "interpolate") or not (folder / "summary.json").is_file():
            example = f" Give the runs below it, such as {folder}/*_seed0." if verb in ("sweep", "demo") else ""
            raise UserError(f"{folder} is no finished run of sft, rl or distill.{example}")
    bases = {origin_of(folder, "policy") for folder in runs}
    if len(bases) > 1:
        raise UserError(
            f"the runs began with different policies, {' and '.join(sorted(bases))}: compare like with like."
        )
    found = {"base": History(bases.pop(), "base", 0.0)}
    for folder in map(Path, runs):
        measured = [row for row in measures.read_rows(folder) if "forward_kl_per_action" in row]
        if not measured:
            raise UserError(f"{folder} never measured forward KL: it needs probe_every above 0.")
        if folder.name in found:
            raise UserError(f"two policies would be called {folder.name}: rename the folder {folder}.")
        settings = read_config(folder / "config.yaml")
        if settings.env.name == task:
            raise UserError(f"{folder} has learned {task} already: give another task, --env TASK.")
        found[folder.name] = History(str(folder.resolve()), settings.verb, float(measured[-1]["forward_kl_per_action"]))
    return found


def read(folder: Path, name: str, history: History) -> Learned:
    """How a training by REINFORCE went."""
    rows, settings = measures.read_rows(folder), read_config(folder / "config.yaml")
    starts = points_of(settings) * (1 if settings.env.grid else len(settings.env.tasks))
    curve: dict[int, Rate] = {}
    for row in rows:
        # Every iteration draws new starts. Runs of earlier versions did not log how much episodes from one start agree;
        # for those, all episodes of a start count as one.
        kept = starts * settings.per_point - row["lost_episodes"]
        known = min(starts, kept)
        effective = row.get("effective_episodes", float(known))
        curve[row["step"]] = wilson(round(row["success"] * kept), kept, starts=known, effective=effective)
    rates = [rate["rate"] for rate in curve.values()]
    ends = _ends("rl", list(curve.values()), pooled_rate)
    return Learned(
        name, history.method, settings.seed, history.spent, rows[0]["sampled_entropy"], list(curve), rates, *ends
    )


def imitate(console: Console, config: DictConfig, folder: Path, name: str, history: History, seed: int) -> Learned:
    """Train a policy in `folder` on demonstrations that all policies share, and evaluate each of its checkpoints."""
    demos, evaluation = folder.with_name("demos"), folder.with_name(f"{folder.name}_eval")
    stage(console, config, demos, "collect", seed=SEED)
    stage(console, config, folder, "sft", policy=history.policy, demos=str(demos), seed=seed)
    paths = {step_of(path): path for path in (folder / "checkpoints").iterdir()}
    policies = {0: history.policy} | {step: str(paths[step]) for step in sorted(paths)}
    before, *after = policies.values()
    stage(console, config, evaluation, "eval", policy=before, against=",".join(after), seed=SEED)
    found = hits_in(evaluation)
    once, at_end = ([found[policy][reading] for policy in policies.values()] for reading in READINGS)
    rates = [_over([point])["rate"] for point in once]
    # Entropy of the policy before the training, at the states that it visits in the second task.
    trained = read_config(folder / "config.yaml")
    opened = open_trainable(history.policy, trained)
    settings = {key: trained[key] for key in ("num_envs", "num_workers")}
    probe = probe_set.obtain(opened, trained.env, states=trained.probe_states, **settings)
    ends, entropy = _ends("sft", once, _over), probe_set.measure(opened, probe)["entropy"]
    facts = (name, history.method, seed, history.spent, entropy, list(policies), rates)
    return Learned(*facts, *ends, at_end=_ends("sft", at_end, _over))


def _over(points: Sequence[Mapping[str, np.ndarray]]) -> Rate:
    """The rate over several points of a curve, which share their starts, task by task."""
    return pooled_rate(clustered([point[task] for point in points]) for task in points[0])


def _ends(method: str, points: Sequence[Any], pool: Callable[[Sequence[Any]], Rate]) -> tuple[Rate, Rate, Rate]:
    """The rates of the beginning of a curve, of its end, and of all of it."""
    window, _ = WINDOWS[method]
    return pool(points[:window]), pool(points[-window:]), pool(points)


def correlation(learned: Sequence[Learned]) -> float | None:
    """Kendall's tau between the KL that was spent and the success over the whole curve; None where there are too few
    values.
    """
    pairs = [(one.spent, one.all["rate"]) for one in learned]
    if min(len(set(column)) for column in zip(*pairs, strict=True)) < 3:  # two points always have some order
        return None
    tau: Any = kendalltau(*zip(*pairs, strict=True))[0]
    return float(tau)


def table(config: DictConfig, learned: Sequence[Learned]) -> Table:
    """One line per training, by rising KL: success once and, where it was evaluated, success at the end below it."""
    title = f"{config.env.name} learned by {NAMES[config.method]} after a fine-tuning [95%, clustered by start]"
    window, unit = WINDOWS[config.method]
    found = Table("policy", "seed", "KL spent,\nnats an action", "entropy,\nnats a token", title=title)
    for name in (f"first {window} {unit}", f"last {window}", "all"):
        found.add_column(name, justify="right")
    for one in sorted(learned, key=lambda one: (one.spent, one.name, one.seed)):
        rates = (shown(rate, "\n") for rate in (one.first, one.last, one.all))
        found.add_row(one.name, str(one.seed), f"{one.spent:.2f}", f"{one.entropy:.2f}", *rates)
        if one.at_end:
            found.add_row("  at the end", "", "", "", *(shown(rate, "\n") for rate in one.at_end))
    return found
