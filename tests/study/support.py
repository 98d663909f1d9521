"""Results tables with a known law."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

BASE = {"new": 0.3, "prior": 0.8}


def row(method: str, seed: int, step: int, kl: float, forgotten: float, **more: Any) -> dict[str, Any]:
    """A policy as results.parquet has it; the run is named after method and seed."""
    known = {
        "domain": "robot",
        "method": method,
        "seed": seed,
        "run": method if method == "base" else f"{method}_seed{seed}",
        "step": step,
        "learning_rate": None if method == "base" else 1e-4,
        "new": BASE["new"] + 0.1 * min(kl, 3),
        "prior": BASE["prior"] - forgotten,
        "prior_open_top_drawer": BASE["prior"] - forgotten,
        "forward_kl_per_token": kl,
        "reverse_kl_per_token": 2 * kl + 0.3 * (seed % 2),
        "status": "done",
        "reason": None,
    }
    return known | more


def rows(
    methods: Sequence[str] = ("sft", "rl"), seeds: int = 6, noise: float = 0.0, shift: float = 0.0
) -> list[dict[str, Any]]:
    """Four checkpoints of each run on the law 0.05 kl^2; `shift` is added to what the first method forgets."""
    draw = np.random.default_rng(0)
    found = [row("base", 0, 0, 0.0, 0.0)]
    for index, method in enumerate(methods):
        for seed in range(seeds):
            for step, kl in enumerate(draw.uniform(0.1, 3, 4), 1):
                lost = 0.05 * kl**2 + (shift if index == 0 else 0) + noise * draw.normal()
                found.append(row(method, seed, step, float(kl), float(lost)))
    return found


def write(folder: Path, table: Sequence[dict[str, Any]]) -> Path:
    """results.parquet in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(list(table)), folder / "results.parquet")
    return folder
