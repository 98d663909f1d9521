"""Forward KL of a language model from its base: against full logits in float64, through adapters, caches and damage."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import Qwen2Config, Qwen2ForCausalLM

from tests.llm.support import small_data, small_model
from vla_razor.core import divergence
from vla_razor.errors import RunFailed, UserError
from vla_razor.llm import probe_set, tasks
from vla_razor.llm.models import LanguageModel, model_key, open_model
from vla_razor.llm.probe_set import ProbeSet
from vla_razor.llm.sampling import prompt_ids, sample
from vla_razor.llm.tasks import Example


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> list[Example]:
    folder = small_data(tmp_path_factory.mktemp("data"))
    return tasks.subset(tasks.open_task("science").load(folder, direct=True).train, 5)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    return open_model(small_model(tmp_path_factory.mktemp("base")))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLA_RAZOR_CACHE", str(tmp_path / "cache"))


def probed(language: LanguageModel, examples: list[Example]) -> ProbeSet:
    return probe_set.obtain(language, "science", examples, max_new_tokens=6, seed=0, batch_size=2)


def moved(language: LanguageModel, by: float) -> LanguageModel:
    folder_model = type(language.model)(language.model.config)
    folder_model.load_state_dict(language.model.state_dict())
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in folder_model.parameters():
            parameter += by * torch.randn(parameter.shape, generator=generator)
    return language._replace(model=folder_model.eval())


def test_completions_are_the_same_in_any_batch_when_greedy(base: LanguageModel, examples: list[Example]) -> None:
    def greedy(batch_size: int) -> list:
        return sample(base, examples, temperature=0.0, max_new_tokens=6, seed=0, batch_size=batch_size)

    assert greedy(1) == greedy(3) == greedy(5)


def test_completions_end_with_the_end_token_and_leave_the_global_generator_alone(
    base: LanguageModel, examples: list[Example]
) -> None:
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    found = sample(base, examples * 20, temperature=1.0, max_new_tokens=30, seed=0, batch_size=10)
    assert torch.equal(before, torch.random.get_rng_state())
    end = base.tokenizer.eos_token_id
    assert all(end not in one.tokens[:-1] and 1 <= len(one.tokens) <= 30 for one in found)
    assert any(one.tokens[-1] == end for one in found)
    assert all("<|im_end|>" not in one.text for one in found)
    again = sample(base, examples * 20, temperature=1.0, max_new_tokens=30, seed=0, batch_size=10)
    assert found == again != sample(base, examples * 20, temperature=1.0, max_new_tokens=30, seed=1, batch_size=10)


def test_sampling_follows_the_models_whole_distribution(base: LanguageModel, examples: list[Example]) -> None:
    """The first token's frequencies against its probabilities: neither top-k nor top-p nor a penalty is at work."""
    found = sample(base, examples[:1] * 4000, temperature=1.0, max_new_tokens=1, seed=3, batch_size=500)
    counts = torch.bincount(torch.tensor([one.tokens[0] for one in found]), minlength=320) / 4000
    with torch.no_grad():
        wanted = base.model(torch.tensor([prompt_ids(base, examples[0])])).logits[0, -1].softmax(-1)
    assert float((counts - wanted).abs().sum() / 2) < 2 * (320 / 4000) ** 0.5 / 2


@pytest.mark.parametrize("by", [0.0, 1e-3, 0.05])
def test_forward_kl_is_that_of_full_logits(base: LanguageModel, examples: list[Example], by: float) -> None:
    probe, tuned = probed(base, examples), moved(base, by)
    expected: list[torch.Tensor] = []
    for tokens, prompt in probe.sequences():
        with torch.no_grad():
            logits = [one.model.double()(torch.tensor([tokens])).logits[0, prompt - 1 : -1] for one in (base, tuned)]
        expected.append(divergence.forward_kl(*logits))
    base.model.float()
    tuned.model.float()
    found = probe_set.measure(tuned, probe, 2)
    sums = torch.stack([part.sum() for part in expected])
    assert found["per_token"] == pytest.approx(float(torch.cat(expected).mean()), rel=1e-3, abs=1e-12)
    assert found["per_completion"] == pytest.approx(float(sums.mean()), rel=1e-3, abs=1e-12)
    assert found["tokens"] == len(torch.cat(expected)) and found["completions"] == 5
    assert found["per_completion_standard_error"] == pytest.approx(float(sums.std() / 5**0.5), rel=1e-3, abs=1e-12)


def test_batches_do_not_matter(base: LanguageModel, examples: list[Example]) -> None:
    probe, tuned = probed(base, examples), moved(base, 0.05)
    one, five = probe_set.measure(tuned, probe, 1), probe_set.measure(tuned, probe, 5)
    assert one == pytest.approx(five, rel=1e-4)


def test_the_base_of_an_adapter_is_the_model_below_it(base: LanguageModel, examples: list[Example]) -> None:
    probe = probed(base, examples)
    copied = moved(base, 0.0)
    torch.manual_seed(0)
    adapted: LanguageModel = copied._replace(model=get_peft_model(copied.model, LoraConfig(init_lora_weights=False)))
    adapted.model.eval()
    below = probed(adapted, examples)
    assert below.origin == probe.origin
    assert probe_set.measure(adapted, below, 2)["per_token"] > 1e-3
    with adapted.base():
        assert probe_set.measure(adapted, below, 2)["per_token"] == pytest.approx(0, abs=1e-9)


