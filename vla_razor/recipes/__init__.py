"""One file a verb, read top to bottom: `run(config, run)`."""

import importlib
from types import ModuleType

LLM_TRAINING = ("sft", "grpo", "reinforce", "simpo")
_FILES = (
    {"eval": "evaluate"}
    | dict.fromkeys(("demo", "llm_demo", "llm_sweep"), "sweep")
    | {f"llm_{method}": "llm_train" for method in LLM_TRAINING}
)


def recipe_of(verb: str) -> ModuleType:
    """The module whose `run` does what the verb says."""
    return importlib.import_module(f"vla_razor.recipes.{_FILES.get(verb, verb)}")
