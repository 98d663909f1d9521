"""The benchmark of mixed precision, at the size of a test."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.verbs.support import random_demonstration, small_policy, write_store

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "bench" / "precision.py"


@pytest.mark.slow
@pytest.mark.parametrize("options", [[], ["--lora"]], ids=["all weights", "LoRA"])
def test_both_precisions_learn_the_same(tmp_path: Path, options: list[str]) -> None:
    small_policy().save_pretrained(tmp_path / "policy")
    demos = write_store(tmp_path / "demos", [random_demonstration(seed) for seed in range(3)])
    sizes = ["--updates", "15", "--batch-size", "8", "--rates", "1e-3", "--policy", tmp_path / "policy"]
    command = [sys.executable, SCRIPT, "--demos", demos, *sizes, *options, "--json"]
    last = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1]
    (result,) = json.loads(last)["results"]
    assert result["met"] and result["ratio"] == pytest.approx(1, abs=0.02)
    assert result["float32"] < result["before"] - 0.05, "something was learned"
