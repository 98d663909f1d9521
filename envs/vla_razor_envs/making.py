"""From a task's family to its vector environment: worker processes on a CPU, or one batch on a GPU."""

from typing import Any

from . import TASKS
from .pool import PoolVectorEnv
from .vector import SlotVectorEnv


def make(
    num_envs: int,
    family: str,
    robots: tuple[str, ...],
    num_workers: int | None = None,
    timeout: float = 60.0,
    device: str = "cpu",
    **kwargs: Any,
) -> SlotVectorEnv:
    """The vector face of the task of a family for some robots; Gymnasium's `make_vec` calls it.

    On a CPU `num_workers` processes (default: one per core) share `num_envs` environments, and one that takes longer
    than `timeout` seconds over a step is restarted. With `device="cuda"` or "cuda:N" ManiSkill simulates the batch on
    the GPU, and both arguments are ignored.
    """
    if device.startswith("cuda"):
        from .native import NativeVectorEnv

        return NativeVectorEnv(family, robots, num_envs, device=device, **kwargs)
    name = next(name for name, task in TASKS.items() if task == (family, robots))
    return PoolVectorEnv(f"vla_razor/{name}", num_envs, num_workers=num_workers, timeout=timeout, **kwargs)
