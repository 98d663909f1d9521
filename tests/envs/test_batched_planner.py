"""The batched planner against ruckig, which plans one path at a time."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import ruckig
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from vla_razor_envs import planner
from vla_razor_envs.batched_planner import Limits, plan

ARM, GRIPPER = Limits(1.5, 2.0, 50.0), Limits(1.0, 7.0, 50.0)
TIMES = np.arange(172) / 513
Paths = tuple[np.ndarray, np.ndarray]


def by_ruckig(case: Sequence[np.ndarray], limits: Limits, times: np.ndarray) -> Paths:
    """Positions and velocities [T, N, J], from starts, velocities and targets [N, J]."""
    rows = []
    for row in zip(*case, strict=True):
        joints = len(row[0])
        wanted = ruckig.InputParameter(joints)
        wanted.current_position, wanted.current_velocity, wanted.target_position = row
        wanted.max_velocity = [limits.velocity] * joints
        wanted.max_acceleration = [limits.acceleration] * joints
        wanted.max_jerk = [limits.jerk] * joints
        path = ruckig.Trajectory(joints)
        assert ruckig.Ruckig(joints).calculate(wanted, path) == ruckig.Result.Working
        rows.append([path.at_time(time)[:2] for time in np.minimum(times, path.duration)])
    positions, velocities = np.array(rows).transpose(2, 1, 0, 3)
    return positions, velocities


def batched(case: Sequence[np.ndarray], limits: Limits, times: np.ndarray) -> Paths:
    start, velocity, target = (torch.tensor(x) for x in case)
    positions, velocities = plan(start, velocity, target, limits, torch.tensor(times))
    return positions.numpy(), velocities.numpy()


def draw(seed: int, limits: Limits, count: int = 300) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Starts, velocities and targets of many kinds: at rest, at the limit, almost there, far away, standing still."""
    rng = np.random.default_rng(seed)
    start = rng.normal(size=(count, 7))
    velocity = rng.uniform(-1, 1, (count, 7)) * limits.velocity * 10 ** rng.uniform(-4, 0, (count, 1))
    velocity[::5], velocity[1::7, ::2] = 0, 0
    velocity[3::11] = np.sign(velocity[3::11]) * limits.velocity
    reach = rng.normal(size=(count, 7)) * 10 ** rng.uniform(-5, 0.3, (count, 1))
    target = start + reach + velocity * rng.uniform(0, 0.4, (count, 7))
    target[2::9, ::3] = start[2::9, ::3]
    return start, velocity, target


@pytest.mark.parametrize("limits", [ARM, GRIPPER])
def test_paths_are_ruckigs(limits: Limits) -> None:
    case = draw(0, limits)
    (positions, velocities), (expected, speeds) = (way(case, limits, TIMES) for way in (batched, by_ruckig))
    np.testing.assert_allclose(positions, expected, rtol=0, atol=1e-6)
    np.testing.assert_allclose(velocities, speeds, rtol=0, atol=2e-4)


def test_one_environment_after_the_other_is_ruckig_itself() -> None:
    case = draw(2, ARM, 40)
    positions, velocities = planner.plan(*case, ARM, TIMES)
    expected, speeds = by_ruckig(case, ARM, TIMES)
    np.testing.assert_array_equal(positions, expected)
    np.testing.assert_allclose(velocities, speeds, rtol=0, atol=1e-15)


finite = st.floats(-1, 1, allow_subnormal=False).map(lambda x: 0.0 if abs(x) < 1e-9 else x)


@settings(max_examples=80, deadline=None)
@given(arrays(float, (4, 3), elements=finite), arrays(float, (4, 3), elements=finite), st.sampled_from([ARM, GRIPPER]))
def test_whatever_the_plan_it_follows_ruckig_and_ends_with_it(
    velocity: np.ndarray, target: np.ndarray, limits: Limits
) -> None:
    case = np.zeros_like(target), velocity * limits.velocity, target
    (positions, _), (expected, _) = (way(case, limits, TIMES) for way in (batched, by_ruckig))
    np.testing.assert_allclose(positions, expected, rtol=0, atol=1e-3)
    late = np.array([0.0, 10.0])
    (positions, velocities), (expected, _) = (way(case, limits, late) for way in (batched, by_ruckig))
    np.testing.assert_allclose(positions, expected, rtol=0, atol=1e-7)
    np.testing.assert_allclose(velocities[-1], 0, atol=1e-7)


@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.9])
@pytest.mark.parametrize("speed", [1e-3, 0.02, 0.1, 0.5, 1.4])
def test_a_joint_without_time_to_cruise_keeps_to_its_limits_and_arrives(speed: float, share: float) -> None:
    # It just has the time to stop: the second joint, from rest, needs a little longer than that.
    edge = ARM.acceleration / ARM.jerk
    stop = 2 * (speed / ARM.jerk) ** 0.5 if speed < ARM.acceleration * edge else speed / ARM.acceleration + edge
    half = (stop + 0.1 * min(edge, stop)) / 2
    top = ARM.jerk * half**2 / 4 if half < 2 * edge else ARM.acceleration * (half - edge)
    nearest, farthest = speed * stop / 2, speed * (2 * half - stop / 2)
    target = np.array([[nearest + share * (farthest - nearest), top * half]])
    case = np.zeros((1, 2)), np.array([[speed, 0.0]]), target
    times = np.linspace(0, 2 * half, 2000)
    positions, velocities = batched(case, ARM, times)
    np.testing.assert_allclose(positions[-1], target, atol=1e-9)
    np.testing.assert_allclose(velocities[-1], 0, atol=1e-7)
    accelerations = np.diff(velocities, axis=0) / np.diff(times)[:, None, None]
    assert abs(velocities).max() <= ARM.velocity + 1e-9 and abs(accelerations).max() <= ARM.acceleration + 1e-6
    assert abs(np.diff(accelerations, axis=0)).max() / np.diff(times).min() <= ARM.jerk * 1.01
    expected, _ = by_ruckig(case, ARM, times)
    np.testing.assert_allclose(positions, expected, rtol=0, atol=1e-3)


def test_environments_do_not_touch_each_other() -> None:
    case = draw(1, ARM, 20)
    together = batched(case, ARM, TIMES)[0]
    alone = np.concatenate([batched([x[i : i + 1] for x in case], ARM, TIMES)[0] for i in range(20)], axis=1)
    np.testing.assert_allclose(together, alone, rtol=0, atol=1e-12)


def test_recorded_plans_end_where_the_original_ended(shared: Path) -> None:
    for file in sorted((shared / "traces").glob("*.npz")):
        trace = np.load(file)
        case = [trace[f"ctrl_arm_{name}_qpos"] for name in ("path_start", "target")]
        case.insert(1, trace["ctrl_arm_path_start_qvel"])
        positions, velocities = batched(case, ARM, TIMES[-1:])
        np.testing.assert_allclose(positions[0], trace["ctrl_arm_path_end_qpos"], rtol=0, atol=1e-6)
        np.testing.assert_allclose(velocities[0], trace["ctrl_arm_path_end_qvel"], rtol=0, atol=1e-5)
