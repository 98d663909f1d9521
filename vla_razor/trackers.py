"""Where a run's scalars go beside metrics.jsonl: TensorBoard, Weights & Biases, trackio or nowhere."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from omegaconf import DictConfig, OmegaConf

from vla_razor.errors import UserError


class Tracker(Protocol):
    """Takes the scalars of a step; `close` flushes them."""

    def log(self, step: int, scalars: Mapping[str, float]) -> None: ...
    def close(self) -> None: ...


def make_tracker(folder: Path, config: DictConfig, step: int) -> Tracker:
    """The tracker that `config.logger` names, for a run in `folder` that goes on after `step`.

    Raises UserError where its package is not installed.
    """
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
    """Weights & Biases, or trackio, which has the same interface."""

    def __init__(self, name: str, folder: Path, config: DictConfig) -> None:
        self._module = _import(name)
        self._module.init(project="vla-razor", name=folder.name, config=OmegaConf.to_container(config), resume="allow")

    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        self._module.log(dict(scalars), step=step)

    def close(self) -> None:
        self._module.finish()


def _import(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        remedy = f"pip install 'vla-razor[{name}]'"
        raise UserError(
            f"logger={name} needs a package that is missing ({error}): {remedy}, or logger=none."
        ) from error
