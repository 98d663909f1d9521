"""The Google robot's tasks: where they start, what an action does, and what is refused."""

import re
from collections.abc import Iterator
from contextlib import closing
from itertools import product
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest

from vla_razor.policies.scripted import ScriptedExpert
from vla_razor_envs import StartRefused
from vla_razor_envs.assets import AssetsUnusable
from vla_razor_envs.drives import JointDrives
from vla_razor_envs.google_robot import DRIVES, ORIGINAL, RESPONSE, STIFFNESS
from vla_razor_envs.native import NativeVectorEnv
from vla_razor_envs.records import PickCanSetup, lift_until_released, lift_while_high
from vla_razor_envs.setups import GOOGLE_DRAWER, GOOGLE_PICK_CAN, PANDA_PICK_CAN
from vla_razor_envs.single import check_start
from vla_razor_envs.starts import draw_can, draw_station


@pytest.fixture(scope="module")
def can(shared: Path) -> Iterator[gymnasium.Env]:
    env = gymnasium.make("vla_razor/PickCan-v1", robot="google_robot", image_size=(8, 10), overlay=False)
    yield env
    env.close()


@pytest.fixture(scope="module")
def drawer(shared: Path) -> Iterator[gymnasium.Env]:
    env = gymnasium.make(
        "vla_razor/Drawer-v1", robot="google_robot", task="open_top_drawer", image_size=(8, 10), overlay=False
    )
    yield env
    env.close()


def act(**parts: float) -> np.ndarray:
    action = np.zeros(7, np.float32)
    for name, value in parts.items():
        action[("x", "y", "z", "rx", "ry", "rz", "gripper").index(name)] = value
    return action


@pytest.mark.parametrize(("lifted", "held", "free", "risen"), list(product([False, True], repeat=4)))
def test_the_two_lift_rules_differ_in_height_and_grasp_alone(lifted: bool, held: bool, free: bool, risen: bool) -> None:
    remembered, now = lift_until_released(lifted, held, free, risen)
    assert remembered == now == ((lifted and held) or (free and risen))
    remembered, now = lift_while_high(lifted, held, free, risen)
    assert remembered == (held and (lifted or free)) and now == (remembered and risen)


@pytest.mark.slow
def test_joints_respond_as_they_do_in_the_original(drawer: gymnasium.Env) -> None:
    """Which depends on every link's mass, centre, inertia and its axes."""
    drawer.reset(seed=0)
    robot: Any = drawer.unwrapped.task.agent  # type: ignore[attr-defined]
    joints, articulation = robot.robot.active_joints, robot.robot._objs[0]
    inertia = articulation.create_pinocchio_model().compute_generalized_mass_matrix(articulation.qpos)
    responses = dict(zip([joint.name for joint in joints], np.linalg.inv(inertia).diagonal(), strict=True))
    assert responses == pytest.approx({name: response for name, (*_, response) in DRIVES.items()}, rel=2e-3)


@pytest.mark.slow
def test_drives_push_as_the_originals_do_in_the_present_position(drawer: gymnasium.Env) -> None:
    drawer.reset(seed=0)
    torso = drawer.unwrapped.task.agent.robot.active_joints[0]._objs[0]  # type: ignore[attr-defined]
    drawer.step(act())
    start = torso.stiffness
    assert start == pytest.approx(ORIGINAL.share(RESPONSE)[0] * STIFFNESS[0], rel=2e-3)
    for _ in range(12):
        drawer.step(act(x=0.08))
    assert torso.stiffness > 1.1 * start, "stretched out, the arm gives less way to the torso"


@pytest.mark.slow
def test_targets_taken_as_forces_move_the_arm_as_commands_do(
    can: gymnasium.Env, monkeypatch: pytest.MonkeyPatch
) -> None:
    def commanded(
        drives: JointDrives, targets: np.ndarray, stiffness: np.ndarray, damping: np.ndarray
    ) -> Iterator[None]:
        for joint, *gains in zip(drives._joints, stiffness.tolist(), damping.tolist(), strict=True):
            joint.set_drive_properties(*gains)
        for row in targets.tolist():
            for joint, target in zip(drives._joints, row, strict=True):
                joint.set_drive_target(target)
            drives._set_forces(drives._passive_forces(False))
            yield

    def motion() -> list[np.ndarray]:
        can.reset(seed=0, options={"object_xy": (-0.35, 0.42)})
        robot = can.unwrapped.task.agent.robot  # type: ignore[attr-defined]
        actions = [act(x=0.05, z=0.03, rz=0.2), act(x=-0.08, y=0.05, gripper=1.0), act(), act(ry=0.3)]
        return [robot.get_qpos()[0].numpy() for action in actions if can.step(action)]

    ours = motion()
    monkeypatch.setattr(JointDrives, "follow", commanded)
    np.testing.assert_allclose(ours, motion(), atol=2e-6)
    assert np.ptp(ours, axis=0).max() > 0.1


