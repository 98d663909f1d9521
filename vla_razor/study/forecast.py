"""From a fitted law to how much a training has probably forgotten so far, without running a single prior task."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vla_razor.core import forgetting_law
from vla_razor.errors import UserError
from vla_razor.files import write_json
from vla_razor.study import law
from vla_razor.study.measures import FORWARD_KL, SHORT
from vla_razor.study.table import Result, measures_of, unmeasured

SCHEMA = 2
FILE = "law.json"
LAWS = (FORWARD_KL, "spillover", "activation_l2")
"""Measures that a law may be of: every training logs them."""


class Forecast(NamedTuple):
    """Prior success lost, in [0, 1], with the interval that holds 90% of unseen runs, each with all of its checkpoints
    (`law.spread`). `known`: the divergence is within the range that the law was fitted on.
    """

    forgotten: float
    low: float
    high: float
    known: bool

    def __str__(self) -> str:
        beyond = "" if self.known else ", beyond all runs that the law knows"
        return f"{self.forgotten:.1%} of prior success lost [{100 * self.low:.1f}, {100 * self.high:.1f}]{beyond}"


class FittedLaw(NamedTuple):
    """Prior success lost as a polynomial in a measure on the probe set, and how far runs lie from it.

    `reach` is the range of divergences among the runs. Truth minus forecast lies between `below` and `above` in 90% of
    unseen runs, at all checkpoints of each.
    """

    domain: str
    measure: str
    coefficients: tuple[float, ...]
    r2: float
    reach: tuple[float, float]
    below: float
    above: float
    runs: int

    def forecast(self, divergence: float) -> Forecast:
        """The forecast at a divergence, in the measure's unit."""
        low, high = self.reach
        expected = law.value(self.coefficients, divergence, self.reach)
        known = min(0.0, low) <= divergence <= high  # the base, at 0, counts as known
        return Forecast(expected, expected + self.below, expected + self.above, known)


def fit(results: Sequence[Result], measure: str = FORWARD_KL) -> FittedLaw:
    """The law of these policies, all of one domain. Raises UserError where there are fewer than ten runs, or they do
    not vary.
    """
    runs = {result.run for result in results}
    if measure not in measures_of(results):
        lacking = unmeasured(results).get(measure, runs)
        raise UserError(f"not every run has measured {measure} ({min(lacking)} has not): there is no law of it.")
    if len(runs) < law.LEAST_RUNS:
        raise UserError(
            f"{len(runs)} runs are too few for a law of {measure}, which would fit them whatever they are: at least "
            f"{law.LEAST_RUNS} are needed."
        )
    interval = law.spread(results, measure)
    if interval is None:
        raise UserError(f"the {len(runs)} runs do not vary enough in {measure}, or in what they forgot, for a law.")
    x, lost = [r.measures[measure] for r in results], [r.forgotten for r in results]
    found = forgetting_law.fit(x, lost, [r.run for r in results], generator=np.random.default_rng(0))
    return FittedLaw(
        results[0].domain, measure, found.coefficients, found.r2, law.reach_of(results, measure), *interval, len(runs)
    )


def save(path: Path, fitted: FittedLaw) -> None:
    """Write law.json."""
    write_json(path, {"schema": SCHEMA, **fitted._asdict(), "checksum": _checksum(fitted._asdict())})


def load(path: Path, domain: str) -> FittedLaw:
    """Read what `save` wrote, from the file itself or from the folder of a report.

    Raises UserError where it cannot be read, is the law of another domain, or was fitted on fewer than ten runs, as
    earlier versions allowed.
    """
    if path.is_dir():
        own = path / f"law_{domain}.json"  # a report on several domains has one law per domain
        path = own if own.is_file() else path / FILE
    try:
        content: Mapping[str, Any] = json.loads(path.read_text())
        if "checksum" in content and content["checksum"] != _checksum(content):
            raise ValueError("it is damaged: its numbers are not those whose checksum it holds")
        content = {**content, "measure": SHORT.get(content["measure"], content["measure"])}
        if content["schema"] != SCHEMA:
            raise ValueError("another schema")
        fitted = FittedLaw(**{name: content[name] for name in FittedLaw._fields})
        (low, high), (below, above) = map(float, fitted.reach), map(float, (fitted.below, fitted.above))
        coefficients = tuple(map(float, fitted.coefficients))
        if not coefficients or fitted.measure not in LAWS:
            raise ValueError(f"no law of {' or '.join(LAWS)}")
        fitted = fitted._replace(coefficients=coefficients, reach=(low, high), below=below, above=above)
        few = int(fitted.runs) < law.LEAST_RUNS
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"law={path} cannot be read ({error}). vla-razor report RUNS writes one.") from error
    if fitted.domain != domain:
        raise UserError(f"law={path} is of {fitted.domain} runs, this one is of {domain}.")
    if few:
        raise UserError(
            f"law={path} was fitted on {fitted.runs} runs, which a law would fit whatever they are: at least "
            f"{law.LEAST_RUNS} are needed. Make it anew from more: vla-razor report RUNS."
        )
    return fitted


def _checksum(content: Mapping[str, Any]) -> str:
    """Of a law's numbers; earlier files have none."""
    numbers = [content[name] for name in FittedLaw._fields]
    return hashlib.sha256(json.dumps(numbers).encode()).hexdigest()


class Guard:
    """Compares a training's forecast with the share of prior success that it may lose."""

    def __init__(self, fitted: FittedLaw, budget: float) -> None:
        self.fitted, self.budget = fitted, budget
        self.shown: dict[str, float] = {}
        """The latest forecast and the budget, for a progress bar."""

    @classmethod
    def of(cls, config: Any, domain: str) -> Guard | None:
        """The guard for `config.forgetting_budget` and `config.law`; None without a budget.

        Raises UserError where one is given without the other, or where the run never measures forward KL.
        """
        if config.forgetting_budget is None:
            return None
        if config.law is None:
            raise UserError("forgetting_budget needs law=FILE, which vla-razor report RUNS writes.")
        if not config.probe_every:
            raise UserError("forgetting_budget is watched on the probe set: probe_every=0 never measures it.")
        fitted = load(Path(config.law), domain)
        if fitted.measure == "spillover" and not config.other_instructions:
            raise UserError(f"law={config.law} is of spillover, which other_instructions=[] never measures.")
        return cls(fitted, config.forgetting_budget)

    def forecast(self, measured: Mapping[str, float]) -> Forecast:
        """What the training has probably forgotten, given what was measured on the probe set."""
        if self.fitted.measure not in measured:
            raise UserError(f"the law is of {self.fitted.measure}, which this policy does not tell: take another law.")
        return self.fitted.forecast(measured[self.fitted.measure])

    def scalars(self, measured: Mapping[str, float]) -> dict[str, float]:
        """The forecast, for a row of metrics.jsonl."""
        found = self.forecast(measured)
        self.shown = {"predicted_forgetting": found.forgotten, "budget": self.budget}  # for the progress bar
        return {"predicted_forgetting": found.forgotten, "predicted_low": found.low, "predicted_high": found.high}

    def is_spent(self, measured: Mapping[str, float]) -> bool:
        """Whether the forecast has reached the budget."""
        return self.forecast(measured).forgotten >= self.budget
