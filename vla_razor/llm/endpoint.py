"""A teacher behind an OpenAI-compatible interface: POST {url}/chat/completions, one response a request.

A reasoning model's chain arrives in a field of its own, `reasoning_content` or `reasoning`; the text is then chain and
answer as DeepSeek R1 itself writes them, `<think>` chain `</think>` answer, since the chain is what SFT is after.

What passes (429, 408, 5xx, a time-out, a dropped connection, a body that is cut off or no completion) is asked again
after a wait that doubles, or as long as the server asks for. Every other refusal is permanent. Sampling is the
server's own: seeds are not sent, since not every server takes them.
"""

from __future__ import annotations

import json
import re
import socket
import ssl
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future
from datetime import UTC, datetime
from email.message import Message
from email.utils import parsedate_to_datetime
from http.client import HTTPException, HTTPResponse, IncompleteRead
from typing import Any
from urllib.parse import urlsplit

import vla_razor
from vla_razor.errors import RunFailed, UserError
from vla_razor.llm.teacher import Answer, Request, Response

ATTEMPTS = 8
FIRST_WAIT = 1.0
"""Seconds before the second attempt; before the eighth it is 64 times as long."""
LONGEST_WAIT = 600.0
"""Seconds: a server that asks for more has spent its quota for today."""
NOWHERE = (ConnectionRefusedError, socket.gaierror, ssl.SSLCertVerificationError)
"""What says, of an endpoint that has never answered, that none is there."""
CHUNK, EXCERPT = 1 << 16, 300  # bytes read at a time; characters of a server's message


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
        """`timeout` in seconds, of a whole response. Without a temperature the server's own holds. Raises UserError
        for an address or a key that cannot be one.
        """
        if not _is_address(url):
            raise UserError(f"endpoint={url}: expected an address, as in http://localhost:8000/v1.")
        if key is not None and not re.fullmatch(r"[!-~]+", key):
            raise UserError("the endpoint's key holds spaces or characters that no key has: see api_key_variable=.")
        self.url, self.name, self.prompts_at_once = url.rstrip("/"), model, concurrency
        self._timeout, self._pace, self._has_answered = timeout, Pace(60 / requests_per_minute), False
        self._headers = {"Content-Type": "application/json", "User-Agent": f"vla-razor/{vla_razor.__version__}"}
        if key is not None:
            self._headers["Authorization"] = f"Bearer {key}"
        self._settings: dict[str, Any] = {"model": model, "max_tokens": max_new_tokens}
        if temperature is not None:
            self._settings["temperature"] = temperature

    def ask(self, request: Request) -> Future[Answer]:
        """In the background; one response."""
        return _in_background(lambda: self._answer(request.messages))

    def _answer(self, messages: list[dict[str, str]]) -> Answer:
        failures: Counter[str] = Counter()
        while True:
            self._pace.wait()
            try:
                return Answer([self._response(messages)], failures)
            except _Passing as failure:
                failures[failure.kind] += 1
                self._recover(failure, failures.total())

    def _recover(self, failure: _Passing, times: int) -> None:
        """Waits; raises RunFailed where that has been of no use so often, or is asked for too long."""
        if times == ATTEMPTS:
            raise RunFailed(f"{self.url} failed {ATTEMPTS} times in a row at one prompt, the last time: {failure}.")
        if failure.wait > LONGEST_WAIT:
            raise RunFailed(f"{self.url} asks to wait for {failure.wait:.0f} seconds: {failure}.")
        self._pace.hold(failure.wait)
        time.sleep(FIRST_WAIT * 2 ** (times - 1))

    def _response(self, messages: list[dict[str, str]]) -> Response:
        """One request. Raises `_Passing`, or UserError for a refusal."""
        body = json.dumps(self._settings | {"messages": messages}).encode()
        request = urllib.request.Request(f"{self.url}/chat/completions", body, self._headers)
        deadline = time.monotonic() + self._timeout
        try:
            with _OPENER.open(request, timeout=self._timeout) as reply:
                self._has_answered = True
                return _parse(_body(reply, deadline))
        except urllib.error.HTTPError as error:
            self._has_answered = True
            raise self._failure(error) from error
        except (OSError, HTTPException) as error:
            raise self._disconnection(getattr(error, "reason", error)) from error

    def _failure(self, error: urllib.error.HTTPError) -> Exception:
        said = f"HTTP {error.code}, {_message(error)}"
        if error.code == 429:
            return _Passing("rate_limited", said, _retry_after(error.headers))
        if error.code >= 500 or error.code == 408:
            return _Passing("server_error", said, _retry_after(error.headers))
        remedy = "Check the key in the variable that api_key_variable= names"
        if error.code not in (401, 403):
            remedy = "Check endpoint=, teacher= and the settings of the response"
        return UserError(f"{self.url} refused a request for the model {self.name}: {said}. {remedy}.")

    def _disconnection(self, reason: object) -> Exception:
        if isinstance(reason, TimeoutError):
            return _Passing("timed_out", f"no whole response within {self._timeout:g} seconds")
        if isinstance(reason, NOWHERE) and not self._has_answered:
            return UserError(f"{self.url} cannot be reached: {reason}. Check endpoint=, and that a server runs there.")
        return _Passing("dropped", f"the connection was dropped ({reason!r})")


