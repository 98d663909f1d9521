"""The worker pool: its face, and that it survives its workers and leaves nothing behind."""

import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest

from vla_razor_envs import RenderingUnavailable
from vla_razor_envs.native import NativeVectorEnv
from vla_razor_envs.pool import PoolVectorEnv
from vla_razor_envs.single import SingleEnv

HERE = Path(__file__).parent
FRAGILE = "fragile:Fragile-v0"


@pytest.fixture(autouse=True)
def fragile_is_importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(HERE)


@pytest.fixture(autouse=True)
def nothing_left_behind(shared_memory_freed: None) -> Iterator[None]:
    yield
    gc.collect()
    assert not multiprocessing.active_children()


def in_memory(name: str) -> bool:
    return Path("/dev/shm", name).exists()


def alive(pid: int | str | None) -> bool:
    """Whether a process runs; one that has ended and waits to be collected does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def pool(num_envs: int = 4, **kwargs) -> PoolVectorEnv:
    return PoolVectorEnv(FRAGILE, num_envs, **{"num_workers": 2, "timeout": 30.0, **kwargs})


def counts(observations: dict[str, np.ndarray]) -> list[int]:
    images = observations["image"]
    assert images.dtype == np.uint8
    assert all((image == image[0, 0, 0]).all() for image in images)
    assert [int(row[0]) for row in observations["proprioception"]] == images[:, 0, 0, 0].tolist()
    return images[:, 0, 0, 0].tolist()


NOTHING = np.zeros((4, 7), np.float32)


def test_face_is_gymnasiums_and_slots_keep_to_themselves() -> None:
    with closing(pool()) as envs:
        assert isinstance(envs.observation_space, gymnasium.spaces.Dict)
        assert envs.observation_space["image"].shape == (4, 4, 6, 3)
        assert envs.action_space.shape == (4, 7)
        observations, infos = envs.reset(seed=[10, 20, 30, 40])
        assert counts(observations) == [10, 20, 30, 40]
        assert infos["instruction"].tolist() == [f"count from {n}" for n in (10, 20, 30, 40)]
        assert infos["pose"].shape == (4, 7)
        assert infos["success"].dtype == bool
        assert not infos["lost"].any()

        grasp = NOTHING.copy()
        grasp[2, 6] = 1
        observations, rewards, terminated, truncated, infos = envs.step(grasp)
        assert counts(observations) == [11, 21, 31, 41]
        assert rewards.tolist() == [0, 0, 1, 0]
        assert terminated.tolist() == infos["success"].tolist() == [False, False, True, False]
        assert not truncated.any()

        mask = np.array([False, True, False, False])
        observations, _ = envs.reset(seed=[1, 2, 3, 4], options={"reset_mask": mask})
        assert counts(observations) == [11, 2, 31, 41]

        envs.active = np.array([True, False, False, True])
        observations, *_ = envs.step(NOTHING)
        assert counts(observations) == [12, 2, 31, 42]
        envs.active = np.ones(4, bool)
        observations, _, _, truncated, _ = envs.step(NOTHING)
        assert counts(observations) == [13, 3, 32, 43]
        assert truncated.tolist() == [True, False, False, True]

        assert counts(envs.reset(seed=5)[0]) == [5, 6, 7, 8]
        with pytest.raises(ValueError, match="one entry for each of the 4 slots"):
            envs.reset(seed=[1, 2])


def test_a_tick_steps_some_slots_and_starts_others() -> None:
    with closing(pool()) as envs:
        before, _ = envs.reset(seed=[10, 20, 30, 40])
        active = np.array([True, True, False, True])
        observations, *_, infos = envs.tick(NOTHING, active, {1: (70, {}), 2: (80, {})})
        assert counts(observations) == [11, 70, 80, 41]
        assert infos["instruction"][1] == "count from 70"
        assert counts(before) == [10, 20, 30, 40], "observations are copies"


FRONT, BACK = np.array([True, True, False, False]), np.array([False, False, True, True])


def test_ticks_of_different_slots_are_received_in_the_order_they_were_sent() -> None:
    with closing(pool()) as envs:
        assert envs.groups == [[0, 1], [2, 3]]
        envs.reset(seed=[10, 20, 30, 40])
        envs.send(NOTHING, FRONT, {})
        envs.send(NOTHING, BACK, {3: (90, {})})
        observations, *_ = envs.receive()
        assert counts({key: value[:2] for key, value in observations.items()}) == [11, 21]
        grasp = NOTHING.copy()
        grasp[0, 6] = 1
        envs.send(grasp, FRONT, {})
        _, rewards, *_ = envs.receive()
        assert rewards.tolist() == [0, 0, 0, 0], "of the second tick"
        observations, rewards, *_ = envs.receive()
        assert counts(observations) == [12, 22, 31, 90]
        assert rewards.tolist() == [1, 0, 0, 0]


def test_a_worker_that_dies_over_one_tick_loses_the_slots_of_the_next_as_well(tmp_path: Path) -> None:
    with closing(pool()) as envs:
        starts = [{"at_step": "die", "unless": str(tmp_path / "once")}, {}, {}, {}]
        envs.reset(seed=[10, 20, 30, 40], options={"starts": starts})
        envs.send(NOTHING, FRONT, {})
        envs.send(NOTHING, BACK, {})
        assert envs.receive()[-1]["lost"].tolist() == [True, False, False, False], "slot 2 is still to be received"
        envs.send(NOTHING, np.zeros(4, bool), {0: (50, {})})
        observations, *_, infos = envs.receive()
        assert infos["lost"].tolist() == [False, False, True, False]
        assert counts({key: value[3:] for key, value in observations.items()}) == [41]
        observations, *_, infos = envs.receive()
        assert not infos["lost"].any()
        assert counts(observations)[0] == 50


def test_after_an_error_nothing_is_left_to_receive() -> None:
    with closing(pool()) as envs:
        starts = [{"at_step": "refuse"}, {}, {}, {}]
        envs.reset(seed=0, options={"starts": starts})
        envs.send(NOTHING, FRONT, {})
        envs.send(NOTHING, BACK, {})
        with pytest.raises(ValueError, match="this start does not exist"):
            envs.receive()
        assert counts(envs.reset(seed=3)[0]) == [3, 4, 5, 6]


def test_an_action_that_will_not_do_is_refused_before_any_slot_has_moved() -> None:
    with closing(pool()) as envs:
        envs.reset(seed=[10, 20, 30, 40])
        envs.send(NOTHING, FRONT, {})
        for bad, complaint in ((np.nan, "expected seven finite numbers"), (1.5, "expected numbers within")):
            actions = NOTHING.copy()
            actions[3, 6] = bad
            with pytest.raises(ValueError, match=f"action of slot 3 is .*{complaint}"):
                envs.send(actions, BACK, {})
        for shape in ((7,), (1, 7), (4, 6), (8, 7)):
            with pytest.raises(ValueError, match=r"expected \(4, 7\)"):
                envs.send(np.zeros(shape), BACK, {})
        envs.send(actions, np.array([False, False, True, False]), {})
        assert counts({key: value[:2] for key, value in envs.receive()[0].items()}) == [11, 21]
        assert counts(envs.receive()[0]) == [11, 21, 31, 40]


def test_workers_are_told_to_keep_to_one_thread_and_the_parent_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LP_NUM_THREADS", "7")
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    with closing(pool()) as envs:
        _, infos = envs.reset(seed=0)
    assert infos["environment"][3] == {"LP_NUM_THREADS": "0", "OMP_WAIT_POLICY": "passive"}
    assert os.environ["LP_NUM_THREADS"] == "7"
    assert "OMP_WAIT_POLICY" not in os.environ


def test_an_environments_error_arrives_as_it_was_raised_and_the_pool_goes_on() -> None:
    with closing(pool()) as envs:
        starts = [{}, {"at_reset": "refuse"}, {}, {}]
        with pytest.raises(ValueError, match="this start does not exist") as caught:
            envs.reset(seed=0, options={"starts": starts})
        assert str(caught.value) == "this start does not exist; expected another"
        assert "break_if" in "".join(caught.value.__notes__), "the worker's traceback is kept"
        assert counts(envs.reset(seed=3)[0]) == [3, 4, 5, 6]
        with pytest.raises(RuntimeError, match="cannot travel"):
            envs.reset(seed=0, options={"starts": [{}, {}, {}, {"at_reset": "untransportable"}]})
        assert counts(envs.reset(seed=3)[0]) == [3, 4, 5, 6]


def test_what_cannot_be_built_is_an_error_at_once() -> None:
    with pytest.raises(ValueError, match="this start does not exist"):
        pool(construction="refuse")
    with pytest.raises(RenderingUnavailable, match="no usable Vulkan device"):
        pool(construction="no vulkan")
    with pytest.raises(RuntimeError, match=r"did not start \(exit code -9\)"):
        pool(construction="die")
    with pytest.raises(ValueError, match="expected at least 1"):
        pool(num_workers=0)


@pytest.mark.parametrize("how", ["die", "hang"])
def test_slots_of_a_worker_that_fails_are_lost_and_come_back(how: str, tmp_path: Path) -> None:
    with closing(pool(timeout=5.0)) as envs:
        pids = envs.worker_pids
        starts = [{}, {"at_step": how, "unless": str(tmp_path / "once")}, {}, {}]
        envs.reset(seed=[10, 20, 30, 40], options={"starts": starts})
        observations, _, terminated, truncated, infos = envs.step(NOTHING)
        assert infos["lost"].tolist() == [False, True, False, True], "slots 1 and 3 share the second worker"
        assert counts(observations)[::2] == [11, 31]
        assert not terminated.any()
        assert not truncated.any()
        assert envs.worker_pids[0] == pids[0] != envs.worker_pids[1] != pids[1]
        observations, infos = envs.reset(seed=[0, 20, 0, 40], options={"reset_mask": infos["lost"]})
        assert counts(observations) == [11, 20, 31, 40]
        assert not infos["lost"].any()


def test_a_worker_killed_while_idle_is_noticed_at_the_next_tick() -> None:
    with closing(pool()) as envs:
        envs.reset(seed=[10, 20, 30, 40])
        os.kill(envs.worker_pids[0], signal.SIGKILL)
        *_, infos = envs.step(NOTHING)
        assert infos["lost"].tolist() == [True, False, True, False]
        assert counts(envs.reset(seed=[1, 2, 3, 4])[0]) == [1, 2, 3, 4]


def test_closing_twice_or_by_garbage_collection_frees_everything() -> None:
    envs = pool()
    envs.reset(seed=0)
    envs.close()
    envs.close()
    with pytest.raises(RuntimeError, match="closed"):
        envs.step(NOTHING)
    forgotten = pool()
    forgotten.reset(seed=0)
    pids = forgotten.worker_pids
    assert all(map(alive, pids))
    del forgotten
    gc.collect()
    assert not any(map(alive, pids))


SCRIPT = """
import os, signal, sys, time
sys.path.insert(0, {here!r})
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background inherits that it is ignored
from vla_razor_envs.pool import PoolVectorEnv

