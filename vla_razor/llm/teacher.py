"""Who answers the training prompts: the interface of `endpoint.py` and `local_teacher.py`."""

from collections import Counter
from concurrent.futures import Future
from typing import NamedTuple, Protocol


class Request(NamedTuple):
    """Asks for `wanted` responses to a conversation. `prompt` is its place among the training prompts; `first` is how
    many responses to it have been drawn before.
    """

    messages: list[dict[str, str]]
    prompt: int
    first: int
    wanted: int


class Response(NamedTuple):
    """A completion; `cut_off` says that it reached the limit of its length."""

    text: str
    cut_off: bool


class Answer(NamedTuple):
    """The responses to a request, in order, and by kind how often it had to be repeated."""

    responses: list[Response]
    failures: Counter[str]


class Teacher(Protocol):
    """`prompts_at_once` requests may be open; each may ask for `responses_at_once`."""

    @property
    def name(self) -> str: ...
    @property
    def prompts_at_once(self) -> int: ...
    @property
    def responses_at_once(self) -> int: ...

    def ask(self, request: Request) -> Future[Answer]:
        """Begins to answer. The future raises UserError where the teacher refuses, RunFailed where it has failed."""
        ...
