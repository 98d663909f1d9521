"""openpi's protocol (github.com/Physical-Intelligence/openpi, serving/websocket_policy_server.py): the server speaks
first and says what it serves; then each observation is answered by a chunk of actions, or by a text that says what was
wrong.

Where it departs: after such a text the connection stays open, so that a client may do better; openpi's closes it. Two
keys of an observation are ours, both optional: `reset: true` begins an episode, for a policy that remembers; `noise` is
all that is random about the decision, so that a rollout through a server is the same as one beside the policy.
"""

import time

from websockets.asyncio.server import ServerConnection

from vla_razor.policies.messages import BadMessage, pack
from vla_razor.serving.observations import of_openpi
from vla_razor.serving.server import Refusal, Service


async def converse(connection: ServerConnection, service: Service) -> None:
    """What is said to one client, until it has gone. What the policy remembers lives as long, or until a reset."""
    await connection.send(pack(service.facts))
    memory, before = None, None
    while True:
        try:
            message = await service.receive(connection)
            begin = time.perf_counter()
            decision = await service.decide(of_openpi(message), memory)
        except (Refusal, BadMessage) as refusal:
            service.errors += 1
            await connection.send(f"vla-razor: {refusal}.")
            continue
        memory = decision.memory
        timing = {"infer_ms": (time.perf_counter() - begin) * 1e3}
        if before is not None:
            timing["prev_total_ms"] = before * 1e3
        answer = {"actions": decision.actions, "remembers": memory is not None, "server_timing": timing}
        await connection.send(pack(answer))
        before = time.perf_counter() - begin
