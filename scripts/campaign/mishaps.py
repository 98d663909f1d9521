"""The faults: each disturbs a run at a random moment, goes on with it to its end, and says what became of it."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from campaign.given import RUN
from campaign.processes import HERE, workers_of
from campaign.stage import LIMIT, Stage, Told, begun

Draw = np.random.Generator
MOST_KILLS = 3
"""Of one run, which may be killed again while it is being resumed."""
PATIENCE = 3.0
"""Seconds after which a worker counts as hanging here; outside the campaign they are 60."""
DAY = 86400


def killed(stage: Stage, verb: str, folder: Path, draw: Draw, typed: bool) -> Told:
    """SIGKILL after a random time: to the process alone, as for want of memory, or to all that it has started."""
    told, known = Told(), stage.undisturbed(verb)
    for _ in range(MOST_KILLS):
        started = stage.go_on(verb, folder, told, typed=typed)
        if not started:
            break
        (process,) = started
        begun(process, folder)
        if not process.ended(draw.uniform(0, 0.9 * known.seconds)):
            told.kills += 1
            process.clear() if draw.random() < 0.5 else process.send(signal.SIGKILL)
        stage.ended(process, told, [0, -signal.SIGKILL])
        stage.swept(process, told)
        if told.wrong or draw.random() < 0.5:
            break
    return stage.to_the_end(verb, folder, told)


def killed_at_a_write(stage: Stage, verb: str, folder: Path, draw: Draw, typed: bool) -> Told:
    """SIGKILL immediately before a random one of the run's file operations."""
    told, known = Told(), stage.undisturbed(verb)
    for _ in range(MOST_KILLS):
        at = str(draw.integers(1, known.operations, endpoint=True))
        started = stage.go_on(verb, folder, told, typed=typed, FAULT_KILL=at)
        if not started:
            break
        (process,) = started
        stage.ended(process, told, [0, -signal.SIGKILL])
        told.kills += process.status == -signal.SIGKILL
        stage.swept(process, told)
        if told.wrong or draw.random() < 0.5:
            break
    return stage.to_the_end(verb, folder, told)


def worker_killed(stage: Stage, verb: str, folder: Path, draw: Draw, typed: bool) -> Told:
    """SIGKILL to one of the processes that work for the run; it goes on, or says why not."""
    return _to_a_worker(stage, verb, folder, draw, typed, signal.SIGKILL)


def worker_hangs(stage: Stage, verb: str, folder: Path, draw: Draw, typed: bool) -> Told:
    """SIGSTOP to one of them, from which it never wakes."""
    return _to_a_worker(stage, verb, folder, draw, typed, signal.SIGSTOP, FAULT_PATIENCE=str(PATIENCE))


def _to_a_worker(
    stage: Stage, verb: str, folder: Path, draw: Draw, typed: bool, number: signal.Signals, **own: Any
) -> Told:
    told, known = Told(), stage.undisturbed(verb)
    (process,) = stage.go_on(verb, folder, told, typed=typed, **own)
    begun(process, folder)
    process.ended(draw.uniform(0, 0.9 * known.seconds))
    while not process.ended(0.02):
        if workers := workers_of(process.pid):
            os.kill(int(draw.choice(workers)), number)
            told.kills += number == signal.SIGKILL
            break
    stage.ended(process, told, [0, 1])
    stage.swept(process, told)
    return stage.to_the_end(verb, folder, told)


def rank_killed(stage: Stage, verb: str, folder: Path, draw: Draw, typed: bool) -> Told:
    """SIGKILL to one of two ranks: the other ends within a minute with one message, and both go on."""
    told, known = Told(), stage.undisturbed(verb, ranks=2)
    ranks = stage.go_on(verb, folder, told, ranks=2)
    begun(ranks[0], folder)
    ranks[0].ended(draw.uniform(0, 0.9 * known.seconds))
    victim = int(draw.integers(2))
    ranks[victim].send(signal.SIGKILL)
    told.kills += ranks[victim].ended(LIMIT) and ranks[victim].status == -signal.SIGKILL
    begin = time.monotonic()
    for process in ranks:
        if not process.ended(LIMIT):
            told.wrong.append("a rank goes on alone")
            process.clear()
            process.ended(LIMIT)
        stage.swept(process, told)
    if told.kills and (seconds := time.monotonic() - begin) > 60:
        told.wrong.append(f"the other rank took {seconds:.0f} s to end")
    if told.kills and ranks[1 - victim].status != 0:
        stage.ended(ranks[1 - victim], told, [1])
    return stage.to_the_end(verb, folder, told, ranks=2)


