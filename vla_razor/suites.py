"""Task suites from outside: a YAML file (`--env FILE.yaml`, or a name and `--config-dir DIR` with DIR/env/NAME.yaml),
or the name under which an installed package registers one.

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
    cameras: null                     # instead of image and camera, places by name: {front: image, wrist: hand.image}
    starts: null                      # {OPTION: N}: a reset option that numbers N stored start states, from 0
    num_envs: null                    # stepped together at most, unless the command line says more
    convention: null                  # what its actions mean, in the words of vla_razor/conventions.py

A policy acts in the environment's own actions: the action statistics that it uses must be in these units. Where both
the suite and the statistics name their convention, actions are translated.

A package registers a suite as an entry point of the group `vla_razor.suites`: the path of such a file, or a function
that takes the entry point's name and gives a mapping with the keys above.
"""

from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vla_razor.errors import UserError, nearest

GROUP = "vla_razor.suites"
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
    "cameras": None,
    "starts": None,
    "num_envs": None,
    "convention": None,
}
OF_TASK: dict[str, Any] = {"instruction": None, "make": {}, "options": {}}


def is_file(name: str) -> bool:
    """Whether the choice of an environment is a suite's file."""
    return name.endswith((".yaml", ".yml"))


def registered() -> list[str]:
    """The names of the suites that installed packages register. Nothing of theirs is imported."""
    return sorted({entry.name for entry in entry_points(group=GROUP)})


def read(source: str | Path) -> DictConfig:
    """The environment that a suite describes, as the files of `configs/env` describe theirs. `source` is the suite's
    file, or one of the names that are registered.

    Raises `UserError` that names the file or entry point, the line of a file, and what was expected where it does not.
    """
    if is_file(str(source)):
        return _from_file(Path(source), Path(source).stem)
    entry = next(iter(entry_points(group=GROUP, name=str(source))))
    where = f"env={entry.name}: {entry.value}"
    try:
        found = entry.load()
        found = found(entry.name) if callable(found) else found
    except Exception as error:  # whatever a package of somebody's does
        raise UserError(f"{where} gives no suite ({type(error).__name__}: {error}).") from error
    if isinstance(found, str | Path):
        return _from_file(Path(found), entry.name)
    return _env(where, None, found, entry.name)


def _from_file(path: Path, name: str) -> DictConfig:
    try:
        text = path.read_text()
        return _env(path, yaml.compose(text), yaml.safe_load(text), name)
    except OSError as error:
        raise UserError(f"{path}: cannot be read as a task suite ({error.strerror}).") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise UserError(f"{path}{line}: not YAML ({getattr(error, 'problem', error)}).") from error


def _env(where: str | Path, node: Any, given: Any, name: str) -> DictConfig:
    """What is given, checked, as an environment's configuration; `node` is what YAML knows of its lines, or None."""
    suite = _completed(where, node, given, DEFAULTS, "a task suite")
    _check(where, suite)
    if suite["cameras"] and {"image", "camera"} & given.keys():
        raise UserError(f"{where}: cameras names them all; expected no image or camera beside it.")
    suite["tasks"] = {
        task: _completed(where, _at(_at(node, "tasks")[1], task)[1], facts, OF_TASK, f"the task {task}")
        for task, facts in suite["tasks"].items()
    }
    for task, facts in suite["tasks"].items():
        if not isinstance(facts["instruction"], str):
            raise UserError(f"{where}: the task {task} has no instruction; expected a sentence.")
    size, starts, num_envs, said = (suite.pop(key) for key in ("image_size", "starts", "num_envs", "convention"))
    named = {}
    if said:
        from vla_razor import conventions  # not for the help of the command line: it loads jaxtyping

        named = {"convention": conventions.parse(str(where), said).facts()}
    try:
        return OmegaConf.create(
            {
                "name": name,
                "id": ENV_ID,
                "tasks": {task: {"task": task} for task in suite["tasks"]},
                "cameras": list(suite["cameras"] or [suite["camera"]]),
                "make": {"suite": {"name": name, **suite, **named}, "image_size": size},
                "starts": starts,
                "num_envs": num_envs,
                "grid": None,
                "hold": 1,
            }
        )
    except OmegaConfBaseException as error:  # what no configuration can hold, such as an array
        raise UserError(f"{where}: {str(error).splitlines()[0]}; expected what a YAML file could say.") from error


def _completed(where: str | Path, node: Any, given: Any, defaults: dict[str, Any], what: str) -> dict[str, Any]:
    """A mapping with its defaults filled in. Its keys are those of the defaults, and so are the mappings among them."""
    if not isinstance(given, dict):
        raise UserError(f"{where}{_line(node)}: {what} is {given!r}; expected a mapping of {', '.join(defaults)}.")
    for key, value in given.items():
        at = _line(_at(node, key)[0])
        if key not in defaults:
            raise UserError(f"{where}{at}: {what} has no key {key!r}. {nearest(str(key), defaults)}")
        if isinstance(defaults[key], dict) and not isinstance(value, dict):
            raise UserError(f"{where}{at}: {key} is {value!r}; expected a mapping, as in {{a: 1}}.")
    return {**defaults, **given}


def _check(where: str | Path, suite: dict[str, Any]) -> None:
    size = suite["image_size"]
    whole = isinstance(size, list) and len(size) == 2 and all(map(_is_count, size))
    starts, num_envs = suite["starts"], suite["num_envs"]
    cameras = suite["cameras"]
    placed = isinstance(cameras, dict) and bool(cameras) and all(isinstance(place, str) for place in cameras.values())
    counted = isinstance(starts, dict) and len(starts) == 1 and all(map(_is_count, starts.values()))
    rules = {
        "id": (isinstance(suite["id"], str), "a Gymnasium id, as in mytask:mine/Reach-v0"),
        "tasks": (isinstance(suite["tasks"], dict) and bool(suite["tasks"]), "tasks by name, each with an instruction"),
        "image": (isinstance(suite["image"], str), "a key of the observation, observation, or render"),
        "cameras": (
            cameras is None or (placed and not {"image", "proprioception"} & set(cameras or {})),
            "places of images by the names of cameras, none of which is image or proprioception, or null",
        ),
        "success": (isinstance(suite["success"], str), "a key of info, or terminated"),
        "horizon": (_is_count(suite["horizon"]), "a whole number of control steps"),
        "control_hz": (_is_count(suite["control_hz"]), "control steps a second, whole"),
        "image_size": (size is None or whole, "[height, width] in pixels, or null"),
        "rotate": (suite["rotate"] in (0, 90, 180, 270), "0, 90, 180 or 270 degrees"),
        "starts": (starts is None or counted, "one reset option and how many states it numbers, or null"),
        "convention": (
            suite["convention"] is None or isinstance(suite["convention"], dict),
            "a mapping of control, rotation, gripper ..., or null",
        ),
        "num_envs": (num_envs is None or _is_count(num_envs), "a whole number, at least 1, or null"),
    }
    for key, (holds, expected) in rules.items():
        if not holds:
            raise UserError(f"{where}: {key} is {suite[key]!r}; expected {expected}.")


def _is_count(value: Any) -> bool:
    return type(value) is int and value > 0


def _at(node: Any, key: Any) -> tuple[Any, Any]:
    """The nodes of a key and of its value in a mapping of YAML's; None where there is no such key."""
    pairs = node.value if isinstance(node, yaml.MappingNode) else []
    return next((pair for pair in pairs if pair[0].value == str(key)), (None, None))


def _line(node: Any) -> str:
    return f", line {node.start_mark.line + 1}" if node is not None else ""
