"""`vla-razor collect`: successful demonstrations over a grid of start positions (RL's Razor, Appendix B.2).

At every grid point episodes are run until `per_point` of them have succeeded, or `max_attempts` times as many have been
tried. The grid is done row by row, in full batches. Only successes are kept; the attempts at each point are written and
reported, and points with too few successes are listed. Every finished row is one file of the store: an interrupted
collection goes on with the next row and ends with the same bytes. Several ranks share the rows.

Where it departs from the paper: the paper's demonstrator is a pre-trained RT-1. Here it is by default a scripted
expert, which disturbs a share of its own steps (the labels stay undisturbed); `policy` takes any policy. An episode
ends at its first success. Attempts at one point differ by their seed: in the robot's joint noise and, in a task without
a start area, in the whole start.
"""

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from vla_razor import ranks
from vla_razor.config import robot_of, scenes
from vla_razor.errors import UserError
from vla_razor.policies import Policy
from vla_razor.policies.scripted import ScriptedExpert
from vla_razor.progress import progress
from vla_razor.rollouts import demonstrations
from vla_razor.rollouts.demonstrations import FOLDER, Shard, demonstration
from vla_razor.rollouts.environments import VectorEnv, cameras_for, cameras_shown, hold_of, make_vector_env
from vla_razor.rollouts.rollout import Episode, rollout
from vla_razor.rollouts.starts import Start, episode_seed, grid_starts, parse_grid
from vla_razor.runs import Run
from vla_razor.statistics import wilson
from vla_razor.videos import enlarged, tiled, write_film, write_picture

SAMPLES, STRIP, PICTURE = 8, 6, 128  # of `show`: episodes, frames per episode on the sheet, pixels of their side


def run(config: DictConfig, run: Run) -> None:
    """Fill the store in the run's folder; a resumed run goes on where it stopped."""
    if len(scenes(config.env)) != 1:
        raise UserError(f"env={config.env.name}: collect takes one scene, such as env=pick_can or env=drawer.")
    run.restore()
    points, (_, length) = grid_starts(config.env, config.grid, 1, config.seed), parse_grid(config.grid)
    rows = [points[begin : begin + length] for begin in range(0, len(points), length)]  # of one x and one task
    wanted = config.per_point * length
    if config.policy == "scripted":
        policy: Policy = ScriptedExpert(config.noise, robot=robot_of(config.env), style=config.style)
    else:
        from vla_razor.policies.opening import open_policy  # loads transformers, which the expert does without

        policy = open_policy(config.policy, config)
    shards: list[Shard] = []
    cameras = cameras_for(config.env, policy, also=config.cameras)
    with closing(make_vector_env(config.env, config.num_envs, config.num_workers, config.device, cameras)) as envs:
        if envs.setup is None:
            raise UserError(
                f"env.id={config.env.id}: to be stored it needs a `setup`, with control_hz and camera.name."
            )
        if (shown := cameras_shown(envs)) != cameras:
            asked, found = ",".join(cameras), ", ".join(shown)
            raise UserError(f"env.cameras=[{asked}]: the camera of this robot is {found}.")
        facts = {"control_hz": envs.setup.control_hz, "policy": policy.name}

        def collected(path: Path, index: int) -> Shard:
            """Collect and write one row. Its images are freed on return: the paper's grid has 18 GB of them."""
            tried = _collected(envs, policy, rows[index], config, advance)
            kept = [demonstration(episode, **facts) for point in tried for episode in point.kept]
            described = [point.facts(config.per_point) for point in tried]
            shard = Shard(robot_of(config.env), index, len(rows), described, kept)
            demonstrations.write(path, shard)
            return demonstrations.without_images(shard)

        mine = ranks.share(range(len(rows)))
        with progress("collect", wanted * len(mine)) as advance:
            for index in mine:
                path = run.path / FOLDER / f"row_{index:04d}.h5"
                if path.exists():
                    advice = f"Delete {path} and go on with: vla-razor resume {run.path}"
                    shards.append(demonstrations.without_images(demonstrations.read(path, advice)))
                    for _ in range(wanted):
                        advance()
                else:
                    shards.append(collected(path, index))
                if ranks.world() == 1:
                    run.log(index + 1, **_totals(shards[-1:]))
    shards = ranks.gathered(shards)
    if ranks.world() > 1:  # ranks finish their rows in any order
        for shard in shards:
            run.log(shard.shard + 1, **_totals([shard]))
    points = [point for shard in shards for point in shard.points]
    run.finish({"demonstrations": _totals(shards), "too_few": _too_few(shards), "points": points})
    _report(Console(), run.path, shards)


