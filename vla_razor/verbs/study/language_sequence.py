"""A sequence of language tasks: how a model learns one, and how a stage is evaluated and measured."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from omegaconf import DictConfig
from rich.console import Console

from vla_razor.errors import UserError
from vla_razor.runs import read_config
from vla_razor.study import measures
from vla_razor.verbs.language import evaluate as llm_eval
from vla_razor.verbs.study import axes
from vla_razor.verbs.study.axes import Training
from vla_razor.verbs.study.comparison import ANSWERS, Earned
from vla_razor.verbs.study.language import VARIANTS
from vla_razor.verbs.study.stages import stage

METHODS = {"sft": "llm_sft", "grpo": "llm_grpo", "reinforce": "llm_reinforce"}
"""The verb of each method. SFT learns the gold answers."""


class LanguageSequence:
    """The sequences in the folder `out`; the folders below it are those of `verbs/study/sequence.py`. An evaluation has
    one for each task, which ends its name: 1_number_eval_tool; lm-eval's prior tasks are in that of the first.
    """

    domain, scale = "language", ANSWERS

    def __init__(self, config: DictConfig, out: Path) -> None:
        self.config, self.out, self.console = config, out, Console()
        self.base = str(config.model)
        self.tasks = config.task.split(",")
        self.prior, self._skipped = llm_eval.available(config.llm_eval, config.data_dir)

    def plan(self) -> list[Training]:
        """The sequences: every combination of the axes' values that a method knows, each once.

        Raises UserError where there are too few tasks, one comes twice or has no easier slice; where no method knows an
        axis, a value breaks the rule of its key, or adapters are asked for.
        """
        if len(self.tasks) < 2:
            raise UserError(f"task={self.config.task}: a sequence has at least two tasks, as in task=number,tool.")
        if len(set(self.tasks)) < len(self.tasks):
            raise UserError(f"task={self.config.task}: a task comes twice; expected each once.")
        if self.config.easy:
            raise UserError("easy=true: tool alone has an easier slice, and a sequence has other tasks too.")
        trainings = axes.plan(self.config, self.out, METHODS, variants=VARIANTS)
        for training in trainings:
            # A second adapter would have the base of the first, not the model before the stage.
            if {**self.config[METHODS[training.method]], **training.changes}["lora_rank"]:
                raise UserError("a sequence of language tasks trains the weights themselves: lora_rank=0.")
        return trainings

    def prepare(self, trainings: Sequence[Training]) -> None:
        """Evaluate the base."""
        for name, reason in self._skipped.items():
            self.console.print(f"{name} is not run: {reason}", highlight=False)
        self.evaluate(self.out / "base", self.base)

    def train(self, training: Training, folder: Path, task: str, policy: str) -> str:
        """Let the model learn a task in `folder`. Returns the model that goes on."""
        settings = {**training.changes, "model": policy, "task": task, "seed": training.seed}
        stage(self.console, self.config, folder, METHODS[training.method], **settings)
        return str(folder)

    def evaluate(self, folder: Path, policy: str) -> None:
        """Evaluate a model on the tasks of the sequence and the prior ones."""
        for task in self.tasks:
            prior = {} if task == self.tasks[0] else {"prior_tasks": []}
            self._evaluate(folder.with_name(f"{folder.name}_{task}"), task, policy, **prior)

    def evaluate_on(self, folder: Path, task: str, policies: Sequence[Path]) -> None:
        """Evaluate several models on one task."""
        for number, policy in enumerate(policies):
            self._evaluate(folder.with_name(f"{folder.name}_{number}"), task, str(policy), prior_tasks=[])

    def earned(self, folder: Path) -> list[Earned]:
        """What the models of an evaluation earned, in the order in which they were given."""
        if (folder.parent / f"{folder.name}_{self.tasks[0]}").is_dir():
            parts = [folder.with_name(f"{folder.name}_{task}") for task in self.tasks]
            return [{ANSWERS.headlined: {name: one for part in parts for name, one in _answers(part).items()}}]
        found: list[Earned] = []
        while (part := folder.with_name(f"{folder.name}_{len(found)}")).is_dir():
            found.append({ANSWERS.headlined: _answers(part)})
        return found

    def measure(self, folder: Path, task: str, policy: str, base: str) -> None:
        """Measure how far a model has moved from a base on a task."""
        stage(self.console, self.config, folder, "llm_kl", model=policy, base=base, task=task)

    def moved(self, folder: Path) -> dict[str, float]:
        """What `measure` found, under the names of metrics.jsonl."""
        return measures.logged(json.loads((folder / "summary.json").read_text())["forward_kl"])

    def episodes(self, folder: Path, step: int) -> int:
        """How many answers a training had learned from at a step."""
        config = read_config(folder / "config.yaml")
        if config.verb == "llm_sft":
            return step * config.batch_size
        return step // config.num_iterations * config.prompts_per_step * config.group_size

    def _evaluate(self, folder: Path, task: str, policy: str, **changes: list[str]) -> None:
        stage(self.console, self.config, folder, "llm_eval", model=policy, task=task, **changes)


def _answers(folder: Path) -> dict[str, np.ndarray]:
    return {task: np.array(own) for task, own in json.loads((folder / "answers.json").read_text()).items()}
