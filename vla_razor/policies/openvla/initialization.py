"""Random weights for a policy that is trained from scratch."""

import torch
from torch import nn


def initialize(model: nn.Module, head: nn.Linear, generator: torch.Generator) -> None:
    """Weights scaled by fan-in, so that activations do not depend on the width; the `head` is nearly uniform."""
    scaled = {id(m.weight) for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d)}
    scaled.discard(id(head.weight))
    for name, parameter in model.named_parameters():
        if name.endswith(".bias"):
            nn.init.zeros_(parameter)
        elif name.endswith(".gamma") or "norm" in name:
            nn.init.ones_(parameter)
        else:
            std = parameter[0].numel() ** -0.5 if id(parameter) in scaled else 0.02
            nn.init.normal_(parameter, std=std, generator=generator)
