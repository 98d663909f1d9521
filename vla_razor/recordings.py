"""Task suites that are recorded: nobody can act in them, but their demonstrations can be learned and measured on.

`vla-razor import` writes `dataset.yaml` beside the demonstrations:

    name: my_robot                    # of the dataset, and of its action statistics
    camera: front                     # and, where there are several, cameras: [front, wrist]
    control_hz: 10
    tasks: {pick_the_cube: pick the cube}    # instructions by name

A verb that is given such a folder as its demonstrations or states, and no `env`, takes this for it.
"""

from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf

from vla_razor.errors import UserError
from vla_razor.files import atomic_write

FILE = "dataset.yaml"
ENV_ID = "vla_razor/Recorded-v0"
"""Which Gymnasium does not know."""
HELD_OUT = "held_out"
"""The folder, beside the demonstrations that are learned, of those that are not."""
KINDS = {"name": str, "camera": str, "control_hz": int, "tasks": dict}


def is_recorded(env: Any) -> bool:
    """Whether an environment's configuration is of a recorded suite."""
    return env is not None and env.get("id") == ENV_ID


def describes(folder: str | Path) -> bool:
    """Whether a folder is of a recorded suite."""
    return bool(folder) and (Path(folder) / FILE).is_file()


def write(folder: Path, **facts: Any) -> None:
    """Write `dataset.yaml`, the facts being those above."""
    atomic_write(folder / FILE, yaml.safe_dump(facts, sort_keys=False, allow_unicode=True).encode())


def read_facts(folder: str | Path) -> dict[str, Any]:
    """What `dataset.yaml` says. Raises `UserError` that names what is missing or of another kind."""
    path = Path(folder) / FILE
    try:
        facts = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise UserError(f"{path} cannot be read ({str(error).splitlines()[0]}).") from error
    for key, kind in KINDS.items():
        if not isinstance(facts, dict) or not isinstance(facts.get(key), kind):
            raise UserError(f"{path}: expected {key} ({kind.__name__}), as vla-razor import writes it.")
    return facts


def read(folder: str | Path) -> DictConfig:
    """The recorded suite as an environment's configuration."""
    facts = read_facts(folder)
    return OmegaConf.create(
        {
            "name": facts["name"],
            "id": ENV_ID,
            "tasks": {str(task): {} for task in facts["tasks"]},
            "cameras": facts.get("cameras", [facts["camera"]]),
            "make": {"suite": {"name": facts["name"], "id": ENV_ID}, "image_size": None},
            "starts": None,
            "num_envs": None,
            "grid": None,
            "hold": 1,
        }
    )
