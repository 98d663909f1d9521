"""The original's drives against a plain simulation of them, and the targets that repeat their motion."""

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vla_razor_envs.physx4 import LINK_DAMPING, PASSES, ArmDrives

TIMESTEP, STEPS, JOINTS = 1 / 513, 60, 4
NO_SPEED = np.zeros((STEPS, JOINTS))


@dataclass(frozen=True)
class Arm:
    """An arm of constant inertia, and the waypoints [STEPS, JOINTS] of a jerk-free motion from its place."""

    drives: ArmDrives
    inertia: np.ndarray
    place: np.ndarray
    waypoints: np.ndarray


def arm(seed: int, stride: float = 0.1) -> Arm:
    """Joints between 0.1 and 3 rad that move by up to `stride` radians, tied to each other by their inertia."""
    rng = np.random.default_rng(seed)
    ties = rng.normal(size=(JOINTS, JOINTS))
    inertia = ties @ ties.T * 0.1 + np.diag(rng.uniform(0.01, 0.5, JOINTS))
    place = rng.uniform(0.1, 3, JOINTS).astype(np.float32).astype(np.float64)
    along = np.linspace(0, 1, STEPS)[:, None] ** 2
    drives = ArmDrives(rng.uniform(300, 2000, JOINTS), rng.uniform(200, 1200, JOINTS), TIMESTEP)
    return Arm(drives, inertia, place, place + along * rng.uniform(-stride, stride, JOINTS))


def original(arm: Arm, wanted_velocity: np.ndarray = NO_SPEED) -> np.ndarray:
    """Positions after each physics step [STEPS, JOINTS]: pass for pass, drive for drive."""
    response, timestep = np.linalg.inv(arm.inertia), arm.drives.timestep
    stiffness, damping = arm.drives.stiffness, arm.drives.damping
    resistance = timestep * (timestep * stiffness + damping)
    place, speed, places = np.float32(arm.place), np.zeros(JOINTS), []
    for waypoint, velocity in zip(arm.waypoints, wanted_velocity, strict=True):
        speed = speed * (1 - LINK_DAMPING * timestep)
        wanted = timestep * (stiffness * (np.float32(waypoint) - place) + damping * velocity)
        pushed = np.zeros(JOINTS)
        for turn in range(PASSES + 1):
            for joint in range(JOINTS):
                way = 1 / (1 + resistance[joint] * response[joint, joint])
                more = way * (wanted[joint] - pushed[joint] - resistance[joint] * speed[joint])
                pushed[joint] += more
                speed = speed + response[:, joint] * more
            if turn < PASSES:
                place = place + np.float32(timestep / PASSES * speed)
        places.append(place)
    return np.array(places, dtype=np.float64)


def implicit(arm: Arm, targets: np.ndarray, share: np.ndarray) -> np.ndarray:
    """The same of implicit steps towards the targets, as PhysX 5 makes them, with gains times the share."""
    timestep, stiffness, damping = arm.drives.timestep, share * arm.drives.stiffness, share * arm.drives.damping
    resistance = np.diag(timestep * (timestep * stiffness + damping))
    place, speed, places = arm.place, np.zeros(JOINTS), []
    for target in targets:
        momentum = arm.inertia @ speed * (1 - LINK_DAMPING * timestep)
        speed = np.linalg.solve(arm.inertia + resistance, momentum + timestep * stiffness * (target - place))
        place = place + timestep * speed
        places.append(place)
    return np.array(places)


def repeated(arm: Arm, wanted_velocity: np.ndarray = NO_SPEED, factor: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    factors, still = np.full(JOINTS, factor), np.zeros(JOINTS)
    return arm.drives.targets(arm.place, still, arm.waypoints, wanted_velocity, lambda _: arm.inertia, factors)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6))
def test_implicit_steps_towards_the_targets_repeat_the_originals_motion(seed: int) -> None:
    one = arm(seed)
    theirs = original(one)
    assert np.ptp(theirs, axis=0).max() > 1e-4, "it moves"
    np.testing.assert_allclose(implicit(one, *repeated(one)), theirs, atol=1e-6)


def test_however_hard_the_drives_push_a_free_arm_moves_alike() -> None:
    one = arm(4)
    (_, shares), (targets, lower) = repeated(one), repeated(one, factor=0.5)
    np.testing.assert_allclose(lower, shares / 2)
    np.testing.assert_allclose(implicit(one, targets, lower), original(one), atol=1e-6)


def test_without_them_it_would_be_another_motion() -> None:
    one = arm(3)
    plain = implicit(one, one.waypoints, np.ones(JOINTS))
    assert abs(plain - original(one)).max() > 1e-5


def test_commanded_velocities_are_part_of_the_motion() -> None:
    one = arm(2)
    velocities = np.gradient(one.waypoints, TIMESTEP, axis=0)
    theirs = original(one, velocities)
    assert abs(theirs - original(one)).max() > 1e-3
    np.testing.assert_allclose(implicit(one, *repeated(one, velocities)), theirs, atol=1e-6)


@pytest.mark.parametrize(("place", "moves"), [(0.1, True), (1.5, False)])
def test_a_joint_far_from_nought_stops_short_of_its_target(place: float, moves: bool) -> None:
    """Half the last digit of 1.5 is 6e-8 rad, a 25th of a step at 0.8 mrad/s."""
    still = np.full(JOINTS, place, np.float32).astype(np.float64)
    drives = ArmDrives(np.full(JOINTS, 1000.0), np.full(JOINTS, 500.0), TIMESTEP)  # 0.4 mrad/s for 0.2 mrad
    one = Arm(drives, 0.1 * np.eye(JOINTS), still, np.tile(still + 2e-4, (STEPS, 1)))
    theirs = implicit(one, *repeated(one))
    assert (theirs[-1] > still + 1e-6).all() == moves
    assert moves or abs(theirs - still).max() < 1e-9


@given(st.floats(10, 3000), st.floats(1, 1500), st.floats(0.01, 10000))
def test_a_blocked_drive_pushes_with_what_its_passes_have_gathered(
    stiffness: float, damping: float, response: float
) -> None:
    resistance = TIMESTEP * (TIMESTEP * stiffness + damping)
    way, pushed = 1 / (1 + resistance * response), 0.0
    for _ in range(26):
        pushed += way * (1 - pushed)  # a contact takes the joint's speed away after each
    drives = ArmDrives(np.array([stiffness]), np.array([damping]), TIMESTEP)
    assert drives.share(np.array([response]))[0] == pytest.approx(pushed)
