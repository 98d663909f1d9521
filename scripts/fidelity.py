"""Replays episodes that were recorded in the original SimplerEnv through the port, and compares them.

    python scripts/fidelity.py TRACES   # the folder with *.npz; prints the table of docs/simplerenv.md

Before contact means before the recorded can or drawer has moved, or the recorded gripper has closed by more than half;
a can that was dropped rolls, which is said beside where it ends.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import gymnasium
import numpy as np

import vla_razor_envs  # noqa: F401
from scripts.compare_pictures import start_of

CAN_FLAGS = ("is_grasped", "consecutive_grasp", "lifted_object", "lifted_object_significantly", "success")


@dataclass(frozen=True)
class Comparison:
    """One episode: distances in metres between the port's and the recorded poses at every step, and in radians between
    the last targets of the fingers; the steps at which a flag or the outcome of inverse kinematics differs, and which
    steps come before contact.
    """

    name: str
    tcp: np.ndarray
    thing: np.ndarray
    fingers: np.ndarray
    differing: dict[str, np.ndarray]
    before_contact: np.ndarray
    dropped: bool


def traces(folder: Path) -> list[Path]:
    """The recorded episodes of a folder, cans first."""
    return sorted(folder.glob("*.npz"))


def replay(env: gymnasium.Env, path: Path) -> Comparison:
    """Replays one recorded episode in an environment of its family."""
    with np.load(path) as file:
        trace = dict(file)
    can = "obj_pose_world" in trace
    infos, solved, told = [env.reset(seed=0, options=start_of(trace))[1]], [], []
    arm, gripper = env.unwrapped.task.agent.controller.controllers.values()  # type: ignore[attr-defined]
    for action in trace["action"]:
        infos.append(env.step(action)[-1])
        solved.append(bool(arm.solved[0]))
        told.append(gripper.waypoints[-1, 0])
    tcp = _distance(np.array([info["tcp_pose"] for info in infos]), trace["tcp_pose_base"])
    if can:
        recorded = trace["obj_pose_world"]
        thing = _distance(np.array([info["object_pose"] for info in infos]), recorded)
        moved = np.linalg.norm(recorded[:, :3] - recorded[0, :3], axis=1)
    else:
        recorded = trace["cabinet_qpos"]
        thing = np.abs(np.array([info["drawer_qpos"] for info in infos]) - recorded).max(1)
        moved = np.abs(recorded - recorded[0]).max(1)
    flags = CAN_FLAGS if can else ("success",)
    differing = {
        flag: np.flatnonzero(
            [info[flag] != known for info, known in zip(infos[1:], trace[f"flag_{flag}"], strict=True)]
        )
        for flag in flags
    }
    differing["ik"] = np.flatnonzero(np.array(solved) != trace["ctrl_ik_success"])
    touched = np.maximum.accumulate((moved > 1e-3) | (trace["gripper_qpos"].max(1) > 0.7))
    fingers = np.abs(np.array(told) - trace["ctrl_gripper_path_end_qpos"]).max(1)
    return Comparison(path.stem, tcp, thing, fingers, differing, ~touched, "drop" in path.stem)


def compare(folder: Path) -> Iterator[Comparison]:
    """Replays every episode of a folder, with two environments in all."""
    kinds = {"coke": "PickCan-v1", "drawer": "Drawer-v1"}
    for kind, name in kinds.items():
        with closing(
            gymnasium.make(f"vla_razor/{name}", robot="google_robot", image_size=(8, 10), overlay=False)
        ) as env:
            for path in traces(folder):
                if path.stem.startswith(kind):
                    yield replay(env, path)


def _distance(ours: np.ndarray, recorded: np.ndarray) -> np.ndarray:
    return np.linalg.norm(ours[:, :3] - recorded[:, :3], axis=1)


def _table(comparisons: list[Comparison]) -> str:
    rows = [
        "| episode | TCP before contact, median | worst | TCP, worst of all | can or drawer at the end | "
        "steps with another `success` | inverse kinematics |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for one in comparisons:
        before = one.tcp[one.before_contact] * 1e3
        end = f"{'rolls, ' if one.dropped else ''}{one.thing[-1] * 1e3:.1f}"
        rows.append(
            f"| `{one.name}` | {np.median(before):.2f} | {before.max():.2f} | {one.tcp.max() * 1e3:.1f} | {end} | "
            f"{len(one.differing['success'])} of {len(one.tcp) - 1} | {len(one.differing['ik'])} |"
        )
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("traces", type=Path)
    print(_table(list(compare(parser.parse_args().traces))))


if __name__ == "__main__":
    main()
