"""The tasks on real physics: the controller, the success rules, exact starts, determinism, and what bad input gets."""

import itertools
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

import vla_razor_envs  # noqa: F401
from vla_razor.errors import UserError
from vla_razor.policies import Observations
from vla_razor.policies.scripted import ScriptedExpert

pytestmark = pytest.mark.slow
CLOSE, OPEN = 1.0, -1.0
DRAWER_TASKS = [f"{verb}_{drawer}_drawer" for verb in ("open", "close") for drawer in ("top", "middle", "bottom")]
POSES = ("tcp_pose", "object_pose", "target_pose")


@pytest.fixture(scope="module")
def can() -> Iterator[gymnasium.Env]:
    env = gymnasium.make("vla_razor/PickCan-v2")
    yield env
    env.close()


@pytest.fixture(scope="module")
def drawer() -> Iterator[gymnasium.Env]:
    env = gymnasium.make("vla_razor/Drawer-v1", task="open_middle_drawer")
    yield env
    env.close()


def solve(
    env: gymnasium.Env, seed: int, options: dict[str, Any], noise: float = 0.0
) -> tuple[list[bool], dict[str, Any]]:
    """Runs the expert until the first success or the horizon; returns `terminated` of every step and the last info."""
    expert, generators = ScriptedExpert(noise), [np.random.default_rng(seed)]
    _, info = env.reset(seed=seed, options=options)
    flags, truncated = [], False
    while not truncated and not any(flags):
        action = expert.act(Observations({}, [info["instruction"]], infos=[info]), generators).actions[0, 0]
        _, reward, terminated, truncated, info = env.step(action)
        assert reward == float(terminated) == float(info["success"])
        flags.append(terminated)
    return flags, info


def move(env: gymnasium.Env, delta: list[float], gripper: float = OPEN, steps: int = 1) -> dict[str, Any]:
    infos = [env.step(np.array([*delta, gripper], np.float32))[-1] for _ in range(steps)]
    return infos[-1]


def test_observation_and_info_are_what_the_interface_says(can: gymnasium.Env, drawer: gymnasium.Env) -> None:
    for env, extra in (
        (can, {"is_grasped", "consecutive_grasp", "lifted_object", "lifted_object_significantly"}),
        (drawer, {"drawer_qpos"}),
    ):
        observation, info = env.reset(seed=3)
        assert env.observation_space.contains(observation)
        assert observation["image"].shape == (64, 64, 3) and observation["image"].std() > 10
        assert env.action_space.shape == (7,) and env.action_space.dtype == np.float32
        assert {"instruction", "success", *POSES, *extra} <= info.keys()
        for name in POSES:
            assert info[name].shape == (7,) and np.isclose(np.linalg.norm(info[name][3:]), 1, atol=1e-5)
        np.testing.assert_allclose(observation["proprioception"][:7], info["tcp_pose"])
        again = env.step(np.zeros(7, np.float32))[-1]
        assert again.keys() == info.keys()


def test_a_further_camera_is_rendered_where_it_is_asked_for_and_changes_nothing_else(can: gymnasium.Env) -> None:
    """One on the hand, which sees the table go by as the hand moves over it."""
    sensors: Any = can.unwrapped
    assert list(sensors.task.scene.sensors) == ["workspace_camera"], "what nobody reads is not rendered"
    action = np.array([0.05, 0, -0.03, 0, 0, 0, CLOSE], np.float32)
    names = ["workspace_camera", "wrist_camera"]
    with (
        closing(gymnasium.make("vla_razor/PickCan-v2", cameras=names)) as both,
        closing(gymnasium.make("vla_razor/PickCan-v2", cameras=names[1:])) as hand,
    ):
        shown = [[env.reset(seed=5)[0], *(env.step(action)[0] for _ in range(3))] for env in (can, both, hand)]
        assert both.observation_space.contains(shown[1][0])
    for one, two, wrist in zip(*shown, strict=True):
        np.testing.assert_array_equal(one["image"], two["image"])
        np.testing.assert_array_equal(one["proprioception"], two["proprioception"])
        np.testing.assert_array_equal(wrist["image"], two["wrist_camera"])
    views = [seen["wrist_camera"].astype(int) for seen in shown[1]]
    assert min(np.abs(a - b).mean() for a, b in itertools.pairwise(views)) > 1, "it moves"
    assert np.abs(views[0] - shown[1][0]["image"]).mean() > 10
    for wrong in (["side"], [], ["wrist_camera"] * 2):
        with pytest.raises(ValueError, match=r"cameras is .*; expected some of what panda has, each once: workspace_"):
            gymnasium.make("vla_razor/PickCan-v2", cameras=wrong)


