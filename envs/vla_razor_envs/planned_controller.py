"""The Google robot's controllers, as SimplerEnv has them: a jerk-limited path to the joint positions that an action
asks for, followed from one physics step to the next.
"""

# ManiSkill's and SAPIEN's annotations are narrower than what they take.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportIncompatibleMethodOverride=false
# pyright: reportIncompatibleVariableOverride=false, reportOperatorIssue=false, reportReturnType=false, reportCallIssue=false

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from mani_skill.agents.controllers.pd_joint_pos import PDJointPosController, PDJointPosControllerConfig
from torch import Tensor

from . import batched_planner, kinematics, planner
from .batched_planner import Limits
from .controller import EndEffectorDelta, EndEffectorDeltaConfig

ARM_LIMITS, GRIPPER_LIMITS = Limits(1.5, 2.0, 50.0), Limits(1.0, 7.0, 50.0)


class PathFollower(PDJointPosController):
    """Plans a path [T + 1, N, J] whose waypoints are the drives' targets, one before each physics step; the first is
    where it begins.

    A waypoint beyond a joint's limit is commanded as the limit: PhysX 4 clamps the targets of its drives, so that the
    joint slows down on its way there, and PhysX 5 does not, so that it would run into the limit.
    """

    def _initialize_joints(self) -> None:
        super()._initialize_joints()
        self._plan = batched_planner.plan if self.device.type == "cuda" else planner.plan
        self._reach = self.articulation.qlimits[:1, self.active_joint_indices].double().unbind(2)
        self._times = torch.arange(self._sim_steps + 1, device=self.device).double() * self.scene.timestep

    def _follow(self, start: Tensor, velocity: Tensor, target: Tensor) -> None:
        self._path = self._plan(start, velocity, target, self.config.limits, self._times)

    @property
    def waypoints(self) -> Tensor:
        """Positions to command, [T, N, J]."""
        return self._path[0][1:].clamp(*self._reach)

    @property
    def speeds(self) -> Tensor:
        """Velocities at the waypoints, [T, N, J]."""
        return self._path[1][1:]


class PlannedEndEffectorDelta(PathFollower, EndEffectorDelta):
    """`EndEffectorDelta` on a path that begins where the last one ended, at the velocity that it ended with."""

    config: PlannedEndEffectorDeltaConfig

    def reset(self) -> None:
        super().reset()
        new = self.scene._reset_mask[:, None]
        begin = self.qpos.double(), torch.zeros_like(self.qpos).double()
        last = getattr(self, "_end", begin)
        self._end = tuple(torch.where(new, now, before) for now, before in zip(begin, last, strict=True))

    def _displaced(self, action: Tensor) -> Tensor:
        if self.device.type == "cuda":
            return super()._displaced(action)
        bodies = self.articulation._objs[0].root, self.end_link._objs[0]
        return kinematics.displaced(*(body.entity_pose for body in bodies), action[0].tolist())

    def set_action(self, action: Tensor) -> None:
        start, velocity = self._end
        self._follow(start, velocity, self._aim(action))
        positions, velocities = self._path
        self._end = positions[-1], velocities[-1]


@dataclass
class PlannedEndEffectorDeltaConfig(EndEffectorDeltaConfig):
    """Bounds of the path besides those of the displacement."""

    limits: Limits = ARM_LIMITS
    controller_cls: Any = PlannedEndEffectorDelta


class PlannedGripperDelta(PathFollower):
    """One number moves both fingers: +1 closes by `reach` radians, -1 opens, from where they were last commanded to be;
    less than `smallest` radians repeats the last target. The path begins at the measured positions and velocities, and
    its velocities are commanded too.
    """

    config: PlannedGripperDeltaConfig

    def _initialize_action_space(self) -> None:
        self.single_action_space = spaces.Box(-1.0, 1.0, (1,), dtype=np.float32)

    def _initialize_joints(self) -> None:
        super()._initialize_joints()
        (low, high), margin = self._reach, self.config.margin
        self._bounds = low - margin, high + margin

    def reset(self) -> None:
        super().reset()
        now, new = self.qpos.double(), self.scene._reset_mask[:, None]
        self._commanded = torch.where(new, now, getattr(self, "_commanded", now))

    def set_action(self, action: Tensor) -> None:
        delta = action.double() * self.config.reach
        moved = (self._commanded + delta).clamp(*self._bounds).float()
        self._target_qpos = torch.where(delta.abs() < self.config.smallest, self._target_qpos, moved)
        fastest = self.config.limits.velocity
        self._follow(self.qpos, self.qvel.clamp(-fastest, fastest), self._target_qpos)
        self._commanded = self._path[0][-1]


@dataclass
class PlannedGripperDeltaConfig(PDJointPosControllerConfig):
    """`reach`, `margin` beyond the joints' limits (a trick that keeps a force on what is grasped) and `smallest` in
    radians.
    """

    lower: Any = None
    upper: Any = None
    stiffness: Any = 0.0
    damping: Any = 0.0
    reach: float = 1.31
    margin: float = 0.01
    smallest: float = 1e-3
    limits: Limits = GRIPPER_LIMITS
    normalize_action: bool = False
    controller_cls: Any = PlannedGripperDelta
