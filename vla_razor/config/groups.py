"""The verbs, in the groups and the order in which the command line shows them."""

import re
from typing import Any

from vla_razor.config import hub, language, robot, serving, study
from vla_razor.config.keys import Key, Verb

GROUPS: dict[str, list[type[Verb]]] = {
    "Learn": [robot.Collect, robot.Import, robot.Export, robot.Stats, robot.Sft, robot.Rl, robot.Distill],
    "Measure": [robot.Eval, robot.Kl, robot.Interpolate, study.Plasticity],
    "Deploy": [serving.Serve, hub.Save, hub.Push],
    "Study": [study.Demo, study.Sweep, study.Sequence, study.Report, study.Mnist],
    "Language models": [
        *(language.LlmSft, language.LlmSimpo, language.LlmGrpo, language.LlmReinforce, language.LlmAnnotate),
        *(language.LlmKl, language.LlmEval, language.LlmProbe, language.LlmDemo, language.LlmSweep),
        language.LlmSequence,
    ],
}
CHOICES = {"env": "env", "prior": "env@prior"}  # keys that are groups of Hydra's, as it names them


def name_of(verb: type[Verb]) -> str:
    """What configurations call it, such as llm_sft."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", verb.__name__).lower()


VERBS = {name_of(verb): verb for group in GROUPS.values() for verb in group}
SWEEPS = ("demo", "sweep", "llm_demo", "llm_sweep")  # whose keys may take several values
SEQUENCES = {"sequence": "env", "llm_sequence": "task"}  # likewise, but for the key that names the tasks in their order
GONE = {
    "demo": {
        "seeds": "seed=0,1,2",
        "sft_runs": "sft.learning_rate=1e-4,3e-4 or any other of its keys",
        "rl_runs": "rl.learning_rate=1e-4,3e-4 or any other of its keys",
    },
    "llm_demo": {"seeds": "seed=0,1,2"},
}
"""By verb: keys of earlier versions, and how what they said is said now."""


def parts(verb: str) -> list[str]:
    """The verb and what it is made of, from the weakest: an experiment may have settings for each."""
    return [name_of(part) for part in reversed(VERBS[verb].__mro__) if issubclass(part, Verb)]


def common_to(verb: str) -> type[Verb]:
    """What every verb of its kind is made of, be they about policies or language models."""
    return language.LlmCommon if verb.startswith("llm_") else robot.Common


def common_keys(verb: str) -> list[str]:
    """The keys that every verb of its kind has."""
    return list(common_to(verb).definitions())


def own_keys(verb: str) -> list[Key]:
    """The keys that it also has as a section of another verb: what all verbs of its kind share stays with the one that
    runs it, unless this one has another default for it, as `collect` has its own policy. There it is one process.
    """
    keys = VERBS[verb].definitions().values()
    return [key for key in keys if not issubclass(common_to(verb), key.home) and key.home is not robot.Ranked]


def earlier(verb: str) -> dict[str, Any]:
    """The settings that runs begun before there were such keys lack, as they were then."""
    keys = VERBS[verb].definitions().values() if verb in VERBS else ()
    later = {key.name: key.before for key in keys if key.before is not ...}
    sections = [key.name for key in keys if key.name in VERBS]
    return later | {
        name: {key.name: key.before for key in own_keys(name) if key.before is not ...} for name in sections
    }


def kind_of(verb: str, key: str) -> Any:
    """What a key of the verb, or of one that it is made of ("sft.epochs"), may hold; None if nothing is said of it."""
    section, _, name = key.rpartition(".")
    found = VERBS[section or verb].definitions().get(name) if (section or verb) in VERBS else None
    return found and found.kind


def command(verb: str) -> str:
    """What is typed for it, such as "llm sft"."""
    return verb.replace("llm_", "llm ")
