"""The README's film, from a finished `vla-razor demo` of one seed: the base, SFT on the far teacher and REINFORCE pick
the can (above) and open a drawer (below), each where it first reaches the success that all reach.

    python scripts/film.py RUN --out docs/demo.webp

The starts are the first ones of a seed, not chosen. The episodes are played as an evaluation plays them; then their
actions are played again in front of a larger camera.
"""

from __future__ import annotations

import argparse
import io
import json
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from omegaconf import DictConfig, OmegaConf
from PIL import Image, ImageDraw, ImageFont

from vla_razor.config import compose
from vla_razor.files import atomic_write
from vla_razor.policies.load import load_model
from vla_razor.policies.openvla.policy import PrismaticPolicy
from vla_razor.rollouts.environments import hold_of, make_vector_env
from vla_razor.rollouts.rollout import Episode, rollout
from vla_razor.rollouts.starts import Start, random_starts
from vla_razor.videos import tiled

NAMES = {"base": "base", "sft_far": "SFT, far teacher", "rl": "REINFORCE"}
TASKS = {"pick_can": ["pick_can"], "drawer": ["open_top_drawer", "open_middle_drawer", "open_bottom_drawer"]}
PAUSE = 4
"""Pictures for which an episode's last one stands."""
TITLE = 22
GAP = 4  # pixels between pictures
FRAME = 100  # milliseconds: twice as fast as the robot
WON, LOST = (40, 170, 70), (200, 60, 50)


def policies_of(run: Path) -> dict[str, str]:
    """Each policy's checkpoint."""
    settings: Any = OmegaConf.load(run / "config.yaml")
    steps = json.loads((run / "summary.json").read_text())["matched"]["steps"]
    tuned = {name: str(run / name / "checkpoints" / f"step_{steps[name][0]}") for name in NAMES if name != "base"}
    return {"base": str(settings.policy), **tuned}


def play(scene: DictConfig, policy: str, starts: Sequence[Start]) -> list[Episode]:
    """The starts' episodes, until success has been held, as a training would end them."""
    acting = PrismaticPolicy(load_model(policy), None, robot="panda")
    with closing(make_vector_env(scene, len(starts), 1, "cpu")) as envs:
        return rollout(envs, acting, starts, hold=hold_of(scene), seed=0, watched=lambda start: True)[0]


def filmed(scene: DictConfig, episode: Episode, side: int) -> list[np.ndarray]:
    """An episode's pictures, uint8 [side, side, 3], with a border that says how it ended."""
    make: Mapping[str, Any] = {**scene.make, "image_size": (side, side)}
    with closing(gymnasium.make(scene.id, **make)) as env:
        start = episode.start
        pictures = [env.reset(seed=start.seed, options=dict(start.options))[0]["image"]]
        pictures += [env.step(action)[0]["image"] for action in episode.actions]
    pictures[-1] = pictures[-1].copy()
    for width in range(5):
        for edge in (np.s_[width], np.s_[:, width], np.s_[-1 - width], np.s_[:, -1 - width]):
            pictures[-1][edge] = WON if episode.success_at_end else LOST
    return pictures + pictures[-1:] * PAUSE


def titled(sheet: np.ndarray, side: int, told: Sequence[Sequence[str]]) -> Image.Image:
    """The sheet below its columns' names, and in each cell's corner what is `told` of it."""
    film = Image.fromarray(np.pad(sheet, ((TITLE, 0), (0, 0), (0, 0)), constant_values=255))
    draw, font = ImageDraw.Draw(film), ImageFont.load_default(size=14)
    for column, name in enumerate(NAMES.values()):
        draw.text((column * (side + GAP) + side / 2, TITLE / 2), name, fill="black", font=font, anchor="mm")
        for row, words in enumerate(told):
            corner = column * (side + GAP) + 10, TITLE + row * (side + GAP) + 10
            draw.text(corner, words[column], fill="white", font=font, stroke_width=2, stroke_fill="black")
    return film


def tally(won: Sequence[bool]) -> str:
    return f"{sum(won)} of {len(won)}" if won else ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0, help="of the starts")
    parser.add_argument(
        "--per-drawer", type=int, default=4, help="starts of each drawer, and of the can three times as many"
    )
    parser.add_argument("--side", type=int, default=192, help="pixels of a picture")
    arguments = parser.parse_args()
    count = arguments.per_drawer * len(TASKS["drawer"])
    clips: dict[tuple[str, str], list[list[np.ndarray]]] = {}
    won: dict[tuple[str, str], list[bool]] = {}
    for name, tasks in TASKS.items():
        scene = compose("eval", [f"env={name}"]).env
        starts = random_starts(tasks, count // len(tasks), arguments.seed)
        for kind, policy in policies_of(arguments.run).items():
            episodes = play(scene, policy, starts)
            print(f"{name}, {kind}: {sum(episode.success_at_end for episode in episodes)} of {count}", flush=True)
            won[name, kind] = [episode.success_at_end for episode in episodes]
            clips[name, kind] = [filmed(scene, episode, arguments.side) for episode in episodes]
    frames = []
    for number in range(count):
        shown = [[clips[name, kind][number] for kind in NAMES] for name in TASKS]
        length = max(len(clip) for row in shown for clip in row)
        for moment in range(length):
            ended = number + (moment >= length - PAUSE)
            told = [[tally(won[name, kind][:ended]) for kind in NAMES] for name in TASKS]
            sheet = tiled([[clip[min(moment, len(clip) - 1)] for clip in row] for row in shown], GAP)
            frames.append(titled(sheet, arguments.side, told))
    content = io.BytesIO()
    frames[0].save(
        content, "WEBP", save_all=True, append_images=frames[1:], duration=FRAME, loop=0, quality=60, method=6
    )
    atomic_write(arguments.out, content.getvalue())
    print(f"{arguments.out}: {len(frames)} pictures, {len(content.getvalue()) / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
