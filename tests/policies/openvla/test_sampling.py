"""Sampling and likelihoods."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from vla_razor.policies.openvla.sampling import choose


@settings(deadline=None, max_examples=15)
@given(
    rows=st.lists(st.integers(0, 2), min_size=1, max_size=5),
    temperature=st.floats(0.2, 3.0),
    seed=st.integers(0, 2**31),
)
def test_sampled_log_probs_are_the_teacher_forced_ones(model, reference, rows, temperature, seed):
    pixels, prompts = reference.pixels[rows], [reference.prompts[i] for i in rows]
    samples = model.sample_actions(pixels, prompts, temperature, torch.Generator().manual_seed(seed))
    with torch.no_grad():
        forced = F.log_softmax(model.action_logits(pixels, prompts, samples.tokens) / temperature, -1)
    taken = forced.gather(-1, (samples.tokens - 31744)[..., None])[..., 0]
    # Logits of this fixture reach 30, so that float32 itself leaves them to about 2e-5; temperature divides that.
    assert (taken - samples.log_probs).abs().max().item() <= 3e-5 * max(1.0, 1 / temperature)
    assert samples.log_probs.dtype == torch.float32


def test_sampling_is_restricted_to_the_action_ids(model, reference):
    samples = model.sample_actions(
        reference.pixels.repeat(20, 1, 1, 1), reference.prompts * 20, 50.0, torch.Generator().manual_seed(0)
    )
    assert samples.tokens.min() >= 31744
    assert samples.tokens.max() <= 31999
    assert len(samples.tokens.unique()) > 150  # nearly uniform at this temperature


def test_sampling_follows_the_distribution():
    logits = torch.tensor([[0.0, 1.0, -1.0, -torch.inf, 2.0]]).repeat(200_000, 1)
    uniforms = torch.rand(200_000, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    chosen = choose(logits, 0.7, uniforms, 0)
    frequency = torch.bincount(chosen, minlength=5) / 200_000
    assert (frequency - torch.softmax(logits[0] / 0.7, -1)).abs().max().item() < 0.005
    assert frequency[3] == 0


def test_the_ends_of_the_unit_interval_hit_possible_bins():
    logits = torch.tensor([[-torch.inf, 1.0, 2.0, -torch.inf]] * 2)
    uniforms = torch.tensor([[0.0], [1.0 - 2.0**-53]], dtype=torch.float64)
    assert choose(logits, 1.0, uniforms, 0).tolist() == [1, 2]


def test_same_generator_same_tokens(model, reference):
    def tokens(seed: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        return model.sample_actions(reference.pixels, reference.prompts, 3.0, generator).tokens

    assert torch.equal(tokens(1), tokens(1))
    assert not torch.equal(tokens(1), tokens(2))


def test_the_global_generator_is_left_alone(model, reference):
    state = torch.get_rng_state()
    model.sample_actions(reference.pixels, reference.prompts, 1.0, torch.Generator().manual_seed(0))
    assert torch.equal(state, torch.get_rng_state())


def test_greedy_log_probs_are_those_of_temperature_one(model, reference):
    samples = model.sample_actions(reference.pixels, reference.prompts)
    best = F.log_softmax(samples.logits, -1).max(-1).values
    torch.testing.assert_close(samples.log_probs, best)


@pytest.mark.parametrize("num_tokens", [1, 4, 9])
def test_another_number_of_tokens(model, reference, num_tokens):
    samples = model.sample_actions(reference.pixels, reference.prompts, num_tokens=num_tokens)
    assert samples.tokens.shape == (3, num_tokens)
    assert samples.logits.shape == (3, num_tokens, 256)
    shared = min(num_tokens, 7)
    assert torch.equal(samples.tokens[:, :shared], reference.tokens[:, :shared])


def test_bad_arguments(model, reference):
    with pytest.raises(ValueError, match="temperature"):
        model.sample_actions(reference.pixels, reference.prompts, -1.0)
    with pytest.raises(ValueError, match="prompt"):
        model.sample_actions(reference.pixels, reference.prompts[:2])
    with pytest.raises(ValueError, match="BOS"):
        model.sample_actions(reference.pixels, [[], *reference.prompts[1:]])


def test_logits_are_differentiable(fresh_model, reference):
    fresh_model.action_logits(reference.pixels, reference.prompts, reference.tokens).logsumexp(-1).sum().backward()
    run = [p.grad for n, p in fresh_model.named_parameters() if n.startswith(("projector", "language_model.model.la"))]
    assert all(gradient is not None and gradient.abs().sum() > 0 for gradient in run)
    head = fresh_model.language_model.lm_head.weight.grad
    assert head[31744:32000].abs().sum() > 0
    assert head[:31744].abs().sum() == 0


def test_checkpointing_changes_no_gradient(fresh_model, reference):
    def gradients() -> list[torch.Tensor | None]:
        fresh_model.zero_grad()
        fresh_model.action_logits(reference.pixels, reference.prompts, reference.tokens).logsumexp(-1).sum().backward()
        return [p.grad for p in fresh_model.parameters()]

    kept, recomputed = gradients(), (fresh_model.gradient_checkpointing(), gradients())[1]
    assert all(a is b if a is None or b is None else torch.equal(a, b) for a, b in zip(kept, recomputed, strict=True))
    assert torch.equal(fresh_model.sample_actions(reference.pixels, reference.prompts).tokens, reference.tokens)


def test_checkpointing_keeps_fewer_activations(tiny):
    pixels, prompts = torch.zeros(16, 6, 64, 64), tiny.processor.prompt_ids(["pick can"] * 16)
    tokens = torch.full((16, 7), tiny.config.first_action_id)

    def kept() -> int:
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: (sizes.append(t.numel()), t)[1], lambda t: t):
            tiny.action_logits(pixels, prompts, tokens)
        return sum(sizes)

    everything = kept()
    tiny.gradient_checkpointing()
    few = kept()
    tiny.gradient_checkpointing(False)
    assert few < 0.6 * everything  # the stem, the projector and the last layer keep theirs
