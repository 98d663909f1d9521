"""Whether the Google robot's tasks move on a GPU as they do on a CPU, and how fast, by number of environments.

For anyone with a GPU: the same random actions from the same start, once in the CPU's simulation (SAPIEN's Pinocchio and
ruckig) and once in N environments of a GPU's (PhysX on CUDA, batched kinematics and planner), compared step by step.
Exit status 1 where they differ by more than the tolerance. Where they do not, that is remembered in the cache with the
GPU, its driver and the simulator's versions, and the tasks are simulated on this GPU from then on (sim_backend=auto);
`vla-razor doctor` shows it. This has not been run on a GPU yet: none was at hand.
Known to differ there: PhysX does not tell Coriolis and centrifugal forces on a GPU, so they are not cancelled; and what
the drives need the arm's mass matrix for, moving and pushing as the original's (physx4.py), is left out.

With `--device cpu` the second run is a CPU simulation too, of one environment, driven by the batched kinematics and
planner: everything is compared but PhysX on CUDA.

    python scripts/check_gpu.py [--device cuda] [--envs 1 16 128 512] [--families pick_can drawer] [--json]
"""

import argparse
import json
import time
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from vla_razor.devices import remember_check
from vla_razor_envs.batched_kinematics import BatchedSolver, Iteration
from vla_razor_envs.setups import DRAWER_TASKS, SETUPS
from vla_razor_envs.single import build

# Metres of the TCP, and radians of any joint, before anything is touched. The second allows for a wrist near its limit.
TOLERANCE = {"tcp": 0.005, "joints": 0.05}
STARTS = {
    "pick_can": {"object_xy": (-0.3, 0.4), "orientation": "upright", "seed": 0},
    "drawer": {"station": "a2", "task": DRAWER_TASKS[0], "seed": 0},
}


def actions_of(steps: int) -> torch.Tensor:
    """Small random motions [T, 7]; the gripper opens and closes."""
    rng = np.random.default_rng(0)
    parts = [rng.uniform(-0.03, 0.03, (steps, 3)), rng.uniform(-0.1, 0.1, (steps, 3)), rng.integers(-1, 2, (steps, 1))]
    return torch.tensor(np.hstack(parts), dtype=torch.float32)


def open_task(family: str, device: str, count: int) -> Any:
    task = DRAWER_TASKS[0] if family == "drawer" else None
    return build(family, SETUPS[family, "google_robot"], (64, 64), task, device, count)


def use_batched(task: Any) -> None:
    """Lets a CPU simulation be driven by the batched kinematics and planner."""
    for part in task.agent.controller.controllers.values():
        part.compute_with(torch)
        if hasattr(part, "solve"):
            config, joints = part.config, [joint.name for joint in part.articulation.active_joints]
            iteration = Iteration(steps=config.ik_iterations, step=config.ik_step, damping=config.ik_damping)
            moving = part.active_joint_indices.tolist()
            part.solve = BatchedSolver(config.urdf_path, joints, moving, config.ee_link, iteration, "cpu")


def follow(task: Any, family: str, actions: torch.Tensor) -> tuple[dict[str, np.ndarray], float]:
    """TCP poses [T, N, 7] and joint positions [T, N, J] of an episode, and its seconds."""
    count = task.num_envs
    task.reset(options={"starts": [STARTS[family]] * count})
    motion: dict[str, list[np.ndarray]] = {"tcp": [], "joints": []}
    begin = time.perf_counter()
    for action in actions.to(task.device):
        info = task.advance(action.expand(count, -1))
        motion["tcp"].append(torch.as_tensor(info["tcp_pose"]).cpu().numpy())
        motion["joints"].append(task.agent.robot.get_qpos().cpu().numpy())
    seconds = time.perf_counter() - begin
    return {name: np.array(rows) for name, rows in motion.items()}, seconds


def compare(expected: dict[str, np.ndarray], found: dict[str, np.ndarray]) -> dict[str, float]:
    """The largest difference in any environment at any step: TCP in metres, joints in radians."""
    return {
        "tcp": float(abs(found["tcp"][..., :3] - expected["tcp"][..., :3]).max()),
        "joints": float(abs(found["joints"] - expected["joints"]).max()),
    }


def check(family: str, device: str, counts: list[int], steps: int) -> list[dict[str, Any]]:
    """One row for each number of environments."""
    actions = actions_of(steps)
    task = open_task(family, "cpu", 1)
    expected, _ = follow(task, family, actions)
    task.close()
    rows = []
    for count in counts:
        task = open_task(family, device, count)
        if device == "cpu":
            use_batched(task)
        found, _ = follow(task, family, actions)
        _, seconds = follow(task, family, actions)  # again, warm
        task.close()
        worst = compare(expected, found)
        met = all(worst[name] <= limit for name, limit in TOLERANCE.items())
        rows.append({"family": family, "envs": count, **worst, "met": met, "steps_per_second": count * steps / seconds})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--envs", nargs="+", type=int, default=[1, 16, 128, 512], help="on a CPU only 1")
    parser.add_argument("--families", nargs="+", default=list(STARTS), choices=list(STARTS))
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("this machine has no CUDA device; --device cpu compares all but PhysX on CUDA")
    counts = options.envs if options.device == "cuda" else [1]
    rows = [row for family in options.families for row in check(family, options.device, counts, options.steps)]
    table = Table("", "environments", "TCP, mm", "joints, mrad", "control steps/s", "")
    for row in rows:
        numbers = f"{row['tcp'] * 1e3:.3f}", f"{row['joints'] * 1e3:.3f}", f"{row['steps_per_second']:.1f}"
        table.add_row(row["family"], str(row["envs"]), *numbers, "equal" if row["met"] else "DIFFERENT")
    Console().print(table)
    passed = [family for family in options.families if all(row["met"] for row in rows if row["family"] == family)]
    if options.device == "cuda" and passed:
        kept = remember_check([f"{family} google_robot" for family in passed], torch.device("cuda"))
        Console().print(f"{' and '.join(passed)} are simulated on this GPU from now on: {kept}", highlight=False)
    if options.json:
        print(json.dumps({"device": options.device, "tolerance": TOLERANCE, "rows": rows}))
    raise SystemExit(0 if all(row["met"] for row in rows) else 1)


if __name__ == "__main__":
    main()
