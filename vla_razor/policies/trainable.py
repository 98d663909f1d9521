"""What can be trained and measured: a policy that tells the distribution which it acts by.

Trainings, probe sets, forward KL and interpolation know a policy by this class alone. OpenVLA and OpenVLA-OFT are such
policies (`openvla/policy.py`); one of a user's own derives from it, and `policy=module:factory` brings it.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from omegaconf import DictConfig
from torch import Tensor, nn

from vla_razor.core.categorical import Categorical
from vla_razor.errors import UserError
from vla_razor.policies import Decisions, Observations


class Trainable(ABC):
    """A policy whose decisions are A tokens each, of which it tells the distribution.

    What it sees of a batch are `views`, made of images and proprioception, and `prompts`, made of instructions. A
    factory that gives such
    a policy takes a parameter `checkpoint`: the folder that `save` wrote, or None for the policy before training.

    Attributes:
        name: what it is called in tables.
        module: what learns.
        num_tokens: A.
        support: the ids that a token may be, in an order in which neighbours are similar actions.
        chunk: control steps of a decision.
        cameras: those that it reads: their names, or how many of the suite's, the first ones.
        proprioception: how many numbers of it it reads.
        unnorm_key: whose action statistics it uses, if it has any.
    """

    name: str
    module: nn.Module
    num_tokens: int
    support: range
    chunk: int = 1
    cameras: int | Sequence[str] = 1
    proprioception: int = 0
    unnorm_key: str | None = None

    # What every such policy does in its own way

    @abstractmethod
    def act(
        self,
        observations: Observations,
        generators: Sequence[np.random.Generator],
        memories: Sequence[Any] | None = None,
    ) -> Decisions:
        """As `vla_razor.policies.Policy`; the decisions have tokens and their log-probabilities."""

    @abstractmethod
    def views(self, observations: Observations) -> Any:
        """What it makes of observations whose images are as it looks at them (`seen`), on its device: a tensor
        [B, ...], or whatever else `distribution` and `sample` take. There may be no instructions, which `prompts` are
        made of.
        """

    @abstractmethod
    def prompt_ids(self, instructions: list[str]) -> list[list[int]]:
        """Instructions as it reads them; different ones differ."""

    @abstractmethod
    def distribution(self, views: Any, prompts: Sequence[Sequence[int]], tokens: Int[Tensor, "B A"]) -> Categorical:
        """Of each token, after those of `tokens` that come before it; differentiable in what learns."""

    @abstractmethod
    def sample(self, views: Any, prompts: Sequence[Sequence[int]], generator: torch.Generator) -> Int[Tensor, "B A"]:
        """Tokens drawn from the distribution."""

    @abstractmethod
    def tokenize(self, actions: Float[np.ndarray, "N D"], episode: Int[np.ndarray, " N"]) -> Int[Tensor, "N A"]:
        """The tokens of a decision at each control step that say what was done in whole episodes; `episode` tells which
        step belongs to which.
        """

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write a checkpoint into a folder, which is there and empty, and gets its name when it is whole."""

    # What most do alike

    @property
    def temperature(self) -> float:
        """Of its distribution."""
        return 1.0

    def seen(self, images: UInt8[np.ndarray, "B H W 3"]) -> UInt8[np.ndarray, "B h w 3"]:
        """A camera's images as it looks at them, and as episodes, demonstrations and probe sets keep them."""
        return images

    @property
    def feature_bytes(self) -> int:
        """Bytes of an observation's `features`; 0 where it is looked at anew every time."""
        return 0

    def features(self, observations: Observations) -> Float[Tensor, "B ..."]:
        """What can stand for `views` throughout a training, because what makes them of observations does not learn."""
        raise NotImplementedError

    def supervised_loss(
        self, views: Any, prompts: Sequence[Sequence[int]], tokens: Int[Tensor, "B A"]
    ) -> Float[Tensor, ""]:
        """The loss that its makers train it with, where that is another than the cross-entropy of its distribution."""
        raise UserError(f"{self.name} has no loss of its own: loss=cross_entropy.")

    def parameter_groups(self, config: DictConfig) -> list[dict[str, Any]]:
        """What learns, as torch's optimizers take it."""
        return [{"params": [p for p in self.module.parameters() if p.requires_grad], "lr": config.learning_rate}]

    def fingerprint(self) -> str:
        """SHA-256 of all that its decisions depend on: its weights and temperature, unless it says more."""
        digest = hashlib.sha256(f"{self.name} {self.temperature}".encode())
        for name, tensor in sorted(self.module.state_dict().items()):
            digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
            digest.update(tensor.detach().contiguous().cpu().view(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()

    @property
    def device(self) -> torch.device:
        return next(self.module.parameters()).device

    def recompute_activations(self) -> None:
        """From now on compute activations again in the backward pass instead of keeping them."""
        raise UserError(f"{self.name} keeps its activations: gradient_checkpointing=false.")

    # Adapters

    @property
    def has_adapter(self) -> bool:
        """Whether its base is the same policy with an adapter switched off."""
        return False

    def add_lora(self, rank: int, alpha: int, generator: torch.Generator) -> None:
        """Put low-rank adapters on the module; afterwards they alone learn."""
        raise UserError(f"{self.name} takes no adapters: lora_rank=0.")

    def merge_lora(self) -> None:
        """Add the adapters to the weights they adapt, and remove them."""
        raise UserError(f"{self.name} has no adapters.")

    @contextmanager
    def adapter_disabled(self) -> Iterator[None]:
        """Inside, the policy is its base."""
        yield


@contextmanager
def base_of(tuned: Trainable, named: Trainable | None, otherwise: Callable[[], Trainable]) -> Iterator[Trainable]:
    """The policy before fine-tuning, for as long as the block lasts: the one that is `named`, if any; else the tuned
    one below its adapter, if it has one; else what `otherwise` finds.
    """
    if named is not None:
        yield named
    elif tuned.has_adapter:
        with tuned.adapter_disabled():
            yield tuned
    else:
        yield otherwise()
