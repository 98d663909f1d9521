"""The learning rate over a training run."""

import math


def factor(step: int, total_steps: int, warmup_steps: int, kind: str) -> float:
    """What the peak learning rate is multiplied with at update `step` (from 0): linear warm-up, then constant
    (`kind` "constant") or half a cosine down to 0 ("cosine").
    """
    # transformers' schedules count from the update before: their first rate is 0, and their cosine, asked one update
    # later to make up for it, is one update further down. Ours stays, so that no run's numbers move.
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    if kind == "constant":
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * (step - warmup_steps) / max(1, total_steps - warmup_steps)))
