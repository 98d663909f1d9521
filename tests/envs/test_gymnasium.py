"""The tasks as Gymnasium's own tools take them: its checker, its film wrapper, its two ways of making many."""

import importlib.util
import os
import subprocess
import sys
import warnings
from contextlib import closing
from pathlib import Path
from typing import Any

import gymnasium
import imageio.v3 as imageio
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.wrappers import RecordVideo

from vla_razor_envs import RenderingUnavailable, single

ROOT = Path(__file__).resolve().parents[2]
CAN, DRAWER = "vla_razor/PickCan-v2", "vla_razor/Drawer-v1"
GOOGLE: dict[str, Any] = {"robot": "google_robot", "image_size": (8, 10), "overlay": False}

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("made", "arguments"), [(CAN, {}), (DRAWER, {"render_mode": "rgb_array"}), ("vla_razor/PickCan-v1", GOOGLE)]
)
def test_gymnasiums_checker_has_nothing_to_say(
    made: str, arguments: dict[str, Any], request: pytest.FixtureRequest
) -> None:
    if arguments is GOOGLE:
        request.getfixturevalue("shared")
    with closing(gymnasium.make(made, **arguments)) as env, warnings.catch_warnings():
        warnings.simplefilter("error")
        if arguments is GOOGLE:  # whose box is SimplerEnv's: a quarter turn a control step is more than 1 radian
            warnings.filterwarnings("ignore", ".*we recommend using a symmetric and normalized space")
        check_env(env)
        box = env.unwrapped.task.single_action_space  # type: ignore[attr-defined]
        assert np.array_equal(box.low, env.action_space.low), "known without the scene"  # type: ignore[attr-defined]
        assert np.array_equal(box.high, env.action_space.high)  # type: ignore[attr-defined]


def test_render_shows_the_observation_at_the_pace_of_control() -> None:
    with closing(gymnasium.make(CAN, render_mode="rgb_array", image_size=(16, 24))) as env:
        observation, _ = env.reset(seed=0)
        image: Any = env.render()
        np.testing.assert_array_equal(image, observation["image"])
        image[:] = 0
        assert observation["image"].any(), "a copy"
        assert env.metadata == {"render_modes": ["rgb_array"], "render_fps": 5}
        env.close()
        env.close()
    with closing(gymnasium.make(CAN)) as env, pytest.warns(UserWarning, match="without a render mode"):
        assert env.render() is None


@pytest.mark.skipif(importlib.util.find_spec("moviepy") is None, reason="Gymnasium writes films with moviepy")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # moviepy leaves its pipes open
def test_a_film_is_recorded(tmp_path: Path) -> None:
    env = RecordVideo(
        gymnasium.make(CAN, render_mode="rgb_array"), str(tmp_path / "films"), episode_trigger=lambda _: True
    )
    with closing(env):
        env.reset(seed=0)
        for _ in range(9):
            env.step(np.zeros(7, np.float32))
    (film,) = (tmp_path / "films").glob("*.mp4")
    shown = imageio.imread(film)
    assert shown.shape[1:] == (64, 64, 3) and len(shown) in (9, 10), "the last may be cut off where it is read"
    assert imageio.immeta(film)["fps"] == 5


def test_several_in_one_process_are_those_that_run_alone() -> None:
    many: Any = gymnasium.make_vec(CAN, num_envs=2, vectorization_mode="sync")
    action = np.full((2, 7), 0.05, np.float32)
    with closing(many), closing(gymnasium.make(CAN)) as alone:
        observations, infos = many.reset(seed=[3, 4])
        assert infos["instruction"].tolist() == ["pick coke can"] * 2
        stepped, rewards, *_ = many.step(action)
        assert rewards.tolist() == [0, 0]
        for slot, seed in enumerate((3, 4)):
            np.testing.assert_array_equal(observations["image"][slot], alone.reset(seed=seed)[0]["image"])
            np.testing.assert_array_equal(stepped["image"][slot], alone.step(action[slot])[0]["image"])


ASYNC = """
import gymnasium, numpy as np, sys, vla_razor_envs
if __name__ == "__main__":
    context = sys.argv[1]
    many = gymnasium.make_vec("vla_razor/PickCan-v2", num_envs=2, vectorization_mode="async",
                              vector_kwargs={"context": context} if context else {})
    observations, infos = many.reset(seed=[3, 4])
    stepped = many.step(np.full((2, 7), 0.05, np.float32))[0]
    print(observations["image"].sum((1, 2, 3)), stepped["image"].sum((1, 2, 3)), infos["instruction"])
    many.close()
"""


@pytest.mark.parametrize("context", ["", "spawn"])
def test_several_in_processes_of_their_own(tmp_path: Path, context: str) -> None:
    """In a program of its own: Gymnasium forks where it is not told otherwise, and this one has begun to render."""
    (script := tmp_path / "many.py").write_text(ASYNC)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "envs")])}
    command = [sys.executable, str(script), context]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    with closing(gymnasium.make(CAN)) as alone:
        sums = [
            (alone.reset(seed=seed)[0]["image"].sum(), alone.step(np.full(7, 0.05, np.float32))[0]["image"].sum())
            for seed in (3, 4)
        ]
    first, second = zip(*sums, strict=True)
    assert done.stdout.split("\n")[0] == f"{np.array(first)} {np.array(second)} ['pick coke can' 'pick coke can']"


def test_a_fork_of_a_process_that_renders_is_told_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(single, "_renders", os.getpid() + 1)  # as it is found after a fork
    env = gymnasium.make(CAN)
    with pytest.raises(RenderingUnavailable, match=r"""vector_kwargs=\{"context": "spawn"\}"""):
        env.reset(seed=0)
