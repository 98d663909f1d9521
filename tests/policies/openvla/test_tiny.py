"""The small policy made from nothing."""

import pytest
import torch
from torch.nn import functional as F

from vla_razor.policies.openvla import OpenVLA
from vla_razor.policies.openvla.tiny import make_tiny, make_tokenizer


def test_its_size(tiny):
    count = sum(p.numel() for p in tiny.parameters())
    assert 1_000_000 < count < 3_000_000
    assert tiny.vision_backbone.num_patches == 16


def test_its_vocabulary(tiny):
    """Words, then the 256 action ids, then the padding."""
    words = tiny.processor.tokenizer.get_vocab_size()
    assert tiny.config.first_action_id == words
    assert tiny.action_tokenizer.end == words + 256 == tiny.config.text["pad_token_id"]
    assert tiny.config.trailing_token_id is None


def test_the_seed_decides(new_tiny):
    assert new_tiny(0).fingerprint() == new_tiny(0).fingerprint() != new_tiny(1).fingerprint()


def test_making_one_leaves_the_global_generator_alone(new_tiny):
    state = torch.get_rng_state()
    new_tiny(0)
    assert torch.equal(state, torch.get_rng_state())


def test_a_round_trip_keeps_tokenizer_and_outputs(tiny, tmp_path):
    tiny.save_pretrained(tmp_path / "tiny")
    again = OpenVLA.from_pretrained(tmp_path / "tiny")
    instructions = ["pick can", "open top drawer"]
    prompts = tiny.processor.prompt_ids(instructions)
    assert again.processor.prompt_ids(instructions) == prompts
    assert again.fingerprint() == tiny.fingerprint()
    pixels = torch.randn(2, 6, 64, 64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(again.sample_actions(pixels, prompts).logits, tiny.sample_actions(pixels, prompts).logits)


def test_a_new_policy_is_nearly_uniform_and_looks(tiny):
    pixels = torch.stack([torch.zeros(6, 64, 64), torch.ones(6, 64, 64)])
    prompts = tiny.processor.prompt_ids(["pick can"] * 2)
    with torch.no_grad():
        logits = tiny.action_logits(pixels, prompts, torch.full((2, 7), tiny.config.first_action_id))
    assert F.log_softmax(logits, -1).std() < 0.5
    assert (logits[0] - logits[1]).abs().max() > 0.05


def test_the_instruction_matters(tiny):
    pixels = torch.zeros(2, 6, 64, 64)
    logits = tiny.sample_actions(pixels, tiny.processor.prompt_ids(["open top drawer", "close top drawer"])).logits
    assert (logits[0] - logits[1]).abs().max() > 1e-3


def test_other_shapes():
    model = make_tiny(["pick can"], torch.Generator().manual_seed(0), image_size=96, hidden=64, layers=2, heads=4)
    assert model.vision_backbone.num_patches == 36
    assert model.sample_actions(torch.zeros(1, 6, 96, 96), [[1]], num_tokens=2).tokens.shape == (1, 2)


def test_it_learns_by_heart(new_tiny):
    """Two images with different actions are told apart after a few steps."""
    model = new_tiny(0).train()
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(2, 6, 64, 64, generator=generator)
    prompts = model.processor.prompt_ids(["pick can"] * 2)
    tokens = torch.randint(256, (2, 7), generator=generator) + model.config.first_action_id
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    loss = torch.tensor(torch.inf)
    for _ in range(60):
        logits = model.action_logits(pixels, prompts, tokens)
        loss = F.cross_entropy(logits.flatten(0, 1), (tokens - model.config.first_action_id).flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.5
    assert torch.equal(model.sample_actions(pixels, prompts).tokens, tokens)


@pytest.mark.parametrize("instruction", ["pick can", "Open Top drawer"])
def test_the_tokenizer_splits_words(instruction):
    tokenizer = make_tokenizer(["open top drawer", "pick can"])
    encoding = tokenizer.encode(f"In: What action should the robot take to {instruction.lower()}?\nOut:")
    assert encoding.tokens[0] == "<s>"
    assert encoding.tokens[2:-1] == instruction.lower().split()
    assert "<unk>" not in encoding.tokens
