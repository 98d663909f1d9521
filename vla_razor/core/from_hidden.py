"""Divergences at the size of a language model's vocabulary, from hidden states and output heads.

Logits of 1,024 tokens over a vocabulary of 150,000 fill 0.6 GB per policy, and the plain computation needs several
such matrices. Here only a few tokens at a time meet the whole vocabulary, in pieces of it that stay in the processor's
cache.

The formula keeps the digits of a small divergence. With d = tuned logit - base logit, E the mean under the base, and
any constant c near E[d], KL(base || tuned) = log(1 + E[expm1(d - c)]) - E[d - c]. Where the two policies are close,
both terms are small. With e = d - c, E[expm1(e) - e] is summed on its own, since its terms are never negative and so do
not cancel. Sums over the vocabulary are kept in float64.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from functools import reduce
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from vla_razor.core.precision import at_least_float32, narrow, wide

Hidden = Float[Tensor, "N H"]
Head = Float[Tensor, "V H"]

WORDS = 2048
"""Entries of the vocabulary in one piece."""
BLOCK = 16
"""Rows that a processor multiplies at once. It pads fewer to as many, so fewer save no time."""
SAMPLED = 256
"""Entries of the vocabulary that decide whether policies with different heads are close."""
CLOSE = 6e4
"""Two policies are close where their logits differ by fewer than this many rounding errors: subtracting the logits
would then lose digits of the divergence."""
SMALL = 0.1
"""Below this |e| the five-term series of expm1(e) - e is exact to float32."""
FAR = 60.0
"""Above this d - c, float32 comes near the largest exp(d - c) that it holds, and float64 takes its place."""


def forward_kl_from_hidden(
    base_hidden: Hidden,
    base_head: Head,
    tuned_hidden: Float[Tensor, "N H2"],
    tuned_head: Float[Tensor, "V H2"],
    *,
    chunk: int = 19_000,
) -> Float[Tensor, " N"]:
    """KL(base || tuned) in nats of the distributions softmax(hidden @ head.T), without ever holding [N, V] logits.

    Tokens are taken a few at a time, so that at most N * `chunk` logits exist at once. Differentiable in `tuned_hidden`
    and `tuned_head`; the base counts as a constant. The gradient for `tuned_hidden` is computed in the forward pass;
    that for `tuned_head` goes over the vocabulary once more. Products are in float32, or float64 where an argument is.

    Raises ValueError where shapes disagree or `chunk` is below 1.
    """
    check_heads(base_hidden, base_head, tuned_hidden, tuned_head, chunk)
    return _ForwardKL.apply(base_hidden, base_head, tuned_hidden, tuned_head, chunk)


class _ForwardKL(torch.autograd.Function):
    """The gradient for a token's hidden state is sum_v (q_v - p_v) head_v, which needs the normalizers over the whole
    vocabulary. So the logits of a few tokens are kept until these are known; the gradient is then one more product,
    and the backward pass only scales it.
    """

    @staticmethod
    def forward(
        ctx: Any, base_hidden: Tensor, base_head: Tensor, tuned_hidden: Tensor, tuned_head: Tensor, chunk: int
    ) -> Tensor:
        tokens, words = base_hidden.shape[0], base_head.shape[0]
        ctx.same_head = same(base_head, tuned_head)
        kind = _kind(base_hidden, base_head, tuned_hidden, tuned_head)
        wanted = ctx.needs_input_grad[2]
        gradient = tuned_hidden.new_zeros(tuned_hidden.shape, dtype=kind) if wanted else None
        height = _height(tokens, tokens * chunk // words)
        # Without a gradient one piece of logits is enough, which the next one overwrites.
        room = base_hidden.new_empty(-(-words // WORDS) if wanted else 1, 2 * height, WORDS, dtype=kind)
        sums: list[_Sums] = []
        for rows in slices(tokens, height):
            hidden = base_hidden[rows], tuned_hidden[rows]
            pieces = logit_pieces(*hidden, base_head, tuned_head, WORDS, same_head=ctx.same_head, room=room)
            if gradient is None:
                sums.append(_Sums.over(pieces))
                continue
            pieces = list(pieces)  # read twice: for the normalizers, then for the gradient
            sums.append(_Sums.over(pieces))
            _add_product(gradient[rows], pieces, sums[-1], tuned_head)
        together = _Sums(*map(torch.cat, zip(*sums, strict=True)))
        ctx.save_for_backward(base_hidden, base_head, tuned_hidden, tuned_head, gradient, *together)
        ctx.width = min(chunk, WORDS)
        return narrow(together.divergence(), base_hidden, tuned_hidden)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *grad_outputs: Tensor
    ) -> tuple[None, None, Tensor | None, Tensor | None, None]:
        (grad,) = grad_outputs  # [N], of the loss by each token's divergence
        base_hidden, base_head, tuned_hidden, tuned_head, gradient, *sums = ctx.saved_tensors
        grad_hidden = (gradient * grad[:, None]).to(tuned_hidden.dtype) if ctx.needs_input_grad[2] else None
        if not ctx.needs_input_grad[3]:
            return None, None, grad_hidden, None, None
        # Each row of the head gets sum_n (q - p) hidden_n. The probabilities are computed again: keeping them would
        # take the [N, V] that this file avoids.
        hidden = at_least_float32(tuned_hidden) * grad[:, None]
        heads = base_head, tuned_head
        pieces = logit_pieces(base_hidden, tuned_hidden, *heads, ctx.width, same_head=ctx.same_head)
        together = _Sums(*sums)
        moved = (together.moved(b, d.sub_(together.shift[:, None].to(d))) for b, d in pieces)
        rows = [part.to(hidden).T @ hidden for part in moved]
        return None, None, grad_hidden, torch.cat(rows).to(tuned_head.dtype), None


class _Sums(NamedTuple):
    """Sums over the vocabulary for each token, [N] each. b are the base's logits, d the tuned ones minus b, and
    w = exp(b - m) the base's probabilities before normalization.
    """

    maximum: Tensor
    """m, the largest b so far."""
    shift: Tensor
    """c, near the mean of d under the base: any value is right, a near one keeps digits."""
    total: Tensor
    """The sum of w."""
    slope: Tensor
    """The sum of w (d - c)."""
    excess: Tensor
    """The sum of w (expm1(d - c) - (d - c)), whose terms are never negative."""

    @classmethod
    def over(cls, pieces: Iterable[tuple[Tensor, Tensor]]) -> _Sums:
        """From the pieces [N, C] of b and d that `logit_pieces` gives; each d becomes d - c."""
        sums: _Sums | None = None
        for b, d in pieces:
            if sums is None:  # the first piece's mean of d stands for that of all
                shift = wide((b.softmax(-1) * d).sum(-1))
                zero = torch.zeros_like(shift)
                sums = cls(zero - math.inf, shift, zero, zero, zero)
            sums = sums.with_piece(b, d)
        assert sums is not None
        return sums

    def with_piece(self, b: Tensor, d: Tensor) -> _Sums:
        """The sums with one more piece [N, C], whose d becomes d - c."""
        e, b = _wide_if_far(d.sub_(self.shift[:, None].to(d)), b)
        # A softmax in one pass: where a piece holds a larger logit, the sums so far are scaled down to it.
        maximum = torch.maximum(self.maximum, b.amax(-1).to(self.maximum))
        shrink = (self.maximum - maximum).exp()
        w = (b - maximum[:, None].to(b)).exp_()
        parts = w.sum(-1), (w * e).sum(-1), _expm1_minus(e).mul_(w).sum(-1)
        return _Sums(maximum, self.shift, *(old * shrink + wide(new) for old, new in zip(self[2:], parts, strict=True)))

    def divergence(self) -> Tensor:
        """KL(base || tuned) [N], in nats. Rounding may leave it a little below 0, where it cannot be."""
        mean, excess = self.slope / self.total, self.excess / self.total
        return (torch.log1p(excess + mean) - mean).clamp_min(0)

    def moved(self, b: Tensor, e: Tensor) -> Tensor:
        """The tuned policy's probabilities minus the base's, q - p, from a piece [N, C] of b and d - c; both are
        overwritten.
        """
        # q - p = p expm1(log q - log p): two probabilities that are nearly equal are never subtracted.
        log_base = self.maximum + self.total.log()
        log_gain = torch.log1p((self.slope + self.excess) / self.total)
        e, b = _wide_if_far(e.sub_(log_gain[:, None].to(e)), b)
        return b.sub_(log_base[:, None].to(b)).exp_().mul_(e.expm1_())


def logit_pieces(
    base_hidden: Hidden,
    tuned_hidden: Tensor,
    base_head: Head,
    tuned_head: Tensor,
    width: int,
    *,
    same_head: bool,
    room: Float[Tensor, "P M C"] | None = None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """The base's logits b and the tuned ones' differences d from them, [N, width] each, for one piece of the vocabulary
    after the other.

    `room`, where it is given, is memory for P pieces, M at least 2 N; later pieces overwrite the first. On some
    machines allocating a piece takes as long as computing it.

    Two products of nearly equal inputs differ by their rounding errors. Where the sizes allow it, d is therefore a
    product of the *changes*, which keeps the digits of a small divergence. With two different heads that takes one more
    product, so only policies so close that the rounding would show pay for it.
    """
    kind = _kind(base_hidden, base_head, tuned_hidden, tuned_head)
    x, y = base_hidden.to(kind), tuned_hidden.to(kind)
    comparable = x.shape == y.shape
    both = torch.cat([x, y - x]) if comparable else x  # one larger product is faster than two
    close = comparable and not same_head and _are_close(x, y, base_head, tuned_head)
    change = x.new_empty(width if close else 0, x.shape[1])
    for number, words in enumerate(slices(len(base_head), width)):
        base, tuned = base_head[words].to(kind), tuned_head[words].to(kind)
        logits = x.new_empty(2 * len(x), width) if room is None else room[number % len(room), : 2 * len(x)]
        logits = logits[:, : len(base)]
        b, d = logits.chunk(2)
        if same_head and comparable:
            # d = (y - x) head
            torch.mm(both, base.T, out=logits)
        elif close:
            # With heads B and T: b = x B = x T - x (T - B), and d = y T - x B = (y - x) T + x (T - B).
            torch.mm(both, tuned.T, out=logits)
            turned = x @ torch.sub(tuned, base, out=change[: len(base)]).T
            b, d = b.sub_(turned), d.add_(turned)
        else:
            torch.mm(x, base.T, out=b)
            torch.mm(y, tuned.T, out=d).sub_(b)
        yield b, d


def _are_close(x: Tensor, y: Tensor, base_head: Tensor, tuned_head: Tensor) -> bool:
    """Whether some token's logits differ so little that rounding would show, judged by a sample of the vocabulary."""
    base, tuned = (head[:: max(1, len(head) // SAMPLED)].to(x) for head in (base_head, tuned_head))
    b = x @ base.T
    changes = (y @ tuned.T - b).std(-1, correction=0)
    return bool((changes < CLOSE * torch.finfo(b.dtype).eps * b.abs().amax(-1)).any())


def _add_product(result: Tensor, pieces: Iterable[tuple[Tensor, Tensor]], sums: _Sums, tuned_head: Tensor) -> None:
    """Adds sum_v (q_v - p_v) head_v to `result` [N, H2]: the gradient for the hidden states."""
    for (b, e), words in zip(pieces, slices(len(tuned_head), WORDS), strict=True):
        result.addmm_(sums.moved(b, e).to(result), tuned_head[words].to(result))


def _kind(*tensors: Tensor) -> torch.dtype:
    """The dtype of their products: the widest of theirs, at least float32."""
    return reduce(torch.promote_types, (tensor.dtype for tensor in tensors), torch.float32)


def _height(tokens: int, most: int) -> int:
    """How many tokens to take at a time: at most `most`, in whole blocks where that allows it, and about equally many
    each time.
    """
    if most < BLOCK:
        return max(1, most)
    times = -(-tokens // (most - most % BLOCK))
    return -(-tokens // (times * BLOCK)) * BLOCK


def same(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors hold the same numbers. Instant where they share their memory; else heads are large, so ask
    once.
    """
    return (one.data_ptr(), one.shape, one.stride()) == (other.data_ptr(), other.shape, other.stride()) or torch.equal(
        one, other
    )


def slices(count: int, width: int) -> Iterator[slice]:
    """Slices of `width` that cover `count` rows; the last may be shorter."""
    return (slice(start, start + width) for start in range(0, count, width))


def _expm1_minus(e: Tensor) -> Tensor:
    """exp(e) - 1 - e: by its series where float32 would lose digits."""
    if e.dtype == torch.float32 and max(map(abs, map(float, e.aminmax()))) < SMALL:
        return (e / 720).add_(1 / 120).mul_(e).add_(1 / 24).mul_(e).add_(1 / 6).mul_(e).add_(1 / 2).mul_(e).mul_(e)
    return torch.expm1(e).sub_(e)


def _wide_if_far(e: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    return (wide(e), wide(b)) if float(e.max()) > FAR else (e, b)


def check_heads(base_hidden: Tensor, base_head: Tensor, tuned_hidden: Tensor, tuned_head: Tensor, chunk: int) -> None:
    """Raises ValueError where shapes disagree or `chunk` is below 1."""
    shapes = [tuple(tensor.shape) for tensor in (base_hidden, base_head, tuned_hidden, tuned_head)]
    if any(len(shape) != 2 for shape in shapes):
        raise ValueError(f"hidden states [N, H] and heads [V, H] must be matrices, got {shapes}")
    (n, h), (v, head_h), (tuned_n, tuned_h), (tuned_v, tuned_head_h) = shapes
    if h != head_h or tuned_h != tuned_head_h or n != tuned_n or v != tuned_v:
        raise ValueError(
            f"expected hidden [N, H] with head [V, H] and the same N and V for both policies, got {shapes}"
        )
    if chunk < 1:
        raise ValueError(f"chunk must be at least 1, got {chunk}")
