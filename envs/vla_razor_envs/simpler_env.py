"""The original: SimplerEnv's Google-robot tasks, run in the user's own interpreter, with the interface of the port.

SimplerEnv (github.com/simpler-env/SimplerEnv) needs SAPIEN 2.2.2, Python 3.11 at most and numpy below 2, and cannot be
installed beside ManiSkill3. So each worker of the pool is the user's interpreter, running simpler_worker.py; images and
actions travel through shared memory. Whatever the original leaves to chance or to earlier calls is decided here and
passed to it at each reset: the robot's place and colours, the can's place, the photo behind the scene.
"""

import contextlib
import json
import math
import os
import re
import signal
import subprocess
import sys
from collections.abc import Collection, Mapping
from functools import partial
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from . import RenderingUnavailable
from .pool import Face, PoolVectorEnv
from .records import DrawerSetup, PickCanSetup, Setup
from .setups import DRAWER_TASKS
from .single import check_size, check_start, find_setup, rendered, seen_space
from .starts import draw_can, draw_station
from .vector import Start

VARIABLE = "VLA_RAZOR_SIMPLER_PYTHON"
NO_VULKAN = ("vk::", "rendering device", f"exit code {-signal.SIGSEGV}")  # without a driver, SAPIEN 2.2 crashes
REMEDY = "without a GPU, SAPIEN 2.2 needs a software driver and the Vulkan layer of scripts/setup/drop_semaphore_fd.c"
WORKER = Path(__file__).with_name("simpler_worker.py")
ROBOT = "google_robot"
COMMON = {
    "robot": "google_robot_static",
    "control_freq": 3,
    "sim_freq": 513,
    "control_mode": "arm_pd_ee_delta_pose_align_interpolate_by_planner_gripper_pd_joint_target_delta_pos_interpolate_"
    "by_planner",
}
CAN = {**COMMON, "scene_name": "google_pick_coke_can_1_v4"}
DRAWER = {
    **COMMON,
    "scene_name": "dummy_drawer",
    "station_name": "mk_station_recolor",
    "light_mode": "simple",
    "disable_bad_material": True,
}


def make(num_envs: int, family: str, num_workers: int | None = None, device: str = "cpu", **kwargs: Any) -> Any:
    """The vector face; Gymnasium's `make_vec` calls it. `device` is ignored: the original renders where Vulkan does,
    and simulates on the CPU.
    """
    return SimplerVectorEnv(family, num_envs, num_workers=num_workers, **kwargs)


class SimplerVectorEnv(PoolVectorEnv):
    """`num_envs` environments of the original in `num_workers` processes of `python_executable`.

    The interface is `SlotVectorEnv`'s, with the port's observations, actions, reset options and infos. The same seed
    and reset options start the same episode here and in the port.

    Args:
        family: "pick_can" or "drawer" (set by the registered id).
        python_executable: an interpreter that imports `simpler_env`; default: the variable VLA_RAZOR_SIMPLER_PYTHON.
        timeout: seconds after which a worker that has not answered is restarted, and its episodes are lost.
        image_size: height and width in pixels; sizes other than (512, 640) show the same view, stretched.
        task, orientation, station: where a reset names none; drawn from the seed where None (task: open_top_drawer).
        overlay: false for the simulated scene behind robot and object instead of the photo of visual matching.
        arguments: keyword arguments for the original's environment, over those that this class sets, such as
            {"urdf_version": "recolor_tabletop_visual_matching_1"} or {"shader_dir": "rt"}.

    Raises:
        ValueError: no interpreter, one without SimplerEnv, or an argument or reset option that is not a known one.
        RenderingUnavailable: the original finds no usable Vulkan device.
    """

    def __init__(
        self,
        family: str,
        num_envs: int,
        *,
        python_executable: str | os.PathLike[str] | None = None,
        num_workers: int | None = None,
        timeout: float = 120.0,
        image_size: tuple[int, int] = (512, 640),
        task: str | None = None,
        orientation: str | None = None,
        station: str | None = None,
        overlay: bool | None = None,
        arguments: Mapping[str, Any] | None = None,
    ):
        self.family = family
        self.setup: Any = find_setup(family, ROBOT, overlay)
        given = {"task": task, "orientation": orientation, "station": station}
        self.default_start = check_start(family, self.setup, {k: v for k, v in given.items() if v is not None})
        self.image_size = check_size(image_size)
        self.arguments = dict(arguments or {})
        python = find_python(python_executable)
        try:
            self._open(partial(_run, python, self._plan(0, {})), num_envs, num_workers, timeout)
        except OSError as error:  # of the worker: it finds none of its assets
            raise ValueError(str(error)) from error
        except RuntimeError as error:
            if any(sign in str(error) for sign in NO_VULKAN):
                raise RenderingUnavailable(f"SimplerEnv finds no usable Vulkan device ({error}); {REMEDY}") from error
            raise

    def send(
        self, actions: np.ndarray, active: np.ndarray, starts: Mapping[int, Start], unseen: Collection[int] = ()
    ) -> None:
        plans: dict[int, Start] = {}
        for slot, (seed, options) in starts.items():
            drawn = int(self.np_random.integers(2**31)) if seed is None else int(seed)
            plans[slot] = drawn, self._plan(drawn, options)
        super().send(actions, active, plans, unseen)

    def _plan(self, seed: int, options: dict[str, Any]) -> dict[str, Any]:
        """An episode in plain values, as simpler_worker.py takes it."""
        setup, start = self.setup, self.default_start | check_start(self.family, self.setup, options)
        plan = _can_scene(setup, seed, start) if isinstance(setup, PickCanSetup) else _drawer_scene(setup, seed, start)
        return {**plan, "make": {**plan["make"], **self.arguments}, "image_size": list(self.image_size)}

    def _face(self, description: Any) -> Face:
        low, high = (np.array(description[end], np.float32) for end in ("low", "high"))
        return seen_space(self.setup, self.image_size), spaces.Box(low, high), self.setup


