"""The demonstration store: what goes in comes out, and nothing damaged or foreign is taken for a demonstration."""

import dataclasses
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import h5py
import numpy as np
import pytest

from vla_razor.errors import UserError
from vla_razor.policies import Observations
from vla_razor.rollouts import demonstrations
from vla_razor.rollouts.demonstrations import FOLDER, Demonstration, Shard, demonstration, load, read, read_store, write
from vla_razor.rollouts.rollout import Episode
from vla_razor.rollouts.starts import Start

CAMERAS = ("workspace_camera",)
ENV = {
    "name": "pick_can",
    "tasks": ["pick_can"],
    "cameras": ["workspace_camera", "wrist_camera"],
    "make": {"robot": "panda", "image_size": [8, 6]},
}


def episode(
    seed: int, length: int = 3, size: tuple[int, int] = (8, 6), labelled: bool = True, cameras: Sequence[str] = CAMERAS
) -> Episode:
    draw = np.random.default_rng(seed)
    actions = draw.normal(size=(length, 7)).astype(np.float32)
    return Episode(
        start=Start("pick_can", {"object_xy": (0.5, 0.25)}, seed, 3),
        instruction="pick coke can",
        observations=Observations(
            {camera: draw.integers(0, 256, (length, *size, 3), dtype=np.uint8) for camera in cameras},
            ["pick coke can"] * length,
            draw.normal(size=(length, 8)).astype(np.float32),
        ),
        actions=actions,
        tokens=None,
        log_probs=None,
        labels=actions + 1 if labelled else None,
        success=np.arange(length) == length - 1,
    )


def stored(seed: int, **changes: Any) -> Demonstration:
    return demonstration(episode(seed, **changes), control_hz=5, policy="scripted")


def store(folder: Path, *files: list[Demonstration], robot: str = "panda") -> Path:
    for index, episodes in enumerate(files):
        points = [{"grid_point": index, "attempts": 4, "successes": len(episodes)}]
        write(folder / FOLDER / f"row_{index:04d}.h5", Shard(robot, index, len(files), points, episodes))
    return folder


def row(folder: Path, index: int = 0) -> Path:
    return folder / FOLDER / f"row_{index:04d}.h5"


def test_what_is_written_is_read(tmp_path: Path) -> None:
    folder = store(tmp_path, [stored(1), stored(2, length=5)], [stored(3, labelled=False)])
    shards = read_store(folder)
    assert [(shard.robot, shard.shard, shard.shards) for shard in shards] == [("panda", 0, 2), ("panda", 1, 2)]
    assert shards[0].points == [{"grid_point": 0, "attempts": 4, "successes": 2}]
    for found, given in zip(shards[0].demonstrations, (stored(1), stored(2, length=5)), strict=True):
        for name, value in dataclasses.asdict(given).items():
            expected = {"object_xy": [0.5, 0.25]} if name == "start" else value
            np.testing.assert_array_equal(getattr(found, name), expected)
    unlabelled = shards[1].demonstrations[0]
    np.testing.assert_array_equal(unlabelled.labels, unlabelled.actions)


def test_the_file_is_what_the_interface_says(tmp_path: Path) -> None:
    with h5py.File(row(store(tmp_path, [stored(1)]))) as file:
        assert {"schema", "robot", "checksum"} <= set(file.attrs)
        group: Any = file["episode_00000"]
        assert group["images"].compression == "gzip"
        assert group["images"].dtype == np.uint8
        assert group["actions"].shape == (3, 7)
        assert {"instruction", "task", "start", "seed", "control_hz", "camera", "policy"} == set(group.attrs)
        assert group.attrs["start"] == '{"object_xy": [0.5, 0.25]}'


def test_the_same_episodes_give_the_same_bytes(tmp_path: Path) -> None:
    first, second = (store(tmp_path / name, [stored(1), stored(2)]) for name in "ab")
    assert row(first).read_bytes() == row(second).read_bytes()


def test_loading_gives_all_steps_end_to_end_with_what_to_imitate(tmp_path: Path) -> None:
    loaded = load(store(tmp_path, [stored(1), stored(2, length=5)], [], [stored(3)]), ENV)
    assert loaded.images.shape == (11, 8, 6, 3)
    assert loaded.proprioception.shape == (11, 8)
    assert loaded.episode.tolist() == [0] * 3 + [1] * 5 + [2] * 3
    assert loaded.instructions == ["pick coke can"] * 11
    np.testing.assert_array_equal(loaded.actions[3:8], stored(2, length=5).labels)


