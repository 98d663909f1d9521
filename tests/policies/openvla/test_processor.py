"""Images to pixels, instructions to ids."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vla_razor.errors import UserError
from vla_razor.policies.openvla import Processor
from vla_razor.policies.openvla.processor import PROMPT


def _settings(reference) -> dict:
    return json.loads((reference.folder / "preprocessor_config.json").read_text())


def test_resize_naive(model, reference):
    assert torch.equal(model.processor.pixel_values(reference.images), reference.pixels)
    expected = torch.from_numpy(reference.preprocessed["pixel_values_resize_naive"])
    assert torch.equal(model.processor.pixel_values(reference.images), expected)


def test_letterbox(reference):
    processor = Processor({**_settings(reference), "tvf_do_letterbox": True, "tvf_letterbox_fill": [127, 127, 127]})
    expected = torch.from_numpy(reference.preprocessed["pixel_values_letterbox"])
    assert torch.equal(processor.pixel_values(reference.images), expected)


def test_resize_crop(reference):
    read = _settings(reference)
    for resize in read["tvf_resize_params"]:
        resize["size"] = 56
    expected = torch.from_numpy(reference.preprocessed["pixel_values_resize_crop"])
    assert torch.equal(Processor(read).pixel_values(reference.images), expected)


def test_exact_bytes_at_224(reference):
    processor = Processor(json.loads((reference.folder / "preprocessor_224/preprocessor_config.json").read_text()))
    resized = np.stack([processor.transforms[0].pixels(image).transpose(2, 0, 1) for image in reference.images])
    np.testing.assert_array_equal(resized, reference.preprocessed["u8_224_resize_naive"])
    pixels = processor.pixel_values(reference.images)
    np.testing.assert_array_equal(pixels[:, :, 100].numpy(), reference.preprocessed["pv224_row100"])
    means = pixels.double().mean((2, 3)).numpy()
    np.testing.assert_allclose(means, reference.preprocessed["pv224_mean_per_channel"], atol=1e-12)


@settings(deadline=None, max_examples=20)
@given(st.lists(st.tuples(st.integers(1, 90), st.integers(1, 90)), min_size=1, max_size=4))
def test_images_of_any_sizes(model, sizes):
    pixels = model.processor.pixel_values([np.full((*size, 3), 255, np.uint8) for size in sizes])
    assert pixels.shape == (len(sizes), 6, 56, 56)
    for channel, (mean, std) in enumerate(zip((0.484375, 0.455078125), (0.228515625, 0.2236328125), strict=True)):
        torch.testing.assert_close(pixels[:, channel], torch.full_like(pixels[:, channel], (1 - mean) / std))
    assert torch.equal(pixels[:, 3:], torch.ones_like(pixels[:, 3:]))


@pytest.mark.parametrize("image", [np.zeros((8, 8, 3)), np.zeros((8, 8), np.uint8), np.zeros((8, 8, 4), np.uint8)])
def test_other_images_are_refused(model, image):
    with pytest.raises(ValueError, match="uint8"):
        model.processor.pixel_values([image])


def test_without_a_tokenizer(model):
    with pytest.raises(UserError, match=r"tokenizer\.json"):
        model.processor.prompt_ids(["pick can"])


def test_the_references_prompts(reference):
    read = json.loads((reference.folder / "prompts.json").read_text())
    assert [PROMPT.format(i.lower()) for i in read["instructions"]] == read["prompts"]


def test_prompts_of_the_embedded_tokenizer(tiny):
    first, second, other = tiny.processor.prompt_ids(["pick can", "Pick CAN", "open the top drawer"])
    assert first == second
    assert first[0] == 1
    assert len(first) == 5  # BOS, what all prompts begin with, two words, what all end with
    assert [len(other), other[2:-1].count(0)] == [7, 1]  # "the" is in no instruction it was made for


def test_settings_of_something_else():
    with pytest.raises(UserError, match="tvf_"):
        Processor({"image_processor_type": "CLIPImageProcessor"})
