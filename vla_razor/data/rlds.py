"""RLDS, read without TensorFlow: TFRecord files of tf.train.Example, one episode each, as TFDS writes them.

    features.json, dataset_info.json          what the steps hold; their texts, and nothing that is needed to read them
    NAME-SPLIT.tfrecord-00000-of-00008        records: length, its checksum, an Example, its checksum

An Example maps names to lists of numbers or bytes. Of an episode of T steps `steps/action` holds T times D numbers,
`steps/observation/image` T pictures as JPEG or PNG, `steps/language_instruction` T texts. After the format's own
descriptions: TensorFlow's `record_writer.h` (the file) and `example.proto` (the message).
"""

import io
import re
import struct
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vla_razor.data.source import Damaged, Keys, Listed, NotTaken, Recording, chosen, finite, pictures_of
from vla_razor.errors import UserError

INSTRUCTIONS = ("language_instruction", "observation/natural_language_instruction", "natural_language_instruction")
"""Where Open X-Embodiment's datasets have it, the commonest first."""
PICTURES = (b"\xff\xd8\xff", b"\x89PNG")
"""How JPEG and PNG files begin."""
MOST = 2**31
"""Bytes of a record; a length beyond it is damage that the checksum has let pass."""


class Record(NamedTuple):
    """Where an episode lies: its file, the byte at which its message begins, and that one's length."""

    path: Path
    begin: int
    length: int
    number: int


class RLDS:
    """A dataset in a folder, read episode by episode in the order of its files. RLDS does not say a control rate:
    `fps` is the user's. Raises `UserError` where there are no records, `Damaged` where a file is cut or changed.
    """

    def __init__(self, folder: Path, keys: Keys, fps: int | None) -> None:
        self.folder, self.keys = folder, keys
        paths = sorted(folder.glob("**/*.tfrecord*"))
        if not paths:
            raise UserError(f"{folder} is no RLDS dataset: it has no *.tfrecord files.")
        if fps is None:
            raise UserError(f"{folder}: RLDS does not say how many control steps a second has: fps=N.")
        self.fps = fps
        _expect_all(paths)
        self.records = [record for path in paths for record in records(path)]
        if not self.records:
            raise UserError(f"{folder}: its files hold no episode.")
        self.episodes: Sequence[Listed] = [Listed(index) for index in range(len(self.records))]
        first = self._example(self.records[0])
        pictures = [key for key, values in first.items() if _is_picture(values)]
        self.pictures = pictures_of(
            keys.camera, pictures, folder, lambda key: key.rpartition("/")[2], lambda key: _full(key, pictures)
        )
        numbers = [key for key, values in first.items() if isinstance(values, np.ndarray)]
        self.action = chosen("action", _full(keys.action, numbers), numbers, folder)
        self.state = keys.state and chosen("state", _full(keys.state, numbers), numbers, folder)
        self.success = keys.success and chosen("success", _full(keys.success, numbers), numbers, folder)

    def read(self, index: int, every: int) -> Recording:
        """One episode; see `Source.read`."""
        record = self.records[index]
        example, path = self._example(record), record.path
        wanted = [*self.pictures.values(), self.action, self.state, self.success]
        missing = [key for key in wanted if key and key not in example]
        if missing:
            raise Damaged(path, f"it has no {missing[0]}.", row=record.number)
        length = len(example[next(iter(self.pictures.values()))])
        if not length:
            raise NotTaken("it has no steps")
        actions = self._rows(record, self.action, example[self.action], length)
        empty = np.zeros((length, 0), np.float32)
        states = self._rows(record, self.state, example[self.state], length) if self.state else empty
        success = np.arange(length) == length - 1
        if self.success:
            success = self._rows(record, self.success, example[self.success], length)[:, 0] > 0
        images = {name: self._images(record, example[key], length, every) for name, key in self.pictures.items()}
        return Recording(self._instruction(record, example), images, actions, states, success)

    def _images(self, record: Record, pictures: list[bytes], length: int, every: int) -> np.ndarray:
        """A camera's, [K, H, W, 3]."""
        if len(pictures) != length:
            message = f"one camera has {len(pictures)} pictures, another {length}."
            raise Damaged(record.path, message, row=record.number)
        images = [_decoded(record.path, record, pictures[step], step) for step in range(0, length, every)]
        if len({image.shape for image in images}) > 1:
            raise Damaged(record.path, "its pictures are of several sizes.", row=record.number)
        return np.stack(images)

    def _example(self, record: Record) -> dict[str, Any]:
        with record.path.open("rb") as file:
            file.seek(record.begin)
            message, checksum = file.read(record.length), file.read(4)
        if checksum != struct.pack("<I", masked_crc(message)):
            raise Damaged(record.path, "its checksum is another.", row=record.number)
        try:
            return example(message)
        except (ValueError, IndexError, struct.error) as error:
            raise Damaged(record.path, f"it is no tf.train.Example ({error}).", row=record.number) from error

    def _rows(self, record: Record, key: str, values: np.ndarray, length: int) -> np.ndarray:
        """A feature [T, D]."""
        if len(values) % length or not len(values):
            message = f"{key} has {len(values)} numbers, no multiple of its {length} steps."
            raise Damaged(record.path, message, row=record.number)
        try:
            return finite(record.path, key, np.asarray(values).reshape(length, -1))
        except Damaged as error:
            raise Damaged(record.path, f"{key} holds NaN or infinity.", row=record.number) from error

    def _instruction(self, record: Record, found: Mapping[str, Any]) -> str:
        for key in (f"steps/{name}" for name in INSTRUCTIONS):
            if found.get(key) is not None and len(found[key]):
                texts = {text.decode("utf-8", "replace") for text in found[key]}
                if len(texts) > 1:
                    raise NotTaken(f"its steps have {len(texts)} instructions: {'; '.join(sorted(texts))}")
                return texts.pop()
        return ""


