"""The policy of a server that speaks openpi's protocol: `policy=openpi://HOST:PORT`.

`openpi://HOST:PORT?steps=5` carries out the first five control steps of each decision before it asks again (all of them
otherwise), `?timeout=300` waits so many seconds for an answer (60 otherwise), `?cameras=image,wrist_image` shows the
suite's first two cameras under these names. By default it shows those that a server of `vla-razor serve` says it reads,
and else the first one as `image`.

Every running episode is a client of its own, so that a server may decide about all of them at once and may remember
each. A connection that breaks is made anew and the observation sent again, unless the server has said that its policy
remembers episodes: what it remembered is then lost.

Protocol: github.com/Physical-Intelligence/openpi (openpi_client/websocket_client_policy.py). The server is shown
`observation/image` uint8 [H, W, 3], further cameras as `observation/NAME`, `observation/state` float32 [P] and
`prompt`; one of `vla-razor serve` also gets `noise` and `reset`, so that its decisions are those that the policy makes
beside the environments.
"""

import logging
import weakref
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import numpy as np
from tenacity import RetryCallState, Retrying, retry_if_exception_type, stop_after_attempt, wait_exponential
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from vla_razor.errors import RunFailed, UserError, nearest
from vla_razor.policies import Decisions, Observations
from vla_razor.policies.messages import BadMessage, pack, unpack

SCHEME = "openpi://"
PORT = 8000
ATTEMPTS = 5
FIRST_WAIT = 1.0
"""Seconds before the second attempt; before the fifth it is eight times as long."""
TIMEOUT = 60.0
OPTIONS: dict[str, Callable[[str], Any]] = {"steps": int, "timeout": float, "cameras": lambda names: names.split(",")}
LARGEST = 64 * 2**20
"""Bytes of an answer."""
SILENT = logging.getLogger("vla_razor.remote")
"""What goes wrong is said by an exception, and only there."""
SILENT.addHandler(logging.NullHandler())
SILENT.propagate = False
EXCERPT = 300
"""Characters of what a server says."""


