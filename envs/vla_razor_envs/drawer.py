"""Open or close one of three drawers: the prior tasks of the paper's robot experiment.

The cabinet is built of boxes with three prismatic joints; which drawer, and whether to open or close it, is the task,
and one built scene serves all six.
"""

# ManiSkill's and SAPIEN's annotations are narrower than what they take.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportIncompatibleMethodOverride=false
# pyright: reportIncompatibleVariableOverride=false, reportOperatorIssue=false, reportReturnType=false

from __future__ import annotations

from typing import Any

import numpy as np
import sapien
import torch
from mani_skill.utils.structs import Pose
from torch import Tensor
from transforms3d.euler import euler2quat

from .setups import DRAWERS, DrawerSetup
from .task import ManipulationTask, Start, light, material, room

TOWARDS_ROBOT = [0.0, 0.0, 0.0, 1.0]  # wxyz: half a turn of yaw; SAPIEN's prismatic joints slide along local x
WOOD, FACE, METAL = (0.58, 0.44, 0.30), (0.82, 0.74, 0.60), (0.16, 0.17, 0.19)


class Drawer(ManipulationTask):
    """Move the drawer that the task names past its threshold."""

    setup: DrawerSetup

    def __init__(self, task: str, **kwargs: Any) -> None:
        self.default_task = task
        super().__init__(**kwargs)

    def instructions(self) -> list[str]:
        return [task.replace("_", " ") for task in self.tasks]

    def _load_scene(self, options: dict[str, Any]) -> None:
        room(self.scene, floor_z=0.0)
        self.cabinet = self._build_cabinet()

    def _build_cabinet(self) -> Any:
        setup = self.setup
        builder = self.scene.create_articulation_builder()
        body = builder.create_link_builder()
        body.set_name("body")
        for centre, half in self._body_boxes():
            body.add_box_collision(sapien.Pose(centre), half)
            body.add_box_visual(sapien.Pose(centre), half, material(WOOD))
        for name, z in zip(DRAWERS, setup.drawer_z, strict=True):
            drawer = builder.create_link_builder(body)
            drawer.set_name(name)
            drawer.set_joint_name(f"{name}_joint")
            pose = sapien.Pose([0, 0, z], TOWARDS_ROBOT)
            drawer.set_joint_properties(
                "prismatic", [[0, setup.travel]], pose, sapien.Pose(q=TOWARDS_ROBOT), setup.friction, setup.damping
            )
            self._add_drawer(drawer)
        x, y, z = setup.cabinet_pose
        builder.initial_pose = sapien.Pose([x, y, z])
        return builder.build("cabinet", fix_root_link=True)

    def _body_boxes(self) -> list[tuple[list[float], list[float]]]:
        """Sides, back, top and plinth; x = 0 is the drawers' front plane, +x leads into the cabinet."""
        depth, width, _ = self.setup.cabinet_size
        high, low = max(self.setup.drawer_z), min(self.setup.drawer_z)
        half_panel = self.setup.panel[2]
        top, bottom, wall = high + half_panel + 0.005, low - half_panel - 0.005, 0.01
        middle, tall = (top + bottom) / 2, (top - bottom) / 2
        return [
            ([depth / 2, width / 2 + wall, middle], [depth / 2, wall, tall]),
            ([depth / 2, -width / 2 - wall, middle], [depth / 2, wall, tall]),
            ([depth - wall, 0, middle], [wall, width / 2, tall]),
            ([depth / 2, 0, top + wall], [depth / 2, width / 2 + 2 * wall, wall]),
            ([depth / 2, 0, bottom / 2], [depth / 2, width / 2 + 2 * wall, bottom / 2]),
        ]

    def _add_drawer(self, link: Any) -> None:
        setup = self.setup
        thick, half_width, half_height = setup.panel
        bar_x = -setup.handle_gap
        bar_thick, bar_width, bar_height = setup.handle
        boxes = [
            ([thick, 0, 0], [thick, half_width, half_height], FACE, True),
            ([bar_x, 0, 0], [bar_thick, bar_width, bar_height], METAL, True),
            ([bar_x / 2, 0, bar_height - 0.006], [-bar_x / 2, 0.006, 0.006], METAL, True),
            ([bar_x / 2, 0, 0.006 - bar_height], [-bar_x / 2, 0.006, 0.006], METAL, True),
            ([0.14, 0, -half_height + 0.01], [0.13, half_width - 0.01, 0.004], WOOD, False),
            ([0.14, half_width - 0.012, -0.01], [0.13, 0.004, half_height - 0.02], WOOD, False),
            ([0.14, -half_width + 0.012, -0.01], [0.13, 0.004, half_height - 0.02], WOOD, False),
        ]
        for centre, half, colour, solid in boxes:
            link.add_box_visual(sapien.Pose(centre), half, material(colour))
            if solid:
                link.add_box_collision(sapien.Pose(centre), half, density=400)

    def _load_lighting(self, options: dict[str, Any]) -> None:
        light(self.scene)

    def _after_reconfigure(self, options: dict[str, Any]) -> None:
        super()._after_reconfigure(options)
        self.tasks = [self.default_task] * self.num_envs
        order = [joint.name for joint in self.cabinet.active_joints]
        self.columns = torch.tensor([order.index(f"{name}_joint") for name in DRAWERS], device=self.device)
        self._heights = torch.tensor(self.setup.drawer_z, device=self.device)
        self.drawer_of = torch.zeros(self.num_envs, dtype=torch.long, device=self.device)
        self.opening = torch.zeros(self.num_envs, dtype=torch.bool, device=self.device)

    def _place(self, env_idx: Tensor, starts: list[Start]) -> None:
        qpos = torch.zeros(len(starts), len(DRAWERS), device=self.device)
        for row, (env, start) in enumerate(zip(env_idx.tolist(), starts, strict=True)):
            task = start.get("task", self.default_task)
            verb, drawer, _ = task.split("_")
            self.tasks[env] = task
            self.drawer_of[env], self.opening[env] = DRAWERS.index(drawer), verb == "open"
            if verb == "close":
                qpos[row, self.columns[DRAWERS.index(drawer)]] = self.setup.start_open
        self.cabinet.set_qpos(qpos)
        stations = [self._station(start) for start in starts]
        position = torch.tensor([[x, y, 0.0] for x, y, _ in stations], device=self.device)
        rotation = torch.tensor(np.array([euler2quat(0, 0, yaw) for _, _, yaw in stations]), dtype=torch.float32)
        self.agent.robot.set_pose(Pose.create_from_pq(position, rotation.to(self.device)))

    def _station(self, start: Start) -> np.ndarray:
        """x, y, yaw of the robot's base: the named station, or a draw inside the stations' bounding box."""
        if "station" in start:
            return np.asarray(self.setup.stations[start["station"]])
        corners = np.array(list(self.setup.stations.values()))
        return np.random.default_rng([start["seed"], 0]).uniform(corners.min(0), corners.max(0))

    def _facts(self) -> dict[str, Any]:
        qpos = self.cabinet.get_qpos()[:, self.columns]
        moved = qpos.gather(1, self.drawer_of[:, None])[:, 0]
        success = torch.where(self.opening, moved >= self.setup.open_at, moved <= self.setup.closed_at)
        handle = self._handle(moved)
        return {
            "success": success,
            "drawer_qpos": qpos,
            "object_pose": handle,
            "target_pose": self.in_base(handle),
        }

    def _handle(self, moved: Tensor) -> Tensor:
        """The world pose [N, 7] of the target drawer's handle bar; the cabinet stands square to the world."""
        x, y, z = self.setup.cabinet_pose
        pose = torch.zeros(len(moved), 7, device=self.device)
        pose[:, 0] = x - self.setup.handle_gap - moved
        pose[:, 1] = y
        pose[:, 2] = z + self._heights[self.drawer_of]
        pose[:, 3] = 1
        return pose
