"""Batched rollouts. A tick asks the policy once about all running episodes of a group of slots, and free slots start
the next episodes; meanwhile the other group is simulated.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from vla_razor.errors import RunFailed, UserError
from vla_razor.policies import Decisions, Observations, Policy
from vla_razor.policies.observations import cameras_of, check_proprioception
from vla_razor.rollouts.environments import TOLD, VectorEnv, cameras_shown
from vla_razor.rollouts.starts import Noise, Start

RETRIES = 2  # attempts more at an episode whose simulation died


@dataclass
class Episode:
    """What happened from one start in `T` control steps, about which the policy decided `M` times: as often, or less
    often where it decides several steps at once.

    `observations` [M] are what the policy looked at before each decision; in an episode that was watched, what it would
    have looked at before each control step, [T]. They are of all the cameras that the environments show. `tokens`
    [M, A] and their `log_probs` under the policy are None for a policy without tokens; `labels` [M, D] are the actions
    to imitate where they differ from the executed ones, else None. `actions` [T, D] are in environment units; `success`
    [T] is the state after each. `decided` [M] are the control steps before which it decided; None: before each. The
    last decision may reach beyond the episode's end. `lost`: the simulation died each time; nothing was recorded, and
    the episode says nothing about the policy. `elsewhere`: another rank has played it, which alone has its images.
    """

    start: Start
    instruction: str
    observations: Observations
    actions: np.ndarray
    tokens: np.ndarray | None
    log_probs: np.ndarray | None
    labels: np.ndarray | None
    success: np.ndarray
    lost: bool = False
    decided: np.ndarray | None = None
    elsewhere: bool = False

    @property
    def length(self) -> int:
        return len(self.success)

    @property
    def decision_steps(self) -> np.ndarray:
        """The control steps [M] before which the policy decided."""
        return np.arange(self.length) if self.decided is None else self.decided

    @property
    def images(self) -> np.ndarray:
        """The first camera's, uint8 [M or T, H, W, 3]."""
        return self.observations.image()

    @property
    def proprioception(self) -> np.ndarray:
        """Float32 [M or T, P]."""
        assert self.observations.proprioception is not None  # no environment is without it
        return self.observations.proprioception

    @property
    def decided_on(self) -> Observations:
        """The observations [M] of the decisions."""
        steps = self.decision_steps
        return self.observations if len(self.observations) == len(steps) else self.observations[steps]

    def told(self) -> Episode:
        """What other ranks are sent: everything but the images, which are nearly all of it."""
        return replace(self, observations=self.observations.without_images(), elsewhere=True)

    @property
    def success_once(self) -> bool:
        return bool(self.success.any())

    @property
    def success_at_end(self) -> bool:
        return bool(self.length and self.success[-1])


@dataclass
class Timing:
    """Seconds in the policy, seconds waiting for the environments, the rest, and the number of environment steps."""

    policy: float = 0.0
    environment: float = 0.0
    rest: float = 0.0
    env_steps: int = 0

    @property
    def seconds(self) -> float:
        return self.policy + self.environment + self.rest

    @property
    def steps_per_second(self) -> float:
        return self.env_steps / self.seconds if self.seconds else 0.0

    @classmethod
    def together(cls, timings: Sequence[Timing]) -> Timing:
        """The timing of ranks that played at the same time: the slowest's seconds, and the steps of all."""
        slowest = max(timings, key=lambda timing: timing.seconds)
        return replace(slowest, env_steps=sum(timing.env_steps for timing in timings))

    def __add__(self, other: Timing) -> Timing:
        return Timing(
            self.policy + other.policy,
            self.environment + other.environment,
            self.rest + other.rest,
            self.env_steps + other.env_steps,
        )


