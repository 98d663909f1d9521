"""Rigid-body arithmetic on batches, in few tensor operations: with one small scene per process, their number makes up
most of a control step's cost.

Poses are [N, 7]: x, y, z, qw, qx, qy, qz, metres and unit quaternions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

# What q_i p_j adds to component k of the Hamilton product q p, quaternions w, x, y, z: [i, 4 j + k].
_PRODUCT = torch.zeros(4, 16)
for _i, _row in enumerate(("wxyz", "xwzy", "yzwx", "zyxw")):
    for _j, _k in enumerate(_row):
        _PRODUCT[_i, 4 * _j + "wxyz".index(_k)] = (
            -1.0 if (_i, _j) in {(1, 1), (2, 2), (3, 3), (1, 3), (2, 1), (3, 2)} else 1.0
        )


def left_product(q: Tensor) -> Tensor:
    """The matrix [N, 4, 4] that multiplies row vectors p to the Hamilton products q p; q [N, 4]."""
    return (q @ _PRODUCT.to(q.device)).view(-1, 4, 4)


def from_rotation_vector(vector: Tensor) -> Tensor:
    """Unit quaternions [N, 4] of rotations given as axis times angle [N, 3], radians."""
    half = vector.norm(dim=1, keepdim=True) / 2
    # torch.sinc(x) is sin(pi x) / (pi x): smooth at zero.
    return torch.cat([half.cos(), vector * (torch.sinc(half / torch.pi) / 2)], dim=1)


def rotate(q: Tensor, vector: Tensor) -> Tensor:
    """The vectors [N, 3] turned by the unit quaternions [N, 4]."""
    axis, twice = q[:, 1:], 2 * torch.linalg.cross(q[:, 1:], vector)
    return vector + q[:, :1] * twice + torch.linalg.cross(axis, twice)


def pose_of(body: Any) -> Any:
    """The world pose [N, 7] of an actor or a link: on a GPU a tensor, on a CPU a numpy array, without ManiSkill's
    conversions on the way.
    """
    if body.scene.gpu_sim_enabled:
        return body.pose.raw_pose
    pose = body._bodies[0].entity_pose
    return np.concatenate([pose.p, pose.q])[None]


def qpos_of(articulation: Any) -> Any:
    """The joint positions [N, J] of an articulation, likewise."""
    return articulation.get_qpos() if articulation.scene.gpu_sim_enabled else articulation._objs[0].qpos[None]


@dataclass(frozen=True)
class Frame:
    """A frame in which a world pose p, as a row vector, is (p - origin) turn_back; origin [N, 7], its rotation left
    zero, and turn_back [N, 7, 7], arrays of `xp`, which is torch or numpy.
    """

    origin: Any
    turn_back: Any
    xp: Any

    @classmethod
    def at(cls, pose: Tensor, xp: Any = torch) -> Frame:
        """The frame of a pose [N, 7]."""
        conjugate = pose[:, 3:] * torch.tensor([1.0, -1.0, -1.0, -1.0], device=pose.device)
        axes = torch.eye(3, device=pose.device).repeat(len(pose), 1)
        turn_back = torch.zeros(len(pose), 7, 7, device=pose.device)
        turn_back[:, :3, :3] = rotate(conjugate.repeat_interleave(3, 0), axes).unflatten(0, (-1, 3))
        turn_back[:, 3:, 3:] = left_product(conjugate)
        origin = torch.cat([pose[:, :3], torch.zeros_like(conjugate)], 1)
        return cls(xp.asarray(origin), xp.asarray(turn_back), xp)

    def localize(self, pose: Any) -> Any:
        """A world pose [N, 7] seen from this frame."""
        return self.xp.einsum("ni,nij->nj", pose - self.origin, self.turn_back)


def displaced(pose: Tensor, delta: Tensor) -> Tensor:
    """The pose [N, 7] after a displacement [N, 6] in its parent frame: metres added, axis-angle radians
    left-multiplied.
    """
    turn = left_product(from_rotation_vector(delta[:, 3:]))
    return torch.cat([pose[:, :3] + delta[:, :3], torch.bmm(pose[:, None, 3:], turn)[:, 0]], dim=1)
