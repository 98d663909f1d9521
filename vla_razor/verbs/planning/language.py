"""`dry_run=true` of a language model's training: parameters, memory per device and tokens per step; nothing is started.

The model is built on torch's meta device from its configuration, adapters included, and learns from one micro-batch of
the longest sequences (`footprint.py`). Several devices share weights, gradients and optimizer as under FSDP2.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.autograd import backward
from transformers import AutoConfig, AutoModelForCausalLM, Qwen2Config
from trl.trainer.utils import selective_log_softmax

from vla_razor.devices import CARDS
from vla_razor.errors import UserError
from vla_razor.llm.models import precision, source_of
from vla_razor.verbs.planning.footprint import (
    UTILIZATION,
    Footprint,
    Line,
    bytes_of,
    card_named,
    flops_of,
    give_gradients,
    operations_of,
    peak_of,
    size_text,
    time_text,
)

PROMPT_TOKENS = 256
"""Of a question of the tasks; tool documentation is longer."""
DEVICES = (1, 2, 4, 8)
_QWEN: dict[str, Any] = {"model_type": "qwen2", "max_position_embeddings": 32768, "rope_theta": 1e6}
KNOWN: dict[str, dict[str, Any]] = {
    "Qwen/Qwen2.5-3B-Instruct": {
        **_QWEN,
        "hidden_size": 2048,
        "num_hidden_layers": 36,
        "num_attention_heads": 16,
        "num_key_value_heads": 2,
        "intermediate_size": 11008,
        "vocab_size": 151936,
        "tie_word_embeddings": True,
    },
    "Qwen/Qwen2.5-7B-Instruct": {
        **_QWEN,
        "hidden_size": 3584,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "intermediate_size": 18944,
        "vocab_size": 152064,
        "tie_word_embeddings": False,
    },
    "Qwen/Qwen2.5-14B-Instruct": {
        **_QWEN,
        "hidden_size": 5120,
        "num_hidden_layers": 48,
        "num_attention_heads": 40,
        "num_key_value_heads": 8,
        "intermediate_size": 13824,
        "vocab_size": 152064,
        "tie_word_embeddings": False,
    },
}
"""`config.json` of the paper's models, so that the Hub need not be asked."""


@dataclass(frozen=True)
class Work:
    """The work of an optimizer step: sequences learnt from, sequences sampled, and at most how many tokens each has."""

    learnt: int
    sampled: int
    tokens: int


def show(config: DictConfig) -> None:
    """Print the plan. Raises UserError as the run itself would, or where the Hub does not know the model."""
    console, card = Console(), card_named(config.device)
    model, work = model_of(config), work_of(config)
    takes = footprint(model, config)
    console.print(_sizes(config, takes))
    rate = UTILIZATION * flops_of(card)
    sampling = work.sampled * work.tokens * 2 * takes.parameters / rate
    learning = work.learnt * takes.update_flop / rate
    named = card.name if card else "this CPU"
    total = f"{work.learnt * work.tokens:,} tokens; {work.sampled:,} of them sampled first"
    took = f"{time_text(learning)} of learning and {time_text(sampling)} of sampling"
    peak = f"{UTILIZATION:.0%} of {rate / UTILIZATION / 1e12:.3g} TFLOP/s"
    learnt = f"{work.learnt:,} sequences of at most {work.tokens:,} tokens learnt from"
    console.print(f"step: {learnt}, {total}", highlight=False)
    console.print(f"on one {named}: {took}, at {peak}", highlight=False)
    console.print(_cards(config, takes))
    console.print("Nothing was started.", highlight=False)


def work_of(config: DictConfig) -> Work:
    """The work of a step of one of the four methods; SimPO learns from pairs."""
    tokens = PROMPT_TOKENS + config.max_new_tokens
    if "group_size" in config:
        completions = config.group_size * config.prompts_per_step
        return Work(completions, completions, tokens)
    return Work(config.batch_size * (2 if config.verb == "llm_simpo" else 1), 0, tokens)


def model_of(config: DictConfig) -> Any:
    """The model that a run would train, adapters included, on the meta device."""
    source = source_of(config.model)
    try:
        settings: Any = Qwen2Config(**KNOWN[source]) if source in KNOWN else AutoConfig.from_pretrained(source)
    except (OSError, ValueError) as error:
        said = f"{config.model}: no such model folder, and the Hub did not give its config.json."
        raise UserError(said) from error
    with torch.device("meta"):
        weights = precision(settings, config.dtype, learning=not config.lora_rank)
        model: Any = AutoModelForCausalLM.from_config(settings, dtype=weights)
        if config.lora_rank:
            from peft import get_peft_model

            from vla_razor.llm.training import adapter

            model.enable_input_require_grads()
            model = get_peft_model(model, adapter(config))
    if config.gradient_checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    return model.train()


