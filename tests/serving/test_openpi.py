"""openpi's protocol by a plain WebSocket client: what is answered, who is decided about together, who harms nobody."""

import http.client
import re
import socket
import struct
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection

from tests.serving.support import SEEN, Both, Sums, asked, client, serving
from vla_razor.policies.messages import pack, unpack


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with serving(Sums(), message_bytes=100_000) as (number, _):
        yield number


def test_the_server_speaks_first_and_answers_a_chunk_with_its_timing(port: int) -> None:
    with client(port) as connection:
        assert unpack(connection.recv(timeout=10)) == {"server": "vla-razor", "policy": "sums", "robot": "panda"}  # pyright: ignore
        first, second = (asked(connection, SEEN) for _ in range(2))
    assert first["actions"].dtype == np.float32
    np.testing.assert_array_equal(first["actions"][:, [0, 1, 2, 5]], [[7, 8, 28, 0], [7, 8, 28, 1]])
    assert first["server_timing"].keys() == {"infer_ms"}
    assert second["server_timing"].keys() == {"infer_ms", "prev_total_ms"}
    assert 0 < second["server_timing"]["infer_ms"] < 60_000


@pytest.mark.parametrize(("path", "body"), [("/healthz", b"OK\n"), ("/health", b'{"status": "ok"}\n')])
def test_it_says_that_it_is_up(port: int, path: str, body: bytes) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("GET", path)
    answer = connection.getresponse()
    assert (answer.status, answer.read()) == (200, body)
    connection.close()


@pytest.mark.parametrize(
    "image",
    [
        np.full((4, 6, 3), 51, np.uint8),
        np.full((3, 4, 6), 51, np.uint8),
        np.full((4, 6, 3), 0.2, np.float32),
        np.full((3, 4, 6), 0.2, np.float64),
    ],
)
def test_images_are_bytes_or_shares_and_channels_may_come_first(port: int, image: np.ndarray) -> None:
    """As openpi's own policies take them."""
    with client(port) as connection:
        connection.recv()
        assert asked(connection, SEEN | {"observation/image": image})["actions"][0, 0] in (50, 51)


def test_a_policys_cameras_are_found_by_their_names_or_else_in_their_order() -> None:
    """A client's own first one is `image`, whatever comes first in its message."""
    dark, bright = np.full((4, 6, 3), 3, np.uint8), np.full((4, 6, 3), 7, np.uint8)
    told = {"observation/state": np.zeros(8), "prompt": "pick can"}
    with serving(Both()) as (number, _), client(number) as connection:
        assert unpack(connection.recv(timeout=10))["cameras"] == ["front", "hand"]  # pyright: ignore
        ordered = asked(connection, {"observation/wrist_image": bright, "observation/image": dark, **told})
        third = {"observation/image": np.zeros((4, 6, 3), np.uint8)}
        named = asked(connection, {**third, "observation/hand": dark, "observation/front": bright, **told})
        assert ordered["actions"][0, 0] == 3007 and named["actions"][0, 0] == 7003
        refused = asked(connection, {"observation/image": dark, **told})
    assert refused == "vla-razor: the policy reads 2 cameras (front, hand); the client shows image."


def test_what_a_policy_remembers_belongs_to_its_client_until_a_reset(port: int) -> None:
    def steps(connection: Any, **changes: Any) -> float:
        return asked(connection, SEEN | changes)["actions"][0, 4]

    with client(port) as one, client(port) as other:
        hear(one, other)
        found = [steps(one), steps(one), steps(other), steps(one), steps(one, reset=True), steps(one)]
    assert found == [1, 2, 1, 3, 1, 2]


def test_noise_from_the_client_makes_the_decision_its_own(port: int) -> None:
    noise = np.arange(6, dtype=np.uint64)
    expected = np.random.Generator(np.random.Philox(key=noise[:2], counter=noise[2:])).random()
    with client(port) as connection:
        connection.recv()
        draws = [
            asked(connection, SEEN | more)["actions"][0, 3] for more in ({"noise": noise}, {"noise": noise}, {}, {})
        ]
    assert draws[:2] == [np.float32(expected)] * 2
    assert draws[2] != draws[3]


