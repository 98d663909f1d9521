"""The Google robot of SimplerEnv (github.com/simpler-env/ManiSkill2_real2sim): links, materials, gains."""

# ManiSkill's and SAPIEN's annotations are narrower than what they take.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportIncompatibleMethodOverride=false
# pyright: reportIncompatibleVariableOverride=false, reportOperatorIssue=false, reportReturnType=false, reportCallIssue=false

from typing import Any, ClassVar

import numpy as np
import sapien
import torch
from mani_skill.agents.base_agent import BaseAgent
from mani_skill.agents.controllers.base_controller import ControllerConfig
from mani_skill.agents.registration import register_agent
from torch import Tensor

from .assets import asset_root
from .drives import JointDrives, TensorDrives
from .google_setups import REACH
from .physx4 import ArmDrives
from .planned_controller import PlannedEndEffectorDeltaConfig, PlannedGripperDeltaConfig
from .scenes import FIXED_BIT, PACKAGED, leave_out_frames, load_robot

DESCRIPTION = (
    "mani_skill2_real2sim/assets/descriptions/googlerobot_description/google_robot_meta_sim_fix_wheel_fix_fingertip"
)
# Joint: stiffness, damping, force limit and response. The response is the speed in rad/s that an impulse of 1 N m s
# gives in the start position, from the original's mass matrix.
ARM = {
    "joint_torso": (1700.0, 1059.9791902443303, 300.0, 16.94),
    "joint_shoulder": (1737.0471680861954, 1010.4720585373592, 300.0, 5.761),
    "joint_bicep": (979.975871856535, 767.2803161582076, 100.0, 31.70),
    "joint_elbow": (930.0, 680.0, 100.0, 16.24),
    "joint_forearm": (1212.154500274304, 674.9946964336588, 100.0, 71.82),
    "joint_wrist": (432.96500923932535, 274.613381336198, 100.0, 106.5),
    "joint_gripper": (468.0013365498738, 340.532560578637, 100.0, 1174.0),
    "joint_head_pan": (2000.0, 900.0, 100.0, 50.03),
    "joint_head_tilt": (2000.0, 900.0, 100.0, 160.8),
}
FINGERS = ("joint_finger_right", "joint_finger_left")
GRIPPER = (200.0, 8.0, 60.0, 6141.0)
# For the right and the left finger while they hold something light between them. PINCHING is the factor on the share
# (physx4.py) with which each drive of the original pushes. READ is the speed that the original reads of a finger that
# stands still, in rad/s for each N m that its drive would push with: its solver goes over the drives and then over the
# contacts, one after another, and what its last pass leaves is read. Both were measured in the original just after the
# fingers had closed. The factors were 1.02 to 1.08 and 0.93 to 0.98, by the contact forces of three recorded episodes;
# the speeds were 0.021 to 0.024 and 0.038 to 0.043, in nine. They drift while a can is held, the left finger's down to
# 0.78 and 0.030.
PINCHING, READ = np.array([1.07, 0.96]), np.array([0.0222, 0.0405])
DRIVES = {**ARM, **dict.fromkeys(FINGERS, GRIPPER)}
TIMESTEP = 1 / 513  # seconds
# kg m^2 about the principal axes, for links that have none in the URDF: SAPIEN 3 would make them at least 1e-6.
INERTIAS = {
    "link_gripper_tcp": (1e-8, 1e-8, 1e-8),
    "link_camera": (1e-8, 1e-8, 1e-8),
    "link_finger_nail_right": (3.12e-11, 5.67e-10, 5.41e-10),
    "link_finger_nail_left": (3.27e-11, 6.21e-10, 5.94e-10),
}
# wxyz: the principal axes of links for which SAPIEN 2.2.2 derives others from the URDF's inertia than SAPIEN 3 does.
AXES = {
    "link_torso": (0.4905055, 0.4814976, -0.4850300, 0.5406573),
    "link_shoulder": (0.4749509, 0.4266209, 0.4920361, 0.5918757),
    "link_bicep": (-0.3339238, -0.2238279, 0.3706952, 0.8372461),
    "link_forearm": (-0.0386979, 0.0014910, 0.0387052, 0.9985000),
    "link_finger_right": (0.0431133, -0.2031138, 0.9568860, 0.2031140),
    "link_finger_left": (0.0431133, -0.2031138, 0.9568860, 0.2031140),
}
# Link: its material, and the least radius, in metres, over which its contacts resist turning. URDF has no word for
# either.
MATERIALS = {
    name: dict(static_friction=static, dynamic_friction=dynamic, restitution=0.0)
    for name, static, dynamic in (
        ("base", 0.1, 0.0),
        ("wheel", 1.0, 0.0),
        ("finger", 2.0, 2.0),
        ("nail", 0.1, 0.1),
    )
}
SURFACES = {
    "link_base": ("base", 0.1),
    "link_wheel_left": ("wheel", 0.1),
    "link_wheel_right": ("wheel", 0.1),
    "link_finger_left": ("finger", 0.1),
    "link_finger_right": ("finger", 0.1),
    "link_finger_tip_left": ("finger", 0.1),
    "link_finger_tip_right": ("finger", 0.1),
    "link_finger_nail_left": ("nail", 0.01),
    "link_finger_nail_right": ("nail", 0.01),
}
FIXED = ("link_base", "link_wheel_left", "link_wheel_right", "link_rear_wheel_left", "link_rear_wheel_right")
STIFFNESS, DAMPING, FORCE_LIMIT, RESPONSE = np.array(list(DRIVES.values())).T
ORIGINAL = ArmDrives(STIFFNESS, DAMPING, TIMESTEP)
FACTOR = np.concatenate([np.ones(len(ARM)), PINCHING])


