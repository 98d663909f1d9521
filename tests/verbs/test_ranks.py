"""Several ranks of one run: what one process gives, whoever does which part, and an end for all where one ends."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from tests.verbs.support import ACTION, CommandLine, metrics, random_demonstration, small_policy, until, write_store
from vla_razor.cli import app
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

    def act(self, observations, generators, memories=None):
        return Decisions(np.stack([g.uniform(-1, 0.5, (1, 3)) for g in generators]).astype(np.float32))
"""
EACH_WAY = {"q01": [-1.0] * 3, "q99": [1.0] * 3, "mask": [True] * 3}
FEW = ("device=cpu", "logger=none", "num_envs=4", "num_workers=1")
LEARNING = {"all weights": (), "adapter": ("lora_rank=4",)}


class Ranks:
    """What several processes are started in: their files, and their environment."""

    def __init__(self, folder: Path, vla_razor: CommandLine) -> None:
        self.folder = folder
        self.environment = vla_razor.environment | {
            "PYTHONPATH": f"{PLAIN}:{folder}:{os.environ.get('PYTHONPATH', '')}"
        }

    def start(self, *commands: Sequence[str], apart: bool = False) -> list[subprocess.Popen[str]]:
        """A rank for each command, as Slurm would start them; `apart`: in a working directory of its own."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            place = {
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(free.getsockname()[1]),
                "WORLD_SIZE": str(len(commands)),
            }
        pipes: Any = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return [
            subprocess.Popen(
                [sys.executable, *command],
                env=self.environment | place | {"RANK": str(rank)},
                cwd=self.folder / f"node {rank}" if apart else self.folder,
                **pipes,
            )
            for rank, command in enumerate(commands)
        ]

    def run(self, world: int, lines: Sequence[Sequence[str]]) -> None:
        """Carries out command lines on so many ranks, or on one process without a launcher."""
        path = self.folder / f"lines-{world}.json"
        path.write_text(json.dumps(lines))
        processes = self.start(*[(str(Path(__file__).with_name("ranked.py")), str(path))] * world)
        said = [process.communicate(timeout=590) for process in processes]
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
    three = ["iterations=3", "grid=1x2", "per_point=4", "prior=null", "save_every=3", "other_instructions=[pick can]"]
    lines: dict[str, list[str]] = {}
    for kind, words in LEARNING.items():
        quiet = ["eval_episodes=0", "probe_every=0", *FEW]
        batches = ["batch_size=16", "micro_batch_size=5", "epochs=1", f"demos={at / 'demos'}"]
        lines[f"sft, {kind}"] = ["sft", f"policy={at / 'small'}", *batches, *words, *quiet]
        measured = ["probe_every=3", "probe_states=20", "eval_episodes=3"]
        lines[f"rl, {kind}"] = ["rl", *slide, *three, *words, *measured]
    several = ["grid=1x3", "per_point=2", "batch_size=4", "normalizer=tokens", "baseline=batch", "kl_coefficient=0.1"]
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
@pytest.mark.parametrize(
    "run", ["sft, all weights", "sft, adapter", "rl, all weights", "rl, adapter", "rl, several updates"]
)
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


@pytest.mark.slow
@pytest.mark.parametrize("world", [2, 3])
def test_what_is_measured_and_collected_is_what_one_process_finds(runs: Callable[[int], Path], world: int) -> None:
    for run in ("eval", "collect", "kl"):
        one, several = runs(1) / run, runs(world) / run
        assert rows_of(several) == [pytest.approx(row, abs=1e-5, rel=1e-4) for row in rows_of(one)] or run == "eval"
        assert_same_summary(one, several)
    for name in ("episodes.jsonl", "videos"):
        assert (runs(world) / "eval" / name).exists()
    records = [(runs(n) / "eval" / "episodes.jsonl").read_text().replace(f"world {n}", "") for n in (1, world)]
    assert records[0] == records[1], "in the same order"
    files = [sorted((runs(n) / "collect" / "demonstrations").iterdir()) for n in (1, world)]
    assert [path.read_bytes() for path in files[0]] == [path.read_bytes() for path in files[1]]


def cli(*words: str) -> tuple[str, ...]:
    return ("-m", "vla_razor.cli", *words)


def ended(processes: Sequence[subprocess.Popen[str]]) -> tuple[list[int], str]:
    """The exit statuses, and what the processes wrote to standard error, with the launcher's words left out."""
    said = [process.communicate(timeout=590)[1] for process in processes]
    lines = [line for text in said for line in text.splitlines() if line.startswith("vla-razor: ")]
    assert "Traceback (most recent call last)" not in "".join(said) or len(processes) == 1, said
    return [process.returncode for process in processes], "\n".join(lines)