WRONG = [
    ("hello", "a text frame"),
    (b"\xc1\xc1", "not msgpack"),
    ([1, 2], r"the observation is list \[1, 2\]; expected a mapping"),
    ({"prompt": "x", "image": 1}, "no observation/image among image, prompt"),
    (SEEN | {"observation/image": np.zeros((4, 6), np.uint8)}, r"observation/image is uint8 \(4, 6\)"),
    (SEEN | {"observation/image": np.zeros((4, 6, 3), np.int64)}, r"int64 \(4, 6, 3\); expected uint8"),
    (SEEN | {"observation/image": np.full((4, 6, 3), np.nan)}, "numbers from 0 to 1"),
    (SEEN | {"observation/image": np.zeros((0, 6, 3), np.uint8)}, "sides of 1 to 4096"),
    (SEEN | {"observation/wrist_image": "no"}, "observation/wrist_image is str 'no'"),
    (SEEN | {"observation/state": np.array([1, np.inf])}, "observation/state holds numbers that are not finite"),
    (SEEN | {"observation/state": np.zeros((2, 2))}, "expected a row of numbers"),
    (SEEN | {"observation/state": ["a", None]}, "expected a row of numbers"),
    (SEEN | {"prompt": ""}, "prompt is str ''; expected an instruction"),
    (SEEN | {"prompt": b"pick"}, "prompt is bytes"),
    (SEEN | {"prompt": "x" * 5000}, "4096 characters at most"),
    (SEEN | {"noise": 3}, "noise is int 3"),
    (SEEN | {"prompt": "fail"}, "the policy failed .RuntimeError: as it was told to"),
]


@pytest.mark.parametrize(("message", "answer"), WRONG)
def test_a_bad_message_is_answered_and_the_client_may_go_on(port: int, message: Any, answer: str) -> None:
    with client(port) as connection, client(port) as other:
        hear(connection, other)
        said = asked(connection, message)
        assert isinstance(said, str)
        assert re.search(answer, said)
        assert "Traceback" not in said
        assert asked(connection, SEEN)["actions"].shape == asked(other, SEEN)["actions"].shape == (2, 7)


@given(data=st.data())
@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damaged_messages_harm_nobody(port: int, data: st.DataObject) -> None:
    """Bytes are changed, cut out or put in; whatever that makes of the message, it is answered."""
    whole = bytearray(pack(SEEN))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(whole) - 1))
        end = at + data.draw(st.integers(0, 8))
        whole[at:end] = data.draw(st.binary(max_size=8))
    with client(port) as connection:
        connection.recv()
        asked(connection, bytes(whole))
        assert asked(connection, SEEN)["actions"].shape == (2, 7)


def frame(payload: bytes, fin: bool = True) -> bytes:
    """A masked binary frame, whose mask changes nothing."""
    length = struct.pack(">BBQ", (0x80 if fin else 0) | 2, 0x80 | 127, len(payload))
    return length + bytes(4) + payload


@given(cut=st.integers(0, 400), fin=st.booleans())
@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_client_that_breaks_off_harms_nobody(port: int, cut: int, fin: bool) -> None:
    with socket.create_connection(("127.0.0.1", port)) as raw:
        key = "GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        raw.sendall(f"{key}Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n".encode())
        raw.recv(1)
        raw.sendall(frame(pack(SEEN), fin)[:cut])
    with client(port) as connection:
        connection.recv()
        assert asked(connection, SEEN)["actions"].shape == (2, 7)


def test_what_is_no_websocket_harms_nobody(port: int, capfd: pytest.CaptureFixture[str]) -> None:
    for said in (b"\x16\x03\x01\x02\x00", b"GET / HTTP/1.1\r\n\r\n", b"POST /act HTTP/1.1\r\nHost: x\r\n\r\n{}"):
        with socket.create_connection(("127.0.0.1", port), timeout=30) as raw:
            raw.sendall(said)
            raw.shutdown(socket.SHUT_WR)
            while raw.recv(1000):
                pass
    with client(port) as connection:
        connection.recv()
        assert asked(connection, SEEN)["actions"].shape == (2, 7)
    assert capfd.readouterr() == ("", "")


def test_a_large_message_ends_its_connection_alone(port: int) -> None:
    with client(port) as connection, client(port) as other:
        hear(connection, other)
        connection.send(bytes(200_000))
        with pytest.raises(ConnectionClosed) as closed:
            connection.recv(timeout=30)
        assert closed.value.rcvd
        assert closed.value.rcvd.code == 1009
        assert asked(other, SEEN)["actions"].shape == (2, 7)


