"""Which device a name means on this machine."""

from typing import NamedTuple

import torch

from vla_razor.errors import UserError


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
    """The device of that name; "auto" is a GPU where there is one. Raises `UserError` for one that is not here."""
    if str(device) == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if str(device) in CARDS:
        raise UserError(f"device={device} is for dry_run=true; to run on one, say device=cuda.")
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise UserError(f"device={device}: unknown; expected auto, cpu or cuda.") from error
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"device={device}: there is no CUDA device here; use device=cpu.")
    return chosen
