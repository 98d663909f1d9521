"""How joint targets reach PhysX before each physics step: a call a joint on a CPU, one tensor for all arms on a GPU."""

# ManiSkill's and SAPIEN's annotations are narrower than what they take.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor


class JointDrives:
    """Commands one arm's joints on a CPU, each only as long as its target changes: the calls are most of what a step
    costs beside physics.
    """

    def __init__(self, articulation: Any, joints: list[Any], indices: Tensor) -> None:
        drives = [joint._objs[0] for joint in joints]
        self._setters = [drive.set_drive_target for drive in drives]
        self._speed_setters = [drive.set_drive_velocity_target for drive in drives]

    def follow(self, positions: Tensor, velocities: Tensor | None) -> None:
        """Takes the targets [T, 1, J] of the coming T physics steps, with velocities where they are commanded too."""
        setters, rows = list(self._setters), positions[:, 0].numpy()
        if velocities is not None:
            setters, rows = setters + self._speed_setters, np.hstack([rows, velocities[:, 0].numpy()])
        changes = rows[1:] != rows[:-1]
        for setter, target in zip(setters, rows[0].tolist(), strict=True):
            setter(target)
        (moving,), (steps,) = changes.any(0).nonzero(), changes.any(1).nonzero()
        self._moving = [setters[column] for column in moving]
        self._rows = zip(*rows[: steps.max(initial=-1) + 2].T[moving].tolist(), strict=True)

    def command(self) -> None:
        """Commands the targets of the next physics step."""
        for setter, target in zip(self._moving, next(self._rows, ()), strict=False):
            setter(target)


class TensorDrives:
    """Commands the same joints of every arm on a GPU."""

    def __init__(self, articulation: Any, joints: list[Any], indices: Tensor) -> None:
        self._px = articulation.px
        self._where = articulation.get_joint_target_indices(indices)

    def follow(self, positions: Tensor, velocities: Tensor | None) -> None:
        """Takes the targets [T, N, J] of the coming T physics steps, with velocities where they are commanded too."""
        self._positions = iter(positions.float())
        self._velocities = iter(() if velocities is None else velocities.float())

    def command(self) -> None:
        """Commands the targets of the next physics step."""
        self._px.cuda_articulation_target_qpos.torch()[self._where] = next(self._positions)
        self._px.gpu_apply_articulation_target_position()
        if (velocities := next(self._velocities, None)) is not None:
            self._px.cuda_articulation_target_qvel.torch()[self._where] = velocities
            self._px.gpu_apply_articulation_target_velocity()
