"""Between the actions a policy speaks and those an environment takes: small transforms, each with its inverse.

A policy speaks the language of the data set whose statistics it uses. Most are the environment's own. OpenVLA learnt
the Google robot from Open X-Embodiment's `fractal20220817_data`: its rotations are roll, pitch and yaw, and its gripper
says how open it should be; SimplerEnv's robot takes an axis-angle vector and a *change* of closedness. The rules are
those of SimplerEnv's evaluators (facts of github.com/simpler-env/SimplerEnv 4ab7178 and its forks). LIBERO's data sets
differ from its robot in the gripper alone (facts of github.com/openvla/openvla, experiments/robot/libero).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.spatial.transform import Rotation

from vla_razor import conventions as words
from vla_razor.errors import UserError

HOLD = 15
"""Control steps for which a decided gripper change is repeated."""
DECIDED = 0.5
"""A change of openness above this is a decision."""

Actions = Float[np.ndarray, "B 7"]


class Latch(NamedTuple):
    """What the gripper's rule remembers of an episode: the openness asked for last, and a change that still holds for
    `left` control steps.
    """

    openness: float
    change: float = 0.0
    left: int = 0


@dataclass(frozen=True)
class Convention:
    """A language of actions.

    `to_environment(actions [B, 7], memories)` gives environment actions [B, 7] and the memories of their episodes after
    this step; `from_environment(actions [T, 7])` gives what the policy should have said in one whole episode.
    """

    to_environment: Callable[[Actions, Sequence[Any]], tuple[Actions, list[Any]]]
    from_environment: Callable[[Float[np.ndarray, "T 7"]], Float[np.ndarray, "T 7"]]


def rotation_vector(roll_pitch_yaw: Float[np.ndarray, "*B 3"]) -> Float[np.ndarray, "*B 3"]:
    """Axis times angle, radians, of turns about the fixed axes x, y, z in this order."""
    return _each(lambda angles: Rotation.from_euler("xyz", angles).as_rotvec(), roll_pitch_yaw)


def roll_pitch_yaw(rotation_vector: Float[np.ndarray, "*B 3"]) -> Float[np.ndarray, "*B 3"]:
    """The inverse of `rotation_vector`; pitch lies in [-pi/2, pi/2]."""
    return _each(lambda vectors: Rotation.from_rotvec(vectors).as_euler("xyz"), rotation_vector)


def sticky_change(openness: float, latch: Latch | None) -> tuple[float, Latch]:
    """The change of closedness, in [-1, 1], that an absolute `openness` (1: open) asks for, and the latch after it.

    The first step of an episode asks for nothing. A change above 0.5 is repeated for 15 steps, whatever is said
    meanwhile, so that slow fingers get there.
    """
    change = 0.0 if latch is None else latch.openness - openness
    if latch is not None and latch.left:
        return latch.change, Latch(openness, latch.change, latch.left - 1)
    if abs(change) > DECIDED:
        return change, Latch(openness, change, HOLD - 1)
    return change, Latch(openness)


def openness(changes: Float[np.ndarray, " T"]) -> Float[np.ndarray, " T"]:
    """What to say so that the gripper goes where an episode's `changes` of closedness take it, from open.

    The inverse of `sticky_change`: what any words did to the fingers, these do. The numbers themselves may differ where
    a change goes further into a stop: who commands closed fingers to close has said so already. The first step of an
    episode asks for nothing, and a decided change holds for 15 steps. There the words say where the fingers are, so
    that what the episode wanted meanwhile is a change as soon as one is heard: an episode that begins by closing says
    open once and closes from step 1 on; one that reverses a change too soon does so when its 15 steps are over.
    """
    said, wanted, reached, latch = np.empty(len(changes)), 0.0, 0.0, Latch(1.0, left=1)
    for step, change in enumerate(changes):
        wanted = _closedness(wanted + float(change))
        reached = _closedness(reached + latch.change) if latch.left else wanted
        said[step] = 1.0 - reached
        _, latch = sticky_change(said[step], latch)
    return said


def _closedness(value: float) -> float:
    return min(max(value, 0.0), 1.0)


def _fractal_to_environment(actions: Actions, memories: Sequence[Latch | None]) -> tuple[Actions, list[Latch]]:
    steps = [sticky_change(float(said), latch) for said, latch in zip(actions[:, 6], memories, strict=True)]
    gripper = np.array([[change] for change, _ in steps]).reshape(-1, 1)
    return np.concatenate([actions[:, :3], rotation_vector(actions[:, 3:6]), gripper], 1), [latch for _, latch in steps]


def _fractal_from_environment(actions: Float[np.ndarray, "T 7"]) -> Float[np.ndarray, "T 7"]:
    return np.concatenate([actions[:, :3], roll_pitch_yaw(actions[:, 3:6]), openness(actions[:, 6])[:, None]], 1)


def _libero_to_environment(actions: Actions, memories: Sequence[Any]) -> tuple[Actions, list[Any]]:
    # The robot opens its gripper at -1 and closes it at 1, and knows nothing between.
    return np.concatenate([actions[:, :6], -np.sign(2 * actions[:, 6:] - 1)], 1), list(memories)


def _libero_from_environment(actions: Float[np.ndarray, "T 7"]) -> Float[np.ndarray, "T 7"]:
    return np.concatenate([actions[:, :6], 1 - np.clip(actions[:, 6:], 0, 1)], 1)


def _each(convert: Callable[[np.ndarray], np.ndarray], rows: np.ndarray) -> np.ndarray:
    rows = np.asarray(rows, float)
    return convert(rows.reshape(-1, 3)).reshape(rows.shape) if rows.size else rows


ENVIRONMENT = Convention(lambda actions, memories: (actions, list(memories)), lambda actions: actions)
"""The environment's own actions."""
FRACTAL = Convention(_fractal_to_environment, _fractal_from_environment)
"""`fractal20220817_data`: metres, roll-pitch-yaw, openness in [0, 1]."""
LIBERO = Convention(_libero_to_environment, _libero_from_environment)
"""LIBERO's data sets: the environment's own six numbers, and openness in [0, 1]."""

