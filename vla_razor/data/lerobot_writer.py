"""LeRobot's dataset format, written: v3.0, or v2.1 for openpi and GR00T, from a store of demonstrations.

What is to be imitated is `action`; what was executed, where an expert disturbed itself, is `executed_action`. A camera
is `observation.images.<name>`, as a film in H.264 or as PNG in the rows, which loses nothing. Statistics are
those of the whole data, quantiles too, which LeRobot's own tools put together from those of each episode.
"""

import io
import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vla_razor.data.films import Film
from vla_razor.errors import UserError
from vla_razor.files import write_json
from vla_razor.rollouts.demonstrations import Demonstration

CAMERAS = "observation.images."
CHUNK = 1000
QUANTILES = {"q01": 0.01, "q10": 0.1, "q50": 0.5, "q90": 0.9, "q99": 0.99}
SAMPLED, THINNED = 20, 32
"""Image statistics are of so many pictures of an episode at most, and of about so many rows and columns of each."""
V3_DATA = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
V3_FILM = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
V21_DATA = "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet"
V21_FILM = "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4"


@dataclass
class Writer:
    """Adds episodes one by one to a dataset in an empty folder; use it as a context manager, then `finish` it.

    Attributes:
        version: which layout.
        disturbed: whether what was executed is not always what is to be imitated.
        pictures: how a camera's are kept: "video" at x264's `quality`, or "png".
        data_mb, film_mb: size beyond which v3.0 begins another file.
    """

    folder: Path
    version: Literal["3.0", "2.1"] = "3.0"
    disturbed: bool = False
    pictures: Literal["video", "png"] = "video"
    quality: int = 18
    data_mb: float = 100
    film_mb: float = 200
    tasks: dict[str, int] = field(default_factory=dict)
    frames: int = 0
    first: Demonstration | None = None

    def __post_init__(self) -> None:
        self._episodes: list[dict[str, Any]] = []
        self._measured: list[dict[str, np.ndarray]] = []
        self._colours: list[dict[str, np.ndarray]] = []
        self._tables: list[pa.Table] = []
        self._data_file = self._film_file = 0
        self._films: dict[str, Film] = {}
        self._open = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._open.close()

    def add(self, episode: Demonstration) -> None:
        """One more episode. Raises `UserError` where it is not of the first one's cameras, rate and sizes."""
        self.first = self.first or episode
        kind, first = _kind(episode), _kind(self.first)
        for what in kind:
            if kind[what] != first[what]:
                raise UserError(
                    f"episode {len(self._episodes)}: its {what} is {kind[what]}, the first one's {first[what]}."
                )
        index, length = len(self._episodes), len(episode.success)
        self.tasks.setdefault(episode.instruction, len(self.tasks))
        row = {"episode_index": index, "tasks": [episode.instruction], "length": length}
        numbers = self._numbers(episode)
        columns = {name: _column(values) for name, values in numbers.items()}
        images = {_key(camera): pictures for camera, pictures in episode.pictures.items()}
        if self.pictures == "png":
            for key, pictures in images.items():
                columns[key] = pa.array([{"bytes": _png(image), "path": None} for image in pictures])
        place = self._add_films(images, episode.control_hz, index) if self.pictures == "video" else {}
        place |= self._add_rows(pa.table(columns), index)
        if self.version == "3.0":
            bounds = {"dataset_from_index": self.frames, "dataset_to_index": self.frames + length}
            row |= {**place, **bounds, "meta/episodes/chunk_index": 0, "meta/episodes/file_index": 0}
        self._episodes.append(row)
        self._measured.append(numbers)
        chosen = np.unique(np.linspace(0, length - 1, SAMPLED).round().astype(int))
        self._colours.append({key: _colours(pictures[chosen]) for key, pictures in images.items()})
        self.frames += length

    def finish(self, robot: str, splits: Mapping[str, int]) -> None:
        """Writes what is about all episodes. `splits` are their numbers, in the order in which they were added."""
        self._close_rows()
        self._open.close()
        meta, names = self.folder / "meta", [task for task, _ in sorted(self.tasks.items(), key=lambda task: task[1])]
        bounds = np.cumsum([0, *splits.values()]).tolist()
        parts = {name: f"{low}:{high}" for name, low, high in zip(splits, bounds[:-1], bounds[1:], strict=True)}
        write_json(meta / "info.json", self._info(robot, parts))
        if self.version == "3.0":
            write_json(meta / "stats.json", self._statistics(slice(None)))
            _write_tasks(meta / "tasks.parquet", names)
            path = meta / "episodes" / "chunk-000" / "file-000.parquet"
            path.parent.mkdir(parents=True)
            pq.write_table(pa.Table.from_pylist(self._episodes), path)
            return
        each = [self._statistics(slice(index, index + 1)) for index in range(len(self._episodes))]
        _write_lines(meta / "tasks.jsonl", [{"task_index": place, "task": task} for place, task in enumerate(names)])
        _write_lines(meta / "episodes.jsonl", self._episodes)
        stats = [{"episode_index": index, "stats": found} for index, found in enumerate(each)]
        _write_lines(meta / "episodes_stats.jsonl", stats)

    def _numbers(self, episode: Demonstration) -> dict[str, np.ndarray]:
        """The columns [T, ...] of an episode, pictures apart."""
        length, index = len(episode.success), len(self._episodes)
        found = {"action": episode.labels}
        if episode.proprioception.shape[1]:
            found["observation.state"] = episode.proprioception
        if self.disturbed:
            found["executed_action"] = episode.actions
        steps = np.arange(length)
        return found | {
            "next.success": episode.success,
            "timestamp": (steps / episode.control_hz).astype(np.float32),
            "frame_index": steps,
            "episode_index": np.full(length, index),
            "index": self.frames + steps,
            "task_index": np.full(length, self.tasks[episode.instruction]),
        }

    def _add_rows(self, table: pa.Table, index: int) -> dict[str, int]:
        if self.version == "2.1":
            path = self.folder / V21_DATA.format(episode_chunk=index // CHUNK, episode_index=index)
            path.parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(table, path)
            return {}
        if sum(each.nbytes for each in self._tables) > self.data_mb * 2**20:
            self._close_rows()
            self._data_file += 1
        self._tables.append(table)
        return {f"data/{name}": value for name, value in _numbered(self._data_file).items()}

    def _close_rows(self) -> None:
        if self._tables:
            path = self.folder / V3_DATA.format(**_numbered(self._data_file))
            path.parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(pa.concat_tables(self._tables), path)
            self._tables.clear()

    def _add_films(self, images: Mapping[str, np.ndarray], fps: int, index: int) -> dict[str, Any]:
        if self.version == "2.1":
            for key, pictures in images.items():
                path = V21_FILM.format(episode_chunk=index // CHUNK, video_key=key, episode_index=index)
                with self._new_film(path, pictures, fps) as film:
                    film.add(pictures)
            return {}
        if any(film.size > self.film_mb * 2**20 for film in self._films.values()):
            self._open.close()
            self._films, self._film_file = {}, self._film_file + 1
        where, place = _numbered(self._film_file), {}
        for key, pictures in images.items():
            if key not in self._films:
                film = self._new_film(V3_FILM.format(video_key=key, **where), pictures, fps)
                self._films[key] = self._open.enter_context(film)
            begin = self._films[key].add(pictures)
            facts = {**where, "from_timestamp": begin, "to_timestamp": begin + len(pictures) / fps}
            place |= {f"videos/{key}/{name}": value for name, value in facts.items()}
        return place

    def _new_film(self, path: str, pictures: np.ndarray, fps: int) -> Film:
        height, width = pictures.shape[1:3]
        return Film(self.folder / path, fps, (height, width), self.quality)

    def _info(self, robot: str, splits: Mapping[str, str]) -> dict[str, Any]:
        assert self.first is not None
        v3, films = self.version == "3.0", self.pictures == "video"
        episodes = len(self._episodes)
        counts = {"total_episodes": episodes, "total_frames": self.frames, "total_tasks": len(self.tasks)}
        if v3:
            layout = {"data_files_size_in_mb": self.data_mb, "video_files_size_in_mb": self.film_mb}
        else:
            layout = {
                "total_videos": episodes * films * len(self.first.pictures),
                "total_chunks": -(-episodes // CHUNK),
            }
        return {
            "codebase_version": f"v{self.version}",
            "robot_type": robot,
            **counts,
            "chunks_size": CHUNK,
            **layout,
            "fps": self.first.control_hz,
            "splits": dict(splits),
            "data_path": V3_DATA if v3 else V21_DATA,
            "video_path": (V3_FILM if v3 else V21_FILM) if films else None,
            "features": self._features(self.first),
        }

    def _features(self, episode: Demonstration) -> dict[str, Any]:
        features = {
            _key(camera): self._camera(images, episode.control_hz) for camera, images in episode.pictures.items()
        }
        for name, values in self._measured[0].items():
            kind = "int64" if values.dtype.kind == "i" else str(values.dtype)
            shape = list(values.shape[1:]) or [1]
            names = [f"{name.rpartition('.')[2]}_{axis}" for axis in range(shape[0])] if values.ndim > 1 else None
            features[name] = {"dtype": kind, "shape": shape, "names": names}
        return features

    def _camera(self, images: np.ndarray, fps: int) -> dict[str, Any]:
        height, width = images.shape[1:3]
        camera: dict[str, Any] = {"dtype": "image", "shape": [height, width, 3]}
        camera["names"] = ["height", "width", "channels"]
        if self.pictures == "video":
            facts = {"fps": fps, "height": height, "width": width, "channels": 3, "codec": "h264"}
            facts |= {"pix_fmt": "yuv444p" if height % 2 or width % 2 else "yuv420p", "is_depth_map": False}
            camera |= {"dtype": "video", "info": {**{f"video.{key}": value for key, value in facts.items()}}}
            camera["info"]["has_audio"] = False
        return camera

    def _statistics(self, episodes: slice) -> dict[str, Any]:
        """Of each feature over these episodes; pictures in 0..1, of each colour."""
        found = {}
        for name in self._measured[0]:
            values = np.concatenate([numbers[name] for numbers in self._measured[episodes]]).astype(float)
            found[name] = _described(values.reshape(len(values), -1), quantiles=self.version == "3.0")
        for key in self._colours[0]:
            colours = np.concatenate([each[key] for each in self._colours[episodes]]) / 255
            of_images = _described(colours, quantiles=self.version == "3.0")
            count = of_images.pop("count")
            found[key] = {name: [[[value]] for value in values] for name, values in of_images.items()}
            found[key]["count"] = count
        return found


def _key(camera: str) -> str:
    return CAMERAS + camera.removeprefix(CAMERAS)


def _colours(pictures: np.ndarray) -> np.ndarray:
    """Of some of the pixels [N, 3] of pictures, of about as many rows and columns."""
    apart = max(1, min(pictures.shape[1:3]) // THINNED)
    return pictures[:, ::apart, ::apart].reshape(-1, 3)


def _kind(episode: Demonstration) -> dict[str, Any]:
    """What all episodes of a dataset share."""
    return {
        "camera": ", ".join(episode.pictures),
        "control_hz": episode.control_hz,
        "size of pictures": ", ".join(str(images.shape[1:]) for images in episode.pictures.values()),
        "length of actions": episode.labels.shape[1],
        "length of proprioception": episode.proprioception.shape[1],
    }


def _described(values: np.ndarray, *, quantiles: bool) -> dict[str, list[Any]]:
    """Of values [N, D], each dimension's. `std` is the population's."""
    found = {"min": values.min(0), "max": values.max(0), "mean": values.mean(0), "std": values.std(0)}
    if quantiles:
        found |= dict(zip(QUANTILES, np.quantile(values, list(QUANTILES.values()), axis=0), strict=True))
    return {name: column.tolist() for name, column in found.items()} | {"count": [len(values)]}


def _column(values: np.ndarray) -> pa.Array:
    """A column of numbers, or of lists of a fixed length."""
    if values.ndim == 1:
        return pa.array(values)
    flat = pa.array(np.ascontiguousarray(values).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, values.shape[1])


def _numbered(file: int) -> dict[str, int]:
    return {"chunk_index": file // CHUNK, "file_index": file % CHUNK}


def _png(image: np.ndarray) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="png")
    return buffer.getvalue()


def _write_tasks(path: Path, names: Sequence[str]) -> None:
    """With the task as the table's index, as pandas writes it: LeRobot looks tasks up by it."""
    table = pa.table({"task_index": pa.array(range(len(names)), pa.int64()), "task": pa.array(names, pa.string())})
    column = {"field_name": "task", "name": "task", "pandas_type": "unicode", "numpy_type": "object", "metadata": None}
    number = column | {"field_name": "task_index", "name": "task_index", "pandas_type": "int64", "numpy_type": "int64"}
    level = {"name": None, "field_name": None, "pandas_type": "unicode", "numpy_type": "object", "metadata": None}
    about = {"index_columns": ["task"], "column_indexes": [level], "columns": [number, column]}
    about |= {"creator": {"library": "pyarrow", "version": pa.__version__}, "pandas_version": "2.2.0"}
    pq.write_table(table.replace_schema_metadata({"pandas": json.dumps(about)}), path)


def _write_lines(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