def rollout(
    envs: VectorEnv,
    policy: Policy,
    starts: Sequence[Start],
    *,
    hold: int | None,
    seed: int,
    watched: Callable[[Start], bool] = lambda start: False,
    progress: Callable[[Episode], None] | None = None,
) -> tuple[list[Episode], Timing]:
    """One episode from every start, in their order, and where the time went.

    Episodes end at the horizon, where the policy stops, or, with `hold`, once success has lasted for so many control
    steps in a row; 1 is the first success. A policy that decides several control steps at once is shown nothing between
    its decisions. For starts that are `watched` these pictures are rendered and kept all the same.

    The batch stays full while starts are left. A start and the seed give the same episode in any slot and beside any
    other episodes, up to the rounding of a model that sees other batch sizes. An episode whose simulation died is
    started again with the same random numbers, up to twice. `progress` is called with each episode as it ends.

    Raises UserError where the environments refuse a start, lack what the policy needs to see, or take actions of
    another length than the policy's; RunFailed where they refuse an action of the policy; ValueError where two starts
    are the same, and so would be their episodes (see `Start.repeat`).
    """
    run = _Run(envs, policy, starts, hold, seed, watched, progress)
    begin, threads = time.perf_counter(), torch.get_num_threads()
    if len(envs.groups) > 1:  # the workers are busy while the policy thinks
        torch.set_num_threads(max(1, threads // 2))
    try:
        for group in envs.groups:
            run.send(group)
        while run.sent:
            run.send(run.receive())
    except ValueError as error:
        if type(error).__name__ == "StartRefused":
            raise UserError(f"a start is refused, see env.grid: {error}.") from error
        if type(error).__name__ == "SuiteRefused":
            raise UserError(f"{error}.") from error
        if type(error).__name__ == "ActionRefused":
            raise RunFailed(f"the policy did what the robot cannot do: {error}.") from error
        raise
    finally:
        torch.set_num_threads(threads)
    run.timing.rest = time.perf_counter() - begin - run.timing.policy - run.timing.environment
    return [run.episodes[index] for index in range(len(starts))], run.timing


@dataclass
class _Recording:
    """A running episode. `noise` are its random numbers and `memory` is the policy's own. `stopped`: the policy wants
    no further step. `ahead` are actions that are decided but not executed yet. `observations` are single rows;
    `decisions` are triples of tokens, log-probabilities and label, made before the control steps `decided`.
    """

    index: int
    noise: Noise
    watched: bool
    attempt: int = 0
    instruction: str = ""
    memory: Any = None
    stopped: bool = False
    ahead: deque[np.ndarray] = field(default_factory=deque)
    observations: list[Observations] = field(default_factory=list)
    decisions: list[tuple[np.ndarray | None, ...]] = field(default_factory=list)
    decided: list[int] = field(default_factory=list)
    actions: list[np.ndarray] = field(default_factory=list)
    success: list[bool] = field(default_factory=list)


@dataclass
class _Run:
    """Which episodes wait, which run in which slot, and the latest observations of the slots."""

    envs: VectorEnv
    policy: Policy
    starts: Sequence[Start]
    hold: int | None
    seed: int
    watched: Callable[[Start], bool]
    progress: Callable[[Episode], None] | None

    def __post_init__(self) -> None:
        self.dims = self.envs.single_action_space.shape
        cameras = cameras_shown(self.envs)
        self.shown = dict(zip(cameras, ["image", *cameras[1:]], strict=True))  # keys of the environments' observations
        self.read = cameras_of(self.policy, cameras)
        self.look = getattr(self.policy, "seen", lambda images: images)
        self.waiting = deque(
            _Recording(index, Noise(self.seed, start), self.watched(start)) for index, start in enumerate(self.starts)
        )
        if len({recording.noise.key for recording in self.waiting}) < len(self.starts):
            raise ValueError("two starts are the same, and so would their episodes be: number them in `repeat`")
        self.running: dict[int, _Recording] = {}
        self.episodes: dict[int, Episode] = {}
        self.sent: deque[tuple[list[int], list[int]]] = deque()  # a group, and the slots of it that step
        self.timing = Timing()
        self.observations: dict[str, np.ndarray] = {}
        self.infos: dict[str, np.ndarray] = {}

    def send(self, group: list[int]) -> None:
        """Step the group's running episodes, and start waiting ones in its free slots."""
        count, slots = self.envs.num_envs, [slot for slot in group if slot in self.running]
        actions, active = np.zeros((count, *self.dims), np.float32), np.zeros(count, bool)
        if undecided := [slot for slot in slots if not self.running[slot].ahead]:
            self._decide(undecided)
        for slot in slots:
            recording = self.running[slot]
            if recording.watched and slot not in undecided:
                recording.observations.append(self._kept([slot], [recording.instruction]))
            active[slot], actions[slot] = True, recording.ahead.popleft()
            recording.actions.append(actions[slot].copy())
        unseen = [slot for slot in slots if self._unseen(self.running[slot])]
        free = [slot for slot in group if slot not in self.running]
        fresh = {slot: self.waiting.popleft() for slot in free[: len(self.waiting)]}
        chosen = {slot: self.starts[recording.index] for slot, recording in fresh.items()}
        if slots or fresh:
            seeds = {slot: (start.seed, dict(start.options)) for slot, start in chosen.items()}
            self.envs.send(actions, active, seeds, unseen)
            self.running |= fresh
            self.sent.append((group, slots))

    def _unseen(self, recording: _Recording) -> bool:
        """Whether nobody will look at the observation after an episode's next step: it is the last one, or the policy
        has already decided on the one after it.
        """
        last = len(recording.actions) == getattr(self.envs.setup, "horizon", None)
        return last or (bool(recording.ahead) and not recording.watched)

    def receive(self) -> list[int]:
        """Receive the group that was sent first, and return it."""
        group, stepped = self.sent.popleft()
        begin = time.perf_counter()
        self.observations, _, _, truncated, self.infos = self.envs.receive()
        self.timing.environment += time.perf_counter() - begin
        shown = {*self.shown.values(), "proprioception"}
        if missing := (shown - self.observations.keys()) | (TOLD - self.infos.keys()):
            expected = f"observations of {', '.join(sorted(shown))} and an info of {', '.join(sorted(TOLD))}"
            raise UserError(f"the environment gives no {', '.join(sorted(missing))}; expected {expected}.")
        check_proprioception(self.policy, self.observations["proprioception"], "the environment")
        self.timing.env_steps += len(stepped)
        # A simulation that has blown up is dead too.
        felt: Any = np.isfinite(self.observations["proprioception"]).all(axis=1)
        for slot in [slot for slot in group if slot in self.running]:
            if self.infos["lost"][slot] or not felt[slot]:
                self._lose(slot)
            elif slot in stepped:
                self._record(slot, bool(truncated[slot]))
            else:
                self.running[slot].instruction = str(self.infos["instruction"][slot])
        return group

    def _decide(self, slots: list[int]) -> None:
        recordings = [self.running[slot] for slot in slots]
        instructions = [recording.instruction for recording in recordings]
        memories = [recording.memory for recording in recordings]
        infos = [{key: values[slot] for key, values in self.infos.items()} for slot in slots]
        generators = [recording.noise.at(len(recording.actions)) for recording in recordings]
        images = {camera: self.observations[self.shown[camera]][slots] for camera in self.read}
        asked = Observations(images, instructions, self.observations["proprioception"][slots], infos)
        begin = time.perf_counter()
        decisions = self.policy.act(asked, generators, memories)
        self._check(decisions, len(slots))
        optional = [_rows(part, len(slots)) for part in (decisions.tokens, decisions.log_probs, decisions.labels)]
        self.timing.policy += time.perf_counter() - begin
        kept = self._kept(slots, instructions, decisions.images or {})
        columns = zip(recordings, decisions.actions, zip(*optional, strict=True), strict=True)
        for index, (recording, actions, row) in enumerate(columns):
            recording.observations.append(kept[index : index + 1])
            recording.decisions.append(row)
            recording.decided.append(len(recording.actions))
            recording.ahead.extend(actions)
            recording.memory = decisions.memories[index] if decisions.memories else None
            recording.stopped = decisions.stops is not None and bool(decisions.stops[index])

    def _check(self, decisions: Any, count: int) -> None:
        """Check that the policy decided, on actions [B, C, D] of the environments' length."""
        if not isinstance(decisions, Decisions):
            kind = type(decisions).__name__
            raise UserError(f"the policy {self.policy.name} gives {kind}; expected vla_razor.policies.Decisions.")
        if not isinstance(decisions.images or {}, Mapping):
            raise UserError(f"the policy {self.policy.name} gives images that are no mapping; expected them by camera.")
        actions = np.asarray(decisions.actions)
        if actions.ndim != 3 or len(actions) != count or not actions.shape[1] or actions.shape[2:] != self.dims:
            expected = f"({count}, steps, {', '.join(map(str, self.dims))})"
            raise UserError(
                f"the policy {self.policy.name} decided on actions of shape {actions.shape}; these environments take "
                f"{expected}: for each of {count} episodes some control steps of {self.dims[0]} numbers."
            )

    def _kept(
        self, slots: list[int], instructions: list[str], looked_at: Mapping[str, np.ndarray] | None = None
    ) -> Observations:
        """What is kept of the observations in slots: pictures as the policy has looked at them, or would look."""
        images = {
            camera: looked_at[camera] if looked_at and camera in looked_at else self.look(self.observations[key][slots])
            for camera, key in self.shown.items()
        }
        return Observations(images, instructions, self.observations["proprioception"][slots])

    def _record(self, slot: int, truncated: bool) -> None:
        recording = self.running[slot]
        recording.success.append(bool(self.infos["success"][slot]))
        held = self.hold is not None and recording.success[-self.hold :] == [True] * self.hold
        if truncated or (recording.stopped and not recording.ahead) or held:
            decided = [
                None if column[0] is None else np.stack(column) for column in zip(*recording.decisions, strict=True)
            ]
            columns = [Observations.joined(recording.observations), np.stack(recording.actions), *decided]
            self._end(slot, columns, lost=False)

    def _lose(self, slot: int) -> None:
        recording = self.running[slot]
        if recording.attempt < RETRIES:
            del self.running[slot]
            again = _Recording(recording.index, recording.noise, recording.watched, recording.attempt + 1)
            self.waiting.appendleft(again)
        else:
            recording.success.clear()
            recording.decided.clear()
            nothing = {camera: self.observations[key][:0] for camera, key in self.shown.items()}
            seen = Observations(nothing, [], self.observations["proprioception"][:0])
            self._end(slot, [seen, np.zeros((0, *self.dims), np.float32), None, None, None], lost=True)

    def _end(self, slot: int, columns: list[Any], lost: bool) -> None:
        recording = self.running.pop(slot)
        success, decided = np.array(recording.success, bool), np.array(recording.decided, int)
        facts = {"lost": lost, "decided": None if len(decided) == len(success) else decided}
        episode = Episode(self.starts[recording.index], recording.instruction, *columns, success=success, **facts)
        self.episodes[recording.index] = episode
        if self.progress:
            self.progress(episode)


def _rows(values: torch.Tensor | np.ndarray | None, count: int) -> Sequence[np.ndarray | None]:
    if values is None:
        return [None] * count
    return list(values.cpu().numpy() if isinstance(values, torch.Tensor) else values)
