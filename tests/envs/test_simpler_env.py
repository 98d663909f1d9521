"""The bridge to SimplerEnv: against a stand-in with its interface, in real processes of another interpreter, and
against the original where VLA_RAZOR_SIMPLER_PYTHON names its interpreter.
"""

import gc
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from PIL import Image

import vla_razor_envs
from vla_razor_envs.records import DrawerSetup, PickCanSetup
from vla_razor_envs.setups import SETUPS
from vla_razor_envs.simpler_env import VARIABLE, SimplerVectorEnv
from vla_razor_envs.starts import draw_can, draw_station

STAND_IN = Path(__file__).parent / "simpler_stand_in"
ORIGINAL = os.environ.get(VARIABLE)
needs_original = pytest.mark.skipif(not ORIGINAL, reason=f"{VARIABLE} names no interpreter of the original SimplerEnv")
CAN, DRAWER = SETUPS["pick_can", "google_robot"], SETUPS["drawer", "google_robot"]
NOTHING = np.zeros((4, 7), np.float32)


@pytest.fixture(autouse=True)
def nothing_left_behind(shared_memory_freed: None) -> Iterator[None]:
    yield
    gc.collect()
    children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()
    assert not [pid for pid in children if b"simpler_worker" in Path("/proc", pid, "cmdline").read_bytes()]


def write_interpreter(folder: Path, *paths: Path, **variables: object) -> str:
    """An executable that runs this Python with `paths` to import from: the user's interpreter."""
    python = folder / "python"
    search = ":".join(map(str, paths))
    exports = "".join(f"export {name}='{value}'\n" for name, value in variables.items())
    python.write_text(f"#!/bin/sh\n{exports}export PYTHONPATH='{search}'\nexec '{sys.executable}' \"$@\"\n")
    python.chmod(0o755)
    return str(python)


@pytest.fixture
def python(tmp_path: Path) -> str:
    """The interpreter of the stand-in, whose assets hold the scene of the can."""
    assets = tmp_path / "data"
    stage = assets / "hab2_bench_assets" / "stages" / "google_pick_coke_can_1_v4.glb"
    stage.parent.mkdir(parents=True)
    stage.touch()
    return write_interpreter(tmp_path, STAND_IN, MS2_REAL2SIM_ASSET_DIR=assets)


def bridge(python: str, family: str = "pick_can", num_envs: int = 4, **kwargs: Any) -> SimplerVectorEnv:
    kwargs = {"num_workers": 2, "image_size": (16, 20), "timeout": 30.0, **kwargs}
    return SimplerVectorEnv(family, num_envs, python_executable=python, **kwargs)


def shown(observations: dict[str, np.ndarray]) -> list[int]:
    """What fills each slot's picture: the seed and the steps taken."""
    return observations["image"][:, -1, -1, 0].tolist()


def test_the_face_is_the_ports(python: str) -> None:
    with closing(bridge(python)) as envs:
        assert envs.setup == CAN
        observations, infos = envs.reset(seed=[10, 20, 30, 40], options={"object_xy": np.array([-0.2, 0.3])})
        assert observations["image"].dtype == np.uint8
        assert shown(observations) == [10, 20, 30, 40]
        assert infos["instruction"].tolist() == ["pick coke can"] * 4
        assert not infos["success"].any() and infos["success"].dtype == bool
        np.testing.assert_allclose(infos["tcp_pose"], [[0.5, -0.2, 0.9, 1, 0, 0, 0]] * 4, atol=1e-12)
        np.testing.assert_allclose(infos["object_pose"][:, :2], [[-0.2, 0.3]] * 4)
        # The robot stands at (0.35, 0.20), z 0.07905, and looks along -x.
        np.testing.assert_allclose(infos["target_pose"][:, :2], [[0.55, -0.1]] * 4, atol=1e-12)

        actions = NOTHING.copy()
        actions[1] = [0.1, 0.02, 0.03, 0, 0, 0, 1]
        observations, rewards, terminated, truncated, infos = envs.step(actions)
        assert shown(observations) == [11, 21, 31, 41]
        np.testing.assert_allclose(infos["tcp_pose"][1, :3], [0.6, -0.18, 0.93], atol=1e-7)
        np.testing.assert_allclose(observations["proprioception"][1], [0.6, -0.18, 0.93, 1, 0, 0, 0, 1.31], atol=1e-6)
        assert rewards.tolist() == [0, 1, 0, 0]
        for flag in ("success", "is_grasped", "lifted_object", "lifted_object_significantly"):
            assert infos[flag].tolist() == [False, True, False, False], flag
        assert terminated.tolist() == [False, True, False, False]
        assert not truncated.any() and not infos["consecutive_grasp"].any()

        envs.active = np.array([True, False, False, False])
        for _ in range(CAN.horizon - 1):
            observations, _, _, truncated, _ = envs.step(NOTHING)
        assert truncated.tolist() == [True, False, False, False], "the original's own horizon"
        assert shown(observations) == [90, 21, 31, 41]


