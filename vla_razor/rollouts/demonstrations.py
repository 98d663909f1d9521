"""The demonstration store: successful episodes in HDF5 files, one a row of the grid, each written whole or not at all.

A file has root attributes `schema, robot, checksum`, its place among the files (`shard` of `shards`) and `points`
(json: what was attempted at each grid point), and a group an episode: `images` uint8 [T, H, W, 3] (gzip) of the
`camera`, and `images_NAME`, alike, of each further one; `proprioception` [T, P], `actions` [T, 7] as executed, in
environment units, `labels` [T, 7] to imitate (they differ where an expert disturbed itself), `success` [T]; attributes
`instruction, task, start` (json), `seed, control_hz, camera, policy`.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from vla_razor.config import cameras_in, robot_in
from vla_razor.errors import UserError
from vla_razor.files import atomic_write
from vla_razor.policies import Observations
from vla_razor.policies.observations import cameras_of, check_proprioception
from vla_razor.progress import progress
from vla_razor.rollouts.rollout import Episode

SCHEMA = 1
FOLDER = "demonstrations"
REMEDY = "Restore the file from a copy, or collect the demonstrations again into another folder."

# name -> dtype and shape; T is the episode's length, None any size
ARRAYS: dict[str, tuple[type, tuple[str | int | None, ...]]] = {
    "images": (np.uint8, ("T", None, None, 3)),
    "proprioception": (np.float32, ("T", None)),
    "actions": (np.float32, ("T", None)),
    "labels": (np.float32, ("T", None)),
    "success": (np.bool_, ("T",)),
}
IMAGES, FURTHER = ARRAYS["images"], "images_"
"""What every camera's images are, and how the name of a further one's begins."""
FACTS = {"schema": int, "robot": str, "checksum": str, "shard": int, "shards": int, "points": str}
FIRST_CAMERA = "overhead_camera"
"""Of the embedded tasks in their first version."""
EPISODE_FACTS = {
    "instruction": str,
    "task": str,
    "start": str,
    "seed": int,
    "control_hz": int,
    "camera": str,
    "policy": str,
}


@dataclass(frozen=True)
class Demonstration:
    """One successful episode, as stored; see the module's text for shapes and units. `further` are the images of
    further cameras than `camera`, by their names.
    """

    instruction: str
    task: str
    start: dict[str, Any]
    seed: int
    control_hz: int
    camera: str
    policy: str
    images: np.ndarray
    proprioception: np.ndarray
    actions: np.ndarray
    labels: np.ndarray
    success: np.ndarray
    further: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def pictures(self) -> dict[str, np.ndarray]:
        """The images of each camera."""
        return {self.camera: self.images, **self.further}

    @property
    def observations(self) -> Observations:
        """Those before each control step."""
        return Observations(self.pictures, [self.instruction] * len(self.success), self.proprioception)

    def showing(self, pictures: Mapping[str, np.ndarray]) -> Demonstration:
        """The same episode with other pictures."""
        (camera, images), *further = pictures.items()
        return replace(self, camera=camera, images=images, further=dict(further))


@dataclass(frozen=True)
class Shard:
    """One file: its place among all, what was attempted at its grid points, and its episodes."""

    robot: str
    shard: int
    shards: int
    points: list[dict[str, Any]]
    demonstrations: list[Demonstration]


@dataclass(frozen=True)
class Demonstrations:
    """All `N` control steps of a store end to end, ready to train on.

    `observations` [N], `actions` float32 [N, 7] to imitate (environment units), and the `episode` [N] that each step
    belongs to.
    """

    observations: Observations
    actions: np.ndarray
    episode: np.ndarray

    @property
    def images(self) -> np.ndarray:
        """The first camera's, uint8 [N, H, W, 3]."""
        return self.observations.image()

    @property
    def proprioception(self) -> np.ndarray:
        """Float32 [N, P]."""
        assert self.observations.proprioception is not None  # no store is without it
        return self.observations.proprioception

    @property
    def instructions(self) -> list[str]:
        """That of each step."""
        return self.observations.instructions

    @classmethod
    def read(cls, folder: str | Path) -> Demonstrations:
        """What `vla-razor collect` wrote to a folder. Raises UserError where it is damaged or holds no episode.

        >>> Demonstrations.read("nowhere")
        Traceback (most recent call last):
        vla_razor.errors.UserError: nowhere holds no demonstrations: expected demonstrations/*.h5, as vla-razor ...
        """
        episodes = [demonstration for shard in read_store(folder) for demonstration in shard.demonstrations]
        return cls.joined(episodes, Path(folder))

    @classmethod
    def joined(cls, episodes: Sequence[Demonstration], folder: Path) -> Demonstrations:
        """The steps of episodes end to end. Raises UserError with the name of `folder` where there are none."""
        if not episodes:
            raise UserError(
                f"{folder}: no attempt succeeded, so there is nothing to learn. Collect with a better policy."
            )
        return cls(
            observations=Observations.joined([episode.observations for episode in episodes]),
            actions=np.concatenate([episode.labels for episode in episodes]),
            episode=np.repeat(np.arange(len(episodes)), [len(episode.success) for episode in episodes]),
        )

    def followed_by(self, other: Demonstrations) -> Demonstrations:
        """These steps, then those of `other`, whose arrays must have the same shapes."""
        return Demonstrations(
            observations=Observations.joined([self.observations, other.observations]),
            actions=np.concatenate([self.actions, other.actions]),
            episode=np.concatenate([self.episode, self.episode[-1] + 1 + other.episode]),
        )


