"""Where a scripted expert wants its gripper, as one control step's action.

Everything is in the robot's base frame: metres, radians, poses x, y, z, qw, qx, qy, qz. A gripper approaches along its
z axis and closes its fingers along its y axis.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.spatial.transform import Rotation

DOWN = np.array([0.0, 0.0, -1.0])
PITCHED = np.array([1.0, 0.0, -1.0]) / np.sqrt(2)


@dataclass(frozen=True)
class Reach:
    """The most that one control step does, along an axis: metres and radians."""

    translation: float
    rotation: float

    def action(self, translation: Any, turn: np.ndarray, gripper: float) -> np.ndarray:
        """An action [7]: the translation shortened, the rotation clipped, to what one control step allows."""
        translation = np.asarray(translation, float)
        shortened = translation * min(1.0, self.translation / max(np.abs(translation).max(), 1e-9))
        return np.concatenate([shortened, np.clip(turn, -self.rotation, self.rotation), [gripper]])


def rotation(pose: np.ndarray) -> Rotation:
    """The rotation of a pose x, y, z, qw, qx, qy, qz."""
    return Rotation.from_quat(pose[[4, 5, 6, 3]])


def turn_towards(tcp: np.ndarray, approach: np.ndarray, closing: np.ndarray | None) -> np.ndarray:
    """Axis-angle [3] from the TCP's orientation to one that approaches along `approach` and closes along ±`closing`,
    whichever is nearer.

    Where any closing direction will do (None), the present one is kept.
    """
    now = rotation(tcp)
    wanted = now.apply([0.0, 1.0, 0.0]) if closing is None else closing
    return min((turn_to(tcp, approach, sign * wanted) for sign in (1, -1)), key=np.linalg.norm)


def turn_to(tcp: np.ndarray, approach: np.ndarray, closing: np.ndarray) -> np.ndarray:
    """Axis-angle [3] from the TCP's orientation to one that approaches along `approach` and closes along `closing`, as
    nearly as that allows.
    """
    wanted = closing - (closing @ approach) * approach
    wanted = wanted / np.linalg.norm(wanted)
    return (grasp_rotation(approach, wanted) * rotation(tcp).inv()).as_rotvec()


def grasp_rotation(approach: np.ndarray, closing: np.ndarray) -> Rotation:
    """The gripper's rotation: its z axis along `approach`, its y axis (the fingers' line) along `closing`."""
    return Rotation.from_matrix(np.stack([np.cross(closing, approach), closing, approach], axis=1))
