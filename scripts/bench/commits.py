"""How fast the batched loop runs by the code of two commits, in turns, so that a busy spell of the machine hits both.

Each turn is `scripts/bench/rollout.py` as that commit has it, with the policy and the scenes of that commit. For each
environment it prints the best and the median environment steps a second of both, the CPU seconds by phase of an
iteration of REINFORCE, and the ratios. Run it on a machine that does nothing else.

    python scripts/bench/commits.py OLD [NEW] [--env pick_can drawer] [--turns 3] [--out FILE.json]
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[2]
TURN = """
import sys
sys.path.insert(0, "scripts/bench")
import rollout
rollout.ROUNDS, rollout.ROUNDS_OF_EPISODES = 1, 2
if __name__ == "__main__":
    sys.argv = ["rollout.py", *sys.argv[1:]]
    rollout.main()
"""
"""The commit's own benchmark with fewer rounds, since it is repeated here. A file, because its workers import it."""
PHASES = ("physics and rendering", "policy", "gradient", "rest")


def turn(commit: Path, env: str) -> dict[str, Any]:
    """One run of a commit's benchmark."""
    script = commit.parent / "turn.py"
    script.write_text(TURN)
    done = subprocess.run(
        [sys.executable, script, "--env", env, "--iterations", "2", "--json"],
        env={**os.environ, "PYTHONPATH": f"{commit}{os.pathsep}{commit / 'envs'}"},
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        cwd=commit,
    )
    return json.loads(done.stdout.splitlines()[-1])


def summary(turns: list[dict[str, Any]]) -> dict[str, float]:
    """Steps a second over all turns, and the medians of an iteration."""
    rates = sorted(rate for found in turns for rate in found["batched_steps_per_second"])
    iterations = [found["iteration"] for found in turns]
    of_iteration = {phase: statistics.median(found[phase] for found in iterations) for phase in PHASES}
    in_iteration = statistics.median(found["steps_per_second"] for found in iterations)
    return {"best": rates[-1], "median": statistics.median(rates), "in an iteration": in_iteration, **of_iteration}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", help="a commit")
    parser.add_argument("new", nargs="?", default="HEAD", help="a commit")
    parser.add_argument("--env", nargs="+", default=["pick_can", "drawer"])
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--out", type=Path, help="where to write what was measured")
    arguments = parser.parse_args()
    result: dict[str, Any] = {"old": arguments.old, "new": arguments.new, "turns": arguments.turns, "envs": {}}
    result |= {"cores": os.cpu_count(), "machine": platform.machine(), "load": os.getloadavg()[0]}
    with tempfile.TemporaryDirectory() as scratch:
        commits = {side: Path(scratch) / side for side in ("old", "new")}
        for side, commit in commits.items():
            words = ["git", "worktree", "add", "--quiet", "--detach", str(commit), getattr(arguments, side)]
            subprocess.run(words, check=True, cwd=ROOT)
        try:
            for env in arguments.env:
                turns = [{side: turn(commit, env) for side, commit in commits.items()} for _ in range(arguments.turns)]
                result["envs"][env] = {side: summary([found[side] for found in turns]) for side in commits}
        finally:
            for commit in commits.values():
                subprocess.run(["git", "worktree", "remove", "--force", str(commit)], check=False, cwd=ROOT)
    table = Table("", *(f"{env}, {side}" for env in arguments.env for side in ("old", "new", "ratio")))
    for name in ("best", "median", "in an iteration", *PHASES):
        cells = []
        for found in result["envs"].values():
            old, new = found["old"][name], found["new"][name]
            cells += [f"{old:.4g}", f"{new:.4g}", f"{new / old:.2f}"]
        table.add_row(f"{name}, CPU s" if name in PHASES else f"{name}, steps/s", *cells)
    Console().print(table)
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
