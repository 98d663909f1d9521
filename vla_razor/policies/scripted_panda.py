"""How the embedded Panda picks the can, opens a drawer and closes one, in several styles: `direct` is what the embedded
base was cloned from, the others solve the same tasks by movements that it has never seen.

A style decides by what a picture shows. It turns the gripper only where that stands out, tells closed fingers from open
ones but not how much lies between them, and comes back to the path from wherever it is, as through a funnel: a little
beside the target it stays a little before it.
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
HOVER = 0.09  # metres above that, where it waits to be aligned
LIFTED = 0.20  # metres of the TCP above the table, at which it holds the can
SHUT = 0.020  # of the gripper joint: less than around the can
NEAR = 0.012  # metres beside the target that are as good as none
TILTED = 0.15  # radians: a turn of less is left out
STEEP = np.array([np.cos(np.deg2rad(65)), 0.0, -np.sin(np.deg2rad(65))])
SIDEWAYS, FORWARDS = np.array([0.0, 1.0, 0.0]), np.array([1.0, 0.0, 0.0])
Skill = Callable[[dict[str, Any]], np.ndarray]
Move = Callable[..., np.ndarray]
action = Reach(TRANSLATION, ROTATION).action
slow = Reach(SLOW, ROTATION).action


def rest(info: dict[str, Any]) -> np.ndarray:
    """Stay, fingers closed: the drawer is where it should be."""
    return action([0, 0, 0], np.zeros(3), CLOSED)


def pick(info: dict[str, Any]) -> np.ndarray:
    """From above: descend onto the can, close, lift and hold; closed on nothing, rise and open again."""
    axis = rotation(info["target_pose"]).apply([1.0, 0.0, 0.0])
    upright = abs(axis[2]) > 0.7
    closing = None if upright else np.array([-axis[1], axis[0], 0.0])
    return _pick_from_above(info, action, closing, above=GRASP if upright else 0.0, hover=HOVER)


def pick_across(info: dict[str, Any]) -> np.ndarray:
    """Slowly and from higher above, the fingers turned a quarter: they close along the line away from the robot."""
    return _pick_from_above(info, slow, FORWARDS, above=GRASP, hover=0.12)


def pick_sideways(info: dict[str, Any]) -> np.ndarray:
    """Slowly from the robot's side, low above the table, until the can is between the fingers; lifted backwards."""
    tcp, can = info["tcp_pose"], info["target_pose"]
    gap = can[:3] + np.array([0.0, 0.0, GRASP]) - tcp[:3]
    turn = _visible(turn_towards(tcp, DOWN, SIDEWAYS))
    if info["is_grasped"]:
        return slow([-0.5 * SLOW if tcp[2] < LIFTED else 0, 0, lift(tcp)], turn * 0, CLOSED)
    if info["gripper_position"] < SHUT:
        return slow([-SLOW, 0, 0], turn, OPEN)
    aside = np.linalg.norm(gap[1:])
    if aside < NEAR and abs(gap[0]) < 0.015:
        return slow(gap, turn, CLOSED)
    # Whoever is beside the can goes back before it comes down to it.
    back = funnel(aside, most=0.11)
    return slow(gap - back * FORWARDS, turn, OPEN)


def pick_tucked(info: dict[str, Any]) -> np.ndarray:
    """With closed fingers until it hovers over the can, where it opens them; from there on as from above."""
    tcp, can = info["tcp_pose"], info["target_pose"]
    gap = can[:3] + np.array([0.0, 0.0, GRASP + HOVER]) - tcp[:3]
    low = gap[2] > -0.03
    if info["is_grasped"] or (low and info["gripper_position"] > SHUT):
        return pick(info)
    arrived = np.linalg.norm(gap) < 2 * NEAR
    return action(gap, np.zeros(3), OPEN if arrived else CLOSED)


def open_drawer(info: dict[str, Any]) -> np.ndarray:
    """Pitched halfway down: go before the handle, advance onto the bar, close, pull."""
    return _open(info, action, PITCHED)


def open_steep(info: dict[str, Any]) -> np.ndarray:
    """Slowly, the gripper pitched further down."""
    return _open(info, slow, STEEP)


def close_drawer(info: dict[str, Any]) -> np.ndarray:
    """With closed fingers, line up before the handle and push."""
    return _close(info, action, PITCHED)


def close_steep(info: dict[str, Any]) -> np.ndarray:
    """Slowly, the gripper pitched further down."""
    return _close(info, slow, STEEP)


STYLES: dict[str, dict[str, Skill]] = {
    "direct": {"pick": pick, "open": open_drawer, "close": close_drawer},
    "across": {"pick": pick_across},
    "sideways": {"pick": pick_sideways},
    "tucked": {"pick": pick_tucked},
    "steep": {"open": open_steep, "close": close_steep},
}
"""What each style knows how to do, by the instruction's verb."""


def _pick_from_above(info: dict[str, Any], move: Move, closing: Any, above: float, hover: float) -> np.ndarray:
    """`above` is where it grasps, over the can's centre, and `hover` how far over that it waits to be aligned."""
    tcp, can = info["tcp_pose"], info["target_pose"]
    gap = can[:3] + np.array([0.0, 0.0, above]) - tcp[:3]
    turn = _visible(turn_towards(tcp, DOWN, closing))
    if info["is_grasped"]:
        return move([0, 0, lift(tcp)], turn * 0, CLOSED)
    if info["gripper_position"] < SHUT:
        return move([0, 0, TRANSLATION], turn, OPEN)
    aside = np.linalg.norm(gap[:2])
    if aside < NEAR and -gap[2] < 0.02:
        return move(gap, turn, CLOSED)
    wait = hover if np.linalg.norm(turn) > 0.3 else funnel(aside, most=hover)
    return move(gap + np.array([0.0, 0.0, wait]), turn, OPEN)


def _open(info: dict[str, Any], move: Move, approach: np.ndarray) -> np.ndarray:
    tcp, handle = info["tcp_pose"], info["target_pose"]
    turn = _visible(turn_towards(tcp, approach, SIDEWAYS))
    gap = handle[:3] - tcp[:3]
    if np.linalg.norm(gap) < 0.035 and info["gripper_position"] < SHUT:
        return move([-TRANSLATION, gap[1], gap[2]], turn, CLOSED)
    if np.linalg.norm(gap) < NEAR:
        return move(gap, turn, CLOSED)
    aside = np.linalg.norm(gap - (gap @ approach) * approach)
    return move(gap - funnel(aside, most=0.09) * approach, turn, OPEN)


def _close(info: dict[str, Any], move: Move, approach: np.ndarray) -> np.ndarray:
    tcp, handle = info["tcp_pose"], info["target_pose"]
    turn = _visible(turn_towards(tcp, approach, SIDEWAYS))
    gap = handle[:3] - tcp[:3]
    aside = np.linalg.norm(gap[1:])
    if aside < 0.02 + 0.15 * max(gap[0] - 0.05, 0) and gap[0] > 0:
        return move([TRANSLATION, gap[1], gap[2]], turn, CLOSED)
    return move(gap - [0.07, 0, 0], turn, CLOSED)


def funnel(aside: Any, most: float, slope: float = 4.0) -> float:
    """How far before the target to stay while `aside` of the line to it; metres."""
    return min(most, slope * max(float(aside) - NEAR, 0.0))


def lift(tcp: np.ndarray) -> float:
    return max(LIFTED - tcp[2], 0.0)


def _visible(turn: np.ndarray) -> np.ndarray:
    """The turn [3], or none where no picture of this size shows that it is needed."""
    return turn * (np.linalg.norm(turn) > TILTED)
