"""The shapes of what differs between robots: frozen records, so that the task classes hold no branch on the robot.

Units are metres, radians, seconds and kilograms; poses are x, y, z, qw, qx, qy, qz; colours are linear RGB.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

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
    """PhysX's settings. Solver iterations are those of the robot and what it touches (`robot_iterations`), the same
    while the fingers hold something light (`pinching_iterations`), and those of everything else
    (`position_iterations`). `temporal` chooses the temporal Gauss-Seidel solver. `friction` holds where a material
    names none.
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

    The base stands at the height `base_z`, turned by `base_yaw` relative to its station or place. The action box
    reaches `reach` metres and radians along and about each axis in a control step, and 1 for the gripper. Actions
    outside it are clipped or, where `clips_actions` is false, refused: there the box is so wide that they must be
    mistakes.

    `task` names the class that builds the scene and judges success, module:Class, which is imported with the simulator.
    `start_keys` are its reset options.

    Of the `cameras` an environment renders those that it is asked for, by default the first. `photo` is the file of the
    photograph behind what the first camera sees, with {station} for the station's name. `robot_material` is the
    specular share and roughness with which the whole robot is drawn, whatever its files say. `files` is the group of
    the original's files without which nothing can be built.
    """

    task: ClassVar[str]
    start_keys: ClassVar[tuple[str, ...]]

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
    cameras: tuple[Camera, ...]
    lighting: Lighting
    photo: str | None = field(default=None, kw_only=True)
    robot_material: tuple[float, float] | None = field(default=None, kw_only=True)
    files: str | None = field(default=None, kw_only=True)

    @property
    def camera(self) -> Camera:
        """The first camera."""
        return self.cameras[0]


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
    """How the can is dropped before an episode, while the robot stands aside at `robot_xy`: for `upright_seconds` it
    cannot tip over, for `free_seconds` it can, and for `extra_seconds` more where it still moves faster than `still`
    (m/s, rad/s). `temporal` is as in `Physics`.

    On a GPU a can cannot be held upright, nor can one scene settle while the others wait. There the can begins at
    `rest`, its pose after settling on a CPU, by orientation: the offset in x and y from where it was dropped and the
    height above the table, in metres, then the quaternion.
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
    """Pick a can.

    A grasp is contact of both fingers within `grasp_angle` degrees of their closing direction. `lift` takes four flags:
    was the can lifted, is it held, does it touch nothing but the robot, and has it risen by `lift_height`. It returns
    what to remember and whether the can is lifted now. Success is a lift in each of the last `lifted_steps` control
    steps, or, where `sustained_steps` is not None, that many steps in all at `significant_height`.

    `table_top` is the height of the table's top, `table_x` and `table_y` how far it reaches: a can beyond would fall.
    `orientations` are roll, pitch and yaw, and `start_heights` the height of the can's origin above the table's top at
    the start, for each of them. `distractors` are dropped around the settled can, one after another.
    """

    task = "vla_razor_envs.pick_can:PickCan"
    start_keys = ("object_xy", "orientation")

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
    """Open or close one of three drawers. Stations are x, y and yaw of the robot's base. A reset from a seed alone
    draws a station or, where `between_stations`, a place inside their bounding box.

    A handle is at the cabinet's place, plus the drawer's height, plus `handle`, plus `slide` for each metre of opening.
    """

    task = "vla_razor_envs.drawer:Drawer"
    start_keys = ("station", "task")

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
