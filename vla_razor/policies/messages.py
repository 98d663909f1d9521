"""The messages of policy servers: msgpack, in which a numpy array is a mapping of its bytes, type and shape.

Two packings are read: openpi's, whose keys are bytes, and vla-eval's, whose keys are texts and whose images may be
PNG or JPEG. A message holds numbers, texts and containers of them, and no more: nothing in it can run code, and a short
one cannot fill the memory.

Sources: github.com/Physical-Intelligence/openpi (openpi_client/msgpack_numpy.py), vla-eval 0.8 (vla_eval/protocol).
"""

import io
import math
import re
from typing import Any

import msgpack
import numpy as np

MOST_CONTAINERS, LONGEST = 1000, 10_000
"""Lists and mappings in a message, and items of one: what is longer is an array."""
MOST_PIXELS = 4096 * 4096
NUMBERS = re.compile(r"[<>|=]?[biuf][1248]")
IMAGE_FORMATS = ("PNG", "JPEG")


class BadMessage(ValueError):
    """What a message says is not what was expected; the text is for whoever sent it."""


def pack(message: Any, *, text_keys: bool = False) -> bytes:
    """A message with arrays and numpy scalars in it, as openpi packs them; with `text_keys`, as vla-eval does."""

    def packed(value: Any) -> Any:
        if isinstance(value, np.ndarray):
            facts = {"__ndarray__": True, "data": value.tobytes(), "dtype": value.dtype.str, "shape": value.shape}
            return facts if text_keys else {key.encode(): fact for key, fact in facts.items()}
        if isinstance(value, np.generic):
            return value.item()
        raise TypeError(f"a {type(value).__name__} has no place in a message")

    data = msgpack.packb(message, default=packed)
    assert data is not None  # as it is for whoever brings a packer of his own
    return data


def unpack(data: bytes) -> Any:
    """What a message says; its arrays cannot be written to. Raises `BadMessage`."""
    containers = 0

    def counted(container: Any) -> Any:
        nonlocal containers
        containers += 1
        if containers > MOST_CONTAINERS:
            raise BadMessage(f"more than {MOST_CONTAINERS} lists and mappings in one message")
        return _array_in(container) if isinstance(container, dict) else container

    try:
        return msgpack.unpackb(data, object_hook=counted, list_hook=counted, max_array_len=LONGEST, max_map_len=LONGEST)
    except BadMessage:
        raise
    except Exception as error:  # msgpack raises its own, and Python's, for what is damaged
        raise BadMessage(f"not msgpack ({type(error).__name__}: {error})") from error


def _array_in(facts: dict[Any, Any]) -> Any:
    if b"__ndarray__" in facts:
        return _array(*(facts.get(key) for key in (b"data", b"dtype", b"shape")))
    if b"__npgeneric__" in facts:
        return _number(facts.get(b"data"), facts.get(b"dtype"))
    if "__image__" in facts and facts.get("format") != "raw":
        return _image(facts.get("data"))
    if "__image__" in facts or "__ndarray__" in facts:
        return _array(*(facts.get(key) for key in ("data", "dtype", "shape")))
    return facts


def _array(data: Any, dtype: Any, shape: Any) -> np.ndarray:
    kind = _dtype(dtype)
    whole = isinstance(shape, list) and len(shape) <= 8 and all(type(side) is int and side >= 0 for side in shape)
    if not isinstance(data, bytes) or not whole or math.prod(shape) * kind.itemsize != len(data):
        found = f"{len(data)} bytes" if isinstance(data, bytes) else type(data).__name__
        raise BadMessage(f"an array of type {dtype} and shape {shape!r:.80} has {found} of data")
    return np.ndarray(shape, kind, data)


def _number(value: Any, dtype: Any) -> np.generic:
    try:
        return _dtype(dtype).type(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise BadMessage(f"a number of type {dtype} has the value {value!r:.80}") from error


def _dtype(name: Any) -> np.dtype:
    try:
        if isinstance(name, str) and NUMBERS.fullmatch(name):
            return np.dtype(name)
    except TypeError:  # such as f1
        pass
    raise BadMessage(f"an array of type {name!r:.80}; expected numbers, as <f4 or |u1")


def _image(data: Any) -> np.ndarray:
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data), formats=IMAGE_FORMATS) as image:
            if math.prod(image.size) > MOST_PIXELS:  # before anything is decoded: a kilobyte can say a gigapixel
                raise BadMessage(f"an image of {image.width} x {image.height} pixels; {MOST_PIXELS} at most")
            return np.asarray(image)
    except BadMessage:
        raise
    except Exception as error:  # whatever Pillow makes of a damaged file
        raise BadMessage(f"an image that is neither PNG nor JPEG ({type(error).__name__})") from error
