"""A sequence of a robot's tasks: what each method learns a task from, and how a stage is evaluated and measured."""

import json
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict
from rich.console import Console

from vla_razor import recordings
from vla_razor.config import robot_of, scenes
from vla_razor.errors import RunFailed, UserError
from vla_razor.rollouts.starts import points_of
from vla_razor.runs import read_config
from vla_razor.study import measures
from vla_razor.training.algorithms import reinforce
from vla_razor.training.algorithms.sft import replayed_per_batch
from vla_razor.verbs.study import axes
from vla_razor.verbs.study.axes import Training
from vla_razor.verbs.study.comparison import SUCCESS, Earned, hits_in
from vla_razor.verbs.study.robot import EVALUATION_SEED, VARIANTS
from vla_razor.verbs.study.stages import stage

METHODS = {"sft": "sft", "sft_own": "sft", "sft_replay": "sft", "rl": "rl", "distill": "distill"}
"""The verb of each method. `sft_own` learns from the successes of the policy before the stage, `sft_replay` has
demonstrations of the earlier tasks in every batch.
"""


class RobotSequence:
    """The sequences in the folder `out`; the folders below it are those of `verbs/study/sequence.py`, and

    demos_<task>          what SFT learns a task from, and what is replayed later; a seed's end with its number
    <run>/1_<task>_own    the successes of the policy before the stage, for sft_own
    <run>/1_<task>_kept   the policy that goes on, where it is not the last of the training: `share` of the way to it,
                          or with its adapter merged, so that the next stage has an adapter of its own
    """

    domain, scale = "robot", SUCCESS

    def __init__(self, config: DictConfig, out: Path) -> None:
        self.config, self.out, self.console = config, out, Console()
        self.base = str(config.policy)
        self.tasks = [str(task) for scene in scenes(config.env) for task in scene.tasks]
        self.prior = [str(task) for scene in (scenes(config.prior) if config.prior else []) for task in scene.tasks]

    def plan(self) -> list[Training]:
        """The sequences: every combination of the axes' values that a method knows, each once.

        Raises UserError where there are too few tasks, one comes twice or is only recorded, or robots differ; where no
        method knows an axis, or a value breaks the rule of its key.
        """
        config, named = self.config, ",".join(self.tasks)
        if len(self.tasks) < 2:
            raise UserError(f"env={named}: a sequence has at least two tasks, as in env=pick_can,open_top_drawer.")
        if len(set(self.tasks)) < len(self.tasks):
            raise UserError(f"env={named}: a task comes twice; expected each once.")
        places = [*scenes(config.env), *(scenes(config.prior) if config.prior else [])]
        for scene in places:
            if recordings.is_recorded(scene):
                raise UserError(
                    f"env={scene.name}: it is recorded, and nobody can act in it; a sequence plays its tasks."
                )
        robots = {str(scene.name): robot_of(scene) for scene in places}
        if len(set(robots.values())) > 1:
            said = ", ".join(f"{name} of {robot}" for name, robot in robots.items())
            raise UserError(f"tasks of different robots, whose actions one policy does not share: {said}.")
        if config.eval.greedy:
            raise UserError("a sequence compares policies as they act: eval.greedy=false.")
        return axes.plan(config, self.out, METHODS, shared=("share",), variants=(*VARIANTS, "share"))

    def prepare(self, trainings: Sequence[Training]) -> None:
        """Evaluate the base, and collect what sequences learn from."""
        self.evaluate(self.out / "base", self.base)
        demonstrated = [training for training in trainings if training.method in ("sft", "sft_replay")]
        # A penalty on forgetting demonstrations needs them whatever the method is; none are needed of the last task.
        replaying = [training for training in trainings if self._replays(training) and training not in demonstrated]
        needed = [(one, task) for one in demonstrated for task in self.tasks]
        needed += [(one, task) for one in replaying for task in self.tasks[:-1]]
        for training, task in needed:
            folder = self._demos(training, task)
            stage(self.console, self.config, folder, "collect", env=self.scene(task), seed=training.seed)

    def train(self, training: Training, folder: Path, task: str, policy: str) -> str:
        """Let `policy` learn a task in `folder`. Returns the policy that goes on."""
        verb, changes = METHODS[training.method], dict(training.changes)
        share = changes.pop("share", self.config.share)
        data: dict[str, Any] = {"prior": self.config.prior}
        if training.method == "sft_own":
            own = folder.with_name(f"{folder.name}_own")
            stage(self.console, self.config, own, "collect", env=self.scene(task), policy=policy, seed=training.seed)
            if not json.loads((own / "summary.json").read_text())["demonstrations"]["successes"]:
                raise RunFailed(f"{own}: the policy before the stage never succeeded, so sft_own has nothing to learn.")
            data["demos"] = str(own)
        elif verb == "sft":
            data["demos"] = str(self._demos(training, task))
        if self._replays(training):
            learned = [other for other in self.tasks[: self._stage_of(folder)] if other != task]
            if learned:
                data["replay"] = ",".join(str(self._demos(training, other)) for other in learned)
                data["prior"] = together(map(self.scene, learned))
            else:  # before the first task there is nothing to replay
                changes["replay_coefficient"] = None
        settings = {"env": self.scene(task), "policy": policy, "seed": training.seed}
        stage(self.console, self.config, folder, verb, **{**changes, **data, **settings})
        if share == 1 and not read_config(folder / "config.yaml").lora_rank:
            return str(folder)
        kept = folder.with_name(f"{folder.name}_kept")
        ends = {"policy": str(folder), "base": policy, "shares": [share]}
        stage(self.console, self.config, kept, "interpolate", env=self.scene(task), **ends)
        return str(kept / "checkpoints" / f"share_{100 * share:g}")

    def evaluate(self, folder: Path, policy: str) -> None:
        """Evaluate a policy on the tasks of the sequence and the prior ones, from starts that are the same for all."""
        prior = scenes(self.config.prior) if self.config.prior else []
        everything = together([*scenes(self.config.env), *prior])
        stage(self.console, self.config, folder, "eval", env=everything, policy=policy, seed=EVALUATION_SEED)

    def evaluate_on(self, folder: Path, task: str, policies: Sequence[Path]) -> None:
        """Evaluate several policies on one task, from the starts that it always has."""
        first, *others = map(str, policies)
        both = {"policy": first, "against": ",".join(others) or None, "seed": EVALUATION_SEED}
        stage(self.console, self.config, folder, "eval", env=self.scene(task), **both)

    def earned(self, folder: Path) -> list[Earned]:
        """What the policies of an evaluation earned, in their order; nothing where there was none."""
        return list(hits_in(folder).values()) if folder.is_dir() else []

    def measure(self, folder: Path, task: str, policy: str, base: str) -> None:
        """Measure how far a policy has moved from a base on a task."""
        ends = {"policy": policy, "base": base, "seed": EVALUATION_SEED}
        stage(self.console, self.config, folder, "kl", env=self.scene(task), **ends)

    def moved(self, folder: Path) -> dict[str, float]:
        """What `measure` found, under the names of metrics.jsonl."""
        (entry,) = json.loads((folder / "summary.json").read_text())["policies"].values()
        return measures.logged(entry["forward_kl"])

    def episodes(self, folder: Path, step: int) -> int:
        """How many episodes a training had learned from at a step: those that it played or, for SFT, those that were
        shown, counted as often as they were.
        """
        config = read_config(folder / "config.yaml")
        if config.verb == "sft":
            shown = json.loads((Path(config.demos) / "summary.json").read_text())["demonstrations"]
            epoch = -(-shown["steps"] // (config.batch_size - replayed_per_batch(config)))
            return round(step / epoch * shown["successes"])
        if config.verb == "distill":
            return step // config.updates * points_of(config) * config.per_point
        played = reinforce.episodes_of(config)
        return step // reinforce.updates_of(config, played) * played

    def scene(self, task: str) -> DictConfig:
        """The environment of one task."""
        (found,) = [deepcopy(scene) for scene in scenes(self.config.env) if task in scene.tasks]
        with open_dict(found):
            found.name = task
            found.tasks = {task: found.tasks[task]} if isinstance(found.tasks, DictConfig) else [task]
        return found

    def _replays(self, training: Training) -> bool:
        settings: Mapping[str, Any] = {**self.config[METHODS[training.method]], **training.changes}
        paid = settings["replay_coefficient"] and settings["replay"] is None
        return training.method == "sft_replay" or bool(paid)

    def _stage_of(self, folder: Path) -> int:
        """The number of a stage; all of them where a task is learned again."""
        number = folder.name.partition("_")[0]
        return int(number) if number.isdecimal() else len(self.tasks)

    def _demos(self, training: Training, task: str) -> Path:
        return self.out / f"demos_{task}{training.folder.name.removeprefix(training.setting)}"


def together(parts: Iterable[DictConfig]) -> DictConfig:
    """One environment with the tasks of all. Scenes that differ in nothing but their tasks are opened once."""
    found: dict[str, DictConfig] = {}
    for scene in parts:
        what = OmegaConf.to_yaml(OmegaConf.create({key: scene[key] for key in scene if key not in ("name", "tasks")}))
        if what not in found:
            found[what] = deepcopy(scene)
            continue
        known = found[what].tasks
        with open_dict(found[what]):
            found[what].tasks = {**known, **scene.tasks} if isinstance(known, DictConfig) else [*known, *scene.tasks]
    return OmegaConf.create({"name": "all_tasks", **{str(scene.name): scene for scene in found.values()}})
