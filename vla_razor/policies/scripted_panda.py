"""How the embedded Panda picks the can, opens a drawer and closes one, in several styles: `direct` is what the embedded
base was cloned from, the others solve the same tasks by movements that it has never seen.

The others decide by what a picture shows. They turn the gripper only where that stands out, tell closed fingers from
open ones but not how much lies between them, and come back to the path from wherever they are, as through a funnel: a
little beside the target they stay a little before it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from vla_razor.policies.motion import DOWN, PITCHED, Reach, rotation, turn_towards

TRANSLATION, ROTATION = 0.07, 0.25  # the bounds of one control step
OPEN, CLOSED = -1.0, 1.0
SLOW = 0.05  # metres of one control step, of a style that takes its time
GRASP = 0.02  # metres above the centre of an upright can
LIFTED = 0.20  # metres of the TCP above the table, at which it holds the can
SHUT = 0.020  # of the gripper joint: less than around the can
NEAR = 0.012  # metres beside the target that are as good as none
TILTED = 0.15  # radians: a turn of less is left out
STEEP = np.array([np.cos(np.deg2rad(65)), 0.0, -np.sin(np.deg2rad(65))])
SIDEWAYS, FORWARDS = np.array([0.0, 1.0, 0.0]), np.array([1.0, 0.0, 0.0])
Skill = Callable[[dict[str, Any]], np.ndarray]
action = Reach(TRANSLATION, ROTATION).action
slow = Reach(SLOW, ROTATION).action


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


def pick_across(info: dict[str, Any]) -> np.ndarray:
    """Slowly and from high above, the fingers turned a quarter: they close along the line away from the robot."""
    tcp, can = info["tcp_pose"], info["target_pose"]
    gap = can[:3] + np.array([0.0, 0.0, GRASP]) - tcp[:3]
    turn = _visible(turn_towards(tcp, DOWN, FORWARDS))
    if info["is_grasped"]:
        return slow([0, 0, _lift(tcp)], turn * 0, CLOSED)
    if info["gripper_position"] < SHUT:
        return slow([0, 0, TRANSLATION], turn, OPEN)
    aside = np.linalg.norm(gap[:2])
    if aside < NEAR and -gap[2] < 0.02:
        return slow(gap, turn, CLOSED)
    wait = 0.12 if np.linalg.norm(turn) > 0.3 else _funnel(aside, most=0.12)
    return slow(gap + np.array([0.0, 0.0, wait]), turn, OPEN)


def pick_sideways(info: dict[str, Any]) -> np.ndarray:
    """Slowly from the robot's side, low above the table, until the can is between the fingers; lifted backwards."""
    tcp, can = info["tcp_pose"], info["target_pose"]
    gap = can[:3] + np.array([0.0, 0.0, GRASP]) - tcp[:3]
    turn = _visible(turn_towards(tcp, DOWN, SIDEWAYS))
    if info["is_grasped"]:
        return slow([-0.5 * SLOW if tcp[2] < LIFTED else 0, 0, _lift(tcp)], turn * 0, CLOSED)
    if info["gripper_position"] < SHUT:
        return slow([-SLOW, 0, 0], turn, OPEN)
    aside = np.linalg.norm(gap[1:])
    if aside < NEAR and abs(gap[0]) < 0.015:
        return slow(gap, turn, CLOSED)
    # Whoever is beside the can goes back before it comes down to it.
    back = _funnel(aside, most=0.11)
    return slow(gap - back * FORWARDS, turn, OPEN)


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


def open_steep(info: dict[str, Any]) -> np.ndarray:
    """Slowly, the gripper pitched further down."""
    tcp, handle = info["tcp_pose"], info["target_pose"]
    turn = _visible(turn_towards(tcp, STEEP, SIDEWAYS))
    gap = handle[:3] - tcp[:3]
    if np.linalg.norm(gap) < 0.035 and info["gripper_position"] < SHUT:
        return slow([-TRANSLATION, gap[1], gap[2]], turn, CLOSED)
    if np.linalg.norm(gap) < NEAR:
        return slow(gap, turn, CLOSED)
    aside = np.linalg.norm(gap - (gap @ STEEP) * STEEP)
    return slow(gap - _funnel(aside, most=0.09) * STEEP, turn, OPEN)


def close_drawer(info: dict[str, Any]) -> np.ndarray:
    """With closed fingers, line up before the handle and push."""
    return _push(info, action, turn_towards(info["tcp_pose"], PITCHED, SIDEWAYS))


def close_steep(info: dict[str, Any]) -> np.ndarray:
    """Slowly, the gripper pitched further down."""
    return _push(info, slow, _visible(turn_towards(info["tcp_pose"], STEEP, SIDEWAYS)))


STYLES: dict[str, dict[str, Skill]] = {
    "direct": {"pick": pick, "open": open_drawer, "close": close_drawer},
    "across": {"pick": pick_across},
    "sideways": {"pick": pick_sideways},
    "steep": {"open": open_steep, "close": close_steep},
}
"""What each style knows how to do, by the instruction's verb."""


def _push(info: dict[str, Any], move: Callable[..., np.ndarray], turn: np.ndarray) -> np.ndarray:
    gap = info["target_pose"][:3] - info["tcp_pose"][:3]
    aside = np.linalg.norm(gap[1:])
    if aside < 0.02 + 0.15 * max(gap[0] - 0.05, 0) and gap[0] > 0:
        return move([TRANSLATION, gap[1], gap[2]], turn, CLOSED)
    return move(gap - [0.07, 0, 0], turn, CLOSED)


def _funnel(aside: Any, most: float, slope: float = 4.0) -> float:
    """How far before the target to stay while `aside` of the line to it; metres."""
    return min(most, slope * max(float(aside) - NEAR, 0.0))


def _lift(tcp: np.ndarray) -> float:
    return max(LIFTED - tcp[2], 0.0)


def _visible(turn: np.ndarray) -> np.ndarray:
    """The turn [3], or none where no picture of this size shows that it is needed."""
    return turn * (np.linalg.norm(turn) > TILTED)
