"""What a policy server bears: many clients at once, each of which asks again as soon as it is answered.

Two servers run in processes of their own, the clients in this one: `vla-razor serve` with as many observations in a
forward pass as there are clients, and one by one for comparison. They are asked in turns, so that a busy spell of the
machine hits both: decisions a second, the milliseconds that a client waits (median and 99th percentile), and the
server's memory at the start, after half of the time, when batches of all sizes have been seen, and at the end. Servers
and clients share the machine.

    python scripts/bench/serving.py [--policy tiny] [--clients 32] [--seconds 300] [--json]
"""

import argparse
import asyncio
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from websockets.asyncio.client import connect

from vla_razor.policies.messages import pack, unpack

TURNS = 6
SHARE = 0.25
"""Of the time of the batched server, that of the other one."""
GROWTH = 16.0
"""MiB by which the server may grow in the second half of the time, whatever its allocators do."""
PROMPT = "pick coke can"


@contextmanager
def server(policy: str, batch_size: int, side: int) -> Iterator[tuple[str, int]]:
    """Its address and the id of its process, once it listens."""
    with tempfile.TemporaryDirectory() as folder:
        settings = ["port=0", f"batch_size={batch_size}", f"max_clients={10**4}", f"out={folder}/run", "logger=none"]
        command = [sys.executable, "-m", "vla_razor.cli", "serve", f"policy={policy}", f"image_size=[{side},{side}]"]
        process = subprocess.Popen([*command, *settings], stdout=subprocess.PIPE, text=True)
        assert process.stdout
        for line in process.stdout:
            if found := re.match(r"serving .* at (ws://\S+);", line):
                break
        else:
            sys.exit(f"the server did not start: exit status {process.wait()}")
        try:
            yield found[1], process.pid
        finally:
            process.terminate()
            process.communicate(timeout=60)


async def client(address: str, image: np.ndarray, end: float) -> list[float]:
    """The milliseconds that each answer took, until `end`."""
    waits = []
    async with connect(address, compression=None, proxy=None) as connection:
        await connection.recv()
        message = pack({"observation/image": image, "observation/state": np.zeros(8, np.float32), "prompt": PROMPT})
        while time.monotonic() < end:
            begin = time.monotonic()
            await connection.send(message)
            answer: Any = await connection.recv()
            if isinstance(answer, str) or not np.isfinite(unpack(answer)["actions"]).all():
                raise RuntimeError(f"refused: {answer!r:.300}")
            waits.append((time.monotonic() - begin) * 1e3)
    return waits


async def turn(address: str, images: np.ndarray, seconds: float) -> list[float]:
    """Those of all clients, each of which shows one image all the time."""
    end = time.monotonic() + seconds
    return [wait for waits in await asyncio.gather(*(client(address, one, end) for one in images)) for wait in waits]


def memory(process: int) -> float:
    """MiB of a process that are in use."""
    found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{process}/status").read_text())
    assert found
    return int(found[1]) / 1024


def judged(waits: list[float], seconds: float, grown: list[float]) -> dict[str, float]:
    """A server's numbers; `grown` is its memory before each turn and at the end."""
    median, slow = np.percentile(waits, [50, 99])
    return {
        "decisions": len(waits),
        "per_second": len(waits) / seconds,
        "p50_milliseconds": float(median),
        "p99_milliseconds": float(slow),
        "memory_start": grown[0],
        "memory_half": grown[TURNS // 2],
        "memory_end": grown[-1],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policy", default="tiny")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--side", type=int, default=64, help="of the images, in pixels")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    arguments = parser.parse_args()
    images = np.random.default_rng(0).integers(0, 256, (arguments.clients, arguments.side, arguments.side, 3), np.uint8)
    sizes, shares = {"batched": arguments.clients, "one_by_one": 1}, {"batched": 1.0, "one_by_one": SHARE}
    waits: dict[str, list[float]] = {way: [] for way in sizes}
    spent, grown = dict.fromkeys(sizes, 0.0), {way: [] for way in sizes}
    with ExitStack() as stack:
        servers = {way: stack.enter_context(server(arguments.policy, sizes[way], arguments.side)) for way in sizes}
        for number in range(TURNS + 1):
            for way, (address, process) in servers.items():
                grown[way].append(memory(process))
                if number < TURNS:
                    begin = time.monotonic()
                    waits[way] += asyncio.run(turn(address, images, shares[way] * arguments.seconds / TURNS))
                    spent[way] += time.monotonic() - begin
    found: dict[str, Any] = {way: judged(waits[way], spent[way], grown[way]) for way in sizes}
    found["ratio"] = found["batched"]["per_second"] / found["one_by_one"]["per_second"]
    growth = found["batched"]["memory_end"] - found["batched"]["memory_half"]
    found["targets_met"] = {"no_growth": growth <= GROWTH}
    table = Table("", *sizes, title=f"{arguments.policy}, {arguments.clients} clients, {os.cpu_count()} cores")
    for label, key, form in (
        ("decisions a second", "per_second", ".1f"),
        ("median wait, ms", "p50_milliseconds", ".0f"),
        ("99th percentile, ms", "p99_milliseconds", ".0f"),
        ("memory at the start, MiB", "memory_start", ".1f"),
        ("after half of the time", "memory_half", ".1f"),
        ("at the end", "memory_end", ".1f"),
    ):
        table.add_row(label, *(format(found[way][key], form) for way in sizes))
    Console().print(table)
    Console().print(
        f"batched against one by one: {found['ratio']:.2f} times as many decisions a second", highlight=False
    )
    if arguments.json:
        print(json.dumps({**vars(arguments), **found}))


if __name__ == "__main__":
    main()
