"""Run by an interpreter that has lerobot: prints, as JSON, what it reads of the dataset in a folder, frame by frame."""

import json
import sys

from lerobot.datasets.lerobot_dataset import LeRobotDataset  # pyright: ignore[reportMissingImports]

dataset = LeRobotDataset("own/dataset", root=sys.argv[1])
frames = []
for index in range(len(dataset)):
    frame = dataset[index]
    cameras = [key for key in frame if key.startswith("observation.images.")]
    frames.append(
        {
            "action": frame["action"].tolist(),
            "state": frame["observation.state"].tolist(),
            "task": frame["task"],
            "timestamp": float(frame["timestamp"]),
            "episode": int(frame["episode_index"]),
            "image": (frame[cameras[0]] * 255).round().to(int).permute(1, 2, 0).tolist(),
        }
    )
stats = {key: value.tolist() for key, value in dataset.meta.stats["action"].items()}
print(json.dumps({"fps": dataset.fps, "episodes": dataset.num_episodes, "stats": stats, "frames": frames}))
