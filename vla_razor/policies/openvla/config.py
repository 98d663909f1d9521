"""OpenVLA's `config.json`, and its defaults.

The file stores only what differs from the defaults of the code that wrote it, so these defaults are part of the format.
They are spelled out here (after `configuration_prismatic.py` of openvla c8f03f4) rather than left to today's libraries.
"""

from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

from vla_razor.errors import UserError, nearest
from vla_razor.policies.openvla.action_tokenizer import ActionScale

_DINO = "vit_large_patch14_reg4_dinov2.lvd142m"
_BACKBONES: dict[str, tuple[tuple[str, ...], int, tuple[str | None, ...]]] = {
    "clip-vit-l": (("vit_large_patch14_clip_224.openai",), 224, ("quick_gelu",)),
    "clip-vit-l-336px": (("vit_large_patch14_clip_336.openai",), 336, ("quick_gelu",)),
    "dinov2-vit-l": ((_DINO,), 224, (None,)),
    "in1k-vit-l": (("vit_large_patch16_224.augreg_in21k_ft_in1k",), 224, (None,)),
    "siglip-vit-so400m": (("vit_so400m_patch14_siglip_224",), 224, (None,)),
    "siglip-vit-so400m-384px": (("vit_so400m_patch14_siglip_384",), 384, (None,)),
    "dinoclip-vit-l-336px": ((_DINO, "vit_large_patch14_clip_336.openai"), 336, (None, "quick_gelu")),
    "dinosiglip-vit-so-224px": ((_DINO, "vit_so400m_patch14_siglip_224"), 224, (None, None)),
    "dinosiglip-vit-so-384px": ((_DINO, "vit_so400m_patch14_siglip_384"), 384, (None, None)),
}
_TEXT_DEFAULTS: dict[str, Any] = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "hidden_act": "silu",
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "attention_bias": False,
    "mlp_bias": False,
    "tie_word_embeddings": False,
}
# Written by the library that saved the file; today's LlamaConfig would act on them.
_TEXT_IGNORED = ("model_type", "torch_dtype", "dtype", "architectures", "transformers_version", "_attn_implementation")
_LLAMA2_VOCABULARY = 32000
_LLAMA2_EMPTY_TOKEN = 29871


