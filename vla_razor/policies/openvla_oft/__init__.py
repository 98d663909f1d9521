"""OpenVLA-OFT's discrete variant, native to today's torch: a chunk of actions in one bidirectional pass."""

from vla_razor.policies.openvla_oft.config import OpenVLAOFTConfig
from vla_razor.policies.openvla_oft.model import OpenVLAOFT

__all__ = ["OpenVLAOFT", "OpenVLAOFTConfig"]
