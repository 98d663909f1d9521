"""`vla-razor collect`: what is kept and counted, on an environment that decides at once, and the real thing, killed."""

import json
import signal
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from omegaconf import DictConfig

from tests.verbs.support import CommandLine
from vla_razor.config import compose
from vla_razor.errors import UserError
from vla_razor.policies import Decisions, Observations
from vla_razor.rollouts.demonstrations import FOLDER, Shard, read_store
from vla_razor.rollouts.environments import VectorEnv, make_vector_env
from vla_razor.rollouts.starts import episode_seed
from vla_razor.runs import Run
from vla_razor.verbs.learn import collect
from vla_razor_envs.pool import PoolVectorEnv

Collect = Callable[..., dict[str, Any]]
FRAGILE = Path(__file__).parents[1] / "envs"


class Mixed:
    """Never succeeds at y < 0, always at y = 0, and at y > 0 where the start's seed is odd."""

    name = "mixed"

    def act(
        self, observations: Observations, generators: Sequence[np.random.Generator], memories: Any = None
    ) -> Decisions:
        actions = np.zeros((len(observations), 7), np.float32)
        for action, instruction, info in zip(actions, observations.instructions, observations.infos, strict=True):
            odd = int(instruction.split()[-1]) % 2
            action[6] = {-1: -1, 0: 1, 1: 2 * odd - 1}[int(np.sign(info["object_xy"][1]))]
        actions[:, 0] = [generator.random() for generator in generators]
        return Decisions(actions[:, None], labels=actions * 2)


def borrowed(monkeypatch: pytest.MonkeyPatch, envs: Any) -> None:
    """Lets `collect` use `envs` and not close them."""
    monkeypatch.setattr(envs, "close", lambda: None)
    monkeypatch.setattr(collect, "make_vector_env", lambda *_: envs)


@pytest.fixture(scope="module")
def counting() -> Iterator[PoolVectorEnv]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(FRAGILE)
        with closing(PoolVectorEnv("fragile:Fragile-v0", 3, num_workers=2)) as envs:
            yield envs


@pytest.fixture
def mixed(monkeypatch: pytest.MonkeyPatch, counting: PoolVectorEnv) -> None:
    borrowed(monkeypatch, counting)
    monkeypatch.setattr(collect, "ScriptedExpert", lambda *_, **__: Mixed())


def settings(**overrides: object) -> DictConfig:
    given = {"grid": "2x3", "per_point": 3, "max_attempts": 4, "logger": "none", **overrides}
    given |= {} if "env" in overrides else {"env.hold": 1}
    return compose("collect", [f"{key}={value}" for key, value in given.items()])


def gathered(out: Path, config: DictConfig) -> dict[str, Any]:
    with Run.create(out, config, "collect") as run:
        collect.run(config, run)
    return json.loads((out / "summary.json").read_text())


@pytest.mark.usefixtures("mixed")
def test_only_successes_are_kept_and_every_attempt_is_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    summary = gathered(tmp_path / "run", settings())
    points = summary["points"]
    assert [point["grid_point"] for point in points] == list(range(6))
    assert [point["start"]["object_xy"][1] for point in points[:3]] == sorted(
        point["start"]["object_xy"][1] for point in points[:3]
    )
    for point in (points[0], points[3]):
        assert (point["attempts"], point["successes"], point["failures"]) == (12, 0, 12)
    for point in (points[1], points[4]):
        assert (point["attempts"], point["successes"], point["failures"]) == (3, 3, 0)
    for point in (points[2], points[5]):
        assert 3 <= point["attempts"] <= 12
        assert point["attempts"] == point["successes"] + point["failures"]
    totals = summary["demonstrations"]
    assert totals["attempts"] == sum(point["attempts"] for point in points)
    assert (totals["points"], totals["covered_points"], totals["lost"]) == (6, 4, 0)

    short = [point for point in points if point["successes"] < 3]
    assert summary["too_few"] == short
    assert {0, 3} <= {point["grid_point"] for point in short}
    printed = " ".join(capsys.readouterr().out.split())
    assert printed.count("too few: ") == len(short)
    assert points[0]["last_failure"] == episode_seed("attempt", 0, 0, 11), "the last of twelve attempts"
    assert f"x = 0.440 m, y = -0.120 m: 0 of 12, last failed seed {points[0]['last_failure']}" in printed
    assert points[1]["last_failure"] is None

    shards = read_store(tmp_path / "run")
    kept = [demonstration for shard in shards for demonstration in shard.demonstrations]
    assert len(kept) == totals["successes"]
    assert all(demonstration.success.tolist() == [True] for demonstration in kept)
    assert {(d.policy, d.control_hz, d.camera) for d in kept} == {("mixed", 5, "workspace_camera")}
    assert len({demonstration.seed for demonstration in kept}) == len(kept), "every attempt has its own start"
    np.testing.assert_array_equal(kept[0].labels, kept[0].actions * 2)
    assert f"{totals['successes']} episodes" in printed


