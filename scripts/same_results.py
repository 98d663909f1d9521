"""Do the same seeds give the same runs before and after a change? One short run of every verb on the embedded tasks, by
the code of two commits, compared number by number and checkpoint by checkpoint.

    python scripts/same_results.py OLD [NEW] [--only sft rl ...] [--keep DIR]

Both are checked out beside each other and run by this interpreter, the old one's runs being what the new one goes on
from, so that a difference is named where it arises. Measures are compared by their names of today. Exit status 1 where
anything differs but what the clock decides.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from vla_razor.study.measures import renamed
from vla_razor_envs.vulkan import software_folder

ROOT = Path(__file__).resolve().parent.parent
COMMON = ("logger=none", "device=cpu", "num_envs=8")
SMALL = ("probe_states=16", "eval_episodes=2", "warmup_steps=2")
VERBS: dict[str, tuple[str, ...]] = {
    "collect": ("collect", "grid=2x1", "per_point=2", *COMMON),
    "sft": ("sft", "demos={old}/collect", "epochs=1", "probe_every=2", "save_every=2", *SMALL, *COMMON),
    "rl": ("rl", "iterations=2", "grid=random", "points=4", "per_point=3", "probe_every=1", *SMALL, *COMMON),
    "distill": ("distill", "iterations=1", "grid=2x2", "per_point=1", "updates=2", *SMALL, *COMMON),
    "eval": ("eval", "env=all", "policy={old}/sft", "against=scripted", "episodes=2", "videos=0", *COMMON),
    "kl": ("kl", "policy={old}/sft", "probe_states=16", *COMMON),
    "interpolate": ("interpolate", "policy={old}/sft", "shares=[0.5]", *COMMON),
    "adapter": ("sft", "demos={old}/collect", "epochs=1", "lora_rank=4", "kl_coefficient=0.1", *SMALL, *COMMON),
}
"""By name, a short run of each verb, and of SFT with adapters; {old} is the folder of the old code's runs."""
CLOCK = ("seconds", "per_second", "version", "git_commit", "wall", "path", "probe_set")
"""Parts of names of what the clock, the machine and the code itself decide, a probe set's key among it."""


def run(commit: Path, words: tuple[str, ...], out: Path, old: Path) -> None:
    """One verb by the code in `commit`, on one thread."""
    cache = out.parent / "cache"  # its own probe sets, and the driver that is there
    cache.mkdir(parents=True, exist_ok=True)
    if software_folder().is_dir() and not (cache / "vulkan").exists():
        (cache / "vulkan").symlink_to(software_folder())
    paths = {"PYTHONPATH": f"{commit}{os.pathsep}{commit / 'envs'}", "VLA_RAZOR_CACHE": str(cache)}
    given = [word.format(old=old) for word in words]
    done = subprocess.run(
        [sys.executable, "-m", "vla_razor.cli", *given, f"out={out}"],
        env={**os.environ, **paths, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        cwd=commit,
    )
    if done.returncode:
        raise SystemExit(f"{commit.name}, {' '.join(given)}: exit status {done.returncode}\n{done.stderr}")


def numbers(folder: Path) -> dict[str, Any]:
    """Everything that a run has written and the clock does not decide, by where it is."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.suffix in (".safetensors", ".h5"):
            found[name] = path.read_bytes()
        elif path.name == "summary.json":
            found |= dict(_flat(json.loads(path.read_text()), name))
        elif path.suffix == ".jsonl":
            for number, line in enumerate(path.read_text().splitlines()):
                found |= dict(_flat(renamed(json.loads(line)), f"{name}:{number + 1}"))
    return found


def _flat(value: Any, where: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, part in value.items():
            if not any(word in str(key) for word in CLOCK):
                yield from _flat(part, f"{where}.{key}")
    elif isinstance(value, list):
        for index, part in enumerate(value):
            yield from _flat(part, f"{where}[{index}]")
    else:
        yield where, value


def differences(one: Path, other: Path) -> list[str]:
    """Where two runs differ. What only one of them has is a difference too; paths to the runs themselves are none."""
    before, after = numbers(one), numbers(other)
    folders = (str(one.parent), str(other.parent))
    found = [f"{name}: only one has it" for name in sorted(before.keys() ^ after.keys())]
    for name in before.keys() & after.keys():
        a, b = before[name], after[name]
        if isinstance(a, str) and isinstance(b, str):
            a, b = (text.replace(folders[0], "").replace(folders[1], "") for text in (a, b))
        same = a == b or (isinstance(a, float) and isinstance(b, float) and math.isnan(a) and math.isnan(b))
        if not same:
            found.append(f"{name}: {_short(a)} and {_short(b)}")
    return found


def _short(value: Any) -> str:
    return f"{len(value):,} bytes" if isinstance(value, bytes) else repr(value)[:40]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", help="a commit")
    parser.add_argument("new", nargs="?", default="HEAD", help="a commit")
    parser.add_argument("--only", nargs="+", choices=VERBS, default=list(VERBS))
    parser.add_argument("--keep", type=Path, help="where to leave the runs")
    arguments = parser.parse_args()
    console, bad = Console(), 0
    table = Table("run", "values", "differences", title=f"{arguments.old} and {arguments.new}")
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.keep or Path(scratch)
        commits = {side: Path(scratch) / f"code_{side}" for side in ("old", "new")}
        for side, commit in commits.items():
            words = ["git", "worktree", "add", "--quiet", "--detach", str(commit), getattr(arguments, side)]
            subprocess.run(words, check=True, cwd=ROOT)
        try:
            for name in arguments.only:
                for side, commit in commits.items():
                    console.print(f"{name}, {side}", highlight=False)
                    run(commit, VERBS[name], folder / side / name, folder / "old")
                found = differences(folder / "old" / name, folder / "new" / name)
                bad += len(found)
                table.add_row(name, f"{len(numbers(folder / 'new' / name)):,}", "\n".join(found[:6]) or "none")
        finally:
            for commit in commits.values():
                subprocess.run(["git", "worktree", "remove", "--force", str(commit)], check=False, cwd=ROOT)
    console.print(table)
    raise SystemExit(bad > 0)


if __name__ == "__main__":
    main()
