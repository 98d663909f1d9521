"""MNIST and FashionMNIST as tensors, read from their published IDX files, gzipped or not.

A folder holds `MNIST/raw` and `FashionMNIST/raw`, as torchvision lays them out. The package brings a subset of real
images (`scripts/make_parity_mnist_data.py`), which is what a run without a folder uses.
"""

import gzip
import struct
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from vla_razor.errors import UserError

BUNDLED = Path(__file__).resolve().parent.parent / "assets" / "parity_mnist"
SIDE = 28
CLASSES = 10
_IMAGES, _LABELS = 0x0803, 0x0801  # magic numbers: unsigned bytes in three dimensions, and in one


class Split(NamedTuple):
    """Images, pixels in [0, 1], and their classes."""

    images: Float[Tensor, "N 784"]
    labels: Int[Tensor, " N"]


class Data(NamedTuple):
    """Digits and clothes, each for training and for testing."""

    mnist_train: Split
    mnist_test: Split
    fashion_train: Split
    fashion_test: Split


def load(folder: Path | None = None) -> Data:
    """The four splits below `folder`, by default those of the package.

    Raises UserError for a file that is missing, truncated, not IDX, or holds a label out of range.
    """
    root = folder or BUNDLED
    sets = [root / name / "raw" for name in ("MNIST", "FashionMNIST")]
    return Data(*(read_split(raw, part) for raw in sets for part in ("train", "t10k")))


def download(folder: Path) -> None:
    """Fetch both sets into `folder` by torchvision, which checks their MD5. Raises UserError where that fails."""
    from torchvision.datasets import MNIST, FashionMNIST

    for kind in (MNIST, FashionMNIST):
        try:
            kind(str(folder), download=True)
        except (RuntimeError, OSError) as error:
            raise UserError(
                f"{kind.__name__} could not be downloaded into {folder}: {error}. Put the four .gz files of each set "
                f"into {folder}/MNIST/raw and {folder}/FashionMNIST/raw yourself."
            ) from error


def read_split(raw: Path, part: str) -> Split:
    """Images and labels of one part, train or t10k, from the folder `raw`."""
    images = read_idx(_find(raw, f"{part}-images-idx3-ubyte"), _IMAGES)
    path = _find(raw, f"{part}-labels-idx1-ubyte")
    labels = read_idx(path, _LABELS)
    if images.shape[1:] != (SIDE, SIDE):
        raise UserError(f"{raw}: the {part} images are {images.shape[1:]} pixels; expected {SIDE} x {SIDE}.")
    if len(images) != len(labels):
        raise UserError(f"{raw}: {len(images)} {part} images but {len(labels)} labels.")
    if len(labels) and labels.max() >= CLASSES:
        raise UserError(f"{path}: label {labels.max()} is out of range; expected 0 to {CLASSES - 1}.")
    pixels = torch.from_numpy(images.reshape(len(images), -1)).float() / 255
    return Split(pixels, torch.from_numpy(labels).long())


def read_idx(path: Path, magic: int) -> UInt8[np.ndarray, "..."]:
    """The array of an IDX file of unsigned bytes whose magic number must be `magic`."""
    content = _read(path)
    dimensions = magic & 0xFF
    header = 4 * (1 + dimensions)
    found = struct.unpack(">I", content[:4])[0] if len(content) >= 4 else None
    if found != magic:
        raise UserError(f"{path}: magic number {found}; expected {magic}. It is not the IDX file that its name says.")
    if len(content) < header:
        raise UserError(f"{path} is truncated: it ends within its header.")
    shape = struct.unpack(f">{dimensions}I", content[4:header])
    if len(content) != header + np.prod(shape, dtype=int):
        expected = " x ".join(map(str, shape))
        raise UserError(f"{path} is damaged: {len(content) - header} bytes follow the header; expected {expected}.")
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape).copy()


def write_idx(path: Path, array: UInt8[np.ndarray, "..."]) -> None:
    """Write what `read_idx` reads, gzipped; the same array gives the same bytes."""
    header = struct.pack(f">I{array.ndim}I", 0x0800 | array.ndim, *array.shape)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(header + array.tobytes(), mtime=0))


def _find(raw: Path, name: str) -> Path:
    for path in (raw / f"{name}.gz", raw / name):
        if path.is_file():
            return path
    raise UserError(
        f"{raw / name}.gz is missing. Expected the published IDX files; data_dir=null uses the package's own."
    )


def _read(path: Path) -> bytes:
    try:
        return gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} cannot be read: {error}. Download it again.") from error
