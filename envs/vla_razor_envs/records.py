"""The shapes of what differs between robots: frozen records, so that the task classes hold no branch on the robot.

Units are metres, radians, seconds and kilograms; poses are x, y, z, qw, qx, qy, qz; colours are linear RGB.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

Vector = tuple[float, float, float]


@dataclass(frozen=True)
class Camera:
    """An RGB camera fixed to a link of the robot, looking from `eye` to `target` in that link's frame.

    `fov` is the vertical field of view. With an `aspect`, the view is that many times as wide as it is high whatever
    the image's size, as if a picture of these proportions had been resized to it; otherwise pixels are square.
    """

    name: str
    link: str
    eye: Vector
    target: Vector
    fov: float
    up: Vector = (0.0, 0.0, 1.0)
    aspect: float | None = None
    near: float = 0.05
    shader: str = "minimal"


@dataclass(frozen=True)
class Lighting:
    """An ambient colour, and directional lights: direction and colour of each. With a `shadow`, the first casts shadows
    that far, in metres, from the world's origin (the "minimal" shader shows none).
    """

    ambient: Vector
    directional: tuple[tuple[Vector, Vector], ...]
    shadow: float | None = None


@dataclass(frozen=True)
class Physics:
    """PhysX's settings: solver iterations, of the robot and what it touches, of them while its fingers hold something
    light between them, and of all else; whether the solver is the temporal Gauss-Seidel one; `friction` is that of
    whatever names none.
    """

    robot_iterations: int
    pinching_iterations: int
    position_iterations: int
    temporal: bool
    persistent_contacts: bool
    sleep_threshold: float
    friction: float


@dataclass(frozen=True)
class Gripper:
    """The links of each of the two fingers, with the direction, in those links' frames, in which the finger opens."""

    sides: tuple[tuple[str, ...], tuple[str, ...]]
    opening: tuple[Vector, Vector]
    joint: str


@dataclass(frozen=True)
class Setup:
    """What every task needs to know of a robot: who acts, from where, how fast, for how long, and what it sees.

    The base stands at `base_z`, turned by `base_yaw` from where a station or place says. Actions outside the action box
    are clipped to it or, where `clips_actions` is false, refused: there the box is so wide that they are mistakes. It
    reaches `reach` metres and radians along and about each axis in a control step, and 1 for the gripper.
    `photo` is the file of the photograph behind the scene, {station} in it being the station's name; `robot_material`
    the specular share and roughness that all of the robot is drawn with, whatever its files say; `files` the group of
    the original's files without which nothing can be built.
    """

    agent: str
    control_mode: str
    tcp_link: str
    gripper: Gripper
    start_qpos: Mapping[str, float]
    qpos_noise: float
    base_z: float
    base_yaw: float
    control_hz: int
    sim_hz: int
    horizon: int
    clips_actions: bool
    reach: tuple[float, float]
    physics: Physics
    camera: Camera
    lighting: Lighting
    photo: str | None = field(default=None, kw_only=True)
    robot_material: tuple[float, float] | None = field(default=None, kw_only=True)
    files: str | None = field(default=None, kw_only=True)


# ---------------------------------------------------------------------- pick a can


@dataclass(frozen=True)
class CylinderCan:
    """A can that is a cylinder."""

    radius: float
    length: float
    mass: float
    friction: float
    damping: tuple[float, float]  # linear, angular


@dataclass(frozen=True)
class MeshCan:
    """A can, or another thing, whose collision and visual meshes lie in a folder of the downloaded assets."""

    folder: str
    density: float
    friction: float
    damping: tuple[float, float]
    assets: str = "tasks"


@dataclass(frozen=True)
class BoxTable:
    """A box with this half size, and the centre of its top; a room stands around it."""

    half_size: Vector
    top: Vector


@dataclass(frozen=True)
class Stage:
    """A room: a mesh of the downloaded assets, of the group `assets`, at a pose. Where it is absent, a table of the
    same height stands in, if there is one.
    """

    file: str
    pose: tuple[float, ...]
    assets: str
    stand_in: str | None = None  # a mesh of this package, in world coordinates


