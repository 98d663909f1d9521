"""A policy of OpenVLA's architecture, small enough for one CPU core: random weights, a vocabulary of its own."""

from collections.abc import Iterable
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing

from vla_razor.policies.openvla.config import OpenVLAConfig
from vla_razor.policies.openvla.model import OpenVLA
from vla_razor.policies.openvla.processor import PROMPT, Processor

_SPECIAL = ("<unk>", "<s>", "</s>")
_ACTION_BINS = 256
_PADDING = 8
_BICUBIC = 3
_MEANS = ((0.485, 0.456, 0.406), (0.5, 0.5, 0.5))
_STDS = ((0.229, 0.224, 0.225), (0.5, 0.5, 0.5))


def make_tiny(instructions: Iterable[str], generator: torch.Generator, **shape: Any) -> OpenVLA:
    """An untrained `OpenVLA` that knows the words of `instructions`; its weights are drawn from `generator`, and its
    `shape` is that of `tiny_parts`.
    """
    raw, processor = tiny_parts(instructions, **shape)
    return OpenVLA.from_config(OpenVLAConfig.from_dict(raw), processor, generator)


def tiny_parts(
    instructions: Iterable[str],
    *,
    image_size: int = 64,
    hidden: int = 128,
    layers: int = 3,
    heads: int = 4,
    intermediate: int = 320,
    norm_stats: dict[str, Any] | None = None,
    temperature: float = 1.0,
) -> tuple[dict[str, Any], Processor]:
    """`config.json` and processor of a small policy on the two vision stacks of `tiny_vits`.

    Args:
        instructions: every instruction it will be given; a word that occurs in none becomes `<unk>`.
        image_size: pixels; a multiple of 16. One patch for every 16 x 16 of them.
        hidden, layers, heads, intermediate: the Llama decoder's shape.
        norm_stats: action statistics by data set name, as in a checkpoint's `dataset_statistics.json`.
        temperature: the policy's own.
    """
    tokenizer = make_tokenizer(instructions)
    words = tokenizer.get_vocab_size()
    raw = {
        "model_type": "openvla",
        "architectures": ["OpenVLAForActionPrediction"],
        "vision_backbone_id": "dinosiglip-vit-so-224px",
        "use_fused_vision_backbone": True,
        "timm_model_ids": ["vla_razor_vit_dino_tiny_v2", "vla_razor_vit_siglip_tiny_v2"],
        "timm_override_act_layers": [None, None],
        "image_sizes": [image_size, image_size],
        "image_resize_strategy": "resize-naive",
        "n_action_bins": _ACTION_BINS,
        "pad_to_multiple_of": _PADDING,
        "pad_token_id": words + _ACTION_BINS,
        "trailing_token_id": None,
        "temperature": temperature,
        "norm_stats": norm_stats or {},
        "text_config": {
            "model_type": "llama",
            "vocab_size": words + _ACTION_BINS + _PADDING,
            "pad_token_id": words + _ACTION_BINS,
            "hidden_size": hidden,
            "intermediate_size": intermediate,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
        },
    }
    return raw, Processor(preprocessor_settings(image_size), tokenizer)


def make_tokenizer(instructions: Iterable[str]) -> Tokenizer:
    """A word-level tokenizer for prompts about `instructions`. What every prompt shares is two tokens."""
    before, after = (part.strip() for part in PROMPT.split("{}"))
    words = sorted({word for instruction in instructions for word in instruction.lower().split()})
    vocabulary = {token: i for i, token in enumerate((*_SPECIAL, before, after, *words))}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in _SPECIAL])
    tokenizer.add_tokens([AddedToken(part, normalized=False) for part in (before, after)])
    tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", _SPECIAL.index("<s>"))])
    return tokenizer


def preprocessor_settings(image_size: int) -> dict[str, Any]:
    """`preprocessor_config.json` for two stacks: ImageNet's statistics for the first, [-1, 1] for the second."""
    size = [image_size, image_size]
    return {
        "image_processor_type": "PrismaticImageProcessor",
        "image_resize_strategy": "resize-naive",
        "use_fused_vision_backbone": True,
        "input_sizes": [[3, *size]] * 2,
        "interpolations": ["bicubic"] * 2,
        "means": [list(mean) for mean in _MEANS],
        "stds": [list(std) for std in _STDS],
        "tvf_do_letterbox": False,
        "tvf_letterbox_fill": None,
        "tvf_resize_params": [
            {"antialias": True, "interpolation": _BICUBIC, "max_size": None, "size": size} for _ in range(2)
        ],
        "tvf_crop_params": [{"output_size": size} for _ in range(2)],
        "tvf_normalize_params": [
            {"inplace": False, "mean": list(mean), "std": list(std)} for mean, std in zip(_MEANS, _STDS, strict=True)
        ],
    }
