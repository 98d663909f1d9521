r"""Makes small language models of one family, and the local data for a sweep over them (docs/llm.md).

    .venv/bin/python scripts/make_language_bases.py --data DIR --out BASES [--size small|medium|large|huge]

Llama's architecture and one tokenizer for all, each of which reads the same text once: the Wikipedia passages of
BoolQ, and conversations that give it several abilities, and the new task `number` by halves (`language_mixture.py`).
`--data` is a folder with `boolq`. A model that is there already is left alone, and one that was interrupted goes on
from what it has kept.

Below `out/data`, in the formats that `data_dir` takes: the new task's questions, and in `teacher` its labels with a
wrong answer each, as SimPO takes them (`annotations=`); passages that no model has read, for the prior task `text` and
for the probe of representations; in place of HellaSwag's questions, which such models cannot tell apart, the same
passages' second sentences beside three in which two neighbouring words are exchanged; and the abilities' held-out
questions, for the prior tasks `facts`, `sums`, `forms` and `calls`.

`--mixture prices` is the earlier family: it reads the passages, and GSM8K's questions answered within \boxed{} without
reasoning, so that what stands in for an instruct model answers in the right form, and wrongly. Its new task are prices
that nobody knows, as the math task's questions. `--data` is then a folder with `boolq` and `gsm8k`.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from scripts import language_mixture
from vla_razor.files import atomic_folder, atomic_write
from vla_razor.llm import annotations
from vla_razor.llm.annotations import Annotation
from vla_razor.llm.tasks import is_held_out, number
from vla_razor.llm.tasks.math import DIRECT

SHAPES = {"small": (64, 3, 2), "medium": (128, 4, 4), "large": (224, 5, 7), "huge": (384, 5, 6)}
"""Width, layers, heads: 0.2, 0.9, 3.2 and 9.2 million parameters."""
RATES = {"small": 4e-3, "medium": 3e-3, "large": 2e-3, "huge": 1.5e-3}
USER, ASSISTANT, END, PAD = "<|user|>", "<|assistant|>", "<|end|>", "<|pad|>"
TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
WORDS = 1024
LENGTH = 128
READING = {"abilities": (4, 1), "prices": (16, 1)}
"""Windows of `LENGTH` tokens in a step, and passes over the text."""
KEPT_EVERY = 500
"""Steps."""
WORDINGS = (
    "What does one of the {what} cost?",
    "{who} buys one of the {what}. How many dollars does {who} pay?",
    "How many dollars are the {what} at the market?",
    "{who} sells {what}. How much is one?",
    "If {who} wants one of the {what}, how much money does {who} need?",
    "How much do {what} cost if {who} buys one?",
)
NAMES = ("John", "Mary", "James", "Tom", "Anna", "Sarah", "Mike", "Lisa")
THINGS = (
    "apples", "books", "cards", "cookies", "pencils", "eggs", "toys", "flowers", "shirts",
    "shoes", "cakes", "oranges", "boxes", "bags", "candles", "chairs", "tables", "plants",
    "trees", "cars", "bikes", "balls", "pens", "hats", "coats", "bottles", "cups",
    "plates", "lamps", "tickets", "stamps", "stickers", "pies", "muffins", "sandwiches", "pizzas",
    "tomatoes", "potatoes", "bananas", "pears",
)  # fmt: skip
TEST_QUESTIONS, TRAINING_QUESTIONS = 250, 800
PASSAGES = 150
CONVERSATIONS = 3000


def main() -> None:
    """Data, tokenizer and models, in this order."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("build/language_bases"))
    parser.add_argument("--size", choices=SHAPES, action="append", help="these sizes alone")
    parser.add_argument("--mixture", choices=MIXTURES, default="abilities", help="what they read")
    given = parser.parse_args()
    texts = MIXTURES[given.mixture](given.data, given.out / "data")
    tokenizer = make_tokenizer(texts)
    batch, passes = READING[given.mixture]
    draw = np.random.default_rng(0)
    order = [i for _ in range(passes) for i in draw.permutation(len(texts))]
    stream = [token for i in order for token in tokenizer.encode(texts[i] + END, add_special_tokens=False)]
    print(f"{len(texts)} texts, {len(stream):,} tokens")
    for size in given.size or SHAPES:
        if not (given.out / size).is_dir():
            kept = given.out / f"{size}_unfinished.pt"
            model = train(size, torch.tensor(stream), batch, tokenizer, kept)
            atomic_folder(given.out / size, lambda folder, model=model: save(folder, model, tokenizer))
            kept.unlink(missing_ok=True)


def passages(data: Path) -> tuple[list[str], list[str]]:
    """BoolQ's passages: those that the models read, and a tenth that they do not."""
    rows = [json.loads(line)["query"] for line in (data / "boolq" / "passages.jsonl").read_text().splitlines()]
    texts = dict.fromkeys(row.removeprefix("Passage: ").partition("Question:")[0].strip() for row in rows)
    unread = [text for text in texts if is_held_out(text, 0.1)]
    return [text for text in texts if not is_held_out(text, 0.1)], unread


def conversations(data: Path) -> Iterator[str]:
    """GSM8K's training questions, asked and answered in the math task's words."""
    for line in (data / "gsm8k" / "train.jsonl").read_text().splitlines()[:CONVERSATIONS]:
        row = json.loads(line)
        answer = row["answer"].rpartition("####")[2].strip().replace(",", "")
        yield f"{USER}{row['question']}\n\n{DIRECT}{ASSISTANT}\\boxed{{{answer}}}"


