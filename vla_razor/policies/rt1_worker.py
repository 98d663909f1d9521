"""RT-1's half that needs TensorFlow: a process that loads the SavedModel and answers on its standard streams.

It is run as a file by an interpreter that has TensorFlow, and may have nothing else of ours: it imports the standard
library, numpy and TensorFlow. A message is the four bytes `RT-1`, eight of length and an .npz archive; the entry `head`
holds JSON. The recurrent state of every episode stays here under a number; the other side says which numbers it no
longer holds.
"""

import io
import json
import os
import sys
from collections import namedtuple
from pathlib import Path

import numpy as np

TimeStep = namedtuple("TimeStep", ("step_type", "reward", "discount", "observation"))  # as tf-agents names it
PARTS = {"world_vector": 3, "rotation_delta": 3, "gripper_closedness_action": 1, "terminate_episode": 3}
MARK = b"RT-1"
MIDDLE = 1  # the step type SimplerEnv gives every step, the first one too
EMBEDDING = 512


class Unusable(Exception):
    """The SavedModel or the embeddings are not what was expected; the message is for the user."""


def write(stream, head, **arrays):
    """Sends a message."""
    buffer = io.BytesIO()
    np.savez(buffer, head=np.frombuffer(json.dumps(head).encode(), np.uint8), **arrays)
    content = buffer.getvalue()
    stream.write(MARK + len(content).to_bytes(8, "big") + content)
    stream.flush()


def read(stream):
    """Receives a message: its head and its arrays. Raises EOFError where the other side has gone, and ValueError where
    it says something else.
    """
    begin = stream.read(len(MARK) + 8)
    if not begin.startswith(MARK[: len(begin)]):
        raise ValueError("no message")
    length = int.from_bytes(begin[len(MARK) :], "big")
    content = stream.read(length)
    if len(begin) < len(MARK) + 8 or len(content) < length:
        raise EOFError
    archive = np.load(io.BytesIO(content), allow_pickle=False)
    arrays = {name: archive[name] for name in archive.files}
    return json.loads(arrays.pop("head").tobytes()), arrays


class Model:
    """The SavedModel with the signature that RT-1's checkpoints have."""

    def __init__(self, tf, folder):
        self.tf, self.folder = tf, folder
        try:
            self.loaded = tf.saved_model.load(folder)
        except Exception as error:
            raise Unusable(f"not a SavedModel that TensorFlow {tf.__version__} loads: {_line(error)}") from error
        missing = [name for name in ("action", "get_initial_state") if not hasattr(self.loaded, name)]
        if missing:
            raise Unusable(f"a SavedModel without {' and '.join(missing)}; expected action(time_step, policy_state)")
        function = self._concrete("action")
        arguments, _ = function.structured_input_signature
        if len(arguments) != 2:
            raise Unusable(f"action takes {len(arguments)} arguments; expected time_step and policy_state")
        step, state = arguments
        if not all(hasattr(step, name) for name in TimeStep._fields):
            kind = type(step).__name__
            raise Unusable(f"action takes a {kind} first; expected a time step of {', '.join(TimeStep._fields)}")
        if any(not spec.shape.rank or spec.shape[0] not in (None, 1) for spec in tf.nest.flatten(state)):
            raise Unusable("the policy's state has parts without a leading axis of 1 or any length")
        self.observation = dict(step.observation)
        self._check_observation()
        self._check_outputs(function.structured_outputs)
        self.batched = self.observation["image"].shape[0] is None
        self.size = tuple(self.observation["image"].shape[1:3])

    def _concrete(self, name):
        functions = getattr(getattr(self.loaded, name), "concrete_functions", [])
        if not functions:
            raise Unusable(f"{name} has no signature: it was never traced before it was saved")
        return functions[0]

    def _check_observation(self):
        tf, wanted = self.tf, {"image": ("uint8", 4, 3), "natural_language_embedding": ("float32", 2, EMBEDDING)}
        for name, (kind, rank, last) in wanted.items():
            spec = self.observation.get(name)
            found = "absent" if spec is None else f"{spec.dtype.name} {spec.shape}"
            if spec is None or (spec.dtype, spec.shape.rank) != (getattr(tf, kind), rank) or not _fits(spec, last):
                shape = "[1 or any, height, width, 3]" if rank == 4 else f"[1 or any, {EMBEDDING}]"
                raise Unusable(f"observation {name!r} is {found}; expected {kind} {shape}")

    def _check_outputs(self, outputs):
        actions = getattr(outputs, "action", None)
        actions = actions if isinstance(actions, dict) else {}
        for name, length in PARTS.items():
            if name not in actions or actions[name].shape[-1] != length:
                found = actions[name].shape if name in actions else f"absent among {sorted(actions)}"
                raise Unusable(f"action gives {name!r} {found}; expected [..., {length}]")
        if not hasattr(outputs, "state"):
            raise Unusable("action gives no state; expected a step of action, state and info")

    def initial_state(self):
        """The state of one new episode."""
        sizes = [
            spec for spec in self._concrete("get_initial_state").structured_input_signature[0] if hasattr(spec, "dtype")
        ]
        return self.loaded.get_initial_state(*[self.tf.constant(1, spec.dtype) for spec in sizes[:1]])

    def act(self, images, embeddings, states):
        """Actions [B, 10] of as many episodes, and their next states; at once where the signature takes any batch."""
        if self.batched or len(images) == 1:
            return self._act(images, embeddings, states)
        rows = [self._act(images[i : i + 1], embeddings[i : i + 1], states[i : i + 1]) for i in range(len(images))]
        return np.concatenate([actions for actions, _ in rows]), [states[0] for _, states in rows]

    def _act(self, images, embeddings, states):
        tf, count = self.tf, len(images)
        height, width = self.size
        resized = tf.cast(tf.image.resize_with_pad(images, height, width), tf.uint8)
        filled = {"image": resized, "natural_language_embedding": tf.constant(embeddings)}
        observation = {name: filled.get(name, _blank(tf, spec, count)) for name, spec in self.observation.items()}
        step = TimeStep(tf.fill([count], MIDDLE), tf.zeros([count]), tf.ones([count]), observation)
        state = tf.nest.map_structure(lambda *rows: tf.concat(rows, 0), *states)
        result = self.loaded.action(step, state)
        actions = np.concatenate(
            [np.reshape(result.action[name], (count, length)) for name, length in PARTS.items()], 1
        )
        return actions, [tf.nest.map_structure(lambda leaf, i=i: leaf[i : i + 1], result.state) for i in range(count)]


