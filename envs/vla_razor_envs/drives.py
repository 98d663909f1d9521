"""How joint targets reach PhysX before each physics step: as forces on a CPU, as a tensor for all robots on a GPU."""

# ManiSkill's and SAPIEN's annotations are narrower than what they take.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false

from collections.abc import Iterator
from typing import Any

import numpy as np
from torch import Tensor

# Physics steps for which a CPU's drives keep their targets, and for which Coriolis and centrifugal forces are taken to
# be constant. Renewing those at every step, as the original does, moves the TCP by less than a micrometre.
KEPT_FOR = 9


class JointDrives:
    """Drives one robot's joints on a CPU, and cancels the Coriolis and centrifugal forces.

    One call per joint before each physics step would be most of a step's cost beside the physics. So the drives get a
    new target only now and then. What the target would have moved since is applied as forces, to all joints in one
    call: a spring whose end moves is a spring whose end stays, plus a force.
    """

    def __init__(self, articulation: Any, joints: list[Any], indices: list[int]) -> None:
        robot, self._joints, self._indices = articulation._objs[0], [joint._objs[0] for joint in joints], indices
        self._setters = [joint.set_drive_target for joint in self._joints]
        self._set_forces, self._passive_forces = robot.set_qf, robot.compute_passive_force

    def follow(self, targets: np.ndarray, stiffness: np.ndarray, damping: np.ndarray) -> Iterator[None]:
        """Commands the targets [T, J] of the coming T physics steps, one row each time it is advanced. Stiffness [J] is
        in N m/rad, damping [J] in N m s/rad.
        """
        for joint, *gains in zip(self._joints, stiffness.tolist(), damping.tolist(), strict=True):
            joint.set_drive_properties(*gains)
        kept = targets[::KEPT_FOR]
        forces = np.empty(targets.shape, np.float32)
        forces[:, self._indices] = stiffness * (targets - kept.repeat(KEPT_FOR, 0)[: len(targets)])
        for begin, row in zip(range(0, len(targets), KEPT_FOR), kept.tolist(), strict=True):
            for setter, target in zip(self._setters, row, strict=True):
                setter(target)
            until_renewed = forces[begin : begin + KEPT_FOR]
            until_renewed += self._passive_forces(False)  # without gravity: nothing here has weight
            for force in until_renewed:
                self._set_forces(force)
                yield


class TensorDrives:
    """Commands the same joints of every robot on a GPU. Coriolis and centrifugal forces are not cancelled: on a GPU
    PhysX does not give them.
    """

    def __init__(self, articulation: Any, indices: Tensor) -> None:
        self._px = articulation.px
        self._where = articulation.get_joint_target_indices(indices)

    def follow(self, targets: Tensor) -> Iterator[None]:
        """Commands the targets [T, N, J], one row each time it is advanced."""
        for row in targets.float():
            self._px.cuda_articulation_target_qpos.torch()[self._where] = row
            self._px.gpu_apply_articulation_target_position()
            yield
