"""What a policy server bears: many clients at once, each of which asks again as soon as it is answered.

`vla-razor serve` runs in a process of its own, the clients in this one. It is asked with as many observations in a
forward pass as there are clients, then one by one: decisions a second, the milliseconds that a client waits (median and
99th percentile), and the server's memory once it has warmed up and at the end. Server and clients share the machine.

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
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from websockets.asyncio.client import connect

from vla_razor.policies.messages import pack, unpack

SHORTER = 5
"""One by one, for comparison, is measured for so much shorter."""
GROWTH = 16.0
"""MiB by which the server may grow between a warm-up and the end, whatever its allocators do."""
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


async def client(address: str, image: np.ndarray, end: float) -> list[tuple[float, float]]:
    """When each answer came, and how many seconds it took, until `end`."""
    answers = []
    async with connect(address, compression=None, proxy=None) as connection:
        await connection.recv()
        message = pack({"observation/image": image, "observation/state": np.zeros(8, np.float32), "prompt": PROMPT})
        while time.monotonic() < end:
            begin = time.monotonic()
            await connection.send(message)
            answer: Any = await connection.recv()
            if isinstance(answer, str) or not np.isfinite(unpack(answer)["actions"]).all():
                raise RuntimeError(f"refused: {answer!r:.300}")
            answers.append((time.monotonic(), time.monotonic() - begin))
    return answers


async def load(address: str, process: int, clients: int, seconds: float, side: int) -> dict[str, float]:
    """Decisions a second and their milliseconds, after a fifth of the time, and the server's memory then and later."""
    begin, warm = time.monotonic(), seconds / 5
    images = np.random.default_rng(0).integers(0, 256, (clients, side, side, 3), np.uint8)
    asking = [asyncio.create_task(client(address, image, begin + seconds)) for image in images]
    await asyncio.sleep(warm)
    before = memory(process)
    await asyncio.sleep(seconds - warm)
    after = memory(process)
    answers = [answer for task in asking for answer in await task]
    waits = [wait * 1e3 for moment, wait in answers if begin + warm <= moment <= begin + seconds]
    median, slow = np.percentile(waits, [50, 99])
    return {
        "per_second": len(waits) / (seconds - warm),
        "decisions": len(answers),
        "p50_milliseconds": float(median),
        "p99_milliseconds": float(slow),
        "memory_before": before,
        "memory_after": after,
    }


def memory(process: int) -> float:
    """MiB of a process that are in use."""
    found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{process}/status").read_text())
    assert found
    return int(found[1]) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policy", default="tiny")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--side", type=int, default=64, help="of the images, in pixels")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    arguments = parser.parse_args()
    found: dict[str, Any] = {}
    ways = {"batched": (arguments.clients, arguments.seconds), "one_by_one": (1, arguments.seconds / SHORTER)}
    for name, (batch_size, seconds) in ways.items():
        with server(arguments.policy, batch_size, arguments.side) as (address, process):
            found[name] = asyncio.run(load(address, process, arguments.clients, seconds, arguments.side))
    batched, single = found["batched"], found["one_by_one"]
    found["ratio"] = batched["per_second"] / single["per_second"]
    growth = batched["memory_after"] - batched["memory_before"]
    found["targets_met"] = {"no_growth": growth <= GROWTH}
    table = Table("", *ways, title=f"{arguments.policy}, {arguments.clients} clients, {os.cpu_count()} cores")
    for label, key, form in (
        ("decisions a second", "per_second", ".1f"),
        ("median wait, ms", "p50_milliseconds", ".0f"),
        ("99th percentile, ms", "p99_milliseconds", ".0f"),
        ("memory, warm, MiB", "memory_before", ".1f"),
        ("memory at the end, MiB", "memory_after", ".1f"),
    ):
        table.add_row(label, *(format(found[way][key], form) for way in ways))
    Console().print(table)
    Console().print(
        f"batched against one by one: {found['ratio']:.2f} times as many decisions a second", highlight=False
    )
    if arguments.json:
        print(json.dumps({**vars(arguments), **found}))


if __name__ == "__main__":
    main()
