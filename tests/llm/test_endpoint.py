"""The endpoint's client against a server that fails in the usual ways; its rate, measured at the server."""

import json
import threading
import time
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import huggingface_hub
import pytest

from tests.llm.teaching import RIGHT, Behaviour, Handler, Server, completion, right, serving, some_examples
from vla_razor.errors import RunFailed, UserError
from vla_razor.llm import annotating, endpoint
from vla_razor.llm.endpoint import Endpoint, Pace
from vla_razor.llm.tasks import science
from vla_razor.llm.teacher import Answer, Request, Response


def open_endpoint(server: Server | str, **settings: Any) -> Endpoint:
    usual = {
        "key": None,
        "concurrency": 4,
        "requests_per_minute": 60_000,
        "timeout": 5.0,
        "temperature": 0.7,
        "max_new_tokens": 64,
    }
    url = server if isinstance(server, str) else server.url
    return Endpoint(url, "sage", **usual | settings)


def ask(teacher: Endpoint, prompt: str = "Which?") -> Answer:
    return teacher.ask(Request([{"role": "user", "content": prompt}], 0, 0, 1)).result(timeout=20)


def at_first(misbehave: Callable[[Handler], None]) -> Behaviour:
    """Misbehaves the first time it is asked, and answers from then on."""
    return lambda handler, _, before: handler.answer(RIGHT) if before else misbehave(handler)


def test_a_request_is_what_the_interface_says() -> None:
    with serving(right) as server:
        answer = ask(open_endpoint(server.url + "/", key="sk-1"))
    assert answer == Answer([Response(RIGHT, cut_off=False)], Counter())
    messages = [{"role": "user", "content": "Which?"}]
    expected = {"model": "sage", "messages": messages, "max_tokens": 64, "temperature": 0.7, "stream": False}
    assert server.bodies == [expected | {"path": "/v1/chat/completions"}]
    assert server.headers[0]["authorization"] == "Bearer sk-1"
    assert server.headers[0]["user-agent"].startswith("vla-razor/")


def test_without_a_key_or_a_temperature_none_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_of_the_user")
    with serving(right) as server:
        ask(open_endpoint(server, temperature=None))
    assert "authorization" not in server.headers[0] and "temperature" not in server.bodies[0]


def test_an_address_is_taken_as_it_is() -> None:
    with serving(right) as server:
        ask(open_endpoint(server.url.replace("/v1", "/v1beta/openai")))
    assert server.bodies[0]["path"] == "/v1beta/openai/chat/completions"


def test_nobody_is_asked_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with serving(right) as server, pytest.raises(UserError, match="HF_HUB_OFFLINE is set"):
        ask(open_endpoint(server))
    assert not server.asked


def stall(handler: Handler) -> None:
    time.sleep(1.5)


def drip(handler: Handler) -> None:
    """Never silent for long, never done."""
    handler.send(200, b"", length=1000)
    for _ in range(40):
        time.sleep(0.05)
        handler.wfile.write(b" ")


def hang_up(handler: Handler) -> None:
    handler.close_connection = True


def cut_chunks(handler: Handler) -> None:
    handler.send_response(200)
    handler.send_header("Transfer-Encoding", "chunked")
    handler.end_headers()
    handler.wfile.write(b"40\r\n" + json.dumps(completion(RIGHT)).encode()[:20])
    handler.close_connection = True


def cut_stream(handler: Handler) -> None:
    """A body without a length, as HTTP/1.0 has them."""
    handler.send_response(200)
    handler.send_header("Connection", "close")
    handler.end_headers()
    handler.wfile.write(json.dumps(completion(RIGHT)).encode()[:40])


MISHAPS: dict[str, tuple[Callable[[Handler], None], str]] = {
    "429": (lambda handler: handler.send(429, {}), "rate_limited"),
    "429 that means nothing": (lambda handler: handler.send(429, {}, Retry_After="soon"), "rate_limited"),
    "429 until a date past": (
        lambda handler: handler.send(429, {}, Retry_After="Wed, 21 Oct 2015 07:28:00 GMT"),
        "rate_limited",
    ),
    "500": (lambda handler: handler.send(500, {"error": {"message": "overloaded"}}), "server_error"),
    "502 in HTML": (lambda handler: handler.send(502, b"<html>Bad gateway</html>"), "server_error"),
    "503 cut off": (lambda handler: handler.send(503, b"half", length=100), "server_error"),
    "408": (lambda handler: handler.send(408, {}), "server_error"),
    "stall": (stall, "timed_out"),
    "drip": (drip, "timed_out"),
    "hang up": (hang_up, "dropped"),
    "cut-off body": (lambda handler: handler.send(200, completion(RIGHT), length=1000), "dropped"),
    "cut-off chunks": (cut_chunks, "dropped"),
    "cut-off stream": (cut_stream, "malformed"),
    "no JSON": (lambda handler: handler.send(200, b"Answer: B"), "malformed"),
    "no UTF-8": (lambda handler: handler.send(200, b'{"choices": "\xff"}'), "malformed"),
    "nothing": (lambda handler: handler.send(200, b""), "malformed"),
    "no choices": (lambda handler: handler.send(200, {"error": {"message": "upstream"}}), "malformed"),
    "empty choices": (lambda handler: handler.send(200, {"choices": []}), "malformed"),
    "an array": (lambda handler: handler.send(200, [1]), "malformed"),
    "content of parts": (lambda handler: handler.send(200, completion([{"text": "B"}])), "malformed"),
    "deep nesting": (lambda handler: handler.send(200, b"[" * 100_000), "malformed"),
}


