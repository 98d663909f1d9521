"""The messages of policy servers: what goes through them, and what does not."""

import io
import pickle
import struct
import tracemalloc
from contextlib import suppress
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as nps
from PIL import Image

from tests.serving.support import packb
from vla_razor.policies.messages import BadMessage, pack, unpack

ARRAYS = nps.arrays(
    st.sampled_from(["u1", "i4", "i8", "f4", "f8", "?", ">f4", "u8"]), nps.array_shapes(min_dims=0, min_side=0)
)


@given(ARRAYS, st.booleans())
def test_arrays_arrive_as_they_were(array: np.ndarray, text_keys: bool) -> None:
    found = unpack(pack({"a": array, "b": [1, 2.5, "x", b"y", None]}, text_keys=text_keys))
    assert found["b"] == [1, 2.5, "x", b"y", None]
    assert (found["a"].dtype, found["a"].shape) == (array.dtype, array.shape)
    assert found["a"].tobytes() == array.tobytes()


def test_the_packing_is_openpis() -> None:
    """Key by key, as its client writes it."""
    packed = msgpack.unpackb(pack({"actions": np.array([[1.5]], np.float32)}))
    facts = {b"__ndarray__": True, b"data": struct.pack("<f", 1.5), b"dtype": "<f4", b"shape": [1, 1]}
    assert packed == {"actions": facts}
    assert unpack(packb({b"__npgeneric__": True, b"data": 3, b"dtype": "<i8"})) == np.int64(3)


def test_vla_evals_images_are_read() -> None:
    image = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    found = unpack(packb({"__image__": True, "format": "png", "data": buffer.getvalue(), "shape": [5, 7, 3]}))
    np.testing.assert_array_equal(found, image)


def nested(depth: int) -> bytes:
    return b"\x91" * depth + b"\xc0"


def bomb() -> bytes:
    buffer = io.BytesIO()
    Image.new("1", (5000, 5000)).save(buffer, "PNG")
    return packb({"__image__": True, "format": "png", "data": buffer.getvalue()})


def array(**changes: Any) -> bytes:
    facts = {"__ndarray__": True, "data": bytes(8), "dtype": "<f4", "shape": [2], **changes}
    return packb({key.encode(): value for key, value in facts.items()})


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not msgpack"),
        (b"\xc1", "not msgpack"),
        (pickle.dumps({"observation/image": 1}), "not msgpack"),
        (nested(5000), "not msgpack"),
        (b"\xdd\xff\xff\xff\xff", "not msgpack"),
        (array(dtype="O"), "array of type 'O'; expected numbers"),
        (array(dtype="<f1"), "array of type '<f1'"),
        (array(dtype="S8"), "expected numbers"),
        (array(dtype=7), "expected numbers"),
        (array(shape=[3]), "has 8 bytes of data"),
        (array(shape=[-2]), "has 8 bytes"),
        (array(shape=[2**62, 2**62]), "has 8 bytes"),
        (array(shape=None), "has 8 bytes"),
        (array(data="text"), "has str of data"),
        (packb({b"__npgeneric__": True, b"data": "x", b"dtype": "<i8"}), "has the value 'x'"),
        (packb({"__image__": True, "format": "png", "data": b"GIF89a"}), "neither PNG nor JPEG"),
        (bomb(), "5000 x 5000 pixels"),
        (packb([[]] * 5000), "more than 1000 lists"),
        (packb([0] * 20_000), "not msgpack"),
    ],
)
def test_what_is_none_is_one_message(data: bytes, message: str) -> None:
    with pytest.raises(BadMessage, match=message):
        unpack(data)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_message_or_a_bad_one(data: bytes) -> None:
    with suppress(BadMessage):
        unpack(data)


def test_a_short_message_fills_no_memory() -> None:
    """A megabyte of empty lists would be sixty of Python's."""
    data = b"\xdd" + struct.pack(">I", 9999) + (b"\xdc" + struct.pack(">H", 9999) + b"\x90" * 9999) * 100
    tracemalloc.start()
    with pytest.raises(BadMessage):
        unpack(data)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4 * 2**20
