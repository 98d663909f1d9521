"""One forward pass for all the clients that wait."""

import asyncio
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from vla_razor.policies import Policy
from vla_razor.serving.observations import Observation, decide


class Decision(NamedTuple):
    """Of one client: float32 actions [C, D] in environment units, and what the policy remembers of the episode."""

    actions: np.ndarray
    memory: Any


@dataclass(eq=False)
class _Request:
    observation: Observation
    memory: Any
    answer: "asyncio.Future[Decision]"


class Batcher:
    """Asks a policy about the requests that wait, at most `most` of the same shapes at once, those that came first.

    Nobody is waited for: while the policy decides about some, others arrive, and are the next pass. The policy runs in
    a thread of its own, so that the server goes on listening.

    Attributes:
        passes: how often the policy has been asked, and decisions: about how many observations.
    """

    def __init__(self, policy: Policy, most: int) -> None:
        self.policy, self.most, self.passes, self.decisions = policy, most, 0, 0
        self._waiting: deque[_Request] = deque()
        self._arrived = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, "policy")

    async def decide(self, observation: Observation, memory: Any) -> Decision:
        """What the policy decides. Raises whatever it raises about this observation."""
        request = _Request(observation, memory, asyncio.get_running_loop().create_future())
        self._waiting.append(request)
        self._arrived.set()
        return await request.answer

    async def run(self) -> None:
        """Until cancelled; a pass that has begun is ended."""
        loop = asyncio.get_running_loop()
        try:
            while True:
                await self._arrived.wait()
                batch = self._next()
                if not batch:
                    self._arrived.clear()
                    continue
                outcomes = await loop.run_in_executor(self._thread, self._decided, batch)
                for request, outcome in zip(batch, outcomes, strict=True):
                    if request.answer.done():  # its client has gone, or waits no longer
                        continue
                    if isinstance(outcome, Exception):
                        request.answer.set_exception(outcome)
                    else:
                        request.answer.set_result(outcome)
        finally:
            self._thread.shutdown(wait=False)

    def _next(self) -> list[_Request]:
        waiting = [request for request in self._waiting if not request.answer.done()]
        alike = [request for request in waiting if request.observation.shapes == waiting[0].observation.shapes]
        batch = alike[: self.most]
        self._waiting = deque(request for request in waiting if request not in batch)
        return batch

    def _decided(self, batch: Sequence[_Request]) -> list[Decision | Exception]:
        try:
            decisions = decide(self.policy, [one.observation for one in batch], [one.memory for one in batch])
        except Exception as error:  # whatever a policy makes of an observation
            if len(batch) == 1:
                return [error]
            return [outcome for one in batch for outcome in self._decided([one])]  # the others are not to blame
        self.passes, self.decisions = self.passes + 1, self.decisions + len(batch)
        memories = decisions.memories or [None] * len(batch)
        return [Decision(*pair) for pair in zip(decisions.actions, memories, strict=True)]
