"""The forward pass through transformers' Llama layers, with a KV cache of fixed size, and at no more positions than
needed.

The modules (and so the names of parameters, and where peft puts its adapters) are those of transformers; the order of
operations is that of its `LlamaDecoderLayer`. The last layer differs: only a few of its outputs reach the head, so
queries and MLP are computed at those positions alone.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from transformers.models.llama.modeling_llama import LlamaModel, apply_rotary_pos_emb


class Cache:
    """Keys and values of the sequence so far, in buffers of their final size."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.layers: dict[int, tuple[Tensor, Tensor]] = {}
        self.length = 0

    def append(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store [B, heads, new, head_dim] after the first `length` positions, and return all of them."""
        if layer not in self.layers:
            shape = (*keys.shape[:2], self.capacity, keys.shape[-1])
            self.layers[layer] = (keys.new_empty(shape), values.new_empty(shape))
        end = self.length + keys.shape[2]
        for buffer, new in zip(self.layers[layer], (keys, values), strict=True):
            buffer[:, :, self.length : end] = new
        return self.layers[layer][0][:, :, :end], self.layers[layer][1][:, :, :end]


def recomputed(call: Callable[..., Tensor], *inputs: Any) -> Tensor:
    """`call(*inputs)`, with activations that the backward pass recomputes instead of keeping them."""
    output = checkpoint(call, *inputs, use_reentrant=False, preserve_rng_state=False)
    assert isinstance(output, Tensor)
    return output


def rotary_table(model: LlamaModel, like: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines [length, head_dim] of positions 0 .. length - 1, in the dtype of `like`."""
    cos, sin = model.rotary_emb(like, torch.arange(length, device=like.device)[None])
    return cos[0], sin[0]


def visible(lengths: Int[Tensor, " B"], capacity: int, longest: int) -> Bool[Tensor, "B 1 1 C"] | None:
    """Which cached positions the steps after a prefill may see: all but the padding; None where nothing is padded."""
    if bool((lengths == longest).all()):
        return None
    at = torch.arange(capacity, device=lengths.device)
    return ((at < lengths[:, None]) | (at >= longest))[:, None, None]


def prefill(
    model: LlamaModel,
    x: Float[Tensor, "B L H"],
    table: tuple[Tensor, Tensor],
    keep: Int[Tensor, "B K"],
    *,
    mask: Bool[Tensor, "B 1 1 L"] | None = None,
    cache: Cache | None = None,
    checkpointing: bool = False,
) -> Float[Tensor, "B K H"]:
    """Run whole sequences from position 0. Returns the outputs, after the final norm, at the positions `keep`.

    Each position sees those before it; with `mask`, every position sees the same ones, wherever they are. Padding
    belongs on the right: causality, or the mask, hides it.
    """
    length = x.shape[1]
    rotary = (table[0][None, :length], table[1][None, :length])
    for layer in model.layers[:-1]:
        if checkpointing and torch.is_grad_enabled():
            x = recomputed(partial(_layer, mask=mask), layer, x, rotary)
        else:
            x = _layer(layer, x, rotary, cache=cache, mask=mask)
    seen = (torch.arange(length, device=x.device) <= keep[..., None])[:, None] if mask is None else mask
    x = _layer(model.layers[-1], x, rotary, cache=cache, mask=seen, keep=keep)
    if cache is not None:
        cache.length = length
    return model.norm(x)


def step(
    model: LlamaModel,
    x: Float[Tensor, "B 1 H"],
    table: tuple[Tensor, Tensor],
    positions: Int[Tensor, " B"],
    cache: Cache,
    visible: Bool[Tensor, "B 1 1 C"] | None,
) -> Float[Tensor, "B 1 H"]:
    """Run one more token per sequence, at `positions`, with the `visible` part of the cache (None: all of it)."""
    rotary = (table[0][positions][:, None], table[1][positions][:, None])
    mask = None if visible is None else visible[..., : cache.length + 1]
    for layer in model.layers:
        x = _layer(layer, x, rotary, cache=cache, mask=mask)
    cache.length += 1
    return model.norm(x)


def _layer(
    layer: Any,
    x: Float[Tensor, "B L H"],
    rotary: tuple[Tensor, Tensor],
    *,
    cache: Cache | None = None,
    mask: Tensor | None = None,
    keep: Int[Tensor, "B K"] | None = None,
) -> Tensor:
    """One decoder layer; with `keep`, its outputs at these positions alone."""
    attention = layer.self_attn
    normed = layer.input_layernorm(x)
    keys = _heads(attention.k_proj(normed), attention.head_dim)
    values = _heads(attention.v_proj(normed), attention.head_dim)
    if keep is None:
        queries, keys = apply_rotary_pos_emb(_heads(attention.q_proj(normed), attention.head_dim), keys, *rotary)
    else:
        rows = torch.arange(len(x), device=x.device)[:, None]
        x, normed = x[rows, keep], normed[rows, keep]
        queries = _heads(attention.q_proj(normed), attention.head_dim)
        queries, _ = apply_rotary_pos_emb(queries, queries, rotary[0][0, keep], rotary[1][0, keep])
        _, keys = apply_rotary_pos_emb(keys, keys, *rotary)
    queries, keys = queries.to(values.dtype), keys.to(values.dtype)  # in mixed precision the table is float32
    if cache is not None:
        keys, values = cache.append(attention.layer_idx, keys, values)
    attended = F.scaled_dot_product_attention(
        queries,
        keys,
        values,
        attn_mask=mask,
        is_causal=mask is None and queries.shape[2] > 1,
        enable_gqa=attention.num_key_value_groups > 1,
    )
    x = x + attention.o_proj(attended.transpose(1, 2).flatten(2))
    return x + layer.mlp(layer.post_attention_layernorm(x))


def _heads(x: Float[Tensor, "B L HD"], head_dim: int) -> Float[Tensor, "B heads L D"]:
    return x.unflatten(-1, (-1, head_dim)).transpose(1, 2)
