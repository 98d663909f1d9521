"""Where the runs of a sweep are carried out: processes of this machine, Ray, or Slurm by submitit. Every run is a
process of its own, the verb's `job(out, number)`, so that one that dies takes no other with it.
"""

import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import closing, contextmanager
from importlib.util import find_spec
from pathlib import Path
from threading import Lock
from typing import Any

from omegaconf import DictConfig, OmegaConf

from vla_razor.errors import RunFailed, UserError
from vla_razor.interruption import stoppable
from vla_razor.progress import progress
from vla_razor.runs import read_config
from vla_razor.verbs import module_of
from vla_razor.verbs.study.axes import Training

REACHED_WITHIN = 10.0
"""Seconds within which Ray's head node must answer."""
Outcome = tuple[int, str | None]
"""The number of a run, and the reason if it failed."""
Failures = Mapping[Training, str]
RUNNING: set[subprocess.Popen[bytes]] = set()
"""The runs that this process has started."""


def carry_out(
    config: DictConfig,
    out: Path,
    trainings: Sequence[Training],
    is_done: Callable[[Training], bool],
    write: Callable[[Failures], object],
) -> Failures:
    """Launch the runs of a sweep that have not ended. Whenever one ends, `write` is given the failures so far.

    Raises RunFailed where no run came to its end.
    """
    failures: dict[Training, str] = {}
    waiting = [(number, training.folder.name) for number, training in enumerate(trainings) if not is_done(training)]
    bar = progress("runs", len(trainings), len(trainings) - len(waiting))
    with bar as advance, closing(launch(config, out, waiting)) as outcomes:
        for number, reason in outcomes:
            if reason is not None:
                failures[trainings[number]] = reason
            advance()
            write(failures)
    if len(failures) == len(trainings):
        raise RunFailed(f"No run came to its end: {'; '.join(failures.values())}")
    return failures


def launch(config: DictConfig, out: Path, names: Iterable[tuple[int, str]]) -> Generator[Outcome]:
    """Carry out the numbered runs where `config.launcher` says, `config.jobs` at a time on this machine. Yields each as
    it ends.

    Raises UserError where the launcher's package is missing, or no cluster answers.
    """
    jobs = [(str(out), number, name) for number, name in names]
    package = {"ray": "ray", "slurm": "submitit"}.get(config.launcher)
    if package:
        needed(package)
        yield from _ray(jobs) if package == "ray" else _slurm(config, out, jobs)
        return
    pool, cards, futures = ThreadPoolExecutor(config.jobs), Cards.of(config), {}
    try:
        futures |= {pool.submit(work, *job, cards): job[1] for job in jobs}
        yield from ((futures[future], future.result()) for future in as_completed(futures))
    finally:
        pool.shutdown(wait=False, cancel_futures=True)  # a sweep that is stopped starts no further runs
        while any(future.running() for future in futures):
            for child in list(RUNNING):
                child.terminate()
            time.sleep(0.2)


class Cards:
    """The GPUs of this machine that its jobs share: each job sees the one GPU that has the fewest jobs."""

    def __init__(self, names: Iterable[str]) -> None:
        self._jobs = dict.fromkeys(names, 0)
        self._lock = Lock()

    @classmethod
    def of(cls, config: DictConfig) -> "Cards":
        """The visible GPUs, as CUDA names them; none where `config.device` names the device itself."""
        if re.fullmatch(r"cpu|cuda:\d+", config.device):
            return cls([])
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        if visible is not None:
            return cls(name.strip() for name in visible.split(",") if name.strip() not in ("", "-1"))
        import torch

        return cls(map(str, range(torch.cuda.device_count())))

    @contextmanager
    def one(self) -> Iterator[dict[str, str]]:
        """Environment variables that give a job its GPU, for as long as it runs."""
        with self._lock:
            name = min(self._jobs, key=self._jobs.__getitem__, default=None)
            if name is not None:
                self._jobs[name] += 1
        if name is None:
            yield {}
            return
        try:
            yield {"CUDA_VISIBLE_DEVICES": name}
        finally:
            with self._lock:
                self._jobs[name] -= 1


