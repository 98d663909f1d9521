"""LeRobot's dataset format, read: v3.0, in which files hold many episodes, and v2.1, in which each has its own.

    meta/info.json            features by key, fps, and where data and films lie
    meta/tasks.parquet        v3.0: the instructions, as the table's pandas index; v2.1: meta/tasks.jsonl
    meta/episodes/**.parquet  v3.0: of each episode its length, its files, its part of them; v2.1: meta/episodes.jsonl
    data/, videos/            the rows, and a film for each camera whose pictures are not in the rows

After github.com/huggingface/lerobot 0.6.1. Unlike its reader this one looks at everything it reads: a row that is
missing, out of order or not finite, a time that is not its row's, a film that ends too soon.
"""

import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from vla_razor.data.films import TOLERANCE, pictures
from vla_razor.data.source import Damaged, Keys, Listed, NotTaken, Recording, chosen, facts_of, finite, pictures_of
from vla_razor.errors import UserError

INFO = "meta/info.json"
PREFIX = "observation.images."
CAMERAS, NUMBERS = ("image", "video"), ("float32", "float64")
OLD = "v2.0 is not read. Convert it with lerobot 0.3's convert_dataset_v20_to_v21."


@dataclass(frozen=True)
class Place:
    """Where an episode lies: the file of its rows, and for each film the second at which it begins there."""

    listed: Listed
    rows: Path
    films: Mapping[str, tuple[Path, float]]


