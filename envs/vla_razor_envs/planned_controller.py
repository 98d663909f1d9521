"""The Google robot's controllers, as SimplerEnv has them: a jerk-limited path to the joint positions that an action
asks for, followed from one physics step to the next.
"""

# ManiSkill's and SAPIEN's annotations are narrower than what they take.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportIncompatibleMethodOverride=false
# pyright: reportIncompatibleVariableOverride=false, reportOperatorIssue=false, reportReturnType=false, reportCallIssue=false

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from mani_skill.agents.controllers.pd_joint_pos import PDJointPosController, PDJointPosControllerConfig

from . import batched_planner, planner
from .batched_planner import Limits
from .controller import EndEffectorDelta, EndEffectorDeltaConfig

ARM_LIMITS, GRIPPER_LIMITS = Limits(1.5, 2.0, 50.0), Limits(1.0, 7.0, 50.0)


class PathFollower(PDJointPosController):
    """Plans a path [T + 1, N, J]: its beginning, and one waypoint for each of T physics steps, commanded to the joints'
    drives before the step.

    A waypoint beyond a joint's limit is commanded as the limit. PhysX 4 clamps the targets of its drives, so that the
    joint slows down on its way there. PhysX 5 does not, and the joint would run into the limit.
    """

    def _initialize_joints(self) -> None:
        super()._initialize_joints()
        self.compute_with(torch if self.device.type == "cuda" else np)

    def compute_with(self, xp: Any) -> None:
        """Chooses how paths are planned and kept. With numpy, ruckig plans them, one environment after the other; with
        torch they are planned for all environments at once. For the one environment of a CPU scene, tensor operations
        would take longer than ruckig.
        """
        self.xp, limits = xp, self.articulation.qlimits[:1, self.active_joint_indices].unbind(2)
        self._plan = planner.plan if xp is np else batched_planner.plan
        self._reach = [xp.asarray(limit, dtype=xp.float64) for limit in limits]
        steps = torch.arange(self._sim_steps + 1, device=self.device).double()
        self._times = xp.asarray(steps * self.scene.timestep)

    def _renewed(self, now: Any, before: Any) -> Any:
        """`now` in environments where an episode begins, `before` in the others; [N, J]."""
        return self.xp.where(self.scene._reset_mask[:, None], now, self.xp.asarray(before))

    def _follow(self, start: Any, velocity: Any, target: Any) -> None:
        self._path = self._plan(start, velocity, target, self.config.limits, self._times)

    @property
    def waypoints(self) -> Any:
        """Positions to command, [T, N, J]."""
        return self._path[0][1:].clip(*self._reach)

    @property
    def speeds(self) -> Any:
        """Velocities at the waypoints, [T, N, J]."""
        return self._path[1][1:]


class PlannedEndEffectorDelta(PathFollower, EndEffectorDelta):
    """`EndEffectorDelta` on a path that begins where the last one ended, at the velocity that it ended with."""

    config: PlannedEndEffectorDeltaConfig

    def reset(self) -> None:
        super().reset()
        begin = self.qpos.double(), torch.zeros_like(self.qpos).double()
        self._end = tuple(map(self._renewed, begin, getattr(self, "_end", begin)))

    def set_action(self, action: Any) -> None:
        self._follow(*self._end, self._aim(self.xp.asarray(action)))
        positions, velocities = self._path
        self._end = positions[-1], velocities[-1]


@dataclass
class PlannedEndEffectorDeltaConfig(EndEffectorDeltaConfig):
    """Bounds of the path besides those of the displacement."""

    limits: Limits = ARM_LIMITS
    controller_cls: Any = PlannedEndEffectorDelta


class PlannedGripperDelta(PathFollower):
    """One number moves both fingers: +1 closes by `reach` radians, -1 opens, from where they were last commanded to be;
    less than `smallest` radians repeats the last target. The path begins at the measured positions and velocities, as
    the original would read them, and its `speeds` are to be commanded with it.
    """

    config: PlannedGripperDeltaConfig

    def _initialize_action_space(self) -> None:
        self.single_action_space = spaces.Box(-1.0, 1.0, (1,), dtype=np.float32)

    def compute_with(self, xp: Any) -> None:
        super().compute_with(xp)
        (low, high), margin = self._reach, self.config.margin
        self._bounds = low - margin, high + margin
        self._columns = xp.asarray(self.active_joint_indices)
        self._read = xp.asarray(torch.tensor(self.config.read, device=self.device).double())

    def reset(self) -> None:
        super().reset()
        now = self.qpos
        self._target = self._renewed(now, getattr(self, "_target", now))
        self._commanded = self._renewed(now.double(), getattr(self, "_commanded", now))
        self._commanded_speed = self._renewed(0 * now, getattr(self, "_commanded_speed", now))

    def set_action(self, action: Any, pinching: Any) -> None:
        """The action [N, 1], and whether the fingers hold something light between them, [N]."""
        xp, fastest, (stiffness, damping) = self.xp, self.config.limits.velocity, self.config.drive
        delta = xp.asarray(action, dtype=xp.float64) * self.config.reach
        moved = xp.asarray((self._commanded + delta).clip(*self._bounds), dtype=xp.float32)
        self._target = xp.where(abs(delta) < self.config.smallest, self._target, moved)
        position, velocity = (
            xp.asarray(part)[:, self._columns] for part in (self.articulation.qpos, self.articulation.qvel)
        )
        push = stiffness * (self._commanded - position) + damping * self._commanded_speed
        velocity = xp.where(xp.asarray(pinching)[:, None], self._read * push, velocity)
        self._follow(position, velocity.clip(-fastest, fastest), self._target)
        self._commanded, self._commanded_speed = (part[-1] for part in self._path)


@dataclass
class PlannedGripperDeltaConfig(PDJointPosControllerConfig):
    """`reach`, `margin` beyond the joints' limits (a trick that keeps a force on what is grasped) and `smallest` in
    radians; the original's `drive`, stiffness in N m/rad and damping in N m s/rad, and the speed `read` of each finger
    that pinches something, rad/s for each N m that its drive would push with.
    """

    lower: Any = None
    upper: Any = None
    stiffness: Any = 0.0
    damping: Any = 0.0
    drive: tuple[float, float] = (0.0, 0.0)
    read: Sequence[float] = (0.0, 0.0)
    reach: float = 1.31
    margin: float = 0.01
    smallest: float = 1e-3
    limits: Limits = GRIPPER_LIMITS
    normalize_action: bool = False
    controller_cls: Any = PlannedGripperDelta
