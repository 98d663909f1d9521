"""What a training takes, measured on torch's meta device: the bytes of all tensors and the operations of all matrix
products are counted, and nothing is allocated. Memory is linear in the micro-batch, so that two sizes give all others.
What is assumed instead of computed is a constant below.
"""

import time
import weakref
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import FlopCounterMode

from vla_razor.devices import CARDS, Card, device_named

UTILIZATION = 0.4
"""Share of a device's peak that training reaches."""
OVERHEAD = 2e9
"""Bytes of a GPU that its context, its libraries and fragmentation take."""


class Ledger(TorchDispatchMode):
    """Counts the bytes of the meta tensors that exist beside those of a model and its gradients: `now`, and their
    maximum, `peak`.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.now = self.peak = 0
        own = [tensor for p in model.parameters() for tensor in (p, p.grad) if tensor is not None]
        self._known = {tensor.untyped_storage()._cdata for tensor in own}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        tree_map_only(Tensor, self._enter, result)
        return result

    def _enter(self, tensor: Tensor) -> Tensor:
        if tensor.device.type == "meta":
            storage = tensor.untyped_storage()
            key, size = storage._cdata, storage.nbytes()
            if key not in self._known:
                self._known.add(key)
                self.now += size
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self._leave, key, size)
        return tensor

    def _leave(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


def _fused_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    **more: Any,
) -> Tensor:
    """Attention as devices run it, without materialising the weights, which torch would do on the meta device."""
    fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    mask = None if attn_mask is None else torch.zeros_like(attn_mask, dtype=query.dtype)
    if key.shape[1] != query.shape[1]:  # grouped queries
        key, value = (part.repeat_interleave(query.shape[1] // key.shape[1], 1) for part in (key, value))
    query, key = (
        query.to(value.dtype),
        key.to(value.dtype),
    )  # as autocast rounds all three
    return fused(query, key, value, dropout_p, is_causal, attn_mask=mask, scale=more.get("scale"))[0]


@dataclass(frozen=True)
class Line:
    """A quantity that grows linearly with the batch: `fixed + each * batch`."""

    fixed: float
    each: float

    @classmethod
    def through(cls, one: float, three: float) -> "Line":
        """The line through the values at batches of one and three."""
        each = (three - one) / 2
        return cls(one - each, each)

    def at(self, batch: int) -> float:
        return self.fixed + self.each * batch


@dataclass(frozen=True)
class Footprint:
    """What a model takes: parameters as a number, memory in bytes, operations in FLOP.

    `base` is the memory of the base's weights beside the policy's. `activations` is the peak memory of an update beside
    weights, gradients and optimizer, by micro-batch. `scratch` is what the optimizer's step needs temporarily. Where
    devices share weights, gradients and optimizer, each of them temporarily holds `gathered` bytes of whole weights.
    """

    parameters: int
    trainable: int
    weights: float
    base: float
    gradients: float
    optimizer: float
    scratch: float
    gathered: float
    activations: Line
    update_flop: float

    def held(self, devices: int = 1) -> float:
        """Bytes on each device that are allocated from the first update to the last."""
        whole = self.weights + self.base + self.gradients + self.optimizer
        return whole if devices == 1 else whole / devices + self.gathered

    def update_peak(self, micro_batch: int, devices: int = 1) -> float:
        """Peak memory of an update in bytes, on each device."""
        return self.held(devices) + max(self.activations.at(micro_batch), self.scratch / devices)

    def largest_micro_batch(self, memory: float, devices: int = 1) -> int:
        """The largest micro-batch that fits into `memory` bytes of each GPU; 0 where none does."""
        free = memory - OVERHEAD - self.held(devices)
        fits = free >= self.scratch / devices
        # The optimizer's scratch and an update's activations are never held at the same time.
        return max(int((free - self.activations.fixed) // self.activations.each), 0) if fits else 0


def peak_of(
    model: nn.Module, call: Callable[[], Any], products: torch.dtype | None = None, *, copies: bool = True
) -> float:
    """Peak memory in bytes while `call` uses a model on the meta device, beside its weights and gradients.

    `products` is the dtype of mixed precision. The meta device has no autocast; like it, matrix products read copies in
    this dtype. With `copies` those of what learns are kept until the call has ended, as torch's autocast keeps them.
    """
    ledger = Ledger(model)
    _call(call, ledger, products, copies)
    return ledger.peak


def operations_of(call: Callable[[], Any], products: torch.dtype | None = None) -> float:
    """The FLOP of a call on the meta device, with `products` as in `peak_of`. Memory needs a pass of its own: the
    counter of operations keeps tensors alive that would be freed.
    """
    counter = FlopCounterMode(display=False)
    _call(call, counter, products, copies=False)
    return counter.get_total_flops()


def _call(call: Callable[[], Any], mode: Any, products: torch.dtype | None, copies: bool) -> None:
    lowered = _reading(products, copies)
    # Patched rather than dispatched: recomputation in the backward pass does not see a mode of the forward pass.
    replaced = {"linear": F.linear, "conv2d": F.conv2d, "scaled_dot_product_attention": _fused_attention}
    with ExitStack() as stack:
        for name, function in replaced.items():
            stack.enter_context(mock.patch.object(F, name, lowered(function)))
        stack.enter_context(mode)
        call()


def _reading(products: torch.dtype | None, copies: bool) -> Callable[[Callable[..., Tensor]], Callable[..., Tensor]]:
    """Makes functions read float32 tensors in the dtype `products`. With `copies`, what learns is read from copies that
    are made once.
    """
    made: dict[Tensor, Tensor] = {}

    def taken(value: Any) -> Any:
        if products is None or not isinstance(value, Tensor) or value.dtype != torch.float32:
            return value
        if not (copies and value.is_leaf and value.requires_grad):
            return value.to(products)
        if value not in made:
            made[value] = value.to(products)
        return made[value]

    return lambda function: lambda *arguments, **settings: function(*map(taken, arguments), **settings)


def bytes_of(parameters: Iterable[Tensor]) -> float:
    """Bytes of the parameters."""
    return float(sum(p.numel() * p.element_size() for p in parameters))


def give_gradients(parameters: Iterable[Tensor]) -> None:
    """Allocate gradients as the trainer does, so that a ledger does not count them as activations."""
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)


def card_named(device: str) -> Card | None:
    """The GPU that is named, or the one that is here; None for a CPU."""
    if device in CARDS:
        return CARDS[device]
    found = device_named(device)
    if found.type != "cuda":
        return None
    facts = torch.cuda.get_device_properties(found)
    return Card(facts.name, facts.total_memory, _rate(found))


def flops_of(card: Card | None) -> float:
    """Peak FLOP per second: the GPU's, or this CPU's as measured."""
    return card.flops if card else _rate(torch.device("cpu"))


def _rate(device: torch.device, size: int = 1024) -> float:
    """FLOP per second of a product of square matrices."""
    matrix = torch.randn(size, size, device=device)
    _ = matrix @ matrix  # warm-up: loads libraries
    begin, count = time.perf_counter(), 0
    while time.perf_counter() - begin < 0.2:
        float((matrix @ matrix)[0, 0])
        count += 1
    return count * 2.0 * size**3 / (time.perf_counter() - begin)


def size_text(value: float) -> str:
    """Bytes for people.

    >>> size_text(2.5e9), size_text(1e6)
    ('2.50 GB', '1.0 MB')
    """
    return f"{value / 1e9:,.2f} GB" if value >= 1e8 else f"{value / 1e6:,.1f} MB"


def time_text(seconds: float) -> str:
    """Seconds for people.

    >>> time_text(90.0), time_text(900.0)
    ('90 s', '15 min')
    """
    if seconds < 120:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.3g} min" if seconds < 7200 else f"{seconds / 3600:.3g} h"
