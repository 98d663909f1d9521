"""What the tests of the verbs share, made once."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.verbs.support import CommandLine, random_demonstration, small_policy, write_store


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Models this small lose more by threads that wait for each other than they gain."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small policy's checkpoint."""
    folder = tmp_path_factory.mktemp("policy") / "small"
    small_policy().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def demos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of six episodes, 48 control steps."""
    return write_store(tmp_path_factory.mktemp("demos"), [random_demonstration(seed) for seed in range(6)])


@pytest.fixture(scope="session")
def vla_razor(tmp_path_factory: pytest.TempPathFactory) -> CommandLine:
    return CommandLine(tmp_path_factory.mktemp("cache"))
