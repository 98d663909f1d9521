"""`vla-razor sequence` and `llm sequence`: tasks are learned one after another, and all are evaluated after each.

From the matrix of success come the measures of continual learning (`core/continual.py`), what each stage cost in
forward KL, and whether forgetting follows it along a sequence. The axes are those of a sweep: `method=sft,rl
seed=0,1,2`, or any key of a training. Each combination is a sequence of its own, and all begin with the same base.

Every way to forget less that a training has works from one stage to the next, the policy before the stage being the
base of its penalties: `kl_coefficient`, `spillover_coefficient`, `replay_coefficient`, `penalties`, `lora_rank`, which
gives every stage an adapter of its own, and the methods `sft_own` and `sft_replay`. `share=0.5` goes on with the policy
half of the way to what a stage learned (WiSE-FT).

Every part is a run folder below `out`, so that a sequence goes on after a kill; a part that has ended is never
repeated:

    base                      the base, evaluated on all tasks
    <run>/1_<task>            the first stage's training
    <run>/1_<task>_eval       the policy after it, evaluated on all tasks
    <run>/1_<task>_kl         its divergence from the first base, at the states of the stage's task
    <run>/2_<task>_kl_step    its divergence from the policy before the stage
    <run>/1_<task>_curve      checkpoints on the way, evaluated on the stage's task, where `checkpoints` asks for them
    <run>/again_<task>        the last policy learns a task again of which it lost something, and ..._eval, how fast

A sequence that fails is a row of the table with its reason; the others go on.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from omegaconf import DictConfig

from vla_razor.errors import RunFailed
from vla_razor.files import write_json
from vla_razor.runs import Run, read_config
from vla_razor.verbs.study import launchers, transfer
from vla_razor.verbs.study.axes import Training
from vla_razor.verbs.study.robot_sequence import RobotSequence

if TYPE_CHECKING:
    from vla_razor.verbs.study.language_sequence import LanguageSequence

Tasks: TypeAlias = "RobotSequence | LanguageSequence"
"""A domain's part: its `tasks` in their order, the `prior` ones, and how they are learned, evaluated and measured."""


def tasks_of(config: DictConfig, out: Path) -> Tasks:
    """The tasks of a verb's configuration."""
    if config.verb.startswith("llm_"):
        from vla_razor.verbs.study.language_sequence import LanguageSequence

        return LanguageSequence(config, out)
    return RobotSequence(config, out)


def run(config: DictConfig, run: Run) -> None:
    """Carry out the sequences that have not ended, then show what all of them found."""
    run.restore()
    tasks = tasks_of(config, run.path.resolve())
    trainings = tasks.plan()
    tasks.prepare(trainings)
    failures: dict[Training, str] = {}
    if config.launcher != "here":
        write = partial(transfer.write, tasks, trainings)
        failures |= launchers.carry_out(config, tasks.out, trainings, lambda one: one.finished, write)
    else:
        for training in trainings:
            try:
                learn(tasks, training)
            except RunFailed as failure:
                failures[training] = str(failure)
        if len(failures) == len(trainings):
            raise RunFailed(f"No sequence came to its end: {'; '.join(failures.values())}")
    transfer.write(tasks, trainings, failures)
    run.finish(transfer.present(tasks, trainings, failures))


def job(out: Path, number: int) -> None:
    """One sequence, in a process of its own."""
    tasks = tasks_of(read_config(out / "config.yaml"), out)
    learn(tasks, tasks.plan()[number])


def learn(tasks: Tasks, training: Training) -> None:
    """Learn the tasks one after another; what has been done already is left alone. At the end the folder gets a
    summary.json, by which it is known to have ended.
    """
    if training.finished:
        return
    tasks.console.rule(f"[bold]{training.folder.name}: {', '.join(tasks.tasks)}")
    policy = tasks.base
    for number, task in enumerate(tasks.tasks, 1):
        folder = training.folder / f"{number}_{task}"
        before, policy = policy, tasks.train(training, folder, task, policy)
        tasks.evaluate(folder.with_name(f"{folder.name}_eval"), policy)
        tasks.measure(folder.with_name(f"{folder.name}_kl"), task, policy, tasks.base)
        if number > 1:  # the first base is that of the first stage, too
            tasks.measure(folder.with_name(f"{folder.name}_kl_step"), task, policy, before)
        if on_the_way := checkpoints(folder, tasks.config.checkpoints)[:-1]:
            tasks.evaluate_on(folder.with_name(f"{folder.name}_curve"), task, on_the_way)
    if tasks.config.recover:
        for task in transfer.lost(transfer.read(tasks, training)):
            again = training.folder / f"again_{task}"
            tasks.train(training, again, task, policy)
            saved = checkpoints(again, len(list((again / "checkpoints").iterdir())))
            tasks.evaluate_on(again.with_name(f"{again.name}_eval"), task, saved)
    write_json(training.folder / "summary.json", transfer.summary(tasks, [transfer.read(tasks, training)]))


def checkpoints(folder: Path, count: int) -> Sequence[Path]:
    """`count` of a training's checkpoints, as a sweep chooses them."""
    return Training(folder, "", "", 0, 0.0, {}).checkpoints(count)