# No guard: the workers do not import this script.
envs = PoolVectorEnv("fragile:Fragile-v0", 4, num_workers=2, timeout=1000)
envs.reset(seed=0)
print(*envs.worker_pids, envs._arrays.name, flush=True)
{ending}
"""
HANG = "envs.reset(seed=0, options={'starts': [{'at_reset': 'hang'}] * 4})"


def interrupt(process: subprocess.Popen) -> None:
    os.killpg(process.pid, signal.SIGINT)  # a terminal's Ctrl-C reaches the workers too


def kill(process: subprocess.Popen) -> None:
    process.kill()


@pytest.mark.parametrize(
    ("ending", "stop", "status"),
    [
        ("pass", None, 0),
        ("raise SystemExit(3)", None, 3),
        ("envs.reset(seed=0, options={'at_reset': 'refuse'})", None, 1),
        (HANG, interrupt, -signal.SIGINT),
        ("time.sleep(1000)", kill, -signal.SIGKILL),
    ],
    ids=["exit without closing", "sys.exit", "exception", "Ctrl-C", "killed"],
)
def test_no_process_and_no_memory_outlive_the_parent(
    ending: str, stop: Callable[[subprocess.Popen], None] | None, status: int, tmp_path: Path
) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(here=str(HERE), ending=ending))
    process = subprocess.Popen(
        [sys.executable, script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout is not None
    *pids, name = process.stdout.readline().split()
    if stop:
        time.sleep(0.5)
        stop(process)
    _, messages = process.communicate(timeout=30)
    assert process.returncode == status, messages
    assert "Process Spawn" not in messages, "no worker says anything of its own"
    if stop is not kill:
        assert "leaked" not in messages
    wait_until(lambda: not any(map(alive, pids)), "the workers end")
    wait_until(lambda: not in_memory(name), "the memory is freed")


def wait_until(holds: Callable[[], bool], what: str, seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"in vain: {what}"
        time.sleep(0.05)


@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_the_gpu_that_is_named_simulates_and_renders(monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    class Built(Exception):
        pass

    def built(*_: Any, **arguments: Any) -> None:
        raise Built(arguments["sim_backend"], arguments["render_backend"])

    monkeypatch.setattr("vla_razor_envs.pick_can.PickCan", built)
    with pytest.raises(Built) as where:
        gymnasium.make_vec("vla_razor/PickCan-v2", 2, "vector_entry_point", device=device)  # pyright: ignore
    assert where.value.args == (f"physx_{device}", f"sapien_{device}")


@pytest.mark.slow
def test_every_slot_of_the_real_tasks_gives_what_one_environment_gives() -> None:
    starts = [{"task": task} for task in ("open_top_drawer", "close_bottom_drawer", "open_middle_drawer")]
    actions = np.random.default_rng(0).uniform(-0.07, 0.07, (5, 3, 7)).astype(np.float32)
    single = SingleEnv("drawer", ("panda",))
    native = NativeVectorEnv("drawer", ("panda",), 1, device="cpu")
    pooled: Any = gymnasium.make_vec("vla_razor/Drawer-v1", 3, "vector_entry_point", num_workers=2)
    with closing(pooled) as envs:
        assert envs.setup == single.setup
        assert envs.single_observation_space == single.observation_space
        observations, infos = envs.reset(seed=[1, 2, 3], options={"starts": starts})
        recorded = [(observations, infos)] + [(step[0], step[-1]) for step in map(envs.step, actions)]
        for slot, start in enumerate(starts):
            observation, info = single.reset(seed=slot + 1, options=start)
            alone = [(observation, info)] + [(s[0], s[-1]) for s in map(single.step, actions[:, slot])]
            observations, infos = native.reset(seed=slot + 1, options={"starts": [start]})
            batched = [(observations, infos)] + [(s[0], s[-1]) for s in map(native.step, actions[:, slot : slot + 1])]
            for one, many, gpu in zip(alone, recorded, batched, strict=True):
                for key in ("image", "proprioception"):
                    np.testing.assert_array_equal(one[0][key], many[0][key][slot])
                    np.testing.assert_array_equal(one[0][key], gpu[0][key][0])
                for key, value in one[1].items():
                    np.testing.assert_array_equal(value, many[1][key][slot])
                    np.testing.assert_array_equal(value, gpu[1][key][0])
        with pytest.raises(ValueError, match="reset option station is 'z9'; expected one of"):
            envs.reset(seed=0, options={"station": "z9"})
    native.close()
    single.close()