@pytest.mark.parametrize("axis", range(3))
@pytest.mark.parametrize("sign", [-1, 1])
def test_translation_moves_the_tcp_along_the_base_axes(can: gymnasium.Env, axis: int, sign: int) -> None:
    before = can.reset(seed=0, options={"object_xy": (0.62, -0.15)})[1]["tcp_pose"]
    delta = np.zeros(6)
    delta[axis] = sign * 0.04
    after = move(can, [*delta])["tcp_pose"]
    np.testing.assert_allclose(after[:3] - before[:3], delta[:3], atol=6e-3)


@pytest.mark.parametrize("axis", range(3))
@pytest.mark.parametrize("sign", [-1, 1])
def test_rotation_is_axis_angle_in_the_base_frame_with_the_right_sign(can: gymnasium.Env, axis: int, sign: int) -> None:
    before = can.reset(seed=0, options={"object_xy": (0.62, -0.15)})[1]["tcp_pose"]
    delta = np.zeros(6)
    delta[3 + axis] = sign * 0.15
    after = move(can, [*delta])["tcp_pose"]
    turned = Rotation.from_quat(after[[4, 5, 6, 3]]) * Rotation.from_quat(before[[4, 5, 6, 3]]).inv()
    np.testing.assert_allclose(turned.as_rotvec(), delta[3:], atol=0.03)
    np.testing.assert_allclose(after[:3], before[:3], atol=6e-3)


def test_the_gripper_closes_on_plus_one(can: gymnasium.Env) -> None:
    can.reset(seed=0)
    assert move(can, [0] * 6, CLOSE, steps=3)["gripper_position"] < 0.005
    assert move(can, [0] * 6, OPEN, steps=3)["gripper_position"] > 0.035
    assert move(can, [0] * 6, 0.0, steps=3)["gripper_position"] == pytest.approx(0.015, abs=0.004)


def test_actions_beyond_the_box_are_clipped(can: gymnasium.Env) -> None:
    ends = []
    for length in (0.07, 5.0):
        can.reset(seed=4)
        ends.append(move(can, [0, 0, length, 0, 0, 0])["tcp_pose"])
    np.testing.assert_array_equal(*ends)


@pytest.mark.parametrize("orientation", ["upright", "lr_switch", "laid_vertically"])
def test_the_expert_picks_the_can_in_every_orientation(can: gymnasium.Env, orientation: str) -> None:
    for seed in range(4):
        flags, info = solve(can, seed, {"orientation": orientation})
        assert flags[-1] and info["is_grasped"] and info["lifted_object"]


@pytest.mark.parametrize(
    ("style", "task"), [("across", "can"), ("sideways", "can"), ("tucked", "can"), ("steep", "drawer")]
)
def test_every_style_solves_its_task_by_other_movements(style: str, task: str, request: pytest.FixtureRequest) -> None:
    env, far, near = request.getfixturevalue(task), ScriptedExpert(style=style), ScriptedExpert()
    options: list[dict[str, Any]] = [{"task": name} for name in DRAWER_TASKS]
    for seed, start in enumerate(options if task == "drawer" else [{"orientation": "upright"}] * 6):
        _, info = env.reset(seed=seed, options=start)
        apart, truncated = [], False
        while not (truncated or info["success"]):
            action, other = (expert.wanted([info["instruction"]], [info])[0] for expert in (far, near))
            apart.append(np.abs(action - other).max())
            truncated, info = env.step(action)[3:]
        assert info["success"] and np.mean(np.array(apart) > 0.01) > 0.3


def test_a_style_is_of_a_robot_and_of_a_task() -> None:
    with pytest.raises(UserError, match="style=steep: with robot=google_robot the scripted expert has direct"):
        ScriptedExpert(style="steep", robot="google_robot")
    with pytest.raises(UserError, match="in this style it knows how to open, close"):
        ScriptedExpert(style="steep").wanted(["pick coke can"], [{"success": False}])


@pytest.mark.parametrize("task", DRAWER_TASKS)
def test_the_expert_solves_every_drawer_task(drawer: gymnasium.Env, task: str) -> None:
    for seed in range(3):
        flags, info = solve(drawer, seed, {"task": task})
        assert flags[-1] and info["instruction"] == task.replace("_", " ")
        moved = info["drawer_qpos"][["top", "middle", "bottom"].index(task.split("_")[1])]
        assert moved >= 0.09 if task.startswith("open") else moved <= 0.03


def test_a_closing_task_starts_open_and_an_opening_task_closed(drawer: gymnasium.Env) -> None:
    np.testing.assert_allclose(
        drawer.reset(seed=0, options={"task": "close_bottom_drawer"})[1]["drawer_qpos"], [0, 0, 0.12], atol=1e-6
    )
    np.testing.assert_allclose(
        drawer.reset(seed=0, options={"task": "open_bottom_drawer"})[1]["drawer_qpos"], 0, atol=1e-6
    )


