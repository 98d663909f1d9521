"""The vector face on a CPU: a pool of spawned worker processes.

ManiSkill allows one environment in a CPU simulation, and a forked process that renders hangs. So each of a few
*spawned* processes holds several single environments. Observations and actions travel through shared memory, and
everything else in one small message per worker and control step. The parent never builds a scene: even the spaces come
from a worker's first message.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
import weakref
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import partial
from multiprocessing import get_context, resource_tracker
from multiprocessing.connection import Connection, wait
from types import ModuleType
from typing import Any, NamedTuple

import gymnasium
import numpy as np
from gymnasium import Space, spaces

from .serving import SharedArrays, serve
from .vector import SlotVectorEnv, Start, Tick, check_action

# Starts a worker for some slots: its process, with the face of multiprocessing's, and the connection to it.
Launch = Callable[[range], tuple[Any, Any]]
Face = tuple[Space, Space, Any]  # an environment's observation and action space, and its setup record

# Threads of several busy processes slow each other down four to seven times.
WORKER_ENVIRONMENT = {
    "LP_NUM_THREADS": "0",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "passive",
}
START_TIMEOUT = 900.0  # seconds for a worker's imports, shaders and scenes, on a machine that is busy with other things


class PoolVectorEnv(SlotVectorEnv):
    """Each slot holds an environment `gymnasium.make(env_id, **kwargs)` in one of `num_workers` processes.

    A worker that dies, or takes longer than `timeout` seconds over a tick, is restarted and its slots are lost. An
    invalid action is refused before any slot has moved. An error that an environment raises is raised here with the
    same type and text; reset the slots before going on. The pool ends its processes and frees its shared memory when it
    is closed, when it is collected, and when the interpreter exits.
    """

    def __init__(
        self, env_id: str, num_envs: int, *, num_workers: int | None = None, timeout: float = 60.0, **kwargs: Any
    ):
        self._open(partial(_spawn, env_id, kwargs), num_envs, num_workers, timeout)

    def _open(self, launch: Launch, num_envs: int, num_workers: int | None, timeout: float) -> None:
        """Starts the workers. They keep `launch`, which must hold no reference to this object, or it is never freed."""
        if num_envs < 1 or (num_workers is not None and num_workers < 1):
            raise ValueError(f"num_envs={num_envs}, num_workers={num_workers}: expected at least 1 of each")
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        count = min(num_workers or cores, num_envs)
        # Interleaved, so that a partly idle batch keeps every worker busy.
        self._workers = [_Worker(launch, range(index, num_envs, count)) for index in range(count)]
        self._memory: list[SharedArrays] = []
        self._finalizer = weakref.finalize(self, _shut_down, self._workers, self._memory)
        self._infos: dict[str, np.ndarray] = {}
        self._sent: deque[list[_Request]] = deque()
        self.timeout = timeout
        try:
            SlotVectorEnv.__init__(self, num_envs, *self._face(_start(self._workers)[0]))
            # Each worker has slots of both halves.
            self.groups = [half.tolist() for half in np.array_split(np.arange(num_envs), 2) if len(half)]
            if not isinstance(self.observation_space, spaces.Dict):
                raise ValueError(
                    f"the pool serves dictionaries of arrays as observations, not {self.observation_space}"
                )
            parts = {**self.observation_space.spaces, "action": self.action_space}
            layout = {key: (tuple(part.shape or ()), np.dtype(part.dtype).str) for key, part in parts.items()}
            self._memory.append(SharedArrays(layout))
            for worker in self._workers:
                worker.attach(self._arrays)
        except BaseException:
            self._finalizer()
            raise

    def _face(self, description: Any) -> Face:
        """The spaces and setup that this object shows, from its first worker's description."""
        return description

    @property
    def busy_seconds(self) -> list[float]:
        """By worker, the CPU seconds spent inside the environments so far, rendering threads included."""
        return [worker.busy_seconds for worker in self._workers]

    @property
    def worker_pids(self) -> list[int]:
        return [worker.process.pid or 0 for worker in self._workers]

    @property
    def _arrays(self) -> SharedArrays:
        return self._memory[0]

    def send(
        self, actions: np.ndarray, active: np.ndarray, starts: Mapping[int, Start], unseen: Collection[int] = ()
    ) -> None:
        if self.closed:
            raise RuntimeError("the pool is closed")
        actions = check_action(self.setup, self.action_space, actions, active)
        requests: list[_Request] = []
        # All workers are asked before any reply is read, so that they simulate side by side.
        for worker in self._workers:
            resets = {slot: starts[slot] for slot in worker.slots if slot in starts}
            steps = [slot for slot in worker.slots if active[slot] and slot not in starts]  # a slot resets or steps
            if resets or steps:
                self._arrays.actions[steps] = actions[steps]
                worker.ask(steps, resets, [slot for slot in steps if slot in unseen])
                requests.append(_Request(worker, worker.process, [*steps, *resets]))
        # A queue: the rollout sends one half of the slots while the policy decides for the other.
        self._sent.append(requests)

    def receive(self) -> Tick:
        requests = self._sent.popleft()
        replies = self._answers(requests)
        rewards = np.zeros(self.num_envs, np.float32)
        terminated, truncated, lost = (np.zeros(self.num_envs, bool) for _ in range(3))
        for request in requests:
            reply = replies.get(request.worker)  # None also where the worker was restarted since it was asked
            if reply is None:
                lost[request.slots] = True
            elif not isinstance(reply, Exception):
                for slot, reward, done, cut, info in reply:
                    rewards[slot], terminated[slot], truncated[slot] = reward, done, cut
                    for key, value in info.items():
                        if key not in self._infos:  # the pool knows no key before an environment has sent it
                            like = np.asarray(value)
                            numeric = like.dtype.kind in "biuf"
                            shape, dtype = (like.shape, like.dtype) if numeric else ((), np.dtype(object))
                            self._infos[key] = np.zeros((self.num_envs, *shape), dtype)
                        self._infos[key][slot] = value
        if dead := [worker for worker, reply in replies.items() if reply is None]:
            # All slots of a dead worker are lost: now, or in the tick that is still to be received.
            sent = [slot for requests in self._sent for one in requests for slot in one.slots]
            for worker in dead:
                lost[[slot for slot in worker.slots if slot not in sent]] = True
            _start(dead)
            for worker in dead:
                worker.attach(self._arrays)
        for reply in replies.values():
            if isinstance(reply, Exception):
                # The caller will not receive what it sent ahead. Left in the pipes, those replies would be taken for
                # the answers to the next requests.
                while self._sent:
                    self._answers(self._sent.popleft())
                raise reply
        # Copies: the next tick writes into the same memory.
        infos = {key: values.copy() for key, values in self._infos.items()}
        return self._arrays.copy_observations(), rewards, terminated, truncated, {**infos, "lost": lost}

    def _answers(self, requests: list[_Request]) -> dict[_Worker, Any]:
        """The replies of the workers that have not been restarted since they were asked; the others have none."""
        return _replies([one.worker for one in requests if one.worker.process is one.process], self.timeout)

    def close_extras(self, **kwargs: Any) -> None:
        self._finalizer()


