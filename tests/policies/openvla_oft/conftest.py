"""The reference checkpoint and what the original code computed with it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import timm
import torch
from torch import Tensor

from tests.loading import load
from vla_razor.policies.openvla_oft import OpenVLAOFT

FIXTURES = Path(__file__).parent / "fixtures"
VISION = Path(__file__).parent.parent / "openvla" / "fixtures" / "openvla_tiny" / "tiny_timm.py"


class Reference(NamedTuple):
    """The fixture's arrays, as a test wants them."""

    folder: Path
    pixels: Tensor
    prompts: list[list[int]]
    inputs: dict[str, np.ndarray]
    outputs: dict[str, np.ndarray]

    def tensor(self, name: str) -> Tensor:
        return torch.from_numpy(self.outputs[name])

    def tensors(self, name: str) -> Tensor:
        """Those of the three prompts, one below the other."""
        return torch.stack([self.tensor(f"{name}_{i}") for i in range(3)])


@pytest.fixture(scope="session")
def reference() -> Reference:
    if not timm.is_model("tiny_vit_dino"):
        load(VISION, "tiny_timm")
    folder = FIXTURES / "openvla_oft_tiny"
    inputs, outputs = (dict(np.load(folder / f"{name}.npz")) for name in ("inputs", "outputs"))
    return Reference(
        folder=folder,
        pixels=torch.from_numpy(inputs["pixel_values"]),
        prompts=[ids[:n].tolist() for ids, n in zip(inputs["input_ids"], inputs["lengths"], strict=True)],
        inputs=inputs,
        outputs=outputs,
    )


@pytest.fixture(scope="session")
def opened(reference: Reference) -> Callable[..., OpenVLAOFT]:
    """The reference checkpoint, opened anew with settings of its own."""

    def open_it(**settings: Any) -> OpenVLAOFT:
        return OpenVLAOFT.from_pretrained(reference.folder, **settings)

    return open_it
