"""The sweep: every method at every learning rate, schedule and length, from every base, in worker processes.

Each finished run is a parquet file of its own, so that a killed sweep goes on where it stopped. Runs of one method and
length are trained side by side: on a GPU all of them; on a CPU a few in each process, on one thread, because matrices
of this size do not divide well among threads.
"""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from functools import cache, lru_cache
from itertools import groupby, product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from safetensors.torch import load_file, save_file

from vla_razor import parquet
from vla_razor.errors import RunFailed
from vla_razor.files import atomic_folder, check_folder
from vla_razor.parity_mnist import data, dynamics, precision, training
from vla_razor.parity_mnist.measures import Base, Tests, fisher_of, measure
from vla_razor.parity_mnist.methods import METHODS
from vla_razor.parity_mnist.model import Parameters, select
from vla_razor.parity_mnist.training import Settings, Task
from vla_razor.study.measures import renamed

SIDE_BY_SIDE = 4
"""Runs that a process trains together on a CPU: enough to share the cost of a batch, few enough for the caches."""
TEACHER = "grpo"
TEACHER_RATE, TEACHER_SCHEDULE, TEACHER_EPOCHS = 3e-4, "cosine", 2
DIVERGED = 1000.0  # nats: beyond this a network is certain of answers that are no better than chance
WEIGHTS = "weights.safetensors"
TEXTS = ("domain", "method", "run", "schedule", "status", "reason", "precision")
COUNTS = ("seed", "width", "epochs", "step", "order")


class Job(NamedTuple):
    """What a worker process needs to know: where its images are, where results go, and on which device it computes."""

    data_dir: Path | None
    out: Path
    checkpoints: int
    device: str


class Origin(NamedTuple):
    """Which base a run starts from."""

    seed: int
    width: int

    @property
    def name(self) -> str:
        return f"base-seed{self.seed}-width{self.width}"


def grid(
    methods: Sequence[str],
    rates: Sequence[float],
    schedules: Sequence[str],
    epochs: Sequence[int],
    origins: Sequence[Origin],
) -> list[Settings]:
    """All runs, in an order in which those that can be trained together are neighbours."""
    choices = product(origins, methods, epochs, rates, schedules)
    return [Settings(method, rate, kind, count, *origin) for origin, method, count, rate, kind in choices]


def learning_rates(low: float, high: float, count: int) -> list[float]:
    """`count` learning rates, evenly spaced on a logarithmic scale, the ends among them."""
    return np.geomspace(low, high, count).tolist()


def prepare(origin: Origin, job: Job) -> None:
    """Pre-trains a base, and trains the teacher that `sft_distilled` learns from. Both are kept in bases/, and the
    base's own row beside those of the runs.
    """
    images, tests = _images(job.data_dir)
    base = training.pretrain(images, *origin)
    task = training.task_of(TEACHER, images.mnist_train, base, origin.seed)
    ((_, teacher),) = training.finetune([_teacher(origin)], base, task, checkpoints=1, device=job.device)
    tensors = {f"base.{name}": value for name, value in base.items()}
    tensors |= {f"teacher.{name}": value.cpu() for name, value in teacher.items()}
    fisher = fisher_of(base, tests)
    tensors |= {f"fisher.{name}": value for name, value in fisher.items()}
    atomic_folder(_base_path(job.out, origin), lambda folder: save_file(tensors, folder / WEIGHTS))
    untouched = Settings("base", 0.0, "constant", 0, *origin)
    _write(_base_row(job.out, origin), [_row(untouched, 0, measure(base, Base.of(base, fisher, tests), tests))])


def sweep(
    runs: Sequence[Settings], followed: Sequence[Settings], job: Job, processes: int, done: Callable[[int], None]
) -> None:
    """Does whatever has no file yet: prepares the bases, trains the runs, measures their teachers, and follows the runs
    in `followed` and trains them in both precisions. `done` is called with the number of files just finished.

    Raises RunFailed where a worker process died; the finished runs are kept.
    """

    def missing(run: Settings) -> bool:
        return not shard_path(job.out, run).is_file()

    origins = [origin for origin in dict.fromkeys(map(origin_of, runs)) if not _is_prepared(origin, job)]
    groups = [(group, sum(map(missing, group))) for group in side_by_side(runs, job.device) if any(map(missing, group))]
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), _initialize) as pool:
        try:
            # First the bases, all of them: every run starts from one.
            for future in [pool.submit(prepare, origin, job) for origin in origins]:
                future.result()
            futures = {pool.submit(train, group, job): count for group, count in groups}
            unseen = [run for run in followed if not dynamics_path(job.out, run).is_file()]
            futures |= {pool.submit(follow, run, job): 1 for run in unseen}
            for run, name in product(followed, precision.DTYPES):
                if not precision_path(job.out, run, name).is_file():
                    futures[pool.submit(compare, run, name, job)] = 1
            untold = [origin for origin in taught(runs) if not teacher_path(job.out, origin).is_file()]
            futures |= {pool.submit(measure_teacher, origin, job): 1 for origin in untold}
            for future in as_completed(futures):
                future.result()
                done(futures[future])
        except KeyboardInterrupt:  # Ctrl-C reaches the workers too, but SIGTERM only this process
            for worker in multiprocessing.active_children():
                worker.terminate()
            raise
        except BrokenProcessPool as error:
            raise RunFailed(f"A worker process died. The finished runs are kept in {job.out / 'runs'}.") from error
        finally:
            pool.shutdown(cancel_futures=True)


