"""A policy that is quick, a server in a thread of the test's own process, and a client that knows no more than the
protocol.
"""

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import msgpack
import numpy as np
from websockets.sync.client import ClientConnection, connect
from websockets.sync.server import ServerConnection, serve

from vla_razor.policies import Decisions, Observations
from vla_razor.policies.messages import pack, unpack
from vla_razor.serving import openpi
from vla_razor.serving.server import Conversation, Limits, Service, bound, run

SEEN = {"observation/image": np.full((4, 6, 3), 7, np.uint8), "observation/state": np.arange(8.0), "prompt": "pick can"}


class Sums:
    """Decides on two steps of seven numbers: the brightness of the picture, the length of the instruction, the sum of
    what the robot feels, a random number, how often it has decided in the episode, and the step twice. It refuses
    the instruction `fail`, waits while its `gate` is shut, and notes how many it was asked about at once.
    """

    name = "sums"

    def __init__(self) -> None:
        self.asked: list[int] = []
        self.gate = threading.Event()
        self.gate.set()

    def act(self, observations: Observations, generators, memories=None) -> Decisions:
        self.asked.append(len(observations))
        assert self.gate.wait(60)
        if "fail" in observations.instructions:
            raise RuntimeError("as it was told to")
        memories = [(memory or 0) + 1 for memory in memories or [None] * len(observations)]
        felt, asked = observations.proprioception, observations.instructions
        sums = np.zeros(len(observations)) if felt is None else felt.sum(1)
        draws = [generator.random() for generator in generators]
        rows = zip(observations.image().mean((1, 2, 3)), map(len, asked), sums, draws, memories, strict=True)
        actions = np.array([[[*row, step, step] for step in (0, 1)] for row in rows])
        return Decisions(actions, memories=memories)


class Both(Sums):
    """Its first number tells how bright each of two named cameras is: 1,000 for the first, 1 for the other."""

    cameras, proprioception = ("front", "hand"), 8

    def act(self, observations: Observations, generators, memories=None) -> Decisions:
        assert list(observations.images) == ["front", "hand"]
        decided = super().act(observations, generators, memories)
        front, hand = (observations.image(camera)[:, 0, 0, 0].astype(int) for camera in self.cameras)
        decided.actions[:, :, 0] = (1000 * front + hand)[:, None]
        return decided


@contextmanager
def serving(
    policy: Any, converse: Conversation = openpi.converse, robot: str = "panda", **limits: Any
) -> Iterator[tuple[int, Service]]:
    """The port of a server that runs meanwhile, and what it counts."""
    facts: dict[str, Any] = {"server": "vla-razor", "policy": policy.name, "robot": robot}
    if not isinstance(cameras := getattr(policy, "cameras", 1), int):
        facts["cameras"] = list(cameras)
    service = Service(policy, Limits(**limits), facts)
    ready, handles = threading.Event(), []

    async def serve() -> None:
        stop = asyncio.Event()
        handles.extend([asyncio.get_running_loop(), stop])
        await run(service, listening, converse, stop, ready.set)

    with bound("127.0.0.1", 0) as listening:
        thread = threading.Thread(target=lambda: asyncio.run(serve()))
        thread.start()
        assert ready.wait(30)
        try:
            yield listening.getsockname()[1], service
        finally:
            loop, stop = handles
            loop.call_soon_threadsafe(stop.set)
            thread.join(30)
            assert not thread.is_alive()


def client(port: int) -> ClientConnection:
    return connect(f"ws://127.0.0.1:{port}", compression=None, proxy=None)


def packb(message: Any) -> bytes:
    """By msgpack itself."""
    data = msgpack.packb(message)
    assert data
    return data


def asked(connection: ClientConnection, message: Any) -> Any:
    """What a server says to a message, or to bytes or a text."""
    connection.send(message if isinstance(message, bytes | str) else pack(message))
    answer = connection.recv(timeout=60)
    return answer if isinstance(answer, str) else unpack(answer)


@contextmanager
def somebody(answer: Callable[[ServerConnection], None]) -> Iterator[str]:
    """Somebody else's server, which says this to each client."""
    with serve(answer, "127.0.0.1", 0) as listening:
        thread = threading.Thread(target=listening.serve_forever)
        thread.start()
        yield f"openpi://127.0.0.1:{listening.socket.getsockname()[1]}"
        listening.shutdown()
        thread.join()