class Embeddings:
    """Instructions to vectors [512]: a table (.npz, a vector under each one), or a sentence encoder's folder."""

    def __init__(self, tf, source):
        self.tf, self.encoder, self.known = tf, None, {}
        if Path(source).is_dir():
            try:
                self.encoder = tf.saved_model.load(source)
            except Exception as error:
                raise Unusable(f"{source} is no sentence encoder that TensorFlow loads: {_line(error)}") from error
        else:
            self.known = self._table(source)

    def _table(self, source):
        try:
            archive = np.load(source, allow_pickle=False)
            table = {name: np.asarray(archive[name], np.float32) for name in archive.files}
        except Exception as error:
            raise Unusable(f"{source} is no table of embeddings (.npz): {_line(error)}") from error
        for name, vector in table.items():
            self._check(name, vector, source)
        return table

    def _check(self, name, vector, source):
        if vector.shape != (EMBEDDING,) or not np.isfinite(vector).all():
            raise Unusable(f"{source}: the embedding of {name!r} is not {EMBEDDING} finite numbers")

    def of(self, instruction):
        if instruction not in self.known:
            if self.encoder is None:
                known = ", ".join(map(repr, sorted(self.known)))
                raise Unusable(f"the table of embeddings does not hold {instruction!r}; it holds {known}")
            found = self.encoder(self.tf.constant([instruction]))
            vector = np.asarray(found["outputs"] if isinstance(found, dict) else found, np.float32)[0]
            self._check(instruction, vector, "the sentence encoder")
            self.known[instruction] = vector
        return self.known[instruction]


def serve(requests, answers, model, embeddings):
    """Answers until the other side has gone."""
    states, number = {}, 0
    while True:
        head, arrays = read(requests)
        for held in head["released"]:
            states.pop(held, None)
        try:
            vectors = np.stack([embeddings.of(instruction) for instruction in head["instructions"]])
        except Unusable as error:
            write(answers, {"error": str(error)})
            continue
        before = [model.initial_state() if held is None else states[held] for held in head["states"]]
        actions, after = model.act(arrays["images"], vectors, before)
        numbers = list(range(number, number + len(after)))
        states.update(zip(numbers, after, strict=True))
        number += len(after)
        write(answers, {"states": numbers}, actions=actions.astype(np.float32))


def main(folder, embeddings):
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what TensorFlow prints must not get between the messages
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    try:
        import tensorflow as tf  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        write(answers, {"error": f"{sys.executable} has no TensorFlow ({error})", "missing": True})
        return
    try:
        model, table = Model(tf, folder), Embeddings(tf, embeddings)
        model.initial_state()
    except Unusable as error:
        write(answers, {"error": str(error)})
        return
    write(answers, {"batched": model.batched, "size": model.size, "tensorflow": tf.__version__})
    try:
        serve(sys.stdin.buffer, answers, model, table)
    except (EOFError, BrokenPipeError):
        return


def _blank(tf, spec, count):
    shape = [count, *spec.shape[1:]]
    return tf.fill(shape, "") if spec.dtype == tf.string else tf.zeros(shape, spec.dtype)


def _fits(spec, last):
    return spec.shape[-1] == last and spec.shape[0] in (None, 1)


def _line(error):
    return str(error).strip().partition("\n")[0]


if __name__ == "__main__":
    main(*sys.argv[1:])
