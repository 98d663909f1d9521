"""`launcher=ray devices=8 nodes=2`: Ray Train's TorchTrainer places the ranks of a run on a cluster.

Each of its workers starts its rank as a process of its own, with the command line that was given here. A process can
handle signals, which a worker's thread cannot, and does not take the worker along when it dies. The first worker keeps
the store by which the ranks find each other and say why they end, as the launcher does under torchrun.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from vla_razor import ranks
from vla_razor.errors import RunFailed, UserError
from vla_razor.verbs.study.launchers import check_reachable, needed

SAID = "vla-razor: "


def launch(verb: str, given: Sequence[str], config: DictConfig) -> None:
    """Run the verb on `config.devices` ranks of each of `config.nodes` nodes, and wait for it to end.

    Raises UserError or RunFailed with the message of the rank that failed; UserError too where Ray is not installed,
    does not answer, or lacks the resources.
    """
    needed("ray")
    check_reachable(os.environ.get("RAY_ADDRESS", ""))
    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
    import ray
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    try:
        quiet = ray.LoggingConfig(log_level="ERROR")  # else its actors warn of a missing dashboard twice a second
        ray.init(ignore_reinit_error=True, include_dashboard=False, logging_config=quiet)
    except Exception as error:  # Ray has no exception class for a node that does not start
        raise RunFailed(f"launcher=ray: Ray does not start: {error}") from error
    folder = Path(config.out).absolute()
    folder.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "vla_razor.cli", verb, *given, f"out={folder}", "launcher=here"]
    command += ["devices=1", "nodes=1"]
    try:
        count, gpu = config.devices * config.nodes, _kind(ray.cluster_resources(), config)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".aside-ray-") as aside:  # where all nodes see it
            trainer = TorchTrainer(
                _rank,
                train_loop_config={
                    "command": command,
                    "cwd": str(Path.cwd()),
                    "path": os.environ.get("PYTHONPATH", ""),
                },
                scaling_config=ScalingConfig(num_workers=count, use_gpu=gpu),
                torch_config=TorchConfig(backend="gloo"),  # for the workers; the ranks choose their own
                run_config=RunConfig(storage_path=aside, name="ranks"),
            )
            try:
                trainer.fit()
            except Exception as error:  # Ray wraps what a worker raises in classes of its own
                raise _as_said(error) from error
    finally:
        ray.shutdown()


def _kind(there: Mapping[str, float], config: DictConfig) -> bool:
    """Whether the ranks run on GPUs. Raises UserError where the cluster has too few GPUs, cores or nodes."""
    gpu = bool(there.get("GPU")) and config.device != "cpu"
    unit, count = ("GPU" if gpu else "CPU"), config.devices * config.nodes
    if there.get(unit, 0) < count:
        asked = f"devices={config.devices} nodes={config.nodes}"
        raise UserError(f"{asked}: Ray has {there.get(unit, 0):.0f} {unit}s, and a rank takes one.")
    nodes = sum(name.startswith("node:") and name != "node:__internal_head__" for name in there)
    if nodes < config.nodes:
        raise UserError(f"nodes={config.nodes}: Ray's cluster has {nodes}.")
    return gpu


def _rank(given: dict[str, Any]) -> None:
    """What a worker does: start its rank, and pass on its last words."""
    own = {"TORCHELASTIC_USE_AGENT_STORE": "True", "PYTHONPATH": given["path"]}
    if device := os.environ.get("ACCELERATE_TORCH_DEVICE", "").partition(":")[2]:  # Ray's choice for this worker
        own["LOCAL_RANK"] = device
    pipes: Any = {"stdin": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(given["command"], env=os.environ | own, cwd=given["cwd"], **pipes) as child:
        try:
            assert child.stderr is not None
            words = []
            for line in child.stderr:
                if line.startswith(SAID):
                    words.append(line)
                else:
                    sys.stderr.write(line)
            status = child.wait()
        except BaseException:  # Ray stops this worker because another one failed
            child.terminate()
            raise
    if words:
        raise RuntimeError(f"{words[-1].strip()} [{status}]")
    if status:
        time.sleep(2 * ranks.GRACE)  # so that a rank that knows the reason is heard first
        raise RuntimeError(f"{SAID}rank {os.environ['RANK']} ended with status {status} [1]")


def _as_said(error: BaseException) -> Exception:
    """The message of the rank that failed, in the class that it had there."""
    failures = getattr(error, "worker_failures", {}).values()
    said = [str(failure) for failure in failures if SAID in str(failure)] or [str(error)]
    text = said[0].rpartition(SAID)[2].strip()
    text, _, status = text.partition("\n")[0].rpartition(" [")
    if not text:
        return RunFailed(f"Ray gave up: {error}")
    return UserError(text) if status.startswith("2") else RunFailed(text)
