"""docs/datasets.md as it stands: from a LeRobot dataset to an adapter, how far it moved, and vla-eval's own command."""

import json
import os
import re
import shlex
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.serving.test_counterparts import PYTHONS, VLA_EVAL, VLA_EVAL_BENCHMARK, needs_vla_eval
from tests.verbs.support import CommandLine, done, random_demonstration, write_store

pytest.importorskip("av", reason="no PyAV here: pip install 'vla-razor[lerobot]'")
pytestmark = pytest.mark.slow

PAGE = Path(__file__).parents[2] / "docs" / "datasets.md"
QUICK = {
    "import": [],
    "stats": ["logger=none"],
    "sft": ["logger=none", "batch_size=16", "probe_states=8"],
    "kl": ["logger=none", "probe_states=8"],
    "save": [],
}
CONFIG = """
output_dir: results
benchmarks:
  - benchmark: counting:Counting
    episodes_per_task: 2
    max_steps: 10
"""


@pytest.fixture(scope="module")
def commands() -> list[list[str]]:
    """Those of the page's first block."""
    block = re.search(r"```\n(vla-razor import.*?)```", PAGE.read_text(), re.DOTALL)
    assert block
    return [shlex.split(line) for line in block[1].splitlines()]


@pytest.fixture(scope="module")
def folder(commands: list[list[str]], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where they have been carried out, up to the server."""
    made = tmp_path_factory.mktemp("page")
    episodes = [replace(random_demonstration(seed), instruction="pick coke can") for seed in range(10)]
    write_store(made / "store", episodes)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(made)
        done("export", "lerobot", "store", "out=recorded")
        for command in commands[: len(QUICK)]:
            done(*command[1:], *QUICK[command[1]])
        yield made


def test_the_path_from_a_dataset_to_what_was_forgotten(folder: Path) -> None:
    tuned, moved = (json.loads((folder / out / "summary.json").read_text()) for out in ("tuned", "moved"))
    assert (tuned["held_out"]["states"], tuned["held_out"]["episodes"]) == (8, 1)
    (entry,) = moved["policies"].values()
    assert entry["forward_kl"]["per_action"] == pytest.approx(tuned["policies"]["tuned"]["forward_kl"]["per_action"])
    assert entry["forward_kl"]["per_action"] > 0 and np.isfinite(entry["forward_kl"]["spillover"])
    (card,) = (folder / "final" / "checkpoints").glob("*/README.md")
    assert "fine-tuned by SFT on `my_robot`" in card.read_text()


@needs_vla_eval
def test_the_server_and_vla_evals_own_command(folder: Path, commands: list[list[str]], tmp_path: Path) -> None:
    serve, run = commands[len(QUICK) :]
    (tmp_path / "counting.py").write_text(VLA_EVAL_BENCHMARK)
    (tmp_path / "benchmark.yaml").write_text(CONFIG)
    with served([*serve[1:-1], "0", "logger=none"], tmp_path) as address:
        binary = Path(str(PYTHONS[VLA_EVAL])).with_name(run[0])
        environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
        subprocess.run([binary, *run[1:-1], address, "--yes"], cwd=tmp_path, env=environment, check=True, timeout=300)
    (results,) = (tmp_path / "results").rglob("*.json")
    found = json.loads(results.read_text())
    assert found["benchmark"] == "Counting" and found["mean_success"] == 1.0, found


@contextmanager
def served(words: list[str], cache: Path) -> Iterator[str]:
    """The address of a server that is ready."""
    with CommandLine(cache).start(*words) as process:
        assert process.stdout
        try:
            line = next(line for line in process.stdout if line.startswith("serving"))
            yield line.split(" at ")[1].split(";")[0]
        finally:
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0
