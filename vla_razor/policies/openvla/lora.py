"""Low-rank adapters on an OpenVLA model, through peft and in peft's file layout. A file beside them holds what an
adapter cannot say about its policy: the temperature at which it was trained, and how it is prompted.

The adapters are injected in place. The model keeps its class and its methods, and the base policy is the same model
with them switched off: there is no second copy in memory.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from vla_razor.errors import UserError
from vla_razor.policies.openvla import checkpoint
from vla_razor.policies.openvla.config import OpenVLAConfig

if TYPE_CHECKING:  # peft takes seconds to import, and most policies have no adapters
    from peft import LoraConfig

ADAPTER_CONFIG_FILE = "adapter_config.json"
ADAPTER_WEIGHTS_FILE = "adapter_model.safetensors"
POLICY_FILE = "policy.json"
"""A file of its own, since peft warns about unknown keys in its own. Where it is absent, the base's settings hold."""
_NAME = "default"
_PREFIX = "base_model.model."


def peft_config(model: Any) -> "LoraConfig":
    """The configuration that `add` was given; peft keeps it on the model."""
    return model.peft_config[_NAME]


def is_adapted(module: nn.Module) -> bool:
    """Whether peft has put an adapter around this layer."""
    return hasattr(module, "lora_A")


def layers(model: nn.Module) -> list[Any]:
    """Every adapted layer (peft's `LoraLayer`)."""
    return [module for module in model.modules() if is_adapted(module)]


def targets(vision_depths: Sequence[int]) -> str:
    """A pattern for the linear layers that are run: all but those of each vision stack's last block and head."""
    parts = [r"language_model\..*_proj", r"language_model\.lm_head", r"projector\.fc\d"]
    for stack, depth in zip(("featurizer", "fused_featurizer"), vision_depths, strict=False):
        parts.append(rf"vision_backbone\.{stack}\.blocks\.(?!{depth - 1}\.)\d+\.(attn\.(qkv|proj)|mlp\.fc\d)")
    return "|".join(parts)


def configuration(rank: int, alpha: int, vision_depths: Sequence[int]) -> "LoraConfig":
    """Adapters on every linear layer that is run."""
    from peft import LoraConfig

    return LoraConfig(r=rank, lora_alpha=alpha, target_modules=targets(vision_depths), init_lora_weights="gaussian")


def add(model: nn.Module, config: "LoraConfig") -> None:
    """Inject adapters. Afterwards only they are trainable; they are float32 whatever the model is."""
    from peft import inject_adapter_in_model

    if layers(model):
        raise ValueError("the model has adapters already")
    inject_adapter_in_model(config, model, adapter_name=_NAME)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name)
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def initialize(model: nn.Module, generator: torch.Generator | None) -> None:
    """A ~ N(0, 1/r) and B = 0 (peft's "gaussian", OpenVLA's choice), drawn from `generator`."""
    for layer in layers(model):
        down, up = layer.lora_A[_NAME].weight.data, layer.lora_B[_NAME].weight.data
        down.copy_(torch.empty(down.shape).normal_(std=1 / layer.r[_NAME], generator=generator))
        up.zero_()


@contextmanager
def disabled(model: nn.Module) -> Iterator[None]:
    """Inside, the model is its base. Afterwards the same parameters are trainable as before."""
    adapted = [layer for layer in layers(model) if not layer.disable_adapters]
    asked = [(parameter, parameter.requires_grad) for layer in adapted for parameter in layer.parameters()]
    for layer in adapted:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in adapted:
            layer.enable_adapters(True)
        for parameter, before in asked:  # peft makes every adapter trainable here
            parameter.requires_grad_(before)


def linear_rows(layer: Any, x: Float[Tensor, "*B H"], rows: slice) -> Float[Tensor, "*B R"]:
    """The outputs `rows` of a bias-free linear layer, adapted or not, without computing the others."""
    if not is_adapted(layer):
        return F.linear(x, layer.weight[rows])
    out = F.linear(x, layer.get_base_layer().weight[rows])
    if not layer.disable_adapters:
        down, up = layer.lora_A[_NAME], layer.lora_B[_NAME]
        low = down(layer.lora_dropout[_NAME](x).to(down.weight.dtype))
        out = out + (F.linear(low, up.weight[rows]) * layer.scaling[_NAME]).to(out.dtype)
    return out


