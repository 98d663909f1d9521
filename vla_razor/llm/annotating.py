"""Sampling a teacher until every prompt has what it needs, several prompts at a time."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, field
from itertools import islice

from vla_razor.llm.annotations import Annotation
from vla_razor.llm.tasks import Example
from vla_razor.llm.teacher import Answer, Request, Response, Teacher

Rewards = Callable[[Sequence[str], Sequence[str]], list[float]]


def annotate(
    examples: Iterable[tuple[int, Example]], teacher: Teacher, rewards: Rewards, *, samples: int, rejected: bool
) -> Iterator[Annotation]:
    """Annotates the examples, each given with its place among the training prompts, and yields them as they finish.

    The teacher is asked about a prompt until there is a right response, and with `rejected` a wrong one too, `samples`
    times at most. Raises what the teacher raises; the prompts that are open at that moment are then lost.
    """
    drafts = (_Draft(index, example, rejected) for index, example in examples)
    asked: dict[Future[Answer], _Draft] = {}
    while True:
        # As many prompts are open as the teacher takes. One that needs another response is asked about again before a
        # new one is opened, so that few prompts are lost where the run is interrupted.
        for draft in islice(drafts, teacher.prompts_at_once - len(asked)):
            asked[_ask(teacher, draft, samples)] = draft
        if not asked:
            return
        done, _ = wait(asked, return_when=FIRST_COMPLETED)
        answered = [(asked.pop(future), future.result()) for future in done]
        # All the responses in one call, since a reward may start processes and wait for them.
        responses = [(draft, response) for draft, answer in answered for response in answer.responses]
        earned = rewards([response.text for _, response in responses], [draft.example.gold for draft, _ in responses])
        for (draft, response), reward in zip(responses, earned, strict=True):
            draft.add(response, reward)
        for draft, answer in answered:
            draft.failures.update(answer.failures)
            if draft.wants_more and draft.drawn < samples:
                asked[_ask(teacher, draft, samples)] = draft
            else:
                yield draft.annotation(teacher.name)


@dataclass(eq=False)
class _Draft:
    """A prompt that the teacher is being asked about."""

    index: int
    example: Example
    wants_rejected: bool
    chosen: str | None = None
    rejected: str | None = None
    drawn: int = 0
    failures: Counter[str] = field(default_factory=Counter)

    @property
    def wants_more(self) -> bool:
        return self.chosen is None or (self.wants_rejected and self.rejected is None)

    def add(self, response: Response, reward: float) -> None:
        """Keeps the first right and the first wrong response. An empty one teaches nothing and is never kept, whatever
        its reward.
        """
        self.drawn += 1
        self.failures.update(["cut_off"] * response.cut_off)
        if not response.text.strip():
            self.failures["empty"] += 1
        elif reward > 0:
            self.chosen = self.chosen or response.text
        elif self.wants_rejected:
            self.rejected = self.rejected or response.text

    def annotation(self, teacher: str) -> Annotation:
        prompt, gold, _, group = self.example
        return Annotation(prompt, gold, group, self.chosen, self.rejected, self.drawn, teacher, dict(self.failures))


def _ask(teacher: Teacher, draft: _Draft, samples: int) -> Future[Answer]:
    wanted = min(teacher.responses_at_once, samples - draft.drawn)
    return teacher.ask(Request(draft.example.messages, draft.index, draft.drawn, wanted))
