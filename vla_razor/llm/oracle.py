"""The oracle as a teacher: a base restricted to the right answers and renormalised, which of all policies that are
always right is the nearest to it (RL's Razor, Lemma 5.1; `parity_mnist/methods.py` has the same for its ten digits).

The base's own right answers, sampled until one is accepted, have the same distribution. What the oracle adds is that it
needs no luck: it labels the questions that the base hardly ever answers right, too.
"""

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Future

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from vla_razor.llm.models import LanguageModel
from vla_razor.llm.sampling import prompt_ids
from vla_razor.llm.tasks import Example, ManyAnswers
from vla_razor.llm.teacher import Answer, Request, Response


class Oracle:
    """Draws right answers to `examples`, a request's `prompt` being a place among them. Each request has a seed of its
    own, as with `LocalTeacher`.
    """

    prompts_at_once = responses_at_once = 1

    def __init__(self, model: LanguageModel, task: ManyAnswers, examples: Sequence[Example], *, seed: int) -> None:
        self.name = f"the oracle of {model.name}"
        self._model, self._task, self._examples, self._seed = model, task, examples, seed

    def ask(self, request: Request) -> Future[Answer]:
        """Answered when this returns."""
        texts, probabilities = self.distribution(self._examples[request.prompt])
        draw = np.random.default_rng((self._seed, request.prompt, request.first))
        chosen = draw.choice(len(texts), request.wanted, p=probabilities.numpy())
        answer: Future[Answer] = Future()
        answer.set_result(Answer([Response(texts[i], cut_off=False) for i in chosen], Counter()))
        return answer

    def distribution(self, example: Example) -> tuple[list[str], Float[Tensor, " N"]]:
        """All right answers, and the oracle's probability of each, in float64."""
        texts = self._task.solutions(example.gold)
        return texts, log_likelihoods(self._model, example, texts).softmax(0)


@torch.inference_mode()
def log_likelihoods(language: LanguageModel, example: Example, texts: Sequence[str]) -> Float[Tensor, " N"]:
    """Of each text as the whole completion of a prompt, in nats: the sum over its tokens, as the tokenizer has them,
    and the one that ends it.
    """
    model, tokenizer = language.model, language.tokenizer
    completions = [[*tokenizer.encode(text, add_special_tokens=False), tokenizer.eos_token_id] for text in texts]
    ids = pad_sequence([torch.tensor(one) for one in completions], batch_first=True, padding_value=language.pad)
    lengths = torch.tensor([len(one) for one in completions])
    # The prompt is read once. What fills up a completion stands behind it, where no token of it looks.
    read = model(torch.tensor([prompt_ids(language, example)], device=model.device), use_cache=True)
    read.past_key_values.batch_repeat_interleave(len(texts))
    first = read.logits[:, -1:].expand(len(texts), -1, -1)
    rest = model(ids[:, :-1].to(model.device), past_key_values=read.past_key_values).logits
    said = torch.cat([first, rest], 1).double().log_softmax(-1).cpu().gather(-1, ids[..., None])[..., 0]
    return said.where(torch.arange(ids.shape[1]) < lengths[:, None], 0.0).sum(1)
