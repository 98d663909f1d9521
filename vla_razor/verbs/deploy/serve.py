"""`vla-razor serve`: a policy behind a socket, for robots and evaluators (docs/serving.md).

The port is taken, and its address printed, before the policy is loaded; clients are served once it is. One decision is
made on a blank observation first. It spares the first client the cost of warming up, and a policy that needs more than
a client can show is refused before anyone connects. SIGTERM and Ctrl-C end the server: clients are told that it is
going away, and summary.json says how many decisions were made.
"""

import asyncio
import signal
import sys
from functools import partial
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

import vla_razor
from vla_razor.config import robot_of, scenes
from vla_razor.errors import UserError
from vla_razor.interruption import SIGNALS
from vla_razor.runs import Run

if TYPE_CHECKING:
    from vla_razor.policies import Policy

SIZE = (224, 224)
"""Height and width of the blank picture for the first decision, where the suite names no size."""
PROMPT = "pick coke can"
"""Instruction for the first decision, where the suite has none; RT-1's table of embeddings knows it."""


def run(config: DictConfig, run: Run) -> None:
    """Serve `config.policy` until told to stop."""
    try:
        from vla_razor.serving import openpi, server, vla_eval
    except ModuleNotFoundError as error:
        raise UserError(f"serve needs {error.name}: pip install 'vla-razor[serve]'.") from error
    run.restore()
    with server.bound(config.host, config.port) as listening:
        host, port = listening.getsockname()[:2]
        address = f"ws://{f'[{host}]' if ':' in host else host}:{port}"
        _say(f"loading {config.policy}; {config.protocol} clients will find it at {address}")
        from vla_razor.policies.opening import open_policy

        policy = open_policy(config.policy, config)
        facts = described(policy, config)
        limits = server.Limits(
            config.batch_size,
            config.max_clients,
            int(config.max_message * 2**20),
            config.decision_timeout,
            config.idle_timeout,
        )
        service = server.Service(policy, limits, facts, config.seed)
        converse = {"openpi": openpi.converse, "vla_eval": vla_eval.converse}[config.protocol]
        shape = "x".join(str(facts[key]) for key in ("action_horizon", "action_dim") if key in facts) or "unknown"
        ready = partial(
            _say, f"serving {policy.name} ({config.protocol}, actions {shape}) at {address}; Ctrl-C ends it"
        )
        with asyncio.Runner() as runner:
            runner.run(_until_stopped(partial(server.run, service, listening, converse), ready))
    account = service.account()
    run.log(0, **{name: value for name, value in account.items() if isinstance(value, int)})
    run.finish({"served": {**facts, **account}})
    _say(
        f"served {account['decisions']} decisions in {account['passes']} passes, {account['errors']} errors: {run.path}"
    )


def described(policy: "Policy", config: DictConfig) -> dict[str, Any]:
    """What clients are told about the policy; the shape of its decisions is that of the first one. Raises `UserError`
    for a policy that needs more than a client can show.
    """
    from vla_razor.serving.observations import blank, decide

    facts: dict[str, Any] = {
        "server": f"vla-razor {vla_razor.__version__}",
        "policy": policy.name,
        "robot": robot_of(config.env),
    }
    if (cameras := getattr(policy, "cameras", 1)) != 1:
        facts["cameras"] = cameras if isinstance(cameras, int) else list(cameras)
    make = scenes(config.env)[0].make
    tasks = make.get("suite", {}).get("tasks", {})
    prompt = next((task.instruction for task in tasks.values()), PROMPT)
    try:
        actions = decide(policy, [blank(make.get("image_size") or SIZE, prompt, policy)], [None]).actions
    except UserError:
        return facts  # the policy may not know this instruction, and yet know a client's
    except Exception as error:
        raise UserError(
            f"policy={config.policy}: it cannot decide by an image, an instruction and proprioception alone, which "
            f"is all that a client shows ({type(error).__name__}: {error})."
        ) from error
    return {**facts, "action_horizon": actions.shape[1], "action_dim": actions.shape[2]}


async def _until_stopped(serve: Any, ready: Any) -> None:
    loop, stop = asyncio.get_running_loop(), asyncio.Event()

    def end(number: int) -> None:
        stop.set()
        if number == signal.SIGINT:
            loop.remove_signal_handler(number)  # a second Ctrl-C ends the process at once

    before = {number: signal.getsignal(number) for number in SIGNALS}
    for number in SIGNALS:
        loop.add_signal_handler(number, end, number)
    try:
        await serve(stop, ready)
    finally:
        for number, handler in before.items():
            loop.remove_signal_handler(number)
            signal.signal(number, handler)


def _say(line: str) -> None:
    print(line, file=sys.stdout, flush=True)
