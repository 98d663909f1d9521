"""`dry_run=true` of a language model's training: the numbers against measured ones and published ones."""

from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from tests.llm.support import small_model
from tests.verbs.support import peak_of
from vla_razor import cli
from vla_razor.config import compose
from vla_razor.llm.models import open_model
from vla_razor.verbs.planning import language as llm_plan

PARAMETERS = {"3B": 3_085_938_688, "7B": 7_615_616_512, "14B": 14_770_033_664}
"""Of Qwen2.5-*-Instruct, as their safetensors have them."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_model(tmp_path_factory.mktemp("model"), words=4096)


@pytest.mark.parametrize("verb", ["llm_sft", "llm_grpo", "llm_simpo"])
@pytest.mark.parametrize("checkpointing", ["true", "false"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_memory_of_an_update_is_what_is_measured(verb: str, checkpointing: str, dtype: str, model: Path) -> None:
    words = [f"model={model}", f"dtype={dtype}", "device=cpu", "max_new_tokens=64"]
    config = compose(verb, [*words, f"gradient_checkpointing={checkpointing}"])
    planned = llm_plan.footprint(llm_plan.model_of(config), config)
    real: Any = open_model(model, dtype=dtype, learning=True).model.train()
    if checkpointing == "true":
        real.activation_checkpointing_enable({"use_reentrant": False})
    for parameter in real.parameters():
        parameter.grad = torch.zeros_like(parameter)
    assert planned.parameters == planned.trainable == sum(p.numel() for p in real.parameters())
    assert planned.weights == planned.gradients == planned.optimizer / 2 == 4 * planned.parameters
    if dtype == "bfloat16":  # as accelerate has it
        real.forward = torch.autocast("cpu", torch.bfloat16, cache_enabled=False)(real.forward)
    update = {"llm_sft": llm_plan.cross_entropy, "llm_simpo": llm_plan.pair}.get(verb, llm_plan.sampled)
    length = llm_plan.PROMPT_TOKENS + 64
    update(real, 1, length)()
    for batch in (2, 6):
        measured = peak_of(update(real, batch, length))
        # Under a mode, gradients that meet are added out of place: one more of the logits than there really is.
        assert 0.9 < planned.activations.at(batch) / measured < 1.35


@pytest.mark.parametrize("size", PARAMETERS)
def test_the_papers_models(size: str) -> None:
    config = compose("llm_sft", [f"model=Qwen/Qwen2.5-{size}-Instruct", "device=h100"])
    takes = llm_plan.footprint(llm_plan.model_of(config), config)
    assert takes.parameters == PARAMETERS[size]
    assert takes.weights == takes.gradients == takes.optimizer / 2 == 4 * takes.parameters
    shared = [takes.held(devices) - takes.gathered for devices in (2, 4, 8)]
    assert shared == [pytest.approx(4 * takes.weights / devices) for devices in (2, 4, 8)]
    assert takes.largest_micro_batch(80 * 2**30, 8) > takes.largest_micro_batch(80 * 2**30, 4)
    forward_and_backward = 6 * takes.parameters * (llm_plan.PROMPT_TOKENS + config.max_new_tokens)
    assert forward_and_backward < takes.update_flop < 1.5 * forward_and_backward  # checkpointing goes forward twice


def test_an_adapter_trains_little_and_a_penalty_keeps_the_base() -> None:
    whole, adapted, penalised = (
        llm_plan.footprint(llm_plan.model_of(config), config)
        for config in (
            compose("llm_grpo", []),
            compose("llm_grpo", ["lora_rank=32"]),
            compose("llm_grpo", ["kl_coefficient=0.1"]),
        )
    )
    assert adapted.trainable / adapted.parameters < 0.03 and adapted.parameters > whole.parameters
    assert adapted.gradients == adapted.optimizer / 2 == 4 * adapted.trainable
    assert adapted.weights == 4 * adapted.trainable + 2 * (adapted.parameters - adapted.trainable)
    assert penalised.base == whole.weights and whole.base == adapted.base == 0
    assert adapted.held() < whole.held() / 3 < penalised.held() / 3


@pytest.mark.parametrize("verb", ["sft", "grpo", "reinforce", "simpo"])
def test_it_prints_the_plan_and_starts_nothing(verb: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(cli.app, ["llm", verb, "--dry-run", "--experiment", "paper_llm", "--device", "a100-80"])
    assert result.exit_code == 0, result.output
    assert "3,085,938,688" in result.output and "Nothing was started." in result.output
    sequences = {"sft": 32, "simpo": 64, "grpo": 512, "reinforce": 512}[verb]
    assert f"{sequences * (llm_plan.PROMPT_TOKENS + 2048):,} tokens" in result.output
    assert not list(tmp_path.iterdir())


def test_an_unknown_model_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    result = CliRunner().invoke(cli.app, ["llm", "sft", "--dry-run", "--model", "no/such-model"])
    assert result.exit_code == 2 and "no/such-model" in result.stderr
