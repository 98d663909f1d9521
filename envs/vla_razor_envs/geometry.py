"""Rigid-body arithmetic on batches, in few tensor operations: at one small scene a process, their number is most of a
step's cost.

Poses are [N, 7]: x, y, z, qw, qx, qy, qz, metres and unit quaternions.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# products[i, j, k]: what q_i p_j adds to component k of the Hamilton product q p, quaternions w, x, y, z.
_PRODUCT = torch.zeros(4, 4, 4)
for _i, _row in enumerate(("wxyz", "xwzy", "yzwx", "zyxw")):
    for _j, _k in enumerate(_row):
        _PRODUCT[_i, _j, "wxyz".index(_k)] = (
            -1.0 if (_i, _j) in {(1, 1), (2, 2), (3, 3), (1, 3), (2, 1), (3, 2)} else 1.0
        )


def left_product(q: Tensor) -> Tensor:
    """The matrix [N, 4, 4] that multiplies row vectors p to the Hamilton products q p; q [N, 4]."""
    return torch.tensordot(q, _PRODUCT.to(q.device), dims=1)


def from_rotation_vector(vector: Tensor) -> Tensor:
    """Unit quaternions [N, 4] of rotations given as axis times angle [N, 3], radians."""
    half = vector.norm(dim=1, keepdim=True) / 2
    # torch.sinc(x) is sin(pi x) / (pi x): smooth at zero.
    return torch.cat([half.cos(), vector * (torch.sinc(half / torch.pi) / 2)], dim=1)


def rotate(q: Tensor, vector: Tensor) -> Tensor:
    """The vectors [N, 3] turned by the unit quaternions [N, 4]."""
    axis, twice = q[:, 1:], 2 * torch.linalg.cross(q[:, 1:], vector)
    return vector + q[:, :1] * twice + torch.linalg.cross(axis, twice)


@dataclass(frozen=True)
class Frame:
    """A frame at `origin` [N, 3] whose conjugate rotation, as a left product, is `turn_back` [N, 4, 4]."""

    origin: Tensor
    turn_back: Tensor
    conjugate: Tensor

    @classmethod
    def at(cls, pose: Tensor) -> Frame:
        """The frame of a pose [N, 7]."""
        conjugate = pose[:, 3:] * torch.tensor([1.0, -1.0, -1.0, -1.0], device=pose.device)
        return cls(pose[:, :3], left_product(conjugate), conjugate)

    def localize(self, pose: Tensor) -> Tensor:
        """A world pose [N, 7] seen from this frame."""
        place = rotate(self.conjugate, pose[:, :3] - self.origin)
        return torch.cat([place, torch.bmm(pose[:, None, 3:], self.turn_back)[:, 0]], dim=1)


def displaced(pose: Tensor, delta: Tensor) -> Tensor:
    """The pose [N, 7] after a displacement [N, 6] in its parent frame: metres added, axis-angle radians
    left-multiplied.
    """
    turn = left_product(from_rotation_vector(delta[:, 3:]))
    return torch.cat([pose[:, :3] + delta[:, :3], torch.bmm(pose[:, None, 3:], turn)[:, 0]], dim=1)
