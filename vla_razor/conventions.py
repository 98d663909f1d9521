"""In which words an action is said: delta or absolute, in which frame, how a rotation is written, what the gripper's
number means; and the small invertible transforms between them.

    convention:
      control: delta             # delta: a change of the pose; absolute: the pose to go to
      frame: base                # whose axes a delta is along: the robot's base, or the tool
      rotation: axis_angle       # axis_angle, euler_xyz (about fixed axes), quaternion_xyzw, quaternion_wxyz,
                                 # rotation_6d (two columns of the matrix), or none: plain numbers, such as joints
      gripper: close_positive    # close_positive, open_positive: -1 to 1; close_unit, open_unit: 0 to 1; none
      state: null                # how the rotation is written with which the state begins, after a position; or null

An action is a position or its change (3, metres), a rotation, and a gripper, in this order, where each has it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Float

from vla_razor.errors import UserError, nearest

if TYPE_CHECKING:
    from scipy.spatial.transform import Rotation

ROTATIONS = {
    "axis_angle": 3,
    "euler_xyz": 3,
    "quaternion_xyzw": 4,
    "quaternion_wxyz": 4,
    "rotation_6d": 6,
    "none": 0,
}
"""And how many numbers each takes."""
GRIPPERS = {
    "close_positive": (-1.0, 1.0),
    "open_positive": (1.0, -1.0),
    "close_unit": (0.0, 1.0),
    "open_unit": (1.0, 0.0),
    "none": (0.0, 0.0),
}
"""What an open gripper and a closed one are called."""
KNOWN: dict[str, tuple[str | None, ...]] = {
    "control": ("delta", "absolute"),
    "frame": ("base", "tool"),
    "rotation": tuple(ROTATIONS),
    "gripper": tuple(GRIPPERS),
    "state": (None, *ROTATIONS),
}


@dataclass(frozen=True)
class Convention:
    """See the module's text."""

    control: str
    rotation: str
    gripper: str
    frame: str = "base"
    state: str | None = None

    @property
    def dims(self) -> int | None:
        """How many numbers an action has; None where they are plain ones."""
        return None if self.rotation == "none" else 3 + ROTATIONS[self.rotation] + (self.gripper != "none")

    def facts(self) -> dict[str, str | None]:
        """As a YAML file says it."""
        return asdict(self)


def parse(where: str, said: Mapping[str, Any]) -> Convention:
    """What a file or an option says. Raises `UserError`, which begins with `where`, for what is unknown or missing."""
    for key, value in said.items():
        if key not in KNOWN:
            raise UserError(f"{where}: a convention has no {key}. {nearest(str(key), KNOWN)}")
        if value not in KNOWN[key]:
            names = [name for name in KNOWN[key] if name is not None]
            raise UserError(f"{where}: {key} {value!r} is not known. {nearest(str(value), names)}")
    if missing := [key for key in ("control", "rotation", "gripper") if key not in said]:
        raise UserError(f"{where}: the convention does not say its {' and its '.join(missing)}.")
    return Convention(**said)


def changed(where: str, given: Convention, said: Mapping[str, Any]) -> Convention:
    """A convention that differs in what is said. Raises `UserError` as `parse` does."""
    return replace(given, **parse(where, given.facts() | dict(said)).facts())


class Pose(NamedTuple):
    """Of the tool in the robot's base frame, at `T` steps."""

    position: Float[np.ndarray, "T 3"]
    rotation: Rotation


def pose_of(states: Float[np.ndarray, "T P"], convention: Convention) -> Pose | None:
    """Where the tool is, if the states begin with it."""
    if convention.state is None:
        return None
    turned = states[:, 3 : 3 + ROTATIONS[convention.state]]
    return Pose(states[:, :3].astype(float), rotation_of(turned, convention.state))


def rotation_of(numbers: Float[np.ndarray, "T R"], words: str) -> Rotation:
    """The rotations that numbers say."""
    from scipy.spatial.transform import Rotation

    numbers = np.asarray(numbers, float)
    match words:
        case "axis_angle":
            return Rotation.from_rotvec(numbers)
        case "euler_xyz":
            return Rotation.from_euler("xyz", numbers)
        case "quaternion_xyzw":
            return Rotation.from_quat(numbers)
        case "quaternion_wxyz":
            return Rotation.from_quat(numbers[:, [1, 2, 3, 0]])
        case "rotation_6d":
            return Rotation.from_matrix(_orthonormal(numbers))
    raise UserError(f"rotation {words!r}: there is none to convert.")


def numbers_of(rotation: Rotation, words: str) -> Float[np.ndarray, "T R"]:
    """The inverse of `rotation_of`. Quaternions are those with w >= 0, pitch is in [-pi/2, pi/2]."""
    match words:
        case "axis_angle":
            return rotation.as_rotvec()
        case "euler_xyz":
            return rotation.as_euler("xyz", suppress_warnings=True)
        case "quaternion_xyzw":
            return rotation.as_quat(canonical=True)
        case "quaternion_wxyz":
            return rotation.as_quat(canonical=True, scalar_first=True)
        case "rotation_6d":
            return rotation.as_matrix()[:, :, :2].transpose(0, 2, 1).reshape(-1, 6)
    raise UserError(f"rotation {words!r}: there is none to convert.")


