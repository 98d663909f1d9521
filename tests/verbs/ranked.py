"""A rank of the runs in test_ranks.py: carries out the command lines of a JSON file one after the other, in one process
group, so that the processes need to start only once.
"""

import json
import sys
from pathlib import Path

import torch

from vla_razor import cli, config, ranks

if __name__ == "__main__":
    torch.set_num_threads(1)
    with cli._clean_errors(), ranks.joined():
        for verb, *words in json.loads(Path(sys.argv[1]).read_text()):
            settings = config.compose(verb, words)
            with cli._begun(verb, settings, named=True) as run:
                cli._execute(run)
