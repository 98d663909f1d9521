"""Representations of paragraphs and changes of weights, against what they must be for known changes."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import Qwen2ForCausalLM
from typer.testing import CliRunner

from tests.llm.support import small_model
from vla_razor import cli
from vla_razor.errors import UserError
from vla_razor.llm import representations
from vla_razor.llm.models import LanguageModel, open_model

COUNT = 30


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "boolq"
    folder.mkdir()
    words = ["river", "steel", "moon", "bread", "king", "seven", "cold", "sings"]
    texts = [" ".join(words[(n * 7 + m * m + n * m) % 8] for m in range(60)) + f" {n}" for n in range(COUNT)]
    rows = [{"query": f"Passage: {text}\nQuestion: is it?\nAnswer:"} for text in (*texts, texts[0], "short")]
    (folder / "passages.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder.parent


@pytest.fixture
def base(tmp_path: Path) -> LanguageModel:
    return open_model(small_model(tmp_path / "base"))


def matrices(weights: dict[str, torch.Tensor]) -> int:
    return sum(weight.ndim == 2 for weight in weights.values())


def test_paragraphs_are_distinct_and_without_their_questions(data: Path) -> None:
    found = representations.paragraphs(data, COUNT)
    assert len(set(found)) == COUNT
    assert all("Question" not in text and not text.startswith("Passage") for text in found)
    with pytest.raises(UserError, match="only 30 were found"):
        representations.paragraphs(data, COUNT + 1)


def test_padding_does_not_matter(base: LanguageModel, data: Path) -> None:
    texts = [text[: 100 + 9 * n] for n, text in enumerate(representations.paragraphs(data, COUNT))]
    one, eight = (representations.represent(base, texts, max_length=64, batch_size=size) for size in (1, 8))
    torch.testing.assert_close(one, eight, rtol=1e-4, atol=1e-5)
    ids = torch.tensor([base.tokenizer(texts[3])["input_ids"][:64]])
    with torch.no_grad():
        states = base.model(ids, output_hidden_states=True).hidden_states[-1]
    torch.testing.assert_close(one[3], states[0].mean(0), rtol=1e-4, atol=1e-5)


def test_a_model_is_like_itself_and_less_like_a_changed_one(base: LanguageModel, data: Path) -> None:
    texts = representations.paragraphs(data, COUNT)
    own = representations.represent(base, texts, max_length=64, batch_size=8)
    other: Any = Qwen2ForCausalLM(base.model.config)
    changed = representations.represent(base._replace(model=other), texts, max_length=64, batch_size=8)
    same, different = representations.compare(own, own), representations.compare(own, changed)
    assert same == pytest.approx({"cka": 1, "cka_unbiased": 1, "cknna": 1})
    assert different["cknna"] < 0.95


def test_a_rank_one_change_of_one_matrix(base: LanguageModel) -> None:
    before = {name: weight.clone() for name, weight in representations.weights_of(base).items()}
    name = "model.layers.0.mlp.up_proj.weight"
    after = dict(before)
    step = torch.outer(torch.ones(64), torch.ones(32))
    after[name] = before[name] + 0.5 * step
    found = representations.changes(before, after)
    total = sum(weight.numel() for weight in before.values())
    assert found["weight_l1"] == pytest.approx(0.5 * 64 * 32, rel=1e-4)
    assert found["weight_spectral"] == pytest.approx(0.5 * (64 * 32) ** 0.5, rel=1e-4)
    assert found["weight_sparsity"] == pytest.approx(1 - 64 * 32 / total)
    count = matrices(before)
    assert found["weight_rank"] == pytest.approx(1 / 32 / count)
    after[name] = before[name] * (1 + 1e-5)
    sparsity, rounded = map(representations.changes(before, after).get, ("weight_sparsity", "weight_sparsity_bfloat16"))
    assert sparsity is not None and rounded is not None and sparsity < rounded


def test_an_adapter_is_compared_as_the_model_it_makes(base: LanguageModel, data: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = LoraConfig(r=2, target_modules=["up_proj"], init_lora_weights=False)
    adapted: Any = get_peft_model(open_model(base.name).model, config)
    adapted.save_pretrained(tmp_path / "adapter")
    base.tokenizer.save_pretrained(tmp_path / "adapter")
    out = tmp_path / "run"
    words = [f"model={tmp_path / 'adapter'}", f"base={base.name}", f"data_dir={data}", f"paragraphs={COUNT}"]
    arguments = ["llm", "probe", *words, "dtype=float32", "device=cpu", "logger=none", f"out={out}"]
    result = CliRunner().invoke(cli.app, arguments)
    assert result.exit_code == 0, result.output + str(result.exception)
    found = json.loads((out / "summary.json").read_text())["representations"]
    assert found["cknna"] < 1 and found["weight_sparsity"] > 0.5
    count = matrices(representations.weights_of(base))
    assert found["weight_rank"] == pytest.approx(2 * (2 / 32) / count, rel=1e-6)


def test_models_of_other_shapes_are_refused(base: LanguageModel, tmp_path: Path) -> None:
    other = open_model(small_model(tmp_path / "other", words=384))
    with pytest.raises(UserError, match="two shapes"):
        representations.changes(representations.weights_of(base), representations.weights_of(other))
