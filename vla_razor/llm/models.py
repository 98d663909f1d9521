"""From what a user types (`smollm`, a run folder, a checkpoint, a Hub id) to a language model and its tokenizer."""

import hashlib
import json
import re
import warnings
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from vla_razor.devices import device_named
from vla_razor.errors import UserError
from vla_razor.llm.smollm import SMOLLM, smollm_folder
from vla_razor.runs import whole_checkpoint

ADAPTER_CONFIG = "adapter_config.json"
HUB_ID = re.compile(r"\w[\w.-]*(/[\w.-]+)?")
EXPECTED = f"expected a run folder, a checkpoint folder, {SMOLLM}, or a model on the Hugging Face Hub, as in owner/name"


class LanguageModel(NamedTuple):
    """A model with its tokenizer; `name` is what was asked for."""

    model: Any
    tokenizer: Any
    name: str

    @property
    def pad(self) -> int:
        """The token with which shorter sequences of a batch are filled up."""
        return self.tokenizer.pad_token_id

    @property
    def has_adapter(self) -> bool:
        """Whether the model is a base with an adapter; the base is then the same model with the adapter disabled."""
        return hasattr(self.model, "disable_adapter")

    def base(self) -> AbstractContextManager[Any]:
        """A context in which an adapted model is its base."""
        return self.model.disable_adapter() if self.has_adapter else nullcontext()


def open_model(
    spec: str | Path, *, device: str = "cpu", dtype: str = "float32", learning: bool = False
) -> LanguageModel:
    """Load a language model for inference, or to be trained.

    Args:
        spec: "smollm" (the embedded default, made by `vla-razor assets smollm`), a run folder (its newest checkpoint),
            a checkpoint folder (a whole model, or an adapter, whose base is then loaded first), or a Hub id.
        device: "auto" takes a GPU where there is one.
        dtype: of the parameters; those that are stored in float32 or are to be trained are float32 (`precision`).
        learning: whether the parameters are to be trained. Where the spec is an adapter, only the adapter is, which is
            float32 whatever its base is.

    Raises UserError for everything that is not such a thing, and for a tokenizer without a chat template.
    """
    import datasets

    # The libraries' own bars and hints go: a run has its own.
    datasets.disable_progress_bars()
    warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)  # which peft asks for
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    source, base = source_of(spec), None
    if (adapted := Path(source) / ADAPTER_CONFIG).is_file():
        base = json.loads(adapted.read_text()).get("base_model_name_or_path")
        if not base:
            raise UserError(f"{source}: the adapter does not say what it adapts (base_model_name_or_path).")
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError) as error:
        said = f"{source}: no tokenizer could be loaded ({_first_line(error)}); {_lacking(source)}."
        raise UserError(said) from error
    if not tokenizer.chat_template:
        raise UserError(f"{source}: its tokenizer has no chat template; take an instruct model.")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    whole = base or source
    try:
        weights = precision(AutoConfig.from_pretrained(whole), dtype, learning and base is None)
        model: Any = AutoModelForCausalLM.from_pretrained(whole, dtype=weights)
    except (OSError, ValueError) as error:
        raise UserError(f"{whole}: no model could be loaded ({_first_line(error)}); {_lacking(whole)}.") from error
    if base:
        from peft import PeftModel

        try:
            model = PeftModel.from_pretrained(model, source, is_trainable=True)
        except (RuntimeError, ValueError) as error:
            raise UserError(f"{source}: the adapter is for another base ({_first_line(error)}).") from error
    words = model.get_output_embeddings().weight.shape[0]
    if len(tokenizer) > words:
        raise UserError(
            f"{spec}: the tokenizer has {len(tokenizer)} tokens, the model only {words}: not made together."
        )
    return LanguageModel(model.to(device_named(device)), tokenizer, str(spec))


def source_of(spec: str | Path) -> str:
    """The folder of a model, or its Hub id. Raises UserError for a path to nothing, or smollm that is not here."""
    folder = smollm_folder() if str(spec) == SMOLLM else whole_checkpoint(Path(spec))
    if folder is None and not HUB_ID.fullmatch(str(spec)):
        raise UserError(f"{spec}: there is no such folder; {EXPECTED}.")
    return str(folder or spec)


def precision(settings: Any, dtype: str, learning: bool) -> torch.dtype:
    """The dtype of the weights of the model with these `settings`, where products are to be computed in `dtype`.

    What learns is float32: bfloat16 has 8 significant bits, and an update smaller than a 512th of a weight would be
    rounded away. What has learned is stored in float32, and is not rounded when it is measured.
    """
    return torch.float32 if learning or settings.dtype == torch.float32 else getattr(torch, dtype)


def precision_in(language: LanguageModel) -> str:
    """The precision of a model's weights. Only models of the same one differ by what they learned, not by rounding."""
    return str(language.model.dtype).removeprefix("torch.")


def model_key(model: Any, *, adapter: bool = False) -> str:
    """A hash of the base's weights and shapes, so that one model's measurements are not taken for another's. With
    `adapter` it is that of the model with its adapter.
    """
    digest = hashlib.sha256(json.dumps(model.config.to_diff_dict(), sort_keys=True, default=str).encode())
    weights = {name: tensor for name, tensor in model.state_dict().items() if adapter or "lora_" not in name}
    plain = {name.removeprefix("base_model.model.").replace("base_layer.", ""): weights[name] for name in weights}
    for name, tensor in sorted(plain.items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def _lacking(source: str) -> str:
    """What is wrong with a source that cannot be loaded."""
    if Path(source).is_dir():
        return "expected config.json, safetensors and a tokenizer's files in that folder"
    return f"it is neither a folder here nor a model that the Hub gave; {EXPECTED}"


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
