"""`policy=openpi://HOST:PORT`: a server's policy is the policy, and what goes wrong at a server is one message."""

import gc
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from websockets.sync.server import ServerConnection

from tests.serving.support import Both, Sums, serving, somebody
from tests.verbs.support import INSTRUCTION, small_policy
from vla_razor import config
from vla_razor.errors import RunFailed, UserError
from vla_razor.policies import Observations, opening, remote
from vla_razor.policies.messages import pack, unpack
from vla_razor.policies.openvla.policy import PrismaticPolicy
from vla_razor.policies.remote import RemotePolicy
from vla_razor.rollouts.starts import Noise, Start

IMAGES = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), np.uint8)
STATES = np.repeat(np.arange(3, dtype=np.float32)[:, None], 8, 1)


@pytest.fixture(autouse=True)
def no_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "FIRST_WAIT", 0.01)


def asked(policy: Any, step: int = 0, memories: Any = None, rows: int = 3) -> Any:
    generators = [Noise(0, Start("pick_can", seed=row)).at(step) for row in range(rows)]
    seen = Observations({"camera": IMAGES[:rows]}, [INSTRUCTION] * rows, STATES[:rows])
    return policy.act(seen, generators, memories)


def test_a_served_policy_decides_as_it_does_at_home() -> None:
    """Token by token, with the same random numbers, though the server decides about other batches."""
    torch.set_num_threads(1)
    policy = PrismaticPolicy(small_policy())
    with serving(policy) as (port, service):
        away = RemotePolicy(f"openpi://127.0.0.1:{port}")
        for step in range(3):
            np.testing.assert_array_equal(asked(away, step).actions, asked(policy, step).actions)
        assert service.served == 9


def test_all_the_cameras_that_the_server_reads_are_sent() -> None:
    two = {"front": IMAGES, "hand": 255 - IMAGES}
    generators = [Noise(0, Start("pick_can", seed=row)).at(0) for row in range(3)]
    with serving(Both()) as (port, _):
        away = RemotePolicy(f"openpi://127.0.0.1:{port}")
        assert away.cameras == ["front", "hand"]
        found = away.act(Observations(two, [INSTRUCTION] * 3, STATES), generators).actions[:, 0, 0]
        first = IMAGES[:, 0, 0, 0].astype(int)
        np.testing.assert_array_equal(found, 1000 * first + 255 - first)
        named = RemotePolicy(f"openpi://127.0.0.1:{port}?cameras=image,wrist_image")
        assert named.cameras == 2
        again = named.act(Observations(two, [INSTRUCTION] * 3, STATES), generators).actions[:, 0, 0]
        np.testing.assert_array_equal(again, found)
        one = RemotePolicy(f"openpi://127.0.0.1:{port}?cameras=image")
        with pytest.raises(RunFailed, match=r"the policy reads 2 cameras \(front, hand\); the client shows image"):
            one.act(Observations(two, [INSTRUCTION] * 3, STATES), generators)


def test_episodes_are_remembered_each_by_itself() -> None:
    with serving(Sums()) as (port, service):
        away = RemotePolicy(f"openpi://127.0.0.1:{port}")
        first = asked(away)
        second = asked(away, 1, first.memories)
        np.testing.assert_array_equal(second.actions[:, 0, 2], [0, 8, 16])
        assert [*first.actions[:, 0, 4], *second.actions[:, 0, 4]] == [1, 1, 1, 2, 2, 2]
        later = asked(away, 0, [second.memories[0], None, second.memories[2]])
        assert list(later.actions[:, 0, 4]) == [3, 1, 3]
        del first, second, later
        gc.collect()
        assert list(asked(away).actions[:, 0, 4]) == [1, 1, 1]  # on the places of those that are over
        assert len(service.clients) == 4


def test_some_steps_of_a_decision() -> None:
    with serving(Sums()) as (port, _):
        assert asked(RemotePolicy(f"openpi://127.0.0.1:{port}?steps=1")).actions.shape == (3, 1, 7)
        with pytest.raises(UserError, match="steps=3, but the server decides about 2 at once"):
            asked(RemotePolicy(f"openpi://127.0.0.1:{port}?steps=3&timeout=9.5"))


def test_a_connection_that_breaks_is_made_anew() -> None:
    heard: list[Any] = []

    def answer(connection: ServerConnection) -> None:
        connection.send(pack({}))
        heard.append(unpack(connection.recv()))  # pyright: ignore[reportArgumentType]
        if len(heard) == 1:
            return  # it hangs up without a word
        connection.send(pack({"actions": np.ones((1, 7)), "server_timing": {}}))

    with somebody(answer) as address:
        assert asked(RemotePolicy(address), rows=1).actions.tolist() == [[[1] * 7]]
    assert len(heard) == 2
    assert heard[0].keys() == {"observation/image", "observation/state", "prompt"}  # as openpi's servers know them
    np.testing.assert_array_equal(heard[0]["observation/image"], IMAGES[0])


