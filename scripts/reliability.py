"""Does the demo show the same on another machine? Runs it again and again, over seeds, the processor's instructions and
numbers of threads, and counts the runs in which each claim holds.

`ATEN_CPU_CAPABILITY` and `OMP_NUM_THREADS` imitate another machine: sums are taken in another order, and everything
after the first update differs. The runs go through seeds 0 to 4 and the six pairs of the other two, so that thirty have
every combination and twelve every seed at least twice and every pair twice. Finished runs are read, not repeated.

    .venv/bin/python scripts/reliability.py --out build/reliability [--runs 12] [name=value ...]

Writes runs.json and table.md in the folder and prints the table.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from vla_razor.files import atomic_write, write_json
from vla_razor.statistics import PRIMARY, READINGS, Difference
from vla_razor.tables import in_words

SEEDS = range(5)
MACHINES = list(product(("default", "avx2", "avx512"), (1, 2)))
"""Instructions of the processor, and threads."""
METHODS = {"rl": "REINFORCE", "sft": "SFT, near teacher", "sft_far": "SFT, far teacher"}
LEARNED, KEPT = 0.70, -0.03
_, AT_END = READINGS
Found = Mapping[str, Any]


def learned(run: Found) -> bool:
    return min(run["best"].values()) >= LEARNED


def kept(run: Found) -> bool:
    return run["prior_change"]["rl"]["difference"] >= KEPT


def forgot_more(run: Found) -> bool:
    return run["rl_kept_more"]["low"] > 0


def ordered(run: Found) -> bool:
    return run["forward_kl"]["rl"] < run["forward_kl"]["sft"] < run["forward_kl"]["sft_far"]


CLAIMS: dict[str, Callable[[Found], bool]] = {
    f"all three methods reach {LEARNED:.0%} on the can": learned,
    f"at equal success REINFORCE has lost at most {-KEPT:.0%} of the prior tasks": kept,
    "at equal success the far SFT has lost more than REINFORCE, zero outside the interval": forgot_more,
    "at equal success forward KL orders REINFORCE, SFT on the near teacher, SFT on the far one": ordered,
}


def play(out: Path, seed: int, capability: str, threads: int, settings: Sequence[str]) -> dict[str, Any]:
    """A demo, and what is told of it."""
    folder = out / f"seed{seed}_{capability}_{threads}"
    clock = folder.with_suffix(".seconds")
    if not (folder / "summary.json").is_file():
        own = {"ATEN_CPU_CAPABILITY": capability, "OMP_NUM_THREADS": str(threads)}
        words = [sys.executable, "-m", "vla_razor.cli", "demo", f"out={folder}", f"seed={seed}", *settings]
        begin = time.perf_counter()
        with folder.with_suffix(".log").open("w") as log:
            subprocess.run(words, check=True, env={**os.environ, **own}, stdout=log, stderr=subprocess.STDOUT)
        clock.write_text(f"{time.perf_counter() - begin:.0f}")
    seconds = int(clock.read_text()) if clock.is_file() else None
    return {"seed": seed, "capability": capability, "threads": threads, "seconds": seconds, **told(folder)}


def told(folder: Path) -> dict[str, Any]:
    """What a finished demo found: success on the can at the methods' ends and at its best, and the rest at equal
    success.
    """
    summary = json.loads((folder / "summary.json").read_text())
    matched = summary["matched"]
    policies, equal = summary["policies"], matched["policies"]
    return {
        "base": {
            "can": policies["base"]["new_task"]["pick_can"][PRIMARY]["rate"],
            "prior": policies["base"]["prior_mean"][PRIMARY]["rate"],
        },
        "base_at_end": {
            "can": policies["base"]["new_task"]["pick_can"][AT_END]["rate"],
            "prior": policies["base"]["prior_mean"][AT_END]["rate"],
        },
        "end": {name: policies[name]["new_task"]["pick_can"][PRIMARY]["rate"] for name in METHODS},
        "best": matched["best"],
        "level": matched["level"],
        "equal": {name: equal[name]["new_task"]["pick_can"][PRIMARY]["rate"] for name in METHODS},
        "prior": {name: equal[name]["prior_mean"][PRIMARY]["rate"] for name in METHODS},
        "equal_at_end": {name: equal[name]["new_task"]["pick_can"][AT_END]["rate"] for name in METHODS},
        "prior_at_end": {name: equal[name]["prior_mean"][AT_END]["rate"] for name in METHODS},
        "forward_kl": {name: equal[name]["forward_kl"]["per_action"] for name in METHODS},
        "prior_change": {name: matched["changes"][name]["prior"][PRIMARY] for name in METHODS},
        "rl_kept_more": matched["prior_kept_more"]["rl"]["sft_far"],
    }


def ranges(runs: Sequence[Found]) -> list[str]:
    """Of each method the median over the runs, with the least and the most."""

    def row(label: str, key: str, form: str, base: str = "") -> str:
        return _line((label, base, *(_range([run[key][name] for run in runs], form) for name in METHODS)))

    def of_base(key: str, task: str) -> str:
        return _range([run[key][task] for run in runs], ".0%")

    can = of_base("base", "can")
    changes = [[run["prior_change"][name]["difference"] for run in runs] for name in METHODS]
    return [
        _line(("", "base", *METHODS.values())),
        _line(["---"] * (len(METHODS) + 2)),
        row("the can, at the end of the training", "end", ".0%", can),
        row("... where it is best", "best", ".0%"),
        row("**the can**, at equal success", "equal", ".0%", can),
        row("... at the end of the episode", "equal_at_end", ".0%", of_base("base_at_end", "can")),
        row("**prior tasks**, at equal success", "prior", ".0%", of_base("base", "prior")),
        row("... at the end of the episode", "prior_at_end", ".0%", of_base("base_at_end", "prior")),
        _line(("... change since the base", "", *(_range(change, "+.0%") for change in changes))),
        row("**forward KL**, nats an action", "forward_kl", ".1f", "0"),
    ]


def _range(values: Sequence[float], form: str) -> str:
    middle, low, high = (format(value, form) for value in (statistics.median(values), min(values), max(values)))
    return f"{middle} ({low} to {high})"


def table(runs: Sequence[Found]) -> list[str]:
    """The runs, a line each, and how often each claim held."""
    head = ("seed", "instructions", "threads", "can: base", "best: REINFORCE, SFT, far SFT", "equal at")
    head += ("prior: base", "change: REINFORCE", "SFT", "far SFT", "REINFORCE kept more than the far", "forward KL")
    lines = [_line(head), _line(["---"] * len(head))]
    for run in sorted(runs, key=lambda run: (run["seed"], run["capability"], run["threads"])):
        lines.append(
            _line(
                (
                    run["seed"],
                    run["capability"],
                    run["threads"],
                    f"{run['base']['can']:.0%}",
                    ", ".join(f"{run['best'][name]:.0%}" for name in METHODS),
                    f"{run['level']:.0%}",
                    f"{run['base']['prior']:.0%}",
                    *(in_words(Difference(**run["prior_change"][name])) for name in METHODS),
                    in_words(Difference(**run["rl_kept_more"])),
                    ", ".join(f"{run['forward_kl'][name]:.1f}" for name in METHODS),
                )
            )
        )
    return [*lines, "", *(f"- {claim}: {sum(map(holds, runs))} of {len(runs)}" for claim, holds in CLAIMS.items())]


def _line(cells: Sequence[Any]) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--runs", type=int, default=12)
    parser.add_argument("settings", nargs="*", help="settings of the demo: name=value")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    runs = []
    for number in range(arguments.runs):
        runs.append(play(arguments.out, number % len(SEEDS), *MACHINES[number % len(MACHINES)], arguments.settings))
        write_json(arguments.out / "runs.json", runs)
        lines = [*ranges(runs), "", *table(runs)]
        atomic_write(arguments.out / "table.md", "\n".join([*lines, ""]).encode())
        print(f"{number + 1}/{arguments.runs}: {runs[-1]}", flush=True)
    print((arguments.out / "table.md").read_text())


if __name__ == "__main__":
    main()
