"""LeRobot's format: what is written is what is read, by us and by LeRobot itself, and nothing damaged is taken."""

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.verbs.support import done, random_demonstration, told, write_store
from vla_razor import recordings
from vla_razor.data.lerobot_writer import Writer
from vla_razor.rollouts import demonstrations
from vla_razor.rollouts.demonstrations import Demonstration

pytest.importorskip("av", reason="no PyAV here: pip install 'vla-razor[lerobot]'")

PYTHON = "VLA_RAZOR_LEROBOT_PYTHON"
LENGTHS = (8, 5, 3, 9)


def episodes(disturbed: bool = False) -> list[Demonstration]:
    """Of two instructions, with smooth pictures, as a film keeps them."""
    found = []
    for seed, length in enumerate(LENGTHS):
        ramp = np.linspace(0, 200, 64)[None, :, None] + np.linspace(0, 20, 64)[:, None, None]
        images = np.stack([ramp * [1.0, 0.5, 0.2] + 10 * t + seed for t in range(length)]).round().astype(np.uint8)
        episode = replace(random_demonstration(seed, length), images=images, instruction=f"pick can {seed % 2}")
        episode = replace(episode, task=f"pick_can_{seed % 2}")
        found.append(replace(episode, actions=episode.labels + 1) if disturbed else episode)
    return found


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    return exported(tmp_path, episodes())


def exported(folder: Path, given: list[Demonstration], *words: object) -> Path:
    store = write_store(folder / "store", given)
    done("export", "lerobot", store, f"out={folder / 'dataset'}", *words)
    return folder / "dataset"


def imported(folder: Path) -> list[Demonstration]:
    return [episode for shard in demonstrations.read_store(folder) for episode in shard.demonstrations]