def show(directory: Path) -> None:
    """Print a summary of a store, and write a contact sheet and a film of samples beside it."""
    console, shards = Console(), demonstrations.read_store(directory, demonstrations.without_images)
    _report(console, directory, shards)
    kept = [(shard.shard, *one) for shard in shards for one in enumerate(shard.demonstrations)]
    if not kept:
        return
    chosen = [kept[index] for index in sorted({round(i) for i in np.linspace(0, len(kept) - 1, SAMPLES)})]
    samples = [demonstrations.with_images(directory, *place).images for place in chosen]
    strips = [[sample[round(t)] for t in np.linspace(0, len(sample) - 1, STRIP)] for sample in samples]
    sheet, film = directory / "plots" / "contact_sheet.png", directory / "videos" / "samples.mp4"
    write_picture(sheet, tiled([[enlarged(frame, PICTURE) for frame in strip] for strip in strips]))
    first = next(demonstration for shard in shards for demonstration in shard.demonstrations)
    write_film(film, [frame for sample in samples for frame in sample], first.control_hz)
    console.print(f"{sheet}\n{film}", highlight=False)


@dataclass
class _Point:
    """The attempts at one grid point, and the episodes that are kept."""

    start: Start
    attempts: int = 0
    lost: int = 0
    last_failure: int | None = None  # its seed
    kept: list[Episode] = field(default_factory=list)

    def add(self, episode: Episode) -> None:
        self.attempts += 1
        self.lost += episode.lost
        if episode.success_at_end:
            self.kept.append(episode)
        elif not episode.lost:
            self.last_failure = episode.start.seed

    def facts(self, wanted: int) -> dict[str, Any]:
        failures = self.attempts - self.lost - len(self.kept)
        counts = {"attempts": self.attempts, "successes": len(self.kept), "failures": failures, "lost": self.lost}
        place = {"grid_point": self.start.grid_point, "task": self.start.task, "start": self.start.options}
        return {**place, **counts, "wanted": wanted, "last_failure": self.last_failure}


def _collected(
    envs: VectorEnv, policy: Policy, starts: Sequence[Start], config: DictConfig, advance: Callable[[], None]
) -> list[_Point]:
    """The points of one row of the grid. Each round is a full batch, with as many attempts at a point as it still lacks
    successes, until it has enough or was tried often enough.
    """
    points = {start.grid_point: _Point(start) for start in starts}
    noise, most = episode_seed("collect", config.seed), config.max_attempts * config.per_point

    def note(episode: Episode) -> None:
        if episode.success_at_end:
            advance()

    while True:
        attempts = []
        for name, point in points.items():
            missing = min(config.per_point - len(point.kept), most - point.attempts)
            numbers = range(point.attempts, point.attempts + missing)  # the number of an attempt alone decides its seed
            seeds = [episode_seed("attempt", config.seed, name, number) for number in numbers]
            attempts += [replace(point.start, seed=seed) for seed in seeds]
        if not attempts:
            return list(points.values())
        settings: dict[str, Any] = {"hold": hold_of(config.env), "seed": noise, "watched": lambda start: True}
        for episode in rollout(envs, policy, attempts, **settings, progress=note)[0]:
            points[episode.start.grid_point].add(episode)


def _totals(shards: Sequence[Shard]) -> dict[str, Any]:
    points = [point for shard in shards for point in shard.points]
    kept = [demonstration for shard in shards for demonstration in shard.demonstrations]
    counts = {name: sum(point[name] for point in points) for name in ("attempts", "successes", "failures", "lost")}
    covered = sum(point["successes"] > 0 for point in points)
    steps = sum(len(demonstration.success) for demonstration in kept)
    return {"points": len(points), "covered_points": covered, "steps": steps, **counts}


def _too_few(shards: Sequence[Shard]) -> list[dict[str, Any]]:
    """The grid points with fewer successes than wanted; older stores do not say how many were wanted."""
    points = [point for shard in shards for point in shard.points]
    return [point for point in points if point["successes"] < point.get("wanted", 1)]


def _report(console: Console, folder: Path, shards: Sequence[Shard]) -> None:
    """Successes and attempts at every grid point, one line per row; the totals; the points with too few successes."""
    table = Table("task", "row", "successes / attempts at each point", title=f"Demonstrations in {folder}")
    for shard in shards:
        cells = [f"{point['successes']}/{point['attempts']}" for point in shard.points]
        first = shard.points[0]
        row = f"x = {first['start']['object_xy'][0]:.3f} m" if "object_xy" in first["start"] else str(shard.shard)
        table.add_row(first["task"], row, "  ".join(f"{cell:>5}" for cell in cells))
    console.print(table)
    totals = _totals(shards)
    rate = wilson(totals["successes"], totals["attempts"] - totals["lost"])
    console.print(
        "{successes} episodes, {steps} steps; {covered_points} of {points} grid points covered; "
        "{attempts} attempts, {failures} failed, {lost} lost".format(**totals),
        f"({rate['rate']:.0%} succeeded [{rate['low']:.0%}, {rate['high']:.0%}])",
        highlight=False,
    )
    for point in _too_few(shards):
        xy = point["start"].get("object_xy")
        place = "x = {:.3f} m, y = {:.3f} m".format(*xy) if xy else f"point {point['grid_point']}"
        counted = f"{point['successes']} of {point['attempts']}, last failed seed {point.get('last_failure')}"
        console.print(f"too few: {point['task']}, {place}: {counted}", highlight=False)
