"""What OpenVLA and OpenVLA-OFT share: vision stacks, projector and Llama decoder, with checkpoints, adapters and
precision. How images and a prompt become actions is up to each family.

After `modeling_prismatic.py` of openvla c8f03f4, on transformers' Llama and timm's vision transformers.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import wraps
from pathlib import Path
from typing import Any, ClassVar, Concatenate, NamedTuple, ParamSpec, Self, TypeVar

import numpy as np
import torch
from jaxtyping import Float, Float32, Int
from omegaconf import DictConfig
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from vla_razor.errors import UserError, nearest
from vla_razor.policies.openvla import checkpoint, lora
from vla_razor.policies.openvla.action_tokenizer import ActionScale, ActionTokenizer
from vla_razor.policies.openvla.config import OpenVLAConfig
from vla_razor.policies.openvla.initialization import initialize
from vla_razor.policies.openvla.processor import Processor
from vla_razor.policies.openvla.vision import Projector, VisionBackbone, module_key, stored_key

P = ParamSpec("P")
R = TypeVar("R")
M = TypeVar("M", bound="PrismaticVLA")


def in_its_precision(method: Callable[Concatenate[M, P], R]) -> Callable[Concatenate[M, P], R]:
    """Decorates a method whose matrix products are computed in the model's `products`."""

    @wraps(method)
    def call(model: M, *arguments: P.args, **settings: P.kwargs) -> R:
        with model.precision():
            return method(model, *arguments, **settings)

    return call


class Samples(NamedTuple):
    """Sampled actions.

    `tokens` are vocabulary ids; `logits` cover the 256 action ids in id order, untempered; `log_probs` are those of
    the tokens under the sampling temperature (under temperature 1 where the choice was greedy), in nats.
    """

    tokens: Int[Tensor, "B A"]
    logits: Float32[Tensor, "B A 256"]
    log_probs: Float32[Tensor, "B A"]


