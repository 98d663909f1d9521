"""A study of a robot's policies: which methods there are, what each learns from, and how their runs are evaluated."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from rich.console import Console

from vla_razor.config import scenes
from vla_razor.errors import UserError
from vla_razor.policies.opening import weights_of
from vla_razor.runs import read_config
from vla_razor.verbs.measure import interpolate
from vla_razor.verbs.study import axes, comparison
from vla_razor.verbs.study.axes import Training
from vla_razor.verbs.study.comparison import Kinds, Outcome
from vla_razor.verbs.study.stages import stage

METHODS: Mapping[str, tuple[str, Mapping[str, str]]] = {
    "sft": ("sft", {"demos": "demos"}),
    "sft_far": ("sft", {"demos": "far"}),
    "sft_own": ("sft", {"demos": "own"}),
    "sft_replay": ("sft", {"demos": "demos", "replay": "replay"}),
    "rl": ("rl", {}),
    "distill": ("distill", {}),
}
"""The verb of each method, and the collections that it learns from: the key of the verb, and the name of the folder."""
VARIANTS = ("kl_coefficient", "spillover_coefficient", "lora_rank", "replay_share", "staleness", "guidance")
VARIANTS += ("replay_coefficient", "loss", "baseline", "normalizer", "prefix_jitter", "penalties")
"""Settings whose change makes a method another one in the table."""
EVALUATION_SEED = 0
KINDS = ("new", "prior")


class Robot:
    """The study in the folder `out`. Every stage is an ordinary run folder below it:

    demos, far, own, replay   what runs learn from, by whoever shows it
    <run>                     a training
    <run>_share50             the policy half of the way from the base to a run's last one
    base_new, <run>_new       the base, or a run's checkpoints, on the new task; ..._prior on the prior ones
    new, prior                where all is done in one process: the base and the checkpoints of all runs of a seed

    Where there are several seeds, their numbers end the names: demos_seed1.
    """

    def __init__(self, config: DictConfig, out: Path) -> None:
        self.config, self.out, self.console = config, out, Console()

    def plan(self) -> list[Training]:
        """The runs: every combination of the axes' values that a method knows, each once.

        Raises UserError where no method knows an axis, a value breaks the rule of its key, a checkpoint would not be
        measured, or there is no far teacher or no prior task.
        """
        config = self.config
        if config.prior is None:
            raise UserError(
                f"a {config.verb} needs prior tasks, or there is nothing to forget: prior has none beside "
                f"env={config.env.name}."
            )
        if config.eval.greedy:
            raise UserError(f"a {config.verb} compares policies as they act: eval.greedy=false.")
        trainings = axes.plan(config, self.out, {name: verb for name, (verb, _) in METHODS.items()}, variants=VARIANTS)
        if config.verb == "demo" and not config.far:  # its default methods include sft_far
            trainings = [training for training in trainings if training.method != "sft_far"] or trainings
        for training in trainings:
            settings = {**config[verb_of(training.method)], **training.changes}
            save, probe = settings["save_every"], settings["probe_every"]
            # Every evaluated checkpoint needs its measures; the last step always has them, if any step has.
            if not probe or (config.checkpoints > 1 and save % probe):
                said = f"{training.method}: probe_every={probe} must divide save_every={save}"
                raise UserError(f"{said}: every checkpoint is measured.")
            for name in METHODS[training.method][1].values():
                self.collected(name)
        return trainings

    def prepare(self, trainings: Sequence[Training]) -> None:
        """Collect what the runs learn from. Where runs will be evaluated one by one, evaluate the base too."""
        if self.config.launcher != "here":
            self._evaluate("base_{}", [self.config.policy])
        for folder, seed in sorted({(folder, t.seed) for t in trainings for folder in self.collections(t).values()}):
            changes = self.collected(folder.name.partition("_")[0])
            stage(self.console, self.config, folder, "collect", seed=seed, **changes)

    def train(self, training: Training) -> None:
        """Carry out a run, or go on with it; then make and measure the policies between the base and its last one."""
        data = {key: str(folder) for key, folder in self.collections(training).items()}
        changes = {**data, **training.changes, "seed": training.seed}
        stage(self.console, self.config, training.folder, verb_of(training.method), **changes)
        trained = read_config(training.folder / "config.yaml")
        for one, share in zip(self.between(training), self.config.interpolated, strict=True):
            interpolate.measured(self.config, training.checkpoints(1)[0], one.folder, share, trained)
        weights = partial(weights_of, config=self.config)
        for one in (training, *self.between(training)):
            comparison.measure_weights(self.config.policy, one, self.config.checkpoints, weights)

    def evaluate(self, trainings: Sequence[Training]) -> None:
        """Evaluate the checkpoints of runs, all from the same starts."""
        for folders, policies in self.evaluations(trainings).items():
            self._evaluate(folders, policies)

    def evaluations(self, trainings: Sequence[Training]) -> dict[str, list[str]]:
        """Which policies are evaluated together, by the name of the folder, in which {} stands for new and for prior.

        In one process these are all runs of a seed, so that the environments are opened once. The starts are the same
        for every seed, and so would be the episodes of the base: it plays them once, with the first seed. A run that
        ended only after that evaluation had begun, because the study was resumed, is evaluated separately.
        """
        members = [one for training in trainings for one in (training, *self.between(training))]
        checkpoints = {one: [str(path) for path in one.checkpoints(self.config.checkpoints)] for one in members}
        if self.config.launcher != "here":
            return {f"{one.folder.name}_{{}}": paths for one, paths in checkpoints.items()}
        together = f"{{}}{_suffix(trainings[0])}"
        base = [self.config.policy] if trainings[0].seed == axes.seeds_of(self.config)[0] else []
        begun = self.out / together.format(KINDS[0]) / "config.yaml"
        if not begun.is_file():
            return {together: [*base, *(path for paths in checkpoints.values() for path in paths)]}
        settings = read_config(begun)
        policies = [settings.policy, *(settings.against.split(",") if settings.against else [])]
        known = set(map(_place, policies))  # by their place: the study may have been moved since
        late = {one: paths for one, paths in checkpoints.items() if not known.issuperset(map(_place, paths))}
        return {together: policies, **{f"{one.folder.name}_{{}}": paths for one, paths in late.items()}}

    def is_done(self, training: Training) -> bool:
        """Whether a run has ended and been evaluated."""
        folders = [self.out / name.format(kind) for name in self.evaluations([training]) for kind in KINDS]
        return training.finished and all((folder / "summary.json").is_file() for folder in folders)

    def outcomes(self, trainings: Sequence[Training]) -> list[Outcome]:
        """The base, and the checkpoints of the runs that are done."""
        done = [one for t in trainings if self.is_done(t) for one in (t, *self.between(t))]
        finished = [path.parent for path in sorted(self.out.glob("*/summary.json"))]
        new, prior = ([folder for folder in finished if kind in folder.name.split("_")] for kind in KINDS)
        return read(self.config.policy, new, prior, done, self.config.checkpoints) if done else []

    def probed(self, trainings: Sequence[Training]) -> dict[str, int]:
        """The number of states at which the finished runs were measured."""
        finished = next(training for training in trainings if training.finished)
        summary = json.loads((finished.folder / "summary.json").read_text())
        return {"states": summary["policies"]["tuned"]["forward_kl"]["states"]}

    def between(self, training: Training) -> list[Training]:
        """The policies on the line from the base to a run's last one; in the table each is a run of its own."""
        ends = {share: f"share{100 * share:g}" for share in self.config.interpolated}
        return [
            replace(
                training,
                folder=training.folder.with_name(f"{training.folder.name}_{end}"),
                setting=f"{training.setting}_{end}",
                variant=f"{training.variant} share={share}".lstrip(),
            )
            for share, end in ends.items()
        ]

    def collections(self, training: Training) -> dict[str, Path]:
        """Where the data of a run is collected, by the key of its verb. A replay that a penalty needs is collected too,
        unless one is given.
        """
        verb, names = METHODS[training.method]
        settings = {**self.config[verb], **training.changes}
        if settings["replay_coefficient"] and settings["replay"] is None:
            names = {**names, "replay": "replay"}
        return {key: self.out / (name + _suffix(training)) for key, name in names.items()}

    def collected(self, name: str) -> dict[str, Any]:
        """The settings of a collection that differ from `config.collect`. Those of a far teacher are `config.far`; the
        base's own successes are collected with `config.policy`. A replay has about as many episodes as the new task's
        demonstrations, and at least one at every grid point of each prior task.

        Raises UserError for a far teacher where there is none.
        """
        if name == "far":
            if not self.config.far:
                raise UserError(
                    "far=null: sft_far needs a teacher, as in far={style: tucked} or far={policy: RT1_DIR}."
                )
            return dict(self.config.far)
        if name == "replay":
            tasks = sum(len(scene.tasks) for scene in scenes(self.config.prior))
            return {"env": self.config.prior, "per_point": max(1, self.config.collect.per_point // tasks)}
        return {"policy": self.config.policy} if name == "own" else {}

    def _evaluate(self, folders: str, policies: Sequence[str]) -> None:
        first, *others = policies
        both = {"policy": first, "against": ",".join(others) or None, "seed": EVALUATION_SEED}
        kinds: dict[str, dict[str, Any]] = {"new": {"videos": self.config.videos}, "prior": {"env": self.config.prior}}
        for kind, own in kinds.items():
            settings = {"episodes": self.config[f"{kind}_episodes"], **own, **both}
            stage(self.console, self.config, self.out / folders.format(kind), "eval", **settings)


def verb_of(method: str) -> str:
    """The verb that trains by a method."""
    return METHODS[method][0]


def read(
    policy: str, new: Sequence[Path], prior: Sequence[Path], trainings: Sequence[Training], checkpoints: int
) -> list[Outcome]:
    """The base `policy`, once, then the checkpoints of the finished runs, as evaluated in the run folders `new` and
    `prior`.

    The evaluations know a checkpoint by its path at that time; the whole study may have been moved since. A policy that
    several folders evaluated from the same starts is read from the first.
    """
    found = [
        {name: hits for folder in reversed(folders) for name, hits in comparison.hits_in(folder).items()}
        for folders in (new, prior)
    ]
    evaluated_as = {_place(name): name for name in found[0] if name != policy}

    def earned(name: str) -> Kinds:
        return {kind: hits[name] for kind, hits in zip(KINDS, found, strict=True)}

    def earned_by(checkpoint: Path) -> Kinds:
        return earned(evaluated_as[_place(checkpoint)])

    outcomes = [Outcome.of_base("robot", policy, earned(policy), trainings[0].seed)]
    for training in trainings:
        if training.finished:
            outcomes += comparison.outcomes_of("robot", training, checkpoints, earned_by)
    return outcomes


def _place(checkpoint: str | Path) -> tuple[str, ...]:
    """What identifies a checkpoint wherever its study lies: run, checkpoints, step."""
    return Path(checkpoint).parts[-3:]


def _suffix(training: Training) -> str:
    """The end of the names of everything that belongs to a run's seed."""
    return training.folder.name.removeprefix(training.setting)
