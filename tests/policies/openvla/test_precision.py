"""Mixed precision: parameters in float32, products in bfloat16."""

import torch

from vla_razor.policies.openvla import OpenVLA

BFLOAT16 = torch.bfloat16


def mixed(model: OpenVLA) -> OpenVLA:
    model.products = BFLOAT16
    return model


def logits_of(model, reference):
    with torch.no_grad():
        return model.action_logits(reference.pixels, reference.prompts, reference.tokens)


def test_it_is_nearer_to_float32_than_bfloat16_is(reference):
    exact = logits_of(OpenVLA.from_pretrained(reference.folder), reference)
    near = logits_of(mixed(OpenVLA.from_pretrained(reference.folder)), reference)
    rounded = logits_of(OpenVLA.from_pretrained(reference.folder, dtype=BFLOAT16), reference)
    assert near.dtype == torch.float32
    assert 0 < (near - exact).abs().mean() < (rounded - exact).abs().mean() < 0.5


def test_matrices_may_be_stored_as_products_read_them(reference):
    """Bit for bit the same policy, at half the memory: the base of a training, for forward KL."""
    whole = mixed(OpenVLA.from_pretrained(reference.folder))
    stored = mixed(OpenVLA.from_pretrained(reference.folder, matrices=BFLOAT16))
    embedding, norm = "language_model.model.embed_tokens.weight", "language_model.model.norm.weight"
    for name, kind in (("projector.fc1.weight", BFLOAT16), (embedding, torch.float32), (norm, torch.float32)):
        assert stored.get_parameter(name).dtype == kind
    assert torch.equal(logits_of(stored, reference), logits_of(whole, reference))
    one, other = (
        model.sample_actions(reference.pixels, reference.prompts, 1.0, torch.Generator().manual_seed(0))
        for model in (stored, whole)
    )
    assert torch.equal(one.tokens, other.tokens) and torch.equal(one.logits, other.logits)
    cast = mixed(OpenVLA.from_pretrained(reference.folder).cast(torch.float32, BFLOAT16))
    assert cast.fingerprint() == stored.fingerprint() != whole.fingerprint()


def test_the_policy_that_plays_is_the_one_that_learns(reference):
    """Step by step through the cache or all at once: what differs is the order of the products' sums."""
    model = mixed(OpenVLA.from_pretrained(reference.folder))
    played = model.sample_actions(reference.pixels, reference.prompts, 1.0, torch.Generator().manual_seed(0))
    with torch.no_grad():
        forced = model.action_logits(reference.pixels, reference.prompts, played.tokens)
    exact = OpenVLA.from_pretrained(reference.folder)
    with torch.no_grad():
        apart = exact.action_logits(reference.pixels, reference.prompts, played.tokens)
    assert (forced - played.logits).abs().mean() < (forced - apart).abs().mean()


def test_gradients_are_float32_also_after_the_policy_has_played(reference):
    """Autocast keeps its copies of the weights: those that were made without gradients are not to be met again."""
    model = mixed(OpenVLA.from_pretrained(reference.folder))
    model.sample_actions(reference.pixels, reference.prompts)
    model.supervised_loss(reference.pixels, reference.prompts, reference.tokens).backward()
    exact = OpenVLA.from_pretrained(reference.folder)
    exact.supervised_loss(reference.pixels, reference.prompts, reference.tokens).backward()
    for (name, one), other in zip(model.named_parameters(), exact.parameters(), strict=True):
        if other.grad is not None:
            assert one.grad is not None and one.grad.dtype == torch.float32, name
            assert torch.cosine_similarity(one.grad.flatten(), other.grad.flatten(), 0) > 0.9, name


def test_recomputed_activations_give_the_same_gradients(reference):
    gradients = []
    for checkpointing in (False, True):
        model = mixed(OpenVLA.from_pretrained(reference.folder)).gradient_checkpointing(checkpointing)
        model.supervised_loss(reference.pixels, reference.prompts, reference.tokens).backward()
        gradients.append(model.get_parameter("language_model.model.layers.0.self_attn.q_proj.weight").grad)
    torch.testing.assert_close(*gradients)


def test_adapters_are_float32_on_a_base_of_bfloat16(reference, tmp_path):
    model = mixed(OpenVLA.from_pretrained(reference.folder, matrices=BFLOAT16))
    before, fingerprint = logits_of(model, reference), model.fingerprint()
    model.add_lora(4, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(logits_of(model, reference), before)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.fill_(0.01)
        assert parameter.dtype == torch.float32 or "lora_" not in name
    tuned = logits_of(model, reference)
    with model.adapter_disabled():
        assert torch.equal(logits_of(model, reference), before)
        assert model.fingerprint() == fingerprint
    model.save_pretrained(tmp_path / "adapter")
    again = mixed(OpenVLA.from_pretrained(reference.folder, matrices=BFLOAT16)).load_lora(tmp_path / "adapter")
    assert torch.equal(logits_of(again, reference), tuned)
