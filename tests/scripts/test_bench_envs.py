"""The environments' benchmark judges as the issue says, and the GPU check says where it cannot run."""

import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from tests.loading import load

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    return load(SCRIPTS / "bench" / "envs.py", "bench_envs")


def case(image: str, processes: int, ours: float, bare: float, **more: float) -> dict:
    return {"family": "pick_can", "image": image, "processes": processes, "ours": ours, "bare": bare, **more}


def test_shares_are_medians_of_rounds_in_turn(bench):
    rounds = [{"ours": 9.0, "bare": 10.0, "original": 6.0}, {"ours": 4.0, "bare": 5.0, "original": 2.0}]
    rounds.append({"ours": 95.0, "bare": 100.0, "original": 19.0})
    split = {"seconds": 2.0, "physics": 1.5, "rendering": 0.0, "controller": 0.25}
    result = bench.summarize(rounds, split)
    assert (result["ours"], result["share"], result["ratio"]) == (9.0, 0.9, 2.0)
    assert result["split"] == {"physics": 0.75, "rendering": 0.0, "controller": 0.125, "rest": 0.125}


def test_gate_and_goals(bench):
    results = [case("none", 1, 50.0, 55.0, share=0.91, original=20.0), case("none", 2, 79.0, 100.0, share=0.79)]
    results.append(case("512x640", 1, 23.0, 25.0, share=0.92))
    bench.judge(results)
    assert [result["gate"] for result in results] == [True, False, True]
    assert [result["goal"]["met"] for result in results] == [True, False, True]
    assert [result["against"] for result in results] == ["measured", "measured", "recorded"]


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU: run scripts/check_gpu.py itself")
def test_the_gpu_check_says_that_there_is_no_gpu():
    done = subprocess.run([sys.executable, SCRIPTS / "check_gpu.py"], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "no CUDA device; --device cpu" in done.stderr
