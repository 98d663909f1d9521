"""One short file per verb, read top to bottom: `run(config, run)`. The folders are the groups of the command line."""

import importlib
from types import ModuleType

from vla_razor.config import GROUPS, VERBS
from vla_razor.config.groups import SEQUENCES, SWEEPS
from vla_razor.errors import UserError, nearest

LLM_TRAINING = ("sft", "grpo", "reinforce", "simpo")
"""Verbs whose processes are joined by accelerate."""
RANKED = ("collect", "sft", "rl", "distill", "eval", "kl")
"""Verbs whose work several ranks share (`vla_razor.ranks`)."""
_FOLDERS = {"Learn": "learn", "Measure": "measure", "Deploy": "deploy", "Study": "study", "Language models": "language"}
_FILES = {"eval": "evaluate", "llm_eval": "evaluate", "import": "importing", "export": "exporting"}
_FILES |= {f"llm_{method}": "train" for method in LLM_TRAINING}


def module_of(verb: str) -> ModuleType:
    """The module whose `run` carries out the verb. Raises UserError for a verb that this version does not have."""
    if verb not in VERBS:
        raise UserError(f"unknown verb {verb!r}. {nearest(verb, VERBS)}")
    for verbs, name in ((SWEEPS, "sweep"), (SEQUENCES, "sequence")):
        if verb in verbs:
            return importlib.import_module(f"vla_razor.verbs.study.{name}")
    folder = next(_FOLDERS[title] for title, group in GROUPS.items() if VERBS[verb] in group)
    return importlib.import_module(f"vla_razor.verbs.{folder}.{_FILES.get(verb, verb.removeprefix('llm_'))}")
