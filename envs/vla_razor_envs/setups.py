"""What differs between robots, as frozen records: the task classes hold no branch on the robot.

Units are metres, radians, seconds and kilograms; poses are x, y, z, qw, qx, qy, qz. The embedded setups follow the
rules of SimplerEnv's Google-robot tasks (github.com/simpler-env/SimplerEnv) with the Panda and scenes built of
primitives.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

DRAWERS = ("top", "middle", "bottom")
DRAWER_TASKS = tuple(f"{verb}_{drawer}_drawer" for verb in ("open", "close") for drawer in DRAWERS)
ORIENTATIONS = ("upright", "lr_switch", "laid_vertically")


@dataclass(frozen=True)
class Camera:
    """An RGB camera fixed to a link of the robot, looking from `eye` to `target` in that link's frame."""

    name: str
    link: str
    eye: tuple[float, float, float]
    target: tuple[float, float, float]
    fov: float
    shader: str = "minimal"


@dataclass(frozen=True)
class Gripper:
    """The two finger links with the direction, in each link's frame, in which the finger opens."""

    links: tuple[str, str]
    opening: tuple[tuple[float, float, float], tuple[float, float, float]]
    joint: str


@dataclass(frozen=True)
class Setup:
    """What every task needs to know of a robot: who acts, from where, how fast, for how long, and what it sees."""

    agent: str
    control_mode: str
    tcp_link: str
    gripper: Gripper
    start_qpos: tuple[float, ...]
    qpos_noise: float
    control_hz: int
    sim_hz: int
    horizon: int
    camera: Camera


@dataclass(frozen=True)
class PickCanSetup(Setup):
    """Pick a can. A grasp is contact of both fingers within `grasp_angle` degrees of their closing direction; the can
    is lifted when it is grasped, touches nothing but the robot and rose by `lift_height`; success is a lift now, or
    `sustained_steps` steps (in all) at `significant_height`.
    """

    robot_xy: tuple[float, float]
    table_top: float
    area_x: tuple[float, float]
    area_y: tuple[float, float]
    radius: float
    length: float
    mass: float
    friction: float
    orientations: tuple[str, ...]
    grasp_impulse: float
    grasp_angle: float
    lift_height: float
    significant_height: float
    sustained_steps: int


@dataclass(frozen=True)
class DrawerSetup(Setup):
    """Open or close one of three drawers. Stations are the robot's base x, y, yaw; a reset from a seed alone draws
    inside their bounding box.
    """

    stations: Mapping[str, tuple[float, float, float]]
    cabinet_pose: tuple[float, float, float]
    cabinet_size: tuple[float, float, float]
    drawer_z: tuple[float, float, float]
    panel: tuple[float, float, float]
    handle: tuple[float, float, float]
    handle_gap: float
    travel: float
    friction: float
    damping: float
    start_open: float
    open_at: float
    closed_at: float


PANDA_GRIPPER = Gripper(
    links=("panda_leftfinger", "panda_rightfinger"), opening=((0, 1, 0), (0, -1, 0)), joint="panda_finger_joint1"
)


def _panda(
    start_qpos: tuple[float, ...], horizon: int, target: tuple[float, float, float], fov: float
) -> dict[str, Any]:
    """What both embedded tasks share: 5 Hz control, one camera over the robot's left shoulder."""
    return dict(
        agent="vla_razor_panda",
        control_mode="ee_delta",
        tcp_link="panda_hand_tcp",
        gripper=PANDA_GRIPPER,
        start_qpos=start_qpos,
        qpos_noise=0.02,
        control_hz=5,
        sim_hz=100,
        horizon=horizon,
        camera=Camera("overhead_camera", "panda_link0", eye=(0.3, 0.7, 0.8), target=target, fov=fov),
    )


PANDA_PICK_CAN = PickCanSetup(
    # TCP at (0.45, 0, 0.30), gripper straight down.
    **_panda((0.0, -0.2198, 0.0, -2.4542, 0.0, 2.2344, 0.7854, 0.04, 0.04), 20, target=(0.51, 0.0, 0.12), fov=0.44),
    robot_xy=(0.0, 0.0),
    table_top=0.0,
    area_x=(0.44, 0.60),
    area_y=(-0.12, 0.12),
    # A real can (33 mm) leaves the Panda's 80 mm opening no room for error; 23 mm does.
    radius=0.023,
    length=0.11,
    mass=0.05,
    friction=1.0,
    orientations=ORIENTATIONS,
    grasp_impulse=1e-6,
    grasp_angle=80.0,
    lift_height=0.02,
    significant_height=0.05,
    sustained_steps=3,
)

PANDA_DRAWER = DrawerSetup(
    # TCP at (0.42, 0, 0.42), gripper pitched 45 degrees down, fingers closing sideways on the upright handles.
    **_panda((0.0, -0.8, 0.0, -2.8552, 0.0, 2.8405, 0.7854, 0.04, 0.04), 20, target=(0.54, 0.0, 0.38), fov=0.52),
    stations={
        f"{row}{column}": (x, y, 0.0)
        for row, y in zip("abc", (-0.05, 0.0, 0.05), strict=True)
        for column, x in enumerate((-0.02, 0.0, 0.02))
    },
    cabinet_pose=(0.71, 0.0, 0.0),
    cabinet_size=(0.36, 0.36, 0.6),
    drawer_z=(0.53, 0.40, 0.27),
    panel=(0.008, 0.18, 0.06),
    handle=(0.006, 0.008, 0.045),
    handle_gap=0.05,
    # SimplerEnv's drawers travel 0.5 m, open at 0.15, close at 0.05 and start a closing task at 0.2: all scaled by 0.6.
    travel=0.30,
    friction=0.05,
    damping=1.0,
    start_open=0.12,
    open_at=0.09,
    closed_at=0.03,
)

SETUPS: Mapping[tuple[str, str], Setup] = {("pick_can", "panda"): PANDA_PICK_CAN, ("drawer", "panda"): PANDA_DRAWER}
