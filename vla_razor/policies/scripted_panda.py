"""How the embedded Panda picks the can, opens a drawer and closes one."""

from __future__ import annotations

from typing import Any

import numpy as np

from vla_razor.policies.motion import DOWN, PITCHED, Reach, rotation, turn_towards

TRANSLATION, ROTATION = 0.07, 0.25  # the bounds of one control step
OPEN, CLOSED = -1.0, 1.0
action = Reach(TRANSLATION, ROTATION).action


def rest(info: dict[str, Any]) -> np.ndarray:
    """Stay, fingers closed: the drawer is where it should be."""
    return action([0, 0, 0], np.zeros(3), CLOSED)


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
