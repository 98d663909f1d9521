"""Two small vision transformers of the two kinds that OpenVLA fuses, registered with timm by importing this module.

`vla_razor_vit_dino_tiny_v2`: like DINOv2 with registers, a class token, four register tokens and LayerScale (which
starts at 1, not at 1e-5, because these are trained from nothing). `vla_razor_vit_siglip_tiny_v2`: like SigLIP, no
prefix token. Both see a 64 x 64 image as 16 patches, embedded by timm's convolutional stem: a transformer this small,
trained from nothing, does not learn to locate things through a linear embedding (Xiao et al., 2021, "Early
Convolutions Help Transformers See Better"), and the deeper the stem, the finer. A configuration names them, so their
shapes are fixed by their names; the first version's stem had four layers.
"""

from functools import partial
from typing import Any

from timm.layers.hybrid_embed import HybridEmbed
from timm.models import register_model
from timm.models.vision_transformer import VisionTransformer
from timm.models.vision_transformer_hybrid import ConvStem
from torch import nn

FIRST_VERSION = ("vla_razor_vit_dino_tiny", "vla_razor_vit_siglip_tiny")
"""The stacks that this version has replaced."""
_WIDTH = 96
_COMMON: dict[str, Any] = {"img_size": 64, "embed_dim": _WIDTH, "depth": 3, "num_heads": 4, "mlp_ratio": 3.0}
_HUB_ARGUMENTS = ("pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir")


def _build(**arguments: Any) -> VisionTransformer:
    stem: Any = ConvStem(
        depth=6,
        channels=(16, 32, 64, 64, _WIDTH, _WIDTH),
        stride=(2, 2, 2, 1, 2, 1),
        norm_layer="groupnorm1",  # pyright: ignore[reportArgumentType]
        act_layer=nn.GELU,
    )
    arguments = {k: v for k, v in arguments.items() if k not in _HUB_ARGUMENTS}
    embed_layer: Any = partial(HybridEmbed, backbone=stem, proj=False)
    return VisionTransformer(**{**_COMMON, "embed_layer": embed_layer, "patch_size": 1, **arguments})


@register_model
def vla_razor_vit_dino_tiny_v2(pretrained: bool = False, **overrides: Any) -> VisionTransformer:
    """A class token and four registers before the patches; position embeddings for the patches alone."""
    return _build(**{"no_embed_class": True, "init_values": 1.0, "reg_tokens": 4, **overrides})


@register_model
def vla_razor_vit_siglip_tiny_v2(pretrained: bool = False, **overrides: Any) -> VisionTransformer:
    """Patches alone."""
    return _build(**{"class_token": False, "global_pool": "", **overrides})
