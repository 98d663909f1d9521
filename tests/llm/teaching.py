"""A chat server on 127.0.0.1 that can be told to misbehave, and questions to annotate."""

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from vla_razor.llm.tasks import Example

RIGHT, WRONG = "It weighs most. Answer: B", "Answer: C"
Behaviour = Callable[["Handler", str, int], None]


@dataclass
class Server:
    """What a server on 127.0.0.1 has seen."""

    behaviour: Behaviour
    url: str = ""
    times: list[float] = field(default_factory=list)
    asked: Counter[str] = field(default_factory=Counter)
    bodies: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    lock: Any = field(default_factory=threading.Lock)


class Handler(BaseHTTPRequestHandler):
    """Speaks the interface; how it misbehaves is the server's `behaviour`, of a prompt and the times it came before."""

    protocol_version = "HTTP/1.1"
    state: Server

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        prompt = body["messages"][-1]["content"]
        with self.state.lock:
            self.state.times.append(time.monotonic())
            self.state.bodies.append(body | {"path": self.path})
            self.state.headers.append({name.lower(): value for name, value in self.headers.items()})
            before = self.state.asked[prompt]
            self.state.asked[prompt] += 1
        with suppress(BrokenPipeError, ConnectionResetError):
            self.state.behaviour(self, prompt, before)

    def send(self, status: int, content: Any, length: int | None = None, **headers: str) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        self.wfile.write(body)
        self.close_connection = True

    def answer(self, text: str | None, end: str = "stop") -> None:
        self.send(200, completion(text, end))

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Quiet."""


def completion(text: Any, end: str = "stop") -> dict[str, Any]:
    return {"choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": end}]}


@contextmanager
def serving(behaviour: Behaviour) -> Iterator[Server]:
    state = Server(behaviour)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"state": state}))
    server.daemon_threads = True
    state.url = f"http://127.0.0.1:{server.server_port}/v1"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def right(handler: Handler, prompt: str, before: int) -> None:
    handler.answer(RIGHT)


def some_examples(count: int) -> list[Example]:
    gold = json.dumps({"letter": "B", "text": "lead"})
    return [Example(f"question {number}", gold, "Answer: B", f"question{number}") for number in range(count)]
