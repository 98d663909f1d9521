"""A language model's probe set: the base's completions of the new task's test prompts, and its hidden states there.

Forward KL is E_{x ~ task} E_{y ~ base} sum_t KL(base(. | x, y_<t) || tuned(. | x, y_<t)), the inner KL over the whole
vocabulary in closed form (RL's Razor, Section 4). The base's distributions would take 150,000 numbers per token. They
follow from its last hidden states and its output head, which are kept instead.
"""

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.distributed.tensor import DTensor

from vla_razor.core.divergence import Divergences, divergences_from_hidden
from vla_razor.errors import RunFailed, UserError
from vla_razor.files import atomic_folder, cache_root, check_folder, full_disk_reported, write_json
from vla_razor.llm.models import LanguageModel, model_key
from vla_razor.llm.sampling import Done, prompt_ids, sample
from vla_razor.llm.tasks import Example

SCHEMA = 1
SCALES = ("final_logit_softcapping", "logit_scale", "logits_scaling")
"""What models' configurations call a change of their logits."""
TEMPERATURE = 1.0
"""Of the completions: a language model's distribution is the softmax of its logits as they are."""


@dataclass(frozen=True)
class Origin:
    """What a probe set was made from. `base` is a hash of the base's weights, `prompts` a hash of the prompts."""

    base: str
    task: str
    prompts: str
    count: int
    max_new_tokens: int
    seed: int

    @property
    def key(self) -> str:
        """Names the cache folder."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:16]


@dataclass
class ProbeSet:
    """N completions with M tokens in all, hidden states of width H and a vocabulary of V.

    `tokens` holds each prompt and its completion, one pair after the other, and `lengths` their lengths. `hidden` are
    the base's last hidden states at the positions that predict the completions' tokens, in the same order.
    """

    origin: Origin
    tokens: Int[Tensor, " L"]
    lengths: Int[Tensor, "N 2"]
    hidden: Float[Tensor, "M H"]
    head: Float[Tensor, "V H"]

    def sequences(self) -> list[tuple[list[int], int]]:
        """Every prompt with its completion, and the length of the prompt."""
        parts = self.tokens.split(self.lengths.sum(1).tolist())
        return [(part.tolist(), int(prompt)) for part, prompt in zip(parts, self.lengths[:, 0], strict=True)]


def obtain(
    language: LanguageModel,
    task: str,
    examples: Sequence[Example],
    *,
    max_new_tokens: int,
    seed: int,
    batch_size: int,
    done: Done = lambda: None,
) -> ProbeSet:
    """The probe set of a base on these prompts: from the cache, or made now. An adapter is disabled for it.

    Raises UserError where the cached one cannot be read, RunFailed where the disk is full.
    """
    # The key is made from what decides the completions, so that a probe set made for one run serves every other run of
    # the same base, task and settings.
    with language.base():
        prompts = hashlib.sha256(json.dumps([prompt_ids(language, example) for example in examples]).encode())
        origin = Origin(model_key(language.model), task, prompts.hexdigest()[:16], len(examples), max_new_tokens, seed)
        folder = cache_folder() / origin.key
        if (folder / "probe.json").is_file():
            return load(folder)
        was_training = language.model.training
        language.model.eval()
        completions = sample(
            language,
            examples,
            temperature=TEMPERATURE,
            max_new_tokens=max_new_tokens,
            seed=seed,
            batch_size=batch_size,
            done=done,
        )
        tokens = torch.tensor([token for one in completions for token in (*one.prompt, *one.tokens)])
        lengths = torch.tensor([(len(one.prompt), len(one.tokens)) for one in completions])
        head = output_head(language)
        probe = ProbeSet(origin, tokens, lengths, head.new_empty(0, head.shape[1]), head.detach().clone().cpu())
        probe.hidden = _hidden_states(language, probe, batch_size)
        language.model.train(was_training)
    with full_disk_reported(folder, "free some space, or set VLA_RAZOR_CACHE to a folder on another disk."):
        save(folder, probe)
    return probe


def measure(language: LanguageModel, probe: ProbeSet, batch_size: int) -> dict[str, float | int]:
    """How far a model is from the probe set's base, in nats.

    Forward KL `per_token`, `reverse_kl` and the other divergences are means over all tokens. `per_completion` is
    forward KL summed over a completion's tokens, its mean over completions, with its standard error. This is the
    entry `forward_kl` of summary.json.

    Raises UserError where the vocabularies differ, RunFailed where the model's hidden states are not finite.
    """
    head = output_head(language)
    if head.shape[0] != probe.head.shape[0]:
        raise UserError(
            f"{language.name}: a vocabulary of {head.shape[0]} words, padding included, where the probe set's base has "
            f"{probe.head.shape[0]}. Compare models whose embeddings have the same size."
        )
    was_training = language.model.training
    language.model.eval()  # without dropout, or a policy would be measured as far from itself
    hidden = _hidden_states(language, probe, batch_size)
    language.model.train(was_training)
    if not hidden.isfinite().all():
        raise RunFailed(f"{language.name}: hidden states on the probe set are not finite; the model has diverged.")
    device = head.device
    found = divergences_from_hidden(
        probe.hidden.to(device), probe.head.to(device), hidden.to(device), head.detach(), chunk=4096
    )
    # Completions differ in length: a mean over tokens is not the mean over completions divided by a length.
    lengths = probe.lengths[:, 1].tolist()
    sums = torch.stack([part.double().sum() for part in found.forward_kl.cpu().split(lengths)])
    means = {name: float(getattr(found, name).double().mean()) for name in Divergences._fields}
    return {
        "per_token": means.pop("forward_kl"),
        **means,
        "per_completion": float(sums.mean()),
        "per_completion_standard_error": float(sums.std() / math.sqrt(len(sums))) if len(sums) > 1 else math.nan,
        "completions": len(sums),
        "tokens": len(found.forward_kl),
    }


def output_head(language: LanguageModel) -> Tensor:
    """The weights [V, H] that turn hidden states into logits.

    Raises UserError for a model whose logits are more than that product.
    """
    layer = language.model.get_output_embeddings()
    scales = {name: getattr(language.model.config, name, None) for name in SCALES}
    scaled = [name for name, value in scales.items() if value not in (None, 1)]
    if getattr(layer, "bias", None) is not None or scaled:
        raise UserError(
            f"{language.name}: its logits are not hidden states times a matrix ({', '.join(scaled) or 'bias'})."
        )
    return layer.weight.full_tensor() if isinstance(layer.weight, DTensor) else layer.weight


def cache_folder() -> Path:
    """Where probe sets are kept."""
    return cache_root() / "llm_probe_sets"


def save(folder: Path, probe: ProbeSet) -> None:
    """Write probe.safetensors and probe.json, both or neither."""

    def fill(aside: Path) -> None:
        tensors = {name: getattr(probe, name).contiguous() for name in ("tokens", "lengths", "hidden", "head")}
        save_file(tensors, aside / "probe.safetensors")
        write_json(aside / "probe.json", {"schema": SCHEMA, **asdict(probe.origin)})

    atomic_folder(folder, fill)


def load(folder: Path) -> ProbeSet:
    """Read what `save` wrote. Raises UserError where the files are damaged, or are those of something else."""
    remedy = f"Delete {folder} to make it anew."
    check_folder(folder, remedy)
    try:
        content: dict[str, Any] = json.loads((folder / "probe.json").read_text())
        if content.pop("schema") != SCHEMA:
            raise ValueError("another schema")
        return ProbeSet(Origin(**content), **load_file(folder / "probe.safetensors"))
    except (OSError, ValueError, TypeError, KeyError, SafetensorError) as error:
        raise UserError(f"{folder} is not a probe set that can be read ({error}). {remedy}") from error


@torch.no_grad()
def _hidden_states(language: LanguageModel, probe: ProbeSet, batch_size: int) -> Float[Tensor, "M H"]:
    """The model's last hidden states at the positions that predict the completions' tokens."""
    model, pad = language.model, language.pad
    sequences, found = probe.sequences(), []
    for start in range(0, len(sequences), batch_size):
        batch = sequences[start : start + batch_size]
        width = max(len(tokens) for tokens, _ in batch)
        ids = torch.tensor([tokens + [pad] * (width - len(tokens)) for tokens, _ in batch], device=model.device)
        mask = torch.tensor([[1] * len(tokens) + [0] * (width - len(tokens)) for tokens, _ in batch]).to(ids)
        states = _states(model, input_ids=ids, attention_mask=mask, use_cache=False)
        # A token is predicted at the position before it: the first of a completion at the last of its prompt.
        found += [row[prompt - 1 : len(tokens) - 1].cpu() for row, (tokens, prompt) in zip(states, batch, strict=True)]
    return torch.cat(found)


def _states(model: Any, **given: Any) -> Float[Tensor, "B T H"]:
    """The decoder's last hidden states, in the precision of the weights, even where the trainer computes in another."""
    decoder = model.get_decoder()
    if not any(isinstance(parameter, DTensor) for parameter in model.parameters()):
        return decoder(**given).last_hidden_state
    # A sharded model gathers its weights only where it is called as a whole. The states are then caught on their way,
    # and the trainer's `forward`, which wraps the model's in autocast, is set aside meanwhile.
    kept: list[Tensor] = []
    hook = decoder.register_forward_hook(lambda _, __, output: kept.append(output.last_hidden_state))
    wrapped = vars(model).pop("forward", None)
    try:
        model(**given, logits_to_keep=1)
    finally:
        hook.remove()
        if wrapped is not None:
            model.forward = wrapped
    return kept[0]