@dataclass
class OpenVLAConfig:
    """A checkpoint's configuration.

    Attributes:
        text: settings of the Llama decoder, defaults filled in (keys of `transformers.LlamaConfig`).
        timm_model_ids, image_sizes, act_layers: one entry a vision stack (two where fused). An activation of None is
            the exact GELU.
        pad_to_multiple_of: the padding at the end of the vocabulary; the action ids lie just below it.
        norm_stats: per data set, the action statistics that `OpenVLA.unnormalize` uses.
        temperature: the policy *is* the distribution at this temperature (1.0 unless the file says otherwise).
        prompt: how instructions are put to it, a key of `processor.PROMPTS` (the training template unless the file says
            otherwise).
        trailing_token_id: the token the prompt ends with (29871, the empty token, for Llama-2's vocabulary), or None.
        raw: the file as it was read, so that keys unknown here survive a round trip.
    """

    OWN: ClassVar[tuple[str, ...]] = ()
    """Settings that this family alone has."""
    SETTINGS: ClassVar[tuple[str, ...]] = ("temperature", "prompt")
    """Settings of a policy that an adapter's own files cannot hold."""

    text: dict[str, Any]
    timm_model_ids: tuple[str, ...]
    image_sizes: tuple[int, ...]
    act_layers: tuple[str | None, ...]
    pad_to_multiple_of: int = 64
    n_action_bins: int = 256
    norm_stats: dict[str, Any] = field(default_factory=dict)
    temperature: float = 1.0
    prompt: str = "template"
    trailing_token_id: int | None = None
    raw: dict[str, Any] = field(default_factory=dict, repr=False)

    @classmethod
    def from_dict(cls, raw: dict[str, Any], where: str = "config") -> Self:
        """Read `config.json`'s object. Raises `UserError` naming `where` if it is not one of this family."""
        _refuse_other_architectures(raw, where)
        cls._refuse_other_families(raw, where)
        config = cls(**cls._fields(raw, where))
        config.check(where)
        return config

    @classmethod
    def _refuse_other_families(cls, raw: dict[str, Any], where: str) -> None:
        if "chunk" in raw:
            raise UserError(
                f"{where}: this is a checkpoint of OpenVLA-OFT, which decides {raw['chunk']} control steps at once, "
                "not of OpenVLA. Open it with OpenVLAOFT.from_pretrained."
            )

    @classmethod
    def _fields(cls, raw: dict[str, Any], where: str) -> dict[str, Any]:
        """The attributes that the file contains, and the defaults of the others."""
        ids, sizes, activations = _vision_stacks(raw, where)
        text = {k: v for k, v in (raw.get("text_config") or {}).items() if k not in _TEXT_IGNORED}
        text = {**_TEXT_DEFAULTS, **text}
        padding = raw.get("pad_to_multiple_of", 64)
        llama2 = text["vocab_size"] - padding == _LLAMA2_VOCABULARY
        return dict(
            text=text,
            timm_model_ids=ids,
            image_sizes=sizes,
            act_layers=activations,
            pad_to_multiple_of=padding,
            n_action_bins=raw.get("n_action_bins", 256),
            norm_stats=raw.get("norm_stats") or {},
            temperature=float(raw.get("temperature", 1.0)),
            prompt=raw.get("prompt", "template"),
            trailing_token_id=raw.get("trailing_token_id", _LLAMA2_EMPTY_TOKEN if llama2 else None),
            raw=raw,
        )

    def check(self, where: str) -> None:
        """Raises `UserError` naming `where` for a temperature or a prompt that a policy cannot have."""
        if self.temperature <= 0:
            raise UserError(f"{where}: temperature is {self.temperature:g}; a policy's temperature is above 0.")
        if self.prompt not in ("template", "bare"):
            raise UserError(f"{where}: unknown prompt {self.prompt!r}; expected template or bare.")

    def to_dict(self) -> dict[str, Any]:
        """The object to write to `config.json`: what was read, with the policy's own settings brought up to date."""
        return {
            **self.raw,
            "norm_stats": self.norm_stats,
            "temperature": self.temperature,
            "prompt": self.prompt,
            "trailing_token_id": self.trailing_token_id,
        }

    def action_scale(self, key: str | None) -> ActionScale:
        """The action statistics under `key` (None: the only ones). Raises `UserError` naming those there are."""
        return ActionScale.of(self.norm_stats, key)

    @property
    def first_action_id(self) -> int:
        """The smallest action id; the ids are this one and the `n_action_bins - 1` that follow."""
        return self.text["vocab_size"] - self.pad_to_multiple_of - self.n_action_bins


def _refuse_other_architectures(raw: dict[str, Any], where: str) -> None:
    kind = raw.get("model_type")
    if kind != "openvla":
        raise UserError(f"{where}: model_type is {kind!r}, not 'openvla'. Give a checkpoint of OpenVLA's architecture.")
    decoder = (raw.get("text_config") or {}).get("model_type", "llama")
    if decoder != "llama":
        raise UserError(f"{where}: the decoder is {decoder!r}; only Llama decoders are supported.")


def _vision_stacks(raw: dict[str, Any], where: str) -> tuple[tuple[str, ...], tuple[int, ...], tuple[str | None, ...]]:
    """Names, image sizes and activations of the vision stacks: the file's own, or what `vision_backbone_id` implies."""
    backbone = raw.get("vision_backbone_id")
    if backbone not in _BACKBONES:
        raise UserError(f"{where}: unknown vision_backbone_id {backbone!r}. {nearest(str(backbone), _BACKBONES)}")
    ids, size, activations = _BACKBONES[backbone]
    ids = tuple(raw.get("timm_model_ids") or ids)
    sizes = tuple(raw.get("image_sizes") or (size,) * len(ids))
    activations = tuple(raw.get("timm_override_act_layers") or activations)
    fused = raw.get("use_fused_vision_backbone")
    fused = backbone.startswith(("dinoclip", "dinosiglip")) if fused is None else fused
    stacks = 2 if fused else 1
    if not len(ids) == len(sizes) == len(activations) == stacks:
        raise UserError(
            f"{where}: expected {stacks} vision stack(s), found {len(ids)} timm_model_ids, {len(sizes)} image_sizes "
            f"and {len(activations)} timm_override_act_layers."
        )
    return ids, sizes, activations
