"""Reading and writing checkpoint folders, and what is said of those that cannot be read."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from vla_razor.errors import UserError
from vla_razor.policies.openvla import OpenVLA, OpenVLAConfig, Processor, checkpoint


@pytest.fixture
def folder(reference, tmp_path) -> Path:
    """A writable copy of the fixture's checkpoint."""
    names = ("config.json", "preprocessor_config.json", "model.safetensors")
    for name in names:
        shutil.copy(reference.folder / name, tmp_path / name)
    return tmp_path


def _edit(folder: Path, **changes) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def _edit_weights(folder: Path, change) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


# Round trips


def test_a_round_trip_keeps_keys_bits_and_outputs(reference, tmp_path):
    model = OpenVLA.from_pretrained(reference.folder, dtype=torch.bfloat16)
    model.save_pretrained(tmp_path / "saved")
    original, saved = (load_file(f / "model.safetensors") for f in (reference.folder, tmp_path / "saved"))
    assert original.keys() == saved.keys()
    assert all(torch.equal(original[key], saved[key]) for key in original)
    again = OpenVLA.from_pretrained(tmp_path / "saved")
    samples = again.sample_actions(reference.pixels, reference.prompts)
    assert torch.equal(samples.tokens, reference.tokens)
    assert (samples.logits - reference.logits).abs().max() <= 1e-4


def test_saving_keeps_what_the_config_said(reference, tmp_path):
    OpenVLA.from_pretrained(reference.folder).save_pretrained(tmp_path / "saved")
    original, saved = (json.loads((f / "config.json").read_text()) for f in (reference.folder, tmp_path / "saved"))
    assert saved.items() >= {k: v for k, v in original.items() if k != "torch_dtype"}.items()
    assert saved["torch_dtype"] == "float32"
    assert saved["temperature"] == 1.0


def test_shards(reference, tmp_path):
    OpenVLA.from_pretrained(reference.folder, dtype=torch.bfloat16).save_pretrained(
        tmp_path / "s", max_shard_size=2_100_000
    )
    shards = sorted((tmp_path / "s").glob("model-*.safetensors"))
    assert len(shards) >= 2
    samples = OpenVLA.from_pretrained(tmp_path / "s").sample_actions(reference.pixels, reference.prompts)
    assert torch.equal(samples.tokens, reference.tokens)

    shards[-1].unlink()
    with pytest.raises(UserError, match=shards[-1].name):
        OpenVLA.from_pretrained(tmp_path / "s")


def test_timms_own_name_for_layer_scale_is_read_too(folder, reference):
    def rename(tensors):
        for key in [k for k in tensors if k.endswith(".scale_factor")]:
            tensors[key.replace(".scale_factor", ".gamma")] = tensors.pop(key)

    _edit_weights(folder, rename)
    samples = OpenVLA.from_pretrained(folder).sample_actions(reference.pixels, reference.prompts)
    assert torch.equal(samples.tokens, reference.tokens)


def test_a_single_vision_stack(raw_config, reference, tmp_path):
    settings = json.loads((reference.folder / "preprocessor_config.json").read_text())
    for key in ("tvf_resize_params", "tvf_crop_params", "tvf_normalize_params"):
        settings[key] = settings[key][:1]
    raw_config |= {
        "vision_backbone_id": "dinov2-vit-l",
        "use_fused_vision_backbone": False,
        "timm_model_ids": ["tiny_vit_dino"],
        "image_sizes": [56],
        "timm_override_act_layers": [None],
    }
    config = OpenVLAConfig.from_dict(raw_config)
    model = OpenVLA.from_config(config, Processor(settings), torch.Generator().manual_seed(0))
    shapes = [tuple(layer.weight.shape) for layer in model.projector.children() if isinstance(layer, nn.Linear)]
    assert shapes == [(32, 32), (32, 32)]
    assert not any("fused" in key for key in model.stored_tensors())

    pixels = model.processor.pixel_values(reference.images)
    assert pixels.shape == (3, 3, 56, 56)
    samples = model.sample_actions(pixels, reference.prompts)
    model.save_pretrained(tmp_path / "single")
    again = OpenVLA.from_pretrained(tmp_path / "single").sample_actions(pixels, reference.prompts)
    assert torch.equal(samples.logits, again.logits)
    forced = model.action_logits(pixels, reference.prompts, samples.tokens)
    assert (forced - samples.logits).abs().max() <= 1e-5


def test_dataset_statistics_win(folder):
    assert set(OpenVLA.from_pretrained(folder).config.norm_stats) == {"arm4", "arm7", "nomask7"}
    mine = {"mine": {"action": {"q01": [0.0], "q99": [1.0]}}}
    (folder / "dataset_statistics.json").write_text(json.dumps(mine))
    assert OpenVLA.from_pretrained(folder).config.norm_stats == mine


def test_the_temperature_travels_with_the_checkpoint(fresh_model, tmp_path):
    assert fresh_model.config.temperature == 1.0
    fresh_model.config.temperature = 0.5
    fresh_model.save_pretrained(tmp_path / "cool")
    assert OpenVLA.from_pretrained(tmp_path / "cool").config.temperature == 0.5


# Numbers


def test_bfloat16_leaves_the_rotary_frequencies(reference):
    exact = OpenVLA.from_pretrained(reference.folder)
    frequencies = exact.language_model.model.rotary_emb.inv_freq.clone()
    moved = OpenVLA.from_pretrained(reference.folder).to(torch.bfloat16)
    for model in (OpenVLA.from_pretrained(reference.folder, dtype=torch.bfloat16), moved):
        assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
        assert torch.equal(model.language_model.model.rotary_emb.inv_freq, frequencies)
        samples = model.sample_actions(reference.pixels, reference.prompts)
        assert samples.logits.dtype == torch.float32
        # Activations of eight bits: far from exact, but nothing like the error of a wrong forward pass (9 to 14).
        assert (samples.logits[:, 0] - reference.logits[:, 0]).abs().mean() < 0.5