def terminated(stage: Stage, verb: str, folder: Path, draw: Draw, typed: bool) -> Told:
    """SIGTERM, at which a run saves what it can and says how it goes on. It leaves a checkpoint more."""
    told, known = Told(), stage.undisturbed(verb)
    (process,) = stage.go_on(verb, folder, told, typed=typed)
    begun(process, folder)
    if not process.ended(draw.uniform(0, 0.9 * known.seconds)):
        process.send(signal.SIGTERM)
    # Before the verb begins, and after it has ended, a signal does what it does to any program.
    stage.ended(process, told, [0, 130, -signal.SIGTERM])
    stage.swept(process, told)
    return stage.to_the_end(verb, folder, told, more="checkpoints/")


def disk_full(stage: Stage, verb: str, folder: Path, draw: Draw, typed: bool) -> Told:
    """A file system that is too small for the run, then is not any more. Where none may be mounted, writes fail in the
    process as they do on a full disk, from a random one on.
    """
    told, known = Told(), stage.undisturbed(verb)
    with file_system(folder / HERE, int(draw.integers(16384, known.size))) as grow:
        at: dict[str, Any] = {} if grow else {"FAULT_FULL": str(draw.integers(1, known.operations, endpoint=True))}
        (process,) = stage.go_on(verb, folder, told, typed=typed, **at)
        stage.ended(process, told, [0, 1, 2])
        if process.status and "space" not in process.said and "disk" not in process.said:
            told.wrong.append(f"not a word of the full disk: {process.said}")
        stage.swept(process, told)
        if grow:
            grow()
        return stage.to_the_end(verb, folder, told)


@contextmanager
def file_system(place: Path, size: int) -> Iterator[Callable[[], Any] | None]:
    """A small one in memory, and what makes it large; None where this user may not mount any."""
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        yield None
        return
    try:
        yield lambda: subprocess.run(["mount", "-o", "remount,size=1g", str(place)], check=True)
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def clock_set_back(stage: Stage, verb: str, folder: Path, draw: Draw, typed: bool) -> Told:
    """By up to a day, before a random file operation; killed at a later one, and gone on with by the right time."""
    told, known = Told(), stage.undisturbed(verb)
    at = int(draw.integers(1, known.operations, endpoint=True))
    kill = int(draw.integers(at, known.operations, endpoint=True)) if draw.random() < 0.5 else 0
    own: dict[str, Any] = {"FAULT_CLOCK": f"{at} {draw.integers(1, DAY)}", "FAULT_KILL": str(kill)}
    (process,) = stage.go_on(verb, folder, told, typed=typed, **own)
    stage.ended(process, told, [0, -signal.SIGKILL])
    told.kills += process.status == -signal.SIGKILL
    return stage.to_the_end(verb, folder, told)


def two_at_once(stage: Stage, verb: str, folder: Path, draw: Draw, typed: bool) -> Told:
    """A second process on the same folder, the verb again or `resume`: one of the two is refused."""
    told, known = Told(), stage.undisturbed(verb)
    words = [*stage.verbs[verb].words, f"out={RUN}"]
    first = stage.start(verb, folder, words, typed=typed)
    first.ended(draw.uniform(0, 0.9 * known.seconds))
    other = stage.start(verb, folder, stage.words(verb, folder) or words, rank=1)
    stage.ended(first, told, [0, 2])
    stage.ended(other, told, [0, 2])
    if {first.status, other.status} != {0, 2}:
        told.wrong.append(f"exit statuses {first.status} and {other.status}: {first.said} {other.said}")
    return stage.to_the_end(verb, folder, told)


def not_a_number(stage: Stage, verb: str, folder: Path, draw: Draw, typed: bool) -> Told:
    """A simulator that gives NaN once: the episode is played again, as where it had died."""
    told = Told()
    (folder / HERE / "spoil").write_text(f"nan {draw.integers(1, 8)}")
    (process,) = stage.go_on(verb, folder, told, typed=typed)
    stage.ended(process, told, [0])
    if (folder / HERE / "spoil").exists():
        told.wrong.append("nothing was spoilt")
    return stage.to_the_end(verb, folder, told)