class LeRobot:
    """A dataset in a folder. Raises `UserError` for a version or a key that is not known, `Damaged` for files that are
    missing or not what they should be.
    """

    def __init__(self, folder: Path, keys: Keys) -> None:
        self.folder, self.keys, path = folder, keys, folder / INFO
        _table.cache_clear()  # of a dataset that may have been repaired since
        info = _json(path)
        facts_of(info, path, codebase_version=str, fps=int, features=dict, data_path=str)
        version = info["codebase_version"]
        if version not in ("v2.1", "v3.0"):
            remedy = OLD if version == "v2.0" else "Expected v3.0 or v2.1."
            raise UserError(f"{path}: codebase_version {version}. {remedy}")
        self.fps, self.features = info["fps"], info["features"]
        if self.fps < 1:
            raise Damaged(path, f"fps is {self.fps}.")
        self.pictures = pictures_of(keys.camera, self._keys_of(CAMERAS), folder, lambda key: key.removeprefix(PREFIX))
        chosen("action", keys.action, self._keys_of(NUMBERS), folder)
        if keys.state is not None:
            chosen("state", keys.state, self._keys_of(NUMBERS), folder)
        if keys.success is not None:
            chosen("success", keys.success, self._keys_of(("bool",)), folder)
        self.tasks = _tasks_v3(folder) if version == "v3.0" else _tasks_v21(folder)
        films = [key for key in self._keys_of(("video",)) if key in self.pictures.values()]
        read = _places_v3 if version == "v3.0" else _places_v21
        self.places = {place.listed.index: place for place in read(folder, info, films)}
        said = info.get("total_episodes", len(self.places))
        if said != len(self.places):
            raise Damaged(path, f"total_episodes is {said}, but the episodes' list has {len(self.places)}.")
        self.episodes: Sequence[Listed] = [place.listed for place in self.places.values()]

    def read(self, index: int, every: int) -> Recording:
        """One episode; see `Source.read`."""
        place = self.places[index]
        table, first = self._rows(place)
        actions = self._numbers(place.rows, table, self.keys.action, first)
        if self.keys.state is None:
            states = np.zeros((len(actions), 0), np.float32)
        else:
            states = self._numbers(place.rows, table, self.keys.state, first)
        success = np.arange(len(actions)) == len(actions) - 1
        if self.keys.success is not None:
            success = _flat(place.rows, table, self.keys.success).reshape(len(actions)).astype(bool)
        instruction = self._instruction(place, table, first)
        images = {name: self._images(place, table, first, every, key) for name, key in self.pictures.items()}
        return Recording(instruction, images, actions, states, success)

    def _keys_of(self, kinds: Sequence[str]) -> list[str]:
        return [key for key, feature in self.features.items() if feature.get("dtype") in kinds]

    def _rows(self, place: Place) -> tuple[pa.Table, int]:
        """The episode's rows, checked to be all of them in order at their times, and the first one's place."""
        path = place.rows
        table = _table(path, tuple(self._columns()))
        mine = np.flatnonzero(_flat(path, table, "episode_index") == place.listed.index)
        if len(mine) != place.listed.length:
            expected = f"the episodes' list says {place.listed.length}"
            raise Damaged(path, f"it holds {len(mine)} rows of episode {place.listed.index}, {expected}.")
        first = int(mine[0])
        rows = table.slice(first, len(mine))
        steps = np.arange(len(mine))
        for name, expected, slack in (
            ("episode_index", np.full(len(mine), place.listed.index), 0.0),
            ("frame_index", steps, 0.0),
            ("timestamp", steps / self.fps, TOLERANCE + 1e-6 * steps / self.fps),  # they are float32
        ):
            found = _flat(path, rows, name).astype(float).reshape(-1)
            wrong = ~(np.abs(found - expected) <= slack)
            if wrong.any():
                row = int(np.argmax(wrong))
                why = f" at fps={self.fps}" if name == "timestamp" else ""
                message = f"{name} is {found[row]:.6g}, expected {expected[row]:.6g}{why}."
                raise Damaged(path, message, row=first + row)
        return rows, first

    def _columns(self) -> Iterator[str]:
        yield from ("episode_index", "frame_index", "timestamp", "task_index", self.keys.action)
        yield from (key for key in (self.keys.state, self.keys.success) if key is not None)
        yield from (key for key in self.pictures.values() if self.features[key]["dtype"] == "image")

    def _numbers(self, path: Path, table: pa.Table, key: str, first: int) -> np.ndarray:
        """A feature [T, D]."""
        shape = tuple(self.features[key]["shape"])
        if len(shape) != 1:
            raise UserError(f"{self.folder}: {key} has the shape {list(shape)}; expected a list of numbers.")
        return finite(path, key, _flat(path, table, key, shape[0], first).reshape(-1, shape[0]), first)

    def _instruction(self, place: Place, table: pa.Table, first: int) -> str:
        found = _flat(place.rows, table, "task_index").reshape(-1)
        outside = (found < 0) | (found >= len(self.tasks))
        if outside.any():
            row = int(np.argmax(outside))
            message = f"task_index is {found[row]}, of {len(self.tasks)} tasks."
            raise Damaged(place.rows, message, row=first + row)
        named = sorted({self.tasks[task] for task in found.tolist()})
        if len(named) > 1:
            raise NotTaken(f"its rows are of {len(named)} tasks: {'; '.join(named)}")
        return named[0]

    def _images(self, place: Place, table: pa.Table, first: int, every: int, key: str) -> np.ndarray:
        """The pictures [K, H, W, 3] that a camera has under its key."""
        steps = range(0, len(table), every)
        if key in place.films:
            path, begin = place.films[key]
            images = pictures(path, [begin + step / self.fps for step in steps], [first + step for step in steps])
        else:
            path = place.rows
            cells = table[key]
            read = [(first + step, self._picture(path, key, cells[step], first + step)) for step in steps]
            images = _stacked(path, read)
        expected = _image_shape(self.features[key])
        if images.shape[1:] != expected:
            found = " x ".join(map(str, images.shape[1:]))
            raise Damaged(path, f"its pictures are {found}, expected {' x '.join(map(str, expected))}.", row=first)
        return images

    def _picture(self, path: Path, key: str, cell: Any, row: int) -> np.ndarray:
        """A picture in a row: the file's bytes, or its path."""
        from PIL import Image, UnidentifiedImageError

        content = cell.as_py() or {}
        try:
            data = content.get("bytes") or (self.folder / content["path"]).read_bytes()
            return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
        except (KeyError, TypeError, OSError, UnidentifiedImageError) as error:
            raise Damaged(path, f"{key} holds no picture ({error}).", row=row) from error


def _stacked(path: Path, images: Sequence[tuple[int, np.ndarray]]) -> np.ndarray:
    shape = images[0][1].shape
    for row, image in images:
        if image.shape != shape:
            raise Damaged(path, f"a picture is {list(image.shape)}, those before it {list(shape)}.", row=row)
    return np.stack([image for _, image in images])


def _image_shape(feature: Mapping[str, Any]) -> tuple[int, ...]:
    """Height, width, 3. Some datasets say channels first, and their names tell."""
    shape, names = tuple(feature["shape"]), feature.get("names") or []
    return (*shape[1:], shape[0]) if names and str(names[0]).startswith("channel") else shape