class RemotePolicy:
    """Asks a server. Raises `UserError` for an address that is none, and where no such server answers there."""

    def __init__(self, spec: str) -> None:
        self.name = spec
        self.address, options = _parsed(spec)
        self.steps, self._timeout = options.get("steps"), options.get("timeout", TIMEOUT)
        self._shape: tuple[int, int] | None = None  # of its decisions, once there was one
        self._free: list[_Line] = []
        try:
            self._free.append(self._connected())
        except RunFailed as error:
            raise UserError(str(error)) from error
        self.facts = self._free[0].facts
        self._named: list[str] | None = options.get("cameras")
        self.cameras: int | list[str] = len(self._named) if self._named else self.facts.get("cameras", 1)

    def act(
        self,
        observations: Observations,
        generators: Sequence[np.random.Generator],
        memories: "Sequence[_Seat | None] | None" = None,
    ) -> Decisions:
        """Decides for each environment. Raises `RunFailed` where the server is gone, is too slow, refuses an
        observation or answers with anything else than actions of the shape that it has answered with before.
        """
        memories = memories or [None] * len(observations)
        seats = [seat or _Seat(self._free.pop() if self._free else self._connected(), self._free) for seat in memories]
        rows = zip(range(len(observations)), generators, memories, strict=True)
        messages = [self._observation(observations, *row) for row in rows]
        try:
            for seat, message in zip(seats, messages, strict=True):  # all are on their way before any is waited for
                seat.line.send(message)
            actions = [self._answer(seat.line, message) for seat, message in zip(seats, messages, strict=True)]
        except BaseException:
            for seat in seats:
                seat.line.close()  # answers that nobody has taken must not be those to the next observations
            raise
        return Decisions(np.stack(actions)[:, : self.steps], memories=list(seats))

    def _observation(self, observations: Observations, row: int, generator: np.random.Generator, memory: Any) -> bytes:
        """The one place that says what a server is shown of a row."""
        cameras = self._named or ["image", *list(observations.images)[1:]]
        pictures = zip(cameras, observations.images.values(), strict=False)
        message: dict[str, Any] = {f"observation/{name}": np.ascontiguousarray(part[row]) for name, part in pictures}
        message["prompt"] = observations.instructions[row]
        if observations.proprioception is not None and observations.proprioception.shape[1]:
            message["observation/state"] = np.asarray(observations.proprioception[row], np.float32)
        if str(self.facts.get("server", "")).startswith("vla-razor"):
            message |= {"noise": _noise(generator), "reset": memory is None}
        return pack(message)

    def _answer(self, line: "_Line", message: bytes) -> np.ndarray:
        def ask_again(_: RetryCallState) -> None:
            line.close()

        def answer() -> Any:
            if line.connection is None:
                if line.remembers:
                    raise RunFailed(f"{self.name}: the server disconnected, and has forgotten the episode.")
                line.connect()
                line.send(message)
            return line.receive()

        try:
            return self._checked(line, self._insisted(answer, ask_again))
        except _Gone as error:
            raise RunFailed(f"{self.name}: the server disconnects, {ATTEMPTS} times in a row: {error}.") from error

    def _connected(self) -> "_Line":
        line = _Line(self.address, self._timeout, self.name)
        try:
            self._insisted(line.connect, lambda _: None)
        except _Gone as error:
            advice = "is it running? A server begins with: vla-razor serve --policy RUN"
            raise RunFailed(f"{self.name}: no policy server answers ({error}); {advice}") from error
        return line

    @staticmethod
    def _insisted(call: Callable[[], Any], between: Callable[[RetryCallState], None]) -> Any:
        wait, stop = wait_exponential(FIRST_WAIT, max=8 * FIRST_WAIT), stop_after_attempt(ATTEMPTS)
        retry = retry_if_exception_type(_Gone)
        return Retrying(retry=retry, stop=stop, wait=wait, before_sleep=between, reraise=True)(call)

    def _checked(self, line: "_Line", answer: Any) -> np.ndarray:
        actions = answer.get("actions") if isinstance(answer, dict) else answer
        if (
            not isinstance(actions, np.ndarray)
            or actions.ndim != 2
            or 0 in actions.shape
            or actions.dtype.kind not in "fiu"
        ):
            kind = f"{actions.dtype} {actions.shape}" if isinstance(actions, np.ndarray) else type(actions).__name__
            raise RunFailed(
                f"{self.name}: the server answers with actions of {kind}; expected numbers (horizon, dims)."
            )
        if not np.isfinite(actions).all():
            raise RunFailed(f"{self.name}: the server answers with actions that are not finite.")
        if self._shape and actions.shape != self._shape:
            before, now = (f"{steps} steps of {dims} numbers" for steps, dims in (self._shape, actions.shape))
            raise RunFailed(f"{self.name}: the server decided on {before} before, and on {now} now.")
        if self.steps and self.steps > len(actions):
            raise UserError(f"{self.name}: steps={self.steps}, but the server decides about {len(actions)} at once.")
        self._shape = actions.shape[0], actions.shape[1]
        line.remembers = answer.get("remembers") is True
        return actions.astype(np.float32)


class _Gone(Exception):
    """The connection is refused or has broken: trying again may help."""


class _Seat:
    """An episode's place at the server, which the next one takes when nobody remembers this one any more."""

    def __init__(self, line: "_Line", free: "list[_Line]") -> None:
        self.line = line
        line.remembers = False
        weakref.finalize(self, free.append, line).atexit = False