class Pace:
    """Lets callers, on whatever thread, pass at least `interval` seconds apart, and none while it is held."""

    def __init__(self, interval: float) -> None:
        self._lock, self._interval, self._next = threading.Lock(), interval, 0.0

    def wait(self) -> None:
        """Returns when the caller may pass."""
        while (seconds := self._try()) > 0:
            time.sleep(seconds)

    def hold(self, seconds: float) -> None:
        """Nobody passes for so long."""
        with self._lock:
            self._next = max(self._next, time.monotonic() + seconds)

    def _try(self) -> float:
        """0 if the caller passes, else the seconds until it is worth trying again."""
        with self._lock:
            now = time.monotonic()
            if now < self._next:
                return self._next - now
            self._next = now + self._interval
            return 0.0


class _Passing(Exception):
    """A failure after which the same request may succeed, `wait` seconds later at the earliest."""

    def __init__(self, kind: str, message: str, wait: float = 0.0) -> None:
        super().__init__(message)
        self.kind, self.wait = kind, wait


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A redirected POST would arrive as a GET, and the key at another host."""

    def redirect_request(self, req: Any, fp: Any, code: Any, msg: Any, headers: Any, newurl: Any) -> None:
        return None


_OPENER = urllib.request.build_opener(_NoRedirects)


def _is_address(url: str) -> bool:
    """Whether it has a scheme, a host and a port that http.client takes."""
    try:
        parts = urlsplit(url)
        named = bool(parts.hostname and parts.hostname.encode("idna")) and parts.port != 0
    except ValueError:
        return False
    return named and parts.scheme in ("http", "https") and re.fullmatch(r"[!-~]+", url) is not None


def _in_background(call: Callable[[], Answer]) -> Future[Answer]:
    """On a thread that Ctrl-C need not wait for, which a pool's would be."""
    future: Future[Answer] = Future()

    def work() -> None:
        try:
            future.set_result(call())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    return future


def _body(reply: HTTPResponse, deadline: float) -> bytes:
    """All of it. A server that sends now and then a byte keeps the socket's own time-out from ever firing."""
    parts = []
    while part := reply.read1(CHUNK):
        parts.append(part)
        if time.monotonic() > deadline:
            raise TimeoutError
    if reply.length:
        raise IncompleteRead(b"".join(parts), reply.length)
    return b"".join(parts)


def _parse(body: bytes) -> Response:
    try:
        choice = json.loads(body)["choices"][0]
        text, end = _text(choice["message"]), choice.get("finish_reason")
        # Half a surrogate pair is valid JSON and no text; no tokenizer takes it.
        return Response(text.encode(errors="replace").decode(), cut_off=end == "length")
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        excerpt = body[:EXCERPT].decode(errors="replace")
        raise _Passing("malformed", f"the body is no chat completion: {excerpt!r}") from None


def _text(message: dict[str, Any]) -> str:
    """The answer, after its chain of reasoning where there is one. A chain without an answer is no response."""
    answer = message.get("content") or ""
    chain = message.get("reasoning_content") or message.get("reasoning")
    kinds = {type(answer), type(chain)}
    return f"<think>\n{chain.strip()}\n</think>\n\n{answer}" if chain and answer and kinds == {str} else answer


def _message(error: urllib.error.HTTPError) -> str:
    """What the server says of its error, in whichever of the usual places."""
    try:
        text = error.read(CHUNK).decode(errors="replace").strip()
    except (OSError, HTTPException):
        text = ""
    try:
        content = json.loads(text)
        content = content.get("error") or content.get("detail") or content.get("message") or content
        found = content.get("message", content) if isinstance(content, dict) else content
    except (ValueError, AttributeError, RecursionError):
        found = text
    return " ".join(str(found or error.reason).split())[:EXCERPT]


def _retry_after(headers: Message) -> float:
    """Seconds, given as such or as a date; 0 where the header is absent or means nothing."""
    value = headers.get("Retry-After", "").strip()
    if re.fullmatch(r"\d+(\.\d+)?", value):
        return float(value)
    try:
        when = parsedate_to_datetime(value)
    except ValueError:
        return 0.0
    return max(0.0, (when.replace(tzinfo=when.tzinfo or UTC) - datetime.now(UTC)).total_seconds())