@pytest.mark.parametrize("name", MISHAPS)
def test_what_passes_is_asked_again(name: str) -> None:
    misbehave, kind = MISHAPS[name]
    timeout = 0.8 if kind == "timed_out" else 5.0
    with serving(at_first(misbehave)) as server:
        answer = ask(open_endpoint(server, timeout=timeout))
    assert answer == Answer([Response(RIGHT, cut_off=False)], Counter({kind: 1}))
    assert server.asked == {"Which?": 2}


@pytest.mark.parametrize(
    ("status", "content", "says"),
    [
        (
            401,
            {"error": {"message": "Incorrect API key provided"}},
            "HTTP 401, Incorrect API key provided. Check the key",
        ),
        (403, {"detail": "no access"}, "HTTP 403, no access. Check the key"),
        (404, {"error": "model 'sage' not found"}, "HTTP 404, model 'sage' not found. Check endpoint=, teacher="),
        (400, {"message": "max_tokens is too large"}, "HTTP 400, max_tokens is too large."),
        (400, b"\xff" * 2000, "HTTP 400, "),
        (422, ["odd"], "HTTP 422"),
        (404, b"", "HTTP 404, Not Found"),
    ],
)
def test_a_refusal_is_permanent(status: int, content: Any, says: str) -> None:
    with serving(lambda handler, *_: handler.send(status, content)) as server, pytest.raises(UserError) as error:
        ask(open_endpoint(server))
    assert says in str(error.value) and server.url in str(error.value) and len(str(error.value)) < 800
    assert server.asked == {"Which?": 1}


def test_the_key_does_not_follow_a_redirect() -> None:
    with serving(right) as other:

        def redirect(handler: Handler, *_: Any) -> None:
            handler.send(307, {}, Location=f"{other.url}/chat/completions")

        with serving(redirect) as server:
            ask(open_endpoint(server, key="sk-1"))
    assert server.headers[0]["authorization"] == "Bearer sk-1"
    assert "authorization" not in other.headers[0]


def test_what_does_not_pass_is_given_up() -> None:
    says = "failed 8 times in a row at one prompt, the last time: HTTP 500, overloaded"
    overloaded = {"error": "overloaded"}
    with serving(lambda handler, *_: handler.send(500, overloaded)) as server, pytest.raises(RunFailed, match=says):
        ask(open_endpoint(server))
    assert server.asked == {"Which?": endpoint.ATTEMPTS}