class _Line:
    """A connection, over which one observation at a time is decided about."""

    def __init__(self, address: str, timeout: float, name: str) -> None:
        self.address, self.timeout, self.name = address, timeout, name
        self.connection: ClientConnection | None = None
        self._open = ExitStack()
        self.remembers = False
        self.facts: dict[Any, Any] = {}

    def connect(self) -> None:
        """Connects, and hears what the server says of itself."""
        settings: dict[str, Any] = {"open_timeout": self.timeout, "max_size": LARGEST, "close_timeout": 1}
        settings |= {"compression": None, "proxy": None, "logger": SILENT}
        try:
            # A server that compiles its first pass answers no pings meanwhile: only `timeout` is too long.
            opening = connect(self.address, ping_interval=None, **settings)
            self.connection = self._open.enter_context(opening)
        except TimeoutError as error:
            raise self._silent() from error
        except OSError as error:
            raise _Gone(error.strerror or str(error)) from error
        except InvalidStatus as error:
            if error.response.status_code == 503:
                raise _Gone(error.response.body.decode(errors="replace").strip()[:EXCERPT]) from error
            raise RunFailed(f"{self.name}: {error}; expected a policy server that speaks openpi's protocol.") from error
        except Exception as error:  # the library fails in several ways where no WebSocket server answers
            if isinstance(error.__cause__, EOFError):  # as a forwarded port does, behind which nobody listens
                raise _Gone("it hangs up") from error
            raise RunFailed(f"{self.name}: what answers there speaks no WebSocket protocol ({error}).") from error
        try:
            self.facts = self.receive()
            if not isinstance(self.facts, dict):
                raise RunFailed(f"{self.name}: the server says {self.facts!r:.80} of itself; expected a mapping.")
        except BaseException:
            self.close()
            raise

    def send(self, message: bytes) -> None:
        """If the connection has broken, it is `receive` that finds out."""
        if self.connection:
            with suppress(Exception):
                self.connection.send(message)

    def receive(self) -> Any:
        """The server's next message. Raises `_Gone`, and `RunFailed` for what is none or comes too late."""
        assert self.connection
        try:
            data = self.connection.recv(timeout=self.timeout)
        except TimeoutError as error:
            raise self._silent() from error
        except (ConnectionClosed, OSError) as error:
            raise _Gone(str(error)) from error
        if isinstance(data, str):
            last = data.strip().rpartition("\n")[2]  # of a traceback, as openpi's server sends it
            raise RunFailed(f"{self.name}: the server refuses: {last[:EXCERPT]}")
        try:
            return unpack(data)
        except BadMessage as error:
            raise RunFailed(f"{self.name}: the server answers nonsense: {error}.") from error

    def _silent(self) -> RunFailed:
        longer = f"{SCHEME}HOST:PORT?timeout={10 * self.timeout:g}"
        return RunFailed(f"{self.name}: the server is silent for {self.timeout:g} s; {longer} waits longer.")

    def close(self) -> None:
        self._open.close()
        self.connection = None


def _parsed(spec: str) -> tuple[str, dict[str, Any]]:
    expected = f"expected {SCHEME}HOST:PORT, and after a ? any of steps=N, timeout=SECONDS, cameras=A,B joined by &"
    try:
        parts = urlsplit(spec)
        host, port = parts.hostname, parts.port or PORT
        options = {}
        for key, value in parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query)):
            if key not in OPTIONS:
                raise UserError(f"policy={spec}: unknown option {key!r}. {nearest(key, OPTIONS)}")
            options[key] = OPTIONS[key](value)
    except ValueError as error:
        raise UserError(f"policy={spec}: {error}; {expected}.") from error
    if (
        not host
        or parts.path.strip("/")
        or parts.fragment
        or parts.username
        or not all(all(value) if isinstance(value, list) else 0 < value < 1e6 for value in options.values())
    ):
        raise UserError(f"policy={spec}: {expected}.")
    return f"ws://{f'[{host}]' if ':' in host else host}:{port}", options


def _noise(generator: np.random.Generator) -> np.ndarray:
    """What makes the same generator elsewhere: the key and the counter of Philox; of another, numbers from it."""
    state: Any = generator.bit_generator.state
    if state["bit_generator"] != "Philox":
        return generator.integers(0, 2**64, 6, np.uint64)
    return np.concatenate([state["state"]["key"], state["state"]["counter"]]).astype(np.uint64)
