"""Two small vision transformers of the two kinds that OpenVLA fuses, registered with timm by importing this module.

`vla_razor_vit_dino_tiny`: like DINOv2 with registers, a class token, four register tokens and LayerScale (which starts
at 1, not at 1e-5, because these are trained from nothing). `vla_razor_vit_siglip_tiny`: like SigLIP, no prefix token.
Both cut 64 x 64 images into 64 patches. A configuration names them, so their shapes are fixed by their names.
"""

from typing import Any

from timm.models import register_model
from timm.models.vision_transformer import VisionTransformer

_DINO: dict[str, Any] = {"embed_dim": 96, "depth": 4, "num_heads": 2, "init_values": 1.0, "reg_tokens": 4}
_SIGLIP: dict[str, Any] = {"embed_dim": 96, "depth": 4, "num_heads": 2, "class_token": False, "global_pool": ""}
_HUB_ARGUMENTS = ("pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir")


def _build(**arguments: Any) -> VisionTransformer:
    arguments = {k: v for k, v in arguments.items() if k not in _HUB_ARGUMENTS}
    return VisionTransformer(**{"img_size": 64, "patch_size": 8, "mlp_ratio": 3.0, **arguments})


@register_model
def vla_razor_vit_dino_tiny(pretrained: bool = False, **overrides: Any) -> VisionTransformer:
    """A class token and four registers before the patches; position embeddings for the patches alone."""
    return _build(**{"no_embed_class": True, **_DINO, **overrides})


@register_model
def vla_razor_vit_siglip_tiny(pretrained: bool = False, **overrides: Any) -> VisionTransformer:
    """Patches alone."""
    return _build(**{**_SIGLIP, **overrides})
