"""Calls that may never return, run in processes that are stopped after some seconds."""

import atexit
import resource
from collections.abc import Callable, Iterable
from concurrent.futures import Future, TimeoutError  # noqa: A004
from functools import cache
from multiprocessing import get_context
from typing import Any, TypeVar

from pebble import ProcessExpired, ProcessPool

T = TypeVar("T")
WORKERS = 2
MEMORY = 4 << 30
"""Bytes of address space a process may take."""


def bounded_map(function: Callable[..., T], arguments: Iterable[tuple[Any, ...]], seconds: float) -> list[T | None]:
    """`function` of each tuple of arguments, in order. None stands for a call that took longer than `seconds`, ran out
    of memory, or ended its process. `function`, its arguments and its results must be picklable.
    """
    futures = [_pool().schedule(function, args=one, timeout=seconds) for one in arguments]
    return [_result(future) for future in futures]


def _result(future: Future[Any]) -> Any:
    try:
        return future.result()
    except (TimeoutError, ProcessExpired, MemoryError, RecursionError):
        return None


def close() -> None:
    """Stops the processes, if there are any; the next call starts new ones."""
    if _pool.cache_info().currsize:
        _pool().stop()
        _pool().join()
        _pool.cache_clear()


@cache
def _pool() -> ProcessPool:
    """Started at the first call, stopped with this process. Spawned, since a fork would not take along the threads that
    torch may have by then, and whoever waits for them would wait for ever.
    """
    atexit.register(close)
    limit = resource.RLIMIT_AS, (MEMORY, MEMORY)
    return ProcessPool(WORKERS, initializer=resource.setrlimit, initargs=limit, context=get_context("spawn"))
