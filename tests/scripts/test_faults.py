"""The fault campaign: that it disturbs, that it would notice, and each kind of fault once."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from tests.loading import load

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
WRITES = """
from campaign import hook
from pathlib import Path
hook.install()
for name in "abc":
    Path(name).write_text(name)
"""


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(SCRIPTS)
    return load(SCRIPTS / "faults.py", "faults")


def writing(folder: Path, **own: str) -> subprocess.CompletedProcess[str]:
    """A process that writes three files below a folder."""
    environment = os.environ | {"PYTHONPATH": str(SCRIPTS), "FAULT_WATCHED": str(folder), **own}
    command = [sys.executable, "-c", WRITES]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_a_process_is_killed_or_finds_the_disk_full_at_the_write_that_was_drawn(tmp_path: Path) -> None:
    for name in ("kill", "full", "count"):
        (tmp_path / name).mkdir()
    assert writing(tmp_path / "count", FAULT_COUNT=str(tmp_path / "counted")).returncode == 0
    assert (tmp_path / "counted").read_text() == "3"
    assert writing(tmp_path / "kill", FAULT_KILL="3").returncode == -signal.SIGKILL
    assert sorted(path.name for path in (tmp_path / "kill").iterdir()) == ["a", "b"]
    assert "No space left on device" in writing(tmp_path / "full", FAULT_FULL="2").stderr
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["a"]


def test_what_ends_otherwise_is_noticed_and_clocks_are_not(script: ModuleType, tmp_path: Path) -> None:
    from campaign import ends

    def held(name: str, **changes: Any) -> dict[str, Any]:
        folder = tmp_path / name
        folder.mkdir()
        row = {"step": 1, "loss": 0.5, "wall_seconds": len(name), "seconds_update": len(name), **changes}
        (folder / "metrics.jsonl").write_text(json.dumps(row) + "\n")
        (folder / "summary.json").write_text(json.dumps({"made": f"{folder}/policy", "git_commit": name}))
        (folder / "weights.safetensors").write_bytes(b"weights" + name[:1].encode())
        return ends.held_by(folder, {str(folder): "here"})

    first = held("a")
    assert ends.differences(first, held("again")) == []
    assert ends.differences(first, held("another", loss=0.25)) == ["metrics.jsonl"]
    assert ends.differences(first, held("b")) == ["weights.safetensors"]
    assert ends.differences(first, first | {"checkpoints/step_7/x": 1}) == ["checkpoints/step_7/x"]
    assert ends.differences(first, first | {"checkpoints/step_7/x": 1}, more="checkpoints/") == []
    assert ends.differences(first, {}, more="checkpoints/") == sorted(first)


def test_damage_changes_a_file(script: ModuleType, tmp_path: Path) -> None:
    from campaign.damage import harmed

    path, whole, lengths = tmp_path / "file", bytes(range(100)), set()
    for seed in range(20):
        path.write_bytes(whole)
        harmed(path, np.random.default_rng(seed))
        found = path.read_bytes()
        assert found != whole
        lengths.add(len(found) == len(whole))
    assert lengths == {True, False}


def test_the_table_counts_what_was_lost(script: ModuleType) -> None:
    one = {"fault": "kill -9", "verb": "sft", "wrong": [], "silent": False, "resumed": True}
    tries = [one, {**one, "resumed": False}, {**one, "verb": "rl", "wrong": ["not as it was"], "silent": True}]
    assert list(script.table(tries))[2:] == [
        "| kill -9 | rl | 1 | 0 | 1 | 1 | 1 |",
        "| kill -9 | sft | 2 | 2 | 1 | 0 | 0 |",
        "| all |  | 3 | 2 | 2 | 1 | 1 |",
    ]


@pytest.mark.slow
def test_a_short_campaign_on_collect(script: ModuleType, tmp_path: Path) -> None:
    """Nothing is lost where a worker or rank is killed, or hangs, or the simulator gives NaN."""
    out = tmp_path / "faults.json"
    done = subprocess.run(
        [sys.executable, str(SCRIPTS / "faults.py"), "--short", "--only", ",collect", "--out", str(out)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    tries = json.loads(out.read_text())["tries"]
    assert len(tries) == len({one["fault"] for one in tries}) >= 4
    assert sum(one["kills"] for one in tries) >= 1
    again = [sys.executable, str(SCRIPTS / "faults.py"), "--table", "--out", str(out)]
    assert subprocess.run(again, capture_output=True, text=True, check=True).stdout.splitlines()[-1] in done.stdout
