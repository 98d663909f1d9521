"""The batched inverse kinematics against SAPIEN's Pinocchio, which solves for one arm at a time."""

from pathlib import Path

import numpy as np
import pytest
import sapien
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from mani_skill import PACKAGE_ASSET_DIR
from sapien.wrapper.pinocchio_model import PinocchioModel
from scipy.spatial.transform import Rotation

from vla_razor_envs.batched_kinematics import BatchedSolver, Chain, Iteration, forward_kinematics, inverse_kinematics

PANDA = Path(PACKAGE_ASSET_DIR) / "robots/panda/panda_v2.urdf"
PANDA_JOINTS = [f"panda_joint{i}" for i in range(1, 8)] + ["panda_finger_joint1", "panda_finger_joint2"]
REST = np.array([0.0, -0.2198, 0.0, -2.4542, 0.0, 2.2344, 0.7854])
GOOGLE = "mani_skill2_real2sim/assets/descriptions/googlerobot_description"
ARM = ("torso", "shoulder", "bicep", "elbow", "forearm", "wrist", "gripper")
GOOGLE_JOINTS = [f"joint_{name}" for name in (*ARM, "finger_right", "finger_left", "head_pan", "head_tilt")]
ITERATION = Iteration()


def pinocchio(urdf: str, joints: list[str], link: str) -> PinocchioModel:
    model = PinocchioModel(urdf, [0, 0, -9.81])
    model.set_joint_order(joints)
    model.set_link_order([link])
    return model


def solve_one(model: PinocchioModel, pose: np.ndarray, qpos: np.ndarray, arm: int) -> tuple[np.ndarray, bool, float]:
    """Its joints, whether it got there, and how far off it stopped."""
    moving = np.arange(len(qpos)) < arm
    solution, solved, error = model.compute_inverse_kinematics(
        0,
        sapien.Pose(pose[:3].tolist(), pose[3:].tolist()),
        initial_qpos=qpos,
        active_qmask=moving,
        max_iterations=ITERATION.steps,
        eps=ITERATION.tolerance,
        dt=ITERATION.step,
        damp=ITERATION.damping,
    )
    return solution[:arm], bool(solved), float(np.linalg.norm(error))


@pytest.fixture(scope="module")
def panda() -> tuple[PinocchioModel, Chain]:
    return pinocchio(PANDA.read_text(), PANDA_JOINTS, "panda_hand_tcp"), Chain.from_urdf(PANDA, "panda_hand_tcp")


def moved(pose: sapien.Pose, delta: np.ndarray) -> np.ndarray:
    """A pose displaced in the base frame, in float32 as the simulator holds it."""
    turned = Rotation.from_rotvec(delta[3:]) * Rotation.from_quat(np.roll(pose.q, -1))
    return np.concatenate([pose.p + delta[:3], np.roll(turned.as_quat(), 1)]).astype(np.float32)


unit = st.floats(-1, 1, width=32)


@settings(max_examples=60, deadline=None)
@given(arrays(float, (3, 7), elements=unit), arrays(float, (3, 6), elements=unit), st.sampled_from([0.02, 0.3, 1.5]))
def test_it_solves_and_fails_as_pinocchio_does(
    panda: tuple[PinocchioModel, Chain], turns: np.ndarray, deltas: np.ndarray, size: float
) -> None:
    model, chain = panda
    starts = np.c_[REST + 0.7 * turns, np.zeros((3, 2))]
    targets = []
    for start, delta in zip(starts, deltas, strict=True):
        model.compute_forward_kinematics(start)
        targets.append(moved(model.get_link_pose(0), size * delta))
    found, reached = inverse_kinematics(chain, torch.tensor(np.array(targets)), torch.tensor(starts[:, :7]), ITERATION)
    for i in range(3):
        expected, solved, error = solve_one(model, targets[i], starts[i], 7)
        if abs(error / ITERATION.tolerance - 1) < 0.01:
            continue  # rounding decides
        assert bool(reached[i]) == solved
        np.testing.assert_allclose(found[i], expected if solved else starts[i, :7], rtol=0, atol=1e-3)


