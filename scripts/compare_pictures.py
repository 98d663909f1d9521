"""Sets the Google robot's pictures beside those that the original simulation recorded, at the start of its episodes.

    python scripts/compare_pictures.py TRACES [--out docs/simplerenv] [--json]

For every episode of TRACES with pictures: the mean and the 99th percentile of the absolute difference of a channel (of
255), the structural similarity of the luminance, and how well the outlines of robot and objects agree. With `--out`,
each episode becomes one picture there: ours, the original's, and the difference, ten times as strong; grey stands where
the photograph would, which is not ours to publish.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter

import vla_razor_envs  # noqa: F401  (registers the tasks)

SIZE = (512, 640)
GREY = np.uint8(150)
SCENERY = "arena"  # the original's name for what is neither robot nor object


@dataclass(frozen=True)
class Likeness:
    """How like two pictures of one episode are; `robot` and `foreground` are intersection over union of outlines."""

    episode: str
    mean_difference: float
    percentile_99: float
    similarity: float
    foreground_difference: float
    robot: float
    foreground: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("traces", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    found = []
    for episode, ours, theirs in compared(arguments.traces):
        found.append(likeness(episode, ours, theirs))
        print(" ".join(f"{key}={value:.4f}" if key != "episode" else value for key, value in asdict(found[-1]).items()))
        if arguments.out:
            show(
                arguments.out / f"{episode}.png",
                *(np.where(one["foreground"][..., None], one["rgb"], GREY) for one in (ours, theirs)),
            )
    if arguments.json:
        print(json.dumps([asdict(one) for one in found]))


def compared(traces: Path) -> Iterator[tuple[str, dict[str, np.ndarray], dict[str, np.ndarray]]]:
    """Every episode with pictures: its name, and `rgb`, `robot`, `foreground` at its start, ours and the original's."""
    names = sorted(path.name.removesuffix("__reset_rgb.png") for path in traces.glob("*__reset_rgb.png"))
    for prefix, task in (("coke", "vla_razor/PickCan-v1"), ("drawer", "vla_razor/Drawer-v1")):
        chosen = [name for name in names if name.startswith(prefix)]
        if chosen:
            with closing(gymnasium.make(task, robot="google_robot", image_size=SIZE, overlay=True)) as env:
                for name in chosen:
                    trace = np.load(traces / f"{name}.npz")
                    yield name, ours_at(env, start_of(trace)), theirs_at(traces, name, trace)


def start_of(trace: Any) -> dict[str, Any]:
    """The reset options of a recorded episode."""
    facts = json.loads(str(trace["meta_json"]))
    if "orientation" in facts:
        return {"object_xy": trace["init_obj_xy_requested"].tolist(), "orientation": facts["orientation"]}
    return {"station": facts["station_placement"], "task": str(trace["init_instruction"]).replace(" ", "_")}


def ours_at(env: gymnasium.Env, start: dict[str, Any]) -> dict[str, np.ndarray]:
    observation, _ = env.reset(seed=0, options=start)
    task = env.unwrapped.task  # pyright: ignore[reportAttributeAccessIssue]
    shown = task._get_obs_sensor_data()[task.setup.camera.name]["segmentation"][0, ..., 0].numpy()
    robot = [link._objs[0].entity.per_scene_id for link in task.agent.robot.links]
    return {
        "rgb": observation["image"],
        "robot": np.isin(shown, robot),
        "foreground": task.kept.numpy()[shown],
    }


def theirs_at(traces: Path, name: str, trace: Any) -> dict[str, np.ndarray]:
    pictures = {kind: np.asarray(Image.open(traces / f"{name}__reset_{kind}.png")) for kind in ("rgb", "seg")}
    things = {int(key): value for key, value in json.loads(str(trace["init_segmentation_id_names"])).items()}
    scenery = next(number for number, thing in things.items() if thing == SCENERY)
    return {
        "rgb": pictures["rgb"],
        "robot": (pictures["seg"] > 0) & (pictures["seg"] < scenery),  # the robot was built first
        "foreground": np.isin(pictures["seg"], list(set(things) - {scenery})),
    }


def likeness(episode: str, ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> Likeness:
    """Compares two pictures, [H, W, 3] of 255, and their outlines, bool [H, W]."""
    difference = np.abs(ours["rgb"].astype(float) - theirs["rgb"])
    both = ours["foreground"] & theirs["foreground"]
    return Likeness(
        episode,
        float(difference.mean()),
        float(np.percentile(difference, 99)),
        structural_similarity(ours["rgb"], theirs["rgb"]),
        float(difference[both].mean()),
        overlap(ours["robot"], theirs["robot"]),
        overlap(ours["foreground"], theirs["foreground"]),
    )


def structural_similarity(first: np.ndarray, second: np.ndarray) -> float:
    """The mean structural similarity of the luminance of two pictures [H, W, 3] of 255, with Gaussian windows of 1.5
    pixels (Wang et al., Image quality assessment, 2004).
    """
    a, b = (picture.astype(float) @ [0.299, 0.587, 0.114] for picture in (first, second))
    steady_mean, steady_contrast = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    mean_a, mean_b = blurred(a), blurred(b)
    variances = blurred(a * a) - mean_a**2 + blurred(b * b) - mean_b**2
    covariance = blurred(a * b) - mean_a * mean_b
    means = (2 * mean_a * mean_b + steady_mean) / (mean_a**2 + mean_b**2 + steady_mean)
    return float((means * (2 * covariance + steady_contrast) / (variances + steady_contrast)).mean())


def blurred(picture: np.ndarray) -> np.ndarray:
    return gaussian_filter(picture, 1.5, truncate=3.5)


def overlap(first: np.ndarray, second: np.ndarray) -> float:
    """Intersection over union of two outlines, bool [H, W]."""
    return float((first & second).sum() / max(1, (first | second).sum()))


def show(path: Path, ours: np.ndarray, theirs: np.ndarray) -> None:
    """Writes ours, the original's and ten times their difference side by side, at half size."""
    difference = np.abs(ours.astype(int) - theirs) * 10
    row = Image.fromarray(np.hstack([ours, theirs, difference.clip(0, 255).astype(np.uint8)]))
    path.parent.mkdir(parents=True, exist_ok=True)
    row.resize((row.width // 2, row.height // 2), Image.Resampling.LANCZOS).save(path, optimize=True)


if __name__ == "__main__":
    main()