def train(runs: Sequence[Settings], job: Job) -> None:
    """Fine-tunes runs side by side, measures their checkpoints, and writes a file for each that has none."""
    base, task, tests = _opened(runs[0], job)
    rows: dict[Settings, list[dict[str, Any]]] = {run: [] for run in runs}
    for step, parameters in training.finetune(runs, base.parameters, task, job.checkpoints, job.device):
        for index, run in enumerate(runs):
            own = {name: value.cpu() for name, value in select(parameters, index).items()}
            rows[run].append(_row(run, step, measure(own, base, tests)))
    for run, found in rows.items():
        if not shard_path(job.out, run).is_file():
            _write(shard_path(job.out, run), found)


def follow(run: Settings, job: Job) -> None:
    """Trains a run again and looks at single updates; the rows are kept in dynamics/."""
    base, task, tests = _opened(run, job)
    rows = list(dynamics.record(run, base.parameters, task, tests))
    _write(dynamics_path(job.out, run), rows)


def compare(run: Settings, name: str, job: Job) -> None:
    """Trains like a run in the precision of that name (`precision.record`); the rows are kept in precision/."""
    images, tests = _images(job.data_dir)
    base = precision.rounded(_bases(job, origin_of(run))[0].parameters)
    task = training.task_of(run.method, images.mnist_train, base, run.seed)
    _write(precision_path(job.out, run, name), precision.record(run, base, task, tests, name))


def measure_teacher(origin: Origin, job: Job) -> None:
    """Measures the teacher like any other policy; its row is kept in teachers/."""
    base, teacher = _bases(job, origin)
    row = _row(_teacher(origin)._replace(method="teacher"), 0, measure(teacher, base, _images(job.data_dir)[1]))
    _write(teacher_path(job.out, origin), [row])


def taught(runs: Sequence[Settings]) -> list[Origin]:
    """The bases whose teacher some run learns from."""
    return list(dict.fromkeys(origin_of(run) for run in runs if METHODS[run.method].taught))


def files(runs: Sequence[Settings], followed: Sequence[Settings], job: Job) -> list[Path]:
    """All files that `sweep` makes and counts."""
    found = [shard_path(job.out, run) for run in runs] + [dynamics_path(job.out, run) for run in followed]
    found += [precision_path(job.out, run, name) for run, name in product(followed, precision.DTYPES)]
    return found + [teacher_path(job.out, origin) for origin in taught(runs)]


def precisions(followed: Sequence[Settings], job: Job) -> list[dict[str, Any]]:
    """The rows of `compare`."""
    paths = [precision_path(job.out, run, name) for run, name in product(followed, precision.DTYPES)]
    return [row for path in paths for row in read(path).to_pylist()]


def with_teachers(table: pa.Table, runs: Sequence[Settings], job: Job) -> pa.Table:
    """A merged table with the teachers' rows added, which take part in no fit."""
    return pa.concat_tables([table, *(read(teacher_path(job.out, origin)) for origin in taught(runs))])


def merge(runs: Sequence[Settings], job: Job) -> pa.Table:
    """The rows of the bases and of all runs, sorted by run and step; written to results.parquet, where an answer is one
    token.
    """
    bases = {_base_row(job.out, origin_of(run)) for run in runs}
    table = pa.concat_tables(read(path) for path in sorted(bases | {shard_path(job.out, run) for run in runs}))
    named = table.rename_columns(list(renamed(dict.fromkeys(table.column_names))))
    parquet.write(job.out / "results.parquet", named)
    return table


def read(path: Path) -> pa.Table:
    """What the sweep has kept. Raises UserError where it is damaged."""
    return parquet.read(path, f"Delete {path} and go on with vla-razor resume, which makes it again.")


def side_by_side(runs: Sequence[Settings], device: str) -> Iterator[list[Settings]]:
    """Groups of runs that are trained side by side. A resumed sweep forms the same groups as a whole one, since a run's
    last bits depend on how many are beside it.
    """
    for _, alike in groupby(runs, key=lambda run: (origin_of(run), run.method, run.epochs)):
        group = list(alike)
        size = SIDE_BY_SIDE if device == "cpu" else len(group)
        yield from (group[start : start + size] for start in range(0, len(group), size))


