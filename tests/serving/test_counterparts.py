"""The published clients, each under the interpreter that a variable names, or that `make counterparts` has made."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.serving.support import Sums, serving
from vla_razor.policies import Observations
from vla_razor.policies.remote import RemotePolicy
from vla_razor.serving import vla_eval

ROOT = Path(__file__).resolve().parents[2]
OPENPI, VLA_EVAL = "VLA_RAZOR_OPENPI_PYTHON", "VLA_RAZOR_VLA_EVAL_PYTHON"


def python(variable: str, made: str) -> str | None:
    """An interpreter with a published client, if there is one."""
    own = ROOT / made / "bin" / "python"
    return os.environ.get(variable) or (str(own) if own.is_file() else None)


PYTHONS = {OPENPI: python(OPENPI, ".venv-openpi"), VLA_EVAL: python(VLA_EVAL, ".venv-vla-eval")}
ADVICE = "names no interpreter, and `make counterparts` has made none"
needs_openpi = pytest.mark.skipif(not PYTHONS[OPENPI], reason=f"no openpi-client: {OPENPI} {ADVICE}")
needs_vla_eval = pytest.mark.skipif(not PYTHONS[VLA_EVAL], reason=f"no vla-eval: {VLA_EVAL} {ADVICE}")


def ran(variable: str, script: str, *arguments: Any, folder: Path | None = None) -> Any:
    """What a script prints as JSON on its last line, under the interpreter that a variable names."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    command = [str(PYTHONS[variable]), "-W", "ignore", "-c", script, *map(str, arguments)]
    done = subprocess.run(
        command, env=environment, cwd=folder, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


OPENPI_CLIENT = """
import json, sys
import numpy as np
from openpi_client.action_chunk_broker import ActionChunkBroker
from openpi_client.websocket_client_policy import WebsocketClientPolicy

policy = WebsocketClientPolicy("127.0.0.1", int(sys.argv[1]))
seen = {
    "observation/image": np.full((4, 6, 3), 7, np.uint8),
    "observation/wrist_image": np.zeros((4, 6, 3), np.uint8),
    "observation/state": np.arange(8.0),
    "prompt": "pick can",
}
first, second = policy.infer(seen), policy.infer(seen)
try:
    policy.infer({"prompt": "pick can"})
except RuntimeError as error:
    refused = str(error)
broker = ActionChunkBroker(policy, action_horizon=2)
steps = [broker.infer(seen)["actions"].tolist() for _ in range(3)]
print(json.dumps({
    "metadata": policy.get_server_metadata(), "dtype": str(first["actions"].dtype),
    "actions": first["actions"].tolist(), "timing": sorted(second["server_timing"]), "refused": refused, "steps": steps,
}))
"""


@needs_openpi
def test_openpis_client() -> None:
    with serving(Sums()) as (port, _):
        found = ran(OPENPI, OPENPI_CLIENT, port)
    assert found["metadata"]["policy"] == "sums"
    assert found["dtype"] == "float32"
    assert [row[:3] + row[4:] for row in found["actions"]] == [[7, 8, 28, 1, 0, 0], [7, 8, 28, 1, 1, 1]]
    assert found["timing"] == ["infer_ms", "prev_total_ms"]
    assert "no observation/image among prompt" in found["refused"]
    assert [row[4:6] for row in found["steps"]] == [[3, 0], [3, 1], [4, 0]]  # the broker asks for every second one


OPENPI_SERVER = """
import asyncio, json, sys, time
import numpy as np
import websockets.asyncio.server
from openpi_client import msgpack_numpy

async def handler(connection):
    packer = msgpack_numpy.Packer()
    await connection.send(packer.pack({"name": "pi"}))
    async for message in connection:
        seen = msgpack_numpy.unpackb(message)
        assert set(seen) == {"observation/image", "observation/state", "prompt"}, sorted(seen)
        row = [seen["observation/image"].mean(), seen["observation/state"].sum(), len(seen["prompt"]), 0, 0, 0, 0]
        timing = {"infer_ms": np.float64(1.5)}
        await connection.send(packer.pack({"actions": np.array([row] * 10), "server_timing": timing}))

async def main():
    async with websockets.asyncio.server.serve(handler, "127.0.0.1", 0, compression=None, max_size=None) as server:
        print(server.sockets[0].getsockname()[1], flush=True)
        await server.serve_forever()

asyncio.run(main())
"""


@needs_openpi
def test_a_server_that_packs_as_openpis_does() -> None:
    """openpi's own server is not published as a package; this one has its packing and its order of messages."""
    import numpy as np

    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    command = [str(PYTHONS[OPENPI]), "-c", OPENPI_SERVER]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        try:
            policy = RemotePolicy(f"openpi://127.0.0.1:{int(process.stdout.readline())}?steps=5")
            states = np.stack([np.full(8, row, np.float32) for row in (1, 2)])
            seen = Observations({"camera": np.full((2, 8, 8, 3), 9, np.uint8)}, ["ab", "abc"], states)
            found = policy.act(seen, [np.random.default_rng(0)] * 2).actions
        finally:
            process.terminate()
    assert found.shape == (2, 5, 7)
    assert found[:, 4, :3].tolist() == [[9, 8, 2], [9, 16, 3]]


VLA_EVAL_BENCHMARK = '''
import json, sys
import numpy as np
from vla_eval.benchmarks.base import StepBenchmark, StepResult
from vla_eval.specs import GRIPPER_CLOSE_POS, IMAGE_RGB, LANGUAGE, POSITION_DELTA, ROTATION_AA

TAKEN = []

class Counting(StepBenchmark):
    """Episodes of five steps, whose pictures grow brighter."""

    def get_tasks(self):
        return [{"name": "pick can", "suite": "counting"}]

    def reset(self, task):
        self.steps = 0
        return self.steps

    def step(self, action):
        TAKEN.append(np.asarray(action["actions"]).tolist())
        self.steps += 1
        return StepResult(obs=self.steps, reward=0.0, done=self.steps == 5, info={})

    def make_obs(self, raw, task):
        images = {"agentview": np.full((4, 6, 3), 10 * raw, np.uint8)}
        return {"images": images, "task_description": task["name"]}

    def check_done(self, result):
        return result.done

    def get_step_result(self, result):
        return {"success": result.done}

    def get_metadata(self):
        return {"max_steps": 10}

    def get_action_spec(self):
        return {"position": POSITION_DELTA, "rotation": ROTATION_AA, "gripper": GRIPPER_CLOSE_POS}

    def get_observation_spec(self):
        return {"image": IMAGE_RGB, "language": LANGUAGE}
'''
VLA_EVAL_CLIENT = """
import anyio, json, sys
sys.path.insert(0, ".")
import counting
from vla_eval.connection import Connection
from vla_eval.runners.sync_runner import SyncEpisodeRunner
from vla_eval.specs import DimSpec, check_specs

async def main():
    benchmark, runner = counting.Counting(), SyncEpisodeRunner()
    async with Connection(f"ws://127.0.0.1:{sys.argv[1]}", timeout=60) as connection:
        info = connection.server_info
        action, seen = info["action_spec"], info["observation_spec"]
        specs = [{k: DimSpec.from_dict(v) for k, v in spec.items()} for spec in (action, seen)]
        wrong = check_specs(specs[0], benchmark.get_action_spec(), specs[1], benchmark.get_observation_spec())
        results = [await runner.run_episode(benchmark, benchmark.get_tasks()[0], connection) for _ in range(2)]
        try:
            await connection.act({"images": {}, "task_description": "pick can"})
        except RuntimeError as error:
            refused = str(error)
    print(json.dumps({"wrong": wrong, "results": results, "taken": counting.TAKEN, "refused": refused}))

anyio.run(main)
"""


@needs_vla_eval
def test_vla_evals_runner(tmp_path: Path) -> None:
    """Its own connection, episode runner and check of specifications; the benchmark is a few lines, not a simulator."""
    (tmp_path / "counting.py").write_text(VLA_EVAL_BENCHMARK)
    with serving(Sums(), vla_eval.converse) as (port, _):
        found = ran(VLA_EVAL, VLA_EVAL_CLIENT, port, folder=tmp_path)
    assert found["wrong"] == []
    assert [result["steps"] for result in found["results"]] == [5, 5]
    # Brightness at the decision, decisions in the episode, step of the decision: the fifth is not carried over.
    steps = [[0, 1, 0], [0, 1, 1], [20, 2, 0], [20, 2, 1], [40, 3, 0]]
    assert [[row[0], *row[4:6]] for row in found["taken"]] == steps * 2
    assert "images is empty" in found["refused"]
