"""Jerk-limited joint paths for one scene on a CPU, planned by ruckig (Berscheid and Kröger, 2021)."""

from __future__ import annotations

import numpy as np
import ruckig
from numba import njit

from .batched_planner import Limits


def plan(
    start: np.ndarray, velocity: np.ndarray, target: np.ndarray, limits: Limits, times: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """As `batched_planner.plan`, for one environment after the other, in numpy arrays."""
    rows = [_plan(*row, limits, times) for row in zip(start.tolist(), velocity.tolist(), target.tolist(), strict=True)]
    positions, velocities = (np.stack(part, 1) for part in zip(*rows, strict=True))
    return positions, velocities


def _plan(
    start: list[float], velocity: list[float], target: list[float], limits: Limits, times: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    joints = len(start)
    wanted = ruckig.InputParameter(joints)
    wanted.current_position, wanted.current_velocity = start, velocity
    wanted.target_position = target
    wanted.max_velocity = [limits.velocity] * joints
    wanted.max_acceleration = [limits.acceleration] * joints
    wanted.max_jerk = [limits.jerk] * joints
    path = ruckig.Trajectory(joints)
    try:
        ruckig.Ruckig(joints).calculate(wanted, path)
    except ruckig.RuckigError:  # it fails at distances that are rounding errors: the joints are there already
        return np.tile(target, (len(times), 1)), np.zeros((len(times), joints))
    return _sample(path, np.minimum(times, path.duration))


def _sample(path: ruckig.Trajectory, times: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Positions and velocities [T, J] at times [T]: what the path's `at_time` gives, for all times at once."""
    joints = path.profiles[0]
    motion = np.array([[each.p, each.v, each.a, [*each.j, 0.0]] for each in joints])
    return _along(motion, np.array([[*each.t, np.inf] for each in joints]), times)


@njit(cache=True)
def _along(motion, durations, times):
    """The same for joints that go through eight pieces of constant jerk, the last one at rest and without end.

    `durations` is [J, 8], `motion` [J, 4, 8]: position, velocity, acceleration and jerk at the beginning of each piece.
    """
    positions, velocities = np.empty((len(times), len(motion))), np.empty((len(times), len(motion)))
    for joint in range(len(motion)):
        piece, begin = 0, 0.0  # times rise, so the pieces are walked through once
        for step in range(len(times)):
            while times[step] >= begin + durations[joint, piece]:
                begin += durations[joint, piece]
                piece += 1
            left, (position, velocity, acceleration, jerk) = times[step] - begin, motion[joint, :, piece]
            positions[step, joint] = position + left * (velocity + left * (acceleration / 2 + left * jerk / 6))
            velocities[step, joint] = velocity + left * (acceleration + left * jerk / 2)
    return positions, velocities
