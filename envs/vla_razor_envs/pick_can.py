"""Pick a can from a table: the new task of the paper's robot experiment.

The success rule is SimplerEnv's: the can is *lifted* when it is grasped, touches nothing but the robot and has risen;
the lift is remembered until the grasp is lost; success is a lift now, or enough significantly lifted steps in the
episode.
"""

# ManiSkill's and SAPIEN's annotations are narrower than what they take.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportIncompatibleMethodOverride=false
# pyright: reportIncompatibleVariableOverride=false, reportOperatorIssue=false, reportReturnType=false

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import sapien
import torch
from mani_skill.utils.structs import Pose
from torch import Tensor
from transforms3d.euler import euler2quat

from .setups import PickCanSetup
from .task import ManipulationTask, Start, light, material, room

# SAPIEN's cylinder has its axis along local x.
ROTATIONS = {
    "upright": euler2quat(0, -np.pi / 2, 0),
    "laid_vertically": euler2quat(0, 0, 0),
    "lr_switch": euler2quat(0, 0, np.pi / 2),
}
CAN = Path(__file__).with_name("assets") / "can.glb"  # a unit cylinder with a label; scripts/make_can.py
INSTRUCTION = "pick coke can"
REST_GAP = 5e-4
TOUCH = 1e-6  # N s: less is no contact


class PickCan(ManipulationTask):
    """Grasp the can and lift it."""

    setup: PickCanSetup

    def instructions(self) -> list[str]:
        return [INSTRUCTION] * self.num_envs

    def _load_scene(self, options: dict[str, Any]) -> None:
        setup = self.setup
        floor = room(self.scene, floor_z=setup.table_top - 0.8)
        table = self.scene.create_actor_builder()
        half = [0.5, 0.6, 0.02]
        table.add_box_collision(half_size=half)
        table.add_box_visual(half_size=half, material=material((0.62, 0.48, 0.34)))
        table.initial_pose = sapien.Pose([0.45, 0, setup.table_top - half[2]])
        self.obstacles = [table.build_static("table"), floor]
        self.can = self._build_can()

    def _build_can(self) -> Any:
        setup, half = self.setup, self.setup.length / 2
        builder = self.scene.create_actor_builder()
        surface = sapien.physx.PhysxMaterial(setup.friction, setup.friction, 0)
        density = setup.mass / (np.pi * setup.radius**2 * setup.length)
        builder.add_cylinder_collision(radius=setup.radius, half_length=half, material=surface, density=density)
        builder.add_visual_from_file(str(CAN), scale=[half, setup.radius, setup.radius])
        builder.initial_pose = sapien.Pose([0.5, 0, setup.table_top + half])
        can = builder.build("can")
        can.set_linear_damping(0.1)
        can.set_angular_damping(10.0)  # stands in for the rolling resistance that PhysX does not know
        return can

    def _load_lighting(self, options: dict[str, Any]) -> None:
        light(self.scene)

    def _after_reconfigure(self, options: dict[str, Any]) -> None:
        super()._after_reconfigure(options)
        zeros = torch.zeros(self.num_envs, device=self.device)
        self.rest_z = zeros.clone()
        self.grasp_steps, self.significant_steps = zeros.int(), zeros.int()
        self.held, self.lifted_once = zeros.bool(), zeros.bool()

    def _place(self, env_idx: Tensor, starts: list[Start]) -> None:
        setup = self.setup
        poses = [self._can_pose(start) for start in starts]
        position = torch.tensor(np.array([p for p, _ in poses]), dtype=torch.float32, device=self.device)
        rotation = torch.tensor(np.array([q for _, q in poses]), dtype=torch.float32, device=self.device)
        self.can.set_pose(Pose.create_from_pq(position, rotation))
        self.agent.robot.set_pose(sapien.Pose([*setup.robot_xy, 0]))
        self.rest_z[env_idx] = position[:, 2]
        for state in (self.grasp_steps, self.significant_steps, self.held, self.lifted_once):
            state[env_idx] = 0

    def _can_pose(self, start: Start) -> tuple[list[float], np.ndarray]:
        setup = self.setup
        draw = np.random.default_rng([start["seed"], 0])
        xy = [draw.uniform(*setup.area_x), draw.uniform(*setup.area_y)]
        drawn = setup.orientations[draw.integers(len(setup.orientations))]
        x, y = start.get("object_xy", xy)
        orientation = start.get("orientation", drawn)
        height = setup.length / 2 if orientation == "upright" else setup.radius
        return [x, y, setup.table_top + height + REST_GAP], ROTATIONS[orientation]

    def _track(self) -> None:
        setup = self.setup
        pushes = self.pushes(self.can, [*self.fingers, *self.obstacles])
        self.held = self.grasped(pushes[:2], setup.grasp_impulse, setup.grasp_angle)
        self.grasp_steps = torch.where(self.held, self.grasp_steps + 1, 0)
        free = pushes[2:].norm(dim=2).amax(0) <= TOUCH
        self.lifted_once = self.held & (self.lifted_once | free)
        self.significant_steps += self.lifted_once & (self._rise(self.can.pose.raw_pose) > setup.significant_height)

    def _rise(self, pose: Tensor) -> Tensor:
        return pose[:, 2] - self.rest_z

    def _facts(self) -> dict[str, Any]:
        setup = self.setup
        pose = self.can.pose.raw_pose
        rise = self._rise(pose)
        lifted = self.lifted_once & (rise > setup.lift_height)
        return {
            "success": lifted | (self.significant_steps >= setup.sustained_steps),
            "is_grasped": self.held.clone(),
            "consecutive_grasp": self.grasp_steps >= 5,
            "lifted_object": lifted,
            "lifted_object_significantly": self.lifted_once & (rise > setup.significant_height),
            "object_pose": pose,
            "target_pose": self.in_base(pose),
        }
