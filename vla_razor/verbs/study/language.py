"""A study of language models: which methods there are, what they start from, and how their runs are evaluated."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig
from rich.console import Console

from vla_razor.errors import UserError, nearest
from vla_razor.llm.models import open_model
from vla_razor.llm.representations import weights_of
from vla_razor.verbs.language import annotate
from vla_razor.verbs.language import evaluate as llm_eval
from vla_razor.verbs.study import axes, comparison
from vla_razor.verbs.study.axes import Training
from vla_razor.verbs.study.comparison import ANSWERS, Kinds, Outcome
from vla_razor.verbs.study.stages import stage

METHODS: Mapping[str, tuple[str, str | None]] = {
    "sft": ("llm_sft", None),
    "sft_own": ("llm_sft", "own"),
    "sft_oracle": ("llm_sft", "oracle"),
    "grpo": ("llm_grpo", None),
    "reinforce": ("llm_reinforce", None),
    "simpo": ("llm_simpo", None),
}
"""The verb of each method, and the source of the labels that the study makes for it; None where it learns from
`annotations` or from rewards.
"""
VARIANTS = ("kl_coefficient", "lora_rank")
"""Settings whose change makes a method another one in the table."""
LARGEST = 1024
"""A matrix with more rows or columns is not decomposed: its spectral norm and rank are then null."""


class Language:
    """The study in the folder `out`. Every stage is an ordinary run folder below it:

    cold_start      SFT that teaches a model the form of an answer, where `config.cold_start` says so
    base            the model that is fine-tuned, evaluated
    own, oracle     labels: the base's own right answers (rejection sampling), the oracle's
    <run>           a training
    <run>_step_10   its checkpoint, evaluated

    Where there are several models, their numbers end the first names: base_2. A seed's labels end as its runs do:
    own_2_seed0.
    """

    def __init__(self, config: DictConfig, out: Path) -> None:
        self.config, self.out, self.console = config, out, Console()

    def plan(self) -> list[Training]:
        """The runs: every combination of the axes' values that a method knows, each once.

        Raises UserError where no method knows an axis, a value breaks the rule of its key, the cold start has a setting
        that SFT lacks, or the task has no oracle.
        """
        config = self.config
        for key in config.cold_start or ():
            if key not in config.llm_sft:
                raise UserError(f"cold_start: unknown key {key!r}. {nearest(key, map(str, config.llm_sft))}")
        verbs = {method: verb for method, (verb, _) in METHODS.items()}
        trainings = axes.plan(config, self.out, verbs, shared=("model",), variants=VARIANTS)
        if any(training.method == "sft_oracle" for training in trainings):
            annotate.check_oracle(config.task)
        return [replace(one, model=str(one.changes.get("model", config.model))) for one in trainings]

    def prepare(self, trainings: Sequence[Training]) -> None:
        """Give every model its cold start, evaluate it, and draw the labels that runs learn from. Raises UserError
        where no prior task can be run here.
        """
        names, skipped = llm_eval.available(self.config.llm_eval, self.config.data_dir)
        if not names:
            raise UserError(f"no prior task can be run here, and there is nothing to forget: {skipped}")
        for name, reason in skipped.items():
            self.console.print(f"{name} is not run: {reason}", highlight=False)
        models = list(dict.fromkeys(training.model for training in trainings))
        for model in models:
            if self.config.cold_start is not None:
                changes = {**self.config.cold_start, "probe_every": 0, "eval_prompts": 0}
                stage(self.console, self.config, self._of("cold_start", model), "llm_sft", model=model, **changes)
            stage(self.console, self.config, self._of("base", model), "llm_eval", model=self._base(model))
        for training in trainings:
            if folder := self._labels(training):
                changes = {"model": self._base(training.model), "seed": training.seed}
                changes["oracle"] = METHODS[training.method][1] == "oracle"
                stage(self.console, self.config, folder, "llm_annotate", **changes)

    def train(self, training: Training) -> None:
        """Carry out a run, or go on with it; it is measured wherever it saves."""
        verb, base = METHODS[training.method][0], self._base(training.model)
        saves = training.changes.get("save_every", self.config[verb].save_every)
        folder = self._labels(training)
        labels = {"annotations": str(folder)} if folder else {}
        changes = {**labels, **training.changes, "model": base, "seed": training.seed, "probe_every": saves}
        stage(self.console, self.config, training.folder, verb, **changes)
        comparison.measure_weights(
            base, training, self.config.checkpoints, lambda spec: weights_of(open_model(spec)), largest=LARGEST
        )

    def evaluate(self, trainings: Sequence[Training]) -> None:
        """Evaluate the checkpoints of runs."""
        for checkpoint, folder in self._evaluations(trainings).items():
            stage(self.console, self.config, folder, "llm_eval", model=str(checkpoint))

    def is_done(self, training: Training) -> bool:
        """Whether a run has ended and been evaluated."""
        folders = self._evaluations([training]).values()
        return training.finished and all((folder / "summary.json").is_file() for folder in folders)

    def outcomes(self, trainings: Sequence[Training]) -> list[Outcome]:
        """The bases and the checkpoints of the runs that are done."""
        found = []
        for model in dict.fromkeys(training.model for training in trainings):
            folder = self._of("base", model)
            base = self._base(model)
            earned, seed = self._earned(folder), self.config.seed
            found.append(Outcome.of_base("language", base, earned, seed, run=folder.name, model=model))
        done = [training for training in trainings if self.is_done(training)]
        for training in done:
            folders = self._evaluations([training])
            found += comparison.outcomes_of(
                "language", training, self.config.checkpoints, lambda path, at=folders: self._earned(at[path])
            )
        return found if done else []

    def probed(self, trainings: Sequence[Training]) -> dict[str, int]:
        """The number of completions at which the finished runs were measured."""
        finished = next(training for training in trainings if training.finished)
        summary = json.loads((finished.folder / "summary.json").read_text())
        return {"completions": summary["forward_kl"]["completions"]}

    def _base(self, model: str) -> str:
        """What the trainings of a model start from."""
        return model if self.config.cold_start is None else str(self._of("cold_start", model))

    def _of(self, name: str, model: str) -> Path:
        models = list(dict.fromkeys(self.config.axes.get("model", [model])))
        return self.out / (f"{name}_{models.index(model) + 1}" if len(models) > 1 else name)

    def _labels(self, training: Training) -> Path | None:
        """Where the study's own labels for a run are; None where it needs none."""
        kind = METHODS[training.method][1]
        if kind is None:
            return None
        name = self._of(kind, training.model).name
        return self.out / (name + training.folder.name.removeprefix(training.setting))

    def _evaluations(self, trainings: Sequence[Training]) -> dict[Path, Path]:
        """By checkpoint, the folder in which it is evaluated."""
        return {
            path: training.folder.with_name(f"{training.folder.name}_{path.name}")
            for training in trainings
            for path in training.checkpoints(self.config.checkpoints)
        }

    def _earned(self, folder: Path) -> Kinds:
        """What each example of every task earned in an evaluation."""
        answers = {task: np.array(own) for task, own in json.loads((folder / "answers.json").read_text()).items()}
        new = {task: own for task, own in answers.items() if task == self.config.task}
        kinds: dict[str, Any] = {"new": new, "prior": {task: answers[task] for task in answers if task not in new}}
        return {kind: {ANSWERS.headlined: own} for kind, own in kinds.items()}
