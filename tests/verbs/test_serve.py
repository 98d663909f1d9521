"""`vla-razor serve` as a process, and docs/serving.md as it stands."""

import json
import os
import re
import shlex
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.server import ServerConnection

from tests.serving.support import SEEN, asked, client, somebody
from tests.serving.test_counterparts import OPENPI, PYTHONS
from tests.verbs.support import CommandLine
from tests.verbs.test_suites import SUITE
from vla_razor import config
from vla_razor.errors import UserError
from vla_razor.policies import opening
from vla_razor.policies.messages import pack, unpack
from vla_razor.verbs.deploy import serve

PAGE = (Path(__file__).parents[2] / "docs" / "serving.md").read_text()
COMMANDS = [shlex.split(line)[1:] for line in re.findall(r"^vla-razor (?:serve|eval) .*", PAGE, re.MULTILINE)]


PLAIN = Path(__file__).parents[1] / "envs"


@contextmanager
def served(vla_razor: CommandLine, *arguments: object) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """The process of a server on any free port, once it listens, and that port."""
    process = vla_razor.start(*arguments, "port=0", "device=cpu", "logger=none")
    try:
        assert process.stdout
        assert re.match(r"loading \S+; (openpi|vla_eval) clients will find it at ws://", process.stdout.readline())
        found = re.match(r"serving \S+ \(.*\) at ws://127\.0\.0\.1:(\d+);", process.stdout.readline())
        assert found, process.communicate(timeout=60)
        yield process, int(found[1])
    finally:
        process.kill()
        process.communicate()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_ends_when_told_to_and_says_what_it_did(
    vla_razor: CommandLine, policy: Path, tmp_path: Path, number: signal.Signals
) -> None:
    with served(vla_razor, "serve", "--policy", policy, f"out={tmp_path / 'run'}") as (process, port):
        with client(port) as connection:
            facts = unpack(connection.recv())  # pyright: ignore[reportArgumentType]
            assert (facts["robot"], facts["action_horizon"], facts["action_dim"]) == ("panda", 1, 7)
            assert asked(connection, SEEN)["actions"].shape == (1, 7)
            process.send_signal(number)
            with pytest.raises(ConnectionClosed):
                connection.recv(timeout=60)
        output, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (0, "")
    assert output.startswith("served 1 decisions in 1 passes, 0 errors")
    found = json.loads((tmp_path / "run" / "summary.json").read_text())["served"]
    assert (found["decisions"], found["errors"]) == (1, 0)
    assert 0 < found["milliseconds"]["p50"] <= found["milliseconds"]["p99"]


def test_a_taken_port_is_one_message_before_anything_is_loaded(vla_razor: CommandLine, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        refused = vla_razor.run("serve", "--policy", "nowhere", f"port={port}", f"out={tmp_path / 'run'}", status=2)
    assert (
        refused.stderr
        == f"vla-razor: port {port} of 127.0.0.1 is taken: give another one, port=N, or port=0 for any.\n"
    )
    assert not (tmp_path / "run").exists()


def test_a_policy_that_needs_a_simulator_is_refused() -> None:
    settings = config.compose("serve", ["policy=scripted"])
    with pytest.raises(UserError, match="policy=scripted: it cannot decide by an image"):
        serve.described(opening.open_policy("scripted", settings), settings)


@pytest.mark.slow
def test_what_was_played_before_a_server_went_is_kept(vla_razor: CommandLine, tmp_path: Path) -> None:
    """It answers eight times, which is an episode of the suite."""
    (tmp_path / "slide.yaml").write_text(SUITE)

    def answer(connection: ServerConnection) -> None:
        connection.send(pack({}))
        for _ in range(8):
            connection.recv()
            connection.send(pack({"actions": np.zeros((1, 3))}))
        connection.recv()
        connection.send("Traceback\nMemoryError: too much")

    with somebody(answer) as address:
        settings = ("episodes=2", "num_envs=1", "num_workers=1", "logger=none", "device=cpu", f"out={tmp_path / 'run'}")
        suite = ("--env", tmp_path / "slide.yaml", "--policy", address)
        failed = vla_razor.run(
            "eval", *suite, *settings, status=1, PYTHONPATH=f"{PLAIN}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
        )
    message = failed.stderr.strip().splitlines()
    assert len(message) == 1
    assert "the server refuses: MemoryError: too much" in message[0]
    assert "Episodes that were played until then: 1, kept in" in message[0]
    assert len((tmp_path / "run" / "episodes.jsonl").read_text().splitlines()) == 1


@pytest.mark.slow
def test_what_the_page_says_runs(vla_razor: CommandLine, tmp_path: Path) -> None:
    """Its servers, its evaluation and its program, on other ports and for fewer episodes."""
    first, evaluation, second = COMMANDS
    few = ("episodes=1", "num_envs=1", "num_workers=1", "logger=none", "device=cpu", f"out={tmp_path / 'eval'}")
    with served(vla_razor, *first, f"out={tmp_path / 'openpi'}") as (_, port):
        vla_razor.run(*(word.replace(":8000", f":{port}") for word in evaluation), *few)
        if python := PYTHONS[OPENPI]:
            program = re.findall(r"^```python\n(.*?)```", PAGE, re.MULTILINE | re.DOTALL)[0]
            done = subprocess.run(
                [python, "-c", program.replace("8000", str(port))], env={}, capture_output=True, text=True, check=True
            )
            assert done.stdout.endswith("(1, 7)\n")
    (entry,) = json.loads((tmp_path / "eval" / "summary.json").read_text())["policies"].values()
    assert entry["new_task"]["pick_can"]["success_once"]["episodes"] == 1
    with served(vla_razor, *second, f"out={tmp_path / 'vla_eval'}") as (_, port), client(port) as connection:
        assert asked(connection, {"type": "hello", "payload": {"protocol_version": 1}, "seq": 1})["type"] == "hello"
