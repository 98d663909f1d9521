"""What a run adds to TRL's trainers: metrics, forward KL on the probe set, checkpoints, and a progress bar."""

import math
import os
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from vla_razor.errors import RunFailed
from vla_razor.files import SUMS, write_sums
from vla_razor.interruption import uninterrupted
from vla_razor.progress import progress
from vla_razor.runs import Run
from vla_razor.study.measures import FORWARD_KL, renamed

TRAINER_FILES = ("optimizer.pt", "scheduler.pt", "trainer_state.json", "training_args.bin", "rng_state*.pth", SUMS)
SHOWN = ("loss", "reward")


class RunCallback(TrainerCallback):
    """Writes what TRL logs to the run, with `measure`'s numbers every `probe_every` steps (0 for never) and at the end.
    `measured` holds the latest of these. `close` it at the end.

    In a single process Ctrl-C and SIGTERM wait for the end of a step, which is then saved. Several processes would have
    to agree on the step; they end at once, without saving.

    Raises RunFailed where the loss is not finite; the last checkpoint stays as it was.
    """

    def __init__(self, run: Run, probe_every: int, measure: Callable[[], dict[str, Any]]) -> None:
        self.run, self.probe_every, self.measure = run, probe_every, measure
        self.measured: dict[str, Any] = {}
        self._bar, self._signals, self._held, self._saved = ExitStack(), ExitStack(), list[int](), -1

    def close(self) -> None:
        """Ends the bar, and stops holding signals back."""
        self._bar.close()
        self._signals.close()

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        name = self.run.config.verb.removeprefix("llm_")
        self.advance = self._bar.enter_context(progress(name, state.max_steps, state.global_step))
        if args.world_size == 1:
            self._held = self._signals.enter_context(uninterrupted())

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        # A signal that came too late for the step before to be saved waits for this one.
        if self._held and self._saved == state.global_step:
            self._signals.close()  # raises KeyboardInterrupt

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        control.should_save |= bool(self._held)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._signals.close()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        scalars = {name: value for name, value in (logs or {}).items() if isinstance(value, int | float)}
        if "train_runtime" in scalars:  # the trainer's closing row repeats what the run knows
            return
        if not all(math.isfinite(scalars.get(name, 0.0)) for name in ("loss", "grad_norm")):
            raise RunFailed(
                f"Step {state.global_step}: the loss is {scalars.get('loss')}, its gradient's norm "
                f"{scalars.get('grad_norm')}. {self.run.path}/checkpoints has the last finite model."
            )
        if "entropy" in scalars:  # TRL's, of what was sampled or taught; the probe set's has the name
            scalars["sampled_entropy"] = scalars.pop("entropy")
        last = state.global_step >= state.max_steps
        if self.probe_every and (state.global_step % self.probe_every == 0 or last):
            self.measured = self.measure()
            scalars |= renamed(self.measured)
        self.run.log(state.global_step, **scalars)
        self.advance(**{name: scalars[name] for name in (*SHOWN, FORWARD_KL) if name in scalars})

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._saved = state.global_step
        saved = trainer_folder(self.run, state.global_step)
        write_sums(saved)  # transformers reads it without looking for damage
        own = {path for pattern in TRAINER_FILES for path in saved.glob(pattern)}

        def fill(folder: Path) -> None:  # with the model's and the tokenizer's files
            for path in [path for path in saved.iterdir() if path not in own and path.is_file()]:
                try:
                    os.link(path, folder / path.name)
                except OSError:  # a file system without hard links
                    shutil.copy2(path, folder / path.name)

        self.run.save(state.global_step, fill, {})


def trainer_folder(run: Run, step: int | None = None) -> Path:
    """Where transformers' Trainer keeps what it needs to resume: the folder of one step, or of all."""
    folder = run.path / "trainer_state" / "trainer"
    return folder if step is None else folder / f"checkpoint-{step}"
