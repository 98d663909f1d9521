"""What the manipulation tasks share: a batched ManiSkill environment driven by one frozen setup record.

Everything has a leading axis of N environments, so that the same code runs one scene on a CPU and thousands under
`physx_cuda`. Starts are explicit: for each environment that is reset, `options["starts"]` holds its reset options and a
seed, from which whatever they leave open is drawn.
"""

# ManiSkill's and SAPIEN's annotations are narrower than what they take.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportIncompatibleMethodOverride=false
# pyright: reportIncompatibleVariableOverride=false, reportOperatorIssue=false, reportReturnType=false
# pyright: reportOptionalMemberAccess=false

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import sapien
import torch
from mani_skill.envs.sapien_env import BaseEnv
from mani_skill.sensors.camera import CameraConfig
from mani_skill.utils import sapien_utils
from mani_skill.utils.structs import Actor, Link, Pose
from mani_skill.utils.structs.types import DefaultMaterialsConfig, SceneConfig, SimConfig
from torch import Tensor
from transforms3d.euler import euler2quat

from .assets import asset_root
from .geometry import Frame, pose_of, qpos_of, rotate
from .overlay import composite, load_photo
from .records import Camera, Setup
from .scenes import light, polish
from .shaders import use_shader

Start = dict[str, Any]


