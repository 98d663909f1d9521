"""Open or close one of three drawers: the prior tasks of the paper's robot experiment.

Which drawer, and whether to open or close it, is the task, and one built scene serves all six.
"""

# ManiSkill's and SAPIEN's annotations are narrower than what they take.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportIncompatibleMethodOverride=false
# pyright: reportIncompatibleVariableOverride=false, reportOperatorIssue=false, reportReturnType=false

from typing import Any

import numpy as np
import torch
from torch import Tensor

from .geometry import qpos_of
from .records import DrawerSetup
from .scenes import build_cabinet
from .setups import DRAWER_TASKS, DRAWERS
from .starts import station_name, station_place
from .task import ManipulationTask, Start


class Drawer(ManipulationTask):
    """Move the drawer that the task names past its threshold."""

    setup: DrawerSetup

    def instructions(self) -> list[str]:
        return [task.replace("_", " ") for task in self.tasks]

    def _load_scene(self, options: dict[str, Any]) -> None:
        self.cabinet = build_cabinet(self.setup.cabinet, self.scene, self.setup)

    def _after_reconfigure(self, options: dict[str, Any]) -> None:
        super()._after_reconfigure(options)
        self.tasks = [self.first_task or DRAWER_TASKS[0]] * self.num_envs
        joints = [joint.name for joint in self.cabinet.active_joints]
        order = [next(i for i, joint in enumerate(joints) if joint.startswith(name)) for name in DRAWERS]
        x, y, z = np.add(self.setup.cabinet_pose, self.setup.handle).tolist()
        handles = torch.tensor([[x, y, 0.0, 1, 0, 0, 0]] * len(DRAWERS))
        handles[:, 2] = z + torch.tensor(self.setup.drawer_z)
        rows = torch.arange(self.num_envs)
        none, no = torch.zeros_like(rows), torch.zeros(self.num_envs, dtype=torch.bool)
        self.columns, self._handles, self._rows, self.drawer_of, self.opening = (
            self.xp.asarray(each.to(self.device)) for each in (torch.tensor(order), handles, rows, none, no)
        )

    def _place(self, env_idx: Tensor, starts: list[Start]) -> None:
        qpos = torch.zeros(len(starts), len(DRAWERS), device=self.device)
        for row, (env, start) in enumerate(zip(env_idx.tolist(), starts, strict=True)):
            task = start.get("task", self.first_task or DRAWER_TASKS[0])
            verb, drawer, _ = task.split("_")
            self.tasks[env] = task
            self.drawer_of[env], self.opening[env] = DRAWERS.index(drawer), verb == "open"
            if verb == "close":
                qpos[row, self.columns[DRAWERS.index(drawer)]] = self.setup.start_open
        self.cabinet.set_qpos(qpos)
        self.stand(np.array([station_place(self.setup, start) for start in starts]))

    def _station(self, start: Start) -> str:
        return station_name(self.setup, start)

    def _facts(self) -> dict[str, Any]:
        qpos = qpos_of(self.cabinet)[:, self.columns]
        moved = qpos[self._rows, self.drawer_of]
        success = self.xp.where(self.opening, moved >= self.setup.open_at, moved <= self.setup.closed_at)
        handle = self._handles[self.drawer_of]  # its bar in the world, of a closed drawer; the cabinet stands square
        handle[:, 0] += self.setup.slide * moved
        return {
            "success": success,
            "drawer_qpos": qpos,
            "object_pose": handle,
            "target_pose": self.in_base(handle),
        }
