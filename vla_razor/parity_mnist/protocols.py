"""Would another sweep, or another fit, have found the same predictor? R2 under choices that the paper left open."""

from collections.abc import Iterator, Mapping, Sequence
from operator import attrgetter

import numpy as np

from vla_razor.core import forgetting_law
from vla_razor.parity_mnist.analysis import KL_RANGES, PREDICTORS, Point
from vla_razor.parity_mnist.methods import METHODS, PAPER_METHODS
from vla_razor.study.law import fittable

SEEKING = ("grpo_kl", "sft_oracle")
"""The methods that aim at a small divergence from the base."""
DEGREE = 2
"""Of the polynomial that the paper fits."""
OTHER_DEGREES = (1, 3)
SHOWN = ("forward_kl", "reverse_kl", "total_variation", "l2_distance")
"""The measures that tables show beside the best one."""


def compare(points: Sequence[Point]) -> dict[str, dict[str, float]]:
    """R2 of every predictor, by the name of the protocol. Measures that hardly vary are left out, and so are protocols
    under which nothing can be fitted.
    """
    found = {"all models": _r2(points, DEGREE)}
    found |= {name: _r2(own, DEGREE) for name, own in _parts(points)}
    found |= {f"degree {degree}": _r2(points, degree) for degree in OTHER_DEGREES}
    return {name: by_measure for name, by_measure in found.items() if by_measure}


def best(by_measure: Mapping[str, float]) -> str:
    """The measure that predicts best."""
    return max(by_measure, key=lambda name: by_measure[name])


def _parts(points: Sequence[Point]) -> Iterator[tuple[str, list[Point]]]:
    """The points that smaller sweeps would have had, where they would be fewer."""
    for wording, fact in (("seed {} alone", "seed"), ("{} schedule", "schedule"), ("{}-epoch runs", "epochs")):
        values = sorted({getattr(point, fact) for point in points})
        if len(values) > 1:
            yield from ((wording.format(v), [p for p in points if getattr(p, fact) == v]) for v in values)
    last = {point.run: point.step for point in sorted(points, key=attrgetter("step"))}
    yield "finished runs alone", [p for p in points if p.step == last[p.run]]
    for name, offline in (("on-policy methods", False), ("offline methods", True)):
        yield name, [p for p in points if bool(METHODS[p.method].annotate) is offline]
    own = [p for p in points if p.method in PAPER_METHODS]
    if len(own) < len(points):
        yield "the paper's methods", own
    free = [p for p in points if p.method not in SEEKING]
    if len(free) < len(points):
        yield f"without {' and '.join(SEEKING)}", free
        for bound in KL_RANGES[:-1]:
            yield f"... up to {bound:g} nats", [p for p in free if p.measures["forward_kl"] <= bound]


def _r2(points: Sequence[Point], degree: int) -> dict[str, float]:
    lost, runs = [point.forgotten for point in points], [point.run for point in points]
    generator = np.random.default_rng(0)  # for the bootstrap, which is not looked at
    return {
        name: forgetting_law.fit(
            [p.measures[name] for p in points], lost, runs, degree=degree, resamples=1, generator=generator
        ).r2
        for name in PREDICTORS
        if fittable(points, name, degree)
    }
