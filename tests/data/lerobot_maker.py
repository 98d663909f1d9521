"""Run by an interpreter that has lerobot: writes a dataset with LeRobot's own tools, from an .npz of episodes."""

import sys

import numpy as np
from lerobot.datasets.lerobot_dataset import LeRobotDataset  # pyright: ignore[reportMissingImports]

given = np.load(sys.argv[1])
size = given["images_0"].shape[1:]
features = {
    "action": {"dtype": "float32", "shape": (7,), "names": None},
    "observation.state": {"dtype": "float32", "shape": (8,), "names": None},
    "observation.images.front": {"dtype": "video", "shape": size, "names": ["height", "width", "channels"]},
    "observation.images.wrist": {"dtype": "video", "shape": size, "names": ["height", "width", "channels"]},
}
dataset = LeRobotDataset.create("own/made", fps=5, features=features, root=sys.argv[2], use_videos=True)
for number, task in enumerate(given["tasks"].tolist()):
    images, actions, states = (given[f"{name}_{number}"] for name in ("images", "actions", "states"))
    for image, action, state in zip(images, actions, states, strict=True):
        cameras = {"observation.images.front": image, "observation.images.wrist": 255 - image}
        dataset.add_frame({**cameras, "action": action, "observation.state": state, "task": task})
    dataset.save_episode()
dataset.finalize()
