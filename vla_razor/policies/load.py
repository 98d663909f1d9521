"""From what a user types (`tiny`, a run folder, a checkpoint, a Hub id) to a model."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vla_razor.devices import device_named
from vla_razor.errors import UserError, nearest
from vla_razor.policies.openvla import OpenVLA, checkpoint, lora
from vla_razor.policies.openvla.prismatic import PrismaticVLA
from vla_razor.policies.openvla_oft import OpenVLAOFT, OpenVLAOFTConfig
from vla_razor.runs import whole_checkpoint

TINY = Path(__file__).resolve().parent.parent / "assets" / "tiny"
_EMBEDDED = ("tiny", "vla")


def load_model(
    spec: str | Path,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | str = torch.float32,
    matrices: torch.dtype | None = None,
    oft: Mapping[str, Any] | None = None,
) -> PrismaticVLA:
    """Load a policy's model, of the family that its `config.json` says.

    Args:
        spec: "tiny" or "vla" (the embedded base), a run folder (its newest checkpoint), a checkpoint folder (a whole
            model, or an adapter, whose base is then loaded first), or a Hub id.
        device: "auto" takes a GPU where there is one.
        dtype: of the parameters; an adapter's are float32.
        matrices: of those that matrix products alone read, where it is another.
        oft: opens a checkpoint as OpenVLA-OFT that does not say it is, as those of the original do not: any of the
            settings of `OpenVLAOFT.from_pretrained`.

    Raises `UserError` for everything that is not such a thing.
    """
    device, dtype = device_named(device), _dtype(dtype)
    if str(spec) in _EMBEDDED:
        if not TINY.is_dir():
            raise UserError(f"The embedded base policy is not in {TINY}. Make it with scripts/make_tiny_base.py.")
        model = _from_pretrained(TINY, dtype, device, matrices, oft)
        model.name_or_path = "tiny"
        return model
    folder = whole_checkpoint(Path(spec))
    if folder is None or not (folder / lora.ADAPTER_CONFIG_FILE).is_file():
        return _from_pretrained(folder or spec, dtype, device, matrices, oft)
    own = {key: value for key, value in lora.settings_beside(folder).items() if key in OpenVLAOFTConfig.OWN}
    base = load_model(_adapted(folder), device=device, dtype=dtype, matrices=matrices, oft=oft or own or None)
    return base.load_lora(folder)


def family_of(raw: Mapping[str, Any]) -> type[PrismaticVLA]:
    """The family of a checkpoint with this `config.json`."""
    return OpenVLAOFT if "chunk" in raw else OpenVLA


def _from_pretrained(
    spec: str | Path,
    dtype: torch.dtype,
    device: torch.device,
    matrices: torch.dtype | None,
    oft: Mapping[str, Any] | None,
) -> PrismaticVLA:
    if oft is None:
        raw = checkpoint.read_json(checkpoint.locate(spec) / checkpoint.CONFIG_FILE)
        return family_of(raw).from_pretrained(spec, dtype, device, matrices)
    for name in oft:
        if name not in OpenVLAOFTConfig.OWN:
            raise UserError(f"oft={dict(oft)}: unknown {name}. {nearest(name, OpenVLAOFTConfig.OWN)}")
    return OpenVLAOFT.from_pretrained(spec, dtype, device, matrices, **oft)


def stored_weights(spec: str | Path) -> Mapping[str, Tensor]:
    """The weights of what `load_model` would load, an adapter's merged, by the names they have in a checkpoint; each is
    read from its file when it is asked for. Raises `UserError` as `load_model` does.
    """
    if str(spec) in _EMBEDDED:
        return checkpoint.StoredWeights(TINY)
    folder = whole_checkpoint(Path(spec))
    if folder is None or not (folder / lora.ADAPTER_CONFIG_FILE).is_file():
        return checkpoint.StoredWeights(folder or checkpoint.locate(spec))
    return lora.MergedWeights(stored_weights(_adapted(folder)), folder)


def _adapted(folder: Path) -> str:
    """What the adapter in a folder was trained on."""
    base = lora.read_config(folder).base_model_name_or_path
    if not base:
        raise UserError(f"{folder}: the adapter does not say what it adapts (base_model_name_or_path).")
    return base


def _dtype(dtype: torch.dtype | str) -> torch.dtype:
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise UserError(f"dtype={dtype}: unknown; expected float32 or bfloat16.")
    return found