def test_one_seed_starts_one_episode_here_and_in_the_port_whatever_was_before(python: str) -> None:
    assert isinstance(CAN, PickCanSetup) and isinstance(DRAWER, DrawerSetup)
    with closing(bridge(python)) as envs:
        for seeds in ([1, 2, 3, 4], [4, 3, 2, 2**40 + 1]):
            observations, infos = envs.reset(seed=seeds)
            starts = [draw_can(CAN, seed) for seed in seeds]
            np.testing.assert_allclose(infos["object_pose"][:, :2], [start["object_xy"] for start in starts])
            heights = [0.939 if start["orientation"] == "upright" else 0.902 for start in starts]
            np.testing.assert_allclose(infos["object_pose"][:, 2], heights)
            assert not observations["image"][:, 0, 1].any(), "every reset asks for a new scene"
    with closing(bridge(python, "drawer")) as envs:
        _, infos = envs.reset(seed=[1, 2, 3, 4])
        places = [DRAWER.stations[draw_station(DRAWER, seed)["station"]] for seed in (1, 2, 3, 4)]
        base = infos["object_pose"][:, :2] - np.array(places)[:, :2]
        np.testing.assert_allclose(np.hypot(*base.T), np.hypot(*infos["target_pose"][:, :2].T))


def test_drawers_take_any_task_and_station_at_any_reset(python: str) -> None:
    starts = [
        {"task": "open_top_drawer", "station": "a0"},
        {"task": "close_bottom_drawer", "station": "b0"},
        {"task": "close_bottom_drawer", "station": "b0"},
        {"station": "b0"},
    ]
    with closing(bridge(python, "drawer", task="open_middle_drawer")) as envs:
        for order in ([0, 1, 2, 3], [3, 1, 2, 0]):
            _, infos = envs.reset(seed=[1, 1, 1, 1], options={"starts": [starts[slot] for slot in order]})
            assert [infos["instruction"][slot] for slot in order] == [
                "open top drawer",
                "close bottom drawer",
                "close bottom drawer",
                "open middle drawer",
            ]
            opened = np.array([[0, 0, 0], [0, 0, 0.2], [0, 0, 0.2], [0, 0, 0]])
            np.testing.assert_allclose(infos["drawer_qpos"], opened[order])
            handles = {0: [0.0475, 0, 0.705], 1: [0.2475, 0, 0.215], 3: [0.0475, 0, 0.46]}
            for slot, handle in handles.items():
                np.testing.assert_allclose(infos["object_pose"][order.index(slot), :3], handle)
            # Station b0 stands square before the cabinet, at (0.652, 0.009).
            np.testing.assert_allclose(infos["target_pose"][order.index(1), :2], [0.4045, 0.009], atol=1e-9)
        pull = NOTHING.copy()
        pull[[0, 3], 0] = -0.16, 0.16
        *_, infos = envs.step(pull)
        assert "is_grasped" not in infos
        assert infos["success"].tolist() == [False, False, False, True]


def test_what_a_caller_asks_for_reaches_the_original(python: str) -> None:
    options = {"overlay": False, "orientation": "lr_switch", "image_size": (256, 160), "num_workers": 1}
    with closing(bridge(python, num_envs=1, **options)) as envs:
        observations, infos = envs.reset(seed=0)
        assert observations["image"][0, 0, 0, 0] == 0, "no photo"
        assert observations["image"][0, 0, 2, 0] == 53, "a quarter as wide, a quarter of the focal length"
        assert infos["object_pose"][0, 2] == 0.902
    with closing(bridge(python, "drawer", num_envs=1)) as envs:
        observations, _ = envs.reset(seed=0, options={"station": "c1"})
        assert observations["image"][0, 0, 0, 0] == len("open_drawer_c1.png")


def test_ids_and_the_variable_lead_to_it(python: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, python)
    env: Any = gymnasium.make("vla_razor/SimplerPickCan-v1", image_size=(8, 10), render_mode="rgb_array")
    with closing(env):
        assert env.metadata["render_fps"] == 3
        observation, info = env.reset(seed=5, options={"orientation": "upright"})
        assert observation["image"].shape == (8, 10, 3)
        assert info["success"] is False and info["instruction"] == "pick coke can"
        observation, reward, terminated, truncated, info = env.step(np.array([0, 0, 0.1, 0, 0, 0, 1], np.float32))
        assert (reward, terminated, truncated, info["success"]) == (1.0, True, False, True)
        np.testing.assert_array_equal(env.render(), observation["image"])
        os.kill(env.unwrapped.envs.worker_pids[0], signal.SIGKILL)
        with pytest.raises(RuntimeError, match="the episode is lost; reset to go on"):
            env.step(np.zeros(7, np.float32))
        assert env.reset(seed=6)[0]["image"][-1, -1, 0] == 6
    many: Any = gymnasium.make_vec("vla_razor/SimplerDrawer-v1", 2, "vector_entry_point", num_workers=1, device="cuda")
    with closing(many) as envs:
        assert envs.reset(seed=1)[0]["image"].shape == (2, 512, 640, 3)


@pytest.mark.parametrize("how", ["die", "hang"])
def test_episodes_of_a_worker_that_fails_are_lost_and_the_others_unharmed(
    how: str, python: str, tmp_path: Path
) -> None:
    breaks = {"step": how, "unless": str(tmp_path / "once")}
    (tmp_path / "once").touch()
    with closing(bridge(python, timeout=5.0, arguments={"breaks": breaks})) as envs:
        envs.reset(seed=[10, 20, 30, 40])
        pids = envs.worker_pids
        (tmp_path / "once").unlink()
        envs.active = np.array([False, True, False, False])
        *_, terminated, truncated, infos = envs.step(NOTHING)
        assert infos["lost"].tolist() == [False, True, False, True], "slots 1 and 3 share the second worker"
        assert not terminated.any() and not truncated.any()
        assert envs.worker_pids[0] == pids[0] and envs.worker_pids[1] != pids[1]
        envs.active = np.array([True, False, True, False])
        observations, *_ = envs.step(NOTHING)
        assert shown(observations)[::2] == [11, 31]
        observations, infos = envs.reset(seed=[0, 21, 0, 41], options={"reset_mask": infos["lost"]})
        assert shown(observations) == [11, 21, 31, 41]
        assert not infos["lost"].any()


def test_what_the_original_prints_stays_out_of_this_programs_output(
    python: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with closing(bridge(python, num_envs=1)) as envs:
        envs.reset(seed=0)
        envs.step(NOTHING[:1])
    printed = capfd.readouterr()
    assert printed.out == ""
    assert "mani_skill2_real2sim says hello" in printed.err


def test_errors_of_the_original_arrive_in_words(python: str) -> None:
    with (
        closing(bridge(python, num_envs=1, arguments={"breaks": {"reset": "foreign"}})) as envs,
        pytest.raises(RuntimeError, match="ForeignError: the gears are stripped"),
    ):
        envs.reset(seed=0)
    with pytest.raises(RuntimeError, match="no such drawer") as caught:
        bridge(python, num_envs=1, arguments={"breaks": {"construction": "no such drawer"}})
    assert "simpler_worker.py" in "".join(caught.value.__notes__), "the worker's traceback is kept"
    with pytest.raises(RuntimeError, match=r"did not start \(exit code -9\)"):
        bridge(python, arguments={"breaks": {"construction": "die"}})
    for how in ("vk::PhysicalDevice::createDevice: failed", "segfault"):  # no extension; no driver at all
        with pytest.raises(vla_razor_envs.RenderingUnavailable, match="drop_semaphore_fd"):
            bridge(python, num_envs=1, arguments={"breaks": {"construction": how}})


def test_an_interpreter_that_will_not_do_is_an_error_that_names_it(
    python: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    with pytest.raises(ValueError, match=f"none is named: set {VARIABLE}, or python_executable"):
        SimplerVectorEnv("pick_can", 1)
    for path in ("/nowhere/python", str(STAND_IN), "/bin/true", "/dev/null"):
        with pytest.raises(ValueError, match=f"python_executable={path} is not a Python interpreter"):
            bridge(path)
    monkeypatch.setenv(VARIABLE, "/bin/true")
    with pytest.raises(ValueError, match=f"{VARIABLE}=/bin/true is not a Python interpreter"):
        SimplerVectorEnv("pick_can", 1)
    with pytest.raises(
        ValueError, match=r"cannot run SimplerEnv \(ModuleNotFoundError: No module named 'simpler_env'\)"
    ):
        bridge(sys.executable)
    other = tmp_path / "other"
    (other / "sapien-2.2.2.dist-info").mkdir(parents=True)
    (other / "sapien-2.2.2.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: sapien\nVersion: 2.2.2\n")
    with pytest.raises(ValueError, match=r"inverse kinematics of sapien 2.2.2 crashes with numpy 2\..*: use 1.x"):
        bridge(write_interpreter(other, other, STAND_IN, MS2_REAL2SIM_ASSET_DIR=other))
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(ValueError, match=r"lack the scene .*/google_pick_coke_can_1_v4.glb"):
        bridge(write_interpreter(empty, STAND_IN, MS2_REAL2SIM_ASSET_DIR=empty))


def test_bad_arguments_and_actions_are_refused(python: str) -> None:
    with pytest.raises(ValueError, match="orientation is 'sideways'; expected one of"):
        bridge(python, orientation="sideways")
    with closing(bridge(python)) as envs:
        envs.reset(seed=[10, 20, 30, 40])
        with pytest.raises(ValueError, match="reset option 'station' is unknown to pick_can"):
            envs.reset(seed=0, options={"station": "a0"})
        for bad, complaint in ((1.1, "expected numbers within"), (np.nan, "expected seven finite numbers")):
            actions = NOTHING.copy()
            actions[2, 1] = bad
            with pytest.raises(ValueError, match=complaint):
                envs.step(actions)
        with pytest.raises(ValueError, match=r"expected \(4, 7\)"):
            envs.step(NOTHING[0])
        envs.active = np.array([True, True, False, True])
        assert shown(envs.step(actions)[0]) == [11, 21, 30, 41], "what an inactive slot is sent does not matter"


SCRIPT = """
import signal, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background inherits that it is ignored
from vla_razor_envs.simpler_env import SimplerVectorEnv

envs = SimplerVectorEnv("pick_can", 2, python_executable={python!r}, num_workers=2, image_size=(8, 8))
print(*envs.worker_pids, flush=True)
time.sleep(1000)
"""


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGKILL])
def test_no_worker_outlives_its_parent(stop: signal.Signals, python: str, tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT.format(python=python))
    command = [sys.executable, str(tmp_path / "script.py")]
    script = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    assert script.stdout is not None
    pids = script.stdout.readline().split()
    assert len(pids) == 2
    os.killpg(script.pid, stop) if stop == signal.SIGINT else script.kill()  # a Ctrl-C reaches the workers too
    printed, messages = script.communicate(timeout=30)
    assert printed == "" and messages.count("Traceback") == (stop == signal.SIGINT), (
        "no worker says anything of its own"
    )
    deadline = time.monotonic() + 20
    while any(Path("/proc", pid).exists() for pid in pids):
        assert time.monotonic() < deadline, "a worker is still there"
        time.sleep(0.05)