@pytest.mark.parametrize("version", ["3.0", "2.1"])
@pytest.mark.parametrize("pictures", ["video", "png"])
def test_a_round_trip_loses_nothing_but_what_the_codec_does(tmp_path: Path, version: str, pictures: str) -> None:
    given = episodes()
    dataset = exported(tmp_path, given, f"version={version}", f"pictures={pictures}")
    done("import", "lerobot", dataset, f"out={tmp_path / 'back'}", "held_out=0")
    found = imported(tmp_path / "back")
    assert len(found) == len(given)
    for one, other in zip(found, given, strict=True):
        for name in ("instruction", "task", "control_hz", "camera"):
            assert getattr(one, name) == getattr(other, name)
        for name in ("proprioception", "actions", "labels", "success"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
        apart = np.abs(one.images.astype(int) - other.images.astype(int))
        assert apart.max() == 0 if pictures == "png" else apart.mean() < 2
    assert recordings.read_facts(tmp_path / "back")["tasks"] == {f"pick_can_{n}": f"pick can {n}" for n in range(2)}


@pytest.mark.parametrize(("version", "pictures"), [("3.0", "video"), ("2.1", "png")])
def test_every_camera_goes_out_and_those_come_in_that_are_named(tmp_path: Path, version: str, pictures: str) -> None:
    given = [replace(episode, further={"wrist": 255 - episode.images[:, :32]}) for episode in episodes()]
    dataset = exported(tmp_path, given, f"version={version}", f"pictures={pictures}")
    stats = "meta/stats.json" if version == "3.0" else "meta/episodes_stats.jsonl"
    assert "observation.images.wrist" in (dataset / stats).read_text()
    words = ("import", "lerobot", dataset, "held_out=0")
    assert "Choose one: camera=KEY." in told(*words, f"out={tmp_path / 'no'}").stderr
    keys = "{hand: observation.images.wrist, front: observation.images.workspace_camera}"
    done(*words, f"out={tmp_path / 'back'}", f"cameras={keys}")
    assert list(recordings.read(tmp_path / "back").cameras) == ["hand", "front"]
    for one, other in zip(imported(tmp_path / "back"), given, strict=True):
        assert (one.camera, list(one.further)) == ("hand", ["front"])
        for found, expected in ((one.images, other.further["wrist"]), (one.further["front"], other.images)):
            apart = np.abs(found.astype(int) - expected.astype(int))
            assert apart.max() == 0 if pictures == "png" else apart.mean() < 3
    both = told(*words, f"out={tmp_path / 'no'}", f"cameras={keys}", "camera=observation.images.wrist")
    assert both.exit_code == 2 and "camera is the only one's key" in both.stderr


def test_files_that_hold_several_episodes_begin_anew_where_they_are_full(tmp_path: Path) -> None:
    given = episodes()
    with Writer(tmp_path / "dataset", data_mb=1e-4, film_mb=1e-4) as writer:
        for episode in given:
            writer.add(episode)
        writer.finish("panda", {"train": 3, "test": 1})
    assert len(list(tmp_path.glob("dataset/data/*/*.parquet"))) > 1
    assert len(list(tmp_path.glob("dataset/videos/*/*/*.mp4"))) > 1
    done("import", "lerobot", tmp_path / "dataset", f"out={tmp_path / 'back'}", "held_out=0")
    for one, other in zip(imported(tmp_path / "back"), given, strict=True):
        np.testing.assert_array_equal(one.labels, other.labels)
        assert np.abs(one.images.astype(int) - other.images.astype(int)).mean() < 2
    splits = json.loads((tmp_path / "dataset/meta/info.json").read_text())["splits"]
    assert splits == {"train": "0:3", "test": "3:4"}


def test_what_an_expert_did_and_what_is_to_be_imitated_are_two_things(tmp_path: Path) -> None:
    rows = pq.read_table(next(exported(tmp_path, episodes(disturbed=True)).glob("data/*/*.parquet")))
    action, executed = (np.stack(rows[name].to_numpy()) for name in ("action", "executed_action"))  # pyright: ignore
    np.testing.assert_array_equal(executed, action + 1)


def test_statistics_are_those_of_the_data(dataset: Path) -> None:
    found = json.loads((dataset / "meta/stats.json").read_text())
    actions = np.concatenate([episode.labels for episode in episodes()]).astype(float)
    for name, expected in (("q01", np.quantile(actions, 0.01, axis=0)), ("std", actions.std(0))):
        np.testing.assert_allclose(found["action"][name], expected, rtol=1e-6)
    picture = found["observation.images.workspace_camera"]
    assert np.shape(picture["mean"]) == (3, 1, 1) and 0 < picture["mean"][0][0][0] < 1


def test_some_episodes_fewer_steps_and_some_that_are_held_out(dataset: Path, tmp_path: Path) -> None:
    words = ("convention={control: delta, rotation: axis_angle, gripper: close_positive}", "every=5")
    done("import", "lerobot", dataset, f"out={tmp_path / 'a'}", "episodes=0:2,3", "held_out=0.3", *words)
    learned, held_out = imported(tmp_path / "a"), imported(tmp_path / "a" / "held_out")
    whole = dict(enumerate(episodes()))
    assert sorted(e.start["episode"] for e in learned + held_out if len(e.success) > 1) == [0, 3]
    dropped = json.loads((tmp_path / "a/summary.json").read_text())
    reasons = dropped["learned"]["dropped"] | dropped["held_out"]["dropped"]
    assert reasons == {"1": "it has 1 control steps, fewer than least_steps=2"}
    for episode in learned + held_out:
        of = whole[episode.start["episode"]]
        assert episode.control_hz == 1 and len(episode.images) == 2
        np.testing.assert_array_equal(episode.proprioception, of.proprioception[::5])
        np.testing.assert_allclose(episode.labels[0, :3], of.labels[:5, :3].sum(0), atol=1e-6)
        assert episode.labels[0, 6] == of.labels[4, 6] and episode.labels[1, 6] == of.labels[-1, 6]


def rewritten(path: Path, change: Callable[[list[dict[str, Any]]], Any]) -> None:
    """A Parquet file with its rows changed in place."""
    table = pq.read_table(path)
    rows = table.to_pylist()
    change(rows)
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema if rows else None), path)


def data(folder: Path) -> Path:
    return folder / "data/chunk-000/file-000.parquet"


def film(folder: Path) -> Path:
    return folder / "videos/observation.images.workspace_camera/chunk-000/file-000.mp4"


def changed_info(folder: Path, **facts: Any) -> None:
    path = folder / "meta/info.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | facts))


