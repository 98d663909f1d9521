"""`vla-razor distill`: imitate the scripted expert at the states that the policy itself visits
(`training/algorithms/distillation.py`).
"""

from omegaconf import DictConfig

from vla_razor.runs import Run
from vla_razor.training.algorithms.distillation import Distillation
from vla_razor.training.fit import fit


def run(config: DictConfig, run: Run) -> None:
    """Fine-tune `config.policy` on `config.env`; goes on where a resumed run stopped."""
    fit(config, run, Distillation)
