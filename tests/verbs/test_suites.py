"""A task suite of a user's own: a YAML file about a plain Gymnasium environment, through the verbs."""

import json
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from omegaconf import OmegaConf

from tests.verbs.support import CommandLine
from vla_razor import config, suites
from vla_razor.errors import UserError
from vla_razor.policies import Decisions, Observations
from vla_razor.rollouts import rollout as rollouts
from vla_razor.rollouts.environments import make_vector_env
from vla_razor.rollouts.starts import grid_starts, random_starts
from vla_razor_envs import SuiteRefused
from vla_razor_envs.suite import SuiteEnv

PLAIN = Path(__file__).parents[1] / "envs"
SUITE = """
id: plain_tasks:Plain/Slide-v0
tasks:
  slide_left: {instruction: slide to the left, options: {end: left}}
  slide_right:
    instruction: slide to the right
    options: {end: right}
    make: {stride: 4.0}
image: camera
proprioception: state.place
success: is_there
horizon: 8
"""
POLICY = """
import numpy as np
from vla_razor.policies import Decisions, Observations

class Leftward:
    '''Knows where left is, whatever it is asked for.'''
    name = "leftward"

    def act(self, observations, generators, memories=None):
        return Decisions(np.full((len(observations), 1, 3), -1.0, np.float32))
"""
MODULE = """
from pathlib import Path
import numpy as np

PATH = Path(__file__).with_name("env") / "slide.yaml"
NOWHERE = "nowhere.yaml"
NUMBER = 3

def stored(name):
    tasks = {end: {"instruction": f"slide to the {end}", "options": {"end": end}} for end in ("left", "right")}
    starts = {"starts": {"place": 4}, "num_envs": 2}
    return {"id": "plain_tasks:Plain/Slide-v0", "tasks": tasks, "image": "camera", "success": "is_there", **starts}

def typo(name): return {**stored(name), "horizn": 3}
def odd(name): return {**stored(name), "make": {"stride": np.ones(2)}}
def failing(name): raise RuntimeError(f"no {name} today")
"""


@pytest.fixture(autouse=True)
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(PLAIN)


@pytest.fixture
def slide(tmp_path: Path) -> Path:
    (tmp_path / "env").mkdir()
    path = tmp_path / "env" / "slide.yaml"
    path.write_text(SUITE)
    return path


