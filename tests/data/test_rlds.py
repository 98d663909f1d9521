"""RLDS: records as TensorFlow writes them are read without it, and damage is told."""

import contextlib
import io
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner, Result

from tests.verbs.support import random_demonstration
from vla_razor import cli
from vla_razor.data.rlds import example, masked_crc
from vla_razor.rollouts import demonstrations
from vla_razor.rollouts.demonstrations import Demonstration

pytest.importorskip("google_crc32c", reason="no google-crc32c here: pip install 'vla-razor[rlds]'")
WORDS = ("fps=5", "state=observation/state", "held_out=0", "name=bridge")


def message_class() -> Any:
    """tf.train.Example, made by protobuf from its definition."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    file = descriptor_pb2.FileDescriptorProto(name="example.proto", package="tensorflow", syntax="proto3")
    label, kinds = descriptor_pb2.FieldDescriptorProto, {"BytesList": 12, "FloatList": 2, "Int64List": 3}

    def field(message: Any, name: str, number: int, kind: int, of: str = "", repeated: bool = False) -> None:
        facts = {"name": name, "number": number, "type": kind} | ({"type_name": of} if of else {})
        message.field.add(**facts, label=label.LABEL_REPEATED if repeated else label.LABEL_OPTIONAL)

    for name, kind in kinds.items():
        field(file.message_type.add(name=name), "value", 1, kind, repeated=True)
    feature = file.message_type.add(name="Feature")
    feature.oneof_decl.add(name="kind")
    for number, (name, of) in enumerate(zip(("bytes_list", "float_list", "int64_list"), kinds, strict=True), 1):
        field(feature, name, number, 11, f".tensorflow.{of}")
        feature.field[-1].oneof_index = 0
    features = file.message_type.add(name="Features")
    entry = features.nested_type.add(name="FeatureEntry")
    entry.options.map_entry = True
    field(entry, "key", 1, 9)
    field(entry, "value", 2, 11, ".tensorflow.Feature")
    field(features, "feature", 1, 11, ".tensorflow.Features.FeatureEntry", repeated=True)
    field(file.message_type.add(name="Example"), "features", 1, 11, ".tensorflow.Features")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("tensorflow.Example"))


EXAMPLE = message_class()


def encoded(values: dict[str, Any]) -> bytes:
    """An Example's bytes."""
    message = EXAMPLE()
    for name, value in values.items():
        feature = message.features.feature[name]
        if isinstance(value, list):
            feature.bytes_list.value.extend(value)
        elif value.dtype.kind == "f":
            feature.float_list.value.extend(value.ravel().tolist())
        else:
            feature.int64_list.value.extend(value.ravel().tolist())
    return message.SerializeToString()


def record(message: bytes) -> bytes:
    head = struct.pack("<Q", len(message))
    return head + struct.pack("<I", masked_crc(head)) + message + struct.pack("<I", masked_crc(message))


def png(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="png")
    return buffer.getvalue()


def features(episode: Demonstration) -> dict[str, Any]:
    length = len(episode.success)
    return {
        "steps/action": episode.labels,
        "steps/observation/state": episode.proprioception,
        "steps/observation/image_0": [png(image) for image in episode.images],
        "steps/language_instruction": [episode.instruction.encode()] * length,
        "steps/is_last": episode.success.astype(np.int64),
    }


def episodes() -> list[Demonstration]:
    return [random_demonstration(seed, length=4 + seed) for seed in range(4)]


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    folder = tmp_path / "bridge" / "1.0.0"
    folder.mkdir(parents=True)
    whole = [record(encoded(features(episode))) for episode in episodes()]
    for number in range(2):
        path = folder / f"bridge-train.tfrecord-{number:05d}-of-00002"
        path.write_bytes(b"".join(whole[2 * number : 2 * number + 2]))
    return folder


def told(dataset: Path, *words: object) -> Result:
    out = f"out={dataset.parents[1] / 'back'}"
    return CliRunner().invoke(cli.app, ["import", "rlds", str(dataset), out, *map(str, (*WORDS, *words))])


def test_the_checksum_is_tensorflows() -> None:
    assert masked_crc(b"123456789") == ((0xE3069283 >> 15 | 0xE3069283 << 17) + 0xA282EAD8) & 0xFFFFFFFF


