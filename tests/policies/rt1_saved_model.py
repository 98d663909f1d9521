"""SavedModels with the signature of RT-1's checkpoints, and with others. Run by an interpreter that has TensorFlow.

The model in them is a stand-in whose every output can be predicted: it moves by the mean of the image's middle row, of
its top and of its left edge, turns by the first numbers of the embedding, closes by its count of steps / 100, and
stops at the third.
"""

import sys
from collections import namedtuple
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf  # pyright: ignore[reportMissingImports]

TimeStep = namedtuple("TimeStep", ("step_type", "reward", "discount", "observation"))
PolicyStep = namedtuple("PolicyStep", ("action", "state", "info"))

# What RT-1 observes in the data set it was trained on; all but the first two go unused.
OBSERVATION = {
    "image": ((256, 320, 3), tf.uint8),
    "natural_language_embedding": ((512,), tf.float32),
    "natural_language_instruction": ((), tf.string),
    "base_pose_tool_reached": ((7,), tf.float32),
    "gripper_closed": ((1,), tf.float32),
    "orientation_box": ((2, 3), tf.float32),
    "vector_to_go": ((3,), tf.float32),
    "workspace_bounds": ((3, 3), tf.float32),
}
STATE = {
    "action_tokens": ((15, 11, 1, 1), tf.int32),
    "image": ((15, 2, 2, 3), tf.uint8),
    "step_num": ((1, 1, 1, 1), tf.int32),
    "t": ((1, 1, 1, 1), tf.int32),
}


class StandIn(tf.Module):
    """`left_out`: an action that is missing; `batch`: of the signature, None for any."""

    def __init__(self, batch=None, observation=OBSERVATION, left_out=None, flat=False):
        super().__init__()
        self.batch, self.left_out = batch, left_out
        specs = {name: tf.TensorSpec([batch, *shape], kind, name) for name, (shape, kind) in observation.items()}
        scalar = [tf.TensorSpec([batch], kind) for kind in (tf.int32, tf.float32, tf.float32)]
        step = specs if flat else TimeStep(scalar[0], scalar[1], scalar[2], specs)
        state = {name: tf.TensorSpec([batch, *shape], kind, name) for name, (shape, kind) in STATE.items()}
        self.action = tf.function(self._act, input_signature=[step, state])
        sizes = [] if batch else [tf.TensorSpec([], tf.int32)]
        self.get_initial_state = tf.function(self._initial_state, input_signature=sizes)

    def _initial_state(self, batch_size=1):
        return {name: tf.zeros([batch_size, *shape], kind) for name, (shape, kind) in STATE.items()}

    def _act(self, time_step, policy_state):
        seen = getattr(time_step, "observation", time_step)
        image, vector = (
            tf.cast(seen["image"], tf.float32) / 255,
            seen.get("natural_language_embedding", tf.zeros([1, 3])),
        )
        edges = [image[:, image.shape[1] // 2], image[:, 0], image[:, :, 0]]
        t = policy_state["t"] + 1
        count = tf.cast(t[:, 0, 0, 0], tf.float32)
        action = {
            "world_vector": tf.stack([tf.reduce_mean(edge, [1, 2]) for edge in edges], 1),
            "rotation_delta": vector[:, :3],
            "gripper_closedness_action": count[:, None] / 100 - 0.005,
            "terminate_episode": tf.one_hot(tf.where(count >= 3, 0, 1), 3, dtype=tf.int32),
            "base_displacement_vector": tf.zeros_like(vector[:, :2]),
        }
        action = {name: part for name, part in action.items() if name != self.left_out}
        return PolicyStep(action, {**policy_state, "t": t}, ())


class Encoder(tf.Module):
    """A sentence encoder: every number is the sentence's length / 100."""

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string)])
    def __call__(self, sentences):
        lengths = tf.cast(tf.strings.length(sentences), tf.float32) / 100
        return {"outputs": tf.tile(lengths[:, None], [1, 512])}


def main(folder: Path) -> None:
    grey = {**OBSERVATION, "image": ((256, 320, 1), tf.uint8)}
    mute = {name: spec for name, spec in OBSERVATION.items() if name != "natural_language_embedding"}
    models = {
        "any_batch": StandIn(),
        "one_by_one": StandIn(batch=1),
        "no_gripper": StandIn(left_out="gripper_closedness_action"),
        "no_embedding": StandIn(observation=mute),
        "another_image": StandIn(observation=grey),
        "no_time_step": StandIn(flat=True),
        "no_policy": tf.Module(),
        "encoder": Encoder(),
    }
    for name, model in models.items():
        tf.saved_model.save(model, str(folder / name))
    table: Any = {"pick coke can": np.full(512, 0.1, np.float32), "open top drawer": np.full(512, 0.2, np.float32)}
    np.savez(folder / "table.npz", **table)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
