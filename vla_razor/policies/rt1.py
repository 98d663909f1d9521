"""RT-1 (arXiv 2212.06817) as a policy of the Google robot, the paper's demonstrator: a TensorFlow SavedModel.

TensorFlow lives in a process of its own (`rt1_worker.py`), under this interpreter where the `rt1` extra is installed,
else under the one that VLA_RAZOR_TENSORFLOW_PYTHON names: TensorFlow 2.21 wants an older h5py than this package is
tested with. Before and after the model everything is done as in SimplerEnv: the image is resized with padding to what
the signature says, the instruction is a sentence embedding, every step is a transition, the three actions are
concatenated, a gripper change below 0.01 is none, and the policy may end its episode.
"""

import os
import select
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from vla_razor.errors import RunFailed, UserError
from vla_razor.policies import Decisions, Observations
from vla_razor.policies.rt1_worker import read, write

PYTHON = "VLA_RAZOR_TENSORFLOW_PYTHON"
PATIENCE = 300.0
"""Seconds for TensorFlow and the SavedModel to load."""
TABLE = "embeddings.npz"
STILL = 0.01
WORKER = Path(__file__).with_name("rt1_worker.py")


def is_saved_model(spec: str | Path) -> bool:
    """Whether `spec` is the folder of a TensorFlow SavedModel."""
    return (Path(spec) / "saved_model.pb").is_file()


class State:
    """An episode's recurrent state, which the worker keeps for as long as this exists."""

    def __init__(self, number: int, released: list[int]) -> None:
        self.number = number
        weakref.finalize(self, released.append, number)


class RT1Policy:
    """Decides for all environments at once where the SavedModel's signature takes any batch, else one by one.

    Args:
        folder: the SavedModel: `action(time_step, policy_state)` and `get_initial_state`.
        embeddings: a table of instruction embeddings (.npz, [512] under each instruction) or the folder of the
            Universal Sentence Encoder; None for `embeddings.npz` beside the SavedModel.
        python: an interpreter with TensorFlow; None for `VLA_RAZOR_TENSORFLOW_PYTHON`, else this one.

    Raises `UserError` where any of them is not that.
    """

    def __init__(
        self, folder: str | Path, embeddings: str | Path | None = None, python: str | Path | None = None
    ) -> None:
        self.name = str(folder)
        table = Path(embeddings or Path(folder) / TABLE)
        if not table.exists():
            raise UserError(
                f"{table}: no such file. RT-1 reads instructions as sentence embeddings: give embeddings=FILE.npz, "
                "with 512 numbers under each instruction, or embeddings=DIR of the Universal Sentence Encoder."
            )
        python = str(python or os.environ.get(PYTHON) or sys.executable)
        self._released: list[int] = []
        open_things = ExitStack()
        weakref.finalize(self, open_things.close)
        self._complaints = open_things.enter_context(tempfile.TemporaryFile())  # noqa: SIM115
        self._worker = self._start(python, str(folder), str(table))
        open_things.callback(_stop, self._worker)
        self.facts = self._ask_first(python)

    def act(
        self,
        observations: Observations,
        generators: Sequence[np.random.Generator],
        memories: Sequence[State | None] | None = None,
    ) -> Decisions:
        """Decides for each environment; nothing is random. Raises `RunFailed` where the worker has died."""
        states = [None if memory is None else memory.number for memory in memories or [None] * len(observations)]
        released = self._released[:]
        del self._released[: len(released)]
        head = {"instructions": observations.instructions, "states": states, "released": released}
        answer, arrays = self._exchange(head, np.ascontiguousarray(observations.image()))
        actions, ends = environment_actions(arrays["actions"])
        memories = [State(number, self._released) for number in answer["states"]]
        return Decisions(actions[:, None], memories=memories, stops=ends)

    def _exchange(self, head: dict[str, Any], images: np.ndarray) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        assert self._worker.stdin
        assert self._worker.stdout
        try:
            write(self._worker.stdin, head, images=images)
            answer, arrays = read(self._worker.stdout)
        except (OSError, EOFError) as error:
            raise RunFailed(f"{self.name}: {self._death()}.") from error
        if "error" in answer:
            raise UserError(f"{self.name}: {answer['error']}.")
        return answer, arrays

    def _start(self, python: str, folder: str, table: str) -> "subprocess.Popen[bytes]":
        environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
        command, pipe = [python, str(WORKER), folder, table], subprocess.PIPE
        try:
            return subprocess.Popen(command, env=environment, stdin=pipe, stdout=pipe, stderr=self._complaints)
        except OSError as error:
            raise UserError(f"{PYTHON}={python}: cannot be run ({error.strerror}).") from error

    def _ask_first(self, python: str) -> dict[str, Any]:
        """What the worker says of the model once it is loaded."""
        assert self._worker.stdout
        expected = f"{PYTHON}={python}: expected a Python interpreter with TensorFlow"
        if not select.select([self._worker.stdout], [], [], PATIENCE)[0]:
            raise UserError(f"{expected}; this says nothing for {PATIENCE:g} s.")
        try:
            facts, _ = read(self._worker.stdout)
        except ValueError as error:
            raise UserError(f"{expected}; this prints something else than RT-1's process does.") from error
        except EOFError as error:
            raise UserError(f"{expected}. {self._death()}.") from error
        if facts.get("missing"):
            remedy = f"pip install 'vla-razor[rt1]', or name an interpreter with TensorFlow in {PYTHON}"
            raise UserError(f"RT-1 needs TensorFlow: {facts['error']}. {remedy}.")
        if "error" in facts:
            raise UserError(f"{self.name}: {facts['error']}.")
        return facts

    def _death(self) -> str:
        status = self._worker.wait()
        self._complaints.seek(0)
        last = self._complaints.read().decode(errors="replace").strip().rpartition("\n")[2]
        return f"RT-1's process has died (exit status {status}{': ' if last else ''}{last[:300]})"


def environment_actions(raw: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Environment actions float32 [B, 7], and whether the policy ends its episode with them, bool [B].

    `raw` [B, 10]: displacement (3, metres), rotation (3, used as an axis-angle vector), change of closedness, and
    whether to terminate (3, of which the first decides).
    """
    actions = raw[:, :7].astype(np.float32)
    actions[:, 6] = np.where(np.abs(actions[:, 6]) < STILL, 0.0, actions[:, 6])
    return actions, raw[:, 7] > 0


def _stop(worker: "subprocess.Popen[bytes]") -> None:
    for stream in (worker.stdin, worker.stdout):
        if stream:
            stream.close()
    worker.kill()
    worker.wait()
