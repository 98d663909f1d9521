"""From an outside dataset to stores of demonstrations: which episodes, which of them are held out, and the files."""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from PIL import Image

from vla_razor import conventions
from vla_razor.conventions import Convention
from vla_razor.data.source import Damaged, Listed, NotTaken, Recording, Source
from vla_razor.errors import UserError
from vla_razor.rollouts import demonstrations
from vla_razor.rollouts.demonstrations import FOLDER, Demonstration, Shard
from vla_razor.rollouts.starts import episode_seed

EPISODES = 20
"""In a file of the store: what an interruption costs at most."""


@dataclass(frozen=True)
class Wanted:
    """What is taken of a dataset, and how; see the keys of `vla-razor import`. `spoken` is the convention of its
    actions, `said` the one that they are stored in.
    """

    name: str
    every: int = 1
    least_steps: int = 2
    instruction: str | None = None
    only: Sequence[str] = ()
    image_size: Sequence[int] | None = None
    damaged: str = "stop"
    spoken: Convention | None = None
    said: Convention | None = None


@dataclass
class Report:
    """What became of the episodes: their numbers, and by episode why one was dropped."""

    taken: list[int] = field(default_factory=list)
    steps: int = 0
    tasks: dict[str, str] = field(default_factory=dict)
    dropped: dict[int, str] = field(default_factory=dict)

    def add(self, points: Sequence[dict[str, Any]]) -> None:
        """What a file of the store says."""
        for point in points:
            if point["successes"]:
                self.taken.append(point["grid_point"])
                self.steps += point["steps"]
                self.tasks[point["task"]] = point["instruction"]
            else:
                self.dropped[point["grid_point"]] = point["dropped"]


def split(episodes: Sequence[int], held_out: float, seed: int) -> tuple[list[int], list[int]]:
    """Which are learned, and which are held out: the share, at least one if any, drawn by the seed.

    Raises `UserError` where none would be left to learn.
    """
    count = min(max(round(held_out * len(episodes)), 1), len(episodes)) if held_out else 0
    if count == len(episodes):
        raise UserError(f"held_out={held_out} of {len(episodes)} episodes leaves none to learn.")
    drawn = np.random.default_rng(episode_seed("held out", seed)).permutation(len(episodes))[:count]
    apart = {episodes[index] for index in drawn.tolist()}
    return [index for index in episodes if index not in apart], sorted(apart)


def numbered(ranges: str | None, episodes: Sequence[Listed]) -> list[int]:
    """The numbers of the episodes that `ranges` (such as 0:50,70) names, all for None.

    Raises `UserError` for one that the dataset does not have.
    """
    known = [episode.index for episode in episodes]
    if ranges is None:
        return known
    found: list[int] = []
    for part in ranges.split(","):
        low, colon, high = part.partition(":")
        wanted = range(int(low), int(high or max(known) + 1)) if colon else [int(low)]
        if unknown := sorted(set(wanted) - set(known)):
            raise UserError(f"episodes={ranges}: the dataset has no episode {unknown[0]}; it has {len(known)}.")
        found += [index for index in wanted if index not in found]
    return found


def fill(folder: Path, source: Source, episodes: Sequence[int], wanted: Wanted, advance: Callable[[], None]) -> Report:
    """Writes a store of these episodes; files that are there already, of an interrupted import, are kept. Raises
    `Damaged` at the first episode that is, unless these are to be dropped.
    """
    parts = [episodes[start : start + EPISODES] for start in range(0, len(episodes), EPISODES)]
    report = Report()
    listed = {episode.index: episode for episode in source.episodes}
    for number, part in enumerate(parts):
        path = folder / FOLDER / f"part_{number:04d}.h5"
        if path.is_file():
            points = _points(path)
            for _ in part:
                advance()
        else:
            kept, points = [], []
            for index in part:
                found = _taken(source, listed[index], wanted)
                points.append(_point(index, found))
                kept += [found] if isinstance(found, Demonstration) else []
                advance()
            demonstrations.write(path, Shard(wanted.name, number, len(parts), points, kept))
        report.add(points)
    return report


