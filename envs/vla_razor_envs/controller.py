"""End-effector delta control: what a VLA's seven action numbers mean to the arm.

ManiSkill's own controller of that name multiplies the rotation by its lower bound, which inverts its sign (ManiSkill
issue 1469), and reads three Euler angles where it documents axis-angle (issue 1138). Here, as in SimplerEnv, the
translation is added to the measured position along the base's axes, and the axis-angle rotation is left-multiplied, in
the base frame, onto the measured orientation.
"""

# ManiSkill's and SAPIEN's annotations are narrower than what they take.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportIncompatibleMethodOverride=false
# pyright: reportIncompatibleVariableOverride=false, reportOperatorIssue=false, reportReturnType=false

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from mani_skill.agents.controllers.pd_joint_pos import PDJointPosController, PDJointPosControllerConfig

from . import kinematics
from .batched_kinematics import BatchedSolver, Iteration
from .geometry import Frame, displaced, pose_of
from .kinematics import ClosedLoopSolver


class EndEffectorDelta(PDJointPosController):
    """Moves the end effector by a bounded displacement from its measured pose, through damped least-squares inverse
    kinematics.

    Where the inverse kinematics finds no solution, the arm holds its measured joint positions.
    """

    config: EndEffectorDeltaConfig

    def _initialize_joints(self) -> None:
        super()._initialize_joints()
        config = self.config
        self.end_link = self.articulation.links_map[config.ee_link]
        joints, moving = [joint.name for joint in self.articulation.active_joints], self.active_joint_indices.tolist()
        iteration = Iteration(steps=config.ik_iterations, step=config.ik_step, damping=config.ik_damping)
        arm = config.urdf_path, joints, moving, config.ee_link, iteration
        self.solve = BatchedSolver(*arm, self.device) if self.device.type == "cuda" else ClosedLoopSolver(*arm)

    def _initialize_action_space(self) -> None:
        high = np.repeat(np.float32([self.config.translation, self.config.rotation]), 3)
        self.single_action_space = spaces.Box(-high, high, dtype=np.float32)

    def reset(self) -> None:
        super().reset()
        if isinstance(self.solve, BatchedSolver):
            self._base = Frame.at(self.articulation.pose.raw_pose)  # stands still during an episode

    def set_action(self, action: Any) -> None:
        drive(self, self._aim(action))

    def _aim(self, action: Any) -> Any:
        """The joint positions [N, J] for a displacement [N, 6] of the end effector; an array for the one robot of a
        CPU.
        """
        if isinstance(self.solve, BatchedSolver):
            qpos, now = self.articulation.get_qpos(), self._base.localize(torch.as_tensor(pose_of(self.end_link)))
            solution, self.solved = self.solve(qpos, displaced(now, action))
            return solution.to(qpos.dtype)
        robot, end = self.articulation._objs[0], self.end_link._objs[0]
        target = kinematics.displaced(robot.root.entity_pose, end.entity_pose, action[0].tolist())
        solution, self.solved = self.solve(robot.qpos[None], target)
        return solution.astype(np.float32)


def drive(controller: PDJointPosController, targets: Any) -> None:
    """Sets the targets [N, J] of a controller's drives; on a CPU without ManiSkill's conversions on the way."""
    controller._target_qpos = torch.as_tensor(targets)
    if controller.scene.gpu_sim_enabled:
        controller.set_drive_targets(targets)
    else:
        for joint, target in zip(controller.joints, targets[0].tolist(), strict=True):
            joint._objs[0].set_drive_target(target)


@dataclass
class EndEffectorDeltaConfig(PDJointPosControllerConfig):
    """Bounds in metres and radians per control step, and the constants of the iterative solver."""

    translation: float = 0.0
    rotation: float = 0.0
    ee_link: str = ""
    urdf_path: str = ""
    ik_iterations: int = 100
    ik_step: float = 0.5
    ik_damping: float = 1e-6
    normalize_action: bool = False
    controller_cls: Any = EndEffectorDelta


class GripperClosedness(PDJointPosController):
    """One number moves both fingers: +1 closes, -1 opens, in between is a width."""

    def _initialize_action_space(self) -> None:
        self.single_action_space = spaces.Box(-1.0, 1.0, (1,), dtype=np.float32)

    def set_action(self, action: Any) -> None:
        opened, closed = self.config.upper, self.config.lower
        drive(self, (opened + (closed - opened) * (action + 1) / 2)[:, [0] * len(self.joints)])


@dataclass
class GripperClosednessConfig(PDJointPosControllerConfig):
    """`lower` is the joint position of closed fingers, `upper` of open ones."""

    normalize_action: bool = False
    controller_cls: Any = GripperClosedness