@register_agent()
class GoogleRobot(BaseAgent):
    """The robot on a fixed base, under planned end-effector delta control."""

    uid = "vla_razor_google_robot"
    assets, colours = "tasks", ""
    load_multiple_collisions = True
    pinching: Any  # bool [N], whether the fingers hold something light between them: the task says so
    urdf_config: ClassVar[Any] = dict(
        _materials=MATERIALS,
        link={
            link: dict(material=material, patch_radius=radius, min_patch_radius=radius)
            for link, (material, radius) in SURFACES.items()
        },
    )

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.urdf_path = f"{asset_root(self.assets) / DESCRIPTION}{self.colours}.urdf"
        super().__init__(*args, **kwargs)

    @property
    def _controller_configs(self) -> dict[str, dict[str, ControllerConfig]]:
        share, arm = ORIGINAL.share(RESPONSE), len(ARM)
        gains = share * STIFFNESS, share * DAMPING, FORCE_LIMIT
        return {
            "ee_delta_planned": {
                "arm": PlannedEndEffectorDeltaConfig(
                    list(ARM),
                    None,
                    None,
                    *(column[:arm].tolist() for column in gains),
                    translation=REACH[0],
                    rotation=REACH[1],
                    ee_link="link_gripper_tcp",
                    urdf_path=str(PACKAGED / "google_robot_chain.urdf"),
                    ik_step=0.1,
                ),
                "gripper": PlannedGripperDeltaConfig(
                    list(FINGERS),
                    None,
                    None,
                    *(column[arm:].tolist() for column in gains),
                    read=READ.tolist(),
                    drive=GRIPPER[:2],
                ),
            }
        }

    def set_action(self, action: Tensor) -> None:
        """Hands the action [N, 7] to the controllers; the faces have checked it."""
        xp, (arm, gripper) = self.xp, self.controller.controllers.values()
        action = xp.asarray(action)
        arm.set_action(action[:, :6])
        gripper.set_action(action[:, 6:], self.pinching)
        wanted = xp.concatenate([arm.waypoints, gripper.waypoints], 2)
        velocities = xp.zeros_like(wanted)
        velocities[..., -len(FINGERS) :] = gripper.speeds  # the arm's are left to the positions
        if xp is np:  # along the waypoints as in the original, pushing as its drives do
            robot, order, model = self.robot._objs[0], self._order, self._model

            def inertia_at(position: np.ndarray) -> np.ndarray:
                qpos = np.empty(len(position), np.float32)
                qpos[order] = position
                return model.compute_generalized_mass_matrix(qpos)[self._among]

            factor = FACTOR if self.pinching[0] else np.ones_like(FACTOR)
            now = robot.qpos[order], robot.qvel[order]
            targets, share = ORIGINAL.targets(*now, wanted[:, 0], velocities[:, 0], inertia_at, factor)
            self._commands = self._drives.follow(targets, share * STIFFNESS, share * DAMPING)
        else:  # no velocities are commanded there: a target further on makes the drive push as much
            self._commands = self._drives.follow(wanted + velocities * velocities.new_tensor(DAMPING / STIFFNESS))

    def before_simulation_step(self) -> None:
        """Commands the next targets."""
        next(self._commands)

    def _load_articulation(self, initial_pose: sapien.Pose | None = None) -> None:
        builder = load_robot(self, initial_pose)
        leave_out_frames(builder, needed=("link_gripper_tcp", "link_camera"))
        self.robot = builder.build()
        self.robot_link_names = [link.name for link in self.robot.get_links()]
        for name in FIXED:
            self.robot.links_map[name].set_collision_group_bit(2, FIXED_BIT, 1)
        for name, inertia in INERTIAS.items():
            for link in self.robot.links_map[name]._objs:
                link.set_inertia(np.float32(inertia))
        for name, axes in AXES.items():
            for link in self.robot.links_map[name]._objs:
                link.set_cmass_local_pose(sapien.Pose(link.cmass_local_pose.p, axes))
        names = [joint.name for joint in self.robot.active_joints]
        self._order = [names.index(name) for name in DRIVES]
        self.xp: Any = torch if self.device.type == "cuda" else np
        if self.xp is np:
            self._model = self.robot._objs[0].create_pinocchio_model()
            self._among = np.ix_(self._order, self._order)
            self._drives = JointDrives(
                self.robot, [self.robot.active_joints[index] for index in self._order], self._order
            )
        else:
            self._drives = TensorDrives(self.robot, torch.tensor(self._order, device=self.device))


@register_agent()
class RecoloredForTabletop1(GoogleRobot):
    """The robot in colours matched to pictures of the table."""

    uid = "vla_razor_google_robot_recolored_tabletop_1"
    assets, colours = "recolored_robots", "_recolor_tabletop_visual_matching_1"


@register_agent()
class RecoloredForTabletop2(GoogleRobot):
    """The robot in other colours matched to pictures of the table."""

    uid = "vla_razor_google_robot_recolored_tabletop_2"
    assets, colours = "recolored_robots", "_recolor_tabletop_visual_matching_2"


@register_agent()
class RecoloredForCabinet1(GoogleRobot):
    """The robot in colours matched to pictures of the cabinet."""

    uid = "vla_razor_google_robot_recolored_cabinet_1"
    assets, colours = "recolored_robots", "_recolor_cabinet_visual_matching_1"