def records(path: Path) -> Iterator[Record]:
    """Where the episodes of a file lie. Raises `Damaged` where it is cut, or a length's checksum is another."""
    size, place, number = path.stat().st_size, 0, 0
    with path.open("rb") as file:
        while place < size:
            file.seek(place)
            head = file.read(12)
            if len(head) < 12:
                raise Damaged(path, f"it ends within record {number}.", row=number)
            length, checksum = struct.unpack("<QI", head)
            if checksum != masked_crc(head[:8]) or length > MOST:
                raise Damaged(path, "the checksum of its length is another.", row=number)
            if place + 16 + length > size:
                raise Damaged(path, f"it ends within record {number}.", row=number)
            yield Record(path, place + 12, length, number)
            place, number = place + 16 + length, number + 1


def masked_crc(data: bytes) -> int:
    """The CRC-32C of bytes, rotated and shifted as TFRecord stores it."""
    try:
        import google_crc32c  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise UserError("RLDS datasets need google-crc32c: pip install 'vla-razor[rlds]'.") from error
    crc = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def example(message: bytes) -> dict[str, Any]:
    """The features of a tf.train.Example: lists of bytes, or arrays of float32 or int64.

    Raises ValueError where the bytes are no such message.
    """
    found: dict[str, Any] = {}
    for number, features in fields(message):
        if number != 1:  # Example.features
            continue
        for _, entry in fields(_bytes(features)):  # a map entry of Features.feature
            name, value = b"", b""
            for part, content in fields(_bytes(entry)):
                name, value = (_bytes(content), value) if part == 1 else (name, _bytes(content))
            found[name.decode()] = _feature(value)
    return found


def _feature(message: bytes) -> Any:
    """A Feature: one of bytes_list, float_list and int64_list, whose only field is `value`."""
    for kind, values in fields(message):
        parts = [content for _, content in fields(_bytes(values))]
        if kind == 1:
            return [_bytes(part) for part in parts]
        if kind == 2:  # packed, or one by one
            return np.frombuffer(b"".join(_bytes(part) for part in parts), "<f4")
        packed = [_varints(part) if isinstance(part, bytes) else [part] for part in parts]
        return np.array([number for part in packed for number in part], np.uint64).astype(np.int64)
    return np.zeros(0, np.float32)


def fields(message: bytes) -> Iterator[tuple[int, bytes | int]]:
    """The fields of a protocol buffer message: numbers of varints, bytes of all else."""
    place = 0
    while place < len(message):
        tag, place = _varint(message, place)
        kind = tag & 7
        if kind == 0:
            value, place = _varint(message, place)
            yield tag >> 3, value
            continue
        if kind == 2:
            length, place = _varint(message, place)
        elif kind in (1, 5):
            length = 8 if kind == 1 else 4
        else:
            raise ValueError(f"wire type {kind}")
        if place + length > len(message):
            raise ValueError("a field is longer than its message")
        yield tag >> 3, message[place : place + length]
        place += length


def _varint(message: bytes, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[place]
        value, place, shift = value | (byte & 127) << shift, place + 1, shift + 7
        if byte < 128:
            return value & 0xFFFFFFFFFFFFFFFF, place
        if shift > 63:
            raise ValueError("a number is too long")


def _varints(message: bytes) -> Iterator[int]:
    place = 0
    while place < len(message):
        value, place = _varint(message, place)
        yield value


def _bytes(content: bytes | int) -> bytes:
    if isinstance(content, int):
        raise ValueError("a number where bytes were expected")
    return content


def _is_picture(values: Any) -> bool:
    return isinstance(values, list) and bool(values) and values[0].startswith(PICTURES)


def _full(key: str, known: list[str]) -> str:
    """A key as the records have it, in which `observation/state`, or `state` where nothing else ends so, will do."""
    if key in known:
        return key
    ends = [name for name in known if name.endswith(f"/{key.replace('.', '/')}")]
    return ends[0] if len(ends) == 1 else key


def _decoded(path: Path, record: Record, data: bytes, step: int) -> np.ndarray:
    from PIL import Image, UnidentifiedImageError

    try:
        return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    except (OSError, UnidentifiedImageError) as error:
        raise Damaged(path, f"step {step} holds no picture ({error}).", row=record.number) from error


def _expect_all(paths: list[Path]) -> None:
    """Raises `Damaged` where the files' names count others."""
    names = {path.name for path in paths}
    for path in paths:
        if part := re.fullmatch(r"(.*)-(\d+)-of-(\d+)", path.name):
            for number in range(int(part[3])):
                if (name := f"{part[1]}-{number:05d}-of-{part[3]}") not in names:
                    raise Damaged(path.with_name(name), "there is no such file.")