def test_opening_another_drawer_is_no_success(drawer: gymnasium.Env) -> None:
    expert = ScriptedExpert()
    _, info = drawer.reset(seed=0, options={"task": "open_top_drawer"})
    for _ in range(15):
        bottom = info["target_pose"].copy()
        bottom[0] += info["drawer_qpos"][0] - info["drawer_qpos"][2]
        bottom[2] -= 0.26
        action = expert.wanted(["open bottom drawer"], [{**info, "target_pose": bottom}])[0]
        _, _, terminated, _, info = drawer.step(action)
        assert not terminated
    assert info["drawer_qpos"][2] > 0.09


def test_touching_the_can_without_lifting_is_no_success(can: gymnasium.Env) -> None:
    expert = ScriptedExpert()
    _, info = can.reset(seed=1, options={"orientation": "upright"})
    while not info["is_grasped"]:
        info = can.step(expert.wanted([info["instruction"]], [info])[0])[-1]
    info = move(can, [0] * 6, CLOSE, steps=6)
    assert info["is_grasped"] and info["consecutive_grasp"] and not info["lifted_object"] and not info["success"]


def test_success_is_a_lift_that_has_lasted_three_steps_and_is_lost_with_the_can(can: gymnasium.Env) -> None:
    expert = ScriptedExpert()
    _, info = can.reset(seed=2, options={"orientation": "upright"})
    lifts: list[tuple[bool, bool]] = []
    while not info["success"]:
        info = can.step(expert.wanted([info["instruction"]], [info])[0])[-1]
        lifts.append((info["lifted_object"], info["success"]))
    first = [lifted for lifted, _ in lifts].index(True)
    assert lifts[first:] == [(True, False), (True, False), (True, True)]
    assert move(can, [0] * 6, CLOSE, steps=8)["success"], "who holds it has not lost it"
    assert not move(can, [0] * 6, OPEN, steps=5)["success"]


@pytest.mark.parametrize("made", ["vla_razor/PickCan-v2", "vla_razor/Drawer-v1"])
def test_success_is_judged_by_tensors_as_by_arrays(made: str, monkeypatch: pytest.MonkeyPatch) -> None:
    expert = ScriptedExpert()
    with closing(gymnasium.make(made)) as env:
        infos, actions = [env.reset(seed=2)[1]], []
        for _ in range(15):
            actions.append(expert.wanted([infos[-1]["instruction"]], [infos[-1]])[0])
            infos.append(env.step(actions[-1])[-1])
        assert infos[-1]["success"]
        inner: Any = env.unwrapped
        judge_by_tensors(inner.task, monkeypatch)
        again = [inner.task.reset(options={"starts": [{**inner.default_start, "seed": 2}]})[1]]
        again += [inner.task.step(action[None])[-1] for action in actions]
    for expected, found in zip(infos, again, strict=True):
        for name in expected.keys() - {"instruction"}:
            assert isinstance(found[name], torch.Tensor)
            np.testing.assert_array_equal(found[name][0], expected[name], err_msg=name)


