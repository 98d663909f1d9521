"""OpenVLA-OFT computes what the original code computed, and the fixture would notice if it did not."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from vla_razor.errors import UserError
from vla_razor.policies.openvla import OpenVLA, decoder
from vla_razor.policies.openvla_oft import OpenVLAOFT

TOLERANCE = 3e-4
VARIANTS = {
    "": {},
    "nostop_": {"stop_token": False},
    "c5_": {"chunk": 5},
    "c5_nostop_": {"chunk": 5, "stop_token": False},
}
WIDE = {"c25x14_": True, "c25x14_nostop_": False}


def error(found: Tensor, expected: Tensor) -> float:
    return float((found.detach().double() - expected.double()).abs().max())


@pytest.fixture(scope="module")
def variants(opened) -> dict[str, OpenVLAOFT]:
    return {prefix: opened(**given) for prefix, given in VARIANTS.items()}


@pytest.mark.parametrize("prefix", VARIANTS)
def test_logits_tokens_and_actions(variants, reference, prefix):
    model, outputs = variants[prefix], reference.outputs
    samples = model.sample_actions(reference.pixels, reference.prompts)
    assert error(samples.logits, reference.tensors(f"{prefix}logits_action")) <= TOLERANCE
    assert torch.equal(samples.tokens, reference.tensor(f"{prefix}action_tokens_restricted"))
    everywhere = model.likeliest_tokens(reference.pixels, reference.prompts)
    assert torch.equal(everywhere, reference.tensor(f"{prefix}action_tokens"))
    normalized = model.action_tokenizer.decode(everywhere.numpy()).reshape(3, -1, 7)
    np.testing.assert_array_equal(normalized, outputs[f"{prefix}normalized_actions"])
    for key in ("toy_spatial_no_noops", "nomask7"):
        found = model.unnormalize(everywhere, key)
        np.testing.assert_allclose(found, [outputs[f"{prefix}action_{key}_{i}"] for i in range(3)], atol=1e-12)


@pytest.mark.parametrize("prefix", VARIANTS)
def test_hidden_states_and_the_whole_vocabulary(variants, reference, prefix):
    with torch.no_grad():
        hidden = variants[prefix].predicting_hidden(reference.pixels, reference.prompts)
        logits = variants[prefix].language_model.lm_head(hidden)
    assert error(hidden, reference.tensors(f"{prefix}hidden_action")) <= 5e-5
    assert error(logits.logsumexp(-1), reference.tensors(f"{prefix}logsumexp_full")) <= TOLERANCE


@pytest.mark.parametrize(("prefix", "stop_token"), WIDE.items())
def test_chunks_of_25_steps_of_14_numbers(opened, reference, prefix, stop_token):
    model = opened(chunk=25, dims=14, stop_token=stop_token, normalization="bounds")
    seen = reference.pixels[1:2], reference.prompts[1:2]
    samples = model.sample_actions(*seen)
    assert error(samples.logits[0, ::7], reference.tensor(f"{prefix}logits_action_every7_1")) <= TOLERANCE
    assert torch.equal(samples.tokens, reference.tensor(f"{prefix}action_tokens_restricted"))
    everywhere = model.likeliest_tokens(*seen)
    assert torch.equal(everywhere, reference.tensor(f"{prefix}action_tokens"))
    found = model.unnormalize(everywhere, "bimanual14")
    np.testing.assert_allclose(found[0], reference.outputs[f"{prefix}action_bimanual14_1"], atol=1e-12)


@pytest.mark.parametrize("prefix", ["", "nostop_"])
def test_what_the_decoder_receives(variants, reference, prefix):
    for i in range(3):
        with torch.no_grad():
            embeddings, _, inside = variants[prefix]._sequence(
                reference.pixels[i : i + 1], reference.prompts[i : i + 1]
            )
        assert inside.all()
        assert error(embeddings[0], reference.tensor(f"{prefix}inputs_embeds_{i}")) <= 5e-5


@settings(deadline=None, max_examples=25)
@given(st.lists(st.tuples(st.integers(0, 2), st.booleans()), min_size=1, max_size=6), st.sampled_from(["", "nostop_"]))
def test_any_batch_padding_and_order(variants, reference, rows, prefix):
    chosen = [i for i, _ in rows]
    prompts = [reference.prompts[i] + ([29871] if trailing else []) for i, trailing in rows]
    samples = variants[prefix].sample_actions(reference.pixels[chosen], prompts)
    assert torch.equal(samples.tokens, reference.tensor(f"{prefix}action_tokens_restricted")[chosen])
    assert error(samples.logits, reference.tensors(f"{prefix}logits_action")[chosen]) <= TOLERANCE


@pytest.mark.parametrize("prefix", ["", "nostop_"])
def test_training_loss_and_gradients(opened, reference, prefix):
    """The mean over all labelled tokens: 57 a sample with the stop token, 56 without."""
    model, outputs = opened(**VARIANTS[prefix]), reference.outputs
    targets = torch.from_numpy(outputs[f"{prefix}train_labels"])
    tokens = torch.stack([row[row > 31743] for row in targets])
    loss = model.supervised_loss(reference.pixels, reference.prompts, tokens)
    loss.backward()
    assert loss.item() == pytest.approx(outputs[f"{prefix}train_loss"].item(), abs=2e-6)
    if not prefix:
        expected = torch.from_numpy(outputs["train_grad_projector_fc1_weight"])
        assert error(model.projector.fc1.weight.grad, expected) <= 1e-5
    norms = dict(zip(outputs["train_grad_names"].tolist(), outputs[f"{prefix}train_grad_norms"], strict=True))
    found = {n: p.grad.norm().item() for n, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    stored = {name.replace(".gamma", ".scale_factor"): norm for name, norm in found.items()}
    expected_names = {name for name, norm in norms.items() if norm > 0}
    assert set(stored) == expected_names
    for name in expected_names:
        assert stored[name] == pytest.approx(norms[name], rel=2e-3, abs=1e-6), name


def test_training_loss_by_token(variants, reference):
    targets = torch.from_numpy(reference.outputs["train_labels"])
    labelled = targets[:, 1:] != -100
    with torch.no_grad():
        hidden = variants[""]._hidden(reference.pixels, reference.prompts)
        nll = F.cross_entropy(
            variants[""].language_model.lm_head(hidden).flatten(0, 1), targets[:, 1:][labelled], reduction="none"
        )
    assert error(nll, reference.tensor("train_token_nll")[labelled]) <= TOLERANCE


def test_actions_as_the_reference_trained_on_them(variants, reference):
    """Beyond the bounds they are clipped."""
    actions = reference.outputs["train_actions"]
    labels = reference.outputs["train_labels"]
    tokens = variants[""].action_tokenizer.encode(actions).reshape(3, -1)
    np.testing.assert_array_equal(tokens, np.stack([row[row > 31743] for row in labels]))


def test_between_minima_and_maxima(opened, reference):
    model = opened(normalization="bounds")
    tokens = reference.tensor("action_tokens")
    for key in ("toy_spatial_no_noops", "nomask7", "minmax7"):
        expected = [reference.outputs[f"action_bounds_{key}_{i}"] for i in range(3)]
        np.testing.assert_allclose(model.unnormalize(tokens, key), expected, atol=1e-12)
    with pytest.raises(UserError, match=r"'minmax7' have no q01 and no q99; they have mask, max, mean, min, std"):
        opened().unnormalize(tokens, "minmax7")
    with pytest.raises(ValueError, match="expected actions of 14 numbers for bimanual14, got 7"):
        model.unnormalize(tokens, "bimanual14")


@pytest.mark.parametrize("key", ["toy_spatial_no_noops", "nomask7"])
def test_tokens_of_actions_are_their_inverse(variants, reference, key):
    model, tokens = variants[""], reference.tensor("action_tokens_restricted")
    again = model.tokenize(model.unnormalize(tokens, key), key)
    scale = model.action_scale(key, 7)
    moving = torch.from_numpy(np.tile(~scale.mask | (scale.high > scale.low), 8))
    edge = (tokens - 31744) < 2  # the two smallest ids share a centre
    assert torch.equal(again[:, moving][~edge[:, moving]], tokens[:, moving][~edge[:, moving]])


# What the fixture catches: each of these mistakes moves the logits by more than the tolerance.


def _causal(model: OpenVLAOFT, patch: pytest.MonkeyPatch) -> None:
    prefill = decoder.prefill
    patch.setattr(decoder, "prefill", lambda *arguments, mask, **settings: prefill(*arguments, **settings))


def _other_stop(model: OpenVLAOFT, patch: pytest.MonkeyPatch) -> None:
    model.config.text["eos_token_id"] = 3


def _no_stop(model: OpenVLAOFT, patch: pytest.MonkeyPatch) -> None:
    model.config.stop_token = False


def _no_trailing_token(model: OpenVLAOFT, patch: pytest.MonkeyPatch) -> None:
    model.config.trailing_token_id = None


def _placeholders_kept(model: OpenVLAOFT, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Tensor, "masked_fill", lambda words, *_: words)


@pytest.mark.parametrize(
    ("spoil", "least"),
    [(_causal, 5), (_other_stop, 5), (_no_stop, 5), (_no_trailing_token, 5), (_placeholders_kept, 5)],
)
def test_the_fixture_catches(opened, reference, spoil: Callable, least: float):
    model = opened()
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        spoil(model, patch)
        logits = model.action_logits(reference.pixels, reference.prompts)
        if spoil is _causal:
            assert error(logits[0], reference.tensor("causal_logits_action_0")) <= TOLERANCE
    assert error(logits, reference.tensors("logits_action")) > least


# Checkpoints


def test_a_saved_checkpoint_says_what_it_is(opened, reference, tmp_path: Path):
    model = opened(chunk=5, stop_token=False, normalization="bounds")
    model.save_pretrained(tmp_path / "saved")
    again = OpenVLAOFT.from_pretrained(tmp_path / "saved")
    assert (again.config.chunk, again.config.stop_token, again.config.normalization) == (5, False, "bounds")
    assert again.fingerprint() == model.fingerprint() != opened().fingerprint()
    seen = reference.pixels, reference.prompts
    assert torch.equal(again.action_logits(*seen), model.action_logits(*seen))
    with pytest.raises(UserError, match="checkpoint of OpenVLA-OFT, which decides 5 control steps at once"):
        OpenVLA.from_pretrained(tmp_path / "saved")
    OpenVLA.from_pretrained(reference.folder).save_pretrained(tmp_path / "other")
    with pytest.raises(UserError, match="a checkpoint of OpenVLA, which decides one token after another"):
        OpenVLAOFT.from_pretrained(tmp_path / "other")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"chunk": 0}, "chunk=0, dims=7; expected whole numbers from 1"),
        ({"dims": 7.5}, "chunk=8, dims=7.5; expected whole numbers from 1"),
        ({"normalization": "q99"}, "unknown normalization 'q99'; expected bounds_q99 or bounds"),
    ],
)
def test_settings_that_a_policy_cannot_have(opened, given, message):
    with pytest.raises(UserError, match=message):
        opened(**given)


def test_adapters_and_their_merger(opened, reference):
    """Merged, they give the logits that they gave: on another device users have lost all success to a merge."""
    seen = reference.pixels, reference.prompts
    model = opened().add_lora(4, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert error(model.action_logits(*seen), reference.tensors("logits_action")) <= TOLERANCE
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.02, generator=torch.Generator().manual_seed(1))
        moved = model.action_logits(*seen)
        assert error(moved, reference.tensors("logits_action")) > 0.1
        with model.adapter_disabled():
            assert error(model.action_logits(*seen), reference.tensors("logits_action")) <= TOLERANCE
        assert error(model.merge_lora().action_logits(*seen), moved) <= TOLERANCE


# Sampling


def test_samples_follow_the_distribution_and_belong_to_their_generator(variants, reference):
    model, seen = variants["c5_"], (reference.pixels[:1], reference.prompts[:1])
    one, two = (model.sample_actions(*seen, 1.6, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(one.tokens, two.tokens)
    log_p = torch.log_softmax(one.logits / 1.6, -1)
    expected = log_p.gather(-1, (one.tokens - 31744)[..., None])[..., 0]
    torch.testing.assert_close(one.log_probs, expected)
    features = model.patch_features(seen[0])
    draws = torch.rand(1, 35, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    on_pixels, on_features = (model.sample_actions(look, seen[1], 1.6, uniforms=draws) for look in (seen[0], features))
    assert torch.equal(on_pixels.tokens, on_features.tokens)
    below = (log_p.exp().double().cumsum(-1) <= draws[..., None]).sum(-1)
    assert (on_pixels.tokens - 31744 - below).abs().max() <= 1, (
        "each where the cumulative probability passes its number"
    )


def test_gradient_checkpointing_changes_nothing(opened, reference):
    losses, gradients = [], []
    for checkpointing in (False, True):
        model = opened().gradient_checkpointing(checkpointing)
        loss = model.supervised_loss(reference.pixels, reference.prompts, reference.tensor("action_tokens_restricted"))
        loss.backward()
        losses.append(loss.item())
        gradients.append(model.language_model.model.layers[0].mlp.up_proj.weight.grad)
    assert losses[0] == losses[1]
    torch.testing.assert_close(*gradients)


def test_the_checkpoint_names_no_statistics_twice(opened, reference):
    """`dataset_statistics.json` replaces what config.json holds of the base's."""
    stored = json.loads((reference.folder / "dataset_statistics.json").read_text())
    assert opened().config.norm_stats == stored
