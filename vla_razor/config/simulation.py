"""The environments of a configuration: who acts in them, which tasks they have, and what a robot brings with it."""

import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from vla_razor import recordings
from vla_razor.config.groups import VERBS
from vla_razor.errors import UserError

_PACKAGE = Path(__file__).resolve().parent.parent
CONFIG_DIR = next(path for path in (_PACKAGE / "configs", _PACKAGE.parent / "configs") if path.is_dir())


def built_in() -> list[str]:
    """The names of the environments that `configs/env` describes."""
    return [path.stem for path in (CONFIG_DIR / "env").glob("*.yaml")]


def scenes(env: DictConfig) -> list[DictConfig]:
    """The environments of an `env` configuration: itself where it names a Gymnasium id, else its parts (`all`)."""
    return [env] if "id" in env else [part for part in env.values() if isinstance(part, DictConfig)]


def environments(config: DictConfig) -> list[DictConfig]:
    """Every scene in a configuration, those of a demo's sections included."""
    envs = [config[key] for key in ("env", "prior") if config.get(key)]
    sections = [config[key] for key in config if key in VERBS]
    return [scene for env in envs for scene in scenes(env)] + [s for part in sections for s in environments(part)]


def robot_of(env: DictConfig) -> str:
    """Who acts in the scenes of an `env` configuration."""
    return robot_in(scenes(env)[0].make)


def robot_in(make: Mapping[str, Any]) -> str:
    """Who acts in a scene that is made with these arguments; those that run SimplerEnv itself know its robot alone, and
    a suite's own is called by its name.
    """
    suite = suite_in(make)
    return suite["name"] if suite else make.get("robot", "google_robot")


def suite_in(make: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The suite of a user's own that a scene's arguments hold, if they do."""
    # Not `in make`: for a key that is not there OmegaConf raises and catches, and so keeps the callers' frames alive.
    return make["suite"] if "suite" in make.keys() else None  # noqa: SIM118


def cameras_in(env: Mapping[str, Any]) -> list[str]:
    """The names of a scene's cameras, of the first one's where there are several; those of earlier runs have one."""
    scene = env if "make" in env else next(part for part in env.values() if isinstance(part, Mapping))
    return list(scene.get("cameras") or [scene.get("camera", "camera")])


def place_robot(config: DictConfig) -> None:
    """Completes the scenes with what `config.robot`, `config.image_size` and `config.sim_backend` say of them."""
    if "robot" not in config:
        return
    settings = OmegaConf.load(CONFIG_DIR / "robot" / f"{config.robot}.yaml")
    for scene in environments(config):
        with open_dict(scene):
            scene.merge_with(settings.get(scene.id, {}))
            if config.image_size is not None:
                scene.make.image_size = config.image_size
            if config.sim_backend != "auto":
                scene.make.device = {"cpu": "cpu", "gpu": "cuda"}[config.sim_backend]


def check(config: DictConfig) -> None:
    """Raises `UserError` for another robot than `config.robot`, or than the one that a recorded suite is of, and for
    tasks that a scene does not have: those that the files of its id name. What those of a user's own id are, nobody
    knows here.
    """
    if config.get("prior") and recordings.is_recorded(config.env) and robot_of(config.prior) != robot_of(config.env):
        raise UserError(
            f"prior={config.prior.name}: it is of {robot_of(config.prior)}, what is learned of {robot_of(config.env)}, "
            "whose actions mean nothing there: prior=null."
        )
    for scene in environments(config):
        robot = scene.make.get("robot", config.robot)
        if robot != config.robot:
            raise UserError(f"env.make.robot={robot}: say robot={robot}, which also sets the scene's area and camera.")
        asked = [scene.tasks] if isinstance(scene.tasks, str) else list(scene.tasks)
        known = _known_tasks().get(_unversioned(scene.id), [])
        if not asked or len(set(asked)) < len(asked) or (known and not set(asked) <= set(known)):
            said = f"[{','.join(map(str, asked))}]"
            has = ", ".join(known) or "tasks of its own"
            raise UserError(f"env.tasks={said}: expected some of what {scene.id} has, each once: {has}.")


def set_prior_apart(config: DictConfig) -> None:
    """A task that is being learned is no prior one; without any left there are none."""
    learned = {task for scene in scenes(config.env) for task in scene.tasks} if "env" in config else set()
    for part in [config, *(config[key] for key in config if key in VERBS)]:
        if part.get("prior"):
            for scene in scenes(part.prior):
                left = [task for task in scene.tasks if task not in learned]
                # By name, with their options, or as a list of names.
                scene.tasks = (
                    {task: scene.tasks[task] for task in left} if isinstance(scene.tasks, DictConfig) else left
                )
            if not any(scene.tasks for scene in scenes(part.prior)):
                part.prior = None


@cache
def _known_tasks() -> dict[str, list[str]]:
    """What the files of each Gymnasium id name, whatever its version."""
    files = [OmegaConf.load(path) for path in (CONFIG_DIR / "env").glob("*.yaml")]
    return {_unversioned(file.id): list(file.tasks) for file in files if "id" in file}


def _unversioned(env_id: str) -> str:
    """A Gymnasium id without its version; SimplerEnv's own task is the same one."""
    return re.sub(r"-v\d+$", "", env_id.replace("/Simpler", "/"))