@given(
    floats=st.lists(st.floats(width=32, allow_nan=False), max_size=5),
    numbers=st.lists(st.integers(-(2**63), 2**63 - 1), max_size=5),
    texts=st.lists(st.binary(max_size=9), max_size=5),
)
def test_an_example_is_read_as_protobuf_reads_it(floats: list[float], numbers: list[int], texts: list[bytes]) -> None:
    written = {"a": np.array(floats, np.float32), "b": np.array(numbers, np.int64), "ç": texts}
    found = example(encoded(written))
    assert found.keys() == written.keys() and found["ç"] == texts
    for name in ("a", "b"):
        np.testing.assert_array_equal(found[name], written[name])


@given(st.binary(max_size=60))
def test_noise_is_no_example_and_ends_in_one_kind_of_error(noise: bytes) -> None:
    with contextlib.suppress(ValueError, IndexError, struct.error):
        example(noise)


def test_episodes_are_read_exactly(dataset: Path) -> None:
    result = told(dataset)
    assert result.exit_code == 0, result.output
    shards = demonstrations.read_store(dataset.parents[1] / "back")
    found = [episode for shard in shards for episode in shard.demonstrations]
    for one, other in zip(found, episodes(), strict=True):
        for name in ("instruction", "labels", "proprioception", "images", "success"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
        assert (one.camera, one.control_hz) == ("image_0", 5)


def test_several_cameras_are_read_under_the_names_that_they_get(dataset: Path) -> None:
    dark = [png(image // 2) for image in episodes()[0].images]
    rewritten(dataset, observation__image_1=dark)
    (dataset / "bridge-train.tfrecord-00001-of-00002").write_bytes(first(dataset).read_bytes())
    assert "Choose one: camera=KEY." in told(dataset).stderr
    result = told(dataset, "cameras={front: image_0, wrist: image_1}")
    assert result.exit_code == 0, result.output
    for shard in demonstrations.read_store(dataset.parents[1] / "back"):
        for one in shard.demonstrations:
            np.testing.assert_array_equal(one.pictures["front"], episodes()[0].images)
            np.testing.assert_array_equal(one.pictures["wrist"], episodes()[0].images // 2)
    rewritten(dataset, observation__image_1=dark[:2])
    short = told(dataset, "cameras={front: image_0, wrist: image_1}", f"out={dataset.parents[1] / 'short'}")
    assert short.exit_code == 2 and "one camera has 2 pictures, another 4." in short.stderr


def changed(path: Path, change: Callable[[bytearray], Any]) -> None:
    content = bytearray(path.read_bytes())
    change(content)
    path.write_bytes(content)


def rewritten(folder: Path, **values: Any) -> None:
    path = next(folder.glob("*-00000-of-*"))
    named = {f"steps/{name.replace('__', '/')}": value for name, value in values.items()}
    path.write_bytes(record(encoded(features(episodes()[0]) | named)))


def first(folder: Path) -> Path:
    return folder / "bridge-train.tfrecord-00000-of-00002"


NAN = np.full((4, 7), np.nan, np.float32)


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (lambda d: changed(first(d), lambda c: c.__setitem__(3000, c[3000] ^ 1)), "row 0: its checksum is another."),
        (lambda d: changed(first(d), lambda c: c.__setitem__(2, 1)), "row 0: the checksum of its length is another."),
        (lambda d: changed(first(d), lambda c: c.__delitem__(slice(-5, None))), "row 1: it ends within record 1."),
        (lambda d: first(d).unlink(), "tfrecord-00000-of-00002: there is no such file."),
        (lambda d: rewritten(d, action=NAN), "row 0: steps/action holds NaN or infinity."),
        (lambda d: rewritten(d, action=NAN[:3]), "row 0: steps/action has 21 numbers, no multiple of its 4 steps."),
    ],
)
def test_damage_is_one_message_that_names_file_and_record(
    dataset: Path, harm: Callable[[Path], Any], says: str
) -> None:
    harm(dataset)
    result = told(dataset)
    assert result.exit_code == 2 and says in result.stderr and result.stderr.count("\n") == 1, result.stderr


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("fps=null",), "RLDS does not say how many control steps a second has: fps=N."),
        (("camera=wrist",), "has no camera 'wrist'. It has steps/observation/image_0."),
        (("only=[fly]",), "no episode was taken."),
    ],
)
def test_what_cannot_be_meant_is_one_message(dataset: Path, words: tuple[str, ...], says: str) -> None:
    result = told(dataset, *words)
    assert result.exit_code == 2 and says in result.stderr, result.stderr
