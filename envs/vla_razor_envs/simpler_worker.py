"""The worker's half of the bridge: SimplerEnv's environments with the interface that the parent expects of a slot.

simpler_env.py starts this file as a script in the user's interpreter, which has SimplerEnv, its SAPIEN and its numpy.
Besides those and Python's library (3.10 or later) it needs `serving.py`, which lies beside it. It sends and receives
only plain Python values, since one numpy may not read what another has pickled.

Arguments: the file descriptor of the connection to the parent; the slots and the first episode's plan, as JSON.
"""

from __future__ import annotations

import copy
import json
import sys
from importlib import metadata
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

FLAGS = ("success", "is_grasped", "consecutive_grasp", "lifted_object", "lifted_object_significantly")
DRAWERS = ("top", "middle", "bottom")
CAMERA, FINGER = "overhead_camera", "joint_finger_right"
HANDLE = (0.3425, 0.0, 0.02)  # its bar's centre in the drawer's frame


def main(descriptor: str, arguments: str) -> None:
    connection = Connection(int(descriptor))
    slots, plan = json.loads(arguments)
    try:
        # This script's folder leaves the path again, so that no file in it hides another module.
        folder = Path(__file__).resolve().parent
        sys.path.insert(0, str(folder))
        from serving import serve  # pyright: ignore[reportMissingImports]

        sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != folder]
        check_numpy()
        import simpler_env  # noqa: F401  # pyright: ignore[reportMissingImports]
    except Exception as error:
        text = f"{sys.executable} cannot run SimplerEnv ({type(error).__name__}: {error}); expected the interpreter of "
        text += "an environment where SimplerEnv and ManiSkill2_real2sim are installed"
        connection.send((ValueError(text), 0.0))
        return

    def build() -> tuple[dict[int, Original], dict[str, Any]]:
        envs = {slot: Original(plan) for slot in slots}
        return envs, envs[slots[0]].described()

    serve(connection, build, foreign=True)


def check_numpy() -> None:
    """Raises ImportError for a numpy with which SimplerEnv would start, and crash at the first step."""
    import numpy

    try:
        sapien = metadata.version("sapien")
    except metadata.PackageNotFoundError:
        return
    if sapien.startswith("2.") and int(numpy.__version__.split(".")[0]) >= 2:
        raise ImportError(f"the inverse kinematics of sapien {sapien} crashes with numpy {numpy.__version__}: use 1.x")


class Original:
    """An environment of SimplerEnv, described by a plan: its id, keyword arguments, overlay photo, image size and reset
    options. It is built anew where anything but the reset options changes.
    """

    def __init__(self, plan: dict[str, Any]):
        self.env: Any = None
        self._build(plan)

    def _build(self, plan: dict[str, Any]) -> None:
        from simpler_env.utils.env.env_builder import (  # pyright: ignore[reportMissingImports]
            build_maniskill2_env,
        )

        self.built = {}
        if self.env is not None:
            self.env.close()
        # Not simpler_env.make: it draws robot and photo from the seed, and keeps the arguments of earlier calls. The
        # copy is for what the builders themselves change.
        arguments = copy.deepcopy(plan["make"])
        if plan["photo"]:
            from mani_skill2_real2sim import ASSET_DIR  # pyright: ignore[reportMissingImports]

            arguments["rgb_overlay_path"] = str(Path(ASSET_DIR) / plan["photo"])
            arguments["rgb_overlay_cameras"] = [CAMERA]
        self.env = build_maniskill2_env(
            plan["env_id"], obs_mode="rgbd", camera_cfgs=_cameras(*plan["image_size"]), **arguments
        )
        # Without the scene's file SAPIEN would go on, and everything would fall for ever.
        name = plan["make"]["scene_name"]
        stage = Path(self.env.unwrapped.scene_root, "stages", f"{name}.glb")
        if "dummy" not in name and not stage.is_file():
            lacks = f"SimplerEnv's assets lack the scene {stage}; expected all of ManiSkill2_real2sim's"
            raise FileNotFoundError(lacks)
        self.built = {key: value for key, value in plan.items() if key != "options"}

    def reset(self, seed: int, options: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Begins the episode of the plan `options`; `seed` is for what the original itself may draw."""
        plan = options
        if {**plan, **self.built} != plan or not self.built:
            self._build(plan)
        # A new scene at each reset: nothing of earlier episodes is left in it.
        asked = copy.deepcopy({**plan["options"], "reconfigure": True})
        observation, _ = self.env.reset(seed=seed % 2**32, options=asked)
        facts = self._facts(dict.fromkeys(FLAGS, False))
        return self._observed(observation, facts), facts

    def step(self, action: Any) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        facts = self._facts(info)
        return self._observed(observation, facts), float(reward), bool(terminated), bool(truncated), facts

    def described(self) -> dict[str, Any]:
        """The environment's description for the parent."""
        box = self.env.action_space
        return {"low": box.low.tolist(), "high": box.high.tolist()}

    def _observed(self, observation: dict[str, Any], facts: dict[str, Any]) -> dict[str, Any]:
        image = observation["image"][CAMERA]["rgb"]
        return {"image": image, "proprioception": [*facts["tcp_pose"], facts["gripper_position"]]}

    def _facts(self, info: dict[str, Any]) -> dict[str, Any]:
        env = self.env.unwrapped
        robot = env.agent.robot
        to_base = robot.pose.inv()
        is_can = hasattr(env, "obj")
        thing = env.obj.pose if is_can else env.drawer_obj.pose * type(to_base)(HANDLE)
        joints = [joint.name for joint in robot.get_active_joints()]
        facts = {
            "instruction": str(env.get_language_instruction()),
            "tcp_pose": _plain(to_base * env.tcp.pose),
            "gripper_position": float(robot.get_qpos()[joints.index(FINGER)]),
            "object_pose": _plain(thing),
            "target_pose": _plain(to_base * thing),
        }
        if is_can:
            return {**facts, **{name: bool(info[name]) for name in FLAGS}}
        qpos = dict(zip(env.joint_names, env.art_obj.get_qpos(), strict=True))
        opened = [float(qpos[f"{drawer}_drawer_joint"]) for drawer in DRAWERS]
        return {**facts, "success": bool(info["success"]), "drawer_qpos": opened}


def _plain(pose: Any) -> list[float]:
    """x, y, z, qw, qx, qy, qz of a SAPIEN pose."""
    return [float(value) for value in (*pose.p, *pose.q)]


def _cameras(height: int, width: int) -> dict[str, Any]:
    """Settings with which the policy's camera shows the same view at any size, stretched. Positions are not rendered:
    nobody reads them.
    """
    import numpy as np

    across, down = width / 640, height / 512
    intrinsic = np.array([[425.0 * across, 0, width / 2], [0, 425.0 * down, height / 2], [0, 0, 1]])
    return {
        "texture_names": ("Color", "Segmentation"),
        CAMERA: {"width": width, "height": height, "intrinsic": intrinsic},
    }


if __name__ == "__main__":
    main(*sys.argv[1:])