def judge_by_tensors(task: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets a CPU's task compute as a GPU's does."""
    for module in ("pick_can", "task"):
        monkeypatch.setattr(f"vla_razor_envs.{module}.pose_of", lambda body: body.pose.raw_pose)
    for module in ("drawer", "task"):
        monkeypatch.setattr(f"vla_razor_envs.{module}.qpos_of", lambda robot: robot.qpos)
    pushes = task.pushes
    task.pushes = lambda *bodies: tuple(torch.from_numpy(part) for part in pushes(*bodies))
    arrays = {name: value for name, value in vars(task).items() if isinstance(value, np.ndarray)}
    vars(task).update({name: torch.from_numpy(value) for name, value in arrays.items()}, xp=torch)


def test_stepping_on_after_success_and_after_the_horizon_is_allowed(can: gymnasium.Env) -> None:
    can.reset(seed=0)
    truncations = [can.step(np.zeros(7, np.float32))[3] for _ in range(22)]
    assert truncations == [False] * 19 + [True] * 3


def test_exact_starts(can: gymnasium.Env, drawer: gymnasium.Env) -> None:
    for orientation, z in (("upright", 0.055), ("lr_switch", 0.023), ("laid_vertically", 0.023)):
        pose = can.reset(seed=5, options={"object_xy": (0.5, -0.1), "orientation": orientation})[1]["object_pose"]
        np.testing.assert_allclose(pose[:3], [0.5, -0.1, z], atol=1e-3)
        axis = np.abs(Rotation.from_quat(pose[[4, 5, 6, 3]]).apply([1, 0, 0]))
        assert axis.argmax() == {"upright": 2, "lr_switch": 1, "laid_vertically": 0}[orientation]
    handles = {s: drawer.reset(seed=0, options={"station": s})[1]["target_pose"] for s in ("a0", "b1", "c2")}
    np.testing.assert_allclose(handles["b1"][:2] - handles["a0"][:2], [-0.02, -0.05], atol=1e-5)
    np.testing.assert_allclose(handles["c2"][:2] - handles["b1"][:2], [-0.02, -0.05], atol=1e-5)


def test_the_can_wears_its_label() -> None:
    with closing(gymnasium.make("vla_razor/PickCan-v2", image_size=(256, 256))) as env:
        image = env.reset(seed=0, options={"orientation": "laid_vertically"})[0]["image"].astype(int)
    red = (image[..., 0] > 120) & (image[..., 1:].max(-1) < 100)
    rows, columns = np.nonzero(red)
    around = image[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    white = (around.min(-1) > 180) & (np.ptp(around, axis=-1) < 12)
    assert red.sum() > 600 and white.sum() > 150


def test_seeded_starts_cover_the_area_and_differ(can: gymnasium.Env) -> None:
    places = np.array([can.reset(seed=seed)[1]["object_pose"][:2] for seed in range(60)])
    assert ((places >= [0.44, -0.12]) & (places <= [0.60, 0.12])).all()
    assert (places.min(0) < [0.46, -0.1]).all() and (places.max(0) > [0.58, 0.1]).all()


@pytest.mark.parametrize("task", ["pick", "drawer"])
def test_same_seed_and_actions_give_the_same_bits(can: gymnasium.Env, drawer: gymnasium.Env, task: str) -> None:
    env = can if task == "pick" else drawer

    def episode(env: gymnasium.Env) -> list[np.ndarray]:
        draw = np.random.default_rng(7)
        observation, info = env.reset(seed=11)
        seen = [observation["image"], observation["proprioception"], info["object_pose"]]
        for _ in range(8):
            observation, _, _, _, info = env.step(draw.uniform(-0.1, 0.1, 7).astype(np.float32))
            seen += [observation["image"], observation["proprioception"], info["object_pose"]]
        return seen

    first = episode(env)
    env.reset(seed=99)
    move(env, [0.03, 0, -0.05, 0, 0, 0], steps=4)
    fresh = gymnasium.make(env.spec)  # type: ignore[arg-type]
    for other in (episode(env), episode(fresh)):
        assert all(np.array_equal(a, b) for a, b in zip(first, other, strict=True))
    fresh.close()


@pytest.mark.parametrize("task", ["pick", "close_top_drawer"])
def test_an_episode_does_not_depend_on_those_before_it(can: gymnasium.Env, drawer: gymnasium.Env, task: str) -> None:
    """PhysX solves contacts in an order that depends on earlier ones, unless each episode has a scene of its own."""
    env, options = (can, {"orientation": "upright"}) if task == "pick" else (drawer, {"task": task})

    def end(seed: int) -> np.ndarray:
        _, info = solve(env, seed, options)
        return np.concatenate([info["tcp_pose"], info["target_pose"]])

    first = [end(seed) for seed in range(6)]
    for seed in (5, 2, 0, 1, 4, 3):
        np.testing.assert_array_equal(first[seed], end(seed))


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"object_xy": (0.5,)}, "object_xy"),
        ({"object_xy": (0.5, float("nan"))}, "object_xy"),
        ({"orientation": "sideways"}, "upright"),
        ({"colour": "red"}, "object_xy, orientation"),
    ],
)
def test_bad_reset_options_say_what_was_expected(can: gymnasium.Env, options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        can.reset(seed=0, options=options)


def test_bad_arguments_and_actions_say_what_was_expected(can: gymnasium.Env) -> None:
    with pytest.raises(ValueError, match="robot is 'pr2'; expected panda"):
        gymnasium.make("vla_razor/PickCan-v2", robot="pr2")
    with pytest.raises(ValueError, match=r"expected google_robot; panda has vla_razor/PickCan-v2, vla_razor/Drawer-v1"):
        gymnasium.make("vla_razor/PickCan-v1", robot="panda")
    with pytest.raises(ValueError, match="open_top_drawer"):
        gymnasium.make("vla_razor/Drawer-v1", task="open_fridge")
    can.reset(seed=0)
    for action in (np.zeros(6), np.full(7, np.nan)):
        with pytest.raises(ValueError, match="seven finite numbers"):
            can.step(action)
