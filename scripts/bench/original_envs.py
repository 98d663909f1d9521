"""The original's half of envs.py: steps one environment of SimplerEnv in the interpreter where that is installed.

Argument: a plan as JSON. Each line of standard input asks for a round, and its seconds come back. Rendering is the
policy camera's colours alone.
"""

import json
import sys
import time
from typing import Any

import gymnasium
import mani_skill2_real2sim.envs  # noqa: F401  # pyright: ignore[reportMissingImports]
import numpy as np

CAMERA = "overhead_camera"


def main(plan):
    height, width = plan["image"] or (64, 64)
    across, down = width / 640, height / 512
    intrinsic = np.array([[425.0 * across, 0, width / 2], [0, 425.0 * down, height / 2], [0, 0, 1]])
    camera = {"texture_names": ("Color",), CAMERA: {"width": width, "height": height, "intrinsic": intrinsic}}
    env: Any = gymnasium.make(plan["env_id"], obs_mode="none", camera_cfgs=camera, **plan["make"]).unwrapped
    actions = np.array(plan["actions"], np.float32)

    def run():
        env.reset(seed=0, options={**json.loads(json.dumps(plan["options"])), "reconfigure": True})
        begin = time.perf_counter()
        for action in actions:
            env.step(action)
            if plan["image"]:
                env.update_render()
                env._cameras[CAMERA].take_picture()
                env._cameras[CAMERA].get_images()
        return time.perf_counter() - begin

    run()
    print(json.dumps({"ready": True}), flush=True)
    for _ in sys.stdin:
        print(json.dumps({"seconds": run()}), flush=True)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
