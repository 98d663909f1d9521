"""Jerk-limited paths between joint positions, by ruckig (Berscheid and Kröger, 2021), for one scene on a CPU."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import ruckig
import torch
from torch import Tensor


@dataclass(frozen=True)
class Limits:
    """What no joint exceeds: rad/s, rad/s^2, rad/s^3."""

    velocity: float
    acceleration: float
    jerk: float


def plan(start: Tensor, velocity: Tensor, target: Tensor, limits: Limits, times: np.ndarray) -> tuple[Tensor, Tensor]:
    """The fastest paths from `start` at `velocity` to rest at `target` ([N, J], radians), all joints of a row arriving
    together: positions and velocities [T, N, J] at `times` [T], seconds; a path that has arrived stays.
    """
    rows = [_plan(*row, limits, times) for row in zip(start.tolist(), velocity.tolist(), target.tolist(), strict=True)]
    positions, velocities = torch.tensor(np.array(rows)).permute(1, 2, 0, 3)
    return positions, velocities


def _plan(
    start: list[float], velocity: list[float], target: list[float], limits: Limits, times: np.ndarray
) -> tuple[list[list[float]], list[list[float]]]:
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
        return [target] * len(times), [[0.0] * joints] * len(times)
    states = [path.at_time(time) for time in np.minimum(times, path.duration).tolist()]
    return [state[0] for state in states], [state[1] for state in states]
