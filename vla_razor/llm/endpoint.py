"""A teacher behind an OpenAI-compatible interface: POST {url}/chat/completions, one response a request.

A reasoning model's chain of thought arrives in a field of its own, `reasoning_content` or `reasoning`. The text is then
chain and answer as DeepSeek R1 itself writes them, `<think>` chain `</think>` answer: the chain is what SFT is after.

Asked again, after a wait that doubles or for as long as the server asks: 429, 408, 5xx, a time-out, a dropped
connection, a body that is cut off or no completion. Every other refusal is final. Sampling is the server's own: no seed
is sent, since not every server takes one.
"""

import json
import re
import socket
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar
from urllib.parse import urlsplit

import httpx2
from huggingface_hub import ChatCompletionOutput, ChatCompletionOutputMessage, InferenceClient
from huggingface_hub.errors import OfflineModeIsEnabled
from tenacity import RetryCallState, Retrying, retry_if_exception_type, stop_after_attempt, wait_exponential

import vla_razor
from vla_razor.errors import RunFailed, UserError
from vla_razor.llm.teacher import Answer, Request, Response

ATTEMPTS = 8
FIRST_WAIT = 1.0
"""Seconds before the second attempt; before the eighth it is 64 times as long."""
LONGEST_WAIT = 600.0
"""Seconds: a server that asks for more has spent its quota for today."""
CONNECTIONS = 100
"""As many are open at a time in huggingface_hub's pool."""
NOWHERE = (ConnectionRefusedError, socket.gaierror, ssl.SSLCertVerificationError)
"""What says, of an endpoint that has never answered, that none is there."""
EXCERPT = 300
"""Characters of a server's message."""
T = TypeVar("T")


