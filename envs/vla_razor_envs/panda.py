"""The Panda of the embedded tasks, and its setups."""

# ManiSkill's and SAPIEN's annotations are narrower than what they take.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportIncompatibleMethodOverride=false
# pyright: reportIncompatibleVariableOverride=false, reportOperatorIssue=false, reportReturnType=false

from typing import Any

import sapien
from mani_skill.agents.controllers.base_controller import ControllerConfig
from mani_skill.agents.registration import register_agent
from mani_skill.agents.robots.panda.panda import Panda

from .controller import EndEffectorDeltaConfig, GripperClosednessConfig
from .scenes import load_robot
from .setups import PANDA_REACH

TOUCHING = ("panda_hand", "panda_leftfinger", "panda_rightfinger")
LIGHT, GREEN = (0.85, 0.86, 0.88), (0.05, 0.75, 0.15)


@register_agent()
class EmbeddedPanda(Panda):
    """A Panda under end-effector delta control, rendered by its collision meshes, that collides with its hand only."""

    uid = "vla_razor_panda"

    @property
    def _controller_configs(self) -> dict[str, dict[str, ControllerConfig]]:
        drive = dict(stiffness=self.arm_stiffness, damping=self.arm_damping, force_limit=self.arm_force_limit)
        grip = dict(
            stiffness=self.gripper_stiffness, damping=self.gripper_damping, force_limit=self.gripper_force_limit
        )
        reach = dict(zip(("translation", "rotation"), PANDA_REACH, strict=True))
        arm = EndEffectorDeltaConfig(
            self.arm_joint_names, None, None, **drive, **reach, ee_link=self.ee_link_name, urdf_path=self.urdf_path
        )
        # Closed is slightly negative so that a thin handle is still gripped with force.
        gripper = GripperClosednessConfig(self.gripper_joint_names, lower=-0.01, upper=0.04, **grip)
        return {"ee_delta": {"arm": arm, "gripper": gripper}}

    def set_action(self, action: Any) -> None:
        """Hands the action [N, 7] to the controllers; the faces have checked it."""
        arm, gripper = self.controller.controllers.values()
        arm.set_action(action[:, :6])
        gripper.set_action(action[:, 6:])

    def before_simulation_step(self) -> None:
        """The controllers have nothing to do between control steps."""

    def _load_articulation(self, initial_pose: sapien.Pose | None = None) -> None:
        builder = load_robot(self, initial_pose)
        for link in builder.link_builders:
            # At 64 x 64 pixels the collision meshes look like the visual ones, and render ten times faster. The fingers
            # are green, to stand out from what they touch.
            colour = GREEN if "finger" in link.name else LIGHT
            material = sapien.render.RenderMaterial(base_color=(*colour, 1), roughness=0.6)
            link.visual_records.clear()
            for shape in link.collision_records:
                if shape.type == "box":
                    link.add_box_visual(shape.pose, shape.scale, material)
                else:
                    link.add_visual_from_file(shape.filename, shape.pose, shape.scale, material)
            # The rest of the arm could only meet the fingers, and PhysX would look for such contacts in every step: it
            # has no shapes, and passes through whatever is there.
            if not link.name.startswith(TOUCHING):
                link.collision_records.clear()
        self.robot = builder.build()
        self.robot_link_names = [link.name for link in self.robot.get_links()]
