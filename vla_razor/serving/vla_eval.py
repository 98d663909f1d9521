"""vla-eval's protocol (vla-eval 0.8, protocol version 1): the client speaks first; each observation is answered by one
action. What a policy has decided beyond that waits for the next observations, and is dropped when an episode starts.

Actions are those of the suite that the server is told (`env`), which are vla-eval's own for LIBERO. The Google robot's
benchmark takes openness, of which it makes a change of closedness by SimplerEnv's rule; it is sent the openness that
comes out as the change that the policy has decided on, and must be run with `gripper_mode: sticky`.
"""

import time
from collections import deque
from typing import Any

import numpy as np
from websockets.asyncio.server import ServerConnection

import vla_razor
from vla_razor.policies.messages import BadMessage, pack
from vla_razor.policies.observations import names_of
from vla_razor.serving.observations import of_vla_eval
from vla_razor.serving.server import Refusal, Service

VERSION = 1
IMAGE, LANGUAGE = (
    {"name": name, "dims": 0, "format": form} for name, form in (("image", "rgb_hwc_uint8"), ("language",) * 2)
)
PLACE = {"name": "position", "dims": 3, "format": "delta_xyz"}
TURN = {"name": "rotation", "dims": 3, "format": "axis_angle"}
CLOSEDNESS = {"name": "gripper", "dims": 1, "format": "binary_close_positive", "range": [-1, 1]}
OPENNESS = {"name": "gripper", "dims": 1, "format": "continuous_01", "range": [0, 1]}


def specification(service: Service) -> dict[str, Any]:
    """What the server takes and gives, in vla-eval's words: the answer to a hello."""
    facts, policy = service.facts, service.policy
    if facts.get("action_dim", 7) != 7:
        action = {"action": {"name": "raw", "dims": facts["action_dim"], "format": "raw"}}
    else:
        action = {"position": PLACE, "rotation": TURN, "gripper": OPENNESS if _is_google(service) else CLOSEDNESS}
    wanted = {
        "send_state": getattr(policy, "proprioception", 0),
        "send_wrist_image": len(names_of(policy)) > 1,
    }
    return {
        "harness_version": f"vla-razor {vla_razor.__version__}",
        "protocol_version": VERSION,
        "model_server": str(facts["policy"]),
        "capabilities": {},
        "observation_params": {name: True for name, needed in wanted.items() if needed},
        "action_spec": action,
        "observation_spec": {"image": IMAGE, "language": LANGUAGE},
    }


async def converse(connection: ServerConnection, service: Service) -> None:
    """What is said to one client, until it has gone."""
    episode = _Episode()
    while True:
        number: Any = 0
        try:
            kind, payload, number = _parts(await service.receive(connection))
            if kind == "hello":
                answer = _hello(payload, service)
            elif kind == "observation":
                kind, answer = "action", {"actions": await episode.next_action(payload, service)}
            else:
                if kind in ("episode_start", "episode_end"):
                    episode = _Episode()
                continue  # of what the client says of its own errors, nothing follows
        except (Refusal, BadMessage) as refusal:
            service.errors += 1
            kind, answer = "error", {"error": f"vla-razor: {refusal}."}
        message = {"type": kind, "payload": answer, "seq": number, "timestamp": time.time()}
        await connection.send(pack(message, text_keys=True))


class _Episode:
    """What is known of a client's episode: the actions that were decided on and not asked for, and the memory."""

    def __init__(self) -> None:
        self.ahead: deque[np.ndarray] = deque()
        self.memory: Any = None
        self.begins = True

    async def next_action(self, payload: Any, service: Service) -> np.ndarray:
        if not self.ahead:
            decision = await service.decide(of_vla_eval(payload, begins=self.begins), self.memory)
            self.ahead.extend(decision.actions)
            self.memory, self.begins = decision.memory, False
        action = self.ahead.popleft().copy()
        if _is_google(service):
            action[6] = (1 - action[6]) / 2
        return action


def _is_google(service: Service) -> bool:
    return service.facts["robot"] == "google_robot"


def _hello(payload: Any, service: Service) -> dict[str, Any]:
    version = payload.get("protocol_version")
    if version != VERSION:
        raise Refusal(f"the client speaks version {version!r:.20} of vla-eval's protocol; this server speaks {VERSION}")
    return specification(service)


def _parts(message: Any) -> tuple[str, dict[str, Any], Any]:
    kinds = ("hello", "observation", "episode_start", "episode_end", "action", "error")
    if not isinstance(message, dict) or message.get("type") not in kinds:
        found = message.get("type") if isinstance(message, dict) else type(message).__name__
        raise Refusal(f"a message of type {found!r:.40}; expected a mapping with a type of {', '.join(kinds)}")
    payload, number = message.get("payload"), message.get("seq")
    if not isinstance(payload, dict) or not isinstance(number, int):
        raise Refusal("a message without its payload, a mapping, or seq, a whole number")
    return message["type"], payload, number
