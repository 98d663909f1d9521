"""Inverse kinematics of one arm on the CPU: SAPIEN's Pinocchio, damped least squares on the closed loop."""

# SAPIEN's annotations are narrower than what it takes.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportOptionalCall=false

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import sapien
from sapien.wrapper.pinocchio_model import PinocchioModel
from torch import Tensor

from .batched_kinematics import Iteration


def displaced(base: sapien.Pose, link: sapien.Pose, delta: Sequence[float]) -> np.ndarray:
    """As `geometry.displaced`, for the pose of one link in the frame of its base, both given as world poses. SAPIEN's
    own arithmetic takes a fifth of the time.
    """
    measured, (*shift, x, y, z) = base.inv() * link, delta
    half = math.hypot(x, y, z) / 2
    axis = math.sin(half) / half / 2 if half else 0.5
    turn = sapien.Pose(q=[math.cos(half), axis * x, axis * y, axis * z])
    turned = turn * sapien.Pose(q=measured.q)
    return np.concatenate([measured.p + np.asarray(shift), turned.q], dtype=np.float32)[None]


class ClosedLoopSolver:
    """Solves for the moving joints of one articulation so that its link `link` takes its target pose; the arguments are
    those of `batched_kinematics.BatchedSolver`.
    """

    def __init__(
        self, urdf: str | Path, joints: Sequence[str], moving: Sequence[int], link: str, iteration: Iteration
    ) -> None:
        self.model = PinocchioModel(Path(urdf).read_text(), [0, 0, -9.81])
        self.model.set_joint_order(list(joints))
        self.model.set_link_order([link])
        self.moving = np.asarray(moving)
        self.settings = dict(
            active_qmask=np.isin(np.arange(len(joints)), moving),
            eps=iteration.tolerance,
            max_iterations=iteration.steps,
            dt=iteration.step,
            damp=iteration.damping,
        )

    def __call__(self, qpos: Tensor | np.ndarray, target: Tensor | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """As `batched_kinematics.BatchedSolver`, for one articulation: positions [1, moving] of the moving joints, and
        whether the target [1, 7] is reached; where it is not, the joints stay. `qpos` [1, J] are all joints.
        """
        place, start = np.asarray(target)[0], np.asarray(qpos)[0]
        solution, solved, _ = self.model.compute_inverse_kinematics(
            0, sapien.Pose(place[:3], place[3:]), initial_qpos=start, **self.settings
        )
        return (solution if solved else start)[None, self.moving], np.array([solved])
