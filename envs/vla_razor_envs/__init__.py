"""The simulated tasks of vla-razor as Gymnasium environments.

Importing this package registers them; `gymnasium.make("vla_razor_envs:vla_razor/PickCan-v1")` imports it itself.
Nothing heavy is imported before an environment is made.
"""

from gymnasium.envs.registration import register as _register
from gymnasium.envs.registration import registry as _registry

TASKS = {"PickCan-v1": "pick_can", "Drawer-v1": "drawer"}


class RenderingUnavailable(RuntimeError):
    """No usable Vulkan device: the scene cannot be built or rendered."""


class StartRefused(ValueError):
    """A reset option is unknown, or is not one of the values that the scene has."""


class ActionRefused(ValueError):
    """An action is not seven finite numbers, or lies outside a box that its robot does not clip to."""


def register() -> None:
    """Registers the tasks with Gymnasium, once; each also as SimplerEnv itself runs it: vla_razor/SimplerPickCan-v1."""
    for name, task in TASKS.items():
        _register_task(f"vla_razor/{name}", task, "vla_razor_envs.single:SingleEnv", "vla_razor_envs.vector:make")
        bridge = "vla_razor_envs.simpler_env"
        _register_task(f"vla_razor/Simpler{name}", task, f"{bridge}:SimplerEnv", f"{bridge}:make")


def _register_task(name: str, family: str, single: str, vector: str) -> None:
    if name not in _registry:
        _register(
            name,
            entry_point=single,
            vector_entry_point=vector,
            kwargs={"family": family},
            disable_env_checker=True,
            order_enforce=False,
        )


register()