@pytest.fixture
def others(slide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A package that is installed and registers suites, most of them badly."""
    (tmp_path / "others.py").write_text(MODULE)
    names = {"slide": "PATH", "stored": "stored", "pick_can": "PATH", "broken": "failing", "gone": "nothing"}
    names |= {"typo": "typo", "number": "NUMBER", "odd": "odd", "nowhere": "NOWHERE"}
    lines = [f"{name} = others:{thing}" for name, thing in names.items()]
    facts = tmp_path / "others-1.0.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: others\nVersion: 1.0\n")
    (facts / "entry_points.txt").write_text("\n".join(["[vla_razor.suites]", *lines, "absent = not_here:SUITE"]))
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("others", None)


def made(path: Path, **changes: Any) -> SuiteEnv:
    env = suites.read(path)
    suite: Any = OmegaConf.to_container(env.make.suite)
    return SuiteEnv({**suite, **changes})


def test_an_episode_has_the_face_that_a_policy_knows(slide: Path) -> None:
    env = made(slide)
    observation, info = env.reset(seed=3, options={"task": "slide_right"})
    assert info == {"instruction": "slide to the right", "success": False}
    assert observation["image"].shape == (6, 20, 3) and env.observation_space.contains(observation)
    assert 8 <= observation["proprioception"][0] <= 12
    again, _ = env.reset(seed=3, options={"task": "slide_right"})
    np.testing.assert_array_equal(again["image"], observation["image"])
    ends = []
    for _ in range(3):
        observation, reward, success, over, info = env.step(np.array([1.0, 0, 0], np.float32))
        assert (reward == 1) == success == info["success"] == over, "it ends where the environment does"
        ends.append(over)
    assert ends == [False, False, True], "nine places or so, four a step"
    env.reset(seed=3)
    assert env.step(np.array([-1.0, 0, 0]))[-1]["instruction"] == "slide to the left"
    for _ in range(6):
        assert not env.step(np.array([0.0, 0, 0]))[3]
    assert env.step(np.array([0.0, 0, 0]))[3], "the horizon"


def test_other_places_for_picture_and_success(slide: Path) -> None:
    env = made(slide, image="render", proprioception=None, success="terminated", rotate=180)
    observation, _ = env.reset(seed=0)
    assert observation["proprioception"].shape == (0,)
    assert not observation["image"][:3].any() and observation["image"][3:].any(), "upside down"
    drawn = env._env.unwrapped.drawn  # pyright: ignore
    assert env.step_unseen(np.array([0.0, 0, 0]))[0] is None
    assert env._env.unwrapped.drawn == drawn, "nobody looks"  # pyright: ignore
    assert [env.step(np.array([-1.0, 0, 0]))[2] for _ in range(3)][-1]


def test_of_several_cameras_those_are_shown_that_are_asked_for(slide: Path) -> None:
    slide.write_text(
        SUITE.replace("image: camera", "cameras: {side: camera, above: render}").replace("Slide-", "Told-")
    )
    env = suites.read(slide)
    assert list(env.cameras) == ["side", "above"]
    suite: Any = OmegaConf.to_container(env.make.suite)
    one, both = SuiteEnv(suite), SuiteEnv(suite, image_size=(12, 40), cameras=["side", "above"])
    observation, _ = one.reset(seed=3)
    assert set(observation) == {"image", "proprioception"} and one.setup.camera.name == "side"
    assert one._env.unwrapped.drawn == 0, "what nobody looks at is not rendered"  # pyright: ignore
    assert [env._env.unwrapped.told for env in (one, both)] == [["side"], ["side", "above"]]  # pyright: ignore
    observation, _ = both.reset(seed=3)
    assert both.observation_space.contains(observation) and both._env.unwrapped.drawn > 0  # pyright: ignore
    assert observation["image"].shape == observation["above"].shape == (12, 40, 3)
    np.testing.assert_array_equal(observation["image"], observation["above"])
    with pytest.raises(SuiteRefused, match="has the cameras side, above; asked for"):
        SuiteEnv(suite, cameras=["below"])


@pytest.mark.parametrize(
    ("cameras", "message"),
    [
        ("cameras: {side: 3}", "cameras is {'side': 3}; expected places of images by the names of cameras"),
        ("cameras: {image: camera}", "none of which is image or proprioception"),
        ("cameras: {side: camera}\ncamera: side", "cameras names them all; expected no image or camera beside it"),
    ],
)
def test_cameras_that_are_none_are_one_message(slide: Path, cameras: str, message: str) -> None:
    slide.write_text(SUITE.replace("image: camera", cameras))
    with pytest.raises(UserError, match=message):
        suites.read(slide)


def test_tasks_that_are_made_alike_share_an_environment(slide: Path) -> None:
    tasks = {end: {"instruction": end, "make": {}, "options": {"end": end}} for end in ("left", "right")}
    env = made(slide, tasks=tasks)
    env.reset(seed=0, options={"task": "left"})
    shared = env._env
    env.reset(seed=0, options={"task": "right"})
    assert env._env is shared and shared.unwrapped.goal == 19  # pyright: ignore
    env.close()
    assert made(slide)._env is not made(slide)._env


def test_a_step_of_its_own_that_nobody_looks_at(slide: Path) -> None:
    env = made(slide, id="plain_tasks:Plain/Hop-v0")
    env.reset(seed=0)
    assert env.step_unseen(np.array([0.0, 0, 0]))[0] is None
    assert env.step(np.array([0.0, 0, 0]))[0]["image"].any()
    assert env._env.unwrapped.unseen == 1  # pyright: ignore
    assert [env.step_unseen(np.array([-1.0, 0, 0]))[2] for _ in range(3)][-1], "success all the same"


def test_starts_name_their_task(slide: Path) -> None:
    env = config.compose("eval", [f"env={slide}"]).env
    assert [start.options for start in random_starts(env.tasks, 1, 0)] == [{"task": name} for name in env.tasks]
    assert {start.options["task"] for start in grid_starts(env, "2x1", 1, 0)} == set(env.tasks)
    learned = config.compose("sft", [f"env={slide}", f"prior={slide}", "env.tasks=[slide_left]"])
    assert list(learned.env.tasks) == ["slide_left"] and list(learned.prior.tasks) == ["slide_right"]
    with pytest.raises(UserError, match=r"env\.tasks: unknown task 'slide_lift'\. Did you mean slide_left"):
        config.compose("sft", [f"env={slide}", "env.tasks=[slide_lift]"])


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("horizon: 8", "horizn: 8", r"slide\.yaml, line 12: a task suite has no key 'horizn'. Did you mean horizon"),
        ("options: {end: left}", "option: {}", "line 4: the task slide_left has no key 'option'. Did you mean options"),
        ("horizon: 8", "horizon: often", "horizon is 'often'; expected a whole number of control steps"),
        ("{instruction: slide to the left, ", "{", "the task slide_left has no instruction"),
        ("image: camera", "image: [", r"slide\.yaml, line 1\d: not YAML"),
        ("id: plain_tasks:Plain/Slide-v0", "make: 3", "line 2: make is 3; expected a mapping"),
        ("horizon: 8", "starts: {a: 5, b: 6}", "starts is {'a': 5, 'b': 6}; expected one reset option and how many"),
        ("horizon: 8", "starts: {a: many}", "starts is {'a': 'many'}; expected one reset option and how many"),
        ("horizon: 8", "num_envs: 0", "num_envs is 0; expected a whole number, at least 1"),
    ],
)
def test_a_mistake_in_the_file_is_named_with_its_line(slide: Path, before: str, after: str, message: str) -> None:
    slide.write_text(SUITE.replace(before, after))
    with pytest.raises(UserError, match=message):
        config.compose("eval", [f"env={slide}"])


def test_a_package_registers_suites(others: None) -> None:
    """One by its file and one by a function; a name that is taken here stays what it is."""
    known = config.choices("eval", "env")
    assert {"slide", "stored", "broken", "pick_can"} <= set(known) and known.count("pick_can") == 1
    assert " | slide | " in config.describe("eval")
    assert config.compose("eval", ["env=pick_can"]).env.id == "vla_razor/PickCan-v2"
    assert "others" not in sys.modules, "help and completion import nothing of it"
    env = config.compose("eval", ["env=slide"]).env
    assert env.name == "slide" and list(env.tasks) == ["slide_left", "slide_right"]
    learned = config.compose("rl", ["env=slide", "prior=stored"])
    assert list(learned.prior.tasks) == ["left", "right"]


def test_what_a_suite_says_of_starts_and_of_how_many_are_played_together(others: None) -> None:
    settings = config.compose("eval", ["env=stored"])
    assert settings.num_envs == 2 and "num_envs" not in settings.env
    assert config.compose("eval", ["env=stored", "num_envs=9"]).num_envs == 9
    assert config.compose("eval", ["env=slide"]).num_envs == config.compose("eval").num_envs == 48
    starts = grid_starts(settings.env, "2x2", 1, 0)
    assert [start.task for start in starts] == ["left"] * 4 + ["right"] * 4
    assert sorted(start.options["place"] for start in starts[:4]) == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("slid", "unknown env 'slid'. Did you mean slide"),
        ("broken", r"env=broken: others:failing gives no suite .RuntimeError: no broken today"),
        ("gone", "env=gone: others:nothing gives no suite .AttributeError: .*nothing"),
        ("absent", "env=absent: not_here:SUITE gives no suite .ModuleNotFoundError: No module named 'not_here'"),
        ("typo", "env=typo: others:typo: a task suite has no key 'horizn'. Did you mean horizon"),
        ("number", "env=number: others:NUMBER: a task suite is 3; expected a mapping of id"),
        ("odd", "env=odd: others:odd: .*ndarray.*; expected what a YAML file could say"),
        ("nowhere", r"nowhere\.yaml: cannot be read as a task suite"),
    ],
)
def test_a_registered_suite_that_is_none_is_one_message(others: None, name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        config.compose("eval", [f"env={name}"])


class Still:
    """Does nothing, in both tasks."""

    name = "still"

    def act(self, observations: Observations, *_: Any, **__: Any) -> Decisions:
        return Decisions(np.zeros((len(observations), 1, 3), np.float32))


def play(env: Any) -> None:
    with closing(make_vector_env(env, 1, 1, "cpu")) as envs:
        rollouts.rollout(envs, Still(), random_starts(env.tasks, 1, 0), hold=None, seed=0)


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("plain_tasks:Plain/Slide-v0", "plain_tasks:Plain/Slid-v0", "Plain/Slid-v0 with {} cannot be made .*Slid"),
        ("make: {stride: 4.0}", "make: {strid: 4.0}", "cannot be made .*strid"),
        ("image: camera", "image: cam", "the observation has no 'cam'; it has state, camera"),
        ("image: camera", "image: state.place", r"its image \(state.place\) is float32 \[1\]; expected uint8"),
        ("success: is_there", "success: there", "info has no 'there'; it has drawn, is_there"),
    ],
)
@pytest.mark.slow
def test_what_the_environment_does_not_have_is_one_message(slide: Path, before: str, after: str, message: str) -> None:
    slide.write_text(SUITE.replace(before, after))
    env = config.compose("eval", [f"env={slide}"]).env
    with pytest.raises(UserError, match=message):
        play(env)


def test_a_name_is_looked_for_in_the_config_dir(slide: Path) -> None:
    chosen = config.compose("eval", [f"config_dir={slide.parents[1]}", "env=slide"])
    assert chosen.env.name == "slide" and list(chosen.env.tasks) == ["slide_left", "slide_right"]
    with pytest.raises(UserError, match=r"unknown env 'slid'.*A suite of your own: FILE\.yaml"):
        config.compose("eval", [f"config_dir={slide.parents[1]}", "env=slid"])
    with pytest.raises(UserError, match="config_dir=nowhere: no such folder"):
        config.compose("eval", ["config_dir=nowhere", "env=slide"])
    with pytest.raises(UserError, match=r"nowhere\.yaml: cannot be read as a task suite"):
        config.compose("eval", ["env=nowhere.yaml"])


@pytest.mark.slow
def test_a_stranger_brings_policy_and_tasks(slide: Path, tmp_path: Path, vla_razor: CommandLine) -> None:
    """Evaluated and collected from the command line; the policy that ships with the package says why it cannot act."""
    (tmp_path / "leftward.py").write_text(POLICY)
    paths: Any = {"PYTHONPATH": f"{PLAIN}:{tmp_path}"}
    few = ("num_envs=2", "num_workers=1", "logger=none")
    suite = ("--config-dir", str(tmp_path), "--env", "slide")
    played = ("--policy", "leftward:Leftward", "episodes=3", "videos=1", f"out={tmp_path / 'run'}")
    vla_razor.run("eval", *suite, *played, *few, **paths)
    (entry,) = json.loads((tmp_path / "run" / "summary.json").read_text())["policies"].values()
    found = {**entry["new_task"], **entry["prior_tasks"]}
    rates = {task: summary["success_once"]["successes"] for task, summary in found.items()}
    assert rates == {"slide_left": 3, "slide_right": 0}
    assert len(list((tmp_path / "run" / "videos").iterdir())) == 2
    asked = ("policy=leftward:Leftward", "grid=2x1", "per_point=1", f"out={tmp_path / 'demos'}")
    vla_razor.run("collect", "--env", str(slide), "env.tasks=[slide_left]", *asked, *few, **paths)
    kept = list((tmp_path / "demos" / "demonstrations").glob("*.h5"))
    assert len(kept) == 2
    refused = vla_razor.run(
        "eval", *suite, "episodes=1", "unnorm_key=vla_razor_panda", f"out={tmp_path / 'tiny'}", *few, status=2, **paths
    )
    assert "the policy tiny decided on actions of shape" in refused.stderr and "(1, steps, 3)" in refused.stderr
