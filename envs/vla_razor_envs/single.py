"""A task as `gymnasium.make` gives it: one environment, unbatched numpy."""

import importlib
import os
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces

from . import TASKS, RenderingUnavailable, StartRefused
from .assets import asset_root
from .records import DrawerSetup, PickCanSetup, Setup
from .setups import DRAWER_TASKS, SETUPS
from .variants import varied
from .vector import check_action

REMEDY = "`vla-razor doctor` names the remedy"
FORKED = (
    "this process was forked from one that renders, and would hang: start it by spawn or forkserver, as with "
    'gymnasium.make_vec(..., vectorization_mode="async", vector_kwargs={"context": "spawn"})'
)
ANYWHERE = 10.0
"""A bound on what is measured, in metres and radians: nothing gets that far."""

_renders: int | None = None
"""The process that has begun to render. A fork does not take Vulkan's threads along: whoever waits for them hangs."""


def find_setup(
    family: str,
    robot: str,
    overlay: bool | None = None,
    variant: str | None = None,
    cameras: Sequence[str] | None = None,
) -> Setup:
    """The setup record of a task family and robot, changed as `SingleEnv`'s arguments say. Raises ValueError, which
    names the unknown argument and the known ones.
    """
    robots = [name for task, name in SETUPS if task == family]
    if robot not in robots:
        raise ValueError(f"{family} has no robot {robot!r}; expected one of {', '.join(robots)}")
    if not isinstance(overlay, bool | None):
        raise ValueError(f"overlay is {overlay!r}; expected True, False or None")
    setup = varied(SETUPS[family, robot], family, robot, variant)
    if overlay and not setup.photo:
        what = f"variant {variant}" if variant else f"robot {robot}"
        raise ValueError(f"overlay is True, but {what} has no photograph to stand behind it; expected False or None")
    known = {camera.name: camera for camera in setup.cameras}
    chosen = list(known)[:1] if cameras is None else list(cameras)
    if not chosen or len(set(chosen)) < len(chosen) or not set(chosen) <= set(known):
        raise ValueError(f"cameras is {chosen}; expected some of what {robot} has, each once: {', '.join(known)}")
    setup = replace(setup, cameras=tuple(known[name] for name in chosen))
    return replace(setup, photo=None) if overlay is False else setup


def known_robot(robots: tuple[str, ...], robot: str | None) -> str:
    """The robot that is asked for, or a task's first one where none is. ValueError where it cannot do the task."""
    if robot is not None and robot not in robots:
        others = [f"vla_razor/{name}" for name, (_, known) in TASKS.items() if robot in known]
        hint = f"; {robot} has {', '.join(others)}" if others else ""
        raise ValueError(f"robot is {robot!r}; expected {' or '.join(robots)}{hint}")
    return robot or robots[0]


def check_size(image_size: Any) -> tuple[int, int]:
    """Height and width in pixels. Raises ValueError, which says what was expected."""
    if np.shape(image_size) != (2,) or not all(isinstance(side, int | np.integer) and side > 0 for side in image_size):
        raise ValueError(f"image_size is {image_size!r}; expected height and width in pixels, as in (64, 64)")
    height, width = map(int, image_size)
    return height, width


def check_start(family: str, setup: Setup, start: dict[str, Any]) -> dict[str, Any]:
    """Returns the reset options in plain types. Raises StartRefused, which says which one is wrong and what was
    expected.
    """
    for key, value in start.items():
        if key not in setup.start_keys:
            expected = ", ".join(setup.start_keys)
            raise StartRefused(f"reset option {key!r} is unknown to {family}; expected {expected}")
        if isinstance(setup, PickCanSetup) and key == "object_xy":
            place, (low, high) = np.asarray(value, float), np.transpose([setup.table_x, setup.table_y])
            if place.shape == (2,) and ((low <= place) & (place <= high)).all():
                continue
            table = f"x in {list(setup.table_x)}, y in {list(setup.table_y)} metres"
            raise StartRefused(f"reset option object_xy is {value!r}; expected a place on the table: {table}")
        known = {
            "orientation": tuple(setup.orientations) if isinstance(setup, PickCanSetup) else (),
            "task": DRAWER_TASKS,
            "station": tuple(setup.stations) if isinstance(setup, DrawerSetup) else (),
        }.get(key)
        if known is not None and value not in known:
            raise StartRefused(f"reset option {key} is {value!r}; expected one of {', '.join(known)}")
    return dict(start)


