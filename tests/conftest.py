"""What every test may use: the order, the software Vulkan driver and the reference fixtures."""

import os
from pathlib import Path

# Before torch is imported: two threads beside busy simulation workers are slower than one.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest

from vla_razor_envs.vulkan import use_software_vulkan

use_software_vulkan()

SHARED = Path(__file__).resolve().parents[2] / "shared"
if (SHARED / "assets" / "real2sim").is_dir():
    os.environ.setdefault("VLA_RAZOR_ASSETS", str(SHARED / "assets" / "real2sim"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Fast tests first, so that a mistake shows early."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is not None)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of reference fixtures beside the checkout."""
    if not SHARED.is_dir():
        pytest.skip(f"the reference fixtures are absent: no folder {SHARED}")
    return SHARED
