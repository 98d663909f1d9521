"""Being stopped from outside: by Ctrl-C, or by SIGTERM, which Slurm, Ray and Kubernetes send before they kill."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def stoppable() -> Iterator[None]:
    """Inside, SIGTERM is what Ctrl-C is: a KeyboardInterrupt. In the main thread only.

    Once either has come, another SIGTERM changes nothing: schedulers repeat it, and a sweep hands it on to runs that a
    terminal has told already. Another Ctrl-C insists.
    """
    stopping = False

    def stop(number: int, _: FrameType | None) -> None:
        nonlocal stopping
        if number == signal.SIGTERM and stopping:
            return
        stopping = True
        raise KeyboardInterrupt

    previous = {number: signal.getsignal(number) for number in SIGNALS}
    signal.signal(signal.SIGTERM, stop)
    if previous[signal.SIGINT] is not signal.SIG_IGN:  # as it is for a job in the background
        signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        if stopping:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # what is left is to end, with the right status


@contextmanager
def uninterrupted() -> Iterator[list[int]]:
    """Holds both back until the block has ended, so that an update is made whole or not at all; what is held is in the
    list that is given.

    Where a signal is ignored, it stays so.
    """
    held: list[int] = []
    previous = {number: signal.signal(number, lambda number, _: held.append(number)) for number in SIGNALS}
    try:
        yield held
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    for number in held[:1]:
        signal.raise_signal(number)
