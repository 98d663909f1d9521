"""The measures on the probe set: how far a policy has moved, and its entropy. Each has one name, in metrics.jsonl, in
the results table and in everything made from it. Files of earlier versions are read under these names.

In the entry `forward_kl` of summary.json, which `probe_set.measure` makes, forward KL is called `per_token`,
`per_action` or `per_completion`, and reverse KL `reverse_kl`; `logged` gives them their full names.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple


class Measure(NamedTuple):
    """A measure's label, and its unit, which is empty where it has none."""

    label: str
    unit: str = ""

    def __str__(self) -> str:
        return f"{self.label} ({self.unit})" if self.unit else self.label


MEASURES = {
    "forward_kl_per_token": Measure("forward KL", "nats a token"),
    "forward_kl_per_action": Measure("forward KL", "nats an action"),
    "forward_kl_per_completion": Measure("forward KL", "nats a completion"),
    "reverse_kl_per_token": Measure("reverse KL", "nats a token"),
    "total_variation": Measure("total variation"),
    "l2_distance": Measure("L2 distance"),
    "sharpening": Measure("sharpening", "nats an action"),
    "displacement": Measure("displacement", "nats an action"),
    "spillover": Measure("spillover", "nats a token"),
    "entropy": Measure("entropy", "nats a token"),
    "format_entropy": Measure("entropy of the answers' formats", "nats"),
    "weight_l1": Measure("the weights' change", "L1"),
    "weight_l2": Measure("the weights' change", "L2"),
    "weight_fisher": Measure("the weights' change", "Fisher"),
    "weight_spectral": Measure("the weights' change", "spectral norm"),
    "weight_rank": Measure("rank of the weights' change", "share"),
    "weight_rank_bfloat16": Measure("rank of the weights' change in bfloat16", "share"),
    "weight_sparsity": Measure("weights unchanged", "share"),
    "weight_sparsity_bfloat16": Measure("weights unchanged in bfloat16", "share"),
    "activation_l1": Measure("the activations' change", "L1"),
    "activation_l2": Measure("the activations' change", "L2"),
}
FORWARD_KL = "forward_kl_per_token"
"""The measure that is compared across domains, and that a law is of by default."""
ENTROPIES = ("entropy", "format_entropy")
DISTANCES = tuple(
    name
    for name in MEASURES
    # Without the multiples of FORWARD_KL, and without what is no distance.
    if name not in ("forward_kl_per_action", "forward_kl_per_completion", *ENTROPIES)
)
"""Measures that may predict forgetting. All but the shares of unchanged weights are 0 for the base."""
SHORT = {
    "per_token": "forward_kl_per_token",
    "per_action": "forward_kl_per_action",
    "per_completion": "forward_kl_per_completion",
    "per_completion_standard_error": "forward_kl_per_completion_standard_error",
    "forward_kl": "forward_kl_per_token",
    "reverse_kl": "reverse_kl_per_token",
    "probe_reverse_kl": "reverse_kl_per_token",
    "probe_entropy": "entropy",
}
"""Names within an entry of summary.json, and in files of earlier versions."""


def logged(found: Mapping[str, Any]) -> dict[str, float]:
    """What metrics.jsonl has of an entry of summary.json, under its names there."""
    return {name: value for name, value in renamed(found).items() if name in MEASURES}


def renamed(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of a file of any version, under today's names. REINFORCE's own `entropy`, that of its training episodes,
    once had the name that the one on the probe set has now.
    """
    played = {"entropy": "sampled_entropy"} if "episode_length" in row and "sampled_entropy" not in row else {}
    return {played.get(name) or SHORT.get(name, name): value for name, value in row.items()}


def read_rows(folder: Path) -> list[dict[str, Any]]:
    """The rows of a run's metrics.jsonl."""
    return [renamed(json.loads(line)) for line in (folder / "metrics.jsonl").read_text().splitlines()]