def build(family: str, setup: Setup, image_size: tuple[int, int], task: str | None, device: str, num_envs: int) -> Any:
    """Builds the batched task on `device` ("cpu": one environment; "cuda" or "cuda:N": any number, rendered there too).
    Raises RenderingUnavailable without Vulkan, without a library that the simulator needs, or in a process that was
    forked from one that renders.
    """
    global _renders
    if _renders not in (None, os.getpid()):
        raise RenderingUnavailable(FORKED)
    _renders = os.getpid()
    from .vulkan import use_software_vulkan

    use_software_vulkan()
    module, _, name = setup.task.partition(":")
    try:
        from . import google_robot, panda  # noqa: F401  (registers the robots)

        task_class = getattr(importlib.import_module(module), name)
    except ImportError as error:  # a shared library of the system that mani_skill's own imports need
        raise RenderingUnavailable(f"the simulator cannot be loaded ({error}); {REMEDY}") from error

    somewhere = "gpu" if torch.cuda.is_available() else "cpu"
    where = {"sim_backend": f"physx_{device}", "render_backend": somewhere if device == "cpu" else f"sapien_{device}"}
    try:
        return task_class(setup, image_size, task, num_envs=num_envs, **where)
    except RuntimeError as error:
        if any(sign in str(error).lower() for sign in ("rendering device", "vulkan", "vk::")):
            raise RenderingUnavailable(f"no usable Vulkan device to render the scene ({error}); {REMEDY}") from error
        raise


def find_spaces(setup: Setup, image_size: tuple[int, int]) -> tuple[spaces.Space[Any], spaces.Box]:
    """The observation and action space of one environment."""
    high = np.array([*np.repeat(setup.reach, 3), 1.0], np.float32)
    return seen_space(setup, image_size), spaces.Box(-high, high, dtype=np.float32)


def seen_space(setup: Setup, image_size: tuple[int, int]) -> spaces.Space[Any]:
    """The observations of one environment."""
    names = ["image", *(camera.name for camera in setup.cameras[1:])]
    felt = spaces.Box(-ANYWHERE, ANYWHERE, (8,), np.float32)
    pictures = {name: spaces.Box(0, 255, (*image_size, 3), np.uint8) for name in names}
    return spaces.Dict({**pictures, "proprioception": felt})


def rendered(env: gymnasium.Env, image: np.ndarray) -> np.ndarray | None:
    """The result of Gymnasium's `render`: a copy of the camera's last image, or None, with a warning, without a render
    mode.
    """
    if env.render_mode is None:
        gymnasium.logger.warn(
            'render() shows nothing without a render mode: gymnasium.make(..., render_mode="rgb_array")'
        )
        return None
    return image.copy()


