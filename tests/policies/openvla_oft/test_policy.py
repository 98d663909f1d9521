"""OpenVLA-OFT behind the policy protocol: eight control steps a decision."""

from typing import Any

import numpy as np
import pytest
import torch

from vla_razor.policies import Decisions, Observations
from vla_razor.policies.openvla.policy import PrismaticPolicy
from vla_razor.policies.openvla_oft import OpenVLAOFT
from vla_razor.policies.openvla_oft.tiny import make_tiny_oft

INSTRUCTIONS = ["open top drawer", "pick can", "open top drawer"]
ACTION = {"q01": [-0.1] * 3 + [-0.3] * 3 + [-1.0], "q99": [0.1] * 3 + [0.3] * 3 + [1.0]}


def twin(key: str = "vla_razor_panda", **settings: Any) -> OpenVLAOFT:
    shape: Any = {"hidden": 32, "layers": 2, "heads": 2, "intermediate": 64}
    return make_tiny_oft(
        INSTRUCTIONS, torch.Generator().manual_seed(0), norm_stats={key: {"action": ACTION}}, **shape, **settings
    )


def act(policy: PrismaticPolicy, memories: list | None = None) -> Decisions:
    images = np.random.default_rng(0).integers(0, 255, (3, 80, 60, 3), dtype=np.uint8)
    asked = Observations({"camera": images}, INSTRUCTIONS)
    return policy.act(asked, [np.random.default_rng([0, row]) for row in range(3)], memories)


def test_a_decision_is_eight_actions_in_environment_units():
    model = twin()
    decisions = act(PrismaticPolicy(model))
    assert decisions.actions.shape == (3, 8, 7)
    assert decisions.tokens is not None and decisions.tokens.shape == (3, 56)
    np.testing.assert_allclose(decisions.actions, model.unnormalize(decisions.tokens, "vla_razor_panda"), atol=1e-7)
    alone = [act(PrismaticPolicy(model)).actions[row] for row in range(3)]
    np.testing.assert_array_equal(alone, decisions.actions, err_msg="each episode has draws of its own")


def test_an_episodes_convention_goes_on_from_step_to_step_and_from_decision_to_decision():
    """The Google robot's sticky gripper: what holds for 15 control steps outlasts a decision of 8."""
    model = twin("fractal20220817_data")
    first = PrismaticPolicy(model, robot="google_robot")
    decisions = act(first)
    assert decisions.memories is not None
    again = act(first, decisions.memories)
    assert decisions.tokens is not None and again.tokens is not None
    said = [model.unnormalize(tokens, "fractal20220817_data") for tokens in (decisions.tokens, again.tokens)]
    memories: list = [None] * 3
    for step in range(16):
        at, words = divmod(step, 8)
        expected, memories = first.convention.to_environment(said[at][:, words], memories)
        found = (decisions, again)[at].actions[:, words]
        np.testing.assert_allclose(found, expected, atol=1e-6)
    assert memories == again.memories


def test_demonstrated_steps_become_decisions():
    """At each control step the actions from it on; beyond an episode's end its last one is repeated."""
    policy = PrismaticPolicy(twin(chunk=3))
    actions = np.linspace(-0.09, 0.09, 5)[:, None].repeat(7, 1).astype(np.float32)
    tokens = policy.tokenize(actions, np.array([0, 0, 0, 1, 1]))
    one = policy.model.action_tokenizer.encode(policy.model.action_scale(None, 7).normalize(actions))
    rows = [[0, 1, 2], [1, 2, 2], [2, 2, 2], [3, 4, 4], [4, 4, 4]]
    np.testing.assert_array_equal(tokens.numpy(), np.stack([one[row].ravel() for row in rows]))
    assert policy.tokenize(actions[:0], np.array([], int)).shape == (0, 21)


def test_as_many_tokens_as_it_decides():
    model = twin()
    pixels = model.processor.pixel_values(np.zeros((1, 64, 64, 3), np.uint8))
    with pytest.raises(ValueError, match="8 steps of 7 numbers, 56 tokens; got num_tokens=7"):
        model.sample_actions(pixels, [[1, 3]], num_tokens=7)
