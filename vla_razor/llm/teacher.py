"""Who answers the training prompts: `endpoint.py` or `local_teacher.py`, in one interface."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import Future
from typing import NamedTuple, Protocol


class Request(NamedTuple):
    """`wanted` responses to a conversation, the first of which is the prompt's `first`th, from 0; `prompt` is its place
    among the training prompts.
    """

    messages: list[dict[str, str]]
    prompt: int
    first: int
    wanted: int


class Response(NamedTuple):
    """A completion; one that is cut off came to the limit of its length."""

    text: str
    cut_off: bool


class Answer(NamedTuple):
    """The responses to a request, in order, and how often, by kind, it had to be repeated."""

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
        """Begin to answer. What comes holds UserError where the teacher refuses, RunFailed where it has failed."""
        ...
