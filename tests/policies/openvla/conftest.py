"""The reference checkpoint and what the original code computed with it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import timm
import torch
from torch import Tensor

from tests.loading import load
from vla_razor.policies.openvla import OpenVLA, OpenVLAConfig, Processor
from vla_razor.policies.openvla.tiny import make_tiny

FOLDER = Path(__file__).parent / "fixtures" / "openvla_tiny"
INSTRUCTIONS = [f"{verb} {which} drawer" for verb in ("open", "close") for which in ("top", "middle", "bottom")]


class Reference(NamedTuple):
    """The fixture's arrays, as a test wants them."""

    folder: Path
    images: list[np.ndarray]
    pixels: Tensor
    prompts: list[list[int]]
    tokens: Tensor
    logits: Tensor
    outputs: dict[str, np.ndarray]
    preprocessed: dict[str, np.ndarray]


@pytest.fixture(scope="session")
def reference() -> Reference:
    if not timm.is_model("tiny_vit_dino"):
        load(FOLDER / "tiny_timm.py", "tiny_timm")
    inputs, outputs, preprocessed = (
        dict(np.load(FOLDER / f"{name}.npz")) for name in ("inputs", "outputs", "preprocess")
    )
    return Reference(
        folder=FOLDER,
        images=[inputs[f"image{i}"] for i in range(3)],
        pixels=torch.from_numpy(inputs["pixel_values"]),
        prompts=[ids[:n].tolist() for ids, n in zip(inputs["input_ids"], inputs["lengths"], strict=True)],
        tokens=torch.from_numpy(outputs["action_tokens"]),
        logits=torch.from_numpy(np.stack([outputs[f"logits_action_{i}"] for i in range(3)])),
        outputs=outputs,
        preprocessed=preprocessed,
    )


@pytest.fixture(scope="session")
def model(reference: Reference) -> OpenVLA:
    """The reference checkpoint, loaded once: tests must leave it as it is."""
    return OpenVLA.from_pretrained(reference.folder)


@pytest.fixture
def fresh_model(reference: Reference) -> OpenVLA:
    """The reference checkpoint, for tests that change it."""
    return OpenVLA.from_pretrained(reference.folder)


@pytest.fixture(scope="session")
def new_tiny() -> Callable[[int], OpenVLA]:
    """A maker of untrained embedded policies, from a seed."""
    return _new_tiny


@pytest.fixture(scope="session")
def tiny() -> OpenVLA:
    """An untrained embedded policy: tests must leave it as it is."""
    return _new_tiny(0)


def _new_tiny(seed: int) -> OpenVLA:
    action = {"q01": [-0.1] * 3 + [-0.3] * 3 + [-1.0], "q99": [0.1] * 3 + [0.3] * 3 + [1.0]}
    generator = torch.Generator().manual_seed(seed)
    return make_tiny([*INSTRUCTIONS, "pick can"], generator, norm_stats={"vla_razor_panda": {"action": action}})


@pytest.fixture
def real_model() -> OpenVLA:
    """OpenVLA-7B, without memory for a single parameter."""
    raw = {
        "model_type": "openvla",
        "vision_backbone_id": "dinosiglip-vit-so-224px",
        "text_config": {"model_type": "llama", "pad_token_id": 32000, "vocab_size": 32064, "torch_dtype": "bfloat16"},
    }
    settings = json.loads((FOLDER / "preprocessor_224" / "preprocessor_config.json").read_text())
    with torch.device("meta"):
        return OpenVLA(OpenVLAConfig.from_dict(raw), Processor(settings))


@pytest.fixture
def raw_config() -> dict:
    return json.loads((FOLDER / "config.json").read_text())