def short_film(folder: Path) -> None:
    from vla_razor.data.films import Film

    with Film(film(folder), 5, (64, 64), 18) as short:
        short.add(np.concatenate([episode.images for episode in episodes()])[:20])


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no chunk": (lambda d: data(d).unlink(), "data/chunk-000/file-000.parquet: there is no such file."),
    "no film": (lambda d: film(d).unlink(), "file-000.mp4: there is no such film."),
    "half a chunk": (lambda d: cut(data(d)), "file-000.parquet: it cannot be read as Parquet"),
    "half a film": (lambda d: cut(film(d)), "file-000.mp4, row 0: at 0.0000 s it cannot be decoded"),
    "a short film": (short_film, "file-000.mp4, row 20: at 4.0000 s there is no picture."),
    "a row too few": (
        lambda d: rewritten(data(d), lambda rows: rows.pop(9)),
        "it holds 4 rows of episode 1, the episodes' list says 5.",
    ),
    "rows in disorder": (
        lambda d: rewritten(data(d), lambda rows: rows.insert(3, rows.pop(4))),
        "file-000.parquet, row 3: frame_index is 4, expected 3.",
    ),
    "another fps": (lambda d: changed_info(d, fps=10), "row 1: timestamp is 0.2, expected 0.1 at fps=10."),
    "NaN": (
        lambda d: rewritten(data(d), lambda rows: rows[10]["action"].__setitem__(2, float("nan"))),
        "file-000.parquet, row 10: action holds NaN or infinity.",
    ),
    "an unknown task": (
        lambda d: rewritten(data(d), lambda rows: rows[2].__setitem__("task_index", 7)),
        "row 2: task_index is 7, of 2 tasks.",
    ),
    "v2.0": (lambda d: changed_info(d, codebase_version="v2.0"), "codebase_version v2.0. v2.0 is not read. Convert it"),
    "no info": (lambda d: (d / "meta/info.json").unlink(), "is no LeRobot dataset: it has no meta/info.json."),
    "half an info": (lambda d: cut(d / "meta/info.json"), "info.json: it cannot be read as JSON"),
    "no list of episodes": (lambda d: shutil.rmtree(d / "meta/episodes"), "there is no list of episodes"),
    "fewer episodes": (
        lambda d: changed_info(d, total_episodes=5),
        "total_episodes is 5, but the episodes' list",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_one_message_that_names_file_and_row(dataset: Path, tmp_path: Path, damage: str) -> None:
    harm, says = DAMAGE[damage]
    harm(dataset)
    result = told("import", "lerobot", dataset, f"out={tmp_path / 'back'}", "held_out=0")
    assert result.exit_code == 2 and says in result.stderr, result.stderr
    assert result.stderr.count("\n") == 1 and "Traceback" not in result.stderr


def test_pictures_of_several_sizes_are_named(tmp_path: Path) -> None:
    import io

    from PIL import Image

    dataset = exported(tmp_path, episodes(), "pictures=png")
    buffer = io.BytesIO()
    Image.new("RGB", (32, 64)).save(buffer, format="png")
    cell = {"bytes": buffer.getvalue(), "path": None}
    rewritten(data(dataset), lambda rows: rows[6].__setitem__("observation.images.workspace_camera", cell))
    result = told("import", "lerobot", dataset, f"out={tmp_path / 'back'}", "held_out=0")
    assert result.exit_code == 2 and "row 6: a picture is [64, 32, 3], those before it [64, 64, 3]." in result.stderr


def test_damaged_episodes_are_left_out_where_asked_and_listed(dataset: Path, tmp_path: Path) -> None:
    DAMAGE["NaN"][0](dataset)
    result = done("import", "lerobot", dataset, f"out={tmp_path / 'back'}", "held_out=0", "damaged=drop")
    assert [episode.start["episode"] for episode in imported(tmp_path / "back")] == [0, 2, 3]
    (reason,) = json.loads((tmp_path / "back/summary.json").read_text())["learned"]["dropped"].values()
    assert "row 10: action holds NaN" in reason and "dropped: 1 episodes" in result.stdout


def test_failures_are_no_demonstrations_where_the_dataset_tells_them(dataset: Path, tmp_path: Path) -> None:
    def fail(rows: list[dict[str, Any]]) -> None:
        for row in rows:
            row["next.success"] &= row["episode_index"] != 2

    rewritten(data(dataset), fail)
    done("import", "lerobot", dataset, f"out={tmp_path / 'back'}", "held_out=0", "success=next.success")
    assert [episode.start["episode"] for episode in imported(tmp_path / "back")] == [0, 1, 3]
    assert json.loads((tmp_path / "back/summary.json").read_text())["learned"]["dropped"] == {"2": "it never succeeds"}


def test_episodes_that_no_dataset_could_hold_together_are_refused(tmp_path: Path) -> None:
    one, other, *_ = episodes()
    store = write_store(tmp_path / "store", [one, replace(other, images=other.images[:, :32])])
    result = told("export", "lerobot", store, f"out={tmp_path / 'dataset'}")
    says = "episode 1: its size of pictures is (32, 64, 3), the first one's (64, 64, 3)."
    assert result.exit_code == 2 and says in result.stderr
    assert not (tmp_path / "dataset").exists()


def test_an_export_that_was_killed_between_its_parts_goes_on(dataset: Path, tmp_path: Path) -> None:
    """The data had taken their place, the films had not."""
    killed = tmp_path / "killed"
    (killed / ".aside-abcdefgh" / "videos").mkdir(parents=True)
    shutil.copytree(dataset / "data", killed / "data")
    shutil.copy(dataset / "config.yaml", killed)
    done("resume", killed)
    assert data(killed).read_bytes() == data(dataset).read_bytes() and (killed / "videos").is_dir()
    assert not list(killed.glob(".aside-*"))


def test_what_was_taken_is_kept_and_the_import_goes_on(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vla_razor.data.importing.EPISODES", 1)
    whole = data(dataset).read_bytes()
    DAMAGE["NaN"][0](dataset)
    out = tmp_path / "back"
    result = told("import", "lerobot", dataset, f"out={out}", "held_out=0")
    assert result.exit_code == 2 and "go on with vla-razor resume" in result.stderr
    (kept,) = out.glob("demonstrations/*.h5")
    before = kept.stat().st_mtime_ns
    data(dataset).write_bytes(whole)
    done("resume", out)
    assert kept.stat().st_mtime_ns == before and len(imported(out)) == len(LENGTHS)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("camera=wrist",), "has no camera 'wrist'. It has observation.images.workspace_camera."),
        (("state=qpos",), "has no state 'qpos'. It has action, observation.state"),
        (("episodes=2:9",), "episodes=2:9: the dataset has no episode 4; it has 4."),
        (("every=2",), "every=2 depends on what the actions mean"),
        (("convention={control: delta, rotation: euler, gripper: none}",), "rotation 'euler' is not known"),
        (("held_out=1",), "held_out=1 of 4 episodes leaves none to learn."),
        (("only=[fly]",), "no episode was taken. The first: its instruction is not among `only`"),
    ],
)
def test_what_cannot_be_meant_is_one_message(dataset: Path, tmp_path: Path, words: tuple[str, ...], says: str) -> None:
    result = told("import", "lerobot", dataset, f"out={tmp_path / 'back'}", *words)
    assert result.exit_code == 2 and says in result.stderr, result.stderr


