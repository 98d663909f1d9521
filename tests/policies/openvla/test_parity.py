"""The native policy computes what the original code computed, and the fixture would notice if it did not."""

import re
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from vla_razor.policies.openvla import OpenVLA, Processor
from vla_razor.policies.openvla.vision import VisionBackbone

TOLERANCE = 1e-4


def test_vision_features_and_projection(model, reference):
    with torch.no_grad():
        features = model.vision_backbone(reference.pixels)
        projected = model.projector(features)
    torch.testing.assert_close(features, torch.from_numpy(reference.outputs["vision_features"]), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(
        projected, torch.from_numpy(reference.outputs["projected_patches"]), atol=2e-5, rtol=1e-5
    )


def test_greedy_tokens_and_logits(model, reference):
    samples = model.sample_actions(reference.pixels, reference.prompts)
    assert torch.equal(samples.tokens, reference.tokens)
    assert _error(samples.logits, reference.logits) <= TOLERANCE


@settings(deadline=None, max_examples=25)
@given(st.lists(st.tuples(st.integers(0, 2), st.booleans()), min_size=1, max_size=6))
def test_any_batch_padding_and_order(model, reference, rows):
    chosen = [i for i, _ in rows]
    prompts = [reference.prompts[i] + ([29871] if trailing else []) for i, trailing in rows]
    samples = model.sample_actions(reference.pixels[chosen], prompts)
    forced = model.action_logits(reference.pixels[chosen], prompts, reference.tokens[chosen])
    assert torch.equal(samples.tokens, reference.tokens[chosen])
    assert _error(samples.logits, reference.logits[chosen]) <= TOLERANCE
    assert _error(forced, reference.logits[chosen]) <= TOLERANCE


def test_hidden_states_and_full_vocabulary(model, reference):
    with torch.no_grad():
        hidden = model.predicting_hidden(reference.pixels, reference.prompts, reference.tokens)
        logits = model.language_model.lm_head(hidden)
    for i in range(3):
        expected = {k: torch.from_numpy(reference.outputs[f"{k}_{i}"]) for k in ("hidden_last", "logsumexp_full")}
        assert _error(hidden[i], expected["hidden_last"]) <= 1e-5
        assert _error(logits[i].logsumexp(-1), expected["logsumexp_full"]) <= 1e-5
        assert _error(logits[i, :, ::61], torch.from_numpy(reference.outputs[f"logits_strided61_{i}"])) <= TOLERANCE


def test_training_loss_and_gradient(fresh_model, reference):
    tokens = _training_tokens(reference)
    loss = fresh_model.supervised_loss(reference.pixels, reference.prompts, tokens)
    loss.backward()
    assert loss.item() == pytest.approx(reference.outputs["train_loss"].item(), abs=1e-6)
    gradient = torch.from_numpy(reference.outputs["grad_projector_fc1_weight"])
    assert _error(fresh_model.projector.fc1.weight.grad, gradient) <= 1e-5


def test_training_loss_by_token(model, reference):
    tokens = _training_tokens(reference)
    targets = torch.cat([tokens, torch.full((3, 1), 2)], 1)
    with torch.no_grad():
        logits = model.language_model.lm_head(model.predicting_hidden(reference.pixels, reference.prompts, targets))
    nll = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
    predicted = torch.from_numpy(reference.outputs["train_labels"])[:, 1:] != -100
    assert _error(nll, torch.from_numpy(reference.outputs["train_token_nll"])[predicted]) <= TOLERANCE


def test_actions_in_every_data_sets_units(model, reference):
    for key in model.config.norm_stats:
        for i in range(3):
            expected = reference.outputs[f"action_{key}_{i}"]
            found = model.unnormalize(reference.tokens[i : i + 1, : len(expected)], key)
            np.testing.assert_allclose(found[0], expected, atol=1e-12)


def test_normalized_actions(model, reference):
    np.testing.assert_array_equal(
        model.action_tokenizer.decode(reference.tokens.numpy()), reference.outputs["normalized_actions"]
    )


def test_image_matters(model, reference):
    black, white = (model.processor.pixel_values([np.full((64, 64, 3), v, np.uint8)]) for v in (0, 255))
    on_black, on_white = (model.sample_actions(pixels, reference.prompts[:1]).logits for pixels in (black, white))
    assert _error(on_black, on_white) > 1


# What the fixture catches: each of these mistakes moves the logits by more than the tolerance.


def _rms_epsilon(model: OpenVLA) -> None:
    for module in model.modules():
        if isinstance(module, LlamaRMSNorm):
            module.variance_epsilon = 1e-5


def _tanh_gelu(model: OpenVLA) -> None:
    for module in model.modules():
        if isinstance(module, nn.GELU):
            module.approximate = "tanh"


def _rounded_rotary(model: OpenVLA) -> None:
    rotary = model.language_model.model.rotary_emb
    rotary.inv_freq.copy_(rotary.inv_freq.bfloat16().float())


def _no_trailing_token(model: OpenVLA) -> None:
    model.config.trailing_token_id = None


def _layer_scale_not_loaded(model: OpenVLA) -> None:
    for name, parameter in model.named_parameters():
        if name.endswith(".gamma"):
            parameter.data.fill_(1e-5)


def _swapped_stacks(model: OpenVLA) -> None:
    forward = model.vision_backbone.forward

    def swapped(pixels: Tensor) -> Tensor:
        features = forward(pixels)
        return torch.cat([features[..., 32:], features[..., :32]], -1)

    model.vision_backbone.forward = swapped


def _read_at(block: int, *, norm: bool = False) -> Callable[[OpenVLA], None]:
    """Features of another block than the second-to-last, or of the right one behind the final norm."""

    def spoil(model: OpenVLA) -> None:
        def features(pixels: Tensor) -> Tensor:
            parts = zip(model.vision_backbone.stacks, pixels.split(3, 1), strict=True)
            return torch.cat([_intermediate(stack, part, block, norm=norm) for stack, part in parts], -1)

        model.vision_backbone.forward = features

    return spoil


def _intermediate(stack: VisionTransformer, pixels: Tensor, block: int, *, norm: bool) -> Tensor:
    index = len(stack.blocks) + block
    _, read = stack.forward_intermediates(pixels, indices=[index], norm=norm, output_fmt="NLC")
    features = read[0]
    assert isinstance(features, Tensor)
    return features


@pytest.mark.parametrize(
    ("spoil", "least"),
    [
        (_rms_epsilon, 3e-4),
        (_tanh_gelu, 1e-3),
        (_rounded_rotary, 1e-2),
        (_no_trailing_token, 5),
        (_layer_scale_not_loaded, 5),
        (_swapped_stacks, 5),
        (_read_at(-1), 5),
        (_read_at(-3), 5),
        (_read_at(-2, norm=True), 5),
    ],
    ids=lambda value: re.sub(r"\W", "", getattr(value, "__qualname__", str(value))),
)
def test_the_fixture_catches(fresh_model, reference, spoil, least):
    spoil(fresh_model)
    with torch.no_grad():
        logits = fresh_model.action_logits(reference.pixels, reference.prompts, reference.tokens)
    assert _error(logits, reference.logits) > least


def test_timms_own_early_stop_agrees(model, reference):
    """Features read through timm's `forward_intermediates` at the second-to-last block are the same."""
    spoiled = OpenVLA.from_pretrained(reference.folder)
    _read_at(-2)(spoiled)
    with torch.no_grad():
        assert torch.equal(spoiled.vision_backbone(reference.pixels), model.vision_backbone(reference.pixels))


def test_the_fixture_catches_unrounded_means(model, reference):
    settings_ = dict(model.processor.settings)
    settings_["tvf_normalize_params"] = [
        {"mean": mean, "std": std} for mean, std in zip(settings_["means"], settings_["stds"], strict=True)
    ]
    pixels = Processor(settings_).pixel_values(reference.images)
    with torch.no_grad():
        logits = model.action_logits(pixels, reference.prompts, reference.tokens)
    assert _error(logits, reference.logits) > 1e-2


def test_idle_blocks_are_never_run(model, reference):
    ran: list[str] = []
    hooks = [
        module.register_forward_pre_hook(lambda *_, name=name: ran.append(name))
        for name, module in model.vision_backbone.named_modules()
    ]
    model.vision_backbone(reference.pixels)
    for hook in hooks:
        hook.remove()
    assert isinstance(model.vision_backbone, VisionBackbone)
    assert "featurizer.blocks.1" in ran
    assert "fused_featurizer.blocks.2" in ran
    unwanted = [
        n for n in ran if re.match(r"featurizer\.(blocks\.2|norm$)|fused_featurizer\.(blocks\.3|norm$|attn_pool)", n)
    ]
    assert not unwanted


def _training_tokens(reference) -> Tensor:
    labels = torch.from_numpy(reference.outputs["train_labels"])
    return torch.stack([row[row != -100][:-1] for row in labels])


def _error(found: Tensor, expected: Tensor) -> float:
    return (found - expected).abs().max().item()
