"""From what a user types (`tiny`, a run folder, a checkpoint, a Hub id) to a model."""

from pathlib import Path

import torch

from vla_razor.devices import device_named
from vla_razor.errors import UserError
from vla_razor.policies.openvla import OpenVLA, lora
from vla_razor.runs import checkpoint_folder

TINY = Path(__file__).resolve().parent.parent / "assets" / "tiny"
_EMBEDDED = ("tiny", "vla")


def load_model(
    spec: str | Path, *, device: str | torch.device = "cpu", dtype: torch.dtype | str = torch.float32
) -> OpenVLA:
    """Load a policy's model.

    Args:
        spec: "tiny" or "vla" (the embedded base), a run folder (its newest checkpoint), a checkpoint folder (a whole
            model, or an adapter, whose base is then loaded first), or a Hub id.
        device: "auto" takes a GPU where there is one.
        dtype: of the parameters.

    Raises `UserError` for everything that is not such a thing.
    """
    device, dtype = device_named(device), _dtype(dtype)
    if str(spec) in _EMBEDDED:
        if not TINY.is_dir():
            raise UserError(f"The embedded base policy is not in {TINY}. Make it with scripts/make_tiny_base.py.")
        model = OpenVLA.from_pretrained(TINY, dtype=dtype, device=device)
        model.name_or_path = "tiny"
        return model
    folder = checkpoint_folder(Path(spec))
    if folder is None or not (folder / lora.ADAPTER_CONFIG_FILE).is_file():
        return OpenVLA.from_pretrained(folder or spec, dtype=dtype, device=device)
    base = lora.read_config(folder).base_model_name_or_path
    if not base:
        raise UserError(f"{folder}: the adapter does not say what it adapts (base_model_name_or_path).")
    return load_model(base, device=device, dtype=dtype).load_lora(folder)


def _dtype(dtype: torch.dtype | str) -> torch.dtype:
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise UserError(f"dtype={dtype}: unknown; expected float32 or bfloat16.")
    return found