def write(path: Path, shard: Shard) -> None:
    """Writes a shard aside, flushes and renames it. The same content gives the same bytes."""
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        facts = {"robot": shard.robot, "shard": shard.shard, "shards": shard.shards, "points": json.dumps(shard.points)}
        file.attrs.update({"schema": SCHEMA, **facts})
        for index, demonstration in enumerate(shard.demonstrations):
            _write_episode(file.create_group(_group(index)), demonstration)
        file.attrs["checksum"] = _checksum(file)
    atomic_write(path, buffer.getvalue())


def demonstration(episode: Episode, *, control_hz: int, policy: str) -> Demonstration:
    """What is stored of a rollout's episode: the pictures of all the cameras that were shown."""
    (camera, images), *further = episode.observations.images.items()
    return Demonstration(
        instruction=episode.instruction,
        task=episode.start.task,
        start=dict(episode.start.options),
        seed=episode.start.seed,
        control_hz=control_hz,
        camera=camera,
        policy=policy,
        images=images,
        further=dict(further),
        proprioception=episode.proprioception,
        actions=episode.actions,
        labels=episode.actions if episode.labels is None else episode.labels,
        success=episode.success,
    )


def read(path: Path, remedy: str = REMEDY) -> Shard:
    """Reads one file and checks everything in it.

    Raises UserError that names the file and group, what was expected, what was found, and what to do.
    """
    try:
        with h5py.File(path) as file:
            return _read_file(path, file)
    except UserError as error:
        raise UserError(str(error).replace(REMEDY, remedy)) from error
    except Exception as error:  # h5py, numpy and json have many words for a file that is cut or overwritten
        raise UserError(f"{path}: not a whole HDF5 file ({error}). {remedy}") from error


def without_images(shard: Shard) -> Shard:
    """A shard without its images, which are nearly all of it."""

    def bare(episode: Demonstration) -> Demonstration:
        return episode.showing({camera: images[:0].copy() for camera, images in episode.pictures.items()})

    return replace(shard, demonstrations=[bare(episode) for episode in shard.demonstrations])


def read_store(folder: str | Path, keep: Callable[[Shard], Shard] = lambda shard: shard) -> list[Shard]:
    """Every file of a store, in order; `folder` is what `vla-razor collect` wrote. Raises UserError as `read` does.

    Only what `keep` makes of a file stays in memory, which may be too small for all images of a store.
    """
    folder = Path(folder)
    paths = _files(folder)
    if not paths:
        raise UserError(f"{folder} holds no demonstrations: expected {FOLDER}/*.h5, as vla-razor collect writes them.")
    shards = []
    with progress(f"read {folder.name}", len(paths)) as advance:
        for path in paths:
            shards.append(keep(read(path)))
            advance()
    for path, shard in zip(paths, shards, strict=True):
        _expect(path, "/", f"robot {shards[0].robot}", shard.robot == shards[0].robot, shard.robot)
    if [shard.shard for shard in shards] != list(range(shards[0].shards)):
        raise UserError(
            f"{folder / FOLDER}: expected {shards[0].shards} files, found {len(shards)}. "
            f"An interrupted collection goes on with: vla-razor resume {folder}"
        )
    return shards


