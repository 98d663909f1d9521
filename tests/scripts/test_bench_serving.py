"""The load test of the policy server, for some seconds."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "bench" / "serving.py"


@pytest.mark.slow
def test_the_server_bears_some_clients_and_does_not_grow():
    options = ["--clients", "8", "--seconds", "20", "--json"]
    done = subprocess.run([sys.executable, SCRIPT, *options], check=True, capture_output=True, text=True)
    report = json.loads(done.stdout.splitlines()[-1])
    for way in ("batched", "one_by_one"):
        assert report[way]["decisions"] > 8
        assert 0 < report[way]["p50_milliseconds"] <= report[way]["p99_milliseconds"]
    assert report["ratio"] > 0
    assert report["targets_met"]["no_growth"]
