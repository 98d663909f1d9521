"""The port against episodes recorded in the original SimplerEnv.

scripts/fidelity.py replays all of them; here are those that between them lift, drop, miss, open, close and do anything.
"""

from pathlib import Path

import numpy as np
import pytest
import torch

from scripts.fidelity import Comparison, _table, compare, traces
from vla_razor_envs.batched_kinematics import Iteration
from vla_razor_envs.google_robot import ARM, FINGERS, PACKAGED
from vla_razor_envs.kinematics import ClosedLoopSolver

slow = pytest.mark.slow
JOINTS = [*list(ARM)[:7], *FINGERS, *list(ARM)[7:]]  # in the traces' order
MOVING = [0, 1, 2, 3, 4, 5, 6, 9, 10]
EPISODES = (
    "coke_oracle_laid_vertically_3",
    "coke_edge_drop_late_upright",
    "coke_oracle_lr_switch_0",
    "coke_random_lr_switch_0",
    "drawer_oracle_open_top_b1",
    "drawer_oracle_close_middle_c1",
)


def test_the_solver_gives_the_recorded_joint_targets_and_failures(shared: Path) -> None:
    solve = ClosedLoopSolver(
        PACKAGED / "google_robot_chain.urdf", JOINTS, MOVING, "link_gripper_tcp", Iteration(steps=100, step=0.1)
    )
    for path in traces(shared / "traces"):
        with np.load(path) as trace:
            for qpos, target, wanted, known in zip(
                torch.from_numpy(trace["robot_qpos"][:-1]),
                torch.from_numpy(trace["ctrl_arm_target_pose_base"]),
                trace["ctrl_arm_target_qpos"],
                trace["ctrl_ik_success"],
                strict=True,
            ):
                solution, solved = solve(qpos[None], target[None])
                assert bool(solved[0]) == known
                if known:
                    np.testing.assert_allclose(solution[0], wanted, atol=1e-6)


def test_the_table_says_how_far_off_a_dropped_can_ends() -> None:
    still, row = np.zeros(2), "0.00 | 0.00 | 0.0 | rolls, 194.0 | 0 of 1 | 0 |"
    differing = {"success": np.array([]), "ik": np.array([])}
    dropped = Comparison("coke_edge_drop", still, np.array([0, 0.194]), still, differing, np.ones(2, bool), True)
    assert _table([dropped]).endswith(f"| `coke_edge_drop` | {row}")


@pytest.fixture(scope="module")
def comparisons(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Comparison]:
    folder = tmp_path_factory.mktemp("traces")
    for name in EPISODES:
        (folder / f"{name}.npz").symlink_to(shared / "traces" / f"{name}.npz")
    return list(compare(folder))


@slow
def test_success_agrees_at_every_end_and_nearly_every_step(comparisons: list[Comparison]) -> None:
    steps = {one.name: len(one.tcp) - 1 for one in comparisons}
    assert set(steps) == set(EPISODES)
    for one in comparisons:
        assert steps[one.name] - 1 not in one.differing["success"], one.name
    assert sum(len(one.differing["success"]) for one in comparisons) <= 0.02 * sum(steps.values())


@slow
def test_poses_agree_before_contact_and_at_the_end(comparisons: list[Comparison]) -> None:
    before = np.concatenate([one.tcp[one.before_contact] for one in comparisons])
    assert np.median(before) < 2e-5 and before.max() < 1e-3
    for one in comparisons:
        if not one.dropped:  # what is dropped rolls
            assert one.thing[-1] < 0.005, one.name


@slow
def test_inverse_kinematics_fails_where_the_original_fails(comparisons: list[Comparison]) -> None:
    for one in comparisons:
        assert len(one.differing["ik"]) == 0, one.name


@slow
def test_fingers_that_close_on_a_can_are_told_what_the_originals_are(comparisons: list[Comparison]) -> None:
    for one in comparisons:
        if one.name.startswith("coke"):  # ours are told no more than their limit, 0.01 rad below
            assert one.fingers.max() < 0.02, one.name
