"""Pictures and films of episodes."""

import re
import subprocess
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
    from imageio_ffmpeg import get_ffmpeg_exe

    command = [get_ffmpeg_exe(), "-v", "error", "-i", str(path), "-f", "image2pipe", "-c:v", "ppm", "-"]
    stream = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=True).stdout
    header = re.match(rb"P6\n(\d+) (\d+)\n255\n", stream)
    assert header, f"{path}: no pictures in the film"
    width, height = map(int, header.groups())
    frames = np.frombuffer(stream, np.uint8).reshape(-1, header.end() + 3 * width * height)
    return list(frames[:, header.end() :].reshape(-1, height, width, 3))


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
