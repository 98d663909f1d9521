"""vla-eval's protocol by a plain WebSocket client; tests/serving/test_counterparts.py has its own."""

import io
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.serving.support import Both, Sums, asked, client, packb, serving
from vla_razor.policies import Decisions
from vla_razor.serving import vla_eval


def png(value: int) -> dict[str, Any]:
    buffer = io.BytesIO()
    Image.new("RGB", (6, 4), (value,) * 3).save(buffer, "PNG")
    return {"__image__": True, "format": "png", "data": buffer.getvalue(), "shape": [4, 6, 3]}


def message(kind: str, payload: Any, seq: int = 0) -> bytes:
    return packb({"type": kind, "payload": payload, "seq": seq, "timestamp": time.time()})


def observation(value: int, seq: int = 0, **changes: Any) -> bytes:
    seen = {"images": {"agentview": png(value), "wrist": png(0)}, "task_description": "pick can", **changes}
    return message("observation", seen, seq)


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with serving(Sums(), vla_eval.converse) as (number, _):
        yield number


def test_the_client_speaks_first(port: int) -> None:
    with client(port) as connection:
        answer = asked(connection, message("hello", {"protocol_version": 1, "harness_version": "0.8.0"}, 5))
        with pytest.raises(TimeoutError):
            connection.recv(timeout=0.2)
    assert (answer["type"], answer["seq"]) == ("hello", 5)
    assert answer["payload"]["protocol_version"] == 1
    assert answer["payload"]["action_spec"]["gripper"]["format"] == "binary_close_positive"
    assert answer["payload"]["observation_params"] == {}


def test_a_wrist_camera_and_the_state_are_asked_for_where_the_policy_reads_them() -> None:
    with serving(Both(), vla_eval.converse) as (number, _), client(number) as connection:
        answer = asked(connection, message("hello", {"protocol_version": 1, "harness_version": "0.8.0"}))
        assert answer["payload"]["observation_params"] == {"send_state": True, "send_wrist_image": True}
        shown = {"agentview": png(9), "wrist": png(4)}
        acted = asked(connection, observation(0, images=shown, states=np.zeros(8).tolist()))
    assert acted["payload"]["actions"][0] == 9004


def test_one_action_an_observation_and_a_new_episode_drops_the_rest(port: int) -> None:
    with client(port) as connection:
        connection.send(message("episode_start", {"task": {"name": "x"}}))
        answers = [asked(connection, observation(value, value)) for value in (10, 20, 30)]
        connection.send(message("episode_start", {}))
        answers.append(asked(connection, observation(40, 40)))
    assert [answer["seq"] for answer in answers] == [10, 20, 30, 40]
    assert all(answer["type"] == "action" and answer["payload"]["actions"].shape == (7,) for answer in answers)
    # Brightness at the decision, decisions in the episode, and the step of the decision: two steps are one decision.
    found = [list(answer["payload"]["actions"][[0, 4, 5]]) for answer in answers]
    assert found == [[10, 1, 0], [10, 1, 1], [30, 2, 0], [40, 1, 0]]


@pytest.mark.parametrize(
    ("said", "error"),
    [
        ("text", "a text frame"),
        (b"\xc1", "not msgpack"),
        (message("dance", {}), "a message of type 'dance'"),
        (message("observation", []), "without its payload"),
        (message("hello", {"protocol_version": 2}), "the client speaks version 2"),
        (observation(1, images={}), "images is empty"),
        (observation(1, task_description=None), "task_description is absent"),
        (observation(1, images={"a": {"__image__": True, "format": "png", "data": b"?"}}), "neither PNG nor JPEG"),
        (observation(1, task_description="fail"), "the policy failed"),
    ],
    ids=lambda part: part if isinstance(part, str) else "",  # messages hold the time, and would differ by process
)
def test_a_bad_message_is_answered_and_the_client_may_go_on(port: int, said: bytes | str, error: str) -> None:
    with client(port) as connection:
        answer = asked(connection, said)
        assert answer["type"] == "error"
        assert error in answer["payload"]["error"]
        assert asked(connection, observation(1, 9))["seq"] == 9


class Changing:
    """The Google robot's gripper is told to change by these."""

    name = "changing"
    changes = (0.0, 1.0, -0.4)

    def act(self, observations, generators, memories=None) -> Decisions:
        actions = np.zeros((len(observations), 3, 7), np.float32)
        actions[:, :, 6] = self.changes
        return Decisions(actions)


def test_the_google_robots_benchmark_gets_the_openness_that_it_makes_the_change_of() -> None:
    with serving(Changing(), vla_eval.converse, "google_robot") as (port, _), client(port) as connection:
        openness = [asked(connection, observation(0))["payload"]["actions"][6] for _ in Changing.changes]
    benchmark = [-(2 * said - 1) for said in openness]  # SimplerEnv's benchmark, with gripper_mode: sticky
    np.testing.assert_allclose(benchmark, Changing.changes, atol=1e-6)