def origin_of(run: Settings) -> Origin:
    """The base that a run starts from."""
    return Origin(run.seed, run.width)


def teacher_path(out: Path, origin: Origin) -> Path:
    """Where the teacher's own row is kept."""
    return out / "teachers" / f"{origin.name}.parquet"


def precision_path(out: Path, run: Settings, name: str) -> Path:
    """Where the rows of `compare` are kept."""
    return out / "precision" / f"{run.method}-{origin_of(run).name}-{name}.parquet"


def dynamics_path(out: Path, run: Settings) -> Path:
    """Where the rows of `follow` are kept."""
    return out / "dynamics" / f"{run.name}.parquet"


def shard_path(out: Path, run: Settings) -> Path:
    """Where a run's rows are kept."""
    return out / "runs" / f"{run.name}.parquet"


def _teacher(origin: Origin) -> Settings:
    return Settings(TEACHER, TEACHER_RATE, TEACHER_SCHEDULE, TEACHER_EPOCHS, *origin)


def _row(run: Settings, step: int, measures: dict[str, float]) -> dict[str, Any]:
    reason = None
    if not all(np.isfinite(list(measures.values()))):
        reason = f"not finite at {step}"
    elif measures["forward_kl"] > DIVERGED:
        reason = f"forward KL of {measures['forward_kl']:.3g} nats at {step}"
    status = {"status": "diverged" if reason else "done", "reason": reason}
    return {"domain": "parity_mnist", "run": run.name, "step": step, **run._asdict(), **measures, **status}


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    kinds: dict[str, Any] = {**dict.fromkeys(TEXTS, pa.string()), **dict.fromkeys(COUNTS, pa.int64())}
    schema = pa.schema([(name, kinds.get(name, pa.float64())) for name in rows[0]])
    parquet.write(path, pa.Table.from_pylist(rows, schema))


def _base_path(out: Path, origin: Origin) -> Path:
    return out / "bases" / origin.name


def _base_row(out: Path, origin: Origin) -> Path:
    return out / "runs" / f"{origin.name}.parquet"


def _is_prepared(origin: Origin, job: Job) -> bool:
    return _base_row(job.out, origin).is_file() and _base_path(job.out, origin).is_dir()


def _initialize() -> None:
    """Sets up a worker: one thread, and an end at once and in silence at Ctrl-C; what it was doing is done again."""
    os.environ["THP_MEM_ALLOC_ENABLE"] = "1"  # pages of 2 MB, where the system has them; read before the first tensor
    torch.set_num_threads(1)
    # AdamW's averages of gradients that are zero for hundreds of updates decay to denormal numbers, on which processors
    # are several times slower. They become zero instead.
    torch.set_flush_denormal(True)
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # as it is for a job in the background
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Ends the worker with its parent: else a pool whose parent was killed would train the rest of its queue, and then
    wait for ever.
    """
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _opened(run: Settings, job: Job) -> tuple[Base, Task, Tests]:
    """What a run starts from, what it learns from, and what it is tested on."""
    _, tests = _images(job.data_dir)
    return _bases(job, origin_of(run))[0], _task(job, origin_of(run), run.method), tests


@lru_cache(maxsize=1)
def _task(job: Job, origin: Origin, method: str) -> Task:
    """The task of a method from a base. Only the last one is kept, since a method's groups follow one another."""
    return training.labelled(_first_task(job, origin), method, origin.seed, _bases(job, origin)[1])


@lru_cache(maxsize=1)
def _first_task(job: Job, origin: Origin) -> Task:
    """A task from this base, whose inputs and base logits are the same for all methods."""
    base, _ = _bases(job, origin)
    return training.task_of(TEACHER, _images(job.data_dir)[0].mnist_train, base.parameters, origin.seed)


@cache
def _images(data_dir: Path | None) -> tuple[data.Data, Tests]:
    images = data.load(data_dir)
    return images, Tests.of(images)


@cache
def _bases(job: Job, origin: Origin) -> tuple[Base, Parameters]:
    """The base with what the measures need of it, and the teacher."""
    folder = _base_path(job.out, origin)
    check_folder(folder, f"Delete {folder} and go on with vla-razor resume, which makes it again.")
    tensors = load_file(folder / WEIGHTS)
    base, teacher, fisher = (
        {name.removeprefix(f"{part}."): value for name, value in tensors.items() if name.startswith(f"{part}.")}
        for part in ("base", "teacher", "fisher")
    )
    return Base.of(base, fisher, _images(job.data_dir)[1]), teacher