@settings(max_examples=30, deadline=None)
@given(arrays(float, 7, elements=st.floats(-3, 3)))
def test_forward_kinematics_is_pinocchios(panda: tuple[PinocchioModel, Chain], qpos: np.ndarray) -> None:
    model, chain = panda
    model.compute_forward_kinematics(np.r_[qpos, 0, 0])
    expected = model.get_link_pose(0).to_transformation_matrix()
    np.testing.assert_allclose(forward_kinematics(chain, torch.tensor(qpos[None]))[0], expected, atol=1e-6)


def test_arms_do_not_touch_each_other(panda: tuple[PinocchioModel, Chain]) -> None:
    _, chain = panda
    rng = np.random.default_rng(0)
    starts = torch.tensor(REST + 0.3 * rng.normal(size=(8, 7)))
    places = forward_kinematics(chain, starts + 0.1 * torch.tensor(rng.normal(size=(8, 7))))
    turns = np.roll(Rotation.from_matrix(places[:, :3, :3].numpy()).as_quat(), 1, axis=1)
    targets = torch.cat([places[:, :3, 3], torch.tensor(turns)], 1)
    targets[3, 0] = 5  # out of reach: the others must not wait for it, nor it be moved
    together, reached = inverse_kinematics(chain, targets, starts, ITERATION)
    assert reached.tolist() == [i != 3 for i in range(8)] and torch.equal(together[3], starts[3])
    for i in range(8):
        alone, _ = inverse_kinematics(chain, targets[i : i + 1], starts[i : i + 1], ITERATION)
        np.testing.assert_allclose(together[i : i + 1], alone, atol=1e-9)


def test_recorded_targets_are_solved_as_pinocchio_solves_them(shared: Path) -> None:
    urdf = shared / "assets/real2sim" / GOOGLE / "google_robot_meta_sim_fix_wheel_fix_fingertip.urdf"
    link = "link_gripper_tcp"
    finite = urdf.read_text().replace('"inf"', '"1000"').replace('"-inf"', '"-1000"')
    model = pinocchio(finite, GOOGLE_JOINTS, link)
    solver = BatchedSolver(urdf, GOOGLE_JOINTS, [*range(7), 9, 10], link, ITERATION, "cpu")
    recorded, flags = [], []
    for file in sorted((shared / "traces").glob("*.npz")):
        trace = np.load(file)
        qpos, targets = trace["robot_qpos"][:-1], trace["ctrl_arm_target_pose_base"]
        found, reached = solver(torch.tensor(qpos), torch.tensor(targets))
        np.testing.assert_array_equal(found[:, 7:], qpos[:, 9:])  # the head stays
        for i in range(len(qpos)):
            expected, solved, _ = solve_one(model, targets[i], qpos[i].astype(float), 7)
            assert bool(reached[i]) == solved
            np.testing.assert_allclose(found[i, :7], expected if solved else qpos[i, :7], rtol=0, atol=1e-4)
        recorded += trace["ctrl_ik_success"].tolist()
        flags += reached.tolist()
    # The recorded targets are rounded to float32, which decides one of them.
    assert len(flags) > 800 and np.not_equal(flags, recorded).sum() <= 1


def test_what_is_wrong_with_a_chain_is_said(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no joint that leads to a link 'hand'"):
        Chain.from_urdf(PANDA, "hand")
    with pytest.raises(ValueError, match=r"panda_finger_joint1.* is prismatic; expected a revolute one"):
        Chain.from_urdf(PANDA, "panda_leftfinger")
    with pytest.raises(ValueError, match=r"panda_hand_tcp hangs on \['panda_joint7'\], which may not move"):
        BatchedSolver(PANDA, PANDA_JOINTS, range(6), "panda_hand_tcp", ITERATION, "cpu")