class WorkerLost(RuntimeError):
    """A worker has died, or said nothing for `START_TIMEOUT`, before its environments were built."""


class _Worker:
    """The parent's end of one process, which serves the environments of `slots`."""

    process: Any = None
    connection: Any = None

    def __init__(self, launch: Launch, slots: range):
        self.launch, self.slots = launch, slots
        self.busy_seconds = 0.0

    def start(self) -> None:
        self.kill()
        with _inheritance():
            self.process, self.connection = self.launch(self.slots)

    def description(self) -> Any:
        """Waits until the environments are built, and returns what the worker says of them."""
        reply = self.receive() if self.connection.poll(START_TIMEOUT) else None
        if reply is None:
            self.process.join(1)
            raise WorkerLost(f"a simulation worker did not start (exit code {self.process.exitcode})")
        if isinstance(reply, Exception):
            raise reply
        return reply

    def attach(self, arrays: SharedArrays) -> None:
        self.connection.send((arrays.layout, arrays.name))

    def ask(self, steps: list[int], resets: dict[int, Start], unseen: list[int]) -> None:
        with contextlib.suppress(OSError):  # it died while idle, which reading its reply will show
            self.connection.send((steps, resets, unseen))

    def receive(self) -> Any:
        """The reply, an Exception from an environment, or None from a dead worker."""
        try:
            reply, seconds = self.connection.recv()
        except (EOFError, OSError):
            return None
        self.busy_seconds += seconds
        return reply

    def kill(self) -> None:
        # Nothing in a worker is worth an orderly end, and tearing down a scene can itself hang.
        if self.process is not None:
            self.connection.close()
            self.process.kill()
            self.process.join()


class _Request(NamedTuple):
    """The slots that a worker was asked about, and the process that was to answer."""

    worker: _Worker
    process: Any
    slots: list[int]


def _start(workers: list[_Worker]) -> list[Any]:
    """Starts the workers side by side, and returns what each says of its environments."""
    for worker in workers:
        worker.start()
    return [worker.description() for worker in workers]


def _replies(workers: list[_Worker], timeout: float) -> dict[_Worker, Any]:
    """What each worker answered; None for one that died or is not done within `timeout` seconds."""
    deadline = time.monotonic() + timeout  # one for all: a slow worker takes no time from another's
    replies: dict[_Worker, Any] = dict.fromkeys(workers)
    pending = {worker.connection: worker for worker in workers}
    while pending and (ready := wait(list(pending), max(0.0, deadline - time.monotonic()))):
        for connection in ready:
            worker = pending.pop(connection)
            replies[worker] = worker.receive()
    return replies


def _shut_down(workers: list[_Worker], memory: list[SharedArrays]) -> None:
    for worker in workers:
        worker.kill()
    for arrays in memory:
        arrays.destroy()


@contextlib.contextmanager
def _inheritance() -> Iterator[None]:
    """What a new process inherits: the thread settings, before it imports anything, and a blocked Ctrl-C, which is the
    parent's to handle.
    """
    resource_tracker.ensure_running()  # starting it later would unblock the signal
    before = {name: os.environ.get(name) for name in WORKER_ENVIRONMENT}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    main = sys.modules["__main__"]
    os.environ.update(WORKER_ENVIRONMENT)
    # A spawned process imports the caller's main module again. That may be heavy, and a script without a guard would
    # start a pool of its own there.
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main
        for name in before:
            del os.environ[name]
        os.environ.update({name: value for name, value in before.items() if value is not None})
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _spawn(env_id: str, kwargs: dict[str, Any], slots: range) -> tuple[Any, Connection]:
    """A worker of this interpreter."""
    context = get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, env_id, kwargs, slots), daemon=True)
    process.start()
    theirs.close()
    return process, ours


def _serve(connection: Connection, env_id: str, kwargs: dict[str, Any], indices: range) -> None:
    def build() -> tuple[dict[int, gymnasium.Env], Face]:
        envs = {index: gymnasium.make(env_id, **kwargs) for index in indices}
        for env in envs.values():  # what takes long, or fails, does so now
            getattr(env.unwrapped, "prepare", bool)()
        first = envs[indices[0]]
        return envs, (first.observation_space, first.action_space, getattr(first.unwrapped, "setup", None))

    serve(connection, build)
