"""`vla-razor llm kl`: how far a language model has moved from its base on the new task (RL's Razor, Section 4).

Forward KL is summed exactly over the whole vocabulary, at the base's own completions of test prompts
(`llm/probe_set.py`). The alternatives of the paper's Section 6 are reported beside it.
"""

from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from vla_razor.llm import probe_set, tasks
from vla_razor.llm.models import open_model, precision_in
from vla_razor.runs import Run, origin_of
from vla_razor.study import measures
from vla_razor.verbs.language.steps import probe_of, splits_of


def run(config: DictConfig, run: Run) -> None:
    """Measure `config.model` against `config.base` on the probe set of `config.task`."""
    run.restore()
    language = open_model(config.model, device=config.device, dtype=config.dtype)
    base = language  # of an adapter, which is switched off to measure the base
    if config.base is not None or not language.has_adapter:
        origin = config.base or origin_of(config.model, "model")
        base = open_model(origin, device=config.device, dtype=precision_in(language))
    probe = probe_of(config, base, splits_of(config, tasks.open_task(config.task)).test)
    measured = probe_set.measure(language, probe, config.micro_batch_size)
    run.log(0, **measures.renamed(measured))
    run.finish({"forward_kl": measured, "probe_set": {"key": probe.origin.key, **vars(probe.origin)}})
    report(Console(), config, measured)


def report(console: Console, config: DictConfig, measured: dict[str, float | int]) -> None:
    """Forward KL per token and per completion, and the alternatives per token."""
    title = f"{config.model} against its base on {config.task}, {measured['completions']} completions, in nats"
    table = Table("", "a completion", "a token", title=title)
    error = f"{measured['per_completion']:.4g} ± {measured['per_completion_standard_error']:.2g}"
    table.add_row("forward KL", error, f"{measured['per_token']:.4g}")
    for name in ("reverse_kl", "total_variation", "l2_distance"):
        table.add_row(name.replace("_", " ").replace(" kl", " KL"), "", f"{measured[name]:.4g}")
    console.print(table)
