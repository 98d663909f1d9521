"""The simulated tasks of vla-razor as Gymnasium environments.

`import gymnasium` finds them through the entry point `gymnasium.envs`; nothing heavy is imported before an environment is made.
"""

from gymnasium.envs.registration import register as _register

TASKS = {"PickCan-v1": "pick_can", "Drawer-v1": "drawer"}


class RenderingUnavailable(RuntimeError):
    """No usable Vulkan device: the scene cannot be built or rendered."""


def register() -> None:
    """Registers the tasks; Gymnasium calls it inside the namespace `vla_razor`."""
    for name, task in TASKS.items():
        _register(
            name,
            entry_point="vla_razor_envs.single:SingleEnv",
            vector_entry_point="vla_razor_envs.vector:make",
            kwargs={"family": task},
            disable_env_checker=True,
            order_enforce=False,
        )
