"""What the tests of vector environments share."""

import gc
from collections.abc import Iterator
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def shared_memory_freed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every block of shared memory that a test made is gone at its end."""
    names = []

    def recorded(*args: Any, **kwargs: Any) -> SharedMemory:
        memory = SharedMemory(*args, **kwargs)
        names.append(memory.name)
        return memory

    monkeypatch.setattr("vla_razor_envs.serving.SharedMemory", recorded)
    yield
    gc.collect()
    assert not any(Path("/dev/shm", name).exists() for name in names)