@dataclass(frozen=True)
class Settling:
    """The can is dropped while the robot stands aside at `robot_xy`: `upright_seconds` in which it cannot tip over,
    `free_seconds`, and `extra_seconds` where it still moves faster than `still` (m/s, rad/s). `temporal` as in
    `Physics`. A GPU cannot hold a can upright, nor let one scene settle while the others wait: there the can begins at
    `rest`, by orientation where it has settled on a CPU, wherever on the table that was: the offset in x and y and the
    height above the table, metres, and the quaternion.
    """

    temporal: bool
    robot_xy: tuple[float, float]
    upright_seconds: float
    free_seconds: float
    extra_seconds: float
    still: tuple[float, float]
    rest: Mapping[str, tuple[float, float, float, float, float, float, float]]


def lift_while_high(lifted: Any, held: Any, free: Any, risen: Any) -> tuple[Any, Any]:
    """A held can that was once free counts as lifted while it is high."""
    lifted = held & (lifted | free)
    return lifted, lifted & risen


def lift_until_released(lifted: Any, held: Any, free: Any, risen: Any) -> tuple[Any, Any]:
    """SimplerEnv's rule: a can that is free and high is lifted, and stays so until the grasp is lost."""
    lifted = (held & lifted) | (free & risen)
    return lifted, lifted


@dataclass(frozen=True)
class PickCanSetup(Setup):
    """Pick a can. A grasp is contact of both fingers within `grasp_angle` degrees of their closing direction; `lift`
    takes what was lifted, what is held, what touches nothing but the robot and what rose by `lift_height`, and returns
    what to remember and what is lifted now; success is `lifted_steps` control steps in a row with a lift, the present
    one the last of them, or `sustained_steps` steps (in all) at `significant_height`, where that is not None.

    `table_top` is the height of the table's top, `table_x` and `table_y` how far it reaches: a can beyond would fall.
    `orientations` are roll, pitch and yaw; `start_heights` the can's origin above the table's top at the start, for
    each of them. `distractors` are dropped around the settled can, one after another.
    """

    robot_xy: tuple[float, float]
    table: BoxTable | Stage
    table_top: float
    table_x: tuple[float, float]
    table_y: tuple[float, float]
    can: CylinderCan | MeshCan
    area_x: tuple[float, float]
    area_y: tuple[float, float]
    orientations: Mapping[str, Vector]
    start_heights: Mapping[str, float]
    settling: Settling | None
    grasp_impulse: float
    grasp_angle: float
    lift: Callable[[Any, Any, Any, Any], tuple[Any, Any]]
    lift_height: float
    significant_height: float
    lifted_steps: int
    sustained_steps: int | None
    distractors: tuple[MeshCan, ...] = field(default=(), kw_only=True)


# ---------------------------------------------------------------------- drawers


@dataclass(frozen=True)
class BoxCabinet:
    """A cabinet of boxes whose drawers slide towards -x; `panel` and `handle` are half sizes."""

    size: Vector
    panel: Vector
    handle: Vector
    handle_gap: float
    travel: float


@dataclass(frozen=True)
class UrdfCabinet:
    """A cabinet described by a URDF file of the downloaded assets, in a room or on a bare floor."""

    file: str
    assets: str = "tasks"
    room: Stage | None = None


@dataclass(frozen=True)
class DrawerSetup(Setup):
    """Open or close one of three drawers. Stations are the robot's base x, y, yaw; a reset from a seed alone draws one
    or, where `between_stations`, a place inside their bounding box.

    A handle's place is the cabinet's, plus the drawer's height, plus `handle`, plus `slide` for each metre of opening.
    """

    stations: Mapping[str, Vector]
    between_stations: bool
    cabinet: BoxCabinet | UrdfCabinet
    cabinet_pose: Vector
    drawer_z: Vector
    handle: Vector
    slide: float
    friction: float
    damping: float
    start_open: float
    open_at: float
    closed_at: float