def learning(ranks: Ranks, out: Path, *words: str) -> list[str]:
    """The words of a run of REINFORCE that takes a while and saves often."""
    slide = [f"policy={ranks.folder / 'small'}", f"env={ranks.folder / 'slide.yaml'}", "prior=null", *FEW]
    sizes = ["iterations=6", "grid=1x2", "per_point=4", "save_every=1", "eval_episodes=0", "probe_every=0"]
    return ["rl", *slide, *sizes, *words, f"out={out}"]


@pytest.mark.slow
def test_where_a_rank_dies_all_end_and_other_ranks_go_on(ranks: Ranks) -> None:
    """Under torchrun, which tells the others to stop. Begun on two ranks, ended on three, it is the run of one."""
    out, alone = ranks.folder / "killed", ranks.folder / "alone"
    reference = subprocess.Popen([sys.executable, *cli(*learning(ranks, alone))], env=ranks.environment)
    launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [sys.executable, "-m", *launcher, *cli(*learning(ranks, out))]
    run = subprocess.Popen(command, env=ranks.environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    until(lambda: bool(metrics(out)) or run.poll() is not None)
    killed, end = rank_below(run.pid, 1), time.monotonic() + 60
    os.kill(killed, signal.SIGKILL)
    _, errors = run.communicate()
    assert time.monotonic() < end, "all stop within a minute"
    said = [line for line in errors.splitlines() if line.startswith("vla-razor: ")]
    assert len(said) == 1 and re.search(r"rank 1 \(.*\) ended without a word.* vla-razor resume .*killed", said[0]), (
        errors
    )
    statuses, said = ended(ranks.start(*[cli("resume", str(out))] * 3))
    assert (statuses, said) == ([0, 0, 0], "")
    assert reference.wait() == 0
    assert [row["step"] for row in metrics(out)] == list(range(1, 7))
    for before, after in zip(rows_of(alone), rows_of(out), strict=True):
        assert after == pytest.approx(before, abs=1e-5, rel=1e-4)
    (before, after) = (load_file(path / "checkpoints" / "step_6" / "model.safetensors") for path in (alone, out))
    for name, weight in before.items():
        torch.testing.assert_close(after[name], weight, atol=1e-5, rtol=0)


def rank_below(launcher: int, number: int) -> int:
    """The process of a rank, by what its environment says."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            below = int((folder / "stat").read_text().rpartition(")")[2].split()[1]) == launcher
            if below and f"\0RANK={number}\0" in (folder / "environ").read_text():
                return int(folder.name)
        except OSError:  # it has ended meanwhile
            continue
    raise AssertionError("there is no such rank")


@pytest.mark.slow
def test_where_rank_0_dies_another_says_so(ranks: Ranks) -> None:
    out = ranks.folder / "headless"
    processes = ranks.start(*[cli(*learning(ranks, out))] * 2)
    until(lambda: bool(metrics(out)))
    os.kill(processes[0].pid, signal.SIGKILL)
    statuses, said = ended(processes)
    assert statuses == [-signal.SIGKILL, 1]
    assert re.fullmatch(
        r"vla-razor: rank 0 \(.*\) ended without a word, .* Go on with: vla-razor resume .*headless", said
    )


@pytest.mark.slow
def test_an_interruption_is_saved_by_one(ranks: Ranks) -> None:
    """Ctrl-C in a terminal, or a scheduler, tells all of them."""
    out = ranks.folder / "interrupted"
    processes = ranks.start(*[cli(*learning(ranks, out, "save_every=100"))] * 2)
    until(lambda: len(metrics(out)) > 1)
    for process in processes:
        process.send_signal(signal.SIGTERM)
    statuses, said = ended(processes)
    assert (statuses, said) == ([130, 130], f"vla-razor: interrupted; go on with: vla-razor resume {out}")
    assert len(list((out / "checkpoints").iterdir())) == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (
            "learning_rate=1e-3",
            "learning_rate=1e-4",
            r"learning_rate is 0\.001 on rank 0 \(.*\), but 0\.0001 on rank 1",
        ),
        (
            "policy=policy",
            "policy=policy",
            r"the checkpoint of policy=policy is \w+ on rank 0 \(.*\), but \w+ on rank 1",
        ),
        ("demos=demos", "demos=demos", r"rank 1 \(.*\): demos holds no demonstrations"),
        ("out=run", "out=run", r"rank 1 \(.*\) does not see the run folder .*node 0/run.*that all nodes share"),
        ("epochs=0", "epochs=0", "bad value epochs=0: expected a whole number, at least 1"),
    ],
)
def test_ranks_that_are_not_alike_are_one_message(ranks: Ranks, first: str, second: str, message: str) -> None:
    """Two nodes, each with a working directory of its own."""
    nodes = [ranks.folder / f"node {rank}" for rank in range(2)]
    for rank, node in enumerate(nodes):
        if not node.is_dir():
            node.mkdir()
            small_policy(rank).save_pretrained(node / "policy")
    if not (nodes[0] / "demos").is_dir():
        (nodes[0] / "demos").symlink_to(ranks.folder / "demos")
    common = ["sft", f"policy={ranks.folder / 'small'}", f"demos={ranks.folder / 'demos'}", *FEW, "eval_episodes=0"]
    out = ranks.folder / f"unlike {message}"
    processes = ranks.start(
        *(cli(*common, "probe_every=0", f"out={out}", word) for word in (first, second)), apart=True
    )
    statuses, said = ended(processes)
    assert said.count("vla-razor: ") == 1 and re.match(f"vla-razor: {message}", said)
    assert sorted(statuses) in ([1, 2], [2, 2])
    assert not out.exists() and not any((node / "run").exists() for node in nodes), "nothing is left behind"


@pytest.mark.slow
def test_ray_places_the_ranks(ranks: Ranks, runs: Callable[[int], Path]) -> None:
    """A real cluster of this machine; what a rank has to say reaches who started it."""
    pytest.importorskip("ray")
    words = lines_of(ranks, "on ray")["rl, all weights"]
    few = [sys.executable, *cli(*words, "launcher=ray", "devices=2")]
    environment = ranks.environment | {"VLA_RAZOR_CACHE": str(ranks.folder / "cache 1")}
    done = subprocess.run(few, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    out = ranks.folder / "on ray" / "rl, all weights"
    for before, after in zip(rows_of(runs(1) / out.name), rows_of(out), strict=True):
        assert after == pytest.approx(before, abs=1e-5, rel=1e-4)
    assert not list(out.parent.glob(".aside-*")), "Ray's own files are gone"
    again = subprocess.run(few, env=environment, capture_output=True, text=True, check=False)
    assert again.returncode == 2
    assert again.stderr.splitlines()[-1] == f"vla-razor: {out} holds a finished run: choose another out=."


@pytest.mark.parametrize(
    ("words", "message"),
    [(["devices=2"], "torchrun --nproc-per-node 2 -m vla_razor.cli rl"), (["launcher=slurm"], "here | ray")],
)
def test_devices_are_for_ray(words: list[str], message: str) -> None:
    result = CliRunner().invoke(app, ["rl", *words])
    assert result.exit_code == 2 and message in result.stderr


def test_other_verbs_know_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    result = CliRunner().invoke(app, ["sweep"])
    assert result.exit_code == 2 and "sweep runs in one process. Several share the work of collect" in result.stderr
