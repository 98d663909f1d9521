"""The embedded policy's twin in OpenVLA-OFT's architecture: random weights, to be trained from nothing."""

from collections.abc import Iterable
from typing import Any

import torch

from vla_razor.policies.openvla.tiny import tiny_parts
from vla_razor.policies.openvla_oft.config import OpenVLAOFTConfig
from vla_razor.policies.openvla_oft.model import OpenVLAOFT


def make_tiny_oft(
    instructions: Iterable[str],
    generator: torch.Generator,
    *,
    chunk: int = 8,
    dims: int = 7,
    stop_token: bool = True,
    **shape: Any,
) -> OpenVLAOFT:
    """An untrained `OpenVLAOFT` that knows the words of `instructions`; its weights are drawn from `generator`, its
    `shape` is that of `openvla.tiny.tiny_parts`.
    """
    raw, processor = tiny_parts(instructions, **shape)
    raw |= {"chunk": chunk, "dims": dims, "stop_token": stop_token}
    return OpenVLAOFT.from_config(OpenVLAOFTConfig.from_dict(raw), processor, generator)
