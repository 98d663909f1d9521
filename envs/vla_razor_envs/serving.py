"""What a simulation worker runs, and the memory that it shares with its parent.

The loop runs in the interpreter that owns the environments: this project's (pool.py) or that of the user's SimplerEnv
(simpler_worker.py). So it needs no more than Python 3.10 and numpy 1 or 2, and imports nothing of this package.
"""

from __future__ import annotations

import contextlib
import mmap
import pickle
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from typing import Any

import numpy as np

Layout = dict[str, tuple[tuple[int, ...], str]]  # name -> shape and dtype of one shared array


def serve(connection: Any, build: Callable[[], tuple[dict[int, Any], Any]], *, foreign: bool = False) -> None:
    """A worker's life: build the environments, describe them, then answer until the parent hangs up.

    `build` returns the environments by slot, and their description for the parent. `foreign` says that the parent runs
    in another interpreter, which may lack the classes of errors that are not Python's own.
    """
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        try:
            envs, description = build()
        except Exception as error:
            connection.send((_portable(error, foreign), 0.0))
            return
        connection.send((description, 0.0))
        arrays = SharedArrays(*connection.recv())
        slots = {index: _Slot(index, env, arrays) for index, env in envs.items()}
        while True:
            steps, resets, unseen = connection.recv()
            begin = time.process_time()  # CPU time of all threads: waiting for the parent or for a core does not count
            reply = _answer(slots, steps, resets, unseen, foreign)
            connection.send((reply, time.process_time() - begin))


@dataclass
class _Slot:
    index: int
    env: Any
    arrays: SharedArrays

    def __post_init__(self) -> None:
        own = getattr(self.env, "unwrapped", self.env)
        self.step_unseen, self.observe = (getattr(own, name, None) for name in ("step_unseen", "observe"))

    def step(self, *, unseen: bool) -> tuple[Any, ...]:
        """A control step. Where nobody will look at its observation, or can do so later by the environment's `observe`,
        the environment's `step_unseen` takes it, if there is one: a `step` that renders nothing.
        """
        step = self.step_unseen if unseen or self.observe else None
        observation, *outcome = (step or self.env.step)(self.arrays.actions[self.index].copy())
        if observation is not None:
            self.arrays.write(self.index, observation)
        reward, terminated, truncated, info = outcome
        return self.index, float(reward), bool(terminated), bool(truncated), info

    def look(self) -> None:
        """Fetches the observation that a step has left out."""
        if self.step_unseen and self.observe:
            self.arrays.write(self.index, self.observe())

    def reset(self, seed: int | None, options: dict[str, Any]) -> tuple[Any, ...]:
        observation, info = self.env.reset(seed=seed, options=options)
        self.arrays.write(self.index, observation)
        return self.index, 0.0, False, False, info


def _answer(slots: dict[int, _Slot], steps: list[int], resets: dict[int, Any], unseen: list[int], foreign: bool) -> Any:
    try:
        # All are simulated before any is rendered: a core's caches do not hold the code of both.
        stepped = [slots[index].step(unseen=index in unseen) for index in steps]
        for index in steps:
            if index not in unseen:
                slots[index].look()
        return stepped + [slots[index].reset(*start) for index, start in resets.items()]
    except Exception as error:
        return _portable(error, foreign)


def _portable(error: Exception, foreign: bool) -> Exception:
    """The error with its traceback as a note, or a RuntimeError with its text where its class cannot be pickled."""
    text = traceback.format_exc()
    if foreign and not (type(error).__module__ == "builtins" and all(isinstance(a, (str, int)) for a in error.args)):
        return RuntimeError(text)
    error.__notes__ = [f"In a simulation worker:\n{text}"]  # what add_note does, which Python 3.10 lacks
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(text)
    return error


class SharedArrays:
    """Arrays in one block of shared memory: made by the parent (no `name`), attached to by the workers."""

    def __init__(self, layout: Layout, name: str | None = None):
        sizes = [int(np.prod(shape)) * np.dtype(dtype).itemsize for shape, dtype in layout.values()]
        ends = np.cumsum([-(-size // 64) * 64 for size in sizes])  # each array begins on a cache line
        self.layout = layout
        if name is None:
            self.memory = SharedMemory(create=True, size=int(ends[-1]))
            self.name, block = self.memory.name, self.memory.buf
        else:
            # Before Python 3.13, SharedMemory(name) would remove the block when an unrelated process that uses it ends.
            with Path("/dev/shm", name).open("r+b") as file:
                self.name, block = name, mmap.mmap(file.fileno(), 0)
        self._arrays = {
            key: np.ndarray(shape, dtype, block, int(begin))
            for (key, (shape, dtype)), begin in zip(layout.items(), [0, *ends[:-1]], strict=True)
        }

    @property
    def actions(self) -> np.ndarray:
        return self._arrays["action"]

    def write(self, index: int, observation: Mapping[str, np.ndarray]) -> None:
        for key, value in observation.items():
            self._arrays[key][index] = value

    def copy_observations(self) -> dict[str, np.ndarray]:
        return {key: array.copy() for key, array in self._arrays.items() if key != "action"}

    def destroy(self) -> None:
        """Frees the block; for the one that made it."""
        self._arrays.clear()  # a block that still has views cannot be closed
        self.memory.close()
        self.memory.unlink()
