"""The simulated tasks of vla-razor as Gymnasium environments.

Importing this package registers them; `gymnasium.make("vla_razor_envs:vla_razor/PickCan-v2")` imports it itself.
Nothing heavy is imported before an environment is made.
"""

import warnings
from typing import Any

from gymnasium.envs.registration import register as _register
from gymnasium.envs.registration import registry as _registry

TASKS = {
    "PickCan-v1": ("pick_can", ("google_robot",)),
    "PickCan-v2": ("pick_can", ("panda",)),  # the can is to be held, and seen better than in the Panda's v1
    "Drawer-v1": ("drawer", ("panda", "google_robot")),
}
"""The family of each task and the robots that know it, the first of them where none is named."""


class RenderingUnavailable(RuntimeError):
    """No usable Vulkan device: the scene cannot be built or rendered."""


class StartRefused(ValueError):
    """A reset option is unknown, or is not one of the values that the scene has."""


class SuiteRefused(ValueError):
    """An environment of a user's cannot be made, or has not what its suite says."""


class ActionRefused(ValueError):
    """An action is not seven finite numbers, or lies outside a box that its robot does not clip to."""


def register() -> None:
    """Registers the tasks with Gymnasium, once; each also as SimplerEnv itself runs it: vla_razor/SimplerPickCan-v1."""
    # Gymnasium takes a newer version for a better one, but this one is another robot's.
    warnings.filterwarnings("ignore", ".*vla_razor/PickCan-v1 is out of date", DeprecationWarning)
    for name, (family, robots) in TASKS.items():
        ours = {"family": family, "robots": robots, "cameras": None}
        _register_task(f"vla_razor/{name}", "vla_razor_envs.single:SingleEnv", "vla_razor_envs.making:make", ours)
        if "google_robot" in robots:
            bridge = "vla_razor_envs.simpler_env"
            theirs = {"family": family}
            _register_task(f"vla_razor/Simpler{name}", f"{bridge}:SimplerEnv", f"{bridge}:make", theirs)

    _register_task("vla_razor/Suite-v0", "vla_razor_envs.suite:SuiteEnv", None, {"cameras": None})


def _register_task(name: str, single: str, vector: str | None, kwargs: dict[str, Any]) -> None:
    if name not in _registry:
        _register(
            name,
            entry_point=single,
            vector_entry_point=vector,
            kwargs=kwargs,
            disable_env_checker=True,
            order_enforce=False,
        )


register()
