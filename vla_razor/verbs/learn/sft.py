"""`vla-razor sft`: fine-tune on demonstrations (`training/algorithms/sft.py`)."""

from omegaconf import DictConfig

from vla_razor.runs import Run
from vla_razor.training.algorithms import sft
from vla_razor.training.fit import fit


def run(config: DictConfig, run: Run) -> None:
    """Fine-tune `config.policy` on the demonstrations in `config.demos`; goes on where a resumed run stopped."""
    sft.check(config)
    fit(config, run, sft.SFT)
