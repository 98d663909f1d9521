"""The policy benchmark runs and judges as the issue says."""

import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tests.loading import load

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "bench" / "policy.py"


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    return load(SCRIPT, "bench_policy")


@pytest.mark.parametrize(
    ("name", "loop", "found", "needed", "met"),
    [("tiny", 5.0, 31.0, 30.0, True), ("tiny", 20.0, 59.0, 60.0, False), ("mid", 5.0, 59.0, 60.0, False)],
)
def test_targets(bench, name, loop, found, needed, met):
    verdict = bench.judge(name, {"bound": 100.0, "loop": loop, "actions_per_second": {16: found}})
    assert verdict == {"needed": needed, "found": found, "met": met}


def test_counted_operations(bench):
    """A linear layer is two operations a weight and row."""
    torch = bench.torch
    layer = torch.nn.Linear(8, 4, bias=False)
    assert bench.operations(lambda: layer(torch.zeros(3, 8))) == 2 * 3 * 8 * 4


@pytest.mark.slow
def test_the_last_line_is_json():
    options = ["--models", "tiny", "--batches", "1", "--threads", "1", "--seconds", "0", "--json"]
    command = [sys.executable, SCRIPT, *options]
    last = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1]
    report = json.loads(last)
    assert report["threads"] == 1
    assert report["tiny"]["actions_per_second"]["1"] > 0
    assert report["tiny"]["target"] is None