def _places_v3(folder: Path, info: Mapping[str, Any], films: Sequence[str]) -> Iterator[Place]:
    paths = sorted((folder / "meta" / "episodes").glob("*/*.parquet"))
    if not paths:
        raise Damaged(folder / "meta" / "episodes", "there is no list of episodes (chunk-*/file-*.parquet).")
    columns = ["episode_index", "tasks", "length", "data/chunk_index", "data/file_index"]
    of_film = ("chunk_index", "file_index", "from_timestamp")
    columns += [f"videos/{key}/{name}" for key in films for name in of_film]
    for path in paths:
        for row in _table(path, tuple(columns)).to_pylist():
            where = {"chunk_index": row["data/chunk_index"], "file_index": row["data/file_index"]}
            found = {}
            for key in films:
                chunk, file, begin = (row[f"videos/{key}/{name}"] for name in of_film)
                place = info["video_path"].format(video_key=key, chunk_index=chunk, file_index=file)
                found[key] = folder / place, begin
            listed = Listed(row["episode_index"], row["length"], tuple(row["tasks"]))
            yield Place(listed, folder / info["data_path"].format(**where), found)


def _places_v21(folder: Path, info: Mapping[str, Any], films: Sequence[str]) -> Iterator[Place]:
    for row in _json_lines(folder / "meta" / "episodes.jsonl", episode_index=int, length=int, tasks=list):
        index = row["episode_index"]
        where = {"episode_index": index, "episode_chunk": index // info.get("chunks_size", 1000)}
        found = {key: (folder / info["video_path"].format(video_key=key, **where), 0.0) for key in films}
        listed = Listed(index, row["length"], tuple(row["tasks"]))
        yield Place(listed, folder / info["data_path"].format(**where), found)


def _tasks_v3(folder: Path) -> list[str]:
    """By row position, which is what `task_index` counts, whatever that column says."""
    path = folder / "meta" / "tasks.parquet"
    table = _table(path)
    for name in ("task", "__index_level_0__"):
        if name in table.column_names:
            return table[name].to_pylist()
    raise Damaged(path, f"expected the column task, found {', '.join(table.column_names)}.")


def _tasks_v21(folder: Path) -> list[str]:
    rows = _json_lines(folder / "meta" / "tasks.jsonl", task_index=int, task=str)
    return [row["task"] for row in sorted(rows, key=lambda row: row["task_index"])]


@lru_cache(maxsize=2)  # a file of rows holds many episodes, which are mostly read in order
def _table(path: Path, columns: tuple[str, ...] | None = None) -> pa.Table:
    if not path.is_file():
        raise Damaged(path, "there is no such file.")
    try:
        known = pq.read_schema(path).names
        if missing := [name for name in columns or () if name not in known]:
            raise Damaged(path, f"it has no column {missing[0]}; it has {', '.join(known)}.")
        return pq.read_table(path, columns=list(columns) if columns else None).combine_chunks()
    except (pa.ArrowException, OSError) as error:
        raise Damaged(path, f"it cannot be read as Parquet ({str(error).splitlines()[0]}).") from error


def _flat(path: Path, table: pa.Table, key: str, each: int = 1, first: int = 0) -> np.ndarray:
    """The numbers of a column, end to end, `each` in every row. Raises `Damaged` at the first row of another length, or
    without a value.
    """
    column = table[key].combine_chunks()
    if isinstance(column, pa.ChunkedArray):
        column = pa.concat_arrays(column.chunks)
    empty = np.asarray(pc.is_null(column).to_numpy(zero_copy_only=False))  # pyright: ignore
    if empty.any():
        raise Damaged(path, f"{key} is empty.", row=first + int(np.argmax(empty)))
    if pa.types.is_nested(column.type):
        lengths = np.asarray(pc.list_value_length(column).to_numpy(zero_copy_only=False))  # pyright: ignore
        if (lengths != each).any():
            row = int(np.argmax(lengths != each))
            raise Damaged(path, f"{key} has {lengths[row]} numbers, expected {each}.", row=first + row)
        column = column.flatten()
    elif each != 1:
        raise Damaged(path, f"{key} is a number, expected {each} of them.", row=first)
    return column.to_numpy(zero_copy_only=False)


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(f"{path.parents[1]} is no LeRobot dataset: it has no {INFO}.") from None
    except (OSError, ValueError) as error:
        raise Damaged(path, f"it cannot be read as JSON ({error}).") from error
    if not isinstance(content, dict):
        raise Damaged(path, "expected a JSON object.")
    return content


def _json_lines(path: Path, **kinds: type) -> list[dict[str, Any]]:
    if not path.is_file():
        raise Damaged(path, "there is no such file.")
    rows = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        try:
            rows.append(json.loads(line))
            facts_of(rows[-1], path, **kinds)
        except (ValueError, TypeError, AttributeError) as error:
            raise Damaged(path, f"it cannot be read as JSON ({error}).", row=number) from error
    return rows
