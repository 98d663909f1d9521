"""OpenVLA behind the policy protocol."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from vla_razor.errors import UserError
from vla_razor.policies import Decisions, Observations, Policy
from vla_razor.policies.openvla.policy import PrismaticPolicy

INSTRUCTIONS = ["open top drawer", "pick can", "open top drawer"]


def _act(policy: Policy, images: np.ndarray, seed: int = 0) -> Decisions:
    return policy.act(
        Observations({"camera": images}, INSTRUCTIONS), [np.random.default_rng([seed, row]) for row in range(3)]
    )


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (3, 80, 60, 3), dtype=np.uint8)


def test_actions_are_the_tokens_in_environment_units(tiny, images):
    decisions = _act(PrismaticPolicy(tiny), images)
    assert decisions.actions.shape == (3, 1, 7)
    assert decisions.actions.dtype == np.float32
    said = tiny.unnormalize(decisions.tokens, "vla_razor_panda")
    np.testing.assert_allclose(decisions.actions[:, 0], said, atol=1e-7)
    assert np.abs(decisions.actions).max((0, 1)).tolist() <= [0.1] * 3 + [0.3] * 3 + [1.0]


def test_it_samples_at_the_models_temperature(new_tiny, images):
    model = new_tiny(0)
    model.config.temperature = 0.3
    policy = PrismaticPolicy(model)
    decisions = _act(policy, images)
    assert decisions.tokens is not None
    assert decisions.log_probs is not None
    with torch.no_grad():
        logits = model.action_logits(
            model.processor.pixel_values(images), policy.prompt_ids(INSTRUCTIONS), decisions.tokens
        )
    chosen = (decisions.tokens - model.config.first_action_id)[..., None]
    expected = F.log_softmax(logits / 0.3, -1).gather(-1, chosen)[..., 0]
    torch.testing.assert_close(decisions.log_probs, expected, atol=1e-5, rtol=1e-5)

    greedy = _act(PrismaticPolicy(model, greedy=True), images)
    assert greedy.tokens is not None
    assert greedy.log_probs is not None
    samples = model.sample_actions(model.processor.pixel_values(images), policy.prompt_ids(INSTRUCTIONS))
    assert torch.equal(greedy.tokens, samples.tokens)
    torch.testing.assert_close(greedy.log_probs, F.log_softmax(samples.logits / 0.3, -1).max(-1).values)


def test_the_generator_decides(tiny, images):
    policy = PrismaticPolicy(tiny)
    first, again, other = (_act(policy, images, seed).actions for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_the_norm_key(model, monkeypatch):
    with pytest.raises(UserError, match="arm7"):
        PrismaticPolicy(model)
    stats = model.config.norm_stats
    renamed = {"vla_razor_panda": stats["arm4"], "vla_razor_google_robot": stats["arm7"]}
    monkeypatch.setattr(model.config, "norm_stats", renamed)
    assert PrismaticPolicy(model).num_tokens == 4
    assert PrismaticPolicy(model, "vla_razor_google_robot").num_tokens == 7