def save(model: Any, folder: Path, base: str) -> None:
    """Write the adapter as peft would, and the policy's settings; `base` is where `load` finds what it adapts."""
    config = peft_config(model)
    config.base_model_name_or_path = base
    config.save_pretrained(str(folder))
    save_file(_tensors(model), folder / ADAPTER_WEIGHTS_FILE, metadata={"format": "pt"})
    (folder / POLICY_FILE).write_text(
        json.dumps({key: getattr(model.config, key) for key in model.config.SETTINGS}, indent=2) + "\n"
    )


def load(model: Any, folder: Path) -> None:
    """Add the adapter in `folder`, with its policy's settings. Raises `UserError` if it does not fit the model."""
    config, stored, policy = read_config(folder), _stored(folder), _policy(model.config, folder)
    config.inference_mode = False
    try:
        add(model, config)
    except ValueError as error:
        raise UserError(f"{folder}: the adapter does not fit its base: {error}") from error
    own = {_PREFIX + name.replace(f".{_NAME}.", "."): p for name, p in model.named_parameters() if "lora_" in name}
    if own.keys() != stored.keys() or any(own[key].shape != stored[key].shape for key in own):
        differing = sorted(own.keys() ^ stored.keys()) or [k for k in own if own[k].shape != stored[k].shape]
        raise UserError(
            f"{folder}: the adapter does not fit its base: {len(differing)} tensors differ, as {differing[0]}."
        )
    for key, parameter in own.items():
        parameter.data.copy_(stored[key])
    model.config = policy


def read_config(folder: Path) -> "LoraConfig":
    """The adapter's configuration; its `base_model_name_or_path` says what it adapts."""
    from peft import LoraConfig, PeftConfig

    try:
        config = PeftConfig.from_pretrained(str(folder))
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{folder / ADAPTER_CONFIG_FILE}: not an adapter's configuration ({error}).") from error
    if not isinstance(config, LoraConfig):
        raise UserError(f"{folder}: the adapter is of type {config.peft_type}; only LoRA is supported.")
    return config


def settings_beside(folder: Path) -> dict[str, Any]:
    """The policy's settings that lie beside an adapter; none beside one that peft wrote."""
    path = folder / POLICY_FILE
    return checkpoint.read_json(path) if path.is_file() else {}


def merge(model: nn.Module) -> None:
    """Add the adapters to the base weights and remove them; the weights below them become trainable again."""
    adapted: list[tuple[str, Any]] = [(name, module) for name, module in model.named_modules() if is_adapted(module)]
    for name, layer in adapted:
        layer.merge()
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, layer.get_base_layer())
    del model.peft_config
    model.requires_grad_(True)


class MergedWeights(Mapping[str, Tensor]):
    """Stored weights, to each of which a stored adapter is added when it is asked for, as `merge` would. Raises
    `UserError` where the adapter cannot be read.
    """

    def __init__(self, weights: Mapping[str, Tensor], folder: Path) -> None:
        config = read_config(folder)
        self._weights, self._scaling = weights, config.lora_alpha / config.r
        self._adapters = _stored(folder)

    def __getitem__(self, name: str) -> Tensor:
        weight, layer = self._weights[name], _PREFIX + name.removesuffix(".weight")
        if f"{layer}.lora_A.weight" not in self._adapters:
            return weight
        down, up = (self._adapters[f"{layer}.lora_{part}.weight"] for part in "AB")
        return weight + (up @ down * self._scaling).to(weight.dtype)

    def __iter__(self) -> Iterator[str]:
        return iter(self._weights)

    def __len__(self) -> int:
        return len(self._weights)


def _policy(config: OpenVLAConfig, folder: Path) -> OpenVLAConfig:
    """The configuration with the settings that lie beside an adapter, if any do."""
    path, settings = folder / POLICY_FILE, settings_beside(folder)
    if not settings:
        return config
    try:
        settings["temperature"] = float(settings["temperature"])
        changed = replace(config, **{key: settings[key] for key in config.SETTINGS})
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: expected {' and '.join(config.SETTINGS)} ({error!r}).") from error
    changed.check(str(path))
    return changed


def _stored(folder: Path) -> dict[str, Tensor]:
    try:
        return load_file(folder / ADAPTER_WEIGHTS_FILE)
    except FileNotFoundError:
        raise UserError(f"{folder}: no {ADAPTER_WEIGHTS_FILE} here.") from None
    except SafetensorError as error:
        raise UserError(f"{folder / ADAPTER_WEIGHTS_FILE}: damaged or cut short ({error}).") from error


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """The adapters' tensors under the names peft gives them in files."""
    return {
        _PREFIX + name.replace(f".{_NAME}.", "."): tensor.detach().cpu().contiguous()
        for name, tensor in model.named_parameters()
        if "lora_" in name
    }