def work(out: str, number: int, name: str, cards: Cards | None = None) -> str | None:
    """Carry out run `number` of the sweep in `out`, with its output in logs/<name>.log. Returns why it failed, or None.

    If this process is stopped, so is the run, which saves first.
    """
    log = Path(out) / "logs" / f"{name}.log"
    log.parent.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "vla_razor.verbs.study.launchers", out, str(number)]
    with (
        log.open("wb") as file,
        (cards or Cards([])).one() as own,
        subprocess.Popen(
            command, env=os.environ | own, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT
        ) as child,
    ):
        RUNNING.add(child)  # so that `launch` can stop it from another thread
        try:
            status = child.wait()
        except BaseException:  # Ray ends a worker with SystemExit
            child.terminate()
            raise  # when the child has ended
        finally:
            RUNNING.discard(child)
    if status == 0:
        return None
    said = log.read_text(errors="replace").strip().splitlines()
    # The last line of the log is the message, except of a process that a signal killed.
    return said[-1] if said and status > 0 else f"its process died with status {status}; see {log}"


def _ray(jobs: list[tuple[str, int, str]]) -> Iterator[Outcome]:
    """On the cluster that RAY_ADDRESS names, else on this machine. All nodes must see the folder."""
    import ray
    from ray.exceptions import RayError

    check_reachable(os.environ.get("RAY_ADDRESS", ""))
    ray.init(ignore_reinit_error=True, log_to_driver=False, include_dashboard=False)
    try:
        resources = ray.cluster_resources()
        gpus = 1 if resources.get("GPU") else 0
        cores = 1 if gpus else min(2, int(resources.get("CPU", 1)))
        remote = ray.remote(num_cpus=cores, num_gpus=gpus, max_retries=0)(work)
        waiting = {remote.remote(*job): job[1] for job in jobs}
        while waiting:
            (ready,), _ = ray.wait(list(waiting), num_returns=1)
            number = waiting.pop(ready)
            try:
                yield number, ray.get(ready)
            except RayError as error:  # its node died, or its worker did
                yield number, str(error).strip().splitlines()[0]
    finally:
        ray.shutdown()


def check_reachable(address: str) -> None:
    """Raises UserError where nobody listens at an address host:port; Ray itself would retry for minutes."""
    host, _, port = address.rpartition(":")
    if not port.isdecimal() or "/" in host:  # none, or one in Ray's own words, such as auto or ray://...
        return
    try:
        socket.create_connection((host, int(port)), timeout=REACHED_WITHIN).close()
    except OSError as error:
        raise UserError(
            f"RAY_ADDRESS={address}: no cluster answers there ({error}). `ray start --head` begins one; without the "
            "variable Ray uses this machine."
        ) from error


def _slurm(config: DictConfig, out: Path, jobs: list[tuple[str, int, str]]) -> Iterator[Outcome]:
    import submitit
    from submitit.core.utils import FailedJobError, UncompletedJobError

    try:
        executor = submitit.AutoExecutor(folder=out / "slurm", cluster="slurm")
    except RuntimeError as error:
        raise UserError(f"launcher=slurm: {error}. Is sbatch on this machine? launcher=local needs nothing.") from error
    parameters: Any = OmegaConf.to_container(config.slurm)
    executor.update_parameters(name=out.name, **parameters)
    with executor.batch():
        submitted = [(executor.submit(work, *job), job[1]) for job in jobs]
    for job, number in submitted:
        try:
            yield number, job.result()
        except (FailedJobError, UncompletedJobError) as error:
            yield number, str(error).strip().splitlines()[0]


def needed(package: str) -> None:
    """Raises UserError where the launcher's package is not installed."""
    if find_spec(package) is None:
        raise UserError(f"launcher={package}: {package} is not installed; pip install 'vla-razor[cluster]'.")


def main(out: str, number: str) -> None:
    """Carry out a run of the sweep in `out`. The last line of the output is the message for the user."""
    try:
        with stoppable():
            module_of(read_config(Path(out) / "config.yaml").verb).job(Path(out), int(number))
    except (UserError, RunFailed) as error:
        print(error)
        sys.exit(1)
    except KeyboardInterrupt:
        print(f"interrupted; go on with: vla-razor resume {out}")
        sys.exit(130)


if __name__ == "__main__":
    main(*sys.argv[1:])
