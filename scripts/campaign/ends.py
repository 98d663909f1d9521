"""What a finished run holds, without what depends on the clock, so that two of them can be compared."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import yaml

from vla_razor.files import SUMS

OWN = {".lock", "wall_seconds.parquet", SUMS}
"""Files that are not compared: the lock, wall times, and checksums, which are of the files beside them."""
UNLIKE = ("logs/", "tensorboard/", "trainer_state/trainer/")
"""Folders that are not: of what is printed, and of what transformers keeps and rotates by the clock."""
CLOCKED = ("seconds", "per_second", "step_time", "created", "git_commit")
"""What a key of JSON has in its name whose value the clock decides, or where the program was started."""


def held_by(out: Path, places: Mapping[str, str]) -> dict[str, Any]:
    """By file below `out`, what it holds: JSON without clocks, tables as rows, states as tensors, all else as a hash.

    `places` are texts that stand for one another in all of them, such as the folder of a copy and of its original.
    """
    found = {}
    for path in sorted(out.rglob("*")):
        name = str(path.relative_to(out))
        if path.is_file() and path.name not in OWN and not name.startswith(UNLIKE):
            found[name] = _content(path, places)
    return found


def differences(one: Mapping[str, Any], other: Mapping[str, Any], more: str = "") -> list[str]:
    """The files that are not the same in both; beside those of `one` there may be some that begin with `more`."""
    names = {name for name in one.keys() | other.keys() if name in one or not (more and name.startswith(more))}
    return sorted(name for name in names if one.get(name) != other.get(name))


def _content(path: Path, places: Mapping[str, str]) -> Any:
    if path.suffix == ".parquet":
        return [_timeless(row) for row in pq.read_table(path).to_pylist()]
    if path.suffix in (".pt", ".pth"):
        return _tensors(path)
    content = path.read_bytes()
    if path.suffix in (".safetensors", ".h5", ".mp4", ".png", ".bin"):
        return hashlib.sha256(content).hexdigest()
    text = content.decode(errors="replace")
    for there, here in places.items():
        text = text.replace(there, here)
    if path.suffix == ".json":
        return _timeless(json.loads(text))
    if path.suffix == ".jsonl":
        return [_timeless(json.loads(line)) for line in text.splitlines()]
    if path.suffix == ".yaml":
        return yaml.safe_load(text)
    if path.suffix in (".html", ".svg"):  # figures name their parts at random, pages say when they were made
        return "a page or figure"
    return text


def _timeless(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _timeless(item) for key, item in value.items() if not any(word in key for word in CLOCKED)}
    if isinstance(value, list):
        return [_timeless(item) for item in value]
    return value if value == value else "nan"  # which differs from itself


def _tensors(path: Path) -> Any:
    import torch

    def plain(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return hashlib.sha256(value.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes()).hexdigest()
        if isinstance(value, Mapping):
            return {str(key): plain(item) for key, item in value.items() if "seconds" not in str(key)}
        if isinstance(value, list | tuple):
            return [plain(item) for item in value]
        return repr(value)

    try:
        return plain(torch.load(path, map_location="cpu", weights_only=True))
    except Exception:  # the states of random number generators, which Trainer pickles with numpy's
        return "a state that only its maker reads"
