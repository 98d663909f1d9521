"""When sampling stops, and what is kept."""

from collections import Counter
from concurrent.futures import Future

import pytest

from tests.llm.teaching import RIGHT, WRONG, some_examples
from vla_razor.llm import annotating
from vla_razor.llm.tasks import science
from vla_razor.llm.teacher import Answer, Request, Response


class Script:
    """A teacher with fixed responses to every prompt, in order."""

    name = "script"

    def __init__(self, *texts: str, at_once: int = 1, cut_off: bool = False) -> None:
        self.texts, self.responses_at_once, self.prompts_at_once = texts, at_once, 2
        self.cut_off = cut_off
        self.requests: list[Request] = []

    def ask(self, request: Request) -> Future[Answer]:
        self.requests.append(request)
        texts = self.texts[request.first : request.first + request.wanted]
        future: Future[Answer] = Future()
        future.set_result(Answer([Response(text, self.cut_off) for text in texts], Counter({"timed_out": 1})))
        return future


@pytest.mark.parametrize(
    ("texts", "at_once", "rejected", "expected"),
    [
        ([RIGHT, WRONG], 1, False, (RIGHT, None, 1)),
        ([WRONG, "Answer: B", RIGHT], 1, False, ("Answer: B", None, 2)),
        ([WRONG, "D", RIGHT, "B"], 1, True, (RIGHT, WRONG, 3)),
        ([RIGHT, "B", "", "D", "C"], 1, True, (RIGHT, "D", 4)),
        (["", " \n", RIGHT], 1, True, (RIGHT, None, 4)),
        ([WRONG] * 4, 1, False, (None, None, 4)),
        ([WRONG] * 4, 1, True, (None, WRONG, 4)),
        ([""] * 4, 2, True, (None, None, 4)),
        ([WRONG, "D", RIGHT, "B", "A"], 3, True, (RIGHT, WRONG, 3)),
        ([WRONG, "D", "A", RIGHT, "A"], 3, True, (RIGHT, WRONG, 4)),
    ],
)
def test_sampling_stops_when_a_prompt_has_what_it_needs(
    texts: list[str], at_once: int, rejected: bool, expected: tuple[str | None, str | None, int]
) -> None:
    teacher = Script(*texts, *[""] * 10, at_once=at_once)
    (made,) = annotating.annotate(enumerate(some_examples(1)), teacher, science.rewards, samples=4, rejected=rejected)
    assert (made.chosen, made.rejected, made.samples) == expected
    assert sum(request.wanted for request in teacher.requests) == made.samples
    assert made.failures["timed_out"] == len(teacher.requests)
    assert made.failures.get("empty", 0) == sum(not text.strip() for text in teacher.texts[: made.samples])


def test_an_empty_response_is_never_right() -> None:
    made = list(
        annotating.annotate(
            enumerate(some_examples(1)), Script(" ", " "), lambda texts, _: [1.0] * len(texts), samples=2, rejected=True
        )
    )
    assert (made[0].chosen, made[0].rejected, made[0].failures["empty"]) == (None, None, 2)


def test_a_response_that_was_cut_off_is_judged_like_any_other() -> None:
    teacher = Script(RIGHT, cut_off=True)
    (made,) = annotating.annotate(enumerate(some_examples(1)), teacher, science.rewards, samples=1, rejected=False)
    assert made.chosen == RIGHT and made.failures["cut_off"] == 1
