"""A few of the package's images, networks that are quick to train, and a pool that works in this process."""

from collections.abc import Callable
from concurrent.futures import Future
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from vla_razor.parity_mnist import data
from vla_razor.parity_mnist.data import Data, Split
from vla_razor.parity_mnist.model import Parameters

WIDTH = 8


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def few(new: tuple[int, int] = (96, 48), prior: tuple[int, int] = (96, 16)) -> Data:
    """The first of the package's images: digits and clothes, for training and for testing."""
    counts = (*new, *prior)
    return Data(*(Split(s.images[:n], s.labels[:n]) for s, n in zip(data.load(), counts, strict=True)))


def write_images(folder: Path, images: Data) -> Path:
    """The same as a folder of IDX files."""
    names = [(name, part) for name in ("MNIST", "FashionMNIST") for part in ("train", "t10k")]
    for (name, part), split in zip(names, images, strict=True):
        raw = folder / name / "raw"
        pixels = (255 * split.images).round().byte().view(-1, data.SIDE, data.SIDE)
        data.write_idx(raw / f"{part}-images-idx3-ubyte.gz", pixels.numpy())
        data.write_idx(raw / f"{part}-labels-idx1-ubyte.gz", split.labels.numpy().astype(np.uint8))
    return folder


def sequential(parameters: Parameters, run: int = 0) -> nn.Sequential:
    """One of the stacked networks, in torch's own modules."""
    layers: list[nn.Module] = []
    for layer in range(len(parameters) // 2):
        weight, bias = parameters[f"weight_{layer}"][run], parameters[f"bias_{layer}"][run]
        linear = nn.Linear(weight.shape[0], weight.shape[1])
        linear.load_state_dict({"weight": weight.T, "bias": bias})
        layers += [linear, nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def flattened(parameters: Parameters) -> Tensor:
    return torch.cat([value.detach().flatten() for value in parameters.values()])


class Inline:
    """In place of a pool of processes: every job is done as it is handed in."""

    def __init__(self, processes: int, context: BaseContext, initializer: Any) -> None:
        pass

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(function(*arguments))
        except Exception as error:
            future.set_exception(error)
        return future

    def shutdown(self, cancel_futures: bool) -> None:
        pass
