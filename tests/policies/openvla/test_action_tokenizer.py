"""Actions as tokens."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from vla_razor.errors import UserError
from vla_razor.policies.openvla.action_tokenizer import ActionScale, ActionTokenizer

TOKENIZER = ActionTokenizer(32000)
NEVER_VARIED = {"k": {"action": {"q01": [0.5, -1.0], "q99": [0.5, 1.0]}}}


def test_the_references_tables(reference):
    outputs = reference.outputs
    np.testing.assert_array_equal(TOKENIZER.centers, outputs["bin_centers"])
    np.testing.assert_array_equal(TOKENIZER.encode(outputs["enc_values"]), outputs["enc_tokens"])
    np.testing.assert_array_equal(TOKENIZER.decode(outputs["detok_tokens"]), outputs["detok_values"])


def test_bins_by_hand():
    assert TOKENIZER.encode(np.array([-1.0, -2.0, 1.0, 2.0, 0.0])).tolist() == [31999, 31999, 31744, 31744, 31872]
    # 255 centres: the two smallest ids share the last one.
    assert (
        TOKENIZER.decode(np.array([31744]))[0] == TOKENIZER.decode(np.array([31745]))[0] == pytest.approx(1 - 1 / 255)
    )


@given(st.lists(st.integers(31744, 31999), min_size=1, max_size=9))
def test_decode_then_encode(tokens):
    again = TOKENIZER.encode(TOKENIZER.decode(np.array(tokens)))
    assert again.tolist() == [max(token, 31745) for token in tokens]


@given(arrays(float, (3, 7), elements=st.floats(-1, 1)))
def test_encode_then_decode_is_within_half_a_bin(actions):
    assert np.abs(TOKENIZER.decode(TOKENIZER.encode(actions)) - actions).max() <= 1 / 255 + 1e-12


@given(tokens=st.lists(st.integers(31745, 31999), min_size=7, max_size=7), key=st.sampled_from(["arm7", "nomask7"]))
def test_unnormalize_and_tokenize_are_inverse(model, tokens, key):
    ids = torch.tensor([tokens])
    single = model.unnormalize(ids, key).astype(np.float32)  # as environments take them
    assert torch.equal(model.tokenize(single, key), ids)


def test_a_masked_dimension_is_not_scaled(model):
    tokens = torch.full((1, 7), 31872)
    actions = model.unnormalize(tokens, "arm7")
    assert actions[0, 6] == TOKENIZER.decode(np.array([31872]))[0]
    stats = model.config.norm_stats["arm7"]["action"]
    middle = [(low + high) / 2 for low, high in zip(stats["q01"], stats["q99"], strict=True)]
    np.testing.assert_allclose(actions[0, :6], middle[:6], atol=0.01)


def test_a_dimension_that_never_varied():
    scale = ActionScale.of(NEVER_VARIED, None)
    normalized = scale.normalize(np.array([[0.5, 1.0]]))
    np.testing.assert_array_equal(normalized, [[0.0, 1.0]])
    np.testing.assert_array_equal(scale.unnormalize(normalized), [[0.5, 1.0]])


def test_keys(model):
    assert ActionScale.of(NEVER_VARIED, None).low.tolist() == [0.5, -1.0]
    with pytest.raises(UserError, match=r"arm4.*arm7.*nomask7"):
        model.unnormalize(torch.full((1, 7), 31872))
    with pytest.raises(UserError, match=r"'arm8'.*arm7"):
        model.unnormalize(torch.full((1, 7), 31872), "arm8")
    with pytest.raises(ValueError, match="4 numbers"):
        model.unnormalize(torch.full((1, 7), 31872), "arm4")