def test_waits_double(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(endpoint.time, "sleep", waits.append)
    with serving(lambda handler, *_: handler.send(500, {})) as server, pytest.raises(RunFailed):
        ask(open_endpoint(server, requests_per_minute=10**9))
    assert [wait / 0.005 for wait in waits] == pytest.approx([1, 2, 4, 8, 16, 32, 64])


def test_retry_after_is_honoured_by_every_request(monkeypatch: pytest.MonkeyPatch) -> None:
    """In seconds, and then as a date, which is a whole number of seconds too."""

    held, hold = threading.Event(), Pace.hold

    def hold_and_tell(pace: Pace, seconds: float) -> None:
        hold(pace, seconds)
        held.set()

    def limit(handler: Handler, prompt: str, before: int) -> None:
        if prompt != "first" or before == 2:
            handler.answer(RIGHT)
        elif before == 0:
            handler.send(429, {}, Retry_After="0.6")
        else:
            date = format_datetime(datetime.now(UTC) + timedelta(seconds=2), usegmt=True)
            handler.send(429, {}, Retry_After=date)

    monkeypatch.setattr(Pace, "hold", hold_and_tell)
    with serving(limit) as server:
        teacher = open_endpoint(server)
        first = teacher.ask(Request([{"role": "user", "content": "first"}], 0, 0, 1))
        assert held.wait(5)
        ask(teacher, "second")
        assert first.result(timeout=10).failures == {"rate_limited": 2}
    times = sorted(server.times)
    assert times[1] - times[0] >= 0.55
    assert times[-1] - times[0] >= 1.5


def test_a_wait_until_tomorrow_ends_the_run() -> None:
    def exhausted(handler: Handler, *_: Any) -> None:
        handler.send(429, {"error": {"message": "daily quota"}}, Retry_After="86400")

    says = "asks to wait for 86400 seconds: HTTP 429, daily quota"
    with serving(exhausted) as server, pytest.raises(RunFailed, match=says):
        ask(open_endpoint(server))


def test_an_endpoint_that_is_not_there() -> None:
    with serving(right) as server:
        pass
    with pytest.raises(UserError, match=r"cannot be reached: .*refused.* Check endpoint="):
        ask(open_endpoint(server))


def test_one_that_was_there_is_asked_again() -> None:
    with serving(right) as server:
        teacher = open_endpoint(server)
        ask(teacher)
    with pytest.raises(RunFailed, match="the connection was dropped"):
        ask(teacher)


@pytest.mark.parametrize(
    "url",
    [
        *("localhost:8000/v1", "file:///etc/passwd", "ftp://host", "http://", "http:///v1", "http://host:port/v1"),
        *("http:// x", "http://host/a b", "http://[::1/v1", "http://a..b/v1", "http://host/ключ", "http://host:99999"),
    ],
)
def test_an_address_that_is_none(url: str) -> None:
    with pytest.raises(UserError, match="expected an address, as in http://localhost:8000/v1"):
        open_endpoint(url)


@pytest.mark.parametrize("key", ["a b", "a\nb", "ключ", "“quoted”"])
def test_a_key_that_is_none(key: str) -> None:
    with pytest.raises(UserError, match="api_key_variable=") as error:
        open_endpoint("http://127.0.0.1", key=key)
    assert key not in str(error.value)


@pytest.mark.parametrize(("text", "kept"), [(None, ""), ("", ""), ("é\ud800", "é?")])
def test_contents_that_are_hardly_texts(text: str | None, kept: str) -> None:
    with serving(lambda handler, *_: handler.answer(text, "length")) as server:
        assert ask(open_endpoint(server)).responses == [Response(kept, cut_off=True)]


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning"])
def test_a_chain_of_reasoning_is_kept_before_the_answer(field: str) -> None:
    """As DeepSeek R1 itself writes it. A chain that the limit cut off has no answer, whatever it says."""
    chain = "Lead weighs most.\nAnswer: A? No."

    def reasoned(handler: Handler, prompt: str, before: int) -> None:
        reply = completion(None if prompt == "long" else RIGHT, "length" if prompt == "long" else "stop")
        reply["choices"][0]["message"][field] = {"odd": 1} if prompt == "odd" else f"\n{chain}\n"
        handler.send(200, reply)

    with serving(reasoned) as server:
        teacher = open_endpoint(server)
        (whole,), (none,), (plain,) = (ask(teacher, prompt).responses for prompt in ("short", "long", "odd"))
    assert whole == Response(f"<think>\n{chain}\n</think>\n\n{RIGHT}", cut_off=False)
    assert none == Response("", cut_off=True) and plain.text == RIGHT


def test_the_rate_is_kept_at_the_server() -> None:
    waiting, most = set[Handler](), []

    def slow(handler: Handler, *_: Any) -> None:
        waiting.add(handler)
        most.append(len(waiting))
        time.sleep(0.25)
        waiting.remove(handler)  # before the answer, upon which the next may come
        handler.answer(RIGHT)

    with serving(slow) as server:
        teacher = open_endpoint(server, requests_per_minute=1200, concurrency=3)
        examples = list(enumerate(some_examples(24)))
        made = list(annotating.annotate(examples, teacher, science.rewards, samples=1, rejected=False))
    assert len(made) == 24 and max(most) <= 3
    assert times_between(server) >= 0.05 * 0.9  # three at a time, 0.25 seconds each: 12 a second at most

    with serving(right) as server:
        teacher = open_endpoint(server, requests_per_minute=1200, concurrency=8)
        list(annotating.annotate(examples, teacher, science.rewards, samples=1, rejected=False))
    assert 0.05 * 0.9 <= times_between(server) < 0.2


def times_between(server: Server) -> float:
    """Mean seconds from one request's arrival to the next one's."""
    times = sorted(server.times)
    return (times[-1] - times[0]) / (len(times) - 1)


def test_a_held_pace_lets_nobody_pass() -> None:
    pace, begin = Pace(0.0), time.monotonic()
    pace.hold(0.2)
    pace.hold(0.1)
    pace.wait()
    assert time.monotonic() - begin >= 0.2