def footprint(model: Any, config: DictConfig) -> Footprint:
    """Of `model`, on the meta device and with its adapters, trained with `config`."""
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    gradients, weights = bytes_of(learning), bytes_of(model.parameters())
    give_gradients(learning)
    update = {"llm_sft": cross_entropy, "llm_simpo": pair}.get(config.verb, sampled)
    length = PROMPT_TOKENS + config.max_new_tokens
    products = None if config.dtype == "float32" else getattr(torch, config.dtype)
    # Without copies, as accelerate has autocast; with them, checkpointed updates of Qwen 2.5 3B would seem to take 6 GB
    # more than they do.
    one, three = (peak_of(model, update(model, batch, length), products, copies=False) for batch in (1, 3))
    flop = operations_of(update(model, 1, length), products)
    # A device that shares weights temporarily holds the embeddings and two whole layers.
    layers = next(m for m in model.modules() if isinstance(m, nn.ModuleList))
    inside = bytes_of(layers.parameters())
    penalised = config.get("kl_coefficient", 0.0) and not config.lora_rank
    return Footprint(
        parameters=sum(p.numel() for p in model.parameters()),
        trainable=sum(p.numel() for p in learning),
        weights=weights,
        base=weights if penalised else 0.0,
        gradients=gradients,
        optimizer=2 * gradients,
        scratch=0.0 if card_named(config.device) is None else gradients,
        gathered=weights - inside + 2 * inside / len(layers),
        activations=Line.through(one, three),
        update_flop=flop / (2 if config.verb == "llm_simpo" else 1),
    )


def cross_entropy(model: Any, batch: int, length: int) -> Callable[[], None]:
    """An update as in SFT's trainer."""

    def update() -> None:
        given = _given(model, batch, length)
        backward(model(**given, labels=given["input_ids"]).loss)

    return update


def sampled(model: Any, batch: int, length: int) -> Callable[[], None]:
    """As in GRPO's trainer: log-probabilities of the completion alone."""

    def update() -> None:
        given = _given(model, batch, length)
        logits = model(**given, logits_to_keep=length - PROMPT_TOKENS + 1).logits[:, :-1]
        backward(selective_log_softmax(logits, given["input_ids"][:, PROMPT_TOKENS:]).sum())

    return update


def pair(model: Any, batch: int, length: int) -> Callable[[], None]:
    """As in SimPO's trainer: both answers of a pair in one pass, log-probabilities of every token."""

    def update() -> None:
        given = _given(model, 2 * batch, length)
        logits = model(**given).logits[:, :-1]
        backward(selective_log_softmax(logits, given["input_ids"][:, 1:]).sum())

    return update


def _given(model: Any, batch: int, length: int) -> dict[str, Any]:
    """Token ids, and the attention mask of a padded batch."""
    return {
        "input_ids": torch.zeros(batch, length, dtype=torch.long, device=model.device),
        "attention_mask": torch.ones(batch, 1, length, length, dtype=torch.bool, device=model.device).tril(),
        "use_cache": False,
    }


def _sizes(config: DictConfig, takes: Footprint) -> Table:
    title = f"{config.verb.replace('_', ' ')} of {config.model}, {config.dtype}, LoRA rank {config.lora_rank}"
    table = Table("a device", *(f"1 of {n}" if n > 1 else "alone" for n in DEVICES), title=title)
    table.add_row("parameters", f"{takes.parameters:,}", *(f"{takes.parameters // n:,}" for n in DEVICES[1:]))
    share = takes.trainable / takes.parameters
    table.add_row(
        "trainable", f"{takes.trainable:,} ({share:.2%})", *(f"{takes.trainable // n:,}" for n in DEVICES[1:])
    )
    for name, value in (
        ("weights", takes.weights),
        ("the base beside them, for the penalty", takes.base),
        ("gradients", takes.gradients),
        ("optimizer (AdamW's two moments)", takes.optimizer),
    ):
        if value:
            table.add_row(name, *(size_text(value / n) for n in DEVICES))
    table.add_row("weights gathered for a while", "", *(size_text(takes.gathered) for _ in DEVICES[1:]))
    batch = config.micro_batch_size
    table.add_row(f"activations, micro-batch {batch}", *(size_text(takes.activations.at(batch)) for _ in DEVICES))
    table.add_row("most in an update", *(size_text(takes.update_peak(batch, n)) for n in DEVICES))
    return table


def _cards(config: DictConfig, takes: Footprint) -> Table:
    """The largest micro-batch that fits on each GPU, alone or shared by several."""
    title = f"Largest micro-batch (asked for: {config.micro_batch_size})"
    table = Table("GPU", "memory", *(f"{n} GPUs" if n > 1 else "1 GPU" for n in DEVICES), title=title)
    for card in CARDS.values():
        largest = (takes.largest_micro_batch(card.memory, n) for n in DEVICES)
        table.add_row(card.name, size_text(card.memory), *(str(n) if n else "does not fit" for n in largest))
    return table
