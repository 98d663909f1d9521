"""The Google robot of SimplerEnv (github.com/simpler-env/ManiSkill2_real2sim): links, materials, gains."""

# ManiSkill's and SAPIEN's annotations are narrower than what they take.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportIncompatibleMethodOverride=false
# pyright: reportIncompatibleVariableOverride=false, reportOperatorIssue=false, reportReturnType=false

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import sapien
from mani_skill.agents.base_agent import BaseAgent
from mani_skill.agents.controllers.base_controller import ControllerConfig
from mani_skill.agents.registration import register_agent
from torch import Tensor

from .assets import asset_root
from .planned_controller import PlannedEndEffectorDeltaConfig, PlannedGripperDeltaConfig
from .scenes import FIXED_BIT, PACKAGED, leave_out_frames, load_robot

DESCRIPTION = (
    "mani_skill2_real2sim/assets/descriptions/googlerobot_description/google_robot_meta_sim_fix_wheel_fix_fingertip"
)
# Joint: stiffness, damping, force limit.
ARM = {
    "joint_torso": (1700.0, 1059.9791902443303, 300.0),
    "joint_shoulder": (1737.0471680861954, 1010.4720585373592, 300.0),
    "joint_bicep": (979.975871856535, 767.2803161582076, 100.0),
    "joint_elbow": (930.0, 680.0, 100.0),
    "joint_forearm": (1212.154500274304, 674.9946964336588, 100.0),
    "joint_wrist": (432.96500923932535, 274.613381336198, 100.0),
    "joint_gripper": (468.0013365498738, 340.532560578637, 100.0),
    "joint_head_pan": (2000.0, 900.0, 100.0),
    "joint_head_tilt": (2000.0, 900.0, 100.0),
}
FINGERS = ("joint_finger_right", "joint_finger_left")
GRIPPER = dict(stiffness=200.0, damping=8.0, force_limit=60.0)
# kg m^2, as a motor behind the joint would add. The fingers alone are so light beside the force of their drives that
# PhysX 5 does not get a grasp's forces to balance: they drift aside, and what they hold slips.
FINGER_ARMATURE = 0.003
# Link: material, and the least radius over which a contact of it resists turning, metres. URDF has no word for either.
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


@register_agent()
class GoogleRobot(BaseAgent):
    """The robot on a fixed base, under planned end-effector delta control."""

    uid = "vla_razor_google_robot"
    assets, colours = "tasks", ""
    load_multiple_collisions = True
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
        stiffness, damping, force_limit = (list(column) for column in zip(*ARM.values(), strict=True))
        arm = PlannedEndEffectorDeltaConfig(
            list(ARM),
            None,
            None,
            stiffness,
            damping,
            force_limit,
            translation=1.0,
            rotation=1.5707963267948966,
            ee_link="link_gripper_tcp",
            urdf_path=str(PACKAGED / "google_robot_chain.urdf"),
            ik_step=0.1,
        )
        gripper = PlannedGripperDeltaConfig(list(FINGERS), **GRIPPER)
        return {"ee_delta_planned": {"arm": arm, "gripper": gripper}}

    def set_action(self, action: Tensor) -> None:
        """Hands the action [N, 7] to the controller; the faces have checked it."""
        self.controller.set_action(action)
        self._drives = [part.drives for part in self.controller.controllers.values()]

    def before_simulation_step(self) -> None:
        """Commands the next waypoints, and cancels the Coriolis and centrifugal forces (nothing here has weight). On a
        GPU these forces stay: PhysX does not tell them there.
        """
        for drives in self._drives:
            drives.command()
        if self._forces_are_told:
            self._set_forces(self._passive_forces(False))  # without gravity

    def _load_articulation(self, initial_pose: sapien.Pose | None = None) -> None:
        builder = load_robot(self, initial_pose)
        leave_out_frames(builder, needed=("link_gripper_tcp", "link_camera"))
        self.robot = builder.build()
        self.robot_link_names = [link.name for link in self.robot.get_links()]
        for name in FIXED:
            self.robot.links_map[name].set_collision_group_bit(2, FIXED_BIT, 1)
        articulation = self.robot._objs[0]
        self._forces_are_told = self.device.type != "cuda"
        for name in FINGERS:
            for joint in self.robot.active_joints_map[name]._objs:
                joint.set_armature(np.float32([FINGER_ARMATURE]))
        self._set_forces, self._passive_forces = articulation.set_qf, articulation.compute_passive_force


@register_agent()
class RecoloredForTabletop1(GoogleRobot):
    """The robot in colours matched to pictures of the table."""

    uid = "vla_razor_google_robot_recolored_tabletop_1"
    assets, colours = "recolored_robots", "_recolor_tabletop_visual_matching_1"


@register_agent()
class RecoloredForTabletop2(GoogleRobot):
    """The robot in colours matched to pictures of the table, once more."""

    uid = "vla_razor_google_robot_recolored_tabletop_2"
    assets, colours = "recolored_robots", "_recolor_tabletop_visual_matching_2"


@register_agent()
class RecoloredForCabinet1(GoogleRobot):
    """The robot in colours matched to pictures of the cabinet."""

    uid = "vla_razor_google_robot_recolored_cabinet_1"
    assets, colours = "recolored_robots", "_recolor_cabinet_visual_matching_1"
