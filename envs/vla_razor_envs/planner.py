"""Jerk-limited joint paths for one scene on a CPU, planned by ruckig (Berscheid and Kröger, 2021)."""

import numpy as np
import ruckig
from numba import njit

from .batched_planner import Limits


def plan(
    start: np.ndarray, velocity: np.ndarray, target: np.ndarray, limits: Limits, times: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """As `batched_planner.plan`, for one environment after the other, in numpy arrays."""
    joints, rows = start.shape[1], []
    for place, speed, goal in zip(start.tolist(), velocity.tolist(), target.tolist(), strict=True):
        wanted = ruckig.InputParameter(joints)
        wanted.current_position, wanted.current_velocity, wanted.target_position = place, speed, goal
        wanted.max_velocity = [limits.velocity] * joints
        wanted.max_acceleration = [limits.acceleration] * joints
        wanted.max_jerk = [limits.jerk] * joints
        path = ruckig.Trajectory(joints)
        try:
            ruckig.Ruckig(joints).calculate(wanted, path)
        except ruckig.RuckigError:  # it fails at distances that are rounding errors: the joints are there already
            rows.append((np.tile(goal, (len(times), 1)), np.zeros((len(times), joints))))
            continue
        # What the path's `at_time` gives, for all times at once.
        profiles = path.profiles[0]
        motion = np.array([[each.p, each.v, each.a, [*each.j, 0.0]] for each in profiles])
        durations = np.array([[*each.t, np.inf] for each in profiles])
        rows.append(_along(motion, durations, np.minimum(times, path.duration)))
    positions, velocities = (np.stack(part, 1) for part in zip(*rows, strict=True))
    return positions, velocities


@njit(cache=True)
def _along(motion, durations, times):
    """Positions and velocities [T, J] at times [T] of joints that go
    through eight pieces of constant jerk, the last one at rest and without end.

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
