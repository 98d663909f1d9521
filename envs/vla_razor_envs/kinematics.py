"""Inverse kinematics of one arm on the CPU: SAPIEN's Pinocchio, damped least squares on the closed loop."""

# SAPIEN's annotations are narrower than what it takes.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportOptionalCall=false

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import sapien
from sapien.wrapper.pinocchio_model import PinocchioModel


def mended(urdf: Path) -> str:
    """The text of a URDF file whose joints have finite limits: Pinocchio refuses infinite ones."""
    return urdf.read_text().replace('"inf"', '"1000"').replace('"-inf"', '"-1000"')


class ClosedLoopSolver:
    """Solves for the joints numbered `moving` (in the articulation's order) so that the link named `link` takes a pose.

    It stops within `iterations` steps of size `step`; `damping` regularises each. Joint limits are not heeded.
    """

    def __init__(
        self,
        urdf: str,
        articulation: Any,
        link: str,
        moving: Sequence[int],
        iterations: int,
        step: float,
        damping: float,
    ):
        self.model = PinocchioModel(urdf, [0, 0, -9.81])
        self.model.set_joint_order([joint.name for joint in articulation.active_joints])
        links = [one.name for one in articulation.links]
        self.model.set_link_order(links)
        self.link, self.moving = links.index(link), np.asarray(moving)
        self.mask = np.zeros(len(articulation.active_joints), bool)
        self.mask[self.moving] = True
        self.settings = dict(max_iterations=iterations, dt=step, damp=damping)

    def __call__(self, qpos: np.ndarray, target: np.ndarray) -> np.ndarray | None:
        """The positions of the moving joints that reach `target` [7] in the base frame from `qpos` (all joints), or
        None where the iterations do not get there.
        """
        solution, solved, _ = self.model.compute_inverse_kinematics(
            self.link, sapien.Pose(target[:3], target[3:]), initial_qpos=qpos, active_qmask=self.mask, **self.settings
        )
        return solution[self.moving] if solved else None