def by_lerobot(script: str, home: Path, *words: object) -> str:
    """What a script prints in an interpreter that has lerobot."""
    python = os.environ.get(PYTHON)
    if not python:
        pytest.skip(f"no lerobot here, which wants an environment of its own: name its interpreter in {PYTHON}")
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    environment |= {"HF_HUB_OFFLINE": "1", "HF_HOME": str(home / "hub")}
    command = [python, str(Path(__file__).with_name(script)), *map(str, words)]
    process = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    return process.stdout


@pytest.mark.slow
def test_what_lerobot_itself_writes_is_read_frame_by_frame(tmp_path: Path) -> None:
    """With its own codec, AV1, and two cameras."""
    given = episodes()
    arrays = {"images": "images", "actions": "labels", "states": "proprioception"}
    content = {f"{n}_{i}": getattr(e, of) for i, e in enumerate(given) for n, of in arrays.items()}
    np.savez(tmp_path / "given.npz", tasks=np.array([e.instruction for e in given]), **content)  # pyright: ignore
    by_lerobot("lerobot_maker.py", tmp_path, tmp_path / "given.npz", tmp_path / "made")
    words = ("import", "lerobot", tmp_path / "made", "held_out=0", f"out={tmp_path / 'back'}")
    result = told(*words)
    assert result.exit_code == 2 and "Choose one: camera=KEY." in result.stderr
    done(*words, "camera=observation.images.front")
    for one, other in zip(imported(tmp_path / "back"), given, strict=True):
        assert (one.instruction, one.control_hz, one.camera) == (other.instruction, 5, "front")
        np.testing.assert_array_equal(one.labels, other.labels)
        np.testing.assert_array_equal(one.proprioception, other.proprioception)
        assert np.abs(one.images.astype(int) - other.images.astype(int)).mean() < 3


@pytest.mark.slow
@pytest.mark.parametrize("pictures", ["video", "png"])
def test_lerobot_itself_reads_it_frame_by_frame(tmp_path: Path, pictures: str) -> None:
    given = episodes()
    dataset = exported(tmp_path, given, f"pictures={pictures}")
    found = json.loads(by_lerobot("lerobot_reader.py", tmp_path, dataset).splitlines()[-1])
    assert (found["fps"], found["episodes"], len(found["frames"])) == (5, len(given), sum(LENGTHS))
    steps = [(number, episode, t) for number, episode in enumerate(given) for t in range(len(episode.success))]
    for frame, (number, episode, t) in zip(found["frames"], steps, strict=True):
        assert (frame["episode"], frame["task"]) == (number, episode.instruction)
        assert frame["timestamp"] == pytest.approx(t / 5, abs=1e-6)
        np.testing.assert_array_equal(np.float32(frame["action"]), episode.labels[t])
        np.testing.assert_array_equal(np.float32(frame["state"]), episode.proprioception[t])
        apart = np.abs(np.array(frame["image"]) - episode.images[t].astype(int))
        assert apart.max() == 0 if pictures == "png" else apart.mean() < 3
