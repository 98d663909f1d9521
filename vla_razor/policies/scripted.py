"""A scripted expert for the embedded tasks: it reads the privileged state afresh at every step and remembers nothing.

Because it has no phases, it recovers from any disturbance; demonstrations with injected noise therefore show
recoveries, which a cloned policy needs. Everything happens in the robot's base frame: metres, radians, quaternions
qw, qx, qy, qz.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from scipy.spatial.transform import Rotation

from vla_razor.policies import Decisions

TRANSLATION, ROTATION = 0.07, 0.25  # the bounds of one control step
DOWN = np.array([0.0, 0.0, -1.0])
PITCHED = np.array([1.0, 0.0, -1.0]) / np.sqrt(2)
OPEN, CLOSED = -1.0, 1.0


class ScriptedExpert:
    """Solves pick-can and the drawer tasks from `infos` (`tcp_pose`, `target_pose`, `gripper_position`, `is_grasped`).

    With probability `noise` a step's translation is disturbed by a normal draw of `noise_scale` metres: that is what
    is executed, while `clean_actions` holds what the expert wanted, the label of a demonstration.
    """

    name = "scripted"

    def __init__(self, noise: float = 0.0, noise_scale: float = 0.025) -> None:
        self.noise = noise
        self.noise_scale = noise_scale
        self.clean_actions = np.zeros((0, 7), np.float32)

    def act(
        self,
        images: np.ndarray,
        instructions: list[str],
        infos: list[dict[str, Any]],
        generator: torch.Generator,
        memories: Sequence[Any] | None = None,
    ) -> Decisions:
        """Decides for each environment; actions [B, 7] in environment units, no tokens."""
        pairs = zip(instructions, infos, strict=True)
        self.clean_actions = np.stack([decide(instruction, info) for instruction, info in pairs]).astype(np.float32)
        return Decisions(self._disturbed(generator), labels=self.clean_actions)

    def _disturbed(self, generator: torch.Generator) -> np.ndarray:
        rows = len(self.clean_actions)
        hit = torch.rand(rows, 1, generator=generator).numpy() < self.noise
        shift = torch.randn(rows, 3, generator=generator).numpy() * self.noise_scale
        actions = self.clean_actions.copy()
        actions[:, :3] = np.clip(actions[:, :3] + hit * shift, -TRANSLATION, TRANSLATION)
        return actions


def decide(instruction: str, info: dict[str, Any]) -> np.ndarray:
    """The expert's action [7] for one environment. Raises ValueError for an instruction it does not know."""
    if instruction.startswith("pick"):
        return pick(info)
    if info["success"]:
        return action([0, 0, 0], np.zeros(3), CLOSED)
    if instruction.startswith("open"):
        return open_drawer(info)
    if instruction.startswith("close"):
        return close_drawer(info)
    raise ValueError(f"the scripted expert knows pick, open and close; not {instruction!r}")


def pick(info: dict[str, Any]) -> np.ndarray:
    """Hover above the can, descend when aligned, close, lift; closed on nothing, rise and open again."""
    tcp, can = info["tcp_pose"], info["target_pose"]
    axis = rotation(can).apply([1.0, 0.0, 0.0])
    upright = abs(axis[2]) > 0.7
    grasp = can[:3] + np.array([0.0, 0.0, 0.02 if upright else 0.0])
    turn = turn_towards(tcp, DOWN, None if upright else np.array([-axis[1], axis[0], 0.0]))
    gap = grasp - tcp[:3]
    aside, above = np.linalg.norm(gap[:2]), -gap[2]
    turned = np.linalg.norm(turn) < 0.2
    if info["is_grasped"]:
        return action([0, 0, TRANSLATION if tcp[2] < 0.25 else 0], turn * 0, CLOSED)
    if info["gripper_position"] < 0.02:
        return action([0, 0, TRANSLATION], turn, OPEN)
    if aside < 0.012 and above < 0.02:
        return action(gap, turn, CLOSED)
    if turned and aside < 0.012 + 0.25 * max(above - 0.03, 0):
        return action(gap, turn, OPEN)
    return action(gap + np.array([0.0, 0.0, 0.09]), turn, OPEN)


def open_drawer(info: dict[str, Any]) -> np.ndarray:
    """Go before the handle, advance when aligned, close on the bar, pull."""
    tcp, handle = info["tcp_pose"], info["target_pose"]
    turn = turn_towards(tcp, PITCHED, np.array([0.0, 1.0, 0.0]))
    gap = handle[:3] - tcp[:3]
    reach = gap @ PITCHED
    aside = np.linalg.norm(gap - reach * PITCHED)
    if np.linalg.norm(gap) < 0.025 and info["gripper_position"] < 0.015:
        if info["gripper_position"] > 0.004:
            return action([-TRANSLATION, gap[1], gap[2]], turn, CLOSED)
        return action(-TRANSLATION * PITCHED, turn, OPEN)
    if np.linalg.norm(gap) < 0.012:
        return action(gap, turn, CLOSED)
    if aside < 0.012 + 0.1 * max(reach - 0.02, 0):
        return action(gap, turn, OPEN)
    return action(gap - 0.09 * PITCHED, turn, OPEN)


def close_drawer(info: dict[str, Any]) -> np.ndarray:
    """With closed fingers, line up before the handle and push."""
    tcp, handle = info["tcp_pose"], info["target_pose"]
    turn = turn_towards(tcp, PITCHED, np.array([0.0, 1.0, 0.0]))
    gap = handle[:3] - tcp[:3]
    aside = np.linalg.norm(gap[1:])
    if aside < 0.02 + 0.15 * max(gap[0] - 0.05, 0) and gap[0] > 0:
        return action([TRANSLATION, gap[1], gap[2]], turn, CLOSED)
    return action(gap - [0.07, 0, 0], turn, CLOSED)


def action(translation: Any, turn: np.ndarray, gripper: float) -> np.ndarray:
    """An action [7]: the translation shortened, the rotation clipped, to what one control step allows."""
    translation = np.asarray(translation, float)
    shortened = translation * min(1.0, TRANSLATION / max(np.abs(translation).max(), 1e-9))
    return np.concatenate([shortened, np.clip(turn, -ROTATION, ROTATION), [gripper]])


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
    wanted = wanted - (wanted @ approach) * approach
    wanted = wanted / np.linalg.norm(wanted)
    turns = [(grasp_rotation(approach, sign * wanted) * now.inv()).as_rotvec() for sign in (1, -1)]
    return min(turns, key=np.linalg.norm)


def grasp_rotation(approach: np.ndarray, closing: np.ndarray) -> Rotation:
    """The gripper's rotation: its z axis along `approach`, its y axis (the fingers' line) along `closing`."""
    return Rotation.from_matrix(np.stack([np.cross(closing, approach), closing, approach], axis=1))
