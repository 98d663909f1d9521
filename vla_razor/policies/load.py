"""From what a user types (`tiny`, a run folder, a checkpoint, a Hub id) to a model."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vla_razor.devices import device_named
from vla_razor.errors import UserError
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
    """Load a policy's model, of the family that its `config.json` states.

    Args:
        spec: "tiny" or "vla" (the embedded base), a run folder (its newest checkpoint), a checkpoint folder (a whole
            model, or an adapter, whose base is then loaded first), or a Hub id.
        device: "auto" takes a GPU where there is one.
        dtype: of the parameters; an adapter's are float32.
        matrices: the dtype of those parameters that matrix products alone read, where it differs.
        oft: opens a checkpoint as OpenVLA-OFT although its `config.json` does not say that it is, as the original's do
            not: any of the settings of `OpenVLAOFT.from_pretrained`.

    Raises `UserError` for anything else.
    """
    kind = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not isinstance(kind, torch.dtype) or not kind.is_floating_point:
        raise UserError(f"dtype={dtype}: unknown; expected float32 or bfloat16.")
    device, folder, adapter = device_named(device), folder_of(spec), None
    if folder is not None and (folder / lora.ADAPTER_CONFIG_FILE).is_file():
        adapter, spec = folder, _adapted(folder)
        folder, beside = folder_of(spec), lora.settings_beside(adapter)
        oft = oft or {key: value for key, value in beside.items() if key in OpenVLAOFTConfig.OWN} or None
    place = folder or checkpoint.locate(spec)
    family = OpenVLAOFT if oft is not None else family_of(checkpoint.read_json(place / checkpoint.CONFIG_FILE))
    model = family.from_pretrained(place, kind, device, matrices, **(oft or {}))
    if folder in (None, TINY):  # the name that was typed, not the path behind it
        model.name_or_path = "tiny" if folder else str(spec)
    return model.load_lora(adapter) if adapter else model


def family_of(raw: Mapping[str, Any]) -> type[PrismaticVLA]:
    """The family of a checkpoint with this `config.json`."""
    return OpenVLAOFT if "chunk" in raw else OpenVLA


def stored_weights(spec: str | Path) -> Mapping[str, Tensor]:
    """The weights of what `load_model` would load, an adapter's merged, by their names in a checkpoint. Each is read
    from its file when it is asked for. Raises `UserError` as `load_model` does.
    """
    folder = folder_of(spec)
    if folder is None or not (folder / lora.ADAPTER_CONFIG_FILE).is_file():
        return checkpoint.StoredWeights(folder or checkpoint.locate(spec))
    return lora.MergedWeights(stored_weights(_adapted(folder)), folder)


def folder_of(spec: str | Path) -> Path | None:
    """The local folder of the weights that `spec` names; None for a Hub id. Raises UserError if the base is missing."""
    if str(spec) not in _EMBEDDED:
        return whole_checkpoint(Path(spec))
    if not TINY.is_dir():
        raise UserError(f"The embedded base policy is not in {TINY}. Make it with scripts/make_tiny_base.py.")
    return TINY


def _adapted(folder: Path) -> str:
    """What the adapter in a folder was trained on."""
    base = lora.read_config(folder).base_model_name_or_path
    if not base:
        raise UserError(f"{folder}: the adapter does not say what it adapts (base_model_name_or_path).")
    return base
