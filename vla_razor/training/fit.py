"""The loop of every training: gather, learn, measure, log and save, until the last round or the end of the budget."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol

from omegaconf import DictConfig

from vla_razor import ranks
from vla_razor.interruption import uninterrupted
from vla_razor.policies.trainable import Trainable
from vla_razor.progress import progress
from vla_razor.rollouts.environments import VectorEnv
from vla_razor.runs import Run
from vla_razor.study.forecast import Guard
from vla_razor.training.base import Base, open_policies
from vla_razor.training.measuring import finish, measure, open_probe
from vla_razor.training.penalties import replay
from vla_razor.training.trainer import NotFinite, Trainer, is_due


class Algorithm(Protocol):
    """How a policy learns. A training has `rounds` rounds of `updates` optimizer steps each.

    `title` heads the progress bar, which shows the latest values of the names in `watched`. `envs` are the environments
    that the algorithm plays in, if any; the probe set is made in them.
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
        """Before the first round, open what is needed; it is closed with the stack."""
        ...

    def gather(self, number: int) -> Any:
        """What round `number` (from 0) learns from. An interruption may end this call; the round is then gathered
        again.
        """
        ...

    def learn(self, trainer: Trainer, gathered: Any, *, measured: bool) -> Iterator[Mapping[str, float]]:
        """Take the round's updates. What is yielded is logged at the trainer's current step. `measured`: the policy
        will be measured after this round, so that scalars which cost a pass of the base may be logged too.
        """
        ...

    def closing_words(self, run: Run, trainer: Trainer) -> str | None:
        """The reason if nothing was learned, else None."""
        ...


def fit(config: DictConfig, run: Run, begin: Callable[[DictConfig, Trainable, Base], Algorithm]) -> None:
    """Fine-tune `config.policy` on `config.env`; a resumed run goes on where it stopped. Several ranks do the same,
    each with a share of the episodes and of the decisions learnt from.
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
            except ranks.Lost as lost:  # between updates: this rank's state is whole, and is saved
                raise KeyboardInterrupt from lost
            # An interrupted run is saved, and can only be saved between two rounds.
            with uninterrupted():
                step, scalars = trainer.step, dict[str, float]()
                for row in algorithm.learn(trainer, gathered, measured=measured):
                    if scalars:
                        run.log(step, **scalars)
                    step, scalars = trainer.step, dict(row)
                # The last row waits for the measures of its step.
                if probe and measured:
                    scalars |= measure(policy, probe, trainer, guard)
                run.log(step, **scalars)
                if trainer.spent or is_due(number + 1, config.save_every, algorithm.rounds):
                    save()
            advance(**{name: scalars[name] for name in algorithm.watched}, **(guard.shown if guard else {}))
    words = algorithm.closing_words(run, trainer) if ranks.first() else None  # only the first rank has the run's rows
    finish(config, run, policy, base, probe, guard, words)


@contextmanager
def saving(run: Run, policy: Trainable, trainer: Trainer) -> Iterator[Callable[[], None]]:
    """Gives a callable that saves the run as it stands. An interruption is saved too, at the last complete update. A
    failed update is reported together with the last good checkpoint.
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
