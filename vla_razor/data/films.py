"""Pictures of an episode in a film that several episodes may share, by PyAV."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from vla_razor.data.source import Damaged
from vla_razor.errors import UserError

TOLERANCE = 1e-4
"""Seconds by which a picture may be from where it is looked for; LeRobot's."""


def pyav() -> Any:
    """The module. Raises `UserError` where it is not installed."""
    try:
        import av
        from av import logging
    except ImportError as error:
        raise UserError("films of a LeRobot dataset need PyAV: pip install 'vla-razor[lerobot]'.") from error
    logging.set_libav_level(logging.PANIC)  # what it would print of a damaged film, our own messages say
    return av


def pictures(path: Path, times: Sequence[float], rows: Sequence[int]) -> np.ndarray:
    """The pictures uint8 [K, H, W, 3] at `times`, ascending, in seconds; `rows` are theirs in the data.

    Raises `Damaged` where the film has none there, or cannot be decoded so far.
    """
    found: list[np.ndarray] = []
    try:
        with _opened(path) as stream:
            # A whole step back, so that rounding never skips the picture that is wanted.
            stream.container.seek(max(0, int((times[0] - TOLERANCE) / stream.time_base)), stream=stream)
            for frame in stream.container.decode(stream):
                if frame.time < times[len(found)] - TOLERANCE:
                    continue
                if frame.time > times[len(found)] + TOLERANCE:
                    break
                found.append(frame.to_ndarray(format="rgb24"))
                if len(found) == len(times):
                    return np.stack(found)
            reason = "there is no picture"
    except (pyav().error.FFmpegError, UnicodeDecodeError) as error:  # the latter where an error's text is damaged too
        reason = f"it cannot be decoded ({error})"
    raise Damaged(path, f"at {times[len(found)]:.4f} s {reason}.", row=rows[len(found)])


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    if not path.is_file():
        raise Damaged(path, "there is no such film.")
    with pyav().open(str(path)) as container:
        if not container.streams.video:
            raise Damaged(path, "it holds no film.")
        stream = container.streams.video[0]
        yield stream


class Film:
    """A film to which pictures are added, in H.264, with a key frame every other picture as LeRobot's.

    `quality` is x264's constant rate factor. `count` tells the pictures that it has, `size` the bytes.
    """

    def __init__(self, path: Path, fps: int, size: tuple[int, int], quality: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.fps, self.count, self.size = fps, 0, 0
        self._container = pyav().open(str(path), "w")
        stream = self._container.add_stream("libx264", rate=fps, options={"crf": str(quality), "g": "2", "bf": "0"})
        stream.height, stream.width = size
        stream.pix_fmt = "yuv420p" if all(side % 2 == 0 for side in size) else "yuv444p"  # which odd sizes need
        stream.time_base = Fraction(1, fps)
        self._stream = stream

    def add(self, images: np.ndarray) -> float:
        """Adds pictures uint8 [T, H, W, 3] and gives the second at which they begin."""
        begin = self.count / self.fps
        for image in images:
            frame = pyav().VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
            frame.pts, frame.time_base = self.count, Fraction(1, self.fps)
            packets = self._stream.encode(frame)
            self._container.mux(packets)
            self.count, self.size = self.count + 1, self.size + sum(packet.size for packet in packets)
        return begin

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self._container.mux(self._stream.encode())
        self._container.close()
