"""Reading and writing checkpoint folders: `config.json`, safetensors (one file or shards), statistics."""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import save_torch_state_dict, snapshot_download
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from vla_razor.errors import UserError
from vla_razor.files import atomic_folder

CONFIG_FILE = "config.json"
INDEX_FILE = "model.safetensors.index.json"
WEIGHTS_FILE = "model.safetensors"
STATISTICS_FILE = "dataset_statistics.json"
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")
_HUB_FILES = ("*.safetensors", "*.json", "tokenizer.model")


class NoCheckpoint(UserError):
    """A folder without `config.json`."""


def locate(folder_or_hub_id: str | Path) -> Path:
    """The checkpoint folder. The Hub is asked only for a name of the form `owner/name` that is no local folder."""
    folder = Path(folder_or_hub_id)
    if folder.is_dir():
        return folder
    name = str(folder_or_hub_id)
    if not _HUB_ID.fullmatch(name):
        raise UserError(f"{name}: no such checkpoint folder (and no name of the form owner/name on the Hub).")
    try:
        return Path(snapshot_download(name, allow_patterns=list(_HUB_FILES)))
    except Exception as error:
        reason = str(error).strip().partition("\n")[0]
        raise UserError(f"{name}: no such folder here, and the Hub did not give it: {reason}") from error


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises `NoCheckpoint` if the file is missing, `UserError` if it is none."""
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        raise NoCheckpoint(f"{path.parent}: no {path.name} here; expected a checkpoint folder.") from None
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON ({error}).") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected a JSON object.")
    return content


def read_tensors(folder: Path, device: str) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of the folder's weights, one at a time. Raises `UserError` for missing or broken files."""
    for path in _weight_files(folder):
        with _opened(path, device) as file:
            for key in file.keys():  # noqa: SIM118 (no mapping)
                yield key, file.get_tensor(key)


class StoredWeights(Mapping[str, Tensor]):
    """The weights in a folder by name. Each is read from its file when it is asked for, so that no two need fit into
    memory together. Raises `UserError` for missing or broken files.
    """

    def __init__(self, folder: Path) -> None:
        self._files: dict[str, Path] = {}
        for path in _weight_files(folder):
            with _opened(path) as file:
                self._files |= dict.fromkeys(file.keys(), path)

    def __getitem__(self, name: str) -> Tensor:
        with _opened(self._files[name]) as file:
            return file.get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)


@contextmanager
def _opened(path: Path, device: str = "cpu") -> Iterator[Any]:
    try:
        with safe_open(path, framework="pt", device=device) as file:
            yield file
    except SafetensorError as error:
        raise UserError(f"{path}: damaged or cut short ({error}). Copy or download it again.") from error


def _weight_files(folder: Path) -> list[Path]:
    index = folder / INDEX_FILE
    if not index.is_file():
        if not (folder / WEIGHTS_FILE).is_file():
            raise UserError(f"{folder}: neither {WEIGHTS_FILE} nor {INDEX_FILE} here.")
        return [folder / WEIGHTS_FILE]
    shards = sorted({folder / name for name in read_json(index).get("weight_map", {}).values()})
    missing = [shard.name for shard in shards if not shard.is_file()]
    if missing or not shards:
        raise UserError(f"{folder}: {INDEX_FILE} names shards that are not here: {', '.join(missing) or 'none named'}.")
    return shards


def assign(model: nn.Module, tensors: dict[str, Tensor], folder: Path) -> None:
    """Make `tensors` the model's parameters. Raises `UserError` unless they are exactly the model's."""
    expected = {name: parameter.shape for name, parameter in model.named_parameters()}
    missing, unknown = sorted(expected.keys() - tensors.keys()), sorted(tensors.keys() - expected.keys())
    wrong = [name for name, shape in expected.items() if name in tensors and tensors[name].shape != shape]
    for names, problem in ((missing, "are missing"), (unknown, "are not part of it"), (wrong, "have another shape")):
        if names:
            raise UserError(
                f"{folder}: the weights are not those of the model that config.json describes: {len(names)} tensors "
                f"{problem}, such as {names[0]}."
            )
    model.load_state_dict(tensors, assign=True)


def write_tensors(tensors: dict[str, Tensor], folder: Path, max_shard_size: str | int) -> None:
    """Write safetensors, in shards with an index where they are larger than `max_shard_size`."""
    save_torch_state_dict(tensors, folder, max_shard_size=max_shard_size, metadata={"format": "pt"})


def write_folder(folder: Path, fill: Callable[[Path], None]) -> None:
    """Let `fill` write into a temporary folder, then rename it to `folder`, which must be absent or empty."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} exists and is not empty; choose another folder or remove it.")
    atomic_folder(folder, fill)


def torch_dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