def with_images(folder: Path, shard: int, index: int, episode: Demonstration) -> Demonstration:
    """An episode of a store that has been read without its images, with them."""
    with h5py.File(_files(folder)[shard]) as file:
        group: Any = file[_group(index)]
        names = ["images", *(FURTHER + camera for camera in episode.further)]
        read = {camera: np.asarray(group[name]) for camera, name in zip(episode.pictures, names, strict=True)}
    return episode.showing(read)


def load(folder: str | Path, env_config: Mapping[str, Any], policy: Any = None) -> Demonstrations:
    """The demonstrations in `folder`, which must be of the tasks, robot, cameras and image size of `env_config`; the
    images those of the cameras that the `policy` reads which is to learn from them, as it looks at them (`seen`): of
    the first as it is, where there is none.

    Raises UserError where they are not, where a file is damaged or missing, or where there is no episode.
    """
    folder, look = Path(folder), getattr(policy, "seen", lambda images: images)
    cameras = cameras_of(policy, cameras_in(env_config))

    def checked(shard: Shard) -> Shard:
        _expect_made_in(folder, env_config, cameras, shard)
        kept = [one.showing({camera: look(one.pictures[camera]) for camera in cameras}) for one in shard.demonstrations]
        return replace(shard, demonstrations=kept)

    episodes = [demonstration for shard in read_store(folder, checked) for demonstration in shard.demonstrations]
    found = Demonstrations.joined(episodes, folder)
    check_proprioception(policy, found.proprioception, str(folder))
    return found


def _files(folder: Path) -> list[Path]:
    return sorted((folder / FOLDER).glob("*.h5"))


def _group(index: int) -> str:
    return f"episode_{index:05d}"


def _expect_made_in(folder: Path, env_config: Mapping[str, Any], cameras: Sequence[str], shard: Shard) -> None:
    found = {
        "robot": {shard.robot},
        "task": {demonstration.task for demonstration in shard.demonstrations},
        "image size": {demonstration.images.shape[1:3] for demonstration in shard.demonstrations},
    }
    parts = (
        [env_config] if "make" in env_config else [part for part in env_config.values() if isinstance(part, Mapping)]
    )
    sizes = [size for part in parts if (size := part["make"]["image_size"])]
    wanted = {
        "robot": sorted({robot_in(part["make"]) for part in parts}),
        "task": [task for part in parts for task in part["tasks"]],
        "image size": sorted({tuple(size) for size in sizes}) or list(found["image size"]),
    }
    remedy = f"Collect demonstrations with env={env_config['name']}, or train with the env that these are of."
    shown = {tuple(demonstration.pictures) for demonstration in shard.demonstrations}
    if (shard.robot, shown) == ("panda", {(FIRST_CAMERA,)}):
        remedy = "Since vla_razor/PickCan-v2 the embedded tasks are seen by another camera, and a lifted can is held: "
        remedy += "collect demonstrations anew."
    for what, allowed in wanted.items():
        for value in sorted(found[what]):
            _expect(folder, "/", f"{what} {' | '.join(map(str, allowed))}", value in allowed, value, remedy)
    for camera in cameras:
        if camera != cameras_in(env_config)[0]:
            remedy = f"The policy looks through it: collect demonstrations with cameras=[{camera}]."
        for names in sorted(shown):
            _expect(folder, "/", f"camera {camera}", camera in names, ", ".join(names), remedy)