def test_those_who_wait_are_decided_about_in_one_pass_and_one_failure_is_of_one() -> None:
    policy = Sums()
    policy.gate.clear()
    messages = [SEEN | {"observation/state": np.full(2, float(row))} for row in range(6)]
    messages[3] = messages[3] | {"prompt": "fail"}
    messages += [SEEN | {"observation/image": np.zeros((2, 2, 3), np.uint8)}]  # of which no batch can be made with them
    with serving(policy, batch_size=32) as (port, service), ThreadPoolExecutor(8) as pool, ExitStack() as stack:
        connections = [stack.enter_context(client(port)) for _ in messages]
        for connection in connections:
            connection.recv()
        first = pool.submit(asked, connections[0], messages[0])
        until(lambda: policy.asked == [1])  # the others come while it is being decided about
        others = [pool.submit(asked, *pair) for pair in zip(connections[1:], messages[1:], strict=True)]
        until(lambda: len(service.batcher._waiting) == 6)
        policy.gate.set()
        answers = [future.result(60) for future in (first, *others)]
    assert policy.asked == [1, 5, 1, 1, 1, 1, 1, 1]  # those five one by one once one of them has failed
    assert "the policy failed" in answers.pop(3)
    sums = [answer["actions"][0, 2] for answer in answers]
    assert sums == [0, 2, 4, 8, 10, 28]


def test_a_client_that_does_not_wait_is_decided_about_one_after_the_other() -> None:
    policy = Sums()
    with serving(policy) as (port, _), client(port) as connection:
        connection.recv()
        for row in range(5):
            connection.send(pack(SEEN | {"observation/state": np.array([float(row)])}))
        answers: list[Any] = [unpack(connection.recv(timeout=30)) for _ in range(5)]  # pyright: ignore
    assert [answer["actions"][0, 2] for answer in answers] == [0, 1, 2, 3, 4]
    assert policy.asked == [1] * 5


def test_a_batch_is_no_larger_than_it_may_be() -> None:
    policy = Sums()
    with serving(policy, batch_size=2) as (port, _), ThreadPoolExecutor(8) as pool, ExitStack() as stack:
        connections = [stack.enter_context(client(port)) for _ in range(6)]
        for connection in connections:
            connection.recv()
        list(pool.map(lambda connection: [asked(connection, SEEN) for _ in range(5)], connections))
    assert sum(policy.asked) == 30
    assert max(policy.asked) == 2


def test_a_slow_decision_is_said_to_be_one_and_the_next_is_made() -> None:
    policy = Sums()
    with serving(policy, decision_seconds=0.2) as (port, _), client(port) as connection:
        connection.recv()
        policy.gate.clear()
        assert "no decision within 0.2 s" in asked(connection, SEEN)
        policy.gate.set()
        until(lambda: isinstance(asked(connection, SEEN), dict))


def test_a_silent_client_is_dropped_and_makes_room() -> None:
    with serving(Sums(), clients=1, idle_seconds=1.0) as (port, service), client(port) as connection:
        connection.recv()
        with pytest.raises(InvalidStatus) as refused:
            client(port)
        assert refused.value.response.status_code == 503
        connection.send([pack(SEEN)[:10]])  # a message whose rest never comes would do as well
        assert isinstance(connection.recv(timeout=30), str)
        with pytest.raises(ConnectionClosed):
            connection.recv(timeout=30)
        until(lambda: not service.clients)
        with client(port) as other:
            other.recv()
            assert asked(other, SEEN)["actions"].shape == (2, 7)


def test_clients_are_told_that_the_server_goes() -> None:
    with ExitStack() as stack:
        with serving(Sums()) as (port, _):
            connection = stack.enter_context(client(port))
            connection.recv()
        with pytest.raises(ConnectionClosed) as closed:
            connection.recv(timeout=30)
    assert closed.value.rcvd
    assert closed.value.rcvd.code == 1001


def hear(*connections: ClientConnection) -> None:
    """What the server says first."""
    for connection in connections:
        connection.recv()


def until(holds: Any, seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "waited in vain"
        threading.Event().wait(0.01)
