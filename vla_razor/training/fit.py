"""The loop of every training: gather, learn, measure, log, save, until the last round or the end of the budget."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol

from omegaconf import DictConfig

from vla_razor import ranks
from vla_razor.interruption import uninterrupted
from vla_razor.policies.trainable import Trainable
from vla_razor.progress import progress
from vla_razor.rollouts.rollout import VectorEnv
from vla_razor.runs import Run
from vla_razor.study.forecast import Guard
from vla_razor.training.base import Base, open_policies
from vla_razor.training.measuring import finish, measure, open_probe
from vla_razor.training.penalties import replay
from vla_razor.training.trainer import NotFinite, Trainer, is_due


class Algorithm(Protocol):
    """How a policy learns. A training is `rounds` long, each of so many `updates`.

    `title` heads the progress bar, which shows what was last logged under the names in `watched`. `envs` are the
    environments that it plays in, if any: the probe set is made in them.
    """

    @property
    def title(self) -> str: ...
    @property
    def watched(self) -> Sequence[str]: ...
    @property
    def rounds(self) -> int: ...
    @property
    def updates(self) -> int: ...
    @property
    def envs(self) -> VectorEnv | None: ...

    def prepare(self, stack: ExitStack) -> None:
        """Before the first round: open what is needed, to be closed with the stack."""
        ...

    def gather(self, number: int) -> Any:
        """What round `number`, from 0, learns from. It may be interrupted: the round is then gathered again."""
        ...

    def learn(self, trainer: Trainer, gathered: Any, *, measured: bool) -> Iterator[Mapping[str, float]]:
        """Take the round's updates; what is yielded is logged at the step where the trainer stands. `measured`: the
        policy will be measured after this round, so that what costs a pass of the base may be logged too.
        """
        ...

    def closing_words(self, run: Run, trainer: Trainer) -> str | None:
        """Why nothing was learned, if so."""
        ...


def fit(config: DictConfig, run: Run, begin: Callable[[DictConfig, Trainable, Base], Algorithm]) -> None:
    """Fine-tune `config.policy` on `config.env`; goes on where a resumed run stopped. Several ranks do the same, each
    with a share of the episodes and of what is learnt from them.
    """
    replay.check(config)
    state = run.restore()
    guard = Guard.of(config, "robot")
    policy, base = open_policies(config, run)
    if ranks.world() > 1:
        ranks.agree({f"the checkpoint of policy={config.policy}": policy.fingerprint()[:16]})
    algorithm = begin(config, policy, base)
    trainer = Trainer(policy, config, algorithm.rounds * algorithm.updates, state)
    with ExitStack() as stack:
        if not trainer.done:
            algorithm.prepare(stack)
        save = stack.enter_context(saving(run, policy, trainer))
        done = trainer.step // algorithm.updates
        advance = stack.enter_context(progress(algorithm.title, algorithm.rounds, done))
        probe = open_probe(config, base, algorithm.envs)
        while not trainer.done:
            number = trainer.step // algorithm.updates
            measured = is_due(number + 1, config.probe_every, algorithm.rounds)
            try:
                with trainer.stale():
                    gathered = algorithm.gather(number)
            except ranks.Lost as lost:  # where everything is whole still: saved as an interruption is
                raise KeyboardInterrupt from lost
            # A run that is interrupted is saved, which it can be between two rounds alone.
            with uninterrupted():
                step, scalars = trainer.step, dict[str, float]()
                for row in algorithm.learn(trainer, gathered, measured=measured):
                    if scalars:
                        run.log(step, **scalars)
                    step, scalars = trainer.step, dict(row)
                # The last row waits for what is measured at its step.
                if probe and measured:
                    scalars |= measure(policy, probe, trainer, guard)
                run.log(step, **scalars)
                if trainer.spent or is_due(number + 1, config.save_every, algorithm.rounds):
                    save()
            advance(**{name: scalars[name] for name in algorithm.watched}, **(guard.shown if guard else {}))
    words = algorithm.closing_words(run, trainer) if ranks.first() else None  # of the run's own rows
    finish(config, run, policy, base, probe, guard, words)


@contextmanager
def saving(run: Run, policy: Trainable, trainer: Trainer) -> Iterator[Callable[[], None]]:
    """Gives a callable that saves the run as it stands; an interruption is saved too, at the last whole update.

    A failed update is reported with the last good checkpoint.
    """
    saved = run.step

    def save() -> None:
        nonlocal saved
        if trainer.step > saved:
            run.save(trainer.step, policy.save, trainer.state_dict())
            saved = trainer.step

    try:
        yield save
    except KeyboardInterrupt:
        ranks.leave("lost" if ranks.lost() else "interrupted")
        with uninterrupted():
            save()
        raise
    except NotFinite as failure:
        kept = run.newest_checkpoint()
        where = f"The last good checkpoint is {kept}." if kept else "No checkpoint had been saved yet."
        raise NotFinite(f"{failure} {where} A lower learning_rate may help.") from None
