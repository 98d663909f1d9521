"""Any Gymnasium environment, shown to a policy as the toolkit's own: an image, proprioception, an instruction, success.

A suite, which is a mapping, describes it: the environment's `id` and `make`; its `tasks` by name, each with the
`instruction` for the policy and further `make` and reset `options`; where the pictures of its `cameras` are found, by
their names, or `image`, that of its only `camera`; where `proprioception` and `success` are; and after how many control
steps an episode ends (`horizon`).
"""

import importlib
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from PIL import Image

from . import StartRefused, SuiteRefused

RENDERED, WHOLE = "render", "observation"
"""Places of an image: the environment's `render`, and the whole observation."""
ENDED = "terminated"
"""The place of success where info does not have it: the episode has terminated with a reward above 0."""


class SuiteEnv(gymnasium.Env[dict[str, np.ndarray], np.ndarray]):
    """The environments of a suite's tasks, each made when it is first asked for; tasks that only the options of reset
    tell apart share one.

    Observation: `image` uint8 [H, W, 3], what the first of the `cameras` shows that are asked for (by default the
    suite's first), what the others show under their names, all resized to `image_size` (height, width) if given, and
    `proprioception` float32 [P]. An environment that is registered with a keyword argument `cameras` is told which are
    asked for. Actions are the environment's own. The reset option `task` names the task, by default the first; all
    other options go to the environment. `terminated` is success. An episode is `truncated` at the horizon, and wherever
    the environment ends it, even with a success.

    Raises SuiteRefused where an environment cannot be made, or shows nothing at the places that the suite names.
    """

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012  (Gymnasium declares it on instances)

    def __init__(
        self,
        suite: Mapping[str, Any],
        image_size: tuple[int, int] | None = None,
        cameras: Sequence[str] | None = None,
        render_mode: str | None = None,
    ) -> None:
        self.suite, self.tasks = suite, suite["tasks"]
        places = dict(suite.get("cameras") or {suite["camera"]: suite["image"]})
        self.cameras = list(places)[:1] if cameras is None else list(cameras)
        if not self.cameras or not set(self.cameras) <= set(places):
            raise SuiteRefused(f"{suite['id']} has the cameras {', '.join(places)}; asked for {self.cameras}")
        self._places = {"image": places[self.cameras[0]], **{camera: places[camera] for camera in self.cameras[1:]}}
        self.image_size, self.render_mode = image_size, render_mode
        self._envs: dict[str, gymnasium.Env[Any, Any]] = {}
        self._task = next(iter(self.tasks))
        env = self._env
        if not isinstance(env.action_space, spaces.Box) or len(env.action_space.shape) != 1:
            raise SuiteRefused(f"{suite['id']} takes actions of {env.action_space}; a policy gives vectors of numbers")
        self.action_space = env.action_space
        observation, _ = env.reset(seed=0, options=self.tasks[self._task]["options"] or None)
        shown = self._shown(observation)
        felt = spaces.Box(-np.inf, np.inf, shown.pop("proprioception").shape, np.float32)
        pictures = {name: spaces.Box(0, 255, picture.shape, np.uint8) for name, picture in shown.items()}
        self.observation_space: Any = spaces.Dict({**pictures, "proprioception": felt})
        named = [SimpleNamespace(name=camera) for camera in self.cameras]
        self.setup = SimpleNamespace(
            control_hz=suite["control_hz"], horizon=suite["horizon"], camera=named[0], cameras=named
        )

    @property
    def _env(self) -> gymnasium.Env[Any, Any]:
        """The environment of the task at hand."""
        modes = {"render_mode": "rgb_array"} if RENDERED in self._places.values() else {}
        made = {**modes, **self.suite["make"], **self.tasks[self._task]["make"]}
        key = repr(made)
        if key not in self._envs:
            module, _, name = self.suite["id"].rpartition(":")
            if module:
                importlib.import_module(module)
            try:
                if "cameras" in gymnasium.spec(name).kwargs:
                    made = {"cameras": self.cameras, **made}
                self._envs[key] = gymnasium.make(name, disable_env_checker=True, **made)
            except Exception as error:  # whatever an environment of the user's does
                raise SuiteRefused(
                    f"{self.suite['id']} with {made} cannot be made ({type(error).__name__}: {error})"
                ) from error
        return self._envs[key]

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Starts an episode of the task that the options name. StartRefused where there is none of that name."""
        super().reset(seed=seed)
        own = dict(options or {})
        self._task = own.pop("task", next(iter(self.tasks)))
        if self._task not in self.tasks:
            raise StartRefused(f"reset option task is {self._task!r}; expected one of {', '.join(self.tasks)}")
        drawn = int(self.np_random.integers(2**31)) if seed is None else seed
        options = {**self.tasks[self._task]["options"], **own}
        observation, info = self._env.reset(seed=drawn, options=options or None)
        self._steps = 0
        return self._shown(observation), self._told(info, success=False)

    def step(self, action: np.ndarray) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        """One control step."""
        observation, reward, success, over, info = self._moved(self._env.step, action)
        return self._shown(observation), reward, success, over, info

    def step_unseen(self, action: np.ndarray) -> tuple[None, float, bool, bool, dict[str, Any]]:
        """One control step without an observation: where the image comes from `render`, nothing is rendered, and an
        environment that has such a step of its own takes that.
        """
        own = self._env.has_wrapper_attr("step_unseen")
        step = self._env.get_wrapper_attr("step_unseen") if own else self._env.step
        _, reward, success, over, info = self._moved(step, action)
        return None, reward, success, over, info

    def render(self) -> np.ndarray | None:
        """What the environment's own `render` gives."""
        found: Any = self._env.render()
        return found

    def close(self) -> None:
        for env in self._envs.values():
            env.close()
        self._envs.clear()

    def _moved(self, step: Callable[..., Any], action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        taken = np.asarray(action, self.action_space.dtype)
        observation, reward, terminated, truncated, info = step(taken)
        reward = float(reward)
        self._steps += 1
        key = self.suite["success"]
        if key != ENDED and key not in info:
            raise SuiteRefused(
                f"{self.suite['id']}: info has no {key!r}; it has {', '.join(sorted(info)) or 'nothing'}"
            )
        success = bool(terminated and reward > 0) if key == ENDED else bool(info[key])
        over = bool(terminated or truncated or self._steps >= self.suite["horizon"])
        return observation, reward, success, over, self._told(info, success=success)

    def _told(self, info: Mapping[str, Any], *, success: bool) -> dict[str, Any]:
        return {"instruction": self.tasks[self._task]["instruction"], "success": success}

    def _shown(self, observation: Any) -> dict[str, np.ndarray]:
        felt, where = np.zeros(0, np.float32), self.suite["proprioception"]
        if where is not None:
            felt = np.asarray(self._part(observation, where), np.float32).ravel()
        pictures = {name: self._picture(observation, place) for name, place in self._places.items()}
        return {**pictures, "proprioception": felt}

    def _picture(self, observation: Any, place: str) -> np.ndarray:
        """The picture uint8 [H, W, 3] at a place, as the policy is to see it."""
        image = np.asarray(self._env.render() if place == RENDERED else self._part(observation, place))
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            found = f"{image.dtype} {list(image.shape)}"
            raise SuiteRefused(f"{self.suite['id']}: its image ({place}) is {found}; expected uint8 [H, W, 3]")
        image = np.rot90(image, self.suite["rotate"] // 90)
        if self.image_size and image.shape[:2] != tuple(self.image_size):
            height, width = self.image_size
            image = np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BOX))
        return np.ascontiguousarray(image)

    def _part(self, observation: Any, place: str) -> Any:
        """What lies at a place of the observation: a key, or keys with dots between them."""
        for key in () if place == WHOLE else place.split("."):
            if not isinstance(observation, Mapping) or key not in observation:
                has = ", ".join(map(str, observation)) if isinstance(observation, Mapping) else "no keys"
                raise SuiteRefused(f"{self.suite['id']}: the observation has no {place!r}; it has {has}")
            observation = observation[key]
        return observation
