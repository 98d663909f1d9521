"""The folder for what is fetched or made once: a driver, the original's files."""

import os
from pathlib import Path


def cache_root() -> Path:
    """`$VLA_RAZOR_CACHE`, by default `~/.cache/vla_razor`."""
    return Path(os.environ.get("VLA_RAZOR_CACHE") or Path.home() / ".cache" / "vla_razor")