# ---------------------------------------------------------------------- the original itself


@needs_original
@pytest.mark.slow
@pytest.mark.parametrize("name", ["coke_oracle_upright_2", "drawer_oracle_close_middle_b1"])
def test_the_original_repeats_its_recorded_episodes(name: str, shared: Path) -> None:
    trace = np.load(shared / "traces" / f"{name}.npz", allow_pickle=True)
    meta = json.loads(str(trace["meta_json"]))
    if name.startswith("coke"):
        family, start = "pick_can", {"object_xy": meta["obj_xy"], "orientation": meta["orientation"]}
    else:
        task = str(trace["init_instruction"]).replace(" ", "_")
        family, start = "drawer", {"task": task, "station": meta["station_placement"]}
    with closing(SimplerVectorEnv(family, 1)) as envs:
        observations, infos = envs.reset(seed=[int(trace["init_seed"])], options=start)
        check_picture(observations["image"][0], shared / "traces" / f"{name}__reset_rgb.png")
        np.testing.assert_allclose(infos["tcp_pose"][0], trace["tcp_pose_base"][0], atol=1e-3)
        for step, action in enumerate(trace["action"]):
            observations, *_, infos = envs.step(action[None])
            assert infos["success"][0] == trace["flag_success"][step]
            np.testing.assert_allclose(infos["tcp_pose"][0], trace["tcp_pose_base"][step + 1], atol=0.01)
        check_picture(observations["image"][0], shared / "traces" / f"{name}__end_rgb.png")


def check_picture(image: np.ndarray, recorded: Path) -> None:
    difference = np.abs(np.asarray(Image.open(recorded).convert("RGB")).astype(int) - image)
    assert difference.mean() < 1.0


@needs_original
@pytest.mark.slow
def test_an_episode_of_the_original_depends_on_its_seed_alone() -> None:
    actions = np.random.default_rng(0).uniform(-0.05, 0.05, (3, 7)).astype(np.float32)
    episodes = []
    with closing(SimplerVectorEnv("drawer", 2, num_workers=1, image_size=(64, 80))) as envs:
        for slot, seeds in enumerate(([7, 8], [9, 7])):
            starts = [{"task": "close_top_drawer"}, {"task": "open_bottom_drawer"}]
            seen = [envs.reset(seed=seeds, options={"starts": starts[:: 1 - 2 * slot]})]
            seen += [(step[0], step[-1]) for step in (envs.step(action[None].repeat(2, 0)) for action in actions)]
            episodes.append([(observation["image"][slot], infos["tcp_pose"][slot]) for observation, infos in seen])
    for first, second in zip(*episodes, strict=True):
        np.testing.assert_array_equal(first[0], second[0])
        np.testing.assert_array_equal(first[1], second[1])
