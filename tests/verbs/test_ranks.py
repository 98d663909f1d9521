"""Several ranks of one run: what one process gives, whoever does which part of it, and an end for all where one ends."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.verbs.support import ACTION, CommandLine, metrics, random_demonstration, until, write_store
from vla_razor.policies.openvla.tiny import make_tiny

PLAIN = Path(__file__).parents[1] / "envs"
SUITE = """
id: plain_tasks:Plain/Slide-v0
tasks:
  slide_left: {instruction: slide to the left, options: {end: left}}
image: camera
proprioception: state.place
success: is_there
horizon: 8
"""
LEFTWARD = """
import numpy as np
from vla_razor.policies import Decisions

class Leftward:
    '''Goes left, more or less.'''
    name = "leftward"

    def act(self, images, instructions, infos, generators, memories=None):
        return Decisions(np.stack([g.uniform(-1, 0.5, (1, 3)) for g in generators]).astype(np.float32))
"""
EACH_WAY = {"q01": [-1.0] * 3, "q99": [1.0] * 3, "mask": [True] * 3}
FEW = ("device=cpu", "logger=none", "num_envs=4", "num_workers=1")
LEARNING = {"all weights": (), "adapter": ("lora_rank=4",)}


class Ranks:
    """What several processes are started in: their files, and their environment."""

    def __init__(self, folder: Path, vla_razor: CommandLine) -> None:
        self.folder = folder
        self.environment = vla_razor.environment | {"PYTHONPATH": f"{PLAIN}:{folder}:{os.environ.get('PYTHONPATH', '')}"}

    def start(self, world: int, *command: str, **environment: str) -> list[subprocess.Popen[str]]:
        """One process a rank, as a launcher would start them."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": str(world)}
        pipes: Any = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        settings = self.environment | place | environment
        return [
            subprocess.Popen([sys.executable, *command], env=settings | {"RANK": str(rank)}, **pipes)
            for rank in range(world)
        ]

    def run(self, world: int, lines: Sequence[Sequence[str]]) -> None:
        """Carries out command lines on so many ranks, or on one process without a launcher."""
        path = self.folder / f"lines-{world}.json"
        path.write_text(json.dumps(lines))
        processes = self.start(world, str(Path(__file__).with_name("ranked.py")), str(path))
        said = [process.communicate(timeout=300) for process in processes]
        assert [process.returncode for process in processes] == [0] * world, said


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory, vla_razor: CommandLine) -> Ranks:
    folder = tmp_path_factory.mktemp("ranks")
    stats = {"vla_razor_panda": {"action": ACTION}, "slide": {"action": EACH_WAY}}
    shape = {"hidden": 32, "layers": 1, "heads": 2, "intermediate": 64}
    told = ["pick can", "slide to the left"]
    make_tiny(told, torch.Generator().manual_seed(0), norm_stats=stats, **shape).save_pretrained(folder / "small")
    write_store(folder / "demos", [random_demonstration(seed, 6 + seed) for seed in range(5)])
    (folder / "slide.yaml").write_text(SUITE)
    (folder / "leftward.py").write_text(LEFTWARD)
    return Ranks(folder, vla_razor)


def lines_of(ranks: Ranks, name: str) -> dict[str, list[str]]:
    """The command lines by the name of their run, which goes to the folder `name`."""
    at = ranks.folder
    slide = [f"policy={at / 'small'}", f"env={at / 'slide.yaml'}", *FEW]
    three = ["iterations=3", "grid=1x2", "per_point=2", "prior=null", "save_every=3", "other_instructions=[pick can]"]
    lines: dict[str, list[str]] = {}
    for kind, words in LEARNING.items():
        quiet = ["eval_episodes=0", "probe_every=0", *FEW]
        batches = ["batch_size=16", "micro_batch_size=5", "epochs=1", f"demos={at / 'demos'}"]
        lines[f"sft, {kind}"] = ["sft", f"policy={at / 'small'}", *batches, *words, *quiet]
        measured = ["probe_every=3", "probe_states=20", "eval_episodes=3"]
        lines[f"rl, {kind}"] = ["rl", *slide, *three, *words, *measured]
    several = ["grid=1x3", "batch_size=4", "normalizer=tokens", "baseline=batch", "kl_coefficient=0.1"]
    lines["rl, several updates"] = ["rl", *slide, *three, *several, "eval_episodes=0", "probe_every=0"]
    lines["eval"] = ["eval", *slide, "episodes=5", "videos=1"]
    acting = ["policy=leftward:Leftward", f"env={at / 'slide.yaml'}", "grid=3x1", "per_point=2", "max_attempts=9"]
    lines["collect"] = ["collect", *acting, *FEW]
    lines["kl"] = ["kl", *slide, f"base={at / 'small'}", f"policy={at / name / 'rl, all weights'}", "probe_states=20"]
    return {run: [*words, f"out={at / name / run}"] for run, words in lines.items()}


@pytest.fixture(scope="module")
def runs(ranks: Ranks) -> Callable[[int], Path]:
    """The folder of the same runs on so many ranks, made when it is first asked for."""

    def made(world: int) -> Path:
        folder = ranks.folder / f"world {world}"
        if not folder.is_dir():
            environment = dict(ranks.environment)
            ranks.environment["VLA_RAZOR_CACHE"] = str(ranks.folder / f"cache {world}")
            ranks.run(world, list(lines_of(ranks, folder.name).values()))
            ranks.environment = environment
        return folder

    return made


def rows_of(out: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if "second" not in k} for row in metrics(out)]


@pytest.mark.slow
@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize("run", ["sft, all weights", "sft, adapter", "rl, all weights", "rl, adapter", "rl, several updates"])
def test_a_training_is_the_one_of_a_single_process(runs: Callable[[int], Path], run: str, world: int) -> None:
    """Three ranks have less than two grid points to themselves; episodes differ in length."""
    one, several = runs(1) / run, runs(world) / run
    assert len(metrics(one)) == 3
    for before, after in zip(rows_of(one), rows_of(several), strict=True):
        assert after == pytest.approx(before, abs=1e-5, rel=1e-4)
    for path in one.glob("checkpoints/*/*.safetensors"):
        other = load_file(several / path.relative_to(one))
        for name, weight in load_file(path).items():
            torch.testing.assert_close(other[name], weight, atol=1e-5, rtol=0, msg=f"{path}, {name}")
    assert_same_summary(one, several)


def assert_same_summary(one: Path, several: Path) -> None:
    texts = [(out / "summary.json").read_text().replace(str(out.parent), "") for out in (one, several)]
    before, after = (flat(json.loads(text)) for text in texts)
    assert before.keys() == after.keys()
    for name, value in before.items():
        if "seconds" not in name:
            near = pytest.approx(value, abs=1e-5, rel=1e-4) if isinstance(value, float) else value
            assert after[name] == near, name


def flat(value: Any, path: str = "") -> dict[str, Any]:
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        return {k: v for key, item in items for k, v in flat(item, f"{path}/{key}").items()}
    return {path: value}


