"""Low-rank adapters: where they sit, that the base is recovered, and that their files are peft's."""

import json

import pytest
import torch
from peft import LoraConfig, PeftModel
from safetensors.torch import load, load_file, save_file
from torch import nn

from vla_razor.errors import UserError
from vla_razor.policies.openvla import OpenVLA, lora


def _adapted(model: OpenVLA, seed: int = 0) -> OpenVLA:
    """With adapters that are not zero, as training leaves them."""
    generator = torch.Generator().manual_seed(seed)
    model.add_lora(4, 8, generator=generator)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.05, generator=generator)
    return model


def test_adapters_sit_on_every_linear_layer_that_is_run(fresh_model, reference):
    ran: set[str] = set()
    for name, module in fresh_model.named_modules():
        if isinstance(module, nn.Linear):
            module.register_forward_pre_hook(lambda *_, name=name: ran.add(name))
    fresh_model.supervised_loss(reference.pixels, reference.prompts, reference.tokens)
    fresh_model.add_lora()
    adapted = {name for name, module in fresh_model.named_modules() if lora.is_adapted(module)}
    assert adapted == ran
    trainable = [name for name, p in fresh_model.named_parameters() if p.requires_grad]
    assert trainable
    assert all("lora_" in name for name in trainable)


def test_every_adapter_learns(fresh_model, reference):
    _adapted(fresh_model)
    fresh_model.action_logits(reference.pixels, reference.prompts, reference.tokens).logsumexp(-1).sum().backward()
    for name, parameter in fresh_model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert parameter.grad.abs().sum() > 0, name


def test_a_new_adapter_changes_nothing_and_the_base_comes_back(fresh_model, reference):
    def logits() -> torch.Tensor:
        with torch.no_grad():
            return fresh_model.action_logits(reference.pixels, reference.prompts, reference.tokens)

    before, fingerprint = logits(), fresh_model.fingerprint()
    fresh_model.add_lora(generator=torch.Generator().manual_seed(0))
    assert torch.equal(logits(), before)
    for name, parameter in fresh_model.named_parameters():
        if "lora_B" in name:
            parameter.data.fill_(0.01)
    tuned = logits()
    assert (tuned - before).abs().max() > 0.1
    assert fresh_model.fingerprint() != fingerprint
    with fresh_model.adapter_disabled():
        assert torch.equal(logits(), before)
        assert fresh_model.fingerprint() == fingerprint
        with fresh_model.adapter_disabled():
            pass
        assert torch.equal(logits(), before)
    assert torch.equal(logits(), tuned)


def test_what_was_frozen_stays_so_when_the_base_has_been_used(fresh_model):
    _adapted(fresh_model)
    vision = [p for n, p in fresh_model.named_parameters() if "lora_" in n and "vision_backbone." in n]
    for parameter in vision:
        parameter.requires_grad_(False)
    before = [parameter.requires_grad for parameter in fresh_model.parameters()]
    with fresh_model.adapter_disabled(), fresh_model.adapter_disabled():
        assert not any(parameter.requires_grad for parameter in fresh_model.parameters())
    assert vision
    assert [parameter.requires_grad for parameter in fresh_model.parameters()] == before


def test_sampling_and_forcing_agree_under_an_adapter(fresh_model, reference):
    _adapted(fresh_model)
    samples = fresh_model.sample_actions(reference.pixels, reference.prompts, 1.0, torch.Generator().manual_seed(0))
    with torch.no_grad():
        forced = fresh_model.action_logits(reference.pixels, reference.prompts, samples.tokens)
        hidden = fresh_model.predicting_hidden(reference.pixels, reference.prompts, samples.tokens)
        whole_head = fresh_model.language_model.lm_head(hidden)[..., 31744:32000]
    assert (forced - samples.logits).abs().max() <= 2e-5
    torch.testing.assert_close(forced, whole_head, atol=1e-5, rtol=1e-5)


def test_the_generator_decides(reference):
    first, second, other = (
        OpenVLA.from_pretrained(reference.folder).add_lora(2, generator=torch.Generator().manual_seed(s))
        for s in (0, 0, 1)
    )
    assert first.fingerprint() == second.fingerprint() != other.fingerprint()


def test_saving_and_loading(reference, fresh_model, tmp_path):
    tuned = _adapted(fresh_model)
    tuned.save_pretrained(tmp_path / "adapter")
    files = {"adapter_config.json", "adapter_model.safetensors", "policy.json", "SHA256SUMS"}
    assert {p.name for p in (tmp_path / "adapter").iterdir()} == files
    config = json.loads((tmp_path / "adapter/adapter_config.json").read_text())
    assert (config["peft_type"], config["r"], config["lora_alpha"]) == ("LORA", 4, 8)
    assert config["base_model_name_or_path"] == str(reference.folder)
    keys = load_file(tmp_path / "adapter/adapter_model.safetensors").keys()
    assert "base_model.model.language_model.model.layers.0.self_attn.q_proj.lora_A.weight" in keys

    again = OpenVLA.from_pretrained(reference.folder).load_lora(tmp_path / "adapter")
    assert again.fingerprint() == tuned.fingerprint()
    assert [p.requires_grad for p in again.parameters()] == [p.requires_grad for p in tuned.parameters()]


def test_peft_reads_what_is_saved(reference, fresh_model, tmp_path):
    tuned = _adapted(fresh_model)
    tuned.save_pretrained(tmp_path / "adapter")
    base = OpenVLA.from_pretrained(reference.folder)
    PeftModel.from_pretrained(base, tmp_path / "adapter")  # wraps the base's layers in place
    with torch.no_grad():
        logits, expected = (
            m.action_logits(reference.pixels, reference.prompts, reference.tokens) for m in (base, tuned)
        )
    assert torch.equal(logits, expected)


