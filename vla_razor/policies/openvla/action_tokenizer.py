"""Actions as tokens: each dimension falls into one of 256 bins, and each bin is one of the last ids of the vocabulary.

After `action_tokenizer.py` of openvla c8f03f4. There `digitize` gives 1..256, counted *down* from the end of the
vocabulary, and decoding has 255 bin centres, so that the two smallest ids (the top edge, and the bin below it) share
one.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from vla_razor.errors import UserError, nearest


@dataclass(frozen=True)
class ActionTokenizer:
    """Maps actions normalised to [-1, 1] to the token ids `end - bins .. end - 1` and back."""

    end: int
    bins: int = 256

    @property
    def edges(self) -> Float[np.ndarray, " bins"]:
        return np.linspace(-1.0, 1.0, self.bins)

    @property
    def centers(self) -> Float[np.ndarray, " bins-1"]:
        return (self.edges[:-1] + self.edges[1:]) / 2.0

    def encode(self, normalized: Float[np.ndarray, "*shape"]) -> Int[np.ndarray, "*shape"]:
        """Token ids of normalised actions; values outside [-1, 1] are clipped."""
        return self.end - np.digitize(np.clip(normalized, -1.0, 1.0), self.edges)

    def decode(self, tokens: Int[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
        """Normalised actions of token ids."""
        return self.centers[np.clip(self.end - np.asarray(tokens) - 1, 0, self.bins - 2)]


@dataclass(frozen=True)
class ActionScale:
    """The action statistics of one data set: `low` to `high` become [-1, 1] where `mask` is true. In the families that
    do so, `added` to the span keeps it from being zero.
    """

    low: Float[np.ndarray, " A"]
    high: Float[np.ndarray, " A"]
    mask: Float[np.ndarray, " A"]
    added: float = 0.0

    @classmethod
    def of(
        cls,
        norm_stats: dict[str, Any],
        key: str | None,
        bounds: tuple[str, str] = ("q01", "q99"),
        added: float = 0.0,
    ) -> "ActionScale":
        """The statistics under `key`; None means the only ones. Raises `UserError` with the keys that there are, or
        with the statistics that there are if the `bounds` are not among them.
        """
        if key is None and len(norm_stats) == 1:
            key = next(iter(norm_stats))
        if key is None:
            raise UserError(f"The checkpoint has action statistics for {sorted(norm_stats)}: choose one as unnorm_key.")
        if key not in norm_stats:
            raise UserError(f"The checkpoint has no action statistics {key!r}. {nearest(key, norm_stats)}")
        stats = norm_stats[key]["action"]
        if missing := [name for name in bounds if name not in stats]:
            there = ", ".join(sorted(stats))
            raise UserError(f"The action statistics {key!r} have no {' and no '.join(missing)}; they have {there}.")
        low, high = (np.asarray(stats[name], float) for name in bounds)
        return cls(low, high, np.asarray(stats.get("mask", np.ones(len(low))), bool), added)

    def unnormalize(self, normalized: Float[np.ndarray, "*B A"]) -> Float[np.ndarray, "*B A"]:
        """From [-1, 1] to environment units."""
        span = self.high - self.low + self.added
        return np.where(self.mask, 0.5 * (normalized + 1.0) * span + self.low, normalized)

    def normalize(self, actions: Float[np.ndarray, "*B A"]) -> Float[np.ndarray, "*B A"]:
        """From environment units to [-1, 1] (unclipped). A dimension that never varied is 0."""
        varied = self.high > self.low
        scaled = 2.0 * (actions - self.low) / np.where(varied, self.high - self.low + self.added, 1.0) - 1.0
        return np.where(self.mask, np.where(varied, scaled, 0.0), actions)