def test_fingerprints(reference, tmp_path):
    model, twin = (OpenVLA.from_pretrained(reference.folder) for _ in range(2))
    fingerprint = model.fingerprint()
    assert fingerprint == twin.fingerprint()
    assert len(fingerprint) == 64
    twin.config.temperature = 0.5
    assert twin.fingerprint() != fingerprint
    with torch.no_grad():
        model.get_parameter("projector.fc1.bias")[0] += 1
    assert model.fingerprint() != fingerprint


def test_the_real_models_size(real_model):
    """7,541,237,184 parameters."""
    counts = {name: sum(p.numel() for p in part.parameters()) for name, part in real_model.named_children()}
    assert counts == {"vision_backbone": 730_911_680, "projector": 71_385_600, "language_model": 6_738_939_904}
    assert real_model.vision_backbone.num_patches == 256
    assert real_model.config.trailing_token_id == 29871
    assert real_model.config.first_action_id == 31744
    assert {m.variance_epsilon for m in real_model.modules() if isinstance(m, LlamaRMSNorm)} == {1e-6}


# Bad input


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "llava"}, r"'llava', not 'openvla'"),
        ({"model_type": None}, "not 'openvla'"),
        ({"text_config": {"model_type": "mistral"}}, "'mistral'"),
        ({"vision_backbone_id": "dinosiglip-vit-so-225px"}, "Did you mean dinosiglip-vit-so-224px"),
        ({"timm_model_ids": ["tiny_vit_dino", "no_such_vit"]}, "no_such_vit"),
        ({"timm_model_ids": ["tiny_vit_dino", "hf-hub:someone/vit"]}, "fetched from elsewhere"),
        ({"timm_model_ids": ["tiny_vit_dino"]}, r"expected 2 vision stack"),
        ({"timm_model_ids": ["tiny_vit_dino", "resnet18"]}, "resnet18"),
        ({"image_sizes": [56, 70]}, "patches"),
        ({"temperature": 0}, "temperature"),
        ({"text_config": {"hidden_size": "wide"}}, "text_config"),
    ],
)
def test_other_architectures(folder, changes, message):
    _edit(folder, **changes)
    with pytest.raises(UserError, match=message):
        OpenVLA.from_pretrained(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("projector.fc3.bias"), r"are missing.*projector\.fc3\.bias"),
        (lambda t: t.update(extra=torch.zeros(1)), r"not part of it.*extra"),
        (lambda t: t.update({"projector.fc3.bias": torch.zeros(7)}), r"another shape.*projector\.fc3\.bias"),
        (lambda t: t.pop("vision_backbone.featurizer.blocks.0.ls1.scale_factor"), r"featurizer\.blocks\.0\.ls1"),
    ],
)
def test_other_weights(folder, change, message):
    _edit_weights(folder, change)
    with pytest.raises(UserError, match=message):
        OpenVLA.from_pretrained(folder)


def test_a_truncated_file(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(UserError, match="damaged or cut short"):
        OpenVLA.from_pretrained(folder)


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json", "model.safetensors"])
def test_a_missing_file(folder, name):
    (folder / name).unlink()
    with pytest.raises(UserError, match=name.replace(".", r"\.")):
        OpenVLA.from_pretrained(folder)


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json", "dataset_statistics.json"])
def test_a_broken_file(folder, name):
    (folder / name).write_text("{")
    with pytest.raises(UserError):
        OpenVLA.from_pretrained(folder)


def test_an_index_that_names_nothing(folder):
    (folder / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(UserError, match="none named"):
        OpenVLA.from_pretrained(folder)


def test_nothing_there(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "snapshot_download", _refuse)
    with pytest.raises(UserError, match="no such checkpoint folder"):
        OpenVLA.from_pretrained(tmp_path / "nothing")
    with pytest.raises(UserError, match=r"nobody/nothing.*the Hub did not give it"):
        OpenVLA.from_pretrained("nobody/nothing")


def test_only_a_hub_id_asks_the_hub(reference, monkeypatch):
    asked: list[tuple[str, list[str]]] = []

    def download(name: str, allow_patterns: list[str]) -> str:
        asked.append((name, allow_patterns))
        return str(reference.folder)

    monkeypatch.setattr(checkpoint, "snapshot_download", download)
    OpenVLA.from_pretrained(reference.folder)
    assert not asked
    assert OpenVLA.from_pretrained("openvla/openvla-7b").name_or_path == "openvla/openvla-7b"
    assert asked == [("openvla/openvla-7b", ["*.safetensors", "*.json", "tokenizer.model"])]


# Writing


def test_a_folder_that_holds_something_is_refused(model, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="not empty"):
        model.save_pretrained(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_an_empty_folder_is_filled(model, tmp_path):
    (tmp_path / "empty").mkdir()
    model.save_pretrained(tmp_path / "empty")
    assert (tmp_path / "empty" / "config.json").is_file()


def test_a_failed_save_leaves_nothing(model, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "write_tensors", _refuse)
    with pytest.raises(OSError, match="no"):
        model.save_pretrained(tmp_path / "saved")
    assert not list(tmp_path.iterdir())


def _refuse(*_, **__):
    raise OSError("no")