def test_the_policys_temperature_and_prompt_are_kept(reference, fresh_model, tmp_path):
    tuned = _adapted(fresh_model)
    tuned.config.temperature, tuned.config.prompt = 0.7, "bare"
    tuned.save_pretrained(tmp_path / "adapter")
    base = OpenVLA.from_pretrained(reference.folder)
    assert (base.config.temperature, base.config.prompt) == (1.0, "template")
    again = base.load_lora(tmp_path / "adapter")
    assert (again.config.temperature, again.config.prompt) == (0.7, "bare")
    assert again.fingerprint() == tuned.fingerprint()
    with again.adapter_disabled(), tuned.adapter_disabled():
        assert again.fingerprint() == tuned.fingerprint(), "the base that it is measured against is at 0.7 too"

    wrapped = PeftModel.from_pretrained(OpenVLA.from_pretrained(reference.folder), tmp_path / "adapter")
    wrapped.save_pretrained(tmp_path / "peft", save_embedding_layers=False)
    assert not (tmp_path / "peft/policy.json").exists()
    assert OpenVLA.from_pretrained(reference.folder).load_lora(tmp_path / "peft").config.temperature == 1.0


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not valid JSON"),
        ('{"temperature": 1.0}', "expected temperature and prompt"),
        ('{"temperature": "warm", "prompt": "bare"}', "expected temperature and prompt"),
        ('{"temperature": 0, "prompt": "bare"}', "a policy's temperature is above 0"),
        ('{"temperature": 1, "prompt": "rude"}', "unknown prompt 'rude'"),
    ],
)
def test_settings_beside_an_adapter_that_are_none(reference, fresh_model, tmp_path, content, message):
    _adapted(fresh_model).save_pretrained(tmp_path / "a")
    (tmp_path / "a/policy.json").write_text(content)
    with pytest.raises(UserError, match=rf"policy\.json: .*{message}"):
        OpenVLA.from_pretrained(reference.folder).load_lora(tmp_path / "a")


def test_merging(reference, fresh_model, tmp_path):
    _adapted(fresh_model)
    with torch.no_grad():
        before = fresh_model.action_logits(reference.pixels, reference.prompts, reference.tokens)
        fresh_model.merge_lora()
        after = fresh_model.action_logits(reference.pixels, reference.prompts, reference.tokens)
    assert (after - before).abs().max() <= 1e-4
    assert not fresh_model.has_adapter
    fresh_model.save_pretrained(tmp_path / "merged")
    original = load_file(reference.folder / "model.safetensors")
    assert load_file(tmp_path / "merged/model.safetensors").keys() == original.keys()
    fresh_model.add_lora()  # and one may begin again


def test_an_adapter_of_the_references_layout(fresh_model, reference, tmp_path):
    """The original code also adapts the patch embeddings and vision layers that never run."""
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head", "qkv", "proj"]
    lora.add(fresh_model, LoraConfig(r=2, lora_alpha=2, target_modules=[*targets, "fc1", "fc2", "fc3", "q", "kv"]))
    for name, parameter in fresh_model.named_parameters():
        if "lora_B" in name:
            parameter.data.fill_(0.02)
    fresh_model.save_pretrained(tmp_path / "adapter")
    keys = load_file(tmp_path / "adapter/adapter_model.safetensors").keys()
    assert "base_model.model.vision_backbone.featurizer.patch_embed.proj.lora_A.weight" in keys
    again = OpenVLA.from_pretrained(reference.folder).load_lora(tmp_path / "adapter")
    samples, expected = (m.sample_actions(reference.pixels, reference.prompts) for m in (again, fresh_model))
    assert torch.equal(samples.logits, expected.logits)


def test_the_real_models_adapters(real_model):
    """The reference's 110.8M, less 1.7M in vision layers that never run and the patch embeddings (no linear layers)."""
    with torch.device("meta"):
        lora.add(real_model, lora.configuration(32, 16, [24, 27]))
    count = sum(p.numel() for n, p in real_model.named_parameters() if "lora_" in n)
    idle, patch_embeddings = 1_701_888, 107_264
    assert count == 109_019_136 == 110_828_288 - idle - patch_embeddings


def test_two_adapters_are_refused(fresh_model):
    fresh_model.add_lora(2)
    with pytest.raises(ValueError, match="already"):
        fresh_model.add_lora(2)


def test_adapters_that_do_not_fit(reference, fresh_model, tmp_path):
    _adapted(fresh_model).save_pretrained(tmp_path / "a")
    fresh = OpenVLA.from_pretrained(reference.folder)
    weights = tmp_path / "a/adapter_model.safetensors"
    whole = weights.read_bytes()

    weights.write_bytes(whole[:-10])
    with pytest.raises(UserError, match="damaged"):
        fresh.load_lora(tmp_path / "a")
    tensors = load(whole)
    tensors.pop(next(iter(tensors)))
    save_file(tensors, weights)
    with pytest.raises(UserError, match="does not fit"):
        fresh.load_lora(tmp_path / "a")
    weights.unlink()
    with pytest.raises(UserError, match="adapter_model"):
        OpenVLA.from_pretrained(reference.folder).load_lora(tmp_path / "a")
    (tmp_path / "a/adapter_config.json").write_text('{"peft_type": "IA3"}')
    with pytest.raises(UserError, match="LoRA"):
        OpenVLA.from_pretrained(reference.folder).load_lora(tmp_path / "a")
    (tmp_path / "a/adapter_config.json").write_text("{")
    with pytest.raises(UserError, match="adapter_config"):
        OpenVLA.from_pretrained(reference.folder).load_lora(tmp_path / "a")
