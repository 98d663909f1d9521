"""A random language model of a few thousand parameters, with a tokenizer and a chat format, in a folder of its own."""

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
QWEN_WORDS = 151_936
"""Rows of Qwen2.5's embedding matrices, padding included."""


def small_model(folder: Path, seed: int = 0, words: int = 320, template: str | None = TEMPLATE) -> Path:
    """A Qwen2 of random weights, with a byte-level tokenizer of 277 tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<pad>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=special, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(["Answer: A", "Answer: B", "user", "assistant"] * 10, trainer)
    fast: Any = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<pad>")
    fast.chat_template = template
    fast.save_pretrained(folder)
    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=words,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        eos_token_id=fast.eos_token_id,
        pad_token_id=fast.pad_token_id,
    )
    Qwen2ForCausalLM(config).save_pretrained(folder)
    return folder


def small_data(folder: Path) -> Path:
    """A few rows of each task, in the published formats."""
    for name in (
        "sciknoweval_chemistry_l3",
        "toolalpaca",
        "open_reasoner_zero",
        "gsm8k",
        "math",
        "winogrande",
        "number",
    ):
        (folder / name).mkdir(parents=True)
    choices = {"label": ["A", "B"], "text": ["heavy", "light"]}
    rows = [
        {"question": f"Is {n} heavy?", "type": "mcq-4-choices", "answerKey": "AB"[n % 2], "choices": choices}
        for n in range(60)
    ]
    _lines(folder / "sciknoweval_chemistry_l3" / "some.jsonl", rows)
    sentences = [{"context_options": [f"A {n}", f"B {n}"], "continuation": "it is.", "gold": n % 2} for n in range(6)]
    _lines(folder / "winogrande" / "winogrande.jsonl", sentences)
    _lines(folder / "gsm8k" / "train.jsonl", [{"question": f"{n} + 1?", "answer": f"#### {n + 1}"} for n in range(20)])
    _lines(folder / "math" / "math_foundry.jsonl", [{"context": f"{n} - 1?", "answer": f"{n - 1}"} for n in range(20)])
    tests = [{"prompt": [{"from": "user", "value": f"{n} * 2?"}], "final_answer": str(2 * n)} for n in range(8)]
    (folder / "open_reasoner_zero" / "math500.json").write_text(json.dumps(tests))
    conditions = [
        {"above": above, "below": above + 20, "divisor": 2, "remainder": rest}
        for above in range(10, 80, 10)
        for rest in (0, 1)
    ]
    asked = [{"question": f"Number {n}?", **condition} for n, condition in enumerate(conditions)]
    _lines(folder / "number" / "questions.jsonl", asked)
    apis = [
        {
            "Name": name,
            "NLDocumentation": "look: looks.",
            "Instructions": [f"Look at {n}." for n in range(10)],
            "Golden_Answers": [[{"Action": "look", "Action_Input": json.dumps({"at": n})}] for n in range(10)],
        }
        for name in ("Axolotl", "AbuseIPDB")
    ]
    (folder / "toolalpaca" / "eval_simulated.json").write_text(json.dumps(apis))
    (folder / "toolalpaca" / "eval_real.json").write_text("[]")
    return folder


def _lines(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