def _taken(source: Source, listed: Listed, wanted: Wanted) -> Demonstration | str:
    """An episode as a demonstration, or why it is none."""
    if wanted.only and listed.instructions and not set(listed.instructions) & set(wanted.only):
        return "its instruction is not among `only`"  # before its pictures are read
    try:
        read = source.read(listed.index, wanted.every)
    except NotTaken as reason:
        return str(reason)
    except Damaged as error:
        if wanted.damaged == "drop":
            return str(error)
        raise UserError(
            f"{error} Episode {listed.index} is damaged. What is whole is kept: restore the file and go on with "
            "vla-razor resume, or import into another folder with damaged=drop, which leaves such episodes out."
        ) from None
    return _demonstration(source, listed.index, read, wanted)


def _demonstration(source: Source, index: int, read: Recording, wanted: Wanted) -> Demonstration | str:
    instruction = wanted.instruction or read.instruction
    steps = -(-len(read.actions) // wanted.every)
    for reason, holds in (
        ("it has no instruction: give one as instruction=", bool(instruction.strip())),
        ("its instruction is not among `only`", not wanted.only or instruction in wanted.only),
        (f"it has {steps} control steps, fewer than least_steps={wanted.least_steps}", steps >= wanted.least_steps),
        ("it never succeeds", bool(read.success.any())),
    ):
        if not holds:
            return reason
    actions, states = read.actions, read.states
    if wanted.spoken and wanted.said and wanted.spoken != wanted.said:
        pose = conventions.pose_of(states, wanted.spoken)
        actions = conventions.converted(actions, wanted.spoken, wanted.said, pose).astype(np.float32)
    if wanted.every > 1:
        assert wanted.said is not None
        actions = conventions.joined(actions, wanted.every, wanted.said)
    pictures = {
        camera: np.stack([_shrunk(image, wanted.image_size) for image in images])
        for camera, images in read.images.items()
    }
    (camera, images), *further = pictures.items()
    ends = np.minimum(np.arange(1, steps + 1) * wanted.every, len(read.success)) - 1
    return Demonstration(
        instruction=instruction,
        task=task_name(instruction),
        start={"episode": index},
        seed=index,
        control_hz=source.fps // wanted.every,
        camera=camera,
        policy=wanted.name,
        images=images,
        further=dict(further),
        proprioception=states[:: wanted.every],
        actions=actions,
        labels=actions,
        success=read.success[ends] if read.success[ends].any() else np.arange(steps) == steps - 1,
    )


def task_name(instruction: str) -> str:
    """What a task is called by its instruction.

    >>> task_name("Pick up the red cube, please.")
    'pick_up_the_red_cube_please'
    """
    return re.sub(r"\W+", "_", instruction.lower()).strip("_") or "task"


def _shrunk(image: np.ndarray, size: Sequence[int] | None) -> np.ndarray:
    """Averaged over areas to the size [height, width], if it is larger."""
    if size is None or not (image.shape[0] > size[0] and image.shape[1] > size[1]):
        return image
    return np.asarray(Image.fromarray(image).resize((size[1], size[0]), Image.Resampling.BOX))


def _point(index: int, found: Demonstration | str) -> dict[str, Any]:
    """What a file of the store says of an episode that was tried, in the words of `vla-razor collect`."""
    kept = isinstance(found, Demonstration)
    facts = {"task": found.task, "instruction": found.instruction, "steps": len(found.success)} if kept else {}
    counts = {"attempts": 1, "successes": int(kept), "failures": int(not kept), "lost": 0, "wanted": 1}
    place = {"grid_point": index, "task": "", "start": {"episode": index}}
    return {**place, **counts, "last_failure": None, **facts, **({} if kept else {"dropped": found})}


def _points(path: Path) -> list[dict[str, Any]]:
    with h5py.File(path) as file:
        return json.loads(str(file.attrs["points"]))
