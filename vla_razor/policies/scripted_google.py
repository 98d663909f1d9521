"""How SimplerEnv's Google robot picks the can, opens a drawer and closes one.

Its gripper action is a *change* of the fingers' target; a sustained +1 or -1 therefore closes and opens it. Its fingers
take three control steps (1 s) to close, and its wrist follows slowly, so alignment is asked for only near the target.
Drawer handles cannot be grasped (they do not collide): the closing fingers hook over the top of the front.

Of the pairs of a drawer task and a station it does all but three (`docs/simplerenv.md`): the bottom drawer from a2 is
beyond its reach, and at c0 and b0 the open top drawer stands where the arm would have to go to push it.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from vla_razor.policies.motion import PITCHED, Reach, rotation, turn_to, turn_towards

TRANSLATION, ROTATION = 0.10, 0.35  # of one control step; the robot follows about half of it
OPEN, CLOSED = -1.0, 1.0
SHUT = 1.1  # radians of the finger joints: closed on nothing
HOVER = 0.10  # metres before the can
LIFT = np.array([-0.04, 0.0, 0.10])
WRIST = 0.17  # radians from the arm's bearing to the line of its fingers, at rest
HOOKED = 0.75  # closed over the front of a drawer
action = Reach(TRANSLATION, ROTATION).action


def rest(info: dict[str, Any]) -> np.ndarray:
    """Stay: the drawer is where it should be."""
    return action([0, 0, 0], np.zeros(3), CLOSED)


def pick(info: dict[str, Any]) -> np.ndarray:
    """Hover above the can, descend when over it, close when around it, lift when it is held."""
    tcp, can, fingers = info["tcp_pose"], info["target_pose"], info["gripper_position"]
    approach = _approach(can)
    turn = turn_to(tcp, approach, _closing(can))
    gap = can[:3] - tcp[:3]
    reach = gap @ approach
    aside = np.linalg.norm(gap - reach * approach)
    if info["is_grasped"]:
        return action(LIFT, turn * 0, CLOSED)
    if fingers > SHUT:
        return action(-TRANSLATION * approach, turn * 0, OPEN)
    if aside < 0.02 and abs(reach) < 0.02:
        return action(gap, turn, CLOSED)
    if fingers > 0.1:
        return action(-TRANSLATION * approach, turn * 0, OPEN)
    if aside < 0.015 + 0.5 * max(reach - 0.02, 0):
        return action(gap, turn, OPEN)
    return action(gap - HOVER * approach, turn, OPEN)


def _approach(can: np.ndarray) -> np.ndarray:
    """Straight down near the robot, leaning outwards far from it, where the arm could not reach over the can."""
    lean = np.clip(2.0 * (np.linalg.norm(can[:2]) - 0.5), 0.0, 0.6)
    outwards = can[:2] / np.linalg.norm(can[:2])
    return np.array([*np.sin(lean) * outwards, -np.cos(lean)])


def _closing(can: np.ndarray) -> np.ndarray:
    """Along which the fingers close on the can: across it where it lies. Of two opposite ways, and wherever any will
    do, the one that turns with the arm, or the wrist comes to its stops.
    """
    bearing = np.arctan2(can[1], can[0]) + WRIST
    easy = np.array([-np.cos(bearing), -np.sin(bearing), 0.0])
    axis = rotation(can).apply([0.0, 1.0, 0.0])
    if abs(axis[2]) > 0.7:
        return easy
    across = np.array([-axis[1], axis[0], 0.0])
    return across if across @ easy > 0 else -across


def open_drawer(info: dict[str, Any]) -> np.ndarray:
    """Go before the handle, advance, close the fingers over the front, pull."""
    tcp, handle, fingers = info["tcp_pose"], info["target_pose"], info["gripper_position"]
    turn = turn_towards(tcp, PITCHED, np.array([-1.0, 0.0, -1.0]) / np.sqrt(2))
    gap = handle[:3] - tcp[:3]
    aside = np.linalg.norm(gap[1:])
    if fingers > 0.1 and np.linalg.norm(gap) < 0.1:
        return action([-TRANSLATION, gap[1], gap[2]] if fingers > HOOKED else gap, turn, CLOSED)
    if fingers > 0.1:
        return action([-TRANSLATION, 0, 0], turn, OPEN)
    if np.linalg.norm(gap) < 0.015:
        return action(gap, turn, CLOSED)
    if aside < 0.015 + 0.15 * max(gap[0] - 0.02, 0) and gap[0] > -0.02:
        return action(gap, turn, OPEN)
    return action(gap - [0.15, 0, 0], turn, OPEN)


def close_drawer(info: dict[str, Any]) -> np.ndarray:
    """With closed fingers, line up before the handle and push."""
    tcp, handle = info["tcp_pose"], info["target_pose"]
    turn = turn_towards(tcp, PITCHED, np.array([0.0, 1.0, 0.0]))
    gap = handle[:3] - tcp[:3]
    aside = np.linalg.norm(gap[1:])
    if aside < 0.05 + 0.2 * max(gap[0] - 0.05, 0) and gap[0] > -0.1:
        return action([TRANSLATION, gap[1], gap[2]], turn, CLOSED)
    return action(gap - [0.1, 0, 0], turn, CLOSED)


STYLES = {"direct": {"pick": pick, "open": open_drawer, "close": close_drawer}}
"""What each style knows how to do, by the instruction's verb."""