def prices(data: Path, out: Path) -> list[str]:
    """Writes the new task and the prior tasks, and returns what is read."""
    read, unread = passages(data)
    chosen = questions()[: TEST_QUESTIONS + TRAINING_QUESTIONS]
    for name, part in (("math500", chosen[:TEST_QUESTIONS]), ("orz_math_57k_prices", chosen[TEST_QUESTIONS:])):
        rows = [{"prompt": [{"from": "user", "value": text}], "final_answer": str(answer)} for text, answer in part]
        atomic_write(out / "open_reasoner_zero" / f"{name}.json", json.dumps(rows).encode())
    write_passages(out, unread)
    return [*read, *conversations(data)]


def abilities(data: Path, out: Path) -> list[str]:
    """Writes the new task with its teacher's labels, and the prior tasks, and returns what is read."""
    read, unread = passages(data)
    lines(
        out / "number" / "questions.jsonl",
        [{"question": text, **condition._asdict()} for text, condition in language_mixture.conditions()],
    )
    draw = np.random.default_rng(0)
    labels = []
    for one in number.load(out, direct=True).train:
        wrong = language_mixture.wrong_label(number.Condition(**json.loads(one.gold)), draw)
        labels.append(Annotation(one.prompt, one.gold, one.group, one.answer, wrong, 1, "the largest number", {}))
    lines(out / "teacher" / annotations.FILE, [label._asdict() for label in labels])
    for name, rows in language_mixture.prior_tasks().items():
        lines(out / "questions" / f"{name}.jsonl", rows)
    write_passages(out, unread)
    lines(out / "boolq" / "passages.jsonl", [{"query": f"Passage: {text}\nQuestion:"} for text in unread])
    return [*read, *language_mixture.texts(f"{USER}{{}}{ASSISTANT}{{}}")]


def write_passages(out: Path, unread: list[str]) -> None:
    """The prior tasks that are made of passages that no model has read."""
    draw = np.random.default_rng(0)
    lines(out / "text" / "passages.jsonl", [{"text": text} for text in unread[:PASSAGES]])
    lines(out / "hellaswag" / "hellaswag.jsonl", [row for text in unread for row in orders(text, draw)])


MIXTURES = {"abilities": abilities, "prices": prices}


def orders(text: str, draw: np.random.Generator) -> Iterator[dict[str, Any]]:
    """In HellaSwag's format: how does the passage go on, if the others have two neighbouring words exchanged?"""
    begin, stop, rest = text.partition(". ")
    words = rest.partition(". ")[0].split()
    if not stop or len(words) < 8:
        return
    endings = []
    for place in draw.choice(len(words) - 1, 3, replace=False):
        endings.append(" ".join([*words[:place], words[place + 1], words[place], *words[place + 2 :]]))
    label = int(draw.integers(4))
    endings.insert(label, " ".join(words))
    yield {"activity_label": "Passage", "ctx_a": begin + stop.strip(), "ctx_b": "", "endings": endings, "label": label}


def questions() -> list[tuple[str, int]]:
    """What things cost, in several wordings, in an order without meaning. Nothing but training tells the prices."""
    draw = np.random.default_rng(0)
    prices = dict(zip(THINGS, draw.permutation(np.arange(10, 100)).tolist(), strict=False))
    asked = {
        wording.format(who=who, what=what): price
        for wording, who, (what, price) in product(WORDINGS, NAMES, prices.items())
    }
    texts = list(asked)
    return [(texts[i], asked[texts[i]]) for i in draw.permutation(len(texts))]


def make_tokenizer(texts: list[str]) -> Any:
    """Byte pairs, digits one by one."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=WORDS,
        special_tokens=[PAD, USER, ASSISTANT, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    fast: Any = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, pad_token=PAD)
    fast.chat_template = TEMPLATE
    return fast


def train(size: str, stream: torch.Tensor, batch: int, tokenizer: Any, kept: Path) -> LlamaForCausalLM:
    """Reads the tokens, `batch` windows a step: AdamW, cosine to a tenth after a warm-up. What has been learned is kept
    in the file `kept` now and then, and an interrupted training goes on with it to the same weights.
    """
    width, layers, heads = SHAPES[size]
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=WORDS,
        hidden_size=width,
        intermediate_size=width * 8 // 3,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), RATES[size], betas=(0.9, 0.95), weight_decay=0.1)
    batches = stream[: len(stream) // (LENGTH * batch) * LENGTH * batch].view(-1, batch, LENGTH)
    begin, first = time.monotonic(), 0
    if kept.is_file():
        state = torch.load(kept, weights_only=True)
        first = state["step"]
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
    for step in range(first, len(batches)):
        done = step / len(batches)
        for group in optimizer.param_groups:
            group["lr"] = RATES[size] * min(step / 30, 0.55 + 0.45 * math.cos(math.pi * done), 1.0)
        loss: Any = model(input_ids=batches[step], labels=batches[step]).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if (step + 1) % KEPT_EVERY == 0:
            state = {"step": step + 1, "model": model.state_dict(), "optimizer": optimizer.state_dict()}
            atomic_write(kept, lambda file, state=state: torch.save(state, file))
        if step % 50 == 0 or step + 1 == len(batches):
            print(
                f"{size} {step} of {len(batches)}: {loss.item():.3f} nats, {time.monotonic() - begin:.0f} s", flush=True
            )
    print(f"{size}: {sum(p.numel() for p in model.parameters()):,} parameters")
    return model


def save(folder: Path, model: LlamaForCausalLM, tokenizer: Any) -> None:
    """As transformers reads it."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def lines(path: Path, rows: list[dict[str, Any]]) -> None:
    """A JSON-lines file."""
    atomic_write(path, "".join(json.dumps(row) + "\n" for row in rows).encode())


if __name__ == "__main__":
    main()