@pytest.mark.usefixtures("mixed")
def test_a_resumed_collection_ends_with_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = settings()
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    gathered(whole, config)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, Run.create(cut, config, "collect") as run:
        write = collect.demonstrations.write
        patch.setattr(
            collect.demonstrations, "write", lambda path, shard: interrupt() if shard.shard else write(path, shard)
        )
        with pytest.raises(KeyboardInterrupt):
            collect.run(config, run)
    assert contents(cut).keys() == {"row_0000.h5"}
    with Run.resume(cut) as run:
        collect.run(run.config, run)
    assert contents(cut) == contents(whole)
    rows = [json.loads(line) for line in (cut / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2]


@pytest.mark.usefixtures("mixed")
def test_a_row_that_is_written_leaves_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write, images = collect.demonstrations.write, []

    def noted(path: Path, shard: Shard) -> None:
        assert not [image for image in images if image() is not None]
        images.extend(weakref.ref(demonstration.images) for demonstration in shard.demonstrations)
        write(path, shard)

    monkeypatch.setattr(collect.demonstrations, "write", noted)
    gathered(tmp_path / "run", settings())
    assert len(images) > 0
    assert not [image for image in images if image() is not None]


@pytest.mark.usefixtures("mixed")
def test_show_summarises_and_pictures_a_store(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gathered(tmp_path / "run", settings())
    before = capsys.readouterr().out
    collect.show(tmp_path / "run")
    assert capsys.readouterr().out.replace("\n", "").count("3/3") == before.count("3/3")
    assert (tmp_path / "run/plots/contact_sheet.png").read_bytes().startswith(b"\x89PNG")
    assert b"ftyp" in (tmp_path / "run/videos/samples.mp4").read_bytes()[:16]
    with pytest.raises(UserError, match="holds no demonstrations"):
        collect.show(tmp_path)


def test_an_instruction_that_the_expert_cannot_follow_is_one_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, counting: PoolVectorEnv
) -> None:
    borrowed(monkeypatch, counting)
    with pytest.raises(UserError, match=r"cannot follow 'count from .*in this style it knows how to pick, open, close"):
        gathered(tmp_path / "run", settings())


@pytest.mark.usefixtures("mixed")
def test_another_camera_and_several_scenes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"env.cameras=\[wrist\]: the camera of this robot is workspace_camera"):
        gathered(tmp_path / "camera", settings(**{"env.cameras": "[wrist]"}))
    with pytest.raises(UserError, match="collect takes one scene"):
        gathered(tmp_path / "all", settings(env="all"))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((folder / FOLDER).iterdir())}


@pytest.fixture(scope="module")
def can() -> Iterator[VectorEnv]:
    with closing(make_vector_env(compose("collect").env, 4, 1, "cpu")) as envs:
        yield envs


@pytest.mark.slow
def test_a_killed_collection_of_the_real_task_goes_on_to_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, can: VectorEnv, vla_razor: CommandLine
) -> None:
    arguments = {"grid": "8x3", "per_point": "2", "num_envs": "4", "num_workers": "1"}
    cut, whole = tmp_path / "cut", tmp_path / "whole"
    overrides = [f"{key}={value}" for key, value in {**arguments, "logger": "none"}.items()]
    vla_razor.stop_at(cut, 1, signal.SIGKILL, "collect", *overrides, f"out={cut}")
    assert "row_0000.h5" in contents(cut)
    assert len(contents(cut)) < 8, "killed on the way"
    borrowed(monkeypatch, can)
    with Run.resume(cut) as run:
        collect.run(run.config, run)
    summary = gathered(whole, compose("collect", overrides))
    assert contents(cut) == contents(whole)
    assert summary["demonstrations"]["successes"] == 48