class ManipulationTask(BaseEnv):
    """One robot, its cameras, one success rule. Subclasses build a scene, place it at reset, and define success."""

    SUPPORTED_ROBOTS: ClassVar[Any] = None
    setup: Setup

    def __init__(self, setup: Setup, image_size: tuple[int, int], task: str | None = None, **kwargs: Any) -> None:
        self.setup, self.image_size, self.first_task = setup, image_size, task
        seen = "rgb+segmentation" if setup.photo else "rgb"
        super().__init__(robot_uids=setup.agent, control_mode=setup.control_mode, obs_mode=seen, **kwargs)

    # ------------------------------------------------------------------ what a subclass says

    def _prepare(self, starts: list[Start]) -> None:
        """Whatever must happen before the robot takes its place."""

    def _place(self, env_idx: Tensor, starts: list[Start]) -> None:
        """Puts the scenes of the given environments at their starts, and forgets their episodes."""
        raise NotImplementedError

    def _station(self, start: Start) -> str:
        """The name of the place at which a start puts the robot."""
        return ""

    def _track(self) -> None:
        """Advances the success rule by one control step."""

    def _facts(self) -> dict[str, Any]:
        """The task's part of `info`: arrays [N, ...] of `xp`, `success` among them, that nothing will write to."""
        raise NotImplementedError

    def instructions(self) -> list[str]:
        """The instruction that each environment gives its policy."""
        raise NotImplementedError

    # ------------------------------------------------------------------ ManiSkill's hooks

    @property
    def _default_sim_config(self) -> SimConfig:
        physics = self.setup.physics
        scene = SceneConfig(
            cpu_workers=0,
            sleep_threshold=physics.sleep_threshold,
            solver_position_iterations=physics.position_iterations,
            enable_pcm=physics.persistent_contacts,
            enable_tgs=physics.temporal,
        )
        return SimConfig(
            sim_freq=self.setup.sim_hz,
            control_freq=self.setup.control_hz,
            scene_config=scene,
            default_materials_config=DefaultMaterialsConfig(physics.friction, physics.friction, 0),
        )

    @property
    def _default_sensor_configs(self) -> list[CameraConfig]:
        return [self._sensor(camera) for camera in self.setup.cameras]

    def _sensor(self, camera: Camera) -> CameraConfig:
        height, width = self.image_size
        pose = sapien_utils.look_at(camera.eye, camera.target, camera.up)
        mount = self.agent.robot.links_map[camera.link]
        optics: dict[str, Any] = dict(fov=camera.fov)
        if camera.aspect:
            half = np.tan(camera.fov / 2)
            focal = [width / 2 / (camera.aspect * half), height / 2 / half]
            optics = dict(intrinsic=np.array([[focal[0], 0, width / 2], [0, focal[1], height / 2], [0, 0, 1]]))
        return CameraConfig(
            camera.name,
            pose,
            width,
            height,
            **optics,
            near=camera.near,
            far=10,
            mount=mount,
            shader_config=use_shader(camera.shader),
        )

    def _load_lighting(self, options: dict[str, Any]) -> None:
        light(self.scene, self.setup.lighting)

    def _load_agent(self, options: dict[str, Any], *args: Any, **kwargs: Any) -> None:
        super()._load_agent(options, sapien.Pose())
        if self.setup.robot_material:
            polish(self.agent.robot, *self.setup.robot_material)

    def _after_reconfigure(self, options: dict[str, Any]) -> None:
        # Success is judged by a few numbers. For those of one environment, numpy is several times faster than torch.
        self.xp: Any = torch if self.gpu_sim_enabled else np
        self._steps = self.xp.asarray(self._elapsed_steps)  # the same memory
        self._iterate(self.setup.physics.robot_iterations)
        links = self.agent.robot.links_map
        self.tcp: Link = links[self.setup.tcp_link]
        sides = self.setup.gripper.sides
        self.fingers: list[Link] = [links[name] for side in sides for name in side]
        opening = [way for side, way in zip(sides, self.setup.gripper.opening, strict=True) for _ in side]
        self._opening = torch.tensor(opening, dtype=torch.float32, device=self.device)[:, None]
        self.gripper_index = [joint.name for joint in self.agent.robot.active_joints].index(self.setup.gripper.joint)

        # Whether the fingers hold something light between them, [N]: some robots then move differently.
        self.agent.pinching = self.xp.asarray(torch.zeros(self.num_envs, dtype=torch.bool, device=self.device))

        self._photos = torch.zeros(self.num_envs, *self.image_size, 3, dtype=torch.uint8, device=self.device)
        things = self.segmentation_id_map
        shown = [key for key, thing in things.items() if isinstance(thing, Link) or thing.px_body_type != "static"]
        self.kept = torch.zeros(256, dtype=torch.bool, device=self.device)
        self.kept[shown] = True

    def _iterate(self, iterations: int) -> None:
        """Sets the solver's iterations per physics step, for the robots and what they touch."""
        for robot in self.agent.robot._objs:
            robot.set_solver_position_iterations(iterations)

    def _initialize_episode(self, env_idx: Tensor, options: dict[str, Any]) -> None:
        starts = options.get("starts") or [
            {"seed": int(seed)} for seed in np.broadcast_to(self._episode_seed, len(env_idx))
        ]
        # An episode must not depend on the ones before it, so what they left in the simulator goes first.
        if not self.gpu_sim_enabled:
            self._iterate(self.setup.physics.robot_iterations)
            self._renew_physics(self.setup.physics.temporal)
        self._prepare(starts)
        self.agent.reset(self._rest_qpos(starts))
        self._place(env_idx, starts)
        if self.setup.photo:
            files = [asset_root() / self.setup.photo.format(station=self._station(start)) for start in starts]
            photos = [load_photo(file, *self.image_size) for file in files]
            self._photos[env_idx] = torch.stack(photos).to(self.device)
        self._base = Frame.at(self.agent.robot.pose.raw_pose, self.xp)  # stands still during an episode

    def _renew_physics(self, temporal: bool) -> None:
        """Moves everything into a new PhysX scene, with the temporal solver or the older one; it takes about a
        millisecond. A scene solves contacts in an order that depends on earlier contacts, so that in the old one an
        episode's bits would depend on the episodes before it.
        """
        self.sim_config.scene_config.enable_tgs = temporal
        self._set_scene_config()  # it is global: another environment of this process may have set its own
        old = self.scene.sub_scenes[0]
        physics = sapien.physx.PhysxCpuSystem()
        physics.timestep = old.timestep
        entities = list(old.entities)
        for entity in entities:
            old.remove_entity(entity)
        new = sapien.Scene([physics, old.render_system])
        for entity in entities:
            new.add_entity(entity)
        self.scene.sub_scenes[0], self.scene.px = new, physics

    def _hold(self, qpos: Tensor) -> None:
        """Puts the robots that are being reset at `qpos` [M, J], and makes them stay: the drive targets of the last
        episode would move them while the scene is prepared.
        """
        robot, joints = self.agent.robot, self.agent.robot.active_joints
        self.agent.reset(qpos)
        robot.set_joint_drive_targets(qpos, joints)
        robot.set_joint_drive_velocity_targets(torch.zeros_like(qpos), joints)

    def stand(self, places: np.ndarray) -> None:
        """Puts the bases of the robots that are being reset at x, y (metres) and yaw (radians), [M, 3]."""
        heights = np.full((len(places), 1), self.setup.base_z)
        position = np.hstack([places[:, :2], heights])
        rotation = np.array([euler2quat(0, 0, yaw + self.setup.base_yaw) for yaw in places[:, 2]])
        pose = torch.tensor(np.hstack([position, rotation]), dtype=torch.float32, device=self.device)
        self.agent.robot.set_pose(Pose.create(pose))

    def _simulate(self, seconds: float) -> None:
        """Lets time pass without control, on a CPU."""
        for _ in range(int(self.setup.sim_hz * seconds)):
            self.scene.step()

    def _rest_qpos(self, starts: list[Start]) -> Tensor:
        rest = np.float32([self.setup.start_qpos[joint.name] for joint in self.agent.robot.active_joints])
        arm = len(rest) - 2
        noise = np.zeros((len(starts), len(rest)), np.float32)
        for row, start in zip(noise, starts, strict=True):
            row[:arm] = np.random.default_rng([start["seed"], 1]).normal(0, self.setup.qpos_noise, arm)
        return torch.as_tensor(rest + noise, device=self.device)

    def step(self, action: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """One control step for every environment; action [N, 7] in environment units. Success is judged at every step,
        also after it has been reached. Whatever is returned is an array of `xp`.
        """
        self._move(action)
        self._look()  # the renderer works while success is judged
        info = self._judge()
        success = info["success"]
        return self._seen(info), self.xp.asarray(success, dtype=self.xp.float32), success, self.truncated, info

    @property
    def truncated(self) -> Any:
        """Which environments [N] have come to their horizon."""
        return self._steps >= self.setup.horizon

    def advance(self, action: Any) -> dict[str, Any]:
        """A control step without rendering; returns `info`."""
        self._move(action)
        return self._judge()

    def _move(self, action: Any) -> None:
        """The physics of a control step."""
        self._steps += 1
        self.agent.set_action(action)
        if self.gpu_sim_enabled:
            self.scene.px.gpu_apply_articulation_target_position()
            self.scene.px.gpu_apply_articulation_target_velocity()
        command, step = self.agent.before_simulation_step, self.scene.step  # looked up once for many physics steps
        for _ in range(self._sim_steps_per_control):
            command()
            step()
        if self.gpu_sim_enabled:
            self.scene._gpu_fetch_all()

    def _judge(self) -> dict[str, Any]:
        self._track()
        return self.get_info()

    def get_info(self) -> dict[str, Any]:
        """`info` of interfaces.md over N environments, arrays of `xp`; poses are x, y, z, qw, qx, qy, qz."""
        gripper = qpos_of(self.agent.robot)[:, self.gripper_index]
        return {"tcp_pose": self.in_base(pose_of(self.tcp)), "gripper_position": gripper, **self._facts()}

    def get_obs(self, info: dict[str, Any] | None = None, unflattened: bool = False) -> dict[str, Any]:
        """`image` uint8 [N, H, W, 3], what the first camera sees, and what the others do under their names;
        `proprioception` float32 [N, 8]: the TCP pose in the base frame and the gripper joint's position.
        """
        self._look()
        return self._seen(info or self.get_info())

    def _look(self) -> None:
        """Begins to render what the cameras see."""
        self.scene.update_render(update_sensors=True, update_human_render_cameras=False)
        self.capture_sensor_data()

    def _seen(self, info: dict[str, Any]) -> dict[str, Any]:
        """The observation, once it is rendered."""
        first, *further = self.setup.cameras
        seen = {"image": self._picture(first, photo=bool(self.setup.photo))}
        seen |= {camera.name: self._picture(camera) for camera in further}
        state = self.xp.concatenate([info["tcp_pose"], info["gripper_position"][:, None]], 1)
        return {name: self.xp.asarray(picture) for name, picture in seen.items()} | {"proprioception": state}

    def _picture(self, camera: Camera, *, photo: bool = False) -> Any:
        """What a camera has rendered, uint8 [N, H, W, 3], with the photograph behind it."""
        sensor = self.scene.sensors[camera.name]
        if self.xp is np and camera.shader == "minimal" and not photo:
            # As below, without ManiSkill's conversions on the way.
            return sensor.camera._render_cameras[0].get_picture("Color")[None, ..., :3]
        seen = sensor.get_obs(depth=False, position=False, segmentation=photo, apply_texture_transforms=not photo)
        if self.backend.render_device.is_cuda():
            torch.cuda.synchronize()
        if photo:
            things = seen["PositionSegmentation"][..., 3]
            return composite(seen["Color"], things, self.kept, self._photos)
        return seen["rgb"]

    # ------------------------------------------------------------------ geometry and contact

    def in_base(self, pose: Any) -> Any:
        """A world pose [N, 7] in the frame of the robot's base."""
        return self._base.localize(pose)

    def pushes(self, thing: Actor, others: Sequence[Actor | Link]) -> tuple[Any, Any]:
        """The impulses [K, N, 3], in N s, that the thing gave to each of the K others in the last physics step, and
        their magnitudes [K, N].
        """
        if self.gpu_sim_enabled:
            total = torch.stack([self.scene.get_pairwise_contact_impulses(other, thing) for other in others])
            return total, total.norm(dim=2)
        # One pass over the contacts; ManiSkill's method makes one for each pair.
        mine, rows = thing._bodies[0], {other._bodies[0]: row for row, other in enumerate(others)}
        total = np.zeros((len(others), 1, 3), np.float32)
        for contact in self.scene.px.get_contacts():
            first, second = contact.bodies
            if mine is first or mine is second:
                other, sign = (first, 1) if mine is second else (second, -1)
                if (row := rows.get(other)) is not None:
                    for point in contact.points:
                        total[row, 0] += sign * point.impulse
        return total, np.sqrt((total * total).sum(2))

    def grasped(self, pushes: Any, strengths: Any, impulse: float, angle: float) -> Any:
        """bool [N]: whether the thing pushes some link of each finger with at least `impulse` N s, within `angle`
        degrees of the direction in which the finger opens. `pushes` [K, N, 3] are its impulses on the K links of
        `fingers`, `strengths` [K, N] their magnitudes.
        """
        firm = strengths >= impulse
        if not firm.any():  # most steps
            return firm[0]
        firm, pushes, strengths = (torch.as_tensor(each) for each in (firm, pushes, strengths))
        turns = torch.stack([torch.as_tensor(pose_of(link))[:, 3:] for link in self.fingers])
        opening = rotate(turns.flatten(0, 1), self._opening.expand_as(pushes).flatten(0, 1)).view_as(pushes)
        along = (pushes * opening).sum(2)
        return self.xp.asarray(self._of_both(firm & (along >= strengths * np.cos(np.deg2rad(angle)))))

    def _of_both(self, links: Any) -> Any:
        """bool [N]: whether it is true of some link of each finger; `links` is [K, N], K / 2 links per finger."""
        return links.reshape(2, -1, self.num_envs).any(1).all(0)
