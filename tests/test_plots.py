"""Every figure is written, whatever it is given; what it shows was looked at by eye."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vla_razor import plots
from vla_razor.plots import Bars, Curve, Point
from vla_razor.statistics import Difference, wilson

KL = "forward_kl_per_action"
TASKS = ("pick_can", "open_top_drawer", "close_top_drawer")


def curve(method: str, name: str, steps: int) -> Curve:
    """Rows as a run logs them: forward KL now and then, one number that was not finite."""
    rows = [{"step": n, "success": 0.5, "loss": 1 / n} for n in range(1, steps + 1)]
    for row in rows[3::4]:
        row["forward_kl_per_action"] = 0.1 * row["step"]
    rows[0]["loss"] = None
    return Curve(method, name, rows, 20 if method == "rl" else None)


def point(method: str, run: str, drift: float, last: bool = True) -> Point:
    return Point(method, run, drift, drift / 2, wilson(5, 10), wilson(50, 60), Difference(0.1, -0.05, 0.2), last)


def points() -> list[Point]:
    tuned = [point(method, f"{method}_1", drift, drift == 2) for method in ("sft", "rl") for drift in (1.0, 2.0)]
    return [point("base", "base", 0.0), *tuned]


FIGURES = {
    "learning curves": lambda path: plots.learning_curves(path, [curve("sft", "sft", 30), curve("rl", "rl", 12)], KL),
    "curves of several settings": lambda path: plots.learning_curves(
        path, [curve("rl", "rl_1", 7), curve("rl", "rl_2", 7), curve("sft", "sft", 1)], KL
    ),
    "success against KL": lambda path: plots.success_against_kl(path, points(), KL),
    "success of the base alone": lambda path: plots.success_against_kl(path, points()[:1], KL),
    "retention": lambda path: plots.retention_bars(
        path,
        [Bars(name, name[:3].strip("_"), dict.fromkeys(TASKS, wilson(3, 9))) for name in ("sft_1", "sft_2", "rl_1")],
    ),
    "forgetting": lambda path: plots.forgetting(path, points()[1:], KL),
}


@pytest.mark.parametrize("draw", FIGURES.values(), ids=FIGURES)
def test_a_figure_is_written(tmp_path: Path, draw) -> None:
    draw(tmp_path / "plots" / "figure.png")
    (path,) = (tmp_path / "plots").iterdir()
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("L"))
    assert min(pixels.shape) > 300
    assert pixels.std() > 5


def test_the_same_data_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one.png", "other.png"):
        plots.success_against_kl(tmp_path / name, points(), KL)
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "other.png").read_bytes()


def test_settings_of_a_method_differ_in_shade() -> None:
    curves = [curve("sft", "sft_1", 2), curve("sft", "sft_2", 2), curve("rl", "rl", 2)]
    shades = [plots._shade(one, curves) for one in curves]
    assert len(set(shades)) == 3
    assert shades[0] == plots.to_rgb(plots.COLOURS["sft"])
    assert sum(shades[1]) > sum(shades[0]), "paler"
