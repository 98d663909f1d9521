"""`vla-razor stats DIR`: the action statistics of demonstrations, by which OpenVLA's families turn actions into tokens
and back. With `policy` it also writes a copy of that policy with these statistics, to be trained on a robot or suite
for which it has none.

They are what OpenVLA's `dataset_statistics.json` holds: q01, q99, min, max, mean and standard deviation of every
dimension of actions and proprioception, and a mask of the dimensions that are normalised. All are, except a gripper in
[-1, 1] that the dataset's convention names, as in OpenVLA's own statistics.

The copy is a checkpoint in the run's folder: `policy=RUN` on any verb.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from vla_razor import conventions, recordings
from vla_razor.conventions import Convention
from vla_razor.data.oddities import of_episodes as odd_episodes
from vla_razor.errors import UserError
from vla_razor.files import full_disk_reported, write_json
from vla_razor.policies.load import load_model
from vla_razor.policies.openvla.conventions import SPOKEN_FOR, convention_of
from vla_razor.policies.openvla_oft import OpenVLAOFT
from vla_razor.rollouts import demonstrations
from vla_razor.runs import Run

FILE = "dataset_statistics.json"
CLIPPED = 10.0
"""A dimension whose whole range exceeds the one between its quantiles by this factor loses its large movements."""


def run(config: DictConfig, run: Run) -> None:
    """Compute the statistics, print what is odd about them, and write them."""
    if config.demos is None:
        raise UserError(
            "stats needs demonstrations: vla-razor stats DIR, a folder that `vla-razor collect` or `import` wrote."
        )
    run.restore()
    wanted = {"device": config.device, "dtype": config.dtype, "oft": config.oft}
    model = load_model(config.policy, **wanted) if config.policy else None  # before anything is written
    shards = demonstrations.read_store(config.demos, demonstrations.without_images)
    episodes = [episode for shard in shards for episode in shard.demonstrations]
    if not episodes:
        raise UserError(f"{config.demos}: no attempt succeeded, so there are no actions to describe.")
    robot = shards[0].robot
    name = config.unnorm_key or next(iter(SPOKEN_FOR.get(robot, ())), robot)
    convention = convention_of(name, robot)  # statistics are in the policy's convention, which may not be the robot's
    actions = np.concatenate([convention.from_environment(episode.labels) for episode in episodes])
    spoken = _convention(config.demos)
    found = {
        "action": {**described(actions), "mask": mask_of(config.mask, actions, spoken)},
        "proprio": described(np.concatenate([episode.proprioception for episode in episodes])),
        "num_transitions": sum(len(episode.success) for episode in episodes),
        "num_trajectories": len(episodes),
        **({"convention": spoken.facts()} if spoken else {}),
    }
    warnings = [*oddities(found["action"]), *odd_episodes(episodes, spoken)]
    write_json(run.path / FILE, {name: found})
    written = None
    if model:  # a copy, with these statistics beside its own
        model.config.norm_stats = {**model.config.norm_stats, name: found}
        if isinstance(model, OpenVLAOFT):  # its config fixes the numbers per control step
            model.config.dims = len(found["action"]["mean"])
        written = run.path / "checkpoints" / "step_0"
        if not written.is_dir():
            with full_disk_reported(written):
                model.save_pretrained(written)
    run.finish({"statistics": {name: found}, "odd": warnings, **({"checkpoint": str(written)} if written else {})})
    report(Console(), run.path, name, found, warnings, written)


def described(values: Float[np.ndarray, "N D"]) -> dict[str, list[Any]]:
    """q01, q99, min, max, mean and std of each dimension; `mask` marks all of them as normalised."""
    values = values.astype(np.float64)
    low, high = np.quantile(values, [0.01, 0.99], axis=0)
    columns = {"q01": low, "q99": high, "min": values.min(0), "max": values.max(0)}
    columns |= {"mean": values.mean(0), "std": values.std(0)}
    return {name: column.tolist() for name, column in columns.items()} | {"mask": [True] * values.shape[1]}


def oddities(action: Mapping[str, list[float]]) -> list[str]:
    """What would harm a policy that learns these actions."""
    found = []
    for index, (low, high, least, most) in enumerate(
        zip(*(action[name] for name in ("q01", "q99", "min", "max")), strict=True)
    ):
        if least == most:
            found.append(f"dimension {index} is {least:g} everywhere: the policy cannot move it.")
        elif most - least > CLIPPED * (high - low):
            span = f"98% of its values lie in [{low:.3g}, {high:.3g}], all of them in [{least:.3g}, {most:.3g}]"
            found.append(f"dimension {index} hardly moves: {span}. Tokens reach no farther than the first.")
    return found


def mask_of(
    asked: Sequence[bool] | None, actions: Float[np.ndarray, "N D"], convention: Convention | None
) -> list[bool]:
    """Which dimensions are normalised. Raises UserError where the mask that was given has another length."""
    dims = actions.shape[1]
    if asked is not None:
        if len(asked) != dims:
            raise UserError(f"mask={list(asked)}: {len(asked)} of the {dims} numbers of an action.")
        return list(asked)
    gripper = convention is not None and convention.gripper != "none" and bool(np.abs(actions[:, -1]).max() <= 1)
    return [True] * (dims - gripper) + [False] * gripper


def _convention(demos: str) -> Convention | None:
    """The convention in `dataset.yaml`, if there is one."""
    said = recordings.read_facts(demos).get("convention") if recordings.describes(demos) else None
    return conventions.parse(f"{demos}/{recordings.FILE}", said) if said else None


def report(
    console: Console, folder: Path, name: str, found: Mapping[str, Any], odd: Sequence[str], written: Path | None
) -> None:
    """One line per dimension, and what is odd."""
    counts = f"{found['num_trajectories']:,} episodes, {found['num_transitions']:,} control steps"
    table = Table("dimension", title=f"Actions of {name}: {counts}")
    columns = ("q01", "q99", "min", "max", "mean", "std")  # dimensions that are not normalised have a star
    for column in columns:
        table.add_column(column, justify="right")
    action = found["action"]
    for index in range(len(action["mean"])):
        table.add_row(
            f"{index}{'' if action['mask'][index] else '*'}", *(f"{action[column][index]:.4g}" for column in columns)
        )
    console.print(table)
    if not all(action["mask"]):
        console.print("* is not normalised", highlight=False)
    for oddity in odd:
        console.print(oddity, highlight=False)
    console.print(f"{folder / FILE}", highlight=False, soft_wrap=True)
    if written:
        console.print(f"a policy that has them: {written}", highlight=False, soft_wrap=True)
