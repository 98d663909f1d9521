"""`vla-razor rl`: REINFORCE on the binary success of batched rollouts (`training/algorithms/reinforce.py`)."""

from omegaconf import DictConfig

from vla_razor.runs import Run
from vla_razor.training.algorithms.reinforce import Reinforce
from vla_razor.training.fit import fit


def run(config: DictConfig, run: Run) -> None:
    """Fine-tune `config.policy` on `config.env`; goes on where a resumed run stopped."""
    fit(config, run, Reinforce)
