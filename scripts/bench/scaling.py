"""What several ranks gain: embedded REINFORCE in one process, whose policy decides while its workers simulate, against
the same run on one and on two ranks of torchrun.

All have the same episodes and as many simulating processes in all. For each it prints the median seconds of an
iteration and of its phases, the first iteration left out, and the ratio to the one process. Two ranks should be no
slower on two cores, and one rank less than a tenth. Run it on a machine that does nothing else.

    python scripts/bench/scaling.py [--iterations 6] [--grid 5x5] [--per-point 4] [--workers 2] [--rounds 2] [--json]
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from vla_razor.files import read_lines

PHASES = ("seconds_policy", "seconds_environment", "seconds_rollout_rest", "seconds_update")
NAMES = {"one process": None, "1 rank": 1, "2 ranks": 2}
ENVS = 48
"""Stepped together, over all ranks."""


def measured(ranks: int | None, words: list[str], workers: int) -> dict[str, float]:
    """Median seconds of an iteration and of its phases; of several ranks those that the slowest spends."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)] if ranks else []
    each = [f"num_workers={max(1, workers // (ranks or 1))}", f"num_envs={ENVS // (ranks or 1)}"]
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, *launcher, "-m", "vla_razor.cli", "rl", *words, *each, f"out={folder}/run"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        rows = read_lines(Path(folder) / "run" / "metrics.jsonl")
    pairs = list(pairwise(rows))
    found = {"iteration": statistics.median(b["wall_seconds"] - a["wall_seconds"] for a, b in pairs)}
    return found | {phase: statistics.median(row[phase] for _, row in pairs) for phase in PHASES}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--iterations", type=int, default=6)
    parser.add_argument("--grid", default="5x5")
    parser.add_argument("--per-point", type=int, default=4)
    parser.add_argument("--workers", type=int, default=2, help="simulating processes, over all ranks")
    parser.add_argument("--rounds", type=int, default=2, help="the three are measured in turn, so many times")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    sizes = [f"iterations={options.iterations}", f"grid={options.grid}", f"per_point={options.per_point}"]
    words = ["env=pick_can", *sizes, "probe_every=0", "eval_episodes=0", "save_every=1000", "logger=none", "device=cpu"]
    rounds = [
        {name: measured(ranks, words, options.workers) for name, ranks in NAMES.items()} for _ in range(options.rounds)
    ]
    best: dict[str, Any] = {name: min((r[name] for r in rounds), key=lambda one: one["iteration"]) for name in NAMES}
    ratios = {name: best[name]["iteration"] / best["one process"]["iteration"] for name in NAMES}
    table = Table("", "iteration", "policy", "environment", "rest", "update", "against one process", title="seconds")
    for name, seconds in best.items():
        table.add_row(name, *(f"{value:.2f}" for value in seconds.values()), f"{ratios[name]:.2f}")
    Console(stderr=options.json).print(table)
    if options.json:
        machine = {"cpu": platform.processor(), "cores": os.cpu_count(), "load": os.getloadavg()[0]}
        print(json.dumps({"seconds": best, "ratios": ratios, "machine": machine}))


if __name__ == "__main__":
    main()
