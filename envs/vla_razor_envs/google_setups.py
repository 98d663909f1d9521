"""SimplerEnv's Google-robot tasks: pick-can and drawers of the visual-matching protocol.

The figures are the original's (github.com/simpler-env/SimplerEnv, commit 4ab7178).
"""

from math import atan, cos, pi, radians, sin

from .records import (
    Camera,
    DrawerSetup,
    Gripper,
    Lighting,
    MeshCan,
    Physics,
    PickCanSetup,
    Settling,
    Stage,
    UrdfCabinet,
    lift_until_released,
)

REACH = (1.0, pi / 2)
START_QPOS = {
    "joint_torso": -0.2639457174606611,
    "joint_shoulder": 0.0831913360274175,
    "joint_bicep": 0.5017611504652179,
    "joint_elbow": 1.156859026208673,
    "joint_forearm": 0.028583671314766423,
    "joint_wrist": 1.592598203487462,
    "joint_gripper": -1.080652960128774,
    "joint_finger_right": 0.0,
    "joint_finger_left": 0.0,
    "joint_head_pan": -0.00285961,
    "joint_head_tilt": 0.7851361,
}
GRIPPER = Gripper(
    sides=(("link_finger_tip_right", "link_finger_right"), ("link_finger_tip_left", "link_finger_left")),
    opening=((0, 1, 0), (0, 1, 0)),
    joint="joint_finger_right",
)
# link_camera follows OpenCV: z is forward, y is down. 425 pixels of focal length for 640 x 512.
CAMERA = Camera(
    "overhead_camera",
    "link_camera",
    eye=(0, 0, 0),
    target=(0, 0, 1),
    up=(0, -1, 0),
    fov=2 * atan(256 / 425),
    aspect=640 / 512,
    near=0.1,
    shader="minimal",
)


# The original solves with PhysX 4's temporal solver in 25 iterations. PhysX 5's moves driven joints otherwise: fingers
# that hold a can drift aside until it slips. Its older solver, with more iterations, moves free joints by exact
# implicit steps, which physx4.py makes the original's, and holds as well.
PHYSICS = Physics(
    robot_iterations=60,
    pinching_iterations=120,
    position_iterations=25,
    temporal=False,
    persistent_contacts=False,
    sleep_threshold=0.005,
    friction=1.0,
)


def _google(horizon: int, lighting: Lighting, photo: str) -> dict:
    """What both tasks share: 3 Hz control of 171 physics steps each."""
    return dict(
        agent="vla_razor_google_robot",
        control_mode="ee_delta_planned",
        tcp_link="link_gripper_tcp",
        gripper=GRIPPER,
        start_qpos=START_QPOS,
        qpos_noise=0.0,
        base_z=0.07905,
        base_yaw=pi,
        control_hz=3,
        sim_hz=513,
        horizon=horizon,
        clips_actions=False,
        reach=REACH,
        physics=PHYSICS,
        cameras=(CAMERA,),
        lighting=lighting,
        photo=f"data/real_inpainting/{photo}.png",
        files="tasks",
    )


GOOGLE_PICK_CAN = PickCanSetup(
    **_google(
        80,
        Lighting(
            (0.3, 0.3, 0.3),
            (((0, 0, -1), (2.2, 2.2, 2.2)), ((-1, -0.5, -1), (0.7, 0.7, 0.7)), ((1, 1, -1), (0.7, 0.7, 0.7))),
        ),
        "google_coke_can_real_eval_1",
    ),
    robot_material=(0.9, 0.3),
    robot_xy=(0.35, 0.20),
    table=Stage(
        file="data/hab2_bench_assets/stages/google_pick_coke_can_1_v4.glb",
        pose=(1.6616, 3.0337, 0.0, 1.0, 0.0, 0.0, 0.0),
        assets="can_stage",
        stand_in="table.obj",
    ),
    table_top=0.87,
    table_x=(-0.61, 0.02),  # the stand-in's, here and below: the stages' files could not be had
    table_y=(-1.2, 1.2),
    can=MeshCan("data/custom/models/opened_coke_can", density=50, friction=0.5, damping=(0.1, 0.1)),
    area_x=(-0.35, -0.12),
    area_y=(-0.02, 0.42),
    orientations={"upright": (pi / 2, 0, 0), "lr_switch": (0, 0, pi), "laid_vertically": (0, 0, pi / 2)},
    start_heights={"upright": 0.5, "lr_switch": 0.5, "laid_vertically": 0.5},
    settling=Settling(
        temporal=True,
        robot_xy=(-10.0, 0.0),
        upright_seconds=0.5,
        free_seconds=0.5,
        extra_seconds=1.5,
        still=(1e-3, 1e-2),
        rest={
            "upright": (0.0, 0.0, 0.069038, 0.7071065, 0.7071072, 0.0, 0.0),
            "lr_switch": (0.000894, 0.000159, 0.032094, 0.0, 0.0139427, 0.0024879, 0.9998997),
            "laid_vertically": (0.000159, -0.000894, 0.032094, 0.7070255, 0.0116173, -0.0080991, 0.7070463),
        },
    ),
    grasp_impulse=1e-6,
    grasp_angle=80.0,
    lift=lift_until_released,
    lift_height=0.01,
    significant_height=0.02,
    lifted_steps=1,
    sustained_steps=5,
)

GOOGLE_DRAWER = DrawerSetup(
    **_google(
        113,
        Lighting((1, 1, 1), (((-cos(radians(75)), 0, -sin(radians(75))), (1, 1, 1)),)),
        "open_drawer_{station}",
    ),
    stations={
        "a0": (0.644, -0.179, -0.03),
        "a1": (0.765, -0.182, -0.02),
        "a2": (0.889, -0.203, -0.06),
        "b0": (0.652, 0.009, 0.0),
        "b1": (0.752, 0.009, 0.0),
        "b2": (0.851, 0.035, 0.0),
        "c0": (0.665, 0.224, 0.0),
        "c1": (0.765, 0.222, -0.025),
        "c2": (0.865, 0.222, -0.025),
    },
    between_stations=False,
    cabinet=UrdfCabinet("data/custom/mk_station_recolor.urdf"),
    cabinet_pose=(-0.295, 0.0, 0.017),
    drawer_z=(0.668, 0.423, 0.178),
    handle=(0.3425, 0.0, 0.02),
    slide=1.0,
    friction=0.05,
    damping=1.0,
    start_open=0.2,
    open_at=0.15,
    closed_at=0.05,
)
