"""Pictures and films of episodes."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vla_razor.files import atomic_write


def write_film(path: Path, frames: Sequence[np.ndarray], fps: float, side: int = 256) -> None:
    """Writes frames (uint8 [H, W, 3], one size) as an mp4, enlarged by whole numbers to at least `side` pixels."""
    import imageio.v2 as imageio

    large = [enlarged(frame, side) for frame in frames]
    atomic_write(path, lambda file: imageio.mimwrite(file, large, format="mp4", fps=fps, macro_block_size=2))  # pyright: ignore


def read_film(path: Path) -> list[np.ndarray]:
    """The frames of a film, uint8 [H, W, 3]."""
    import imageio.v3 as imageio

    return list(imageio.imread(path, plugin="FFMPEG"))


def write_picture(path: Path, picture: np.ndarray) -> None:
    """Writes a picture (uint8 [H, W, 3]) as a png."""
    from PIL import Image

    atomic_write(path, lambda file: Image.fromarray(picture).save(file, format="png"))


def enlarged(frame: np.ndarray, side: int) -> np.ndarray:
    """The frame with every pixel repeated, so that its shorter side has at least `side` pixels."""
    times = -(-side // min(frame.shape[:2]))
    return frame.repeat(times, axis=0).repeat(times, axis=1)


def tiled(rows: Sequence[Sequence[np.ndarray]], gap: int = 4) -> np.ndarray:
    """One picture of rows of pictures of one size, white where a row is short."""
    height, width, _ = rows[0][0].shape
    columns = max(len(row) for row in rows)
    shape = len(rows) * (height + gap) - gap, columns * (width + gap) - gap, 3
    sheet = np.full(shape, 255, np.uint8)
    for i, row in enumerate(rows):
        for j, picture in enumerate(row):
            sheet[i * (height + gap) :, j * (width + gap) :][:height, :width] = picture
    return sheet
