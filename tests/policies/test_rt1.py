"""RT-1 in real TensorFlow, on SavedModels with its signature: what goes in, what comes out, and what is refused."""

import gc
import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from vla_razor import cli
from vla_razor.config import compose
from vla_razor.errors import RunFailed, UserError
from vla_razor.policies import Observations, opening, rt1
from vla_razor.policies.rt1 import PYTHON, WORKER, RT1Policy, environment_actions

ROOT = Path(__file__).resolve().parents[2]
CAN, DRAWER = "pick coke can", "open top drawer"
ANYTHING = [np.random.default_rng(0)] * 3
WRONG = {
    "no_policy": "a SavedModel without action and get_initial_state",
    "no_time_step": "action takes a dict first; expected a time step of step_type, reward, discount, observation",
    "no_embedding": "observation 'natural_language_embedding' is absent; expected float32 [1 or any, 512]",
    "another_image": "observation 'image' is uint8 (None, 256, 320, 1); expected uint8 [1 or any, height, width, 3]",
    "no_gripper": "action gives 'gripper_closedness_action' absent among",
}


def tensorflow_python() -> str | None:
    """An interpreter with TensorFlow: the one that is named, this one, or what `make rt1` made."""
    own = sys.executable if importlib.util.find_spec("tensorflow") else None
    made = ROOT / ".venv-rt1" / "bin" / "python"
    return os.environ.get(PYTHON) or own or (str(made) if made.is_file() else None)


@pytest.fixture(scope="module")
def python() -> str:
    found = tensorflow_python()
    if found is None:
        pytest.skip(f"no TensorFlow here: make rt1, or name an interpreter with it in {PYTHON}")
    return found


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, python: str) -> Path:
    """The folder of SavedModels, made by an interpreter with TensorFlow."""
    folder = tmp_path_factory.mktemp("rt1")
    maker = Path(__file__).with_name("rt1_saved_model.py")
    made = subprocess.run([python, str(maker), str(folder)], capture_output=True, text=True, timeout=300)
    assert made.returncode == 0, made.stderr[-2000:]
    return folder


@pytest.fixture(scope="module")
def any_batch(models: Path, python: str) -> RT1Policy:
    return RT1Policy(models / "any_batch", models / "table.npz", python)


def shown(instructions: list[str]) -> Observations:
    """Camera images: white on the left half, darker from one to the next."""
    images = np.zeros((len(instructions), 512, 640, 3), np.uint8)
    for number, image in enumerate(images):
        image[:, :320] = 250 - 50 * number
    return Observations({"camera": images}, instructions)


@pytest.mark.slow
def test_actions_are_the_three_parts_one_after_the_other_each_of_its_own_episode(any_batch: RT1Policy) -> None:
    first = any_batch.act(shown([CAN, DRAWER, CAN]), ANYTHING)
    half = np.array([250, 200, 150]) / 255 / 2  # the middle row and the top are half white, the left edge is all white
    np.testing.assert_allclose(first.actions[:, 0, :3], np.stack([half, half, 2 * half], 1), atol=2e-3)
    np.testing.assert_allclose(first.actions[:, 0, 3:6], np.array([0.1, 0.2, 0.1])[:, None].repeat(3, 1), rtol=1e-6)
    assert first.actions[:, 0, 6].tolist() == [0, 0, 0], "a change of 0.005 is none"
    assert first.memories
    # Episode 1 goes on, a new one begins beside it, and episode 0 comes last.
    second = any_batch.act(shown([DRAWER, CAN, CAN]), ANYTHING, [first.memories[1], None, first.memories[0]])
    np.testing.assert_allclose(second.actions[:, 0, 6], [0.015, 0, 0.015], rtol=1e-5)
    assert second.stops is not None
    assert second.stops.tolist() == [False] * 3
    third = any_batch.act(shown([DRAWER, CAN, CAN]), ANYTHING, second.memories)
    assert third.stops is not None
    assert third.stops.tolist() == [True, False, True], "the stand-in stops at its third step"


@pytest.mark.slow
def test_a_signature_for_one_environment_gives_the_same(any_batch: RT1Policy, models: Path, python: str) -> None:
    one = RT1Policy(models / "one_by_one", models / "encoder", python)
    assert (any_batch.facts["batched"], one.facts["batched"]) == (True, False)
    together, apart = (policy.act(shown([CAN] * 2), ANYTHING) for policy in (any_batch, one))
    np.testing.assert_allclose(apart.actions[:, 0, :3], together.actions[:, 0, :3], atol=1e-6)
    encoded = len(CAN) / 100
    np.testing.assert_allclose(apart.actions[:, 0, 3:6], encoded, rtol=1e-6, err_msg="the sentence encoder is asked")
    again = one.act(shown([CAN] * 2), ANYTHING, apart.memories)
    np.testing.assert_allclose(again.actions[:, 0, 6], 0.015, rtol=1e-5)


@pytest.mark.slow
def test_states_of_ended_episodes_are_given_back(any_batch: RT1Policy) -> None:
    held = any_batch.act(shown([CAN] * 2), ANYTHING).memories
    assert held
    numbers = [state.number for state in held]
    del held
    gc.collect()
    assert set(numbers) <= set(any_batch._released)
    any_batch.act(shown([CAN]), ANYTHING)
    assert not set(numbers) & set(any_batch._released), "the worker has been told"


@pytest.mark.slow
def test_an_unknown_instruction_is_named_with_those_that_are_known(any_batch: RT1Policy) -> None:
    with pytest.raises(UserError, match="does not hold 'fly'; it holds 'open top drawer', 'pick coke can'"):
        any_batch.act(shown(["fly"]), ANYTHING)
    assert any_batch.act(shown([CAN]), ANYTHING).actions.shape == (1, 1, 7), "the policy can still be asked"


@pytest.mark.slow
def test_other_signatures_are_refused_with_what_was_expected(models: Path, python: str) -> None:
    script = (
        f"import sys; sys.path.insert(0, {str(WORKER.parent)!r})\n"
        "import tensorflow as tf, rt1_worker\n"
        "for folder in sys.argv[1:]:\n"
        "    try: rt1_worker.Model(tf, folder)\n"
        "    except rt1_worker.Unusable as error: print(error)\n"
        "    else: print('loaded')\n"
    )
    command = [python, "-c", script, *(str(models / name) for name in WRONG)]
    found = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    for message, expected in zip(found, WRONG.values(), strict=True):
        assert message.startswith(expected)
    with pytest.raises(UserError, match=f"{models / 'no_policy'}: {WRONG['no_policy']}"):
        RT1Policy(models / "no_policy", models / "table.npz", python)


@pytest.mark.slow
def test_a_dead_worker_is_a_failed_run(models: Path, python: str) -> None:
    policy = RT1Policy(models / "any_batch", models / "table.npz", python)
    policy._worker.kill()
    with pytest.raises(RunFailed, match="RT-1's process has died"):
        policy.act(shown([CAN]), ANYTHING)


@pytest.mark.slow
def test_a_table_that_is_none_is_refused(models: Path, python: str, tmp_path: Path) -> None:
    vectors: Any = {CAN: np.zeros(5, np.float32)}
    np.savez(tmp_path / "short.npz", **vectors)
    with pytest.raises(UserError, match="the embedding of 'pick coke can' is not 512 finite numbers"):
        RT1Policy(models / "any_batch", tmp_path / "short.npz", python)


def test_an_interpreter_without_tensorflow_is_refused_with_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "embeddings.npz").touch()
    bare = tmp_path / "python"
    bare.write_text(
        f'#!/bin/sh\nexec {sys.executable} -c \'import sys; sys.modules["tensorflow"] = None; '
        'import runpy; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name="__main__")\' "$@"\n'
    )
    bare.chmod(0o755)
    with pytest.raises(UserError, match=r"RT-1 needs TensorFlow: .* pip install 'vla-razor\[rt1\]'"):
        RT1Policy(tmp_path, python=bare)
    with pytest.raises(UserError, match=f"{PYTHON}=/nowhere: cannot be run"):
        RT1Policy(tmp_path, python="/nowhere")


@pytest.mark.parametrize(
    ("program", "problem"),
    [
        ("/bin/ls", "this prints something else than RT-1's process does."),
        ("/bin/cat", "this prints something else than RT-1's process does."),
        ("/bin/false", "RT-1's process has died (exit status 1)."),
        ("sleeps", "this says nothing for 2 s."),
    ],
)
def test_another_program_than_python_is_named_and_leaves_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str, problem: str
) -> None:
    for name in ("saved_model.pb", "embeddings.npz"):
        (tmp_path / name).touch()
    sleeps, out = tmp_path / "sleeps", tmp_path / "run"
    sleeps.write_text("#!/bin/sh\nexec sleep 100\n")
    sleeps.chmod(0o755)
    monkeypatch.setattr(rt1, "PATIENCE", 2.0)
    monkeypatch.setenv(PYTHON, named := str(tmp_path / program))
    result = CliRunner().invoke(cli.app, ["eval", "robot=google_robot", f"policy={tmp_path}", f"out={out}"])
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith(f"vla-razor: {PYTHON}={named}: expected a Python interpreter with TensorFlow")
    assert result.stderr.endswith(f"{problem}\n")
    assert not out.exists()


def test_missing_embeddings_are_refused_with_what_they_are(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="embeddings=DIR of the Universal Sentence Encoder"):
        RT1Policy(tmp_path)


def test_rt1_acts_on_the_google_robot_alone(tmp_path: Path) -> None:
    (tmp_path / "saved_model.pb").touch()
    with pytest.raises(UserError, match="add robot=google_robot"):
        opening.open_policy(str(tmp_path), compose("eval", []))


def test_a_small_gripper_change_is_none_and_the_first_of_three_ends_the_episode() -> None:
    raw = np.arange(30, dtype=np.float32).reshape(3, 10) / 100
    raw[:, 6:8] = np.array([[0.0099, 0], [-0.0099, 1], [-0.01, -1]])
    actions, ends = environment_actions(raw)
    np.testing.assert_array_equal(actions[:, :6], raw[:, :6])
    np.testing.assert_array_equal(actions[:, 6], np.array([0, 0, -0.01], np.float32))
    assert ends.tolist() == [False, True, False]