def test_every_camera_is_kept_and_a_policy_learns_from_those_that_it_reads(tmp_path: Path) -> None:
    given = stored(1, cameras=["workspace_camera", "wrist_camera"])
    folder = store(tmp_path, [given])
    with h5py.File(row(folder)) as file:
        group: Any = file["episode_00000"]
        assert group["images_wrist_camera"].compression == "gzip" and group.attrs["camera"] == "workspace_camera"
        np.testing.assert_array_equal(group["images_wrist_camera"], given.further["wrist_camera"])
    (shard,) = read_store(folder, demonstrations.without_images)
    (bare,) = shard.demonstrations
    assert [len(images) for images in bare.pictures.values()] == [0, 0]
    again = demonstrations.with_images(folder, 0, 0, bare)
    dark = SimpleNamespace(name="dark", cameras=2, seen=lambda images: images // 2)
    hand = SimpleNamespace(name="hand", cameras=["wrist_camera"])
    for policy, expected in (
        (None, {"workspace_camera": given.images}),
        (hand, {"wrist_camera": given.further["wrist_camera"]}),
        (dark, {camera: images // 2 for camera, images in given.pictures.items()}),
    ):
        found = load(folder, ENV, policy).observations.images
        assert list(found) == list(expected)
        for camera, images in found.items():
            np.testing.assert_array_equal(images, expected[camera])
    for camera, images in again.pictures.items():
        np.testing.assert_array_equal(images, given.pictures[camera])
    with pytest.raises(UserError, match=r"expected camera wrist_camera, found workspace_camera\. .*cameras=\[wrist"):
        load(store(tmp_path / "one", [stored(1)]), ENV, hand)
    with pytest.raises(UserError, match="the policy side reads the camera side; it could be shown workspace_camera"):
        load(folder, ENV, SimpleNamespace(name="side", cameras=["side"]))


def edit(change: Callable[[Any, Any], None]) -> Callable[[Path], None]:
    """An edit of the first episode's group that leaves the checksum as it was."""

    def damage(path: Path) -> None:
        with h5py.File(path, "r+") as file:
            change(file, file["episode_00000"])

    return damage


def replace(name: str, values: np.ndarray) -> Callable[[Path], None]:
    def change(_: Any, group: Any) -> None:
        del group[name]
        group[name] = values

    return edit(change)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def overwrite(path: Path) -> None:
    path.write_bytes(b"no HDF5 at all")


def flip_a_pixel(_: Any, group: Any) -> None:
    group["images"][1, 2, 3, 0] += 1


def set_attribute(name: str, value: Any, root: bool = False) -> Callable[[Path], None]:
    return edit(lambda file, group: (file if root else group).attrs.__setitem__(name, value))


NAN = np.full((3, 7), np.nan, np.float32)


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (truncate, "not a whole HDF5 file"),
        (overwrite, "not a whole HDF5 file"),
        (edit(flip_a_pixel), "/: expected checksum"),
        (set_attribute("instruction", "drop the can"), "/: expected checksum"),
        (set_attribute("schema", 2, root=True), "/: expected schema 1, found 2"),
        (set_attribute("robot", 7, root=True), r"/: expected attribute robot \(str\), found 7"),
        (edit(lambda _, group: group.attrs.__delitem__("camera")), r"/episode_00000: .* camera \(str\), found None"),
        (edit(lambda _, group: group.__delitem__("actions")), "/episode_00000: expected the datasets"),
        (
            replace("actions", np.zeros((2, 7), np.float32)),
            r"/episode_00000/actions: .*\[3, any\], found float32 \[2, 7\]",
        ),
        (replace("actions", np.zeros((3, 7))), r"/actions: expected float32 \[3, any\], found float64"),
        (replace("images", np.zeros((3, 8, 6), np.uint8)), r"/images: expected uint8 \[3, any, any, 3\]"),
        (replace("labels", NAN), "/labels: expected finite numbers, found NaN"),
        (replace("success", np.zeros(3, bool)), "/success: expected a success, found none"),
        (replace("success", np.zeros(0, bool)), "expected at least one step"),
    ],
)
def test_a_damaged_file_is_refused_with_file_place_and_remedy(
    tmp_path: Path, damage: Callable[[Path], None], complaint: str
) -> None:
    folder = store(tmp_path, [stored(1), stored(2)])
    damage(row(folder))
    with pytest.raises(UserError, match=complaint) as caught:
        load(folder, ENV)
    assert str(row(folder)) in str(caught.value)
    assert "collect the demonstrations again" in str(caught.value)


def test_a_store_must_be_there_and_whole(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no demonstrations"):
        load(tmp_path / "nowhere", ENV)
    folder = store(tmp_path / "whole", [stored(1)], [stored(2)])
    row(folder, 1).unlink()
    with pytest.raises(UserError, match=r"expected 2 files, found 1\. .*vla-razor resume"):
        load(folder, ENV)
    foreign = store(tmp_path / "foreign", [stored(1)], [stored(2)], robot="google_robot")
    shutil.copy(row(foreign, 1), row(folder, 1))
    with pytest.raises(UserError, match="expected robot panda, found google_robot"):
        load(folder, ENV)
    with pytest.raises(UserError, match="no attempt succeeded"):
        load(store(tmp_path / "empty", []), ENV)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"tasks": ["open_top_drawer"], "name": "open_top_drawer"}, "task open_top_drawer, found pick_can"),
        ({"cameras": ["wrist_camera"]}, "camera wrist_camera, found workspace_camera"),
        ({"make": {"robot": "panda", "image_size": [8, 8]}}, r"image size \(8, 8\), found \(8, 6\)"),
        ({"make": {"robot": "google_robot", "image_size": [8, 6]}}, "robot google_robot, found panda"),
    ],
)
def test_demonstrations_of_something_else_are_refused(tmp_path: Path, changes: dict[str, Any], complaint: str) -> None:
    folder = store(tmp_path, [stored(1)])
    with pytest.raises(UserError, match=complaint) as caught:
        load(folder, {**ENV, **changes})
    assert "Collect demonstrations with env=" in str(caught.value)


def test_those_of_the_first_embedded_tasks_say_what_changed(tmp_path: Path) -> None:
    folder = store(tmp_path, [stored(1, cameras=["overhead_camera"])])
    with pytest.raises(UserError, match=r"Since vla_razor/PickCan-v2 .* another camera.* collect demonstrations anew"):
        load(folder, ENV)


def test_an_interrupted_write_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise OSError("No space left on device")

    path = row(tmp_path)
    write(path, Shard("panda", 0, 1, [], [stored(1)]))
    monkeypatch.setattr(demonstrations, "atomic_write", fail)
    with pytest.raises(OSError, match="No space left"):
        write(path, Shard("panda", 0, 1, [], [stored(2)]))
    assert read(path).demonstrations[0].seed == 1
