"""Which device a name means on this machine, and whether simulating on its GPU has been checked.

`scripts/check_gpu.py` compares the tasks' motion on a GPU with that on a CPU. Where it has passed, a file in the cache
says on which GPU, with which driver and which simulator; another of these, and it says nothing.
"""

import json
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import torch

from vla_razor import ranks
from vla_razor.errors import UserError
from vla_razor.files import cache_root, write_json


class Card(NamedTuple):
    """A GPU: memory in bytes, and dense bfloat16 FLOP a second at its peak, as its maker states them."""

    name: str
    memory: float
    flops: float


CARDS = {
    "rtx4090": Card("RTX 4090", 24 * 2**30, 165e12),
    "a100-40": Card("A100 40 GB", 40 * 2**30, 312e12),
    "l40s": Card("L40S", 48 * 2**30, 362e12),
    "a100-80": Card("A100 80 GB", 80 * 2**30, 312e12),
    "h100": Card("H100 80 GB", 80 * 2**30, 989e12),
    "h200": Card("H200", 141e9, 989e12),
}
"""What `dry_run` can plan for without having it."""


def device_named(device: str | torch.device) -> torch.device:
    """The device of that name; "auto" is a GPU where there is one, and on several ranks "cuda" is the rank's own.
    Raises `UserError` for one that is not here.
    """
    if str(device) == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if str(device) in CARDS:
        raise UserError(f"device={device} is for dry_run=true; to run on one, say device=cuda.")
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise UserError(f"device={device}: unknown; expected auto, cpu or cuda.") from error
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"device={device}: there is no CUDA device here; use device=cpu.")
    return ranks.card(chosen) if chosen.type == "cuda" and ranks.world() > 1 else chosen


def simulation_device(device: str | torch.device, task: str) -> torch.device:
    """Where `task` ("family robot") is simulated beside a policy on `device`: on the same GPU if it has been checked to
    move the task as a CPU does, else on the CPU. Raises `UserError` as `device_named` does.
    """
    chosen = device_named(device)
    return chosen if chosen.type == "cuda" and task in checked_tasks(chosen) else torch.device("cpu")


def checked_tasks(device: torch.device) -> list[str]:
    """The tasks ("family robot") for which `remember_check` was told of this GPU, its driver and this simulator."""
    try:
        kept = json.loads(_kept().read_text())
        return kept["tasks"] if kept["machine"] == simulator_of(device) else []
    except (OSError, ValueError, KeyError, TypeError):  # none, or no file of ours
        return []


def remember_check(tasks: Sequence[str], device: torch.device) -> Path:
    """Keep that the simulation of these tasks on this GPU is as on a CPU; returns the file."""
    write_json(_kept(), {"machine": simulator_of(device), "tasks": sorted({*checked_tasks(device), *tasks})})
    return _kept()


def simulator_of(device: torch.device) -> Mapping[str, Any]:
    """What decides how a GPU simulates: its name, its driver, and the simulator's versions."""
    driver = Path("/proc/driver/nvidia/version")  # of Linux alone
    found = driver.read_text().partition("\n")[0].strip() if driver.is_file() else "unknown"
    versions = {name: metadata.version(name) for name in ("mani_skill", "sapien")}
    return {"gpu": torch.cuda.get_device_name(device), "driver": found, **versions}


def _kept() -> Path:
    return cache_root() / "gpu_check.json"
