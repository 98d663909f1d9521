"""From a scene's configuration to its environments: how they are made, and what decides how they behave."""

from __future__ import annotations

import hashlib
import importlib
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import gymnasium
import numpy as np
import torch
from gymnasium.envs.registration import EnvSpec
from omegaconf import OmegaConf

from vla_razor.config import cameras_in, suite_in
from vla_razor.devices import device_named, simulation_device
from vla_razor.errors import RunFailed, UserError
from vla_razor.policies import Policy
from vla_razor.policies.observations import cameras_of
from vla_razor.policies.trainable import Trainable

POOL = "vla_razor_envs.pool:PoolVectorEnv"
"""Runs environments without a vector entry point of their own, on the CPU."""
TOLD = {"instruction", "success"}
"""Keys that an environment's info must have."""


class VectorEnv(Protocol):
    """What a rollout needs of a vector environment; `make_vector_env` makes one."""

    num_envs: int
    single_action_space: Any  # with `shape`: (D,)
    setup: Any  # with `control_hz`, `horizon` and `camera.name`; where there are several, `cameras`, each with its name
    groups: list[list[int]]

    def send(
        self,
        actions: np.ndarray,
        active: np.ndarray,
        starts: Mapping[int, tuple[int, dict[str, Any]]],
        unseen: Collection[int] = (),
    ) -> None:
        """Begin to step active slots, and to reset those of `starts` (slot -> seed, reset options). Nobody looks at the
        slots of `unseen` after their step, so that they need not be rendered.
        """
        ...

    def receive(self) -> tuple:
        """The result of `step` for the slots that were sent first and have not been received."""
        ...

    def close(self) -> None: ...


def make_vector_env(
    env_config: Mapping[str, Any],
    num_envs: int,
    num_workers: int,
    device: str | torch.device,
    cameras: Sequence[str] | None = None,
) -> VectorEnv:
    """The vector environment of a config (`id`, `make`): a pool of CPU workers, or ManiSkill's batch on a GPU.

    Where `make` names no device, tasks are simulated on the `device` of the policy (cpu, cuda, cuda:N, or auto for a
    GPU where there is one) if that has been checked on this machine (`devices.simulation_device`), else on the CPU. An
    environment without a vector entry point runs in a pool of CPU workers. Of the scene's cameras those in `cameras`
    are rendered (`cameras_for`), by default the first; an environment that is registered with a keyword argument
    `cameras` is told them.

    Raises UserError where there is no such environment, camera or device, a keyword argument is refused, or nothing can
    be rendered; RunFailed where a worker dies before it has begun.
    """
    make, spec = env_config["make"], env_spec(env_config["id"])
    kwargs: Any = OmegaConf.to_container(make) if OmegaConf.is_config(make) else dict(make)
    where = {"num_workers": num_workers, "device": str(simulated_on(env_config, device))}
    kwargs.pop("device", None)
    first = cameras_in(env_config)[:1]
    if "cameras" in spec.kwargs:
        kwargs.setdefault("cameras", list(cameras or first))
    elif cameras and list(cameras) != first:
        raise UserError(f"{env_config['id']} renders {first[0]} alone; asked for {', '.join(cameras)}.")
    if spec.vector_entry_point is None:
        where["env_id"], spec = env_config["id"], replace(spec, vector_entry_point=POOL)
        del where["device"]
    try:
        return gymnasium.make_vec(spec, num_envs, "vector_entry_point", **where, **kwargs)  # pyright: ignore
    except (ValueError, TypeError, gymnasium.error.Error) as error:
        raise UserError(f"{env_config['id']}: {error}") from error
    except RuntimeError as error:
        if type(error).__name__ == "RenderingUnavailable":
            raise UserError(str(error)) from error
        if type(error).__name__ == "WorkerLost":
            raise RunFailed(f"{error}: killed, or out of memory. Fewer num_workers or num_envs take less.") from error
        raise


def cameras_for(env_config: Mapping[str, Any], *policies: Policy, also: Sequence[str] = ()) -> list[str]:
    """The cameras of a scene that any of the policies reads, and those that are `also` wanted. Raises UserError where
    the scene lacks one of the latter.
    """
    known = cameras_in(env_config)
    if missing := [camera for camera in also if camera not in known]:
        raise UserError(f"cameras=[{','.join(also)}]: there is no {missing[0]}; expected some of {', '.join(known)}.")
    read = {camera for policy in policies for camera in cameras_of(policy, known)}
    return [camera for camera in known if camera in read or camera in also]


def cameras_shown(envs: VectorEnv) -> list[str]:
    """The names of the cameras that environments show. The observations' `image` is that of the first one; pictures of
    the others go by their camera's name.
    """
    cameras = getattr(envs.setup, "cameras", None) or [getattr(envs.setup, "camera", None)]
    return [getattr(camera, "name", "camera") for camera in cameras]


def hold_of(env_config: Mapping[str, Any]) -> int:
    """For how many control steps success must last to end an episode of a training. 1, the first success, where a
    config of an earlier run does not say.
    """
    return env_config.get("hold", 1)


def simulated_on(env_config: Mapping[str, Any], device: str | torch.device) -> torch.device:
    """Where the environments of a config are simulated: on `make.device` if it is given; else on the policy's `device`,
    if that GPU has been checked to move the task as a CPU does; else on the CPU.
    """
    make = env_config["make"]
    if "device" in make:
        return device_named(make["device"])
    family = env_spec(env_config["id"]).kwargs.get("family", "")
    return simulation_device(device, f"{family} {make.get('robot', 'panda')}")


def env_spec(env_id: str) -> EnvSpec:
    """What Gymnasium knows of an id; of `module:Namespace/Env-v0`, once the module has been imported.

    Raises UserError where there is no such module or id.
    """
    module, _, name = env_id.rpartition(":")
    try:
        if module:
            importlib.import_module(module)
        return gymnasium.spec(name)
    except (ImportError, gymnasium.error.Error) as error:
        raise UserError(f"env.id={env_id}: {error}") from error


def described(env_config: Mapping[str, Any], base: Trainable) -> dict[str, Any]:
    """What decides how the environments of a scene behave beside a policy, in plain values: Gymnasium id, tasks,
    keyword arguments, grid, stored starts, hold, cameras, where they are simulated, and a hash of their sources.
    """
    found = {key: _plain(env_config[key]) for key in ("id", "tasks", "make", "grid")}
    found["make"].pop("device", None)
    found |= {"device": simulated_on(env_config, base.device).type, "sources": _sources(env_config["id"])}
    if suite := suite_in(found["make"]):
        found["sources"] += _sources(suite["id"])
    found |= {"hold": hold_of(env_config), "cameras": cameras_for(env_config, base)}
    if stored := env_config.get("starts"):
        found |= {"starts": _plain(stored)}
    return found


def _sources(env_id: str) -> str:
    """A hash of the module or package that an environment comes from, assets included: it decides scene and physics."""
    entry = env_spec(env_id).entry_point
    found = find_spec(re.split("[.:]", entry.__module__ if callable(entry) else str(entry))[0])
    if found is None:
        return ""
    folders = [Path(folder) for folder in found.submodule_search_locations or []]
    files = sorted(path for folder in folders for path in folder.rglob("*.*") if path.suffix != ".pyc")
    if not folders and found.origin:
        files = [Path(found.origin)]
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:16]


def _plain(value: Any) -> Any:
    """Without OmegaConf's containers."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, Sequence) and not isinstance(value, str) else value
