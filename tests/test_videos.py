"""Films of episodes."""

from pathlib import Path

import numpy as np
import pytest

from vla_razor.videos import read_film, write_film


@pytest.mark.parametrize("fps", [5, 3.33])
def test_a_film_is_read_as_it_was_written(tmp_path: Path, fps: float) -> None:
    """Every frame, enlarged; its colour as near as the codec keeps it."""
    write_film(tmp_path / "film.mp4", [np.full((64, 48, 3), shade, np.uint8) for shade in range(0, 210, 30)], fps)
    frames = read_film(tmp_path / "film.mp4")
    assert [frame.shape for frame in frames] == [(384, 288, 3)] * 7
    assert [frame.mean() for frame in frames] == pytest.approx(range(0, 210, 30), abs=3)
