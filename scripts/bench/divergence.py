"""Forward KL at a language model's size: from hidden states in pieces, against the plain computation on full logits.

In one run, in turns, forward and backward to the tuned hidden states, in float32: seconds (the best of several turns)
and peak memory above what was there before, each in a process of its own, of policies with a head each, with one head
between them, and with a head each but so close that digits cost a product more; and the relative error, worst of all
tokens, against float64 of the same inputs at divergences from 1e-6 to 10 nats, with inputs in float32 and in bfloat16.

    python scripts/bench/divergence.py [--vocabulary 151665] [--hidden 2048] [--tokens 1024] [--json]
"""

import argparse
import json
import re
import time
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import cache
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
CASES = {"": (True, 1e-2), "_one_head": (False, 1e-2), "_close": (True, 1e-6)}
"""What is timed, by the ending of its ratios' names: whether each policy has a head, and the divergence in nats."""
KINDS = (torch.float32, torch.bfloat16)
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


@cache
def drawn(sizes: Sizes, moved_head: bool) -> Inputs:
    """The base's hidden states and head, and the directions in which the tuned policy's differ."""
    generator = torch.Generator().manual_seed(0)

    def draw(rows: int, spread: float) -> Tensor:
        return torch.randn(rows, sizes.hidden, generator=generator).mul_(spread)

    spread = SPREAD / sizes.hidden**0.5
    hidden, head, change = draw(sizes.tokens, 1.0), draw(sizes.vocabulary, spread), draw(sizes.tokens, 1.0)
    return Inputs(hidden, head, change, draw(sizes.vocabulary, spread) if moved_head else torch.empty(0))


def inputs(sizes: Sizes, divergence: float, moved_head: bool) -> Inputs:
    """Two policies about `divergence` nats apart, with one head between them or a head each."""
    hidden, head, change, noise = drawn(sizes, moved_head)
    far = (2 * divergence) ** 0.5 / SPREAD  # KL is about half the variance of the logits' change
    if not moved_head:
        return Inputs(hidden, head, hidden + far * change, head)
    return Inputs(hidden, head, hidden + far / 2**0.5 * change, torch.add(head, noise, alpha=far / 2**0.5))


def plain(given: Inputs) -> Tensor:
    """As one would first write it."""
    base = F.log_softmax(given.base_hidden @ given.base_head.T, -1)
    tuned = F.log_softmax(given.tuned_hidden @ given.tuned_head.T, -1)
    return F.kl_div(tuned, base, reduction="none", log_target=True).sum(-1)


def in_pieces(given: Inputs) -> Tensor:
    return forward_kl_from_hidden(*given)


WAYS: dict[str, Callable[[Inputs], Tensor]] = {"full logits": plain, "in pieces": in_pieces}


def seconds_and_bytes(way: str, sizes: Sizes, moved_head: bool, divergence: float) -> tuple[float, int]:
    """Of one forward and backward pass in this process, whose libraries are loaded and have their threads."""
    WAYS[way](inputs(Sizes(512, 512, 512), divergence, moved_head))
    given = inputs(sizes, divergence, moved_head)
    given.tuned_hidden.requires_grad_()
    before = _memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    begin = time.perf_counter()
    WAYS[way](given).sum().backward()
    return time.perf_counter() - begin, _memory("VmHWM") - before


def relative_errors(sizes: Sizes, divergence: float, moved_head: bool) -> tuple[float, dict[torch.dtype, float]]:
    """The mean divergence in float64, and by how much ours is off for the worst token, by the inputs' type."""
    given = inputs(sizes._replace(tokens=CHECKED), divergence, moved_head)
    errors, mean = {}, 0.0
    for kind in KINDS:
        given = Inputs(*(part.to(kind) for part in given))
        exact = _exact(given)
        mean = mean or float(exact.mean())
        errors[kind] = float((in_pieces(given).double() / exact - 1).abs().max())
    return mean, errors


def _exact(given: Inputs) -> Tensor:
    def logits(hidden: Tensor, head: Tensor) -> Tensor:
        return torch.cat([hidden.double() @ part.double().T for part in head.split(8192)], -1)

    return forward_kl(logits(given.base_hidden, given.base_head), logits(given.tuned_hidden, given.tuned_head))


def _memory(name: str) -> int:
    found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) * 1024


def timed(sizes: Sizes, console: Console) -> dict[str, float]:
    """Prints seconds and memory of both ways; returns their ratios."""
    result: dict[str, float] = {}
    table = Table("", "seconds", "peak memory", title=f"Forward and backward, {sizes.tokens} tokens, float32")
    for ending, (moved_head, divergence) in CASES.items():
        best: dict[str, tuple[float, float]] = {}
        for _ in range(TURNS):
            for way in WAYS:
                with ProcessPoolExecutor(1, get_context("spawn")) as pool:
                    found = pool.submit(seconds_and_bytes, way, sizes, moved_head, divergence).result()
                best[way] = min(best.get(way, found)[0], found[0]), min(best.get(way, found)[1], found[1])
        for way, (seconds, memory) in best.items():
            heads = "a head each" if moved_head else "one head"
            table.add_row(f"{way}, {heads}, {divergence:g} nats", f"{seconds:.2f}", f"{memory / 2**20:.0f} MiB")
        (plain_seconds, plain_memory), (seconds, memory) = best["full logits"], best["in pieces"]
        result |= {f"memory_ratio{ending}": memory / plain_memory, f"time_ratio{ending}": seconds / plain_seconds}
    console.print(table)
    return result


def compared(sizes: Sizes, console: Console) -> dict[str, float]:
    """Prints the errors at every divergence; returns the worst."""
    cases = [f"{name}, {heads}" for name in ("float32", "bfloat16") for heads in ("one head", "a head each")]
    means: dict[float, float] = {}
    table = Table("nats a token", *cases, title="Relative error against float64, worst token")
    errors: dict[tuple[torch.dtype, bool], list[float]] = defaultdict(list)
    for moved_head in (False, True):  # one after the other: the second has a matrix more to keep
        for divergence in DIVERGENCES:
            mean, found = relative_errors(sizes, divergence, moved_head)
            means.setdefault(divergence, mean)
            for kind, error in found.items():
                errors[kind, moved_head].append(error)
        drawn.cache_clear()
    for row, divergence in enumerate(DIVERGENCES):
        columns = [errors[kind, moved_head][row] for kind in KINDS for moved_head in (False, True)]
        table.add_row(f"{means[divergence]:.1e}", *(f"{error:.1e}" for error in columns))
    console.print(table)
    return {
        "max_relative_error": max(errors[torch.float32, False] + errors[torch.float32, True]),
        "max_relative_error_bfloat16": max(errors[torch.bfloat16, False] + errors[torch.bfloat16, True]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocabulary", type=int, default=151_665)
    parser.add_argument("--hidden", type=int, default=2048)
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    arguments = parser.parse_args()
    sizes, console = Sizes(arguments.vocabulary, arguments.hidden, arguments.tokens), Console()
    result = timed(sizes, console) | compared(sizes, console)
    for name, target in TARGETS.items():
        console.print(f"{name}: {result[name]:.3g}, target at most {target:.3g}", highlight=False)
    if arguments.json:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
