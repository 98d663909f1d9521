"""`vla-razor llm probe`: how much of a language model's representations survived fine-tuning (RL's Razor, Section 6 and
Appendix C.1): CKA and CKNNA to the base on Wikipedia paragraphs, and sparsity and rank of the weight update.
"""

from pathlib import Path

from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from vla_razor.llm import representations
from vla_razor.llm.models import LanguageModel, open_model, precision_in
from vla_razor.progress import progress
from vla_razor.runs import Run, origin_of

ROWS = {
    "cka": "CKA",
    "cka_unbiased": "CKA, unbiased",
    "cknna": "CKNNA, k = 10",
    "weight_l1": "weights' change, L1",
    "weight_l2": "weights' change, L2",
    "weight_spectral": "weights' change, spectral norm",
    "weight_sparsity": "weights that did not change",
    "weight_sparsity_bfloat16": "... when rounded to bfloat16",
    "weight_rank": "rank of the change, share of the full",
    "weight_rank_bfloat16": "... of bfloat16 weights",
}


def run(config: DictConfig, run: Run) -> None:
    """Compare `config.model` with `config.base`."""
    run.restore()
    texts = representations.paragraphs(Path(config.data_dir) if config.data_dir else None, config.paragraphs)
    tuned = open_model(config.model, device=config.device, dtype=config.dtype)
    origin = config.base or origin_of(config.model, "model")
    base = open_model(origin, device=config.device, dtype=precision_in(tuned))
    found = representations.compare(_represent(config, base, texts), _represent(config, tuned, texts))
    before, after = representations.weights_of(base), representations.weights_of(tuned)
    with progress("weights", len(before)) as advance:
        found |= representations.changes(before, after, advance)
    run.log(0, **found)
    run.finish({"representations": found, "paragraphs": len(texts)})
    table = Table("", "", title=f"{config.model} against its base, {len(texts)} paragraphs of Wikipedia")
    for name, meaning in ROWS.items():
        table.add_row(meaning, f"{found[name]:.4g}")
    Console().print(table)


def _represent(config: DictConfig, language: LanguageModel, texts: list[str]) -> representations.Tensor:
    with progress(language.name, -(-len(texts) // config.micro_batch_size)) as advance:
        return representations.represent(
            language, texts, max_length=config.max_length, batch_size=config.micro_batch_size, done=advance
        )
