"""NLTK's punkt_tab, with which IFEval counts sentences, from a package that ships it."""

import shutil
from pathlib import Path

from vla_razor.files import cache_root
from vla_razor.llm.packages import keep

PACKAGE = "llama-index-core==0.14.25"
SHA256 = "caa7d9c5ac9b13dc33400cf8d5e92e689b6d1e4497eb9bfa50d6f52ca2eb22a1"


def fetch() -> None:
    """Keep the English tokenizer. Raises RunFailed where the package cannot be had."""
    folder = _folder() / "tokenizers" / "punkt_tab"
    if not folder.is_dir():
        copied = lambda found, aside: shutil.copytree(found / "english", aside / "english")  # noqa: E731
        keep(PACKAGE, SHA256, "12 MB", "punkt_tab", copied, folder)
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