class Endpoint:
    """At most `concurrency` requests are open at a time, begun at least 60 / `requests_per_minute` seconds apart."""

    responses_at_once = 1

    def __init__(
        self,
        url: str,
        model: str,
        *,
        key: str | None,
        concurrency: int,
        requests_per_minute: int,
        timeout: float,
        temperature: float | None,
        max_new_tokens: int,
    ) -> None:
        """`timeout` is in seconds, for a whole response. Without a temperature the server's own holds. Raises UserError
        for an address or a key that cannot be one.
        """
        if not _is_address(url):
            raise UserError(f"endpoint={url}: expected an address, as in http://localhost:8000/v1.")
        if key is not None and not re.fullmatch(r"[!-~]+", key):
            raise UserError("the endpoint's key holds spaces or characters that no key has: see api_key_variable=.")
        self.url, self.name, self.prompts_at_once = url.rstrip("/"), model, min(concurrency, CONNECTIONS)
        self._timeout, self._pace, self._has_answered = timeout, Pace(60 / requests_per_minute), False
        self._settings: dict[str, Any] = {"model": model, "max_tokens": max_new_tokens, "temperature": temperature}
        self._client = InferenceClient(
            # With less of the path, the client puts a /v1 of its own into every address that does not end in one.
            base_url=f"{self.url}/chat/completions",
            # Without a key, the client sends the user's Hugging Face token to whatever server this is. A header of None
            # takes that out again.
            api_key=key or "none",
            headers={
                "authorization": f"Bearer {key}" if key else None,  # pyright: ignore[reportArgumentType]
                # A response is worth a connection of its own; one that is kept open may be closed just as it is used.
                "connection": "close",
                "user-agent": f"vla-razor/{vla_razor.__version__}",
            },
            timeout=timeout,
        )

    def ask(self, request: Request) -> Future[Answer]:
        """In the background; one response."""
        return _in_background(lambda: self._answer(request.messages))

    def _answer(self, messages: list[dict[str, str]]) -> Answer:
        failures: Counter[str] = Counter()

        def hold(state: RetryCallState) -> None:
            failure: Any = state.outcome and state.outcome.exception()
            if failure.wait > LONGEST_WAIT:
                raise RunFailed(f"{self.url} asks to wait for {failure.wait:.0f} seconds: {failure}.")
            failures[failure.kind] += 1
            self._pace.hold(failure.wait)  # the server's limit is on all requests, not on this one alone

        retrying = Retrying(
            retry=retry_if_exception_type(_Passing),
            stop=stop_after_attempt(ATTEMPTS),
            wait=wait_exponential(FIRST_WAIT),
            before_sleep=hold,
            reraise=True,
        )
        try:
            return Answer([retrying(self._response, messages)], failures)
        except _Passing as failure:
            said = f"{self.url} failed {ATTEMPTS} times in a row at one prompt, the last time: {failure}."
            raise RunFailed(said) from failure

    def _response(self, messages: list[dict[str, str]]) -> Response:
        """One request. Raises `_Passing`, or UserError for a refusal."""
        self._pace.wait()
        # On a thread of its own, since the client's time-out is for a silence: a server that sends a byte now and then
        # would keep it waiting for ever.
        asked = _in_background(lambda: self._client.chat_completion(messages, **self._settings))
        try:
            completion = asked.result(self._timeout)
        except TimeoutError as error:
            raise _Passing("timed_out", f"no whole response within {self._timeout:g} seconds") from error
        except OfflineModeIsEnabled as error:
            raise UserError(
                f"{self.url} is not asked while HF_HUB_OFFLINE is set: huggingface_hub then asks no server at all. "
                "Unset it; HF_DATASETS_OFFLINE=1 keeps the data sets to what is on the disk."
            ) from error
        except (httpx2.HTTPError, OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise self._failure(error) from error
        self._has_answered = True
        return _parse(completion)

    def _failure(self, error: BaseException) -> Exception:
        """What became of a request: of the error and those that it came from, the status says most."""
        answered = next((cause for cause in _causes(error) if isinstance(cause, httpx2.HTTPStatusError)), None)
        if answered is not None:
            self._has_answered = True
            status, said = answered.response.status_code, f"HTTP {answered.response.status_code}, "
            said += _message(answered.response)
            if status in (408, 429) or status >= 500:
                kind = "rate_limited" if status == 429 else "server_error"
                return _Passing(kind, said, _retry_after(answered.response.headers))
            remedy = "Check endpoint=, teacher= and the settings of the response"
            if status in (401, 403):
                remedy = "Check the key in the variable that api_key_variable= names"
            return UserError(f"{self.url} refused a request for the model {self.name}: {said}. {remedy}.")
        if not isinstance(error, (httpx2.HTTPError, OSError)):
            return _malformed(error)
        reason = next((cause for cause in _causes(error) if isinstance(cause, NOWHERE)), None)
        if reason and not self._has_answered:  # one that has answered before is likely to come back
            return UserError(f"{self.url} cannot be reached: {reason}. Check endpoint=, and that a server runs there.")
        return _Passing("dropped", f"the connection was dropped ({error!r})")


class Pace:
    """Lets callers, on whatever thread, pass at least `interval` seconds apart, and none while it is held."""

    def __init__(self, interval: float) -> None:
        self._lock, self._interval, self._next = threading.Lock(), interval, 0.0

    def wait(self) -> None:
        """Returns when the caller may pass."""
        while True:
            with self._lock:
                now = time.monotonic()
                if now >= self._next:
                    self._next = now + self._interval
                    return
                seconds = self._next - now
            time.sleep(seconds)  # without the lock, and then again: it may be held for longer meanwhile

    def hold(self, seconds: float) -> None:
        """Nobody passes for so long."""
        with self._lock:
            self._next = max(self._next, time.monotonic() + seconds)


class _Passing(Exception):
    """A failure after which the same request may succeed, `wait` seconds later at the earliest."""

    def __init__(self, kind: str, message: str, wait: float = 0.0) -> None:
        super().__init__(message)
        self.kind, self.wait = kind, wait


def _is_address(url: str) -> bool:
    """Whether it has a scheme, a host and a port."""
    try:
        parts = urlsplit(url)
        named = bool(parts.hostname and parts.hostname.encode("idna")) and parts.port != 0
    except ValueError:
        return False
    return named and parts.scheme in ("http", "https") and re.fullmatch(r"[!-~]+", url) is not None


def _in_background(call: Callable[[], T]) -> Future[T]:
    """On a thread that Ctrl-C need not wait for, which a pool's would be."""
    future: Future[T] = Future()

    def work() -> None:
        try:
            future.set_result(call())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    return future


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error, and in turn what each was raised from or while handling."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _malformed(what: object) -> _Passing:
    return _Passing("malformed", f"the body is no chat completion: {str(what)[:EXCERPT]!r}")


def _parse(completion: ChatCompletionOutput) -> Response:
    try:
        choice = completion.choices[0]
        # Half a surrogate pair is valid JSON and no text; no tokenizer takes it.
        text = _text(choice.message).encode(errors="replace").decode()
        return Response(text, cut_off=choice.finish_reason == "length")
    except (LookupError, TypeError, AttributeError):
        raise _malformed(completion) from None


def _text(message: ChatCompletionOutputMessage) -> str:
    """The answer, after its chain of thought where there is one. A chain without an answer is no response."""
    answer = message.content or ""
    chain = getattr(message, "reasoning_content", None) or message.reasoning
    kinds = {type(answer), type(chain)}
    return f"<think>\n{chain.strip()}\n</think>\n\n{answer}" if chain and answer and kinds == {str} else answer


def _message(response: httpx2.Response) -> str:
    """What the server says of its error, in whichever of the usual places."""
    try:
        text = response.text.strip()
    except httpx2.StreamError:  # its body was cut off
        text = ""
    try:
        content = json.loads(text)
        content = content.get("error") or content.get("detail") or content.get("message") or content
        found = content.get("message", content) if isinstance(content, dict) else content
    except (ValueError, AttributeError, RecursionError):
        found = text
    return " ".join(str(found or response.reason_phrase).split())[:EXCERPT]


def _retry_after(headers: Mapping[str, str]) -> float:
    """Seconds, given as such or as a date; 0 where the header is absent or means nothing."""
    value = headers.get("Retry-After", "").strip()
    if re.fullmatch(r"\d+(\.\d+)?", value):
        return float(value)
    try:
        when = parsedate_to_datetime(value)
    except ValueError:
        return 0.0
    return max(0.0, (when.replace(tzinfo=when.tzinfo or UTC) - datetime.now(UTC)).total_seconds())