LIBERO_KEYS = "libero_"
"""How the names of LIBERO's data sets begin: libero_spatial_no_noops, libero_130_no_noops_trajall ..."""
FRACTAL_KEY = "fractal20220817_data"
SPOKEN_FOR: Mapping[str, tuple[str, ...]] = {
    "panda": ("vla_razor_panda",),
    "google_robot": ("vla_razor_google_robot", FRACTAL_KEY),
}
"""By robot, the data sets whose statistics a policy may have for it, the best first."""
UNITS = {
    "vla_razor_panda": "axis-angle, closedness: the environment's own",
    "vla_razor_google_robot": "axis-angle, change of closedness: the environment's own",
    FRACTAL_KEY: "roll-pitch-yaw, openness",
}
CONVENTIONS = {"vla_razor_panda": ENVIRONMENT, "vla_razor_google_robot": ENVIRONMENT, FRACTAL_KEY: FRACTAL}


def translation(key: str | None, spoken: words.Convention, taken: words.Convention) -> Convention:
    """Between what the statistics `key` say of their actions, and what a suite says of its own. Raises `UserError`
    where a step's action alone does not tell the other.
    """
    if (spoken.control, spoken.frame) != (taken.control, taken.frame):
        raise UserError(
            f"unnorm_key={key}: its actions are {spoken.control} in the frame of the {spoken.frame}, the suite's "
            f"{taken.control} in that of the {taken.frame}: no action of one says the other's. Import the "
            f"demonstrations with convert={{control: {taken.control}, frame: {taken.frame}}}."
        )
    return Convention(
        lambda actions, memories: (words.converted(actions, spoken, taken), list(memories)),
        lambda actions: words.converted(actions, taken, spoken),
    )


def convention_of(
    key: str | None,
    robot: str,
    spoken: Mapping[str, Any] | None = None,
    taken: Mapping[str, Any] | None = None,
) -> Convention:
    """The language of a data set's actions. In a suite from outside it is the environment's, but for LIBERO's data, and
    where both say theirs: `spoken` is what the statistics say, `taken` what the suite does.

    Raises `UserError` for a data set that is not known: numbers in other units would move the robot, only wrongly.
    """
    if spoken and taken:
        return translation(key, words.parse(f"unnorm_key={key}", spoken), words.parse(f"env={robot}", taken))
    if robot not in SPOKEN_FOR:
        return LIBERO if key and key.startswith(LIBERO_KEYS) else ENVIRONMENT
    if key not in CONVENTIONS:
        known = "; ".join(f"{name} ({UNITS[name]})" for name in SPOKEN_FOR.get(robot, CONVENTIONS))
        raise UserError(
            f"unnorm_key={key}: it is not known in which units its actions move the robot, {robot}. Known: {known}. "
            "Give the checkpoint's statistics the name of those whose units they have, in its dataset_statistics.json."
        )
    return CONVENTIONS[key]


def statistics_key(norm_stats: Mapping[str, Any], key: str | None, robot: str) -> str | None:
    """Whose statistics a policy should use: `key` if given, else the robot's, else the only ones; None where there is
    no such thing. In a suite from outside the robot's bear the suite's name, as LIBERO's data sets do.
    """
    spoken = [name for name in SPOKEN_FOR.get(robot, (f"{robot}_no_noops", robot)) if name in norm_stats]
    only = list(norm_stats) if len(norm_stats) == 1 else []
    return key or next(iter(spoken + only), None)