def _write_episode(group: h5py.Group, demonstration: Demonstration) -> None:
    for name in EPISODE_FACTS:
        value = getattr(demonstration, name)
        group.attrs[name] = json.dumps(value) if name == "start" else value
    arrays = {name: (getattr(demonstration, name), dtype) for name, (dtype, _) in ARRAYS.items()}
    arrays |= {FURTHER + camera: (images, np.uint8) for camera, images in demonstration.further.items()}
    for name, (array, dtype) in arrays.items():
        values = np.ascontiguousarray(array, dtype)
        packing = {"compression": "gzip", "chunks": (1, *values.shape[1:])} if name.startswith("images") else {}
        group.create_dataset(name, data=values, track_times=False, **packing)


def _read_file(path: Path, file: h5py.File) -> Shard:
    schema = file.attrs.get("schema")
    _expect(path, "/", f"schema {SCHEMA}", schema == SCHEMA, schema)
    facts = _read_facts(path, file, FACTS)
    demonstrations = [_read_episode(path, file[name]) for name in sorted(file)]
    _expect(path, "/", f"checksum {facts['checksum']}", facts["checksum"] == (found := _checksum(file)), found)
    return Shard(facts["robot"], facts["shard"], facts["shards"], json.loads(facts["points"]), demonstrations)


def _read_episode(path: Path, group: Any) -> Demonstration:
    where = group.name
    _expect(path, where, "a group of datasets", isinstance(group, h5py.Group), type(group).__name__)
    facts = _read_facts(path, group, EPISODE_FACTS)
    further = [name for name in group if name.startswith(FURTHER)]  # in the order of their names
    found, expected = ", ".join(group), f"the datasets {', '.join(sorted(ARRAYS))}"
    _expect(path, where, expected, set(group) - set(further) == set(ARRAYS), found)
    arrays = {name: np.asarray(group[name]) for name in [*ARRAYS, *further]}
    length = len(arrays["success"]) if arrays["success"].ndim else 0
    _expect(path, where, "at least one step", length > 0, length)
    for name, values in arrays.items():
        dtype, shape = ARRAYS.get(name, IMAGES)
        sizes = [length if size == "T" else size for size in shape]
        fits = values.ndim == len(sizes) and all(size in (None, n) for size, n in zip(sizes, values.shape, strict=True))
        expected = f"{np.dtype(dtype)} [{', '.join('any' if size is None else str(size) for size in sizes)}]"
        found = f"{values.dtype} {list(values.shape)}"
        _expect(path, f"{where}/{name}", expected, fits and values.dtype == dtype, found)
        _expect(path, f"{where}/{name}", "finite numbers", bool(np.isfinite(values).all()), "NaN or infinity")
    _expect(path, f"{where}/success", "a success", bool(arrays["success"].any()), "none")
    pictures = {name.removeprefix(FURTHER): arrays.pop(name) for name in further}
    fields: dict[str, Any] = {**facts, **arrays, "start": json.loads(facts["start"]), "further": pictures}
    return Demonstration(**fields)


def _read_facts(path: Path, group: Any, expected: Mapping[str, type]) -> dict[str, Any]:
    facts = {}
    for name, kind in expected.items():
        value = group.attrs.get(name)
        value = value.item() if isinstance(value, np.generic) else value
        _expect(path, group.name, f"attribute {name} ({kind.__name__})", isinstance(value, kind), value)
        facts[name] = value
    return facts


def _expect(path: Path, where: str, expected: str, holds: bool, found: object, remedy: str = REMEDY) -> None:
    if not holds:
        raise UserError(f"{path}, {where}: expected {expected}, found {found}. {remedy}")


def _checksum(file: h5py.File) -> str:
    """SHA-256 of every attribute (but itself), name, type, shape and number in the file, in order of names."""
    digest = hashlib.sha256()

    def add(name: str, item: Any) -> None:
        attributes = {key: str(value) for key, value in item.attrs.items() if key != "checksum"}
        digest.update(json.dumps([name, attributes], sort_keys=True).encode())
        if isinstance(item, h5py.Dataset):
            values = np.asarray(item)
            digest.update(f"{values.dtype.str} {values.shape}".encode())
            digest.update(np.ascontiguousarray(values).tobytes())

    add("/", file)
    file.visititems(add)
    return digest.hexdigest()
