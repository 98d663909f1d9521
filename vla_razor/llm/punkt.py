"""NLTK's punkt_tab, with which IFEval counts sentences, from a package that ships it."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from vla_razor.files import atomic_folder, cache_root, full_disk_reported
from vla_razor.llm.packages import found, unpack

PACKAGE = "llama-index-core==0.14.25"


def fetch() -> None:
    """Keep the English tokenizer. Raises RunFailed where the package cannot be had."""
    folder = _folder() / "tokenizers" / "punkt_tab"
    if not folder.is_dir():
        print(f"fetching {PACKAGE} (12 MB)")
        with full_disk_reported(folder), tempfile.TemporaryDirectory() as unpacked:
            source = found(unpack(PACKAGE, Path(unpacked)), "punkt_tab", PACKAGE) / "english"
            atomic_folder(folder, lambda aside: shutil.copytree(source, aside / "english"))
    print(f"NLTK's punkt_tab is in {folder}")


def is_available() -> bool:
    """Whether NLTK finds it, in its own folders or in the one of `fetch`."""
    import nltk

    if str(_folder()) not in nltk.data.path:
        nltk.data.path.append(str(_folder()))
    try:
        nltk.data.find("tokenizers/punkt_tab")
    except LookupError:
        return False
    return True


def _folder() -> Path:
    return cache_root() / "nltk_data"
