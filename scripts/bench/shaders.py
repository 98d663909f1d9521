"""What the light of surroundings costs in software rendering: SAPIEN's shaders as they are installed, against the copy
without it that the scenes here use (`vla_razor_envs.shaders`).

Each round starts a process for either, in turns: from its first use of the renderer to its first picture, and then
pictures of a scene that stands still. Prints seconds and milliseconds at best, and the ratios; the pictures must be the
same.

    python scripts/bench/shaders.py [--rounds 5] [--size 64]
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import time
from typing import Any, cast

import gymnasium
from rich.console import Console
from rich.table import Table

import vla_razor  # noqa: F401  (registers the tasks)
from vla_razor_envs import shaders

PICTURES = 200
KINDS = {"installed": "the installed shaders", "copy": "without surroundings"}


def measure(kind: str, size: int) -> dict[str, Any]:
    """In a process of its own: seconds to the first picture, milliseconds of a later one, and its content."""
    if kind == "installed":
        shaders._folder = _refuse  # the scenes then take what is installed
    begin = time.perf_counter()
    env = gymnasium.make("vla_razor/PickCan-v2", image_size=(size, size))
    observation, _ = env.reset(seed=0)
    first, ours = time.perf_counter() - begin, cast(Any, env.unwrapped)
    begin = time.perf_counter()
    for _ in range(PICTURES):
        ours.task.get_obs()
    each = (time.perf_counter() - begin) / PICTURES
    digest = hashlib.sha256(observation["image"].tobytes()).hexdigest()
    return {"first": first, "milliseconds": each * 1e3, "picture": digest}


def _refuse() -> Any:
    raise OSError


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--size", type=int, default=64, help="pixels of a picture's side")
    parser.add_argument("--measure", choices=KINDS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(arguments.measure, arguments.size)))
        return
    found: dict[str, list[dict[str, Any]]] = {kind: [] for kind in KINDS}
    for _ in range(arguments.rounds):
        for kind, results in found.items():
            command = [sys.executable, __file__, "--measure", kind, "--size", str(arguments.size)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            results.append(json.loads(done.stdout.splitlines()[-1]))
    same = len({result["picture"] for results in found.values() for result in results}) == 1
    best = {kind: {key: min(r[key] for r in found[kind]) for key in ("first", "milliseconds")} for kind in KINDS}
    title = f"{arguments.size} x {arguments.size} pixels, best of {arguments.rounds}"
    table = Table("", "first picture", "a picture", title=title)
    for kind, label in KINDS.items():
        table.add_row(label, f"{best[kind]['first']:.2f} s", f"{best[kind]['milliseconds']:.2f} ms")
    ratios = [f"{best['installed'][key] / best['copy'][key]:.1f}" for key in ("first", "milliseconds")]
    table.add_row("ratio", *ratios)
    Console().print(table)
    print("the same pictures" if same else "the pictures differ")
    if not same:
        sys.exit(1)


if __name__ == "__main__":
    main()