class SimplerEnv(gymnasium.Env[dict[str, np.ndarray], np.ndarray]):
    """One environment of the original, unbatched. Arguments, observations and infos are those of `SimplerVectorEnv`;
    `render_mode` is "rgb_array" for the camera's image, or None.

    A step or a reset whose worker died or timed out raises RuntimeError: the episode is lost, and the next reset uses a
    new worker.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 3}  # noqa: RUF012  (Gymnasium declares it on instances)

    def __init__(self, family: str, render_mode: str | None = None, **kwargs: Any) -> None:
        self.render_mode = render_mode
        self.envs = SimplerVectorEnv(family, 1, **kwargs)
        self.setup = self.envs.setup
        self.metadata = {**self.metadata, "render_fps": self.setup.control_hz}
        self.observation_space, self.action_space = self.envs.single_observation_space, self.envs.single_action_space
        self._image = np.zeros((*self.envs.image_size, 3), np.uint8)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        super().reset(seed=seed)
        drawn = int(self.np_random.integers(2**31)) if seed is None else seed
        observations, infos = self.envs.reset(seed=drawn, options=options)
        return self._first(observations, infos)

    def step(self, action: np.ndarray) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        observations, rewards, terminated, truncated, infos = self.envs.step(np.asarray(action)[None])
        observation, info = self._first(observations, infos)
        return observation, float(rewards[0]), bool(terminated[0]), bool(truncated[0]), info

    def render(self) -> np.ndarray | None:
        """The camera's last image, uint8 [H, W, 3]; None, with a warning, without a render mode."""
        return rendered(self, self._image)

    def close(self) -> None:
        self.envs.close()

    def _first(self, observations: dict[str, np.ndarray], infos: dict[str, Any]) -> tuple[dict[str, np.ndarray], dict]:
        if infos.pop("lost")[0]:
            raise RuntimeError("the worker that ran SimplerEnv died or timed out: the episode is lost; reset to go on")
        self._image = observations["image"][0]
        info = {
            key: values[0].item() if isinstance(values[0], np.generic) else values[0] for key, values in infos.items()
        }
        return {key: values[0] for key, values in observations.items()}, info


def find_python(given: str | os.PathLike[str] | None) -> str:
    """The interpreter that is `given`, or named by VLA_RAZOR_SIMPLER_PYTHON.

    Raises ValueError where there is none, or it is no Python from 3.10 on.
    """
    source, python = ("python_executable", given) if given else (VARIABLE, os.environ.get(VARIABLE))
    if not python:
        raise ValueError(
            f"SimplerEnv runs in an interpreter of its own, and none is named: set {VARIABLE}, or python_executable, "
            "to the Python of the environment where it is installed"
        )
    python = str(Path(python).expanduser())
    try:
        asked = [python, "-c", "import sys; print(*sys.version_info[:2])"]
        answer = subprocess.run(asked, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ValueError(f"{source}={python} is not a Python interpreter ({error})") from error
    version = re.search(r"(\d+) (\d+)\s*$", answer.stdout)
    if version is None:
        raise ValueError(f"{source}={python} is not a Python interpreter: it does not run a line of Python")
    if (int(version[1]), int(version[2])) < (3, 10):
        raise ValueError(f"{source}={python} is not a Python of 3.10 or later")
    return python


def _can_scene(setup: PickCanSetup, seed: int, start: dict[str, Any]) -> dict[str, Any]:
    start = draw_can(setup, seed) | start
    placed = {"init_xy": [float(value) for value in start["object_xy"]], "orientation": str(start["orientation"])}
    return {
        "env_id": "GraspSingleOpenedCokeCanInScene-v0",
        "make": CAN,
        "photo": _photo(setup),
        "options": {"robot_init_options": _stand((*setup.robot_xy, 0.0)), "obj_init_options": placed},
    }


def _drawer_scene(setup: DrawerSetup, seed: int, start: dict[str, Any]) -> dict[str, Any]:
    start = {"task": DRAWER_TASKS[0]} | draw_station(setup, seed) | start
    verb, drawer, _ = start["task"].split("_")
    return {
        "env_id": f"{verb.title()}{drawer.title()}DrawerCustomInScene-v0",
        "make": DRAWER,
        "photo": _photo(setup, station=start["station"]),
        "options": {"robot_init_options": _stand(setup.stations[start["station"]])},
    }


def _photo(setup: Setup, **start: str) -> str | None:
    """The photo's file below the original's folder of assets."""
    return setup.photo and setup.photo.format(**start).removeprefix("data/")


def _stand(place: tuple[float, float, float]) -> dict[str, Any]:
    """The robot at x, y, turned about z by half a turn and the yaw."""
    x, y, yaw = place
    return {"init_xy": [x, y], "init_rot_quat": [-math.sin(yaw / 2), 0.0, 0.0, math.cos(yaw / 2)]}


def _run(python: str, plan: dict[str, Any], slots: range) -> tuple[Any, Any]:
    """Starts a worker in another interpreter. What it prints goes to standard error, not among our own output."""
    ours, theirs = Pipe()
    descriptor = theirs.fileno()
    command = [python, str(WORKER), str(descriptor), json.dumps([list(slots), plan])]
    process = _Process(command, pass_fds=[descriptor], stdin=subprocess.DEVNULL, stdout=sys.__stderr__)
    theirs.close()
    return process, ours


class _Process(subprocess.Popen):
    """A program with the interface of multiprocessing's processes."""

    @property
    def exitcode(self) -> int | None:
        return self.returncode

    def join(self, timeout: float | None = None) -> None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(timeout)
