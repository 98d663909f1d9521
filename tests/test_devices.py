"""Where tasks are simulated: on a GPU only what was checked on this one, with this driver and this simulator."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from vla_razor import devices, doctor
from vla_razor.config import compose
from vla_razor.devices import checked_tasks, remember_check, simulation_device
from vla_razor.errors import UserError
from vla_razor.rollouts import environments

GPU = torch.device("cuda", 0)
CAN = "pick_can google_robot"
MACHINE = {"gpu": "H100", "driver": "580.1", "mani_skill": "3.0.1", "sapien": "3.0.3"}


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, str]:
    """A machine with a GPU, as far as these questions go."""
    there = dict(MACHINE)
    monkeypatch.setenv("VLA_RAZOR_CACHE", str(tmp_path))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(devices, "simulator_of", lambda device: dict(there))
    return there


@pytest.mark.parametrize("device", ["auto", "cuda", "cuda:0", GPU])
def test_a_gpu_that_was_not_checked_leaves_simulation_to_the_cpu(machine: dict[str, str], device: str) -> None:
    assert simulation_device(device, CAN).type == "cpu"
    remember_check([CAN], GPU)
    assert simulation_device(device, CAN).type == "cuda"
    assert simulation_device(device, "pick_can panda").type == "cpu", "which the check does not simulate"
    assert simulation_device("cpu", CAN).type == "cpu"
    remember_check(["drawer google_robot"], GPU)
    assert simulation_device(device, CAN).type == "cuda", "checked one after the other"


@pytest.mark.parametrize("changed", MACHINE)
def test_another_gpu_driver_or_simulator_is_to_be_checked_anew(machine: dict[str, str], changed: str) -> None:
    remember_check([CAN], GPU)
    machine[changed] = "another"
    assert checked_tasks(GPU) == [] and simulation_device("auto", CAN).type == "cpu"
    remember_check(["drawer google_robot"], GPU)
    assert checked_tasks(GPU) == ["drawer google_robot"], "what was checked before says nothing of this one"


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"machine": 1}'])
def test_a_file_that_says_nothing_is_no_check(machine: dict[str, str], tmp_path: Path, content: str) -> None:
    (tmp_path / "gpu_check.json").write_text(content)
    assert checked_tasks(GPU) == []


@pytest.mark.parametrize(
    ("words", "unchecked", "checked"),
    [
        (["robot=google_robot"], "cpu", "cuda"),
        (["robot=google_robot", "env=drawer"], "cpu", "cpu"),
        (["robot=panda"], "cpu", "cpu"),
        (["robot=google_robot", "sim_backend=gpu"], "cuda", "cuda"),
        (["robot=google_robot", "sim_backend=cpu"], "cpu", "cpu"),
    ],
)
def test_sim_backend_says_otherwise(
    machine: dict[str, str], monkeypatch: pytest.MonkeyPatch, words: list[str], unchecked: str, checked: str
) -> None:
    made: list[Any] = []
    monkeypatch.setattr(environments.gymnasium, "make_vec", lambda *_, **settings: made.append(settings["device"]))
    config = compose("eval", [*words, "device=cuda"])
    environments.make_vector_env(config.env, 4, 2, config.device)
    remember_check([CAN], GPU)
    environments.make_vector_env(config.env, 4, 2, config.device)
    assert made == [unchecked, checked]


def test_a_machine_without_a_gpu_is_as_before() -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    assert simulation_device("auto", CAN).type == "cpu"
    with pytest.raises(UserError, match="there is no CUDA device here"):
        simulation_device("cuda", CAN)
    assert doctor.check_simulation() == doctor.Check(True, "in CPU processes: there is no GPU")


def test_the_doctor_says_what_was_checked(machine: dict[str, str], tmp_path: Path) -> None:
    before = doctor.check_simulation()
    assert before.ok is None and "has not been checked (gpu H100" in before.found and "check_gpu.py" in before.remedy
    path = remember_check([CAN], GPU)
    assert path.parent == tmp_path and json.loads(path.read_text()) == {"machine": MACHINE, "tasks": [CAN]}
    after = doctor.check_simulation()
    assert after.ok and f"on the GPU, as checked there: {CAN}" in after.found and "driver 580.1" in after.found