def converted(
    actions: Float[np.ndarray, "T D"], given: Convention, wanted: Convention, pose: Pose | None = None
) -> Float[np.ndarray, "T E"]:
    """Actions in the words of `given` said in those of `wanted`; `pose` is where the tool was at each, which another
    control or frame depends on.

    Raises `UserError` where there is no such conversion, or the actions are of another length than `given` says.
    """
    if given.dims not in (None, actions.shape[1]):
        says = f"{given.rotation} with gripper {given.gripper} are {given.dims}"
        raise UserError(f"its actions have {actions.shape[1]} numbers, but a position, {says}.")
    for name in ("rotation", "gripper"):
        one, other = getattr(given, name), getattr(wanted, name)
        if (one == "none") != (other == "none"):
            raise UserError(f"{name} {one} cannot be said as {other}.")
    end = actions.shape[1] - (given.gripper != "none")
    motion, gripper = actions[:, :end].astype(float), _regripped(actions[:, end:], given, wanted)
    moves = _moves(given) != _moves(wanted)
    if given.rotation == "none":
        if moves:
            raise UserError("plain numbers cannot be changed from delta to absolute.")
        return np.concatenate([motion, gripper], 1)
    position, rotation = motion[:, :3], rotation_of(motion[:, 3:], given.rotation)
    if moves:
        if pose is None:
            raise UserError("another control or frame needs the tool's pose: say how the state writes it, as `state`.")
        position, rotation = _from_target(*_to_target(position, rotation, given, pose), wanted, pose)
    return np.concatenate([position, numbers_of(rotation, wanted.rotation), gripper], 1)


def joined(actions: Float[np.ndarray, "T D"], every: int, convention: Convention) -> Float[np.ndarray, "K D"]:
    """One action for every so many: what they do together. Deltas add up, of absolute ones and of grippers the last
    counts.
    """
    if every == 1:
        return actions
    groups = [actions[start : start + every] for start in range(0, len(actions), every)]
    if convention.control == "absolute":
        return np.stack([group[-1] for group in groups])
    return np.stack([_sum(group, convention) for group in groups]).astype(actions.dtype)


def _sum(group: Float[np.ndarray, "N D"], convention: Convention) -> Float[np.ndarray, " D"]:
    end = group.shape[1] - (convention.gripper != "none")
    if convention.rotation == "none":
        return np.concatenate([group[:, :end].sum(0, dtype=float), group[-1, end:]])
    position, turned = np.zeros(3), None
    for row in group.astype(float):
        turn = rotation_of(row[None, 3:end], convention.rotation)
        if turned is None:
            position, turned = row[:3], turn
        elif convention.frame == "base":
            position, turned = position + row[:3], turn * turned
        else:
            position, turned = position + turned.apply(row[:3])[0], turned * turn
    assert turned is not None
    return np.concatenate([position, numbers_of(turned, convention.rotation)[0], group[-1, end:]])


def _moves(convention: Convention) -> tuple[str, str]:
    """What decides how the tool moves. An absolute pose is the base's."""
    return convention.control, "base" if convention.control == "absolute" else convention.frame


def _to_target(position: np.ndarray, turn: Rotation, given: Convention, pose: Pose) -> tuple[np.ndarray, Rotation]:
    match _moves(given):
        case ("absolute", _):
            return position, turn
        case (_, "base"):
            return pose.position + position, turn * pose.rotation
    return pose.position + pose.rotation.apply(position), pose.rotation * turn


def _from_target(position: np.ndarray, target: Rotation, wanted: Convention, pose: Pose) -> tuple[np.ndarray, Rotation]:
    match _moves(wanted):
        case ("absolute", _):
            return position, target
        case (_, "base"):
            return position - pose.position, target * pose.rotation.inv()
    back = pose.rotation.inv()
    return back.apply(position - pose.position), back * target


def _regripped(gripper: np.ndarray, given: Convention, wanted: Convention) -> np.ndarray:
    if given.gripper == wanted.gripper:
        return gripper.astype(float)
    (opened, closed), (open_there, closed_there) = GRIPPERS[given.gripper], GRIPPERS[wanted.gripper]
    share = (gripper.astype(float) - opened) / (closed - opened)
    return open_there + share * (closed_there - open_there)


def _orthonormal(numbers: Float[np.ndarray, "T 6"]) -> Float[np.ndarray, "T 3 3"]:
    """Rotation matrices from their first two columns, made orthonormal (Zhou et al., 2019)."""
    first, second = numbers[:, :3], numbers[:, 3:]
    x = first / np.linalg.norm(first, axis=1, keepdims=True)
    y = second - (x * second).sum(1, keepdims=True) * x
    y = y / np.linalg.norm(y, axis=1, keepdims=True)
    return np.stack([x, y, np.cross(x, y)], axis=2)
