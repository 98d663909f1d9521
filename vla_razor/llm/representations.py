"""How fine-tuning changed a model inside, away from the new task: its representations of Wikipedia paragraphs, and its
weights (RL's Razor, Section 6 and Appendix C.1).

A representation is the mean of the last hidden states over a paragraph's tokens. In a local folder the paragraphs are
`boolq/passages.jsonl`: BoolQ's passages, which are from Wikipedia.
"""

import math
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from vla_razor.core import similarity, weight_change
from vla_razor.errors import UserError
from vla_razor.llm.models import LanguageModel
from vla_razor.llm.rows import from_hub, from_lines

HUB = "wikimedia/wikipedia"
HUB_FILE = "20231101.en/train-00000-of-00041.parquet"
SHORTEST = 200
"""Characters; shorter paragraphs are left out."""
NEIGHBOURS = 10


def paragraphs(data_dir: Path | None, count: int) -> list[str]:
    """The first `count` distinct paragraphs of at least `SHORTEST` characters.

    Raises UserError where a local file is missing, malformed or too short, RunFailed where the Hub cannot be reached.
    """
    if data_dir is None:
        texts = (text for row in from_hub(HUB, "train", HUB_FILE) for text in row.text("text").split("\n\n"))
    else:
        rows = from_lines(data_dir / "boolq" / "passages.jsonl")
        texts = (row.text("query").partition("Question:")[0].removeprefix("Passage:").strip() for row in rows)
    found = list(islice(dict.fromkeys(text for text in texts if len(text) >= SHORTEST), count))
    if len(found) <= NEIGHBOURS or len(found) < count:
        raise UserError(f"paragraphs={count}: only {len(found)} were found, and more than {NEIGHBOURS} are needed.")
    return found


@torch.no_grad()
def represent(
    language: LanguageModel,
    texts: Sequence[str],
    *,
    max_length: int,
    batch_size: int,
    done: Callable[[], object] = lambda: None,
) -> Float[Tensor, "N H"]:
    """The representation of every text, in order."""
    found: list[Tensor] = []
    language.model.eval()
    for start in range(0, len(texts), batch_size):
        encoded = language.tokenizer(
            list(texts[start : start + batch_size]),
            return_tensors="pt",
            padding=True,
            padding_side="right",
            truncation=True,
            max_length=max_length,
        ).to(language.model.device)
        ids, mask = encoded["input_ids"], encoded["attention_mask"]
        states = language.model.get_decoder()(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
        weights = mask[..., None].float()
        found.append(((states.float() * weights).sum(1) / weights.sum(1)).cpu())
        done()
    return torch.cat(found)


def compare(base: Float[Tensor, "N H"], tuned: Float[Tensor, "N H2"]) -> dict[str, float]:
    """CKA, its unbiased estimate, and CKNNA with ten neighbours."""
    return {
        "cka": float(similarity.cka(base, tuned)),
        "cka_unbiased": float(similarity.cka(base, tuned, unbiased=True)),
        "cknna": float(similarity.cknna(base, tuned, k=NEIGHBOURS)),
    }


def weights_of(language: LanguageModel) -> dict[str, Tensor]:
    """The weights by name, in float32. An adapter is merged into its base, for good; bfloat16 would round its part
    away.
    """
    model = language.model.float().merge_and_unload() if language.has_adapter else language.model
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def changes(
    base: dict[str, Tensor], tuned: dict[str, Tensor], done: Callable[[], object] = lambda: None
) -> dict[str, float | None]:
    """`weight_change.summary` of matrices of any size, each name after `weight_`; `done` is called after every weight.

    Raises UserError where the two models are not of one shape.
    """
    try:
        found = weight_change.summary(base, tuned, largest=math.inf, done=done)
    except ValueError as error:
        raise UserError(f"the two models cannot be compared weight by weight: {error}") from error
    return {f"weight_{name}": value for name, value in found.items()}