def test_what_a_server_remembered_is_not_made_up() -> None:
    policy = Sums()
    with serving(policy) as (port, service):
        away = RemotePolicy(f"openpi://127.0.0.1:{port}")
        memories = asked(away).memories
        for connection in list(service.clients):
            connection.transport.abort()
        with pytest.raises(RunFailed, match="the server disconnected, and has forgotten the episode"):
            asked(away, 1, memories)


def says(*answers: Any) -> Callable[[ServerConnection], None]:
    """A server that says these one after the other, the first at once, and then nothing more."""

    def answer(connection: ServerConnection) -> None:
        for place, message in enumerate(answers):
            if place:
                connection.recv()
            connection.send(message if isinstance(message, bytes | str) else pack(message))
        connection.recv()
        time.sleep(2)

    return answer


def of(*shape: int) -> dict[str, Any]:
    return {"actions": np.zeros(shape)}


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ([{}, "Traceback ...\nKeyError: 'observation/wrist_image'"], "refuses: KeyError: 'observation/wrist_image'"),
        ([{}, b"\xc1"], "answers nonsense: not msgpack"),
        ([{}, [1]], "actions of list; expected numbers"),
        ([{}, {"action": 1}], "actions of NoneType"),
        ([{}, of(7)], r"actions of float64 \(7,\); expected numbers \(horizon, dims\)"),
        ([{}, of(0, 7)], r"actions of float64 \(0, 7\)"),
        ([{}, {"actions": np.full((1, 7), np.nan)}], "not finite"),
        ([{}, of(2, 7), of(3, 7)], "decided on 2 steps of 7 numbers before, and on 3 steps of 7 numbers now"),
        ([{}, of(2, 7), of(2, 6)], "decided on 2 steps of 7 numbers before, and on 2 steps of 6 numbers now"),
        ([{}], r"silent for 0.5 s; openpi://HOST:PORT\?timeout=5 waits longer"),
    ],
)
def test_what_goes_wrong_is_one_message(answers: list[Any], message: str) -> None:
    with somebody(says(*answers)) as address:
        policy = RemotePolicy(f"{address}?timeout=0.5")
        for _ in answers[2:]:
            asked(policy, rows=1)
        with pytest.raises(RunFailed, match=message) as failed:
            asked(policy, rows=1)
    assert str(failed.value).startswith(f"{address}?timeout=0.5: ")


def test_a_server_that_disconnects_again_and_again() -> None:
    def answer(connection: ServerConnection) -> None:
        connection.send(pack({}))
        connection.recv()

    with somebody(answer) as address, pytest.raises(RunFailed, match="the server disconnects, 5 times in a row"):
        asked(RemotePolicy(address), rows=1)


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        (["welcome"], "the server refuses: welcome"),
        ([b"\xc1"], "answers nonsense"),
        ([[1]], r"says \[1\] of itself; expected a mapping"),
    ],
)
def test_who_is_no_policy_server_is_found_out_at_once(answers: list[Any], message: str) -> None:
    with somebody(says(*answers)) as address, pytest.raises(UserError, match=message):
        RemotePolicy(address)


def test_where_nobody_listens() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        with pytest.raises(UserError, match=r"no policy server answers \(Connection refused\); is it running\?"):
            RemotePolicy(f"openpi://127.0.0.1:{free.getsockname()[1]}")


def test_another_kind_of_server() -> None:
    def speak() -> None:
        connection, _ = ssh.accept()
        with connection:
            connection.sendall(b"SSH-2.0-OpenSSH_9.2\r\n")
            connection.recv(1000)

    with socket.create_server(("127.0.0.1", 0)) as ssh:
        thread = threading.Thread(target=speak)
        thread.start()
        with pytest.raises(UserError, match="speaks no WebSocket protocol"):
            RemotePolicy(f"openpi://127.0.0.1:{ssh.getsockname()[1]}")
        thread.join()


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("openpi://", "expected openpi://HOST:PORT"),
        ("openpi://host:99999", "Port out of range"),
        ("openpi://host:http", "expected openpi://HOST:PORT"),
        ("openpi://host:8000/act", "expected openpi://HOST:PORT"),
        ("openpi://host:8000?step=5", "unknown option 'step'. Did you mean steps"),
        ("openpi://host:8000?steps=five", "invalid literal for int"),
        ("openpi://host:8000?steps=0", "expected openpi://HOST:PORT"),
        ("openpi://host:8000?timeout=nan", "expected openpi://HOST:PORT"),
    ],
)
def test_addresses_that_are_none(address: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        RemotePolicy(address)


def test_it_is_opened_like_any_policy_and_cannot_be_trained() -> None:
    with serving(Sums()) as (port, _):
        address = f"openpi://127.0.0.1:{port}"
        opened = opening.open_policy(address, config.compose("eval", [f"policy={address}"]))
        assert asked(opened).actions.shape == (3, 2, 7)
        with pytest.raises(UserError, match="it acts, but has no distribution"):
            opening.open_trainable(address, config.compose("kl", [f"policy={address}"]))
