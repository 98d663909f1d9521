"""Forward KL at a language model's size: from hidden states in pieces, against the plain computation on full logits.

In one run, in turns, forward and backward to the tuned hidden states, in float32: seconds (the best of several turns)
and peak memory above what was there before, each in a process of its own; and the relative error, worst of all tokens,
against float64 of the same inputs at divergences from 1e-6 to 10 nats, with inputs in float32 and in bfloat16.

    python scripts/bench/divergence.py [--vocabulary 151665] [--hidden 2048] [--tokens 1024] [--json]
"""

import argparse
import json
import re
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn import functional as F

from vla_razor.core.divergence import forward_kl, forward_kl_from_hidden

DIVERGENCES = (1e-6, 1e-4, 1e-2, 1.0, 10.0)
TIMED = 1e-2
CHECKED = 32
"""Tokens whose divergence is compared with float64: full logits of more would not fit."""
TURNS = 3
SPREAD = 2.5
"""Standard deviation of the base's logits."""
TARGETS = {"memory_ratio": 1 / 16, "time_ratio": 1.1, "max_relative_error": 1e-4}


class Sizes(NamedTuple):
    vocabulary: int
    hidden: int
    tokens: int


class Inputs(NamedTuple):
    base_hidden: Tensor
    base_head: Tensor
    tuned_hidden: Tensor
    tuned_head: Tensor


def inputs(sizes: Sizes, divergence: float, moved_head: bool) -> Inputs:
    """Two policies about `divergence` nats apart, with one head between them or a head each."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(sizes.tokens, sizes.hidden, generator=generator)
    head = torch.randn(sizes.vocabulary, sizes.hidden, generator=generator) * (SPREAD / sizes.hidden**0.5)
    far = (2 * divergence) ** 0.5 / SPREAD  # KL is about half the variance of the logits' change
    change = far * torch.randn(sizes.tokens, sizes.hidden, generator=generator)
    if not moved_head:
        return Inputs(hidden, head, hidden + change, head)
    noise = far * SPREAD / sizes.hidden**0.5 * torch.randn(head.shape, generator=generator)
    return Inputs(hidden, head, hidden + change / 2**0.5, head + noise / 2**0.5)


def plain(given: Inputs) -> Tensor:
    """As one would first write it."""
    base = F.log_softmax(given.base_hidden @ given.base_head.T, -1)
    tuned = F.log_softmax(given.tuned_hidden @ given.tuned_head.T, -1)
    return F.kl_div(tuned, base, reduction="none", log_target=True).sum(-1)


def in_pieces(given: Inputs) -> Tensor:
    return forward_kl_from_hidden(*given)


WAYS: dict[str, Callable[[Inputs], Tensor]] = {"full logits": plain, "in pieces": in_pieces}


def seconds_and_bytes(way: str, sizes: Sizes, moved_head: bool) -> tuple[float, int]:
    """Of one forward and backward pass in this process."""
    given = inputs(sizes, TIMED, moved_head)
    given.tuned_hidden.requires_grad_()
    before = _memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    begin = time.perf_counter()
    WAYS[way](given).sum().backward()
    return time.perf_counter() - begin, _memory("VmHWM") - before


def relative_error(sizes: Sizes, divergence: float, moved_head: bool, kind: torch.dtype) -> tuple[float, float]:
    """The mean divergence in float64, and by how much ours is off for the worst token."""
    given = inputs(sizes._replace(tokens=CHECKED), divergence, moved_head)
    given = Inputs(*(part.to(kind) for part in given))
    exact = torch.cat([_exact(given, rows) for rows in torch.arange(CHECKED).split(8)])
    return float(exact.mean()), float((in_pieces(given).double() / exact - 1).abs().max())


def _exact(given: Inputs, rows: Tensor) -> Tensor:
    def logits(hidden: Tensor, head: Tensor) -> Tensor:
        return torch.cat([hidden[rows].double() @ part.double().T for part in head.split(8192)], -1)

    return forward_kl(logits(given.base_hidden, given.base_head), logits(given.tuned_hidden, given.tuned_head))


def _memory(name: str) -> int:
    found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocabulary", type=int, default=151_665)
    parser.add_argument("--hidden", type=int, default=2048)
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    arguments = parser.parse_args()
    sizes, console = Sizes(arguments.vocabulary, arguments.hidden, arguments.tokens), Console()
    result: dict[str, float] = {}
    table = Table("", "seconds", "peak memory", title=f"Forward and backward, {sizes.tokens} tokens, float32")
    for moved_head, heads in ((False, "one head"), (True, "a head each")):
        best: dict[str, tuple[float, float]] = {}
        for _ in range(TURNS):
            for way in WAYS:
                with ProcessPoolExecutor(1, get_context("spawn")) as pool:
                    found = pool.submit(seconds_and_bytes, way, sizes, moved_head).result()
                best[way] = min(best.get(way, found)[0], found[0]), min(best.get(way, found)[1], found[1])
        for way, (seconds, memory) in best.items():
            table.add_row(f"{way}, {heads}", f"{seconds:.2f}", f"{memory / 2**20:.0f} MiB")
        (plain_seconds, plain_memory), (seconds, memory) = best["full logits"], best["in pieces"]
        suffix = "_moved_head" if moved_head else ""
        result |= {f"memory_ratio{suffix}": memory / plain_memory, f"time_ratio{suffix}": seconds / plain_seconds}
    console.print(table)

    cases = [f"{name}, {heads}" for name in ("float32", "bfloat16") for heads in ("one head", "a head each")]
    table = Table("nats a token", *cases, title="Relative error against float64, worst token")
    errors: dict[torch.dtype, list[float]] = {torch.float32: [], torch.bfloat16: []}
    for divergence in DIVERGENCES:
        cells, seen = [], 0.0
        for kind in errors:
            for moved_head in (False, True):
                mean, error = relative_error(sizes, divergence, moved_head, kind)
                seen = seen or mean
                errors[kind].append(error)
                cells.append(f"{error:.1e}")
        table.add_row(f"{seen:.1e}", *cells)
    console.print(table)
    result |= {
        "max_relative_error": max(errors[torch.float32]),
        "max_relative_error_bfloat16": max(errors[torch.bfloat16]),
    }
    for name, target in TARGETS.items():
        console.print(f"{name}: {result[name]:.3g}, target at most {target:.3g}", highlight=False)
    if arguments.json:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