def test_seeds_draw_inside_the_area_and_among_the_stations() -> None:
    drawn = [draw_can(GOOGLE_PICK_CAN, seed) for seed in range(60)]
    places = np.array([start["object_xy"] for start in drawn])
    assert ((places >= [-0.35, -0.02]) & (places <= [-0.12, 0.42])).all()
    assert {start["orientation"] for start in drawn} == {"upright", "lr_switch", "laid_vertically"}
    assert {draw_station(GOOGLE_DRAWER, seed)["station"] for seed in range(90)} == set(GOOGLE_DRAWER.stations)


@pytest.mark.parametrize(
    ("setup", "table"),
    [
        (PANDA_PICK_CAN, "x in [-0.05, 0.95], y in [-0.6, 0.6] metres"),
        (GOOGLE_PICK_CAN, "x in [-0.61, 0.02], y in [-1.2, 1.2] metres"),
    ],
)
def test_the_can_is_put_on_the_table_only(setup: PickCanSetup, table: str) -> None:
    for place in [*product(setup.area_x, setup.area_y), *product(setup.table_x, setup.table_y)]:
        assert check_start("pick_can", setup, {"object_xy": place}) == {"object_xy": place}
    for place in ((5, 5), (setup.table_x[1] + 0.01, 0), (0, -1.21), (0, np.nan), (-np.inf, 0), (0,), 0.2):
        with pytest.raises(StartRefused, match=f"object_xy is .*; expected a place on the table.*{re.escape(table)}"):
            check_start("pick_can", setup, {"object_xy": place})


def test_the_recorded_cans_stand_on_the_table(shared: Path) -> None:
    for path in (shared / "traces").glob("coke*.npz"):
        with np.load(path) as trace:
            check_start("pick_can", GOOGLE_PICK_CAN, {"object_xy": trace["init_obj_xy_requested"]})


