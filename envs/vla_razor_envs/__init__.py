"""The simulated tasks of vla-razor as Gymnasium environments.

Importing this package registers them; `gymnasium.make("vla_razor_envs:vla_razor/PickCan-v1")` imports it itself.
Nothing heavy is imported before an environment is made.
"""

from gymnasium.envs.registration import register as _register
from gymnasium.envs.registration import registry as _registry

TASKS = {"PickCan-v1": "pick_can", "Drawer-v1": "drawer"}


class RenderingUnavailable(RuntimeError):
    """No usable Vulkan device: the scene cannot be built or rendered."""


def register() -> None:
    """Registers the tasks with Gymnasium, once."""
    for name, task in TASKS.items():
        if f"vla_razor/{name}" in _registry:
            continue
        _register(
            f"vla_razor/{name}",
            entry_point="vla_razor_envs.single:SingleEnv",
            vector_entry_point="vla_razor_envs.vector:make",
            kwargs={"family": task},
            disable_env_checker=True,
            order_enforce=False,
        )


register()