def test_it_is_made_once_for_a_base(base: LanguageModel, examples: list[Example]) -> None:
    first = probed(base, examples)
    batches: list[None] = []
    settings = {"max_new_tokens": 6, "seed": 0, "batch_size": 2}
    again = probe_set.obtain(base, "science", examples, **settings, done=lambda: batches.append(None))
    assert not batches and torch.equal(first.hidden, again.hidden) and torch.equal(first.tokens, again.tokens)
    other = moved(base, 1e-3)
    assert model_key(other.model) != model_key(base.model)
    probe_set.obtain(other, "science", examples, **settings, done=lambda: batches.append(None))
    assert len(batches) == 3


def test_a_damaged_one_is_named(base: LanguageModel, examples: list[Example]) -> None:
    probe = probed(base, examples)
    file = probe_set.cache_folder() / probe.origin.key / "probe.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(
        UserError, match=rf"{probe.origin.key}/probe\.safetensors is damaged.* Delete .*{probe.origin.key} to make it"
    ):
        probed(base, examples)


def test_another_vocabulary_is_refused(base: LanguageModel, examples: list[Example], tmp_path: Path) -> None:
    probe, padded = probed(base, examples), open_model(small_model(tmp_path / "padded", words=384))
    with pytest.raises(
        UserError, match="a vocabulary of 384 words, padding included, where the probe set's base has 320"
    ):
        probe_set.measure(padded, probe, 2)


def test_a_model_that_has_diverged_is_refused(base: LanguageModel, examples: list[Example]) -> None:
    probe, tuned = probed(base, examples), moved(base, 0.0)
    with torch.no_grad():
        tuned.model.model.norm.weight[0] = float("nan")
    with pytest.raises(RunFailed, match="not finite"):
        probe_set.measure(tuned, probe, 2)


def test_a_prompt_beyond_the_context_is_refused(base: LanguageModel, examples: list[Example]) -> None:
    with pytest.raises(UserError, match="its context holds 4096 tokens; the longest prompt has"):
        sample(base, examples, temperature=0.0, max_new_tokens=4090, seed=0, batch_size=1)


def test_models_that_do_not_fit_are_named(tmp_path: Path, base: LanguageModel) -> None:
    with pytest.raises(UserError, match="no chat template"):
        open_model(small_model(tmp_path / "bare", template=None))
    with pytest.raises(UserError, match="the tokenizer has 277 tokens, the model only 200"):
        open_model(small_model(tmp_path / "short", words=200))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no tokenizer could be loaded"):
        open_model(tmp_path / "empty")


def test_an_adapter_for_another_base_is_refused(tmp_path: Path, base: LanguageModel) -> None:
    copied = moved(base, 0.0)
    folder = tmp_path / "adapter"
    get_peft_model(copied.model, LoraConfig(target_modules="all-linear")).save_pretrained(str(folder))
    copied.tokenizer.save_pretrained(folder)
    wide = small_model(tmp_path / "wide")
    config = (wide / "config.json").read_text().replace('"intermediate_size": 64', '"intermediate_size": 96')
    (wide / "config.json").write_text(config)
    Qwen2ForCausalLM(Qwen2Config.from_pretrained(wide)).save_pretrained(wide)
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": str(wide)}))
    with pytest.raises(UserError, match="the adapter is for another base"):
        open_model(folder)


SHARDED = """
import sys
from pathlib import Path
import torch
from torch import distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from accelerate import Accelerator
from vla_razor.llm import probe_set
from vla_razor.llm.models import open_model

folder = Path(sys.argv[1])
dist.init_process_group("gloo")
probe, language = probe_set.load(folder / "probe"), open_model(folder / "tuned")
whole = probe_set.measure(language, probe, 4)
mesh = init_device_mesh("cpu", (2,))
for layer in language.model.model.layers:
    fully_shard(layer, mesh=mesh)
fully_shard(language.model, mesh=mesh)
assert all(isinstance(parameter, DTensor) for parameter in language.model.parameters())
Accelerator(mixed_precision="bf16").prepare_model(language.model, device_placement=False, evaluation_mode=True)
shared = probe_set.measure(language, probe, 4)
assert whole["per_token"] > 0
assert all(abs(shared[name] - value) <= 1e-6 * abs(value) for name, value in whole.items()), (whole, shared)
print("same" if dist.get_rank() == 0 else "", flush=True)
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_a_model_shared_by_two_processes_is_measured_as_a_whole_one(tmp_path: Path) -> None:
    """FSDP2 on a CPU: weights are gathered where they are needed."""
    base, tuned = open_model(small_model(tmp_path / "base")), open_model(small_model(tmp_path / "other", seed=1))
    examples = [Example(f"What is {n}?", "", "", str(n)) for n in range(3)]
    made = probe_set.obtain(base, "science", examples, max_new_tokens=4, seed=0, batch_size=4)
    probe_set.save(tmp_path / "probe", made)
    tuned.model.save_pretrained(tmp_path / "tuned")
    tuned.tokenizer.save_pretrained(tmp_path / "tuned")
    (tmp_path / "sharded.py").write_text(SHARDED)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, str(tmp_path / "sharded.py"), str(tmp_path)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0 and "same" in done.stdout, done.stderr