@pytest.mark.slow
@pytest.mark.parametrize("orientation", ["upright", "lr_switch", "laid_vertically"])
def test_on_a_gpu_the_can_begins_where_it_settles_on_a_cpu(
    can: gymnasium.Env, orientation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, start = can.get_wrapper_attr("task"), {"object_xy": (-0.3, 0.1), "orientation": orientation, "seed": 0}
    settled = can.reset(seed=0, options={key: start[key] for key in ("object_xy", "orientation")})[1]["object_pose"]
    monkeypatch.setattr(type(task), "gpu_sim_enabled", True)
    position, rotation = task._can_pose(start)
    np.testing.assert_allclose(position, settled[:3], atol=1e-5)
    assert abs(rotation @ settled[3:]) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize(("orientation", "z"), [("upright", 0.939), ("lr_switch", 0.902), ("laid_vertically", 0.902)])
def test_the_can_settles_where_it_is_asked_to(can: gymnasium.Env, orientation: str, z: float) -> None:
    info = can.reset(seed=0, options={"object_xy": (-0.2, 0.2), "orientation": orientation})[1]
    np.testing.assert_allclose(info["object_pose"][:3], [-0.2, 0.2, z], atol=2e-3)
    assert info["instruction"] == "pick coke can" and not info["success"] and not info["is_grasped"]


@pytest.mark.slow
def test_an_action_moves_the_tcp_as_far_as_the_gains_let_it(can: gymnasium.Env) -> None:
    assert can.action_space.shape == (7,)
    np.testing.assert_allclose(can.action_space.high, [1, 1, 1, *[np.pi / 2] * 3, 1], rtol=1e-6)  # type: ignore[attr-defined]
    for axis in range(3):
        before = can.reset(seed=1, options={"orientation": "upright"})[1]["tcp_pose"]
        action = np.zeros(7, np.float32)
        action[axis] = 0.05
        after = can.step(action)[-1]["tcp_pose"]
        moved = after[:3] - before[:3]
        assert moved.argmax() == axis and 0.002 < moved[axis] < 0.05
    closed = [can.step(act(gripper=1.0))[-1]["gripper_position"] for _ in range(3)]
    assert 0.1 < closed[0] < closed[1] < closed[2]
    held = can.step(act())[-1]["gripper_position"]
    assert held > closed[2]  # nothing new asked for: the last target is still approached


@pytest.mark.slow
def test_where_the_can_settles_does_not_depend_on_the_episode_before(can: gymnasium.Env) -> None:
    """The robot, too, must begin anew: while it moves aside, PhysX rounds the can's contacts otherwise."""
    places = []
    for moves in (0, 3, 5):
        can.reset(seed=moves)
        for _ in range(moves):
            can.step(act(x=-0.05 * moves, z=0.1, rz=0.3, gripper=1.0))
        places.append(can.reset(seed=6, options={"orientation": "laid_vertically"})[1]["object_pose"])
    np.testing.assert_array_equal(places[1], places[0])
    np.testing.assert_array_equal(places[2], places[0])


@pytest.mark.slow
def test_drawers_start_and_count_as_the_original_does(drawer: gymnasium.Env) -> None:
    places = {}
    for station in ("a0", "b1", "c2"):
        info = drawer.reset(seed=0, options={"station": station})[1]
        places[station] = info["target_pose"]
        np.testing.assert_allclose(info["object_pose"], [0.0475, 0, 0.705, 1, 0, 0, 0], atol=1e-5)
        np.testing.assert_allclose(info["drawer_qpos"], 0, atol=1e-6)
    assert np.ptp([place[0] for place in places.values()]) > 0.2
    info = drawer.reset(seed=0, options={"task": "close_middle_drawer", "station": "b1"})[1]
    np.testing.assert_allclose(info["drawer_qpos"], [0, 0.2, 0], atol=1e-6)
    assert info["instruction"] == "close middle drawer" and not info["success"]


@pytest.mark.slow
@pytest.mark.parametrize(("task", "station"), [("open_bottom_drawer", "b1"), ("close_top_drawer", "b2")])
def test_the_expert_opens_and_closes_drawers(drawer: gymnasium.Env, task: str, station: str) -> None:
    expert = ScriptedExpert(robot="google_robot")
    _, info = drawer.reset(seed=0, options={"task": task, "station": station})
    steps = 0
    while not info["success"]:
        assert steps < 60
        info = drawer.step(expert.wanted([info["instruction"]], [info])[0])[-1]
        steps += 1


@pytest.mark.slow
def test_fingers_squeeze_a_can_as_hard_as_the_originals_and_let_go_as_late(can: gymnasium.Env) -> None:
    """The original reads the speed of a finger that a can stops as if it went on: the next path begins with that."""
    expert = ScriptedExpert(robot="google_robot")
    task: Any = can.unwrapped.task  # type: ignore[attr-defined]
    robot, gripper = task.agent.robot._objs[0], task.agent.controller.controllers["gripper"]
    _, info = can.reset(seed=0, options={"object_xy": (-0.235, 0.2), "orientation": "upright"})
    while not info["is_grasped"]:
        assert robot.solver_position_iterations == 60
        info = can.step(expert.wanted([info["instruction"]], [info])[0])[-1]
    for _ in range(3):
        can.step(act(gripper=1.0))
    assert robot.solver_position_iterations == 120
    ahead = gripper._commanded[0] - robot.qpos[task.agent._order[-2:]]
    assert (ahead > 0.25).all() and ahead.sum() == pytest.approx(0.63, abs=0.04)  # from rest it would be 0.18 each
    height = can.step(act(gripper=-1.0))[-1]["object_pose"][2]
    assert abs(height - info["object_pose"][2]) < 0.01, "it still holds when the control step ends"
    for _ in range(3):
        can.step(act(gripper=-1.0))
    assert robot.solver_position_iterations == 60


@pytest.mark.slow
@pytest.mark.parametrize(
    "action", [np.zeros(6), np.full(7, np.nan), act(x=1.5), act(rz=-2.0), act(gripper=1.1)], ids=str
)
def test_actions_that_make_no_sense_are_refused_and_harm_nothing(can: gymnasium.Env, action: np.ndarray) -> None:
    before = can.reset(seed=2, options={"orientation": "upright"})[1]["tcp_pose"]
    with pytest.raises(ValueError, match=r"action is .*expected"):
        can.step(action)
    np.testing.assert_allclose(can.step(act())[-1]["tcp_pose"], before, atol=1e-3)


@pytest.mark.slow
def test_one_simulation_of_all_slots_refuses_the_same_actions_and_not_those_of_idle_slots(shared: Path) -> None:
    arguments: dict[str, Any] = dict(robot="google_robot", image_size=(8, 10), overlay=False, device="cpu")
    with closing(NativeVectorEnv("pick_can", ("google_robot",), 1, **arguments)) as envs:
        before = envs.reset(seed=2, options={"orientation": "upright"})[1]["tcp_pose"]
        for action in (act(x=1.5), act(x=np.nan), act(gripper=-np.inf)):
            with pytest.raises(ValueError, match=r"action of slot 0 is .*expected"):
                envs.step(action[None])
        with pytest.raises(ValueError, match=r"shape \(7,\); expected \(1, 7\)"):
            envs.step(act())
        np.testing.assert_allclose(envs.step(act()[None])[-1]["tcp_pose"], before, atol=1e-3)
        envs.active[:] = False
        envs.step(act(x=np.nan)[None])


@pytest.mark.slow
def test_unknown_starts_name_the_known_ones(can: gymnasium.Env, drawer: gymnasium.Env) -> None:
    with pytest.raises(ValueError, match="upright, lr_switch, laid_vertically"):
        can.reset(options={"orientation": "sideways"})
    with pytest.raises(ValueError, match="a0, a1, a2"):
        drawer.reset(options={"station": "d4"})
    with pytest.raises(ValueError, match="open_top_drawer"):
        drawer.reset(options={"task": "open_fridge"})


def test_unknown_robots_and_missing_assets_say_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="google_robot"):
        gymnasium.make("vla_razor/PickCan-v1", robot="pr2")
    monkeypatch.setenv("VLA_RAZOR_ASSETS", str(tmp_path))
    arguments: dict[str, Any] = dict(robot="google_robot", image_size=(8, 10))
    with pytest.raises(AssetsUnusable, match="vla-razor assets fetch"):
        gymnasium.make("vla_razor/PickCan-v1", **arguments)
