"""A WebSocket server that many clients ask for one policy's decisions."""

import asyncio
import errno
import http
import json
import logging
import os
import socket
import sys
import time
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response

from vla_razor.errors import UserError
from vla_razor.policies import Policy
from vla_razor.policies.messages import BadMessage, unpack
from vla_razor.serving.batching import Batcher, Decision
from vla_razor.serving.observations import NOISE, Observation

KEPT = 10_000
"""Latencies, of the last decisions."""
PING = 20.0
"""Seconds between questions whether a silent client is still there."""


@dataclass(frozen=True)
class Limits:
    """Observations in a forward pass, clients at once, bytes of a message, seconds for a decision, and seconds for
    which a client may be silent.
    """

    batch_size: int = 32
    clients: int = 64
    message_bytes: int = 16 * 2**20
    decision_seconds: float = 60.0
    idle_seconds: float = 600.0


class Refusal(Exception):
    """A client is told this, and may go on."""


class Service:
    """What the clients of a server share, whatever they speak: the policy, the limits, and the account of what was
    done. `facts` are about the policy, for whom they help.
    """

    def __init__(self, policy: Policy, limits: Limits, facts: dict[str, Any], seed: int = 0) -> None:
        self.policy, self.limits, self.facts = policy, limits, facts
        self.clients: set[ServerConnection] = set()
        self.served = self.errors = 0
        self.batcher = Batcher(policy, limits.batch_size)
        self._noise = np.random.default_rng(seed)
        self._milliseconds: deque[float] = deque(maxlen=KEPT)

    async def receive(self, connection: ServerConnection) -> Any:
        """The client's next message. Raises `BadMessage` where it is none, ConnectionClosed where the client has gone,
        and TimeoutError where it has been silent for too long.
        """
        async with asyncio.timeout(self.limits.idle_seconds):
            data = await connection.recv()
        if isinstance(data, str):
            raise BadMessage("a text frame; expected msgpack in a binary frame")
        return unpack(data)

    async def decide(self, observation: Observation, memory: Any) -> Decision:
        """Raises `Refusal` where the policy cannot decide about the observation, or not in time."""
        if observation.noise is None:
            observation = observation._replace(noise=self._noise.integers(0, 2**64, NOISE, np.uint64))
        begin = time.perf_counter()
        try:
            async with asyncio.timeout(self.limits.decision_seconds):
                decision = await self.batcher.decide(observation, None if observation.begins else memory)
        except TimeoutError as error:
            raise Refusal(f"no decision within {self.limits.decision_seconds:g} s") from error
        except UserError as error:
            raise Refusal(str(error)) from error
        except Exception as error:  # whatever the policy makes of it
            raise Refusal(f"the policy failed ({type(error).__name__}: {error})") from error
        self._milliseconds.append((time.perf_counter() - begin) * 1e3)
        self.served += 1
        return decision

    def account(self) -> dict[str, Any]:
        """What was done so far; the latencies, in milliseconds, are those of the last 10,000 decisions."""
        found: dict[str, Any] = {"decisions": self.served, "errors": self.errors, "passes": self.batcher.passes}
        if self._milliseconds:
            median, slow = np.percentile(self._milliseconds, [50, 99])
            found["milliseconds"] = {"p50": float(median), "p99": float(slow)}
        return found


Conversation = Callable[[ServerConnection, Service], Awaitable[None]]
"""What is said to one client, until it has gone."""


def bound(host: str, port: int) -> socket.socket:
    """A socket that nobody else can have, and on which nobody is heard yet: a client that comes too early is refused,
    and knows that it has to come again. Raises `UserError` where the port is taken, or is not to be had.
    """
    where = f"{host}:{port}"
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except socket.gaierror as error:
        raise UserError(f"host={host}: no such address ({error.strerror}); expected one of this machine.") from error
    found = socket.socket(family, kind)
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # else a port rests for a minute after its server
        found.bind(address)
    except OSError as error:
        found.close()
        if error.errno == errno.EADDRINUSE:
            raise UserError(f"port {port} of {host} is taken: give another one, port=N, or port=0 for any.") from error
        raise UserError(f"{where} cannot be listened on ({os.strerror(error.errno or 0)}).") from error
    return found


async def run(
    service: Service, listening: socket.socket, converse: Conversation, stop: asyncio.Event, ready: Callable[[], None]
) -> None:
    """Serves on a bound socket until `stop` is set; `ready` is called once clients are heard. Raises UserError where
    the port has been taken meanwhile.
    """

    async def handle(connection: ServerConnection) -> None:
        service.clients.add(connection)
        try:
            await converse(connection, service)
        except ConnectionClosed:
            pass  # as clients do
        except TimeoutError:
            with suppress(ConnectionClosed):
                await connection.close(1001, f"silent for {service.limits.idle_seconds:g} s")
        except Exception as error:  # a mistake of ours: it costs one client its connection, and is not kept quiet
            print(f"vla-razor: a client was dropped ({type(error).__name__}: {error}).", file=sys.stderr, flush=True)
        finally:
            service.clients.discard(connection)

    def answered(connection: ServerConnection, request: Request) -> Response | None:
        """What is no WebSocket: whether the server is up, and how it is set."""
        path = request.path.partition("?")[0]
        if path == "/healthz":
            return connection.respond(http.HTTPStatus.OK, "OK\n")
        if path in ("/health", "/config"):
            batch = {"max_batch_size": service.limits.batch_size}
            body = {"status": "ok"} if path == "/health" else {"applied": {}, "config": batch}
            response = connection.respond(http.HTTPStatus.OK, json.dumps(body) + "\n")
            del response.headers["Content-Type"]
            response.headers["Content-Type"] = "application/json"
            return response
        if len(service.clients) >= service.limits.clients:
            full = f"{len(service.clients)} clients are connected, which is all there may be\n"
            return connection.respond(http.HTTPStatus.SERVICE_UNAVAILABLE, full)
        return None

    batches = asyncio.create_task(service.batcher.run())
    silent = logging.getLogger("vla_razor.serving")  # what strangers send is no event of the server's
    silent.addHandler(logging.NullHandler())
    silent.propagate = False
    limits: dict[str, Any] = {"max_size": service.limits.message_bytes, "max_queue": 2, "compression": None}
    patience: dict[str, Any] = {"ping_interval": PING, "ping_timeout": service.limits.idle_seconds}
    try:
        async with serve(handle, sock=listening, process_request=answered, logger=silent, **limits, **patience):
            ready()
            await stop.wait()
    except OSError as error:
        raise UserError(f"the port has been taken by another server ({error.strerror}): give another one.") from error
    finally:
        batches.cancel()
