"""`vla-razor import`: a LeRobot or RLDS dataset as a store of demonstrations, like those that `collect` writes.

The run's folder is the store of the training episodes, its folder `held_out` that of the held-out ones. `dataset.yaml`
in both makes them a recorded suite, in which nobody can act: `sft`, `stats` and `kl` need no simulator for it. Every
file of the store is written whole, so that an interrupted import goes on with the next one.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from rich.console import Console

from vla_razor import conventions, recordings
from vla_razor.conventions import Convention
from vla_razor.data import importing
from vla_razor.data.importing import Report, Wanted
from vla_razor.data.source import Keys, Source
from vla_razor.errors import UserError
from vla_razor.progress import progress
from vla_razor.recordings import HELD_OUT
from vla_razor.runs import Run

SHOWN = 10
"""How many dropped episodes are printed; summary.json lists all of them."""


def run(config: DictConfig, run: Run) -> None:
    """Fill the stores in the run's folder; goes on where a resumed run stopped."""
    if config.source is None:
        raise UserError("import needs a dataset: vla-razor import lerobot DIR, or import rlds DIR.")
    run.restore()
    spoken, said = _conventions(config)
    source = opened(config)
    if source.fps % config.every:
        divisors = [n for n in range(2, source.fps + 1) if source.fps % n == 0]
        raise UserError(f"every={config.every} does not divide fps={source.fps}; expected one of {divisors}.")
    wanted = Wanted(
        name=name_of(config),
        spoken=spoken,
        said=said,
        **{key: config[key] for key in ("every", "least_steps", "instruction", "only", "image_size", "damaged")},
    )
    numbers = importing.numbered(config.episodes, source.episodes)
    learned, held_out = importing.split(numbers, config.held_out, config.seed)
    places = {run.path: learned, run.path / HELD_OUT: held_out}
    with progress("import", len(numbers)) as advance:
        reports = [importing.fill(folder, source, part, wanted, advance) for folder, part in places.items() if part]
    if not reports[0].taken:
        raise UserError(f"{config.source}: no episode was taken. The first: {next(iter(reports[0].dropped.values()))}")
    tasks = {task: instruction for report in reports for task, instruction in report.tasks.items()}
    cameras = list(source.pictures)
    facts: dict[str, Any] = {"name": wanted.name, "camera": cameras[0], "control_hz": source.fps // config.every}
    if len(cameras) > 1:
        facts["cameras"] = cameras
    facts |= {"tasks": tasks, "convention": said.facts() if said else None}
    for folder, report in zip(places, reports, strict=False):
        if report.taken:
            recordings.write(folder, **facts)
    run.finish({"dataset": facts, **dict(zip(("learned", HELD_OUT), map(_told, reports), strict=False))})
    show(Console(), run.path, reports)


def opened(config: DictConfig) -> Source:
    """The dataset. Raises `UserError` where there is none, or where it has another format."""
    if config.camera is not None and config.cameras is not None:
        raise UserError("camera is the only one's key; give several as cameras={NAME: KEY, ...} alone.")
    keys = Keys(config.camera or (config.cameras and dict(config.cameras)), config.action, config.state, config.success)
    if config.format == "rlds":
        from vla_razor.data.rlds import RLDS

        return RLDS(located(config.source), keys, config.fps)
    from vla_razor.data.lerobot import LeRobot

    if config.fps is not None:
        raise UserError(f"fps={config.fps}: a LeRobot dataset says its own.")
    return LeRobot(located(config.source), keys)


def located(source: str) -> Path:
    """The dataset's folder: a local one, or a copy downloaded from the Hub."""
    if Path(source).is_dir():
        return Path(source)
    if not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", source):
        raise UserError(f"{source}: no such folder (and no name of the form owner/name on the Hub).")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(source, repo_type="dataset"))
    except Exception as error:  # the client and the network each raise their own
        reason = str(error).strip().partition("\n")[0]
        raise UserError(f"{source}: no such folder here, and the Hub did not give it: {reason}") from error


def name_of(config: DictConfig) -> str:
    """The dataset's name: `name`, or that of its folder."""
    return config.name or re.sub(r"\W+", "_", Path(config.source).resolve().name.lower()).strip("_") or "dataset"


def _conventions(config: DictConfig) -> tuple[Convention | None, Convention | None]:
    """The convention of the dataset's actions, and the one in which they are stored."""
    if config.convention is None:
        for key, holds in (("every", config.every > 1), ("convert", config.convert is not None)):
            if holds:
                raise UserError(
                    f"{key}={config[key]} depends on what the actions mean: say convention={{control: delta, "
                    "rotation: axis_angle, gripper: close_positive}, or what else they are (docs/datasets.md)."
                )
        return None, None
    spoken = conventions.parse("convention", dict(config.convention))
    said = conventions.changed("convert", spoken, dict(config.convert or {}))
    return spoken, said


def show(console: Console, folder: Path, reports: list[Report]) -> None:
    """Print how much was taken, what was dropped and why, and what to do next."""
    for where, report in zip((folder, folder / HELD_OUT), reports, strict=False):
        console.print(
            f"{where}: {len(report.taken)} episodes, {report.steps:,} control steps, {len(report.tasks)} tasks",
            highlight=False,
            soft_wrap=True,
        )
    dropped = {index: reason for report in reports for index, reason in report.dropped.items()}
    if dropped:
        console.print(f"dropped: {len(dropped)} episodes", highlight=False)
        for index, reason in sorted(dropped.items())[:SHOWN]:
            console.print(f"  episode {index}: {reason}", highlight=False, soft_wrap=True)
    console.print(f"next: vla-razor stats {folder} policy=POLICY", highlight=False, soft_wrap=True)


def _told(report: Report) -> Mapping[str, Any]:
    dropped = {str(index): reason for index, reason in sorted(report.dropped.items())}
    return {"episodes": len(report.taken), "steps": report.steps, "tasks": len(report.tasks), "dropped": dropped}