class SingleEnv(gymnasium.Env[dict[str, np.ndarray], np.ndarray]):
    """A task as a plain Gymnasium environment.

    Observation: `image` uint8 [H, W, 3], what the first of the cameras sees, what the others see under their names, and
    `proprioception` float32 [8]. Action: float32 [7], base-frame metres (3),
    axis-angle radians (3), gripper closedness in [-1, 1]; beyond the box the Panda clips it and the Google robot
    refuses it. Reward 0 or 1. `terminated` at success, though stepping on is allowed; `truncated` at the horizon.

    The scene is built when it is first needed, or by `prepare`. Spaces and metadata can be read without it, as
    `gymnasium.vector.AsyncVectorEnv` does before it forks.

    Args:
        family, robots: the task's entry in `vla_razor_envs.TASKS` (set by the registered id).
        robot: which of these robots; the first where None.
        image_size: height and width in pixels.
        task: drawer task at resets that name none.
        orientation: can orientation at resets that name none; drawn from the seed where None.
        station: robot station at resets that name none; drawn from the seed where None.
        overlay: whether a photograph of the real scene is shown behind the robot and the things that it handles; where
            None, it is if there is one.
        variant: one of the changes of `variants.VARIANTS`, such as "darker".
        cameras: the names of those that are rendered, the first one's pictures being the observation's `image`; the
            robot's first where None.
        render_mode: "rgb_array" for the camera's image, or None.

    Raises:
        ValueError: an argument or reset option is not one of the known ones.
        AssetsUnusable: files of the original that the robot needs are not here.
        RenderingUnavailable: there is no usable Vulkan device; when the scene is built.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 5}  # noqa: RUF012  (Gymnasium declares it on instances)

    def __init__(
        self,
        family: str,
        robots: tuple[str, ...],
        robot: str | None = None,
        image_size: tuple[int, int] = (64, 64),
        task: str | None = None,
        orientation: str | None = None,
        station: str | None = None,
        overlay: bool | None = None,
        variant: str | None = None,
        cameras: Sequence[str] | None = None,
        render_mode: str | None = None,
    ) -> None:
        self.family, self.render_mode = family, render_mode
        self.setup = find_setup(family, known_robot(robots, robot), overlay, variant, cameras)
        self.metadata = {**self.metadata, "render_fps": self.setup.control_hz}
        if self.setup.files:
            asset_root(self.setup.files)
        given = {"task": task, "orientation": orientation, "station": station}
        self.default_start = check_start(family, self.setup, {k: v for k, v in given.items() if v is not None})
        self.image_size, self._first_task = check_size(image_size), task
        self.observation_space, self.action_space = find_spaces(self.setup, self.image_size)
        self._image = np.zeros((*self.image_size, 3), np.uint8)
        self._info: dict[str, Any] = {}

    @cached_property
    def task(self) -> Any:
        """The batched task, of one environment."""
        return build(self.family, self.setup, self.image_size, self._first_task, device="cpu", num_envs=1)

    def prepare(self) -> None:
        """Builds the scene, if that has not been done. Raises RenderingUnavailable where there is no Vulkan device."""
        _ = self.task

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Starts an episode. What the options leave open is drawn from the seed, or from the environment's own
        generator where that is None.
        """
        super().reset(seed=seed)
        start = self.default_start | check_start(self.family, self.setup, options or {})
        drawn = int(self.np_random.integers(2**31)) if seed is None else seed
        observation, info = self.task.reset(options={"starts": [{**start, "seed": drawn}]})
        return self._observed(observation), self._described(info)

    def step(self, action: np.ndarray) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        """One control step. ValueError where the action is not seven finite numbers, or lies outside the action box and
        the setup does not clip to it.
        """
        action = check_action(self.setup, self.action_space, action)
        observation, reward, terminated, truncated, info = self.task.step(action[None])
        return self._observed(observation), reward.item(), terminated.item(), truncated.item(), self._described(info)

    def step_unseen(self, action: np.ndarray) -> tuple[None, float, bool, bool, dict[str, Any]]:
        """As `step`, but nothing is rendered and there is no observation, unless `observe` is asked for it."""
        action = check_action(self.setup, self.action_space, action)
        self._info = info = self.task.advance(action[None])
        success, truncated = info["success"].item(), self.task.truncated.item()
        return None, float(success), success, truncated, self._described(info)

    def observe(self) -> dict[str, np.ndarray]:
        """The observation that `step` would have given where `step_unseen` took the last step."""
        return self._observed(self.task.get_obs(self._info))

    def render(self) -> np.ndarray | None:
        """The first camera's last image, uint8 [H, W, 3]; None, with a warning, without a render mode."""
        return rendered(self, self._image)

    def close(self) -> None:
        if task := self.__dict__.pop("task", None):
            task.close()

    def _observed(self, observation: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        seen = {name: values[0].copy() for name, values in observation.items()}
        self._image = seen["image"]
        return seen

    def _described(self, info: dict[str, Any]) -> dict[str, Any]:
        facts = {key: value[0] for key, value in info.items() if isinstance(value, np.ndarray)}
        plain = {key: value.item() if value.ndim == 0 else value.copy() for key, value in facts.items()}
        return {"instruction": self.task.instructions()[0], **plain}
