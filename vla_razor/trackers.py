"""Where a run's scalars go beside metrics.jsonl: TensorBoard, Weights & Biases, trackio or nowhere."""

import importlib
import secrets
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol

from omegaconf import DictConfig, OmegaConf

from vla_razor.errors import UserError
from vla_razor.files import atomic_write

IDENTITY = "tracker_id"
"""The file of a run folder that holds what an online tracker knows the run by."""


class Tracker(Protocol):
    """Takes the scalars of a step; `close` flushes them."""

    def log(self, step: int, scalars: Mapping[str, float]) -> None: ...
    def close(self) -> None: ...


def check(config: DictConfig) -> None:
    """Before any work is done: whether `config.logger` can be used here.

    Raises UserError where its package is not installed, or Weights & Biases has no key and is not told to stay offline.
    """
    name = config.get("logger", "none")
    if name in ("wandb", "trackio") and find_spec(name) is None:
        raise UserError(f"logger={name}: {name} is not installed; pip install 'vla-razor[{name}]', or logger=none.")
    if name == "wandb":
        module = importlib.import_module(name)
        try:
            module.login()
        except module.errors.Error as error:
            remedy = "wandb login, WANDB_API_KEY=..., WANDB_MODE=offline, or logger=none"
            raise UserError(f"logger=wandb: {error} Any of these will do: {remedy}.") from error


def make_tracker(folder: Path, config: DictConfig, step: int) -> Tracker:
    """The tracker that `config.logger` names, for a run in `folder` that goes on after `step`."""
    name = config.get("logger", "none")
    if name == "none":
        return _Nowhere()
    return _TensorBoard(folder, step) if name == "tensorboard" else _Online(name, folder, config)


class _Nowhere:
    def log(self, step: int, scalars: Mapping[str, float]) -> None: ...
    def close(self) -> None: ...


class _TensorBoard:
    def __init__(self, folder: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # Events of steps that are about to be taken again are hidden.
        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)

    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        for name, value in scalars.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class _Online:
    """Weights & Biases, or trackio, which has nearly the same interface.

    A run that is resumed continues the one that it had begun: Weights & Biases by an id, trackio, which has none, by
    the name. Steps that are taken again are sent again; they are the same, bit for bit.
    """

    def __init__(self, name: str, folder: Path, config: DictConfig) -> None:
        self._module = importlib.import_module(name)
        path = folder / IDENTITY  # kept in the folder, so that it holds wherever the folder is moved to
        if not path.is_file():
            atomic_write(path, secrets.token_hex(8).encode())
        identity = path.read_text()
        own = {"name": f"{folder.name}-{identity}"}
        if name == "wandb":
            own = {"name": folder.name, "id": identity, "dir": str(folder)}
        self._module.init(project="vla-razor", config=OmegaConf.to_container(config), resume="allow", **own)

    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        self._module.log(dict(scalars), step=step)

    def close(self) -> None:
        self._module.finish()
