"""`vla-razor sweep`, `demo`, `llm sweep` and `llm demo`: one study. A base, or several models, is fine-tuned many
times, and each run is measured at several checkpoints: what it learned, what it forgot, and how far it moved (RL's
Razor, Sections 3 and 4, Appendices B and C.2). The paper trained hundreds of models per method to find the frontier;
`vla-razor report` reads the table. The demos are sweeps with defaults of their own, at the size of a laptop (Figure 3).

The axes are given in the grammar of Hydra's multirun: `method=sft,rl learning_rate=1e-4,3e-4 seed=0,1,2`. A key that
only one verb has, or that differs between verbs, is given with the verb: `rl.iterations=12,24` (`axes.py`). A setting
that makes a method another one (`kl_coefficient`, `lora_rank`, ...) stands behind the method's name in the table,
unless it is the verb's default.

Methods for a robot:
- `sft`: demonstrations by `collect.policy`, the scripted expert or another policy.
- `sft_far`: demonstrations by a teacher that acts unlike the base, as the paper's demonstrator does; `far` describes
  it.
- `sft_own`: the base's own successes from the same grid (rejection sampling). It fits the base given success, which is
  the nearest to the base among all policies that always succeed (the paper's Section 5.2).
- `sft_replay`: sft with demonstrations of the prior tasks, by the same policy, in every batch.
- `rl`: REINFORCE.
- `distill`: the expert's actions at the states that the policy visits.

Methods for language models: `sft` and `simpo` on `annotations`; `sft_own` on the base's own right answers; `sft_oracle`
on samples from the base restricted to right answers and renormalised, where the task can list them; `grpo`;
`reinforce`.

`interpolated=[0.5]` also measures, for each run, the policy half of the way from the base to its last one (WiSE-FT).

Every stage is a run folder below `out`: an interrupted study goes on where it was, and everything shown is read from
finished stages. `launcher=here` carries out one run after the other in this process; otherwise every run is a process
of its own, on this machine, on Ray or on Slurm. A run that fails is a row of the table with its reason; the others go
on.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from omegaconf import DictConfig

from vla_razor.errors import RunFailed, UserError
from vla_razor.files import atomic_write
from vla_razor.rollouts.starts import points_of
from vla_razor.runs import Run, read_config
from vla_razor.study.table import FILM
from vla_razor.verbs.study import comparison, launchers, results
from vla_razor.verbs.study.axes import Training
from vla_razor.verbs.study.comparison import Outcome
from vla_razor.verbs.study.robot import Robot

if TYPE_CHECKING:
    from vla_razor.verbs.study.language import Language  # loads libraries that a robot's studies do without

DRAWN = 12
"""Up to this many columns are compared at equal success and drawn; for more there is `vla-razor report`."""


Study: TypeAlias = "Robot | Language"
"""A domain's part of a study: `plan` the runs, `prepare` what they need, `train` and `evaluate` them, and read the
results: `is_done`, `outcomes`, `probed`.
"""


def study_of(config: DictConfig, out: Path) -> Study:
    """The study of a verb. Raises UserError for one that an earlier version began, before there were axes."""
    if "axes" not in config:
        raise UserError(f"{out} was begun by an earlier version, which planned its runs in other words: begin anew.")
    if config.verb.startswith("llm_"):
        from vla_razor.verbs.study.language import Language

        return Language(config, out)
    return Robot(config, out)


def run(config: DictConfig, run: Run) -> None:
    """Carry out the runs that have not ended, then show what all of them found."""
    run.restore()
    study = study_of(config, run.path.resolve())
    trainings = study.plan()
    study.prepare(trainings)
    failures: dict[Training, str] = {}
    if config.launcher != "here":
        write = partial(_write, study, trainings)
        failures |= launchers.carry_out(config, study.out, trainings, study.is_done, write)
    else:  # one run after the other; each seed is then evaluated at once
        for seed in dict.fromkeys(training.seed for training in trainings):
            own = [training for training in trainings if training.seed == seed]
            # REINFORCE first: it opens environments anyway, in which the probe set that all runs need is then made.
            for training in sorted(own, key=lambda training: training.method):
                try:
                    study.train(training)
                except RunFailed as failure:
                    failures[training] = str(failure)
            finished = [training for training in own if training.finished]
            if not finished:
                raise RunFailed(f"No run of seed {seed} came to its end: {'; '.join(failures.values())}")
            study.evaluate(finished)
    outcomes = _write(study, trainings, failures)
    run.finish(present(study, outcomes, trainings, failures))


def job(out: Path, number: int) -> None:
    """One run, in a process of its own: train, then evaluate its checkpoints."""
    study = study_of(read_config(out / "config.yaml"), out)
    training = study.plan()[number]
    study.train(training)
    study.evaluate([training])


def present(
    study: Study, outcomes: Sequence[Outcome], trainings: Sequence[Training], failures: Mapping[Training, str]
) -> dict[str, Any]:
    """Print the tables, draw the figures and the film, and return the content of summary.json."""
    config, out, console = study.config, study.out, study.console
    columns, probed = comparison.columns_of(outcomes), study.probed(trainings)
    tables, further = [comparison.table(columns, "At their ends")], {}
    few = len(columns) <= DRAWN
    if few and config.checkpoints > 1:  # with one, every run first reaches the level at its end
        matched = comparison.matched(outcomes)
        tables.insert(0, comparison.table(matched.columns, matched.title))
        further = {"matched": matched.summary(probed)}
    for table in tables:
        console.print(table)
    for training, reason in failures.items():
        console.print(f"{training.folder.name} failed: {reason}", highlight=False)
    atomic_write(out / "table.txt", "\n".join(map(comparison.as_text, tables)).encode())
    if few:
        # Episodes per iteration, for the runs that play.
        settings = {t: read_config(t.folder / "config.yaml") for t in trainings if t.finished}
        playing = {t: own for t, own in settings.items() if own.verb in ("rl", "distill")}
        episodes = {t: points_of(own) * own.per_point for t, own in playing.items()}
        results.draw(out / "plots", outcomes, columns, trainings, episodes)
        console.print(f"figures in {out / 'plots'}", highlight=False)
    if config.get("videos"):
        results.film(out, columns, next(iter(config.env.tasks)), config.videos)
        console.print(f"film in {out / FILM}", highlight=False)
    console.print(f"rows in {out / 'results.parquet'}; read them with: vla-razor report {out}", highlight=False)
    failed = {training.folder.name: reason for training, reason in failures.items()}
    found = {**comparison.summary(columns, probed), **further, "predictors": results.predictors(out)}
    return {"runs": len(trainings), "failed": failed, **found}


def _write(study: Study, trainings: Sequence[Training], failures: Mapping[Training, str]) -> list[Outcome]:
    """Write results.parquet from the runs that have ended so far."""
    if outcomes := study.outcomes(trainings):
        results.write_rows(study.out, outcomes, failures)
    return outcomes
