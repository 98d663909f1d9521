"""From what a user types to a model."""

import shutil
from pathlib import Path

import pytest
import torch

from vla_razor.errors import UserError
from vla_razor.policies import load
from vla_razor.policies.load import load_model, stored_weights
from vla_razor.policies.openvla.tiny import make_tiny


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("load") / "base"
    make_tiny(["pick can"], torch.Generator().manual_seed(0), layers=1).save_pretrained(folder)
    return folder


def _adapter(base: Path | str, folder: Path) -> str:
    """Save an adapter on `base`; its fingerprint."""
    model = load_model(base).add_lora(2, generator=torch.Generator().manual_seed(0))
    model.save_pretrained(folder)
    return model.fingerprint()


def test_a_checkpoint_folder(base):
    model = load_model(base, dtype="bfloat16", device="auto")
    assert model.dtype == torch.bfloat16
    assert model.name_or_path == str(base)


def test_an_adapter_loads_its_base_first(base, tmp_path):
    fingerprint = _adapter(base, tmp_path / "adapter")
    model = load_model(tmp_path / "adapter")
    assert model.fingerprint() == fingerprint
    with model.adapter_disabled():
        assert model.fingerprint() == load_model(base).fingerprint()


def test_the_embedded_base_goes_by_its_name(base, tmp_path, monkeypatch):
    """An adapter of it can be loaded on another machine."""
    monkeypatch.setattr(load, "TINY", base)
    assert load_model("tiny").fingerprint() == load_model("vla").fingerprint() == load_model(base).fingerprint()
    fingerprint = _adapter("tiny", tmp_path / "adapter")
    assert '"base_model_name_or_path": "tiny"' in (tmp_path / "adapter/adapter_config.json").read_text()
    assert load_model(tmp_path / "adapter").fingerprint() == fingerprint
    monkeypatch.setattr(load, "TINY", tmp_path / "nowhere")
    with pytest.raises(UserError, match="make_tiny_base"):
        load_model("tiny")


def test_a_run_folder_gives_its_newest_checkpoint(base, tmp_path):
    shutil.copytree(base, tmp_path / "run/checkpoints/step_9")
    fingerprint = _adapter(base, tmp_path / "run/checkpoints/step_10")
    (tmp_path / "run/checkpoints/.step_11.aside").mkdir()
    assert load_model(tmp_path / "run").fingerprint() == fingerprint


def test_a_run_without_a_checkpoint(tmp_path):
    (tmp_path / "run/checkpoints").mkdir(parents=True)
    with pytest.raises(UserError, match="vla-razor resume"):
        load_model(tmp_path / "run")


def test_other_things(base, tmp_path):
    with pytest.raises(UserError, match=r"config\.json"):
        load_model(tmp_path)
    with pytest.raises(UserError, match="no such checkpoint folder"):
        load_model("tinny")
    _adapter(base, tmp_path / "adapter")
    (tmp_path / "adapter/SHA256SUMS").unlink()
    config = tmp_path / "adapter/adapter_config.json"
    config.write_text(config.read_text().replace(str(base), str(tmp_path / "moved")))
    with pytest.raises(UserError, match="moved"):
        load_model(tmp_path / "adapter")
    config.write_text(config.read_text().replace(f'"{tmp_path / "moved"}"', "null"))
    with pytest.raises(UserError, match="does not say what it adapts"):
        load_model(tmp_path / "adapter")


@pytest.mark.parametrize(("device", "message"), [("gpu", "unknown"), ("cuda", "no CUDA device")])
def test_devices(base, device, message, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=message):
        load_model(base, device=device)


@pytest.mark.parametrize("dtype", ["float33", "int64", "nn"])
def test_dtypes(base, dtype):
    with pytest.raises(UserError, match=dtype):
        load_model(base, dtype=dtype)


def test_stored_weights_are_those_of_the_model_an_adapter_merged(base, tmp_path):
    adapted = load_model(base).add_lora(2, generator=torch.Generator().manual_seed(0))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            parameter.data += 0.1
    adapted.save_pretrained(tmp_path / "adapter")
    for spec, model in ((base, load_model(base)), (tmp_path / "adapter", adapted.merge_lora())):
        stored, expected = stored_weights(spec), model.stored_tensors()
        assert stored.keys() == expected.keys() and len(stored) == len(expected)
        for name, weight in expected.items():
            assert torch.equal(stored[name], weight), name
    weights = tmp_path / "base" / "model.safetensors"
    shutil.copytree(base, weights.parent)
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(UserError, match="is damaged"):
        stored_weights(weights.parent)
