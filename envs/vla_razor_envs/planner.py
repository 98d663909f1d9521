"""Jerk-limited paths between joint positions, by ruckig (Berscheid and Kröger, 2021), for one scene on a CPU."""

from __future__ import annotations

import numpy as np
import ruckig
import torch
from torch import Tensor

from .batched_planner import Limits


def plan(start: Tensor, velocity: Tensor, target: Tensor, limits: Limits, times: Tensor) -> tuple[Tensor, Tensor]:
    """What `batched_planner.plan` returns, of one environment after the other."""
    rows = [
        _plan(*row, limits, times.numpy())
        for row in zip(start.tolist(), velocity.tolist(), target.tolist(), strict=True)
    ]
    positions, velocities = torch.from_numpy(np.array(rows)).permute(1, 2, 0, 3)
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
    except ruckig.RuckigError:  # it trips over distances of rounding errors: there is no way to go
        return np.tile(target, (len(times), 1)), np.zeros((len(times), joints))
    return _sample(path, np.minimum(times, path.duration))


def _sample(path: ruckig.Trajectory, times: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Positions and velocities [T, J] at times [T]: what the path's `at_time` says, for all times at once."""
    joints = path.profiles[0]
    # By joint and piece, seven of constant jerk and the rest: the motion as it begins, and when the piece ends.
    motion = np.array([[*each.p, *each.v, *each.a, *each.j, 0.0, *each.t, np.inf] for each in joints])
    motion = motion.reshape(len(joints), 5, 8).swapaxes(0, 1)
    ends = motion[4].cumsum(1)
    motion[4, :, 0], motion[4, :, 1:] = 0.0, ends[:, :-1]
    first = np.zeros((len(joints), 9), int)  # of the times that lie in a piece, and where the last piece has none left
    first[:, 1:] = times.searchsorted(ends)
    parts = motion.reshape(5, -1).repeat((first[:, 1:] - first[:, :-1]).ravel(), 1).reshape(5, len(joints), -1)
    position, velocity, acceleration, jerk, begin = parts
    left = times - begin
    position = position + left * (velocity + left * (acceleration / 2 + left * jerk / 6))
    return position.T, (velocity + left * (acceleration + left * jerk / 2)).T
