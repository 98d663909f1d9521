"""Task suites of a user's own, from YAML: `--env FILE.yaml`, or a name and `--config-dir DIR` with DIR/env/NAME.yaml.

    id: mytask:mine/Reach-v0          # any Gymnasium id; the module before the colon is imported first
    make: {}                          # keyword arguments of gymnasium.make
    tasks:
      reach_left: {instruction: reach to the left, options: {side: left}, make: {}}   # reset options; further arguments
    image: image                      # a key of the observation (a.b where they are nested), `observation`, or `render`
    proprioception: null              # likewise, or null
    success: success                  # a key of info, or `terminated`: the episode ended with a reward above 0
    horizon: 100                      # control steps
    control_hz: 10
    image_size: null                  # [height, width] to which images are resized
    rotate: 0                         # degrees by which they are turned: 0, 90, 180 or 270
    camera: camera                    # what demonstrations call it

A policy acts in the environment's own actions: the action statistics that it uses must be in these units.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf

from vla_razor.errors import UserError, nearest

ENV_ID = "vla_razor/Suite-v0"
DEFAULTS: dict[str, Any] = {
    "id": None,
    "make": {},
    "tasks": None,
    "image": "image",
    "proprioception": None,
    "success": "success",
    "horizon": 100,
    "control_hz": 10,
    "image_size": None,
    "rotate": 0,
    "camera": "camera",
}
OF_TASK: dict[str, Any] = {"instruction": None, "make": {}, "options": {}}


def is_file(name: str) -> bool:
    """Whether the choice of an environment is a suite's file."""
    return name.endswith((".yaml", ".yml"))


def read(path: str | Path) -> DictConfig:
    """The environment that a suite's file describes, as the files of `configs/env` describe theirs.

    Raises `UserError` that names the file, the line and what was expected where it does not.
    """
    path = Path(path)
    try:
        text = path.read_text()
        node = yaml.compose(text)
        given = yaml.safe_load(text)
    except OSError as error:
        raise UserError(f"{path}: cannot be read as a task suite ({error.strerror}).") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise UserError(f"{path}{line}: not YAML ({getattr(error, 'problem', error)}).") from error
    suite = _completed(path, node, given, DEFAULTS, "a task suite")
    _check(path, suite)
    tasks = suite["tasks"]
    for name, task in tasks.items():
        where = _value_at(_value_at(node, "tasks"), name)
        tasks[name] = _completed(path, where, task, OF_TASK, f"the task {name}")
        if not isinstance(tasks[name]["instruction"], str):
            raise UserError(f"{path}: the task {name} has no instruction; expected a sentence.")
    size = suite.pop("image_size")
    return OmegaConf.create(
        {
            "name": path.stem,
            "id": ENV_ID,
            "tasks": {name: {"task": name} for name in tasks},
            "camera": suite["camera"],
            "make": {"suite": {"name": path.stem, **suite}, "image_size": size},
            "grid": None,
            "hold": 1,
        }
    )


def _completed(path: Path, node: Any, given: Any, defaults: dict[str, Any], what: str) -> dict[str, Any]:
    """A mapping with its defaults filled in. Its keys are those of the defaults, and so are the mappings among them."""
    if not isinstance(given, dict):
        raise UserError(f"{path}{_line(node)}: {what} is {given!r}; expected a mapping of {', '.join(defaults)}.")
    for key, value in given.items():
        at = _line(_key_at(node, key))
        if key not in defaults:
            raise UserError(f"{path}{at}: {what} has no key {key!r}. {nearest(str(key), defaults)}")
        if isinstance(defaults[key], dict) and not isinstance(value, dict):
            raise UserError(f"{path}{at}: {key} is {value!r}; expected a mapping, as in {{a: 1}}.")
    return {**defaults, **given}


def _check(path: Path, suite: dict[str, Any]) -> None:
    size = suite["image_size"]
    whole = isinstance(size, list) and len(size) == 2 and all(type(side) is int and side > 0 for side in size)
    rules = {
        "id": (isinstance(suite["id"], str), "a Gymnasium id, as in mytask:mine/Reach-v0"),
        "tasks": (isinstance(suite["tasks"], dict) and bool(suite["tasks"]), "tasks by name, each with an instruction"),
        "image": (isinstance(suite["image"], str), "a key of the observation, observation, or render"),
        "success": (isinstance(suite["success"], str), "a key of info, or terminated"),
        "horizon": (type(suite["horizon"]) is int and suite["horizon"] > 0, "a whole number of control steps"),
        "control_hz": (type(suite["control_hz"]) is int and suite["control_hz"] > 0, "control steps a second, whole"),
        "image_size": (size is None or whole, "[height, width] in pixels, or null"),
        "rotate": (suite["rotate"] in (0, 90, 180, 270), "0, 90, 180 or 270 degrees"),
    }
    for key, (holds, expected) in rules.items():
        if not holds:
            raise UserError(f"{path}: {key} is {suite[key]!r}; expected {expected}.")


def _pairs(node: Any) -> list[tuple[Any, Any]]:
    return node.value if isinstance(node, yaml.MappingNode) else []


def _key_at(node: Any, key: Any) -> Any:
    return next((name for name, _ in _pairs(node) if name.value == str(key)), None)


def _value_at(node: Any, key: Any) -> Any:
    return next((value for name, value in _pairs(node) if name.value == str(key)), None)


def _line(node: Any) -> str:
    return f", line {node.start_mark.line + 1}" if node is not None else ""
