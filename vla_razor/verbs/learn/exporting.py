"""`vla-razor export`: a store of demonstrations as a LeRobot dataset, which LeRobot, openpi and GR00T can train on."""

import shutil
import tempfile
from pathlib import Path

from omegaconf import DictConfig
from rich.console import Console

from vla_razor.data.lerobot_writer import Writer
from vla_razor.errors import UserError
from vla_razor.files import ASIDE, full_disk_reported
from vla_razor.progress import progress
from vla_razor.recordings import HELD_OUT
from vla_razor.rollouts import demonstrations
from vla_razor.rollouts.demonstrations import FOLDER, Shard
from vla_razor.runs import Run


def run(config: DictConfig, run: Run) -> None:
    """Write the dataset into the run's folder, all of it or nothing."""
    if config.demos is None:
        raise UserError("export needs demonstrations: vla-razor export lerobot DIR --out DIR.")
    run.restore()
    folder = Path(config.demos)
    stores = {"train": folder, "test": folder / HELD_OUT}
    shards = {
        name: demonstrations.read_store(place, demonstrations.without_images)
        for name, place in stores.items()
        if name == "train" or (place / FOLDER).is_dir()
    }
    if not any(shard.demonstrations for part in shards.values() for shard in part):
        raise UserError(f"{folder}: there is no episode to export.")
    aside = Path(tempfile.mkdtemp(dir=run.path, prefix=ASIDE))
    try:
        with full_disk_reported(aside):
            written = _written(aside, config, stores, shards)
            for part in ("data", "videos", "meta"):  # without the last it is no dataset
                shutil.rmtree(run.path / part, ignore_errors=True)  # of an attempt that was killed between them
                if (aside / part).is_dir():
                    (aside / part).replace(run.path / part)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    facts = {"episodes": sum(map(_count, shards.values())), "frames": written.frames, "tasks": len(written.tasks)}
    run.finish({"dataset": {"codebase_version": f"v{config.version}", **facts}})
    counts = f"{facts['episodes']} episodes, {facts['frames']:,} frames, {facts['tasks']} tasks"
    Console().print(f"{run.path}: LeRobot v{config.version}, {counts}", highlight=False, soft_wrap=True)


def _written(aside: Path, config: DictConfig, stores: dict[str, Path], shards: dict[str, list[Shard]]) -> Writer:
    """The dataset, in a folder of its own."""
    episodes = [episode for part in shards.values() for shard in part for episode in shard.demonstrations]
    disturbed = any((episode.actions != episode.labels).any() for episode in episodes)
    settings = {"version": config.version, "pictures": config.pictures, "quality": config.quality}
    with Writer(aside, disturbed=disturbed, **settings) as writer, progress("export", len(episodes)) as advance:
        for name, part in shards.items():
            for number, shard in enumerate(part):
                for index, episode in enumerate(shard.demonstrations):
                    writer.add(demonstrations.with_images(stores[name], number, index, episode))
                    advance()
        writer.finish(shards["train"][0].robot, {name: _count(part) for name, part in shards.items()})
    return writer


def _count(part: list[Shard]) -> int:
    return sum(len(shard.demonstrations) for shard in part)
