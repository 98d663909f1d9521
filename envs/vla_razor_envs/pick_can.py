"""Pick a can from a table: the new task of the paper's robot experiment.

The success rule is SimplerEnv's. The can is *lifted* once it is grasped, touches nothing but the robot and has risen.
The lift is remembered until the grasp is lost. Success is a lift that has lasted long enough, or enough control steps
of the episode in which the can was lifted significantly. Details in which the robots differ are in their setups.
"""

# ManiSkill's and SAPIEN's annotations are narrower than what they take.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportIncompatibleMethodOverride=false
# pyright: reportIncompatibleVariableOverride=false, reportOperatorIssue=false, reportReturnType=false

from typing import Any

import numpy as np
import sapien
import torch
from mani_skill.utils.structs import Actor, Pose
from torch import Tensor
from transforms3d.euler import euler2quat

from .geometry import pose_of
from .records import PickCanSetup, Settling
from .scenes import build_can, build_table
from .starts import draw_can, draw_distractors
from .task import ManipulationTask, Start

INSTRUCTION = "pick coke can"
TOUCH = 1e-6  # N s: a smaller impulse is no contact
ASIDE, DROP = -10.0, 0.5  # metres: where distractors wait, and how far above the table they are let go


class PickCan(ManipulationTask):
    """Grasp the can and lift it."""

    setup: PickCanSetup

    def instructions(self) -> list[str]:
        return [INSTRUCTION] * self.num_envs

    def _load_scene(self, options: dict[str, Any]) -> None:
        table = build_table(self.setup.table, self.scene)
        self.can = build_can(self.setup.can, self.scene, self.setup)
        if self.setup.distractors and self.gpu_sim_enabled:
            raise ValueError("distractors can be dropped around the can on a CPU alone: device=cpu, or another variant")
        self.distractors = [build_can(one, self.scene, self.setup, one.folder) for one in self.setup.distractors]
        self.obstacles = [*table, *self.distractors]

    def _after_reconfigure(self, options: dict[str, Any]) -> None:
        super()._after_reconfigure(options)
        zeros = torch.zeros(self.num_envs, device=self.device)
        self.rest_z, none, no = (self.xp.asarray(each) for each in (zeros, zeros.int(), zeros.bool()))
        self.grasp_steps = self.lift_steps = self.significant_steps = none
        self.held = self.pinching = self.remembered = self.lifted = self.significantly = no

    def _prepare(self, starts: list[Start]) -> None:
        poses = [self._can_pose(start) for start in starts]
        position = torch.tensor(np.array([p for p, _ in poses]), dtype=torch.float32, device=self.device)
        rotation = torch.tensor(np.array([q for _, q in poses]), dtype=torch.float32, device=self.device)
        self.can.set_pose(Pose.create_from_pq(position, rotation))
        for number, thing in enumerate(self.distractors):
            thing.set_pose(sapien.Pose([ASIDE, number, 0.0]))
            thing.set_locked_motion_axes([True] * 6)
        if self.setup.settling and not self.gpu_sim_enabled:
            self._settle(self.setup.settling, starts)
            self._scatter(self.setup.settling, starts, rotation)

    def _can_pose(self, start: Start) -> tuple[list[float], np.ndarray]:
        setup = self.setup
        start = {**draw_can(setup, start["seed"]), **start}
        (x, y), orientation = start["object_xy"], start["orientation"]
        if setup.settling and self.gpu_sim_enabled:
            dx, dy, height, *rotation = setup.settling.rest[orientation]
            return [x + dx, y + dy, setup.table_top + height], np.array(rotation)
        height = setup.start_heights[orientation]
        return [x, y, setup.table_top + height], euler2quat(*setup.orientations[orientation])

    def _settle(self, settling: Settling, starts: list[Start]) -> None:
        """Lets the can fall onto the table while the robot stands aside."""
        self._renew_physics(settling.temporal)
        self._hold(self._rest_qpos(starts))
        self.stand(np.array([[*settling.robot_xy, 0.0]] * len(starts)))
        # It may turn about the vertical only, so that it lands without tipping over, and is then let go.
        self.can.set_locked_motion_axes([False, False, False, True, True, False])
        self._simulate(settling.upright_seconds)
        self._release(self.can, [False] * 6, settling.free_seconds)
        speed, turning = self.can.linear_velocity.norm(dim=1), self.can.angular_velocity.norm(dim=1)
        if ((speed > settling.still[0]) | (turning > settling.still[1])).any():
            self._simulate(settling.extra_seconds)
        self._renew_physics(self.setup.physics.temporal)

    def _scatter(self, settling: Settling, starts: list[Start], rotation: Tensor) -> None:
        """Drops the distractors around the can, one after another, in the can's own orientation."""
        complete = [{**draw_can(self.setup, start["seed"]), **start} for start in starts]
        places = torch.tensor(np.array([draw_distractors(self.setup, start) for start in complete]))
        height = self.setup.table_top + DROP
        for number, thing in enumerate(self.distractors):
            position = torch.nn.functional.pad(places[:, number].float().to(self.device), (0, 1), value=height)
            thing.set_pose(Pose.create_from_pq(position, rotation))
            self._release(thing, [True, True, False, True, True, False], settling.upright_seconds)
        for thing in self.distractors:
            self._release(thing, [False] * 6, settling.free_seconds)
        speeds = [
            part.norm(dim=1).max()
            for thing in self.distractors
            for part in (thing.linear_velocity, thing.angular_velocity)
        ]
        if sum(speeds[::2]) > settling.still[0] or sum(speeds[1::2]) > settling.still[1]:
            self._simulate(settling.extra_seconds)

    def _release(self, thing: Actor, locked: list[bool], seconds: float) -> None:
        """Lets a thing move from rest for some seconds, except along and about the locked axes."""
        thing.set_locked_motion_axes(locked)
        thing.set_linear_velocity(torch.zeros(3))
        thing.set_angular_velocity(torch.zeros(3))
        self._simulate(seconds)

    def _place(self, env_idx: Tensor, starts: list[Start]) -> None:
        self.stand(np.array([[*self.setup.robot_xy, 0.0]] * len(starts)))
        new = self.xp.asarray(self.scene._reset_mask)
        self.rest_z = self.xp.where(new, pose_of(self.can)[:, 2], self.rest_z)
        counts, flags = (
            ("grasp_steps", "lift_steps", "significant_steps"),
            ("held", "remembered", "lifted", "significantly"),
        )
        for name in (*counts, *flags, "pinching"):
            setattr(self, name, getattr(self, name) * ~new)
        self._tell_robot()

    def _track(self) -> None:
        # One pass over the contacts serves both questions: do the fingers grasp the can, and does it touch anything
        # else?
        setup, links = self.setup, len(self.fingers)
        pushes, strengths = self.pushes(self.can, [*self.fingers, *self.obstacles])
        self.held = self.grasped(pushes[:links], strengths[:links], setup.grasp_impulse, setup.grasp_angle)
        self.pinching = self._of_both(strengths[:links] > TOUCH)
        self._tell_robot()
        self.grasp_steps = (self.grasp_steps + 1) * self.held  # in a row: a lost grasp starts it at 0 again
        free = (strengths[links:] <= TOUCH).all(0)
        rise = pose_of(self.can)[:, 2] - self.rest_z
        self.remembered, self.lifted = setup.lift(self.remembered, self.held, free, rise > setup.lift_height)
        self.lift_steps = (self.lift_steps + 1) * self.lifted
        self.significantly = self.lifted & (rise > setup.significant_height)
        self.significant_steps = self.significant_steps + self.significantly

    def _tell_robot(self) -> None:
        """Tells the robot whether its fingers pinch the can. On a CPU, the solver then iterates more often."""
        self.agent.pinching = self.pinching
        if not self.gpu_sim_enabled:
            physics = self.setup.physics
            self._iterate(physics.pinching_iterations if self.pinching[0] else physics.robot_iterations)

    def _facts(self) -> dict[str, Any]:
        setup = self.setup
        pose, success = pose_of(self.can), self.lift_steps >= setup.lifted_steps
        if setup.sustained_steps is not None:
            success = success | (self.significant_steps >= setup.sustained_steps)
        return {
            "success": success,
            "is_grasped": self.held,
            "consecutive_grasp": self.grasp_steps >= 5,
            "lifted_object": self.lifted,
            "lifted_object_significantly": self.significantly,
            "object_pose": pose,
            "target_pose": self.in_base(pose),
        }
