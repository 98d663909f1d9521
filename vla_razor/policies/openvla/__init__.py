"""OpenVLA's architecture on today's torch: `OpenVLA.from_pretrained`, batched sampling, exact likelihoods."""

from vla_razor.policies.openvla.config import OpenVLAConfig
from vla_razor.policies.openvla.model import OpenVLA, Samples
from vla_razor.policies.openvla.processor import Processor

__all__ = ["OpenVLA", "OpenVLAConfig", "Processor", "Samples"]
