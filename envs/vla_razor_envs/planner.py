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
        _plan(*row, limits, times.tolist())
        for row in zip(start.tolist(), velocity.tolist(), target.tolist(), strict=True)
    ]
    positions, velocities = torch.from_numpy(np.array(rows)).permute(1, 2, 0, 3)
    return positions, velocities


def _plan(
    start: list[float], velocity: list[float], target: list[float], limits: Limits, times: list[float]
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
    duration = path.duration
    states = [path.at_time(time) for time in times if time < duration]
    states += [path.at_time(duration)] * (len(times) - len(states))
    return [state[0] for state in states], [state[1] for state in states]