class PrismaticVLA(nn.Module):
    """A vision-language-action model of OpenVLA's architecture.

    Build one with `from_pretrained` (a checkpoint folder or Hub id) or `from_config` (random weights). Parameters keep
    the names they have in checkpoints, but for LayerScale (see `vision.stored_key`).

    Attributes:
        products: the dtype of matrix products, convolutions and attention; None for the parameters' own. With bfloat16
            and parameters in float32 it is mixed precision: what is added up along the layers, the normalisations, the
            rotary table and every softmax over actions stay float32.
    """

    config_class: ClassVar[type[OpenVLAConfig]] = OpenVLAConfig

    def __init__(self, config: OpenVLAConfig, processor: Processor) -> None:
        super().__init__()
        self.config = config
        self.processor = processor
        self.name_or_path = ""
        self.vision_backbone = VisionBackbone(config)
        text = _llama_config(config)
        fused = len(config.timm_model_ids) > 1
        self.projector = Projector(self.vision_backbone.embed_dim, text.hidden_size, fused=fused)
        self.language_model = LlamaForCausalLM(text)
        self.action_tokenizer = ActionTokenizer(config.first_action_id + config.n_action_bins, config.n_action_bins)
        self.checkpointing = False
        self.products: torch.dtype | None = None

    # Building, loading, saving

    @classmethod
    def from_config(
        cls,
        config: OpenVLAConfig,
        processor: Processor,
        generator: torch.Generator,
        *,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
    ) -> Self:
        """A model with random weights, drawn from `generator`."""
        model = on_meta(cls, config, processor)
        model.to_empty(device="cpu")
        initialize(model, model.language_model.lm_head, generator)
        return model.cast(dtype).to(device).eval()

    @classmethod
    def from_pretrained(
        cls,
        folder_or_hub_id: str | Path,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
        matrices: torch.dtype | None = None,
        **settings: Any,
    ) -> Self:
        """Load a checkpoint folder, or a Hub id (downloaded only then). No code of the checkpoint is run.

        `dtype` is that of the parameters, `matrices` that of those which products alone read, where it differs; buffers
        stay as they are. `settings` of the family's own (OpenVLA-OFT: `chunk`, `dims`, `stop_token`, `normalization`)
        hold instead of those of `config.json`, unless they are None, and are kept when the model is saved.

        Raises `UserError` for a folder that is none, of another architecture, incomplete or damaged, and for a setting
        that the family does not have.
        """
        folder = checkpoint.locate(folder_or_hub_id)
        config = cls.config_class.from_dict(checkpoint.read_json(folder / checkpoint.CONFIG_FILE), str(folder))
        for name, value in settings.items():
            if name not in config.OWN:
                raise UserError(f"{folder}, opened as {cls.__name__}: unknown {name}. {nearest(name, config.OWN)}")
            if value is not None:
                setattr(config, name, value)
        config.check(str(folder))
        if (folder / checkpoint.STATISTICS_FILE).is_file():
            config.norm_stats = checkpoint.read_json(folder / checkpoint.STATISTICS_FILE)
        model = on_meta(cls, config, Processor.from_folder(folder, config.text["bos_token_id"]))
        tensors = checkpoint.read_tensors(folder, str(device))
        kinds = dict.fromkeys(read_by_products(model), matrices) if matrices else {}
        named = ((module_key(key), tensor) for key, tensor in tensors)
        checkpoint.assign(model, {name: tensor.to(kinds.get(name, dtype)) for name, tensor in named}, folder)
        model.name_or_path = str(folder.resolve()) if Path(folder_or_hub_id).is_dir() else str(folder_or_hub_id)
        return model.to(device).eval()

    def save_pretrained(self, folder: str | Path, max_shard_size: str | int = "5GB") -> None:
        """Write what `from_pretrained` reads, under the original's key names. With adapters, write only them, as peft
        would, and the policy's temperature and prompt.

        The files are written aside and renamed. Raises `UserError` for a `folder` that is not empty.
        """

        def fill(aside: Path) -> None:
            if self.has_adapter:
                lora.save(self, aside, self.name_or_path)
                return
            config = {**self.config.to_dict(), "torch_dtype": checkpoint.torch_dtype_name(self.dtype)}
            (aside / checkpoint.CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n")
            statistics = json.dumps(self.config.norm_stats, indent=2) + "\n"
            (aside / checkpoint.STATISTICS_FILE).write_text(statistics)
            self.processor.save(aside)
            checkpoint.write_tensors(self.stored_tensors(), aside, max_shard_size)

        checkpoint.write_folder(Path(folder), fill)

    def stored_tensors(self) -> dict[str, Tensor]:
        """The base's parameters under the names they have in a checkpoint."""
        parameters = {k: v.detach() for k, v in self.named_parameters() if "lora_" not in k}
        return {stored_key(name.replace(".base_layer.", ".")): tensor for name, tensor in parameters.items()}

    def fingerprint(self) -> str:
        """SHA-256 of the configuration, the weights (with adapters, unless they are disabled), and `products`."""
        config = {k: v for k, v in self.config.to_dict().items() if k != "torch_dtype"}  # that of the file, not ours
        config |= {"products": str(self.products)} if self.products else {}
        digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
        tensors = self.stored_tensors()
        if self.has_adapter and not lora.layers(self)[0].disable_adapters:
            tensors |= {k: v.detach() for k, v in self.named_parameters() if "lora_" in k}
        for name, tensor in sorted(tensors.items()):
            digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
            digest.update(tensor.contiguous().cpu().view(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()

    def cast(self, dtype: torch.dtype, matrices: torch.dtype | None = None) -> Self:
        """Cast the parameters; those which only products read to `matrices`, where it is given."""
        kinds = dict.fromkeys(read_by_products(self), matrices) if matrices else {}
        for name, parameter in self.named_parameters():
            parameter.data = parameter.data.to(kinds.get(name, dtype))
        return self

    def precision(self) -> AbstractContextManager[Any]:
        """Inside, matrix products are computed in `products`. Every method call has a context of its own: autocast
        keeps its copies of the weights until the context ends, and copies made without gradients must not be used by a
        pass that needs them.
        """
        if self.products is None or self.device.type == "meta":  # the meta device has no autocast
            return nullcontext()
        return torch.autocast(self.device.type, self.products)

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        """What `to`, `bfloat16`, `cuda` ... call. The rotary frequencies follow to the device but keep float32: in
        bfloat16 their phase is off by up to 0.35 rad within a prompt."""
        rotary = self.language_model.model.rotary_emb
        frequencies = dict(rotary.named_buffers())
        super()._apply(fn, recurse)
        for name, exact in frequencies.items():
            rotary.register_buffer(name, exact.to(self.device), persistent=False)
        return self

    @property
    def device(self) -> torch.device:
        return self.language_model.model.embed_tokens.weight.device

    @property
    def chunk(self) -> int:
        """Control steps per decision."""
        return 1

    @property
    def num_tokens(self) -> int:
        """Action tokens per decision: as many as the first statistics have numbers, or seven where there are none."""
        stats = next(iter(self.config.norm_stats.values()), None)
        return len(stats["action"]["q01"]) if stats else 7

    @property
    def action_ids(self) -> range:
        """The vocabulary ids of the action tokens, from the least action to the greatest or the reverse."""
        first = self.config.first_action_id
        return range(first, first + self.config.n_action_bins)

    @property
    def dtype(self) -> torch.dtype:
        return self.language_model.model.embed_tokens.weight.dtype

    def parameter_groups(self, config: DictConfig) -> list[dict[str, Any]]:
        """What is trained: the weights, and the language model's normalisation gains at `gain_learning_rate` (null:
        that of the weights) without weight decay. The vision stacks are frozen unless `config.train_vision`. A
        parameter that is frozen already (below a LoRA adapter) stays so.
        """
        gains, weights = [], []
        for name, parameter in self.named_parameters():
            if "vision_backbone." in name and not config.train_vision:
                parameter.requires_grad_(False)
            if parameter.requires_grad:
                (gains if _is_gain(name) else weights).append(parameter)
        gain_rate = config.learning_rate if config.gain_learning_rate is None else config.gain_learning_rate
        groups = [
            {"params": weights, "lr": config.learning_rate},
            {"params": gains, "lr": gain_rate, "weight_decay": 0.0},
        ]
        return [group for group in groups if group["params"]]

    # Adapters and memory

    @property
    def has_adapter(self) -> bool:
        return bool(lora.layers(self))

    def add_lora(self, rank: int = 32, alpha: int = 16, *, generator: torch.Generator | None = None) -> Self:
        """Put low-rank adapters on every linear layer that is run, and freeze everything else. Returns the model."""
        depths = [len(stack.blocks) for stack in self.vision_backbone.stacks]
        lora.add(self, lora.configuration(rank, alpha, depths))
        lora.initialize(self, generator)
        return self

    def load_lora(self, folder: str | Path) -> Self:
        """Add the adapter that `save_pretrained` or peft wrote to `folder`, and adopt its policy's settings."""
        lora.load(self, Path(folder))
        return self

    def merge_lora(self) -> Self:
        """Add the adapters to the weights they adapt, and remove them."""
        lora.merge(self)
        return self

    @contextmanager
    def adapter_disabled(self) -> Iterator[None]:
        """Inside, the model is the base policy. Without adapters this changes nothing."""
        with lora.disabled(self):
            yield

    def gradient_checkpointing(self, enabled: bool = True) -> Self:
        """Recompute each block's activations in the backward pass instead of keeping them."""
        self.checkpointing = self.vision_backbone.checkpointing = enabled
        return self

    def action_scale(self, key: str | None, length: int) -> ActionScale:
        """The statistics of `key` (None: the only ones). Raises `ValueError` unless actions have `length` numbers."""
        scale = self.config.action_scale(key)
        if length != len(scale.low):
            raise ValueError(
                f"expected actions of {len(scale.low)} numbers for {key or 'this checkpoint'}, got {length}"
            )
        return scale

    # What each family does in its own way; B images and prompts, A action tokens

    autoregressive: ClassVar[bool] = True
    """Whether an action token is read from the ones before it, and so one pass after the other."""

    def sample_actions(
        self,
        pixels: Float[Tensor, "B C H W"],
        input_ids: Sequence[Sequence[int]],
        temperature: float = 0.0,
        generator: torch.Generator | None = None,
        num_tokens: int = 7,
        uniforms: Float[Tensor, "B A"] | None = None,
    ) -> Samples:
        """Sample a decision for each prompt."""
        raise NotImplementedError

    def predicting_hidden(
        self, pixels: Float[Tensor, "B C H W"], input_ids: Sequence[Sequence[int]], tokens: Int[Tensor, "B A"]
    ) -> Float[Tensor, "B A H"]:
        """What the head reads for each of `tokens`."""
        raise NotImplementedError

    def action_logits(
        self, pixels: Float[Tensor, "B C H W"], input_ids: Sequence[Sequence[int]], tokens: Int[Tensor, "B A"]
    ) -> Float32[Tensor, "B A 256"]:
        """The logits over the action ids at each of `tokens`' positions."""
        raise NotImplementedError

    def supervised_loss(
        self, pixels: Float[Tensor, "B C H W"], input_ids: Sequence[Sequence[int]], tokens: Int[Tensor, "B A"]
    ) -> Float32[Tensor, ""]:
        """The reference's training loss."""
        raise NotImplementedError

    def unnormalize(self, tokens: Int[Tensor, "B A"], key: str | None = None) -> Float[np.ndarray, "B ..."]:
        """Actions in environment units."""
        raise NotImplementedError

    def tokenize(self, actions: Float[np.ndarray, "B ..."], key: str | None = None) -> Int[Tensor, "B A"]:
        """The inverse of `unnormalize`."""
        raise NotImplementedError

    # What the families' forward passes are made of

    @torch.no_grad()
    @in_its_precision
    def patch_features(self, pixels: Float[Tensor, "B C H W"]) -> Float[Tensor, "B P D"]:
        """The features that the vision stacks compute from images. Every method with a parameter `pixels` accepts them
        instead: while the vision stacks are frozen, images need be processed only once.
        """
        return self.vision_backbone(pixels.to(self.device, self.dtype))

    @in_its_precision
    def projected(self, pixels: Float[Tensor, "B C H W"] | Float[Tensor, "B P D"]) -> Float[Tensor, "B P H"]:
        """Patches at the decoder's width, of pixels or of `patch_features`."""
        return self.projector(pixels if pixels.ndim == 3 else self.vision_backbone(pixels.to(self.device, self.dtype)))

    def prompts(self, input_ids: Sequence[Sequence[int]], images: int) -> list[list[int]]:
        """The prompts' ids with their trailing token. Raises `ValueError` unless there is one for each image."""
        if images != len(input_ids) or not all(len(ids) for ids in input_ids):
            raise ValueError(f"expected a prompt of at least BOS for each of {images} images, got {len(input_ids)}")
        return [self._with_trailing_token(ids) for ids in input_ids]

    def _with_trailing_token(self, ids: Sequence[int]) -> list[int]:
        ids, trailing = [int(i) for i in ids], self.config.trailing_token_id
        return ids if trailing is None or ids[-1] == trailing else [*ids, trailing]

    @in_its_precision
    def action_head(self, hidden: Float[Tensor, "*B H"]) -> Float32[Tensor, "*B 256"]:
        """The head's rows of action ids."""
        rows = slice(self.action_ids.start, self.action_ids.stop)
        return lora.linear_rows(self.language_model.lm_head, hidden, rows).float()


def _is_gain(name: str) -> bool:
    return "language_model." in name and "norm" in name.rsplit(".", 2)[-2]


def read_by_products(model: nn.Module) -> set[str]:
    """The names of the parameters of linear layers and convolutions. In mixed precision they are rounded before every
    use, so that storing them rounded changes no result.
    """
    layers = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)}
    return {f"{name}.{own}" for name, layer in layers.items() for own, _ in layer.named_parameters(recurse=False)}


def _llama_config(config: OpenVLAConfig) -> LlamaConfig:
    try:
        return LlamaConfig(**config.text)
    except Exception as error:
        raise UserError(f"text_config describes no Llama decoder: {error}") from error


def on_meta(cls: type[M], config: OpenVLAConfig, processor: Processor) -> M:
    """The modules on the meta device. The rotary frequencies, which no file holds, are real."""
    with torch.device("meta"):
        model = cls(config, processor)
    llama = model.language_model.model
    llama.rotary_emb = LlamaRotaryEmbedding(llama.config)
    return model
