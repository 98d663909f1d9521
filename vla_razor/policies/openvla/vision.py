"""OpenVLA's eyes: one or two timm vision transformers, read one block before their end, and the projector.

After `modeling_prismatic.py` of openvla c8f03f4. The features are the output of the *second-to-last* block, without
the final norm and without prefix tokens. What would run after it (last block, norm, pooling head) is kept, because the
checkpoint holds its weights, but never run.
"""

import re
from typing import Any

import timm
import torch
from jaxtyping import Float
from timm.layers.create_act import get_act_layer
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from vla_razor.errors import UserError
from vla_razor.policies.openvla.config import OpenVLAConfig
from vla_razor.policies.openvla.decoder import recomputed
from vla_razor.policies.openvla.tiny_vits import FIRST_VERSION  # registers the small vision stacks

# timm names LayerScale's parameter `gamma`; OpenVLA stores it as `scale_factor`.
_TIMM_SCALE = re.compile(r"^(vision_backbone\..*\.ls\d)\.gamma$")
_STORED_SCALE = re.compile(r"^(vision_backbone\..*\.ls\d)\.scale_factor$")


def stored_key(key: str) -> str:
    """The checkpoint's name of a parameter."""
    return _TIMM_SCALE.sub(r"\1.scale_factor", key)


def module_key(key: str) -> str:
    """The inverse of `stored_key`."""
    return _STORED_SCALE.sub(r"\1.gamma", key)


class VisionBackbone(nn.Module):
    """The vision stacks, fused on the channel axis where there are two."""

    def __init__(self, config: OpenVLAConfig) -> None:
        super().__init__()
        stacks = zip(config.timm_model_ids, config.image_sizes, config.act_layers, strict=True)
        names = ("featurizer", "fused_featurizer")
        for name, (model_id, size, activation) in zip(names, stacks, strict=False):
            self.add_module(name, _transformer(model_id, size, activation))
        self.checkpointing = False
        patches = {stack.patch_embed.num_patches for stack in self.stacks}
        if len(patches) > 1:
            raise UserError(
                f"The vision stacks {config.timm_model_ids} give {sorted(patches)} patches: not the same number."
            )
        self.num_patches = patches.pop()
        self.embed_dim = sum(stack.embed_dim for stack in self.stacks)

    @property
    def stacks(self) -> list[VisionTransformer]:
        return [stack for stack in self.children() if isinstance(stack, VisionTransformer)]

    def forward(self, pixels: Float[Tensor, "B C H W"]) -> Float[Tensor, "B P D"]:
        """Patch features; three channels a stack."""
        parts = pixels.split(3, dim=1)
        return torch.cat([self._features(s, x) for s, x in zip(self.stacks, parts, strict=True)], dim=-1)

    def _features(self, stack: VisionTransformer, pixels: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B P D"]:
        x = stack.norm_pre(stack.patch_drop(stack._pos_embed(stack.patch_embed(pixels))))
        for block in stack.blocks[:-1]:
            x = recomputed(block, x) if self.checkpointing and torch.is_grad_enabled() else block(x)
        return x[:, stack.num_prefix_tokens :]


class Projector(nn.Module):
    """Patch features to the decoder's width, by an MLP with the exact GELU: three layers after a fused backbone
    (the first four times as wide as its input), two after a single one."""

    def __init__(self, vision_dim: int, text_dim: int, *, fused: bool) -> None:
        super().__init__()
        widths = [vision_dim, 4 * vision_dim, text_dim, text_dim] if fused else [vision_dim, text_dim, text_dim]
        for i in range(len(widths) - 1):
            self.add_module(f"fc{i + 1}", nn.Linear(widths[i], widths[i + 1]))

    def forward(self, features: Float[Tensor, "B P D"]) -> Float[Tensor, "B P H"]:
        first, *rest = self.children()
        x = first(features)
        for layer in rest:
            x = layer(F.gelu(x))
        return x


def _transformer(model_id: str, size: int, activation: str | None) -> VisionTransformer:
    """Build one stack without weights and without asking the hub."""
    if ":" in model_id:
        raise UserError(f"timm_model_ids: {model_id!r} would be fetched from elsewhere; give the name of a timm model.")
    if model_id in FIRST_VERSION:
        raise UserError(
            "this is the embedded policy's first version, or was trained from it. Since vla_razor/PickCan-v2 the tasks "
            "are seen by another camera: start again from policy=tiny, or use the release that it was made with."
        )
    if not timm.is_model(model_id):
        raise UserError(f"timm_model_ids: timm has no model {model_id!r}. If it is your own, import its module first.")
    # Always explicit: None is the exact GELU here, whatever today's timm has as the model's default.
    act_layer: Any = get_act_layer(activation) if activation else nn.GELU
    try:
        model = timm.create_model(model_id, pretrained=False, num_classes=0, img_size=size, act_layer=act_layer)
    except (TypeError, ValueError, RuntimeError, AssertionError) as error:
        raise UserError(f"timm_model_ids: timm cannot build {model_id!r} at {size} pixels: {error}") from error
    if not isinstance(model, VisionTransformer):
        raise UserError(f"timm_model_ids: {model_id!r} is no plain vision transformer.")
    return model
