"""What is odd about the actions of demonstrations, as whoever records a robot gets it wrong most often."""

import math
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Float

from vla_razor.conventions import GRIPPERS, ROTATIONS, Convention
from vla_razor.rollouts.demonstrations import Demonstration

FAST = 30
"""Control steps a second beyond which a single one hardly moves anything; OpenVLA's data sets have 3 to 20."""
OPENVLA = 7
"""Numbers of an action that are a position, a rotation of three numbers and a gripper where nothing else is known."""


def of_episodes(episodes: Sequence[Demonstration], convention: Convention | None) -> list[str]:
    """A sentence for each oddity of the labels and the control rate. Without a convention seven numbers are taken for
    a position, a rotation and a gripper.
    """
    actions = [episode.labels.astype(float) for episode in episodes]
    dims = actions[0].shape[1]
    words = convention.rotation if convention else "axis_angle" if dims == OPENVLA else "none"
    turned = range(3, 3 + ROTATIONS[words])
    grips = convention.gripper != "none" if convention else dims == OPENVLA
    return [
        *_rates(episodes),
        *(_rotations(actions, turned, words, convention) if len(turned) and dims >= turned.stop else ()),
        *(_gripper([one[:, -1] for one in actions], dims - 1, convention) if grips else ()),
    ]


def _rates(episodes: Sequence[Demonstration]) -> Iterator[str]:
    rates = sorted({episode.control_hz for episode in episodes})
    if len(rates) > 1:
        yield f"episodes have {', '.join(map(str, rates))} control steps a second: actions mean different speeds."
    if rates[-1] > FAST:
        yield f"{rates[-1]} control steps a second are many, and each moves little: import with every=N joins them."


def _rotations(
    actions: Sequence[Float[np.ndarray, "T D"]], dims: range, words: str, convention: Convention | None
) -> Iterator[str]:
    values = np.concatenate(actions)[:, dims.start : dims.stop]
    where = f"dimensions {dims.start} to {dims.stop - 1}"
    if words.startswith("quaternion"):
        lengths = np.linalg.norm(values, axis=1)
        if np.abs(lengths - 1).max() > 1e-2:
            yield f"{where} are no unit quaternions: their lengths lie in [{lengths.min():.3g}, {lengths.max():.3g}]."
    elif words in ("axis_angle", "euler_xyz"):
        for index, most in zip(dims, np.abs(values).max(0), strict=True):
            if most > math.pi + 1e-3:
                yield f"dimension {index} turns by {most:.3g} rad, beyond pi: are these degrees, or no rotation?"
    if convention is None or convention.control == "delta" or words == "none":
        return
    for index in dims:
        jumps = sum(int((np.abs(np.diff(one[:, index])) > math.pi).sum()) for one in actions)
        if jumps and words in ("axis_angle", "euler_xyz"):
            yield f"dimension {index} jumps by more than pi {jumps} times: the angle wraps round; rotation_6d does not."


def _gripper(values: Sequence[Float[np.ndarray, " T"]], index: int, convention: Convention | None) -> Iterator[str]:
    low, high = min(one.min() for one in values), max(one.max() for one in values)
    begins = float(np.median([one[0] for one in values]))
    if convention is None:
        known = [name for name, ends in GRIPPERS.items() if sorted(ends) == [round(low, 3), round(high, 3)]]
        starts = [name for name in known if abs(begins - GRIPPERS[name][0]) < abs(begins - GRIPPERS[name][1])]
        if starts:
            yield (
                f"dimension {index} looks like a gripper, from {low:g} to {high:g}, and most episodes begin with "
                f"{begins:g}. If they begin open, it is {starts[0]}: say so as the convention."
            )
        return
    opened, closed = GRIPPERS[convention.gripper]
    if low < min(opened, closed) - 1e-3 or high > max(opened, closed) + 1e-3:
        yield (
            f"dimension {index} lies in [{low:.3g}, {high:.3g}], but a {convention.gripper} gripper in "
            f"[{min(opened, closed):g}, {max(opened, closed):g}]."
        )
    elif abs(begins - closed) < abs(begins - opened):
        yield (
            f"dimension {index}: most episodes begin with the gripper at {begins:g}, which {convention.gripper} calls "
            "closed: is its sign right?"
        )
