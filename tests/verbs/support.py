"""A small policy, demonstrations that need no simulator, and the command line as a process of its own."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile
from typer.testing import CliRunner, Result

from vla_razor import cli
from vla_razor.policies.openvla import OpenVLA
from vla_razor.policies.openvla.tiny import make_tiny
from vla_razor.rollouts import demonstrations
from vla_razor.rollouts.demonstrations import Demonstration, Shard
from vla_razor_envs.vulkan import software_folder

# A shell that runs the tests in the background has its children ignore Ctrl-C.
MAIN = """import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
from vla_razor.cli import main
main()"""
GUIDE = Path(__file__).parents[2] / "CONTRIBUTING.md"
ACTION = {"q01": [-0.07] * 3 + [-0.25] * 3 + [-1.0], "q99": [0.07] * 3 + [0.25] * 3 + [1.0], "mask": [True] * 7}
INSTRUCTION = "pick can"


def told(*words: object) -> Result:
    """What the command line answers, in this process."""
    return CliRunner().invoke(cli.app, [*map(str, words)])


def done(*words: object) -> Result:
    """As `told`, of a command that succeeds."""
    result = told(*words)
    assert result.exit_code == 0, result.output
    return result


def recipe(file: str) -> str:
    """The block of CONTRIBUTING.md whose first line names the file."""
    (text,) = re.findall(rf"```\w+\n(# {re.escape(file)}[,\n].*?)```", GUIDE.read_text(), re.DOTALL)
    return text


def small_policy(seed: int = 0) -> OpenVLA:
    """An untrained policy of 600 thousand parameters, most of them in the vision stacks."""
    stats = {"vla_razor_panda": {"action": ACTION}}
    shape = {"hidden": 32, "layers": 1, "heads": 2, "intermediate": 64}
    return make_tiny([INSTRUCTION], torch.Generator().manual_seed(seed), norm_stats=stats, **shape)


def random_demonstration(seed: int, length: int = 8, task: str = "pick_can") -> Demonstration:
    """Random pictures and actions, in the form of an episode."""
    draw = np.random.default_rng(seed)
    actions = draw.uniform(-0.05, 0.05, (length, 7)).astype(np.float32)
    return Demonstration(
        instruction=INSTRUCTION,
        task=task,
        start={},
        seed=seed,
        control_hz=5,
        camera="workspace_camera",
        policy="scripted",
        images=draw.integers(0, 256, (length, 64, 64, 3), np.uint8),
        proprioception=draw.normal(size=(length, 8)).astype(np.float32),
        actions=actions,
        labels=actions,
        success=np.arange(length) == length - 1,
    )


def write_store(folder: Path, episodes: list[Demonstration]) -> Path:
    """A store of one file."""
    demonstrations.write(folder / demonstrations.FOLDER / "row_0000.h5", Shard("panda", 0, 1, [], episodes))
    return folder


class CommandLine:
    """`vla-razor` as a process of its own, with a cache of its own."""

    def __init__(self, cache: Path) -> None:
        if software_folder().is_dir():
            (cache / "vulkan").symlink_to(software_folder())
        self.environment = os.environ | {"VLA_RAZOR_CACHE": str(cache), "COLUMNS": "200", "OMP_NUM_THREADS": "1"}

    def start(self, *arguments: object, **environment: str) -> subprocess.Popen[str]:
        if path := os.environ.get("PYTHONPATH"):  # the modules of a test stand before those of this checkout
            environment["PYTHONPATH"] = os.pathsep.join([*filter(None, [environment.get("PYTHONPATH")]), path])
        command = [sys.executable, "-c", MAIN, *map(str, arguments)]
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen(command, env=self.environment | environment, start_new_session=True, **pipes)

    def run(self, *arguments: object, status: int = 0, **environment: str) -> subprocess.CompletedProcess[str]:
        """Runs to the end and checks the exit status."""
        process = self.start(*arguments, **environment)
        output, errors = process.communicate()
        assert process.returncode == status, f"exit status {process.returncode}\n{output}\n{errors}"
        return subprocess.CompletedProcess(process.args, process.returncode, output, errors)

    def stop_at(self, out: Path, step: int, number: signal.Signals, *arguments: object) -> subprocess.CompletedProcess:
        """Starts or resumes the run in `out` and sends the signal once `step` has been logged."""
        process = self.start(*arguments)
        until(lambda: process.poll() is not None or any(row["step"] >= step for row in metrics(out)))
        running = process.poll() is None
        if running:
            os.kill(process.pid, number)
        output, errors = process.communicate()
        assert running, f"ended before step {step}, exit status {process.returncode}\n{output}\n{errors}"
        return subprocess.CompletedProcess(process.args, process.returncode, output, errors)


def until(holds: Callable[[], bool], seconds: float = 400) -> None:
    """Waits."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def metrics(out: Path) -> list[dict[str, Any]]:
    """The whole rows of metrics.jsonl so far."""
    path = out / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def timeless(row: dict[str, Any]) -> dict[str, Any]:
    """A row without what depends on the clock."""
    return {key: value for key, value in row.items() if "seconds" not in key and "per_second" not in key}


def assert_same_end(one: Path, other: Path) -> None:
    """Two finished runs hold the same rows and, byte for byte, the same checkpoints."""
    assert [timeless(row) for row in metrics(one)] == [timeless(row) for row in metrics(other)]
    weights = [
        {p.relative_to(out): p.read_bytes() for p in out.glob("checkpoints/*/*.safetensors")} for out in (one, other)
    ]
    assert weights[0]
    assert weights[0] == weights[1]


def peak_of(call: Callable[[], object]) -> int:
    """The most bytes that torch's CPU allocator held at once during a call, beside what it held before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        call()
    results: Any = profiler.profiler
    events = [event for event in results.kineto_results.events() if event.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak
