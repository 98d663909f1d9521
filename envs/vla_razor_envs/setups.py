"""The setups: what each robot's tasks are made of. The embedded ones follow the rules of SimplerEnv's Google-robot
tasks (github.com/simpler-env/SimplerEnv) with the Panda and scenes built of primitives.
"""

from math import pi
from typing import Any

from .google_setups import GOOGLE_DRAWER, GOOGLE_PICK_CAN
from .records import (
    BoxCabinet,
    BoxTable,
    Camera,
    CylinderCan,
    DrawerSetup,
    Gripper,
    Lighting,
    Physics,
    PickCanSetup,
    Setup,
    Vector,
    lift_while_high,
)

DRAWERS = ("top", "middle", "bottom")
DRAWER_TASKS = tuple(f"{verb}_{drawer}_drawer" for verb in ("open", "close") for drawer in DRAWERS)
ORIENTATIONS = ("upright", "lr_switch", "laid_vertically")

PANDA_GRIPPER = Gripper(
    sides=(("panda_leftfinger",), ("panda_rightfinger",)),
    opening=((0, 1, 0), (0, -1, 0)),
    joint="panda_finger_joint1",
)
# Nothing sleeps: how long a body has rested would carry over from one episode to the next. With ManiSkill's 15 solver
# iterations physics costs half as much again as with 8, and the expert succeeds no more often.
PANDA_PHYSICS = Physics(
    robot_iterations=8,
    pinching_iterations=8,
    position_iterations=8,
    temporal=True,
    persistent_contacts=True,
    sleep_threshold=0,
    friction=0.3,
)
PANDA_LIGHTING = Lighting(
    (0.45, 0.45, 0.45), (((1, 0.6, -1.2), (0.9, 0.9, 0.9)), ((-0.4, -0.8, -1), (0.45, 0.45, 0.45)))
)
JOINTS = (*(f"panda_joint{number}" for number in range(1, 8)), "panda_finger_joint1", "panda_finger_joint2")
REST_GAP = 5e-4
PANDA_REACH = (0.07, 0.25)
# Beside the palm, looking down along the fingers to where they meet.
WRIST_CAMERA = Camera(
    "wrist_camera",
    "panda_hand",
    eye=(0.09, 0.0, 0.045),
    target=(0.02, 0.0, 0.14),
    up=(1.0, 0.0, 0.0),
    fov=1.2,
    near=0.01,
)


def _panda(start_qpos: tuple[float, ...], horizon: int, eye: Vector, target: Vector, fov: float) -> dict[str, Any]:
    """What both embedded tasks share: 5 Hz control, a camera that the hand does not hide its work from, and one on the
    hand.
    """
    return dict(
        agent="vla_razor_panda",
        control_mode="ee_delta",
        tcp_link="panda_hand_tcp",
        gripper=PANDA_GRIPPER,
        start_qpos=dict(zip(JOINTS, start_qpos, strict=True)),
        qpos_noise=0.02,
        base_z=0.0,
        base_yaw=0.0,
        control_hz=5,
        sim_hz=100,
        horizon=horizon,
        clips_actions=True,
        reach=PANDA_REACH,
        physics=PANDA_PHYSICS,
        cameras=(Camera("workspace_camera", "panda_link0", eye=eye, target=target, fov=fov), WRIST_CAMERA),
        lighting=PANDA_LIGHTING,
    )


PANDA_PICK_CAN = PickCanSetup(
    # TCP at (0.45, 0, 0.30), gripper straight down. Seen from in front, across the line of the fingers.
    **_panda(
        (0.0, -0.2198, 0.0, -2.4542, 0.0, 2.2344, 0.7854, 0.04, 0.04),
        20,
        eye=(1.1, 0.25, 0.7),
        target=(0.51, 0.0, 0.11),
        fov=0.46,
    ),
    robot_xy=(0.0, 0.0),
    table=BoxTable(half_size=(0.5, 0.6, 0.02), top=(0.45, 0.0, 0.0)),
    table_top=0.0,
    table_x=(-0.05, 0.95),
    table_y=(-0.6, 0.6),
    # A real can (33 mm) leaves the Panda's 80 mm opening no room for error; 23 mm does. The angular damping stands in
    # for the rolling resistance that PhysX does not know.
    can=CylinderCan(radius=0.023, length=0.11, mass=0.05, friction=1.0, damping=(0.1, 10.0)),
    area_x=(0.44, 0.60),
    area_y=(-0.12, 0.12),
    # SAPIEN's cylinder has its axis along local x.
    orientations={"upright": (0, -pi / 2, 0), "lr_switch": (0, 0, pi / 2), "laid_vertically": (0, 0, 0)},
    start_heights={"upright": 0.055 + REST_GAP, "lr_switch": 0.023 + REST_GAP, "laid_vertically": 0.023 + REST_GAP},
    settling=None,
    grasp_impulse=1e-6,
    grasp_angle=80.0,
    lift=lift_while_high,
    lift_height=0.02,
    significant_height=0.05,
    lifted_steps=3,
    sustained_steps=None,
)

PANDA_DRAWER = DrawerSetup(
    # TCP at (0.42, 0, 0.42), gripper pitched 45 degrees down, fingers closing sideways on the upright handles. Seen
    # from beside the robot, below the hand.
    **_panda(
        (0.0, -0.8, 0.0, -2.8552, 0.0, 2.8405, 0.7854, 0.04, 0.04),
        20,
        eye=(0.0, 0.55, 0.3),
        target=(0.58, 0.0, 0.41),
        fov=0.60,
    ),
    stations={
        f"{row}{column}": (x, y, 0.0)
        for row, y in zip("abc", (-0.05, 0.0, 0.05), strict=True)
        for column, x in enumerate((-0.02, 0.0, 0.02))
    },
    between_stations=True,
    # SimplerEnv's drawers travel 0.5 m, open at 0.15, close at 0.05 and start a closing task at 0.2: all scaled by 0.6.
    cabinet=BoxCabinet(
        size=(0.36, 0.36, 0.6), panel=(0.008, 0.18, 0.06), handle=(0.006, 0.008, 0.045), handle_gap=0.05, travel=0.30
    ),
    cabinet_pose=(0.71, 0.0, 0.0),
    drawer_z=(0.53, 0.40, 0.27),
    handle=(-0.05, 0.0, 0.0),
    slide=-1.0,
    friction=0.05,
    damping=1.0,
    start_open=0.12,
    open_at=0.09,
    closed_at=0.03,
)

SETUPS: dict[tuple[str, str], Setup] = {
    ("pick_can", "panda"): PANDA_PICK_CAN,
    ("drawer", "panda"): PANDA_DRAWER,
    ("pick_can", "google_robot"): GOOGLE_PICK_CAN,
    ("drawer", "google_robot"): GOOGLE_DRAWER,
}
"""By family and robot. A task from outside enters its own (CONTRIBUTING.md)."""
