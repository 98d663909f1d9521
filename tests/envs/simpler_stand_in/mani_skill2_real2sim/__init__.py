"""A stand-in for ManiSkill2_real2sim: what SimplerEnv's environments show, without a simulator.

The can and the drawer follow the tool: up with action[2], out with action[0]. Like the original, it prints, changes
the dictionaries that it is given, remembers earlier episodes unless a new scene is asked for, and draws what a reset
leaves open. It breaks on command: the keyword argument `breaks` maps "construction", "reset" or "step" to what then
goes wrong, once if `unless` names a file, which it makes.
"""

import os
import signal
import time
from math import cos, sin
from pathlib import Path
from types import SimpleNamespace

import numpy as np

ASSET_DIR = Path(os.environ["MS2_REAL2SIM_ASSET_DIR"])
JOINTS = ["joint_torso", "joint_finger_right", "joint_finger_left"]
print("mani_skill2_real2sim says hello")


class ForeignError(Exception):
    """Of a class that the parent cannot know."""


class Pose:
    """x, y, z and a turn about z: enough to see whether poses are composed, and inverted, in the right order."""

    def __init__(self, p=(0, 0, 0), yaw=0.0):
        self.p, self.yaw = np.array(p, float), yaw

    @property
    def q(self):
        return np.array([cos(self.yaw / 2), 0, 0, sin(self.yaw / 2)])

    def turned(self, p):
        (x, y, z), c, s = p, cos(self.yaw), sin(self.yaw)
        return np.array([c * x - s * y, s * x + c * y, z])

    def __mul__(self, other):
        return Pose(self.p + self.turned(other.p), self.yaw + other.yaw)

    def inv(self):
        back = Pose(yaw=-self.yaw)
        return Pose(-back.turned(self.p), -self.yaw)


def build(env_id, obs_mode, camera_cfgs, breaks=None, rgb_overlay_path=None, **kwargs):
    """What gymnasium.make gives: the environment in a wrapper."""
    assert obs_mode == "rgbd"
    kind = Can if env_id == "GraspSingleOpenedCokeCanInScene-v0" else Drawer
    env = kind(env_id, camera_cfgs, breaks or {}, rgb_overlay_path, kwargs)
    env.reset(seed=2022, options={"reconfigure": True})
    return SimpleNamespace(
        unwrapped=env, reset=env.reset, step=env.step, action_space=env.action_space, close=lambda: None
    )


class Environment:
    bound = np.array([1, 1, 1, 1.5, 1.5, 1.5, 1])
    action_space = SimpleNamespace(low=-bound, high=bound)
    horizon: int

    def __init__(self, env_id, camera_cfgs, breaks, photo, kwargs):
        self.env_id, self.breaks, self.photo, self.kwargs = env_id, breaks, photo, kwargs
        camera_cfgs.pop("texture_names")  # the original's builder empties what it is given
        self.camera = camera_cfgs.pop("overhead_camera")
        self.scene_root, self.episodes = ASSET_DIR / "hab2_bench_assets", 0
        self.break_if("construction")

    def break_if(self, when):
        marker = self.breaks.get("unless")
        if when not in self.breaks or (marker and Path(marker).exists()):
            return
        if marker:
            Path(marker).touch()
        how = self.breaks[when]
        if how == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if how == "segfault":
            os.kill(os.getpid(), signal.SIGSEGV)
        if how == "hang":
            time.sleep(1000)
        if how == "foreign":
            raise ForeignError("the gears are stripped")
        raise RuntimeError(how)

    def reset(self, seed, options):
        print("reset", self.env_id)
        self.break_if("reset") if "robot_init_options" in options else None
        self.episodes = 0 if options.pop("reconfigure", False) else self.episodes + 1
        self.seed, self.steps = seed, 0
        stand = options.pop("robot_init_options", {"init_xy": [0, 0], "init_rot_quat": [1, 0, 0, 0]})
        w, _, _, z = stand["init_rot_quat"]
        base = Pose([*stand["init_xy"], 0.07905], 2 * np.arctan2(z, w))
        robot = SimpleNamespace(
            pose=base,
            get_qpos=lambda: np.array([0.1, self.closed, -self.closed]),
            get_active_joints=lambda: [SimpleNamespace(name=name) for name in JOINTS],
        )
        self.agent = SimpleNamespace(robot=robot)
        self.tcp, self.closed = SimpleNamespace(pose=base * Pose([0.5, -0.2, 0.9])), 0.0
        self.place(options)
        return self.observed(), {}

    def step(self, action):
        print("step", self.env_id)
        self.break_if("step")
        assert action.dtype == np.float32 and action.shape == (7,)
        self.steps += 1
        base = self.agent.robot.pose
        self.tcp.pose = Pose(self.tcp.pose.p + base.turned(action[:3]), self.tcp.pose.yaw)
        self.closed = float(np.clip(self.closed + action[6] * 1.31, 0, 1.31))
        info = self.follow(action)
        return self.observed(), float(info["success"]), info["success"], self.steps == self.horizon, info

    def place(self, options):
        raise NotImplementedError

    def follow(self, action):
        raise NotImplementedError

    def observed(self):
        image = np.full((self.camera["height"], self.camera["width"], 3), self.seed % 100 + self.steps, np.uint8)
        image[0, 0] = 0 if self.photo is None else len(Path(self.photo).name)
        image[0, 1] = self.episodes
        image[0, 2] = round(self.camera["intrinsic"][0, 0] / 2)
        return {"image": {"overhead_camera": {"rgb": image}}}


class Can(Environment):
    horizon = 80

    def place(self, options):
        placed = options.pop("obj_init_options", {"init_xy": [0, 0], "orientation": "upright"})
        rest = {"upright": 0.939, "laid_vertically": 0.902, "lr_switch": 0.902}[placed["orientation"]]
        self.obj, self.rest = SimpleNamespace(pose=Pose([*placed["init_xy"], rest])), rest

    def follow(self, action):
        held = self.closed > 0.5
        rise = held * action[2]
        self.obj.pose = Pose(self.obj.pose.p + np.array([0, 0, rise]))
        lifted = held and self.obj.pose.p[2] > self.rest + 0.01
        return {
            "is_grasped": held,
            "consecutive_grasp": False,
            "lifted_object": lifted,
            "lifted_object_significantly": lifted,
            "success": np.bool_(lifted),
        }

    def get_language_instruction(self):
        return "pick coke can"


class Drawer(Environment):
    horizon = 113
    joint_names = ("bottom_drawer_joint", "top_drawer_joint", "middle_drawer_joint")

    def place(self, options):
        self.verb, self.drawer = next(
            (verb, drawer)
            for verb in ("Open", "Close")
            for drawer in ("Top", "Middle", "Bottom")
            if self.env_id == f"{verb}{drawer}DrawerCustomInScene-v0"
        )
        self.pulled = 0.2 if self.verb == "Close" else 0.0
        self.art_obj = SimpleNamespace(get_qpos=self.opened)
        self.put()

    def opened(self):
        return np.array([self.pulled * (name == f"{self.drawer.lower()}_drawer_joint") for name in self.joint_names])

    def put(self):
        height = {"Top": 0.668, "Middle": 0.423, "Bottom": 0.178}[self.drawer]
        self.drawer_obj = SimpleNamespace(pose=Pose([-0.295 + self.pulled, 0, 0.017 + height]))

    def follow(self, action):
        self.pulled += action[0]
        self.put()
        return {"success": self.pulled >= 0.15 if self.verb == "Open" else self.pulled <= 0.05}

    def get_language_instruction(self):
        return f"{self.verb} {self.drawer} drawer".lower()
